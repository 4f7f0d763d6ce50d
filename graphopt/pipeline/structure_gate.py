"""The gate ``structure``: what the runtime must make of a quantised model, without a clock."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from graphopt.api import Gate, GateResult, PassOptions
from graphopt.errors import GateFailed

if TYPE_CHECKING:
    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.runtime.structure import Structure


class StructureGate(Gate):
    """Nodes that were quantised must run as integer kernels in the form that the runtime gives the model."""

    name: ClassVar[str] = "structure"
    summary: ClassVar[str] = "refuse a step that quantises nodes which the runtime then computes in float"

    class Options(PassOptions):
        """Without a limit, no quantised node may fall back to float."""

        min_integer_kernels: int | None = Field(
            default=None, ge=0, description="fewest nodes that compute on codes, such as QLinearConv"
        )
        max_dequantize_before_compute: int | None = Field(
            default=None,
            ge=0,
            description="most DequantizeLinear nodes left before Conv, MatMul, Gemm, Gather and the like",
        )
        max_fallback: int | None = Field(
            default=None, ge=0, description="most quantised nodes that the runtime computes in float"
        )
        max_off_provider: int | None = Field(
            default=None, ge=0, description="most nodes that run on another provider than the target's"
        )

    options: Options

    def check(self, original: Model, candidate: Model, context: Context) -> tuple[GateResult, ...]:
        """Return one count per limit. A model without quantised parts passes: a later step may quantise it.

        Raises:
            GateFailed: The runtime's own form of the model cannot be read.
        """
        from graphopt.ir.emit import emit_for_runtime
        from graphopt.pipeline.gates import provider_of
        from graphopt.runtime.structure import structure_of

        del original
        with tempfile.TemporaryDirectory(prefix="graphopt-gate-") as folder:
            found = structure_of(emit_for_runtime(candidate, Path(folder)), provider=provider_of(context))
        if found is not None and found.problem and self._counts_wanted():
            raise GateFailed(
                f"the runtime's own form of the model cannot be read: {found.problem}",
                where=f"provider {found.provider!r}",
            )
        return tuple(self._judge(found))

    def _limits(self) -> dict[str, int]:
        limits = {name: limit for name, limit in self.options.model_dump().items() if limit is not None}
        return limits or {"max_fallback": 0}

    def _counts_wanted(self) -> bool:
        return bool(self._limits().keys() - {"max_off_provider"})

    def _judge(self, found: Structure | None) -> list[GateResult]:
        if found is None:
            note = "nothing is quantised yet"
            limits = self._limits().items()
            return [GateResult(name, 0.0, float(limit), passed=True, note=note) for name, limit in limits]
        values = {
            "min_integer_kernels": (found.integer_kernels, found.kernels),
            "max_dequantize_before_compute": (found.dequantize_before_compute, found.dequantize_before),
            "max_fallback": (found.fallback, found.fallbacks),
            "max_off_provider": (sum(found.off_provider.values()), found.off_provider),
        }
        results = []
        for name, limit in self._limits().items():
            value, parts = values[name]
            passed = value >= limit if name.startswith("min_") else value <= limit
            note = ", ".join(f"{count} {part}" for part, count in parts.items())
            results.append(GateResult(name, float(value), float(limit), passed=passed, note=note))
        return results
