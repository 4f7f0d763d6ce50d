"""How many units of each family stay, for a budget of the whole model.

Each family offers a few counts (its choices), from its full size down to its floor. The share of importance
that a family keeps is S = sum of the scores of its kept units / sum of all its scores; what a cut is held to
cost is the sum over families of R / S, R being the number of operators that read the family: it grows as a
family shrinks, so that no layer is emptied while others are full, and a stream that a whole stage reads is
not cut as if one layer did. The global scope takes, step by step, the cut with the lowest cost per MAC (or
parameter) that goes; the family scope keeps one fraction of all families.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from graphopt.ir.cost import Cost
    from graphopt.passes.pruning.meter import Meter

Budget = Literal["macs", "parameters"]

FLOOR_SHARE = 0.125
"""Of each family an eighth stays, unless the budget cannot be met otherwise."""

_LEAST_SHARE = 1e-12
_MOST_CHOICES = 128  # of one family; finer steps change the result by less than a percent of the family


def amount_of(cost: Cost, budget: Budget) -> int:
    """Return what *budget* counts of *cost*."""
    return cost.known_macs if budget == "macs" else cost.parameters


@dataclass(frozen=True)
class Candidate:
    """One family as the allocation sees it.

    Attributes:
        name: Name of the family.
        scores: Importance of each unit, from 0; [size].
        order: Units from the most to the least important; [size].
        readers: Operators that sum over the family's activations.
        width: Channels that one unit is made of, in the tensors that the target's alignment is about.
        curve: What is lost where the first k units of the order stay, [size + 1], in a unit that all
            families share; None where only scores are known.
    """

    name: str
    scores: npt.NDArray[np.float64]
    order: npt.NDArray[np.intp]
    width: int = 1
    readers: int = 1
    curve: npt.NDArray[np.float64] | None = None

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.scores)

    def losses(self) -> npt.NDArray[np.float64]:
        """Return what keeping the first k units of the order costs, [size + 1]: curve, or readers / share."""
        if self.curve is not None:
            return self.curve
        scores = self.scores[self.order]
        total = float(scores.sum())
        if total <= 0.0:
            shares = np.linspace(0.0, 1.0, self.size + 1)
        else:
            shares = np.concatenate([[0.0], np.cumsum(scores) / total])
        return self.readers / np.maximum(shares, _LEAST_SHARE)


def ordered(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Return units from the most to the least important; of equal ones the first stays longer."""
    return np.argsort(-scores, kind="stable").astype(np.intp)


def choices(candidate: Candidate, alignment: int, floor: int) -> tuple[int, ...]:
    """Return the counts that *candidate* may be cut to, its full size first, falling.

    Args:
        candidate: The family.
        alignment: Kept channels are a multiple of it.
        floor: Fewest units to keep.
    """
    step = alignment // math.gcd(alignment, candidate.width)
    counts = range(step * ((candidate.size - 1) // step), max(floor, 1) - 1, -step)
    if len(counts) > _MOST_CHOICES:
        stride = -(-len(counts) // _MOST_CHOICES)
        counts = counts[::stride]
    return (candidate.size, *counts)


def choices_for(
    candidate: Candidate, round_to: int | None, preferred: int, min_family: int, share: float
) -> tuple[tuple[int, ...], int]:
    """Return the choices of a family and the alignment that they keep.

    Args:
        candidate: The family.
        round_to: The alignment that was asked for, which is kept whatever it costs; None for the target's.
        preferred: The alignment to try first where none was asked for; then 8, 4 and 1.
        min_family: Fewest units to keep.
        share: Fraction of the units to keep at least.
    """
    floor = max(min_family, math.ceil(share * candidate.size))
    if round_to is not None:
        return choices(candidate, round_to, floor), round_to
    found: tuple[int, ...] = (candidate.size,)
    for alignment in [preferred, *(each for each in (8, 4, 1) if each < preferred)]:
        found = choices(candidate, alignment, floor)
        if len(found) > 1:
            return found, alignment
    return found, 1


class Savings(Protocol):
    """What a cut saves, in whole numbers of whatever the budget counts."""

    def saved(self, counts: Mapping[str, int], family: str, kept: int) -> int:
        """Return what goes when *family* goes from ``counts[family]`` to *kept* units."""

    def removed(self, counts: Mapping[str, int]) -> int:
        """Return what a cut to *counts* removes from the whole model."""


@dataclass(frozen=True)
class Metered:
    """MACs or parameters, as a meter counts them."""

    meter: Meter
    budget: Budget

    def saved(self, counts: Mapping[str, int], family: str, kept: int) -> int:
        """Return what goes when *family* goes from ``counts[family]`` to *kept* units."""
        of = self.meter.saved_macs if self.budget == "macs" else self.meter.saved_parameters
        return of(counts, family, kept)

    def removed(self, counts: Mapping[str, int]) -> int:
        """Return what a cut to *counts* removes from the whole model."""
        of = self.meter.removed_macs if self.budget == "macs" else self.meter.removed_parameters
        return of(counts)


@dataclass(frozen=True)
class Plan:
    """What the allocation decided.

    Attributes:
        counts: Units that stay, by family.
        alignments: The alignment that each family's choices keep.
        reached: Whether the budget is met, as far as the meter can tell.
        removed: MACs or parameters that go, as the budget counts.
        floors: What each family keeps when it is cut as far as its floor lets it.
        note: What had to give way for the budget; "" where nothing.
    """

    counts: Mapping[str, int]
    alignments: Mapping[str, int]
    reached: bool
    removed: int
    floors: Mapping[str, int]
    note: str = ""


def allocate(
    candidates: Sequence[Candidate],
    meter: Meter,
    *,
    budget: Budget,
    to_remove: int,
    scope: Literal["global", "family"] = "global",
    round_to: int | None = None,
    preferred: int = 16,
    min_family: int = 2,
) -> Plan:
    """Return how many units of each family stay so that at least *to_remove* MACs or parameters go.

    Where the choices are too coarse or their floors too high for the budget, the alignment that was not asked
    for gives way first (8, 4, 1), then the floor of an eighth. What cannot be reached even so is approached
    as far as that floor lets it.

    Args:
        candidates: The families that may be cut.
        meter: Knows what a cut saves.
        budget: What *to_remove* counts.
        to_remove: MACs or parameters that have to go.
        scope: As in the module's head.
        round_to: As :func:`choices_for`.
        preferred: As :func:`choices_for`.
        min_family: As :func:`choices_for`.
    """
    ladder = (
        [preferred, *(each for each in (8, 4, 1) if each < preferred)] if round_to is None else [round_to]
    )
    savings = Metered(meter, budget)
    rungs = [(share, alignment) for share in (FLOOR_SHARE, 0.0) for alignment in ladder]
    reached, note = False, ""
    floors: dict[str, int] = {}
    pairs: dict[str, tuple[tuple[int, ...], int]] = {}
    for share, alignment in rungs:
        pairs = {each.name: choices_for(each, round_to, alignment, min_family, share) for each in candidates}
        floors = {name: counts[-1] for name, (counts, _) in pairs.items()}
        reached = savings.removed(floors) >= to_remove
        if reached:
            note = _gave_way(ladder[0], alignment, share)
            break
    else:
        pairs = {
            each.name: choices_for(each, round_to, ladder[-1], min_family, FLOOR_SHARE) for each in candidates
        }
    offered = {name: counts for name, (counts, _) in pairs.items()}
    spread = uniform if scope == "family" else greedy
    counts = spread(candidates, offered, savings, to_remove)
    alignments = {name: alignment for name, (_, alignment) in pairs.items()}
    return Plan(counts, alignments, reached, savings.removed(counts), floors, note)


def _gave_way(first: int, alignment: int, share: float) -> str:
    """Say what was given up for the budget."""
    parts = []
    if alignment != first:
        parts.append(f"kept channels are multiples of {alignment} instead of {first}")
    if not share:
        parts.append("families are cut below an eighth")
    return f"to reach the budget {' and '.join(parts)}" if parts else ""


def uniform(
    candidates: Sequence[Candidate],
    offered: Mapping[str, Sequence[int]],
    savings: Savings,
    to_remove: int,
) -> dict[str, int]:
    """Keep the largest fraction of all families that meets the budget, else the floors."""

    def at(fraction: float) -> dict[str, int]:
        return {
            each.name: next(
                (count for count in offered[each.name] if count <= fraction * each.size + 1e-9),
                offered[each.name][-1],
            )
            for each in candidates
        }

    fractions = sorted({count / each.size for each in candidates for count in offered[each.name]})
    low, high = 0, len(fractions) - 1  # the lowest fraction keeps only floors
    while low < high:
        middle = (low + high + 1) // 2
        if savings.removed(at(fractions[middle])) >= to_remove:
            low = middle
        else:
            high = middle - 1
    return at(fractions[low]) if fractions else {}


def greedy(
    candidates: Sequence[Candidate],
    offered: Mapping[str, Sequence[int]],
    savings: Savings,
    to_remove: int,
) -> dict[str, int]:
    """Take the step with the lowest cost for each thing that goes, until enough is gone."""
    saved = savings.saved
    counts = {each.name: each.size for each in candidates}
    losses = {each.name: each.losses() for each in candidates}
    places = dict.fromkeys(counts, 0)
    removed = 0

    def price(name: str) -> tuple[float, int] | None:
        """Return what the next step of a family costs for each thing that it saves, and what it saves."""
        if places[name] + 1 >= len(offered[name]):
            return None
        after = offered[name][places[name] + 1]
        gain = saved(counts, name, after)
        if gain <= 0:
            return None
        return (losses[name][after] - losses[name][counts[name]]) / gain, gain

    heap = [
        (found[0], index, each.name) for index, each in enumerate(candidates) if (found := price(each.name))
    ]
    heapq.heapify(heap)
    while heap and removed < to_remove:
        _, index, name = heapq.heappop(heap)
        found = price(name)
        if found is None:
            continue
        # Other steps may have made this one save less since it was priced; never more.
        if heap and found[0] > heap[0][0]:
            heapq.heappush(heap, (found[0], index, name))
            continue
        places[name] += 1
        counts[name] = offered[name][places[name]]
        removed += found[1]
        if again := price(name):
            heapq.heappush(heap, (again[0], index, name))
    _give_back(candidates, offered, places, counts, losses, savings, removed - to_remove)
    return counts


def _give_back(
    candidates: Sequence[Candidate],
    offered: Mapping[str, Sequence[int]],
    places: dict[str, int],
    counts: dict[str, int],
    losses: Mapping[str, npt.NDArray[np.float64]],
    savings: Savings,
    spare: int,
) -> None:
    """Undo steps that the last ones made unnecessary, the costliest first; *spare* is what went too much."""
    if spare <= 0:
        return
    cut = [each.name for each in candidates if places[each.name]]
    cut.sort(key=lambda name: losses[name][offered[name][places[name] - 1]] - losses[name][counts[name]])
    for name in cut:
        while places[name]:
            before = offered[name][places[name] - 1]
            gain = -savings.saved(counts, name, before)
            if gain > spare:
                break
            spare -= gain
            places[name] -= 1
            counts[name] = before
