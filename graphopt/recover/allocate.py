"""Share a global budget among items: how much of each is kept, so that the total loss is least.

Each item offers choices with a cost (MACs, parameters, seconds) and a loss. Taking the lower convex hull of
each item's choices and walking down the steepest saving per loss first is the optimum of the relaxed problem
and within one step of that of the whole one (the multiple-choice knapsack; Sinha and Zoltners 1979).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to treat an item.

    Attributes:
        cost: What it costs, in the unit of the budget.
        loss: What it loses; 0 for the item as it is.
        value: What the caller knows it by.
    """

    cost: float
    loss: float
    value: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """What came of it.

    Attributes:
        chosen: The choice of each item, in order.
        cost: Sum of their costs.
        loss: Sum of their losses.
        met: Whether the cost is within the budget.
    """

    chosen: tuple[Choice, ...]
    cost: float
    loss: float
    met: bool


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices on the lower convex hull, from the dearest (least loss) to the cheapest."""
    best: dict[float, Choice] = {}
    for choice in choices:
        known = best.get(choice.cost)
        if known is None or (choice.loss, choice.value) < (known.loss, known.value):
            best[choice.cost] = choice
    kept: list[Choice] = []
    for choice in sorted(best.values(), key=lambda one: -one.cost):
        # A dearer choice that loses no less is of no use.
        while kept and kept[-1].loss >= choice.loss:
            kept.pop()
        while len(kept) >= 2 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], choice):
            kept.pop()
        kept.append(choice)
    return kept


def _slope(dear: Choice, cheap: Choice) -> float:
    return (cheap.loss - dear.loss) / (dear.cost - cheap.cost)


def allocate(items: Sequence[Sequence[Choice]], budget: float) -> Allocation:
    """Choose one of the choices of each item so that the costs stay within *budget* at little loss.

    Args:
        items: Choices of each item, at least one each, in any order.
        budget: Largest sum of costs. Where even the cheapest choices exceed it, they are what is chosen.
    """
    hulls = [hull(choices) for choices in items]
    places = [0] * len(hulls)
    cost = sum(line[0].cost for line in hulls)
    queue: list[tuple[float, int]] = []

    def push(item: int) -> None:
        line, place = hulls[item], places[item]
        if place + 1 < len(line):
            heapq.heappush(queue, (_slope(line[place], line[place + 1]), item))

    for item in range(len(hulls)):
        push(item)
    while cost > budget and queue:
        _, item = heapq.heappop(queue)
        cost += hulls[item][places[item] + 1].cost - hulls[item][places[item]].cost
        places[item] += 1
        push(item)
    chosen = [line[place] for line, place in zip(hulls, places, strict=True)]
    _use_slack(items, chosen, budget)
    return Allocation(
        tuple(chosen),
        sum(choice.cost for choice in chosen),
        sum(choice.loss for choice in chosen),
        sum(choice.cost for choice in chosen) <= budget,
    )


def _use_slack(items: Sequence[Sequence[Choice]], chosen: list[Choice], budget: float) -> None:
    """Spend what the last step left over: the dearer choice that saves the most loss and still fits."""
    while True:
        slack = budget - sum(choice.cost for choice in chosen)
        if slack <= 0:
            return
        best: tuple[float, int, Choice] | None = None
        for item, choices in enumerate(items):
            for choice in choices:
                gain = chosen[item].loss - choice.loss
                if gain > 0 and choice.cost - chosen[item].cost <= slack and (best is None or gain > best[0]):
                    best = gain, item, choice
        if best is None:
            return
        chosen[best[1]] = best[2]
