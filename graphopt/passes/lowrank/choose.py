"""Which rank each weight gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.passes.lowrank.candidates import Way as Way  # noqa: PLC0414 - part of what this module gives
from graphopt.passes.lowrank.candidates import uniform_ranks, ways_at, ways_of
from graphopt.recover.allocate import Choice, allocate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.passes.lowrank.candidates import Candidate, Rules
    from graphopt.passes.lowrank.prospects import Prospect


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was decided.

    Attributes:
        ways: How each candidate is written; None leaves it as it is.
        reasons: Why a candidate is left as it is, "" where it is not.
        cost: What the candidates cost afterwards, in MACs or parameters.
        met: Whether the budget is met; true where there is none.
    """

    ways: tuple[Way | None, ...]
    reasons: tuple[str, ...]
    cost: int
    met: bool = True


def by_rank(
    candidates: Sequence[Candidate], prospects: Sequence[Prospect], rules: Rules, rank: int
) -> Chosen:
    """Give every weight the same *rank*, rounded up to the alignment."""
    asked, rank = rank, rules.rounded(rank)
    chosen = []
    for candidate, prospect in zip(candidates, prospects, strict=True):
        fitting = ways_at(candidate, prospect, rules, rank)
        chosen.append(min(fitting, key=lambda way: way.loss) if fitting else None)
    return chosen_of(candidates, rules, chosen, _why_not_rank(asked, rank, rules))


def _why_not_rank(asked: int, rank: int, rules: Rules) -> str:
    rounded = "" if asked == rank else f" ({asked}, rounded up to a multiple of {rules.round_to})"
    return f"rank {rank}{rounded} does not save a factor of {rules.min_gain:g}, or exceeds the full rank"


def by_energy(
    candidates: Sequence[Candidate], prospects: Sequence[Prospect], rules: Rules, energy: float
) -> Chosen:
    """Give every weight the cheapest way that keeps *energy* of its output."""
    chosen = []
    for candidate, prospect in zip(candidates, prospects, strict=True):
        fitting = [way for way in ways_of(candidate, prospect, rules) if 1.0 - way.loss >= energy]
        chosen.append(min(fitting, key=lambda way: (way.cost, way.loss)) if fitting else None)
    reason = f"no rank that pays (a gain of {rules.min_gain:g}) keeps {energy:g} of the output's energy"
    return chosen_of(candidates, rules, chosen, reason)


def by_ratio(
    candidates: Sequence[Candidate], prospects: Sequence[Prospect], rules: Rules, ratio: float
) -> Chosen:
    """Give every weight the best way that costs at most *ratio* of what it costs now."""
    chosen = []
    for candidate, prospect in zip(candidates, prospects, strict=True):
        ways = []
        for form in candidate.forms:
            ranks = uniform_ranks(candidate, form, rules, ratio)
            if ranks is not None:
                cost = rules.cost(form, ranks, candidate.geometry)
                ways.append(Way(form, ranks, cost, prospect.loss(form, ranks)))
        chosen.append(min(ways, key=lambda way: way.loss) if ways else None)
    return chosen_of(candidates, rules, chosen, "no rank that pays is cheap enough")


def uniform(
    candidates: Sequence[Candidate], prospects: Sequence[Prospect], rules: Rules, budget: int
) -> Chosen:
    """Find the largest common ratio at which all weights together stay within *budget*, by bisection."""
    low, high = 0.0, 1.0
    best: Chosen | None = None
    for _ in range(20):
        middle = (low + high) / 2
        tried = by_ratio(candidates, prospects, rules, middle)
        if tried.cost <= budget:
            best, low = tried, middle
        else:
            high = middle
    if best is None:
        ways = [
            min(ways_of(c, p, rules), key=lambda way: way.cost, default=None)
            for c, p in zip(candidates, prospects, strict=True)
        ]
        best = chosen_of(candidates, rules, ways, "no rank pays")
    return Chosen(best.ways, best.reasons, best.cost, best.cost <= budget)


def automatic(
    candidates: Sequence[Candidate], prospects: Sequence[Prospect], rules: Rules, budget: int
) -> Chosen:
    """Share *budget* so that the sum of the losses is least."""
    offers = [ways_of(c, p, rules) for c, p in zip(candidates, prospects, strict=True)]
    items = [
        [
            Choice(rules.full_cost(candidate.geometry), 0.0, -1),
            *(Choice(way.cost, way.loss, index) for index, way in enumerate(ways)),
        ]
        for candidate, ways in zip(candidates, offers, strict=True)
    ]
    found = allocate(items, budget)
    chosen = [
        None if choice.value < 0 else ways[choice.value]
        for choice, ways in zip(found.chosen, offers, strict=True)
    ]
    result = chosen_of(candidates, rules, chosen, "the budget is met at less loss elsewhere")
    reasons = tuple(
        "no rank pays" if not ways else reason for ways, reason in zip(offers, result.reasons, strict=True)
    )
    return Chosen(result.ways, reasons, result.cost, found.met)


def chosen_of(
    candidates: Sequence[Candidate], rules: Rules, ways: Sequence[Way | None], reason: str
) -> Chosen:
    """Return *ways* as what was decided; *reason* is why the candidates without one are left as they are."""
    cost = sum(
        rules.full_cost(candidate.geometry) if way is None else way.cost
        for candidate, way in zip(candidates, ways, strict=True)
    )
    return Chosen(tuple(ways), tuple("" if way else reason for way in ways), cost)
