"""quantize-dynamic: weights of 8 bits, activations quantised as they come, for products and LSTM.

No data is needed: the range of an activation is taken anew in every run. Convolutions are left alone on
targets where that is slower than fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.ir import Model


class QuantizeDynamic(Pass):
    """Compute MatMul, Gemm and LSTM with codes of 8 bits on both sides; see the module."""

    info = PassInfo(
        name="quantize-dynamic",
        summary="Compute products and LSTM with 8-bit weights and activations quantised as they come.",
        min_opset=11,
        lossy=True,
    )

    class Options(PassOptions):
        """Where, and how the weights are rounded."""

        reduce_range: bool = Field(
            default=False,
            description="weights of 7 bits, for CPUs whose 8-bit products saturate (no VNNI) (true or false)",
        )
        min_elements: int | None = Field(
            default=None,
            ge=1,
            description="smallest weight that is quantised (a number of elements; none: what pays on the "
            "target)",
        )
        tables: bool = Field(
            default=True,
            description="also store tables that Gather reads as codes of 8 bits (true or false)",
        )
        keep: tuple[str, ...] = Field(
            default=(), description="weights and nodes to leave alone (patterns of names with * and ?)"
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Rewrite operator by operator in graph order; see the module."""
        from graphopt.passes.weights.dynamic import Dynamic

        return Dynamic(
            model,
            context,
            reduce_range=options.reduce_range,
            min_elements=options.min_elements,
            tables=options.tables,
            keep=options.keep,
        ).run()
