"""Which blocks go: the ones that cost least at the outputs for what they save, one after the other.

Errors are measured on the model without the blocks that went before, so what blocks do together counts.
Leaving out more rarely makes another block matter less: an error that was measured a few blocks ago is a
lower bound, and only what leads by its bound is measured anew (lazy greedy; Minoux 1978).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.passes.depth.blocks import independent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.passes.depth.blocks import Block


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
        savings: What each saves, by its name; more than nothing.
        error_without: Gives the error of the model without some blocks.

    Attributes:
        steps: The blocks that go, in the order in which they were chosen.
        trials: How many errors were measured.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        savings: Mapping[str, float],
        error_without: Callable[[Sequence[Block]], float],
    ) -> None:
        self.steps: list[Step] = []
        self.trials = 0
        self._blocks = list(blocks)
        self._left = list(blocks)
        self._savings = savings
        self._error_without = error_without
        # (price, place, error, number of steps when it was measured); at first nothing is known.
        self._queue = [(float("-inf"), place, 0.0, -1) for place in range(len(blocks))]

    @property
    def chosen(self) -> list[Block]:
        """The blocks that go, in the order of the graph."""
        return self._chosen_and()

    def step(self) -> bool:
        """Choose one more block; return whether there was one."""
        now = self.steps[-1].error if self.steps else 0.0
        while self._queue:
            _, place, error, measured = heapq.heappop(self._queue)
            block = self._blocks[place]
            if block not in self._left:
                continue
            if measured == len(self.steps):
                self.steps.append(Step(block, error))
                self._left = independent(self._left, [block])
                return True
            error = self._error_without(self._chosen_and(block))
            self.trials += 1
            price = (error - now) / self._savings[block.name]
            heapq.heappush(self._queue, (price, place, error, len(self.steps)))
        return False

    def _chosen_and(self, *more: Block) -> list[Block]:
        names = {block.name for block in (*(step.block for step in self.steps), *more)}
        return [block for block in self._blocks if block.name in names]
