"""Which blocks go: the ones that cost least at the outputs for what they save, one after the other.

Errors are measured on the model without the blocks that went before, so what blocks do together counts, and
what one saves is what it saves without these. Leaving out more rarely makes another block matter less: an
error that was measured a few blocks ago is a lower bound, and only what leads by its bound is measured anew
(lazy greedy; Minoux 1978).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.passes.depth.blocks import independent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.passes.depth.blocks import Block
    from graphopt.passes.depth.savings import Saved


@dataclass(frozen=True, slots=True)
class Step:
    """One block that goes.

    Attributes:
        block: The block.
        error: Squared error of the model without it and those before, over the variance of the outputs.
    """

    block: Block
    error: float


class Search:
    """The search; :meth:`step` lets one more block go.

    Args:
        blocks: Those that may go.
        saved: Gives what a block saves where others are gone; one that saves nothing does not go.
        error_without: Gives the error of the model without some blocks.

    Attributes:
        steps: The blocks that go, in the order in which they were chosen.
        trials: How many errors were measured.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        saved: Saved,
        error_without: Callable[[Sequence[Block]], float],
    ) -> None:
        self.steps: list[Step] = []
        self.trials = 0
        self._blocks = list(blocks)
        self._left = list(blocks)
        self._saved = saved
        self._error_without = error_without
        # What each was last found to add to the error, by its place; at first nothing is known.
        self._added = [float("-inf")] * len(blocks)

    @property
    def chosen(self) -> list[Block]:
        """The blocks that go, in the order of the graph."""
        return self._chosen_and()

    def step(self) -> bool:
        """Choose one more block; return whether there was one."""
        now = self.steps[-1].error if self.steps else 0.0
        gone = [step.block for step in self.steps]
        saved = {
            place: amount
            for place, block in enumerate(self._blocks)
            if block in self._left and (amount := self._saved(block, gone)) > 0
        }
        errors: dict[int, float] = {}
        queue = [(self._added[place] / amount, place) for place, amount in saved.items()]
        heapq.heapify(queue)
        while queue:
            _, place = heapq.heappop(queue)
            block = self._blocks[place]
            if place in errors:
                self.steps.append(Step(block, errors[place]))
                self._left = independent(self._left, [block])
                for around, one in enumerate(self._blocks):
                    if block.add in one.nodes:  # it now adds less than it did: no bound
                        self._added[around] = float("-inf")
                return True
            errors[place] = self._error_without(self._chosen_and(block))
            self._added[place] = errors[place] - now
            self.trials += 1
            heapq.heappush(queue, (self._added[place] / saved[place], place))
        return False

    def _chosen_and(self, *more: Block) -> list[Block]:
        names = {block.name for block in (*(step.block for step in self.steps), *more)}
        return [block for block in self._blocks if block.name in names]
