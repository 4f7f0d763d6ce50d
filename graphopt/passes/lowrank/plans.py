"""plan.toml of factorize-lowrank: one item a node, with the form and the ranks that its weight gets."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, get_args

from graphopt.errors import OptionError, nearest
from graphopt.passes.lowrank import forms
from graphopt.passes.lowrank.candidates import Way
from graphopt.passes.lowrank.choose import Chosen, chosen_of
from graphopt.passes.lowrank.forms import Form
from graphopt.planfile import read_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from graphopt.passes.lowrank.candidates import Candidate, Rules
    from graphopt.passes.lowrank.prospects import Prospect

    Decision = tuple[Form, tuple[int, ...]]

FACTORIZE_LOWRANK = "factorize-lowrank"
_KEYS = frozenset({"node", "form", "ranks", "loss"})


def items_of(candidates: Sequence[Candidate], chosen: Chosen) -> list[dict[str, object]]:
    """Return the items of a plan that repeats the choice."""
    names = _names(candidates)
    return [
        {"node": name, "form": way.form, "ranks": list(way.ranks), "loss": round(way.loss, 6)}
        for name, way in zip(names, chosen.ways, strict=True)
        if way is not None
    ]


def decisions(candidates: Sequence[Candidate], path: Path) -> list[Decision | None]:
    """Return what the plan in *path* says about each candidate; None for those that it does not name.

    Raises:
        PathError: There is no such file.
        OptionError: The plan is malformed, names what cannot be factorised, or asks what cannot be.
    """
    names = _names(candidates)
    places = {name: place for place, name in enumerate(names)}
    places |= {each.linear.output: place for place, each in enumerate(candidates)}
    found: list[Decision | None] = [None] * len(candidates)
    for number, item in enumerate(read_plan(path, FACTORIZE_LOWRANK).items, 1):
        where = f"{path}, item {number}"
        name = item.get("node")
        if not isinstance(name, str):
            raise OptionError('expected node = "NAME"', where=where)
        if name not in places:
            hint = nearest(name, names, what="nodes that can be factorised")
            raise OptionError(f"no node {name!r} can be factorised", where=where, hint=hint)
        if unknown := sorted(item.keys() - _KEYS):
            raise OptionError(f"there is no key {unknown[0]!r} in an item", where=where)
        place = places[name]
        if found[place] is not None:
            raise OptionError(f"the node {name!r} is listed twice", where=where)
        found[place] = _decision(item, candidates[place], where)
    return found


def by_plan(
    candidates: Sequence[Candidate],
    prospects: Sequence[Prospect],
    rules: Rules,
    planned: Sequence[Decision | None],
) -> Chosen:
    """Give each weight the form and the ranks that are *planned*, and leave the others whole."""
    ways: list[Way | None] = [None] * len(candidates)
    for place, decision in enumerate(planned):
        if decision is not None:
            cost = rules.cost(*decision, candidates[place].geometry)
            ways[place] = Way(*decision, cost, prospects[place].loss(*decision))
    return chosen_of(candidates, rules, ways, "the plan does not name it")


def _decision(item: Mapping[str, object], candidate: Candidate, where: str) -> Decision:
    wanted, ranks = item.get("form", "thin"), item.get("ranks")
    known: dict[object, Form] = {form: form for form in get_args(Form)}
    if wanted not in known:
        raise OptionError(
            f"expected form to be one of {', '.join(get_args(Form))}, got {wanted!r}", where=where
        )
    form = known[wanted]
    if reason := forms.applicable(candidate.linear, form):
        raise OptionError(f"{candidate.linear.where} has no form {form!r}: {reason}", where=where)
    full = forms.full_ranks(form, candidate.geometry)
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(full)
        or not all(isinstance(one, int) and not isinstance(one, bool) for one in ranks)
        or not all(1 <= one <= most for one, most in zip(ranks, full, strict=True))
    ):
        limits = ", ".join(f"1 to {most}" for most in full)
        raise OptionError(f"expected ranks = [{limits}] for the form {form!r}, got {ranks!r}", where=where)
    return form, tuple(ranks)


def _names(candidates: Sequence[Candidate]) -> list[str]:
    """Return what plans call each candidate: its node, or where that is not enough its output."""
    seen = Counter(each.linear.node.name or "" for each in candidates)
    found = [each.linear.node.name or "" for each in candidates]
    return [
        name if name and seen[name] == 1 else each.linear.output
        for name, each in zip(found, candidates, strict=True)
    ]
