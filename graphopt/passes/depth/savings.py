"""What leaving a block out saves: MACs, parameters, or time as measured on the target's provider."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.ir.cost import measure_cost
from graphopt.passes.depth.blocks import remove
from graphopt.passes.pruning.timing import saving

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.ir import Model
    from graphopt.ir.cost import Cost
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.depth.blocks import Block
    from graphopt.passes.pruning.timing import Timer
    from graphopt.runtime.measurements import Measured


def without(model: Model, blocks: Sequence[Block]) -> Model:
    """Return a copy of *model* without *blocks*."""
    copy = model.clone()
    remove(copy, blocks)
    return copy


def kinds_of(blocks: Iterable[Block], shapes: Shapes) -> list[list[Block]]:
    """Return *blocks* by what they have in common: operators, shapes, and who else reads their weights."""
    kinds: dict[object, list[Block]] = {}
    for block in blocks:
        read = {value for node in block.nodes for value in node.inputs if value is not None}
        operators = Counter((node.op_type, shapes.shape(node.outputs[0])) for node in block.nodes)
        weights = Counter(
            (shapes.shape(value), len(value.uses())) for value in read if value.is_initializer()
        )
        kinds.setdefault((frozenset(operators.items()), frozenset(weights.items())), []).append(block)
    return list(kinds.values())


def costs_without(model: Model, kinds: Iterable[Sequence[Block]], dims: Mapping[str, int]) -> dict[str, Cost]:
    """Return what *model* costs without each block of *kinds* alone, by its name."""
    found: dict[str, Cost] = {}
    for kind in kinds:
        cost = measure_cost(without(model, kind[:1]), dims)
        found |= dict.fromkeys((block.name for block in kind), cost)
    return found


@dataclass(frozen=True)
class TimeSavings:
    """What blocks save of the original's time.

    Attributes:
        uncut: Time of the whole model as it will be run, over that of the original.
        saved: What each block saves, by its name, as a share of the original's time.
        table: What was measured, for the report.
    """

    uncut: float
    saved: Mapping[str, float]
    table: list[dict[str, object]]


def time_savings(model: Model, kinds: Sequence[Sequence[Block]], timer: Timer) -> TimeSavings:
    """Time *model* without each of *kinds*; an equal share of what that saves goes to each block.

    Args:
        model: The whole model.
        kinds: Blocks that may go, those that are alike together.
        timer: Times candidates as they will be run.
    """
    groups = {_label(kind): kind for kind in kinds}
    # Everything is held against the whole model, so that one is measured with the most care.
    whole = timer.times({_WHOLE: model.clone()}, whole=True)[_WHOLE]
    models = {label: without(model, group) for label, group in groups.items()}
    times: Mapping[str, Measured] = timer.times(models) if models else {}
    saved = {
        block.name: saving(whole, times[label]) / len(group)
        for label, group in groups.items()
        for block in group
    }
    table: list[dict[str, object]] = [
        {"blocks": [block.name for block in group], "ratio": round(times[label].ratio, 4)}
        for label, group in groups.items()
    ]
    return TimeSavings(whole.ratio, saved, table)


def _label(group: Sequence[Block]) -> str:
    more = f" and {len(group) - 1} like it" if len(group) > 1 else ""
    return f"without {group[0].name}{more}"


_WHOLE = "all blocks"
