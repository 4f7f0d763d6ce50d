"""What leaving a block out saves: MACs, parameters, or time as measured on the target's provider.

A block around one that is gone saves what is left of it. A weight that blocks share goes with the last of
them: each that still has to go saves an equal part of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.ir.cost import NOT_PARAMETERS, measure_cost
from graphopt.passes.depth.blocks import independent, remove
from graphopt.passes.pruning.allocation import amount_of
from graphopt.passes.pruning.timing import saving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from graphopt.ir import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.depth.blocks import Block
    from graphopt.passes.pruning.allocation import Budget
    from graphopt.passes.pruning.timing import Timer
    from graphopt.runtime.measurements import Measured

    Saved = Callable[[Block, Sequence[Block]], float]
    """What a block saves where others are gone already."""


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


class CostSavings:
    """What blocks save of MACs or parameters; call it with a block and those that are gone.

    Args:
        model: The whole model.
        kinds: Blocks that may go, those that are alike together.
        budget: What counts of the cost of a model.
        dims: Sizes bound to symbolic dims.
    """

    def __init__(
        self,
        model: Model,
        kinds: Iterable[Sequence[Block]],
        budget: Budget,
        dims: Mapping[str, int],
    ) -> None:
        self._model, self._budget, self._dims = model, budget, dims
        self._left: dict[frozenset[str], int] = {}
        self._blocks = [block for kind in kinds for block in kind]
        # A MAC belongs to one node.
        weights = _parameters if budget == "parameters" else lambda _: frozenset()
        self._weights = {block.name: weights(block) for block in self._blocks}
        self._alone: dict[str, float] = {}
        for kind in kinds:
            of_kind: float | None = None
            for block in kind:
                if self._sharing(block, ()):
                    self._alone[block.name] = self._measured(block, ())
                    continue
                if of_kind is None:
                    of_kind = self._measured(block, ())
                self._alone[block.name] = of_kind

    def __call__(self, block: Block, gone: Sequence[Block]) -> float:
        """Return what *block* saves of the model without *gone*."""
        if any(one.add in block.nodes or self._shares(one, block) for one in gone):
            return self._measured(block, gone)
        return self._alone[block.name]

    def _measured(self, block: Block, gone: Sequence[Block]) -> float:
        alone = self._saved_by([block], gone)
        sharing = [block, *self._sharing(block, gone)]
        if len(sharing) == 1:
            return alone
        # What goes with all of them and with none of them alone.
        shared = self._saved_by(sharing, gone) - sum(self._saved_by([one], gone) for one in sharing)
        return alone + shared / len(sharing)

    def _saved_by(self, blocks: Sequence[Block], gone: Sequence[Block]) -> int:
        return self._without(gone) - self._without([*gone, *blocks])

    def _without(self, blocks: Sequence[Block]) -> int:
        key = frozenset(block.name for block in blocks)
        if key not in self._left:
            cost = measure_cost(without(self._model, blocks), self._dims)
            self._left[key] = amount_of(cost, self._budget)
        return self._left[key]

    def _sharing(self, block: Block, gone: Sequence[Block]) -> list[Block]:
        """Return the other blocks that are not gone and read weights that *block* reads."""
        left = independent(self._blocks, gone)
        return [one for one in left if one is not block and self._shares(one, block)]

    def _shares(self, one: Block, two: Block) -> bool:
        apart = one.add not in two.nodes and two.add not in one.nodes
        return apart and not self._weights[one.name].isdisjoint(self._weights[two.name])


def _parameters(block: Block) -> frozenset[int]:
    """Return the tensors of parameters that the nodes of *block* read, by identity; scalars weigh nothing."""
    read = (value.const_value for node in block.nodes for value in node.inputs if value is not None)
    return frozenset(
        id(tensor)
        for tensor in read
        if tensor is not None and tensor.size > 1 and tensor.dtype not in NOT_PARAMETERS
    )


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

    def __call__(self, block: Block, gone: Sequence[Block]) -> float:
        """Return what *block* saves where *gone* are left out."""
        inside = [one for one in gone if one.add in block.nodes]
        outermost = [one for one in inside if not any(one.add in other.nodes for other in inside)]
        return self.saved[block.name] - sum(self.saved[one.name] for one in outermost)


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
