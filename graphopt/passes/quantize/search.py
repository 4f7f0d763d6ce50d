"""Which nodes are faster on codes: measured on the target's provider: all, families, then blocks and ends.

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

_CLEAR = 0.1
"""A trial that shows a tenth of difference, and three times the noise, is not repeated."""

_FAMILIES_ABOVE = 0.6
"""Where all on codes takes less of the time, no family alone can come near."""

_PROMISING = 0.99
"""A block that takes less of the time float, in one trial, is worth the whole protocol."""

_MOST_CONFIRMED = 4


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
        best: tuple[Variant, Model] | None = None
        best_ratio = 1.0
        for group in self._first(whole):
            built = self._built({f"{what} against float": variant for what, variant in group.items()})
            for what, measured in self._compare(self._model, built).items():
                # A later one is a narrower one; it must be better by more than noise.
                margin = measured.noise_floor if best is not None else 0.0
                if measured.is_faster and measured.ratio < best_ratio * (1.0 - margin):
                    best, best_ratio = built[what], measured.ratio
            if best_ratio < _FAMILIES_ABOVE:
                break
        return None if best is None else self._refined(*best)

    def _first(self, whole: Variant) -> list[dict[str, Variant]]:
        """Return the variants to begin with: all, without what stands between; then each family alone."""
        families = {
            "convolutions": frozenset(i for i in whole.nodes if self._kinds[i] in _CONVOLUTIONS),
            "matrix products": frozenset(i for i in whole.nodes if self._kinds[i] not in _CONVOLUTIONS),
            "dense convolutions": frozenset(i for i in whole.nodes if self._kinds[i] == "conv"),
        }
        seen = {whole.nodes}
        alone = {}
        for name, nodes in families.items():
            if nodes and nodes not in seen:
                seen.add(nodes)
                alone[f"{name} alone"] = Variant(nodes)
        return [{"all": whole, "all without chains": Variant(whole.nodes, links=False)}, alone]

    def _refined(self, best: Variant, model: Model) -> Variant:
        """Leave those blocks float without which *best* is faster: one trial picks, the protocol decides."""
        order = sorted(best.nodes)
        size = max(_SMALLEST_BLOCK, -(-len(order) // _BLOCKS))
        blocks = [order[start : start + size] for start in range(0, len(order), size)]
        if len(blocks) < 2:
            return best
        # The first and the last node also alone: they are unlike the others, with few channels or rows.
        blocks += [end for end in (order[:1], order[-1:]) if end not in blocks]
        names = [self._named(block) for block in blocks]
        without = {
            name: Variant(best.nodes - set(block), best.links)
            for name, block in zip(names, blocks, strict=True)
        }
        built = self._built({f"{name}, once": variant for name, variant in without.items()})
        once = self._context.latencies(
            model, {name: each[1] for name, each in built.items()}, trials=1, budget_s=_BUDGET_S
        )
        ranked = sorted((measured.ratio, name.removesuffix(", once")) for name, measured in once.items())
        promising = [name for ratio, name in ranked if ratio < _PROMISING][: _MOST_CONFIRMED - 1]
        if not promising:
            return best
        tried = {name: without[name] for name in promising}
        if len(promising) > 1:
            left = frozenset.intersection(*(without[name].nodes for name in promising))
            tried = {f"{' and '.join(sorted(promising))}": Variant(left, best.links), **tried}
        chosen, ratio = best, 1.0
        final = self._built(tried)
        for name, measured in self._compare(model, final).items():
            if measured.is_faster and measured.ratio < ratio:
                chosen, ratio = final[name][0], measured.ratio
        return chosen

    def _named(self, block: list[int]) -> str:
        first, last = self._labels[block[0]], self._labels[block[-1]]
        return f"{first} float" if len(block) == 1 else f"{first} to {last} float"

    def _built(self, variants: dict[str, Variant]) -> dict[str, tuple[Variant, Model]]:
        """Return those of *variants* of which something is left to quantise, with their models."""
        models = {what: self._build(variant) for what, variant in variants.items() if variant.nodes}
        return {what: (variants[what], model) for what, model in models.items() if model is not None}

    def _compare(self, before: Model, built: dict[str, tuple[Variant, Model]]) -> dict[str, Measured]:
        models = {what: model for what, (_, model) in built.items()}
        found = self._context.latencies(before, models, budget_s=_BUDGET_S, clear=_CLEAR) if models else {}
        self._measured.extend(found.items())
        return found
