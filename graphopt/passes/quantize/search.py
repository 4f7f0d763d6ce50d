"""Which nodes are faster on codes: measured on the target's provider: all, families, then blocks.

Nothing goes back to float for less than the noise of two sessions of the same model (A/A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.api import Context
    from graphopt.ir.model import Model
    from graphopt.passes.quantize.candidates import Compute
    from graphopt.runtime.measurements import Measured

NOTHING_PAYS = "nothing is faster on codes on this provider, as measured"

_CONVOLUTIONS = frozenset({"conv", "pointwise", "depthwise", "grouped", "transposed"})
_BLOCKS = 6
_SMALLEST_BLOCK = 2
_BUDGET_S = 4.0
"""Seconds of inference a comparison may take; enough for the whole protocol up to 50 ms an inference."""

_WORTH_IT = 0.9
"""A model that is at least a tenth faster is worth its blocks being looked at one by one."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to quantise a model.

    Attributes:
        nodes: Places of the nodes with weights that run on codes, in the order of the candidates.
        links: Whether operators between them do as well.
    """

    nodes: frozenset[int]
    links: bool = True


class Search:
    """Looks for the fastest variant.

    Args:
        context: Measures.
        model: The float model.
        build: Makes the quantised copy of a variant.
        computes: The candidates.
    """

    def __init__(
        self,
        context: Context,
        model: Model,
        build: Callable[[Variant], Model | None],
        computes: list[Compute],
    ) -> None:
        self._context = context
        self._model = model
        self._build = build
        self._kinds = [each.kind for each in computes]
        self._labels = [each.label for each in computes]
        self._measured: list[tuple[str, Measured]] = []

    def described(self) -> list[dict[str, object]]:
        """Return all that was measured, ready for JSON."""
        return [
            {"what": what, "ratio": round(each.ratio, 4), "noise": round(each.noise_floor, 4)}
            for what, each in self._measured
        ]

    def run(self, whole: Variant) -> Variant | None:
        """Return the fastest variant within *whole*, or None where none is faster than the float model."""
        best: Variant | None = None
        best_model: Model | None = None
        best_ratio = 1.0
        for what, variant in self._first(whole):
            model = self._build(variant)
            if model is None:
                continue
            measured = self._compare(f"{what} against float", self._model, model)
            if measured.is_faster and measured.ratio < best_ratio:
                best, best_model, best_ratio = variant, model, measured.ratio
            if what == "all" and measured.ratio < _WORTH_IT / 2:
                break  # families apart cannot come near
        if best is None or best_model is None:
            return None
        return self._refined(best, best_model)

    def _first(self, whole: Variant) -> list[tuple[str, Variant]]:
        """Return the variants to begin with: all, without what stands between, each family alone."""
        variants = [("all", whole), ("all without chains", Variant(whole.nodes, links=False))]
        families = {
            "convolutions": frozenset(i for i in whole.nodes if self._kinds[i] in _CONVOLUTIONS),
            "matrix products": frozenset(i for i in whole.nodes if self._kinds[i] not in _CONVOLUTIONS),
            "dense convolutions": frozenset(i for i in whole.nodes if self._kinds[i] == "conv"),
        }
        seen = {whole.nodes}
        for name, nodes in families.items():
            if nodes and nodes not in seen:
                seen.add(nodes)
                variants.append((f"{name} alone", Variant(nodes)))
        return variants

    def _refined(self, best: Variant, model: Model) -> Variant:
        """Leave blocks float as long as that is faster."""
        order = sorted(best.nodes)
        size = max(_SMALLEST_BLOCK, -(-len(order) // _BLOCKS))
        blocks = [order[start : start + size] for start in range(0, len(order), size)]
        if len(blocks) < 2:
            return best
        for block in blocks:
            variant = Variant(best.nodes - set(block), best.links)
            changed = self._build(variant) if variant.nodes else None
            if changed is None:
                continue
            what = f"{self._labels[block[0]]} to {self._labels[block[-1]]} float"
            # One trial tells what is worth the whole protocol; most blocks are plainly better on codes.
            if (
                self._context.latency(f"{what}, once", model, changed, trials=1, budget_s=_BUDGET_S).ratio
                >= 1.0
            ):
                continue
            if self._compare(what, model, changed).is_faster:
                best, model = variant, changed
        return best

    def _compare(self, what: str, before: Model, after: Model) -> Measured:
        measured = self._context.latency(what, before, after, budget_s=_BUDGET_S)
        self._measured.append((what, measured))
        return measured
