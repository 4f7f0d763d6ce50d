"""One run of prune-channels: analyse, select, score, allocate, cut, prove, report."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from graphopt.api import Report
from graphopt.calibrate.needs import Needs
from graphopt.errors import (
    DataError,
    GateFailed,
    OptionError,
    PassFailed,
    ProviderError,
    nearest,
)
from graphopt.ir.channels import prepare
from graphopt.ir.fingerprint import fingerprint
from graphopt.passes.pruning.allocation import Budget, Candidate, allocate, amount_of, ordered
from graphopt.passes.pruning.anatomy import Anatomy, examine
from graphopt.passes.pruning.compensation import Recovery, compensate
from graphopt.passes.pruning.criterion import needs_of, scores_of
from graphopt.passes.pruning.inputs import add_way_out, check_finite, oracle_feeds
from graphopt.passes.pruning.meter import Meter
from graphopt.passes.pruning.obs import Obs
from graphopt.passes.pruning.oracle import Verdict, claim_of, judge
from graphopt.passes.pruning.plans import read_decisions
from graphopt.passes.pruning.sensitivity import weighed
from graphopt.passes.pruning.taken import Taken
from graphopt.passes.pruning.timing import Timer, search

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.ir.cost import Cost
    from graphopt.passes.prune_channels import PruneChannels
    from graphopt.passes.pruning.criterion import Criterion
    from graphopt.runtime.session import Feeds
    from graphopt.targets import Target

    Kept = dict[str, npt.NDArray[np.intp]]

_ATTEMPTS = 8  # at a budget that the meter misjudged
_FEEDS = 2  # that the oracle runs
_MOST_LOCKS = 20  # named in an error; the report has all


@dataclass(frozen=True)
class _Cut:
    """Units that stay, the model cut to them, and what it costs."""

    kept: Kept
    model: Model
    cost: Cost


class Pruner:
    """The state of one run.

    Args:
        model: The pass's own copy; changed in place.
        options: Options of the pass.
        context: What the manager gives.
    """

    def __init__(self, model: Model, options: PruneChannels.Options, context: Context) -> None:
        self.model = model
        self.options = options
        self.context = context
        self.seed = context.seed if options.seed is None else options.seed
        self.skipped: dict[tuple[str, str], None] = {}
        self.taken = Taken()
        self.verdicts: dict[str, list[Verdict]] = {"exact": [], "approximate": []}
        self.notes: dict[str, None] = {}
        self.compensated: dict[str, object] = {}
        self.warnings: dict[str, None] = {}
        self.selection: Mapping[str, float] = {}
        self.curves: dict[str, npt.NDArray[np.float64]] = {}
        self.time: dict[str, object] = {}

    def run(self) -> Report:
        """Do all rounds.

        Raises:
            GateFailed: Nothing can be pruned, or the ratio cannot be reached.
            OptionError: The criterion is unknown, or the plan does not fit.
            DataError: A criterion needs data and there is none.
            UnsupportedModelError: A weight that would be scored is not finite.
            PassFailed: The oracle found a difference.
        """
        first = self.cost(self.model)
        self.now = first
        rounds = 1 if self.options.plan is not None else self.options.max_rounds
        for number in range(1, rounds + 1):
            if not self.round(first, number / rounds, final=number == rounds):
                break
        return self.report(first, self.now)

    def cost(self, model: Model) -> Cost:
        """Return what *model* costs under the dims of the run."""
        from graphopt.ir.cost import measure_cost

        return measure_cost(model, self.context.dims)

    def round(self, first: Cost, part: float, *, final: bool) -> bool:
        """Cut once, to the ratio raised to *part*; return whether another round can go on from there.

        Args:
            first: What the model cost before the first round.
            part: How far on the way to the ratio, on a logarithmic scale; 1 is the end.
            final: Whether what is not reached now is not reached at all.
        """
        whole, anatomy = self.examined()
        chosen = self.select(anatomy)
        self.taken.begin(anatomy, chosen)
        if self.options.plan is not None:
            cut = self.cut(whole, anatomy, self.followed(anatomy, chosen))
        elif not chosen:
            self.give_up("no family of channels can be pruned")
            return False
        else:
            cut = self.allocated(whole, anatomy, chosen, first, part, final=final)
        if cut is None:
            return True
        before, pruned, kept = self.recovered(whole, anatomy, cut)
        if self.options.oracle:
            self.prove(before, pruned, anatomy, kept)
        self.model.store = pruned.store
        self.model.forget_names()
        self.context.invalidate()
        self.now = cut.cost
        self.taken.add(anatomy, kept)
        return True

    def examined(self) -> tuple[Model, Anatomy]:
        """Return the model as families are found in it, and those."""
        whole = self.model
        if whole.functions:
            whole = whole.clone()
            prepare(whole)
        return whole, examine(whole, dims=self.context.dims, rules=self.context.channel_rules)

    def needs(self) -> Needs:
        """Return the statistics that the first round will ask for."""
        if self.options.sensitivity == "output":
            return Needs()  # collected on a part of the samples
        _, anatomy = self.examined()
        chosen = self.select(anatomy)
        if self.options.plan is not None:
            wanted = self.planned(anatomy, chosen)
            chosen = [name for name, keep in wanted.items() if isinstance(keep, int)]
        return needs_of(self.criterion(), [anatomy.subject(name, self.seed) for name in chosen])

    def recovered(self, whole: Model, anatomy: Anatomy, cut: _Cut) -> tuple[Model, Model, Kept]:
        """Return the whole model with what stays fitted to data, the cut of it, and the units that stay."""
        before = whole.clone()
        options = self.options
        if options.recover == "none":
            return before, cut.model, cut.kept
        feeds = self.context.data
        if feeds is not None and options.samples is not None:
            feeds = list(islice(feeds, options.samples))
        recovery = Recovery.of(options, self.seed, self.selection)
        outcome = compensate(before, anatomy, cut.kept, feeds, recovery)
        self.compensated = outcome.report
        self.warnings |= dict.fromkeys(outcome.warnings)
        for where, reason in outcome.skipped:
            self.skip(where, reason)
        pruned = before.clone()
        anatomy.cut(pruned, outcome.kept)
        return before, pruned, outcome.kept

    def cut(self, whole: Model, anatomy: Anatomy, kept: Kept) -> _Cut | None:
        """Return a clone of *whole* cut to the *kept* units, None where they are all."""
        kept = {name: units for name, units in kept.items() if len(units) < anatomy.family(name).size}
        if not kept:
            return None
        model = whole.clone()
        anatomy.cut(model, kept)
        return _Cut(kept, model, self.cost(model))

    def select(self, anatomy: Anatomy) -> list[str]:
        """Return the families that may be cut, and note why the others stay."""
        options = self.options
        chosen = []
        for lock in anatomy.locks:
            self.skip(lock.where, lock.reason)
        for family in anatomy.families:
            where = f"family {family.name!r}"
            if "all" not in options.units and family.kind not in options.units:
                self.skip(where, f"its units are {family.kind}, which are not asked for")
            elif not family.exact and not options.allow_approximate:
                self.skip(where, "a norm or mean runs over its units; allow_approximate=true includes it")
            elif family.size <= options.min_family:
                self.skip(where, f"it has {family.size} units, no more than min_family={options.min_family}")
            elif pattern := self.protected(anatomy.names(family.name)):
                self.skip(where, f"protected by {pattern!r}")
            else:
                chosen.append(family.name)
        for pattern in options.protect:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in anatomy.all_names()):
                self.skip(f"protect={pattern}", "nothing in the model has a name of this form")
        return chosen

    def protected(self, names: Sequence[str]) -> str:
        """Return the pattern that protects one of *names*, or ""."""
        return next(
            (
                pattern
                for pattern in self.options.protect
                if any(fnmatch.fnmatchcase(name, pattern) for name in names)
            ),
            "",
        )

    def skip(self, where: str, reason: str) -> None:
        """Note what is left alone, once."""
        self.skipped[where, reason] = None

    def give_up(self, message: str) -> None:
        """Fail with the list of locks, unless going as far as possible is what was asked for."""
        if self.options.best_effort:
            return
        reasons = [f"{where}: {reason}" for where, reason in self.skipped]
        shown = "; ".join(reasons[:_MOST_LOCKS])
        more = f"; and {len(reasons) - _MOST_LOCKS} more in the report" if len(reasons) > _MOST_LOCKS else ""
        raise GateFailed(
            f"{message} ({shown or 'the graph has no weights with a free axis'}{more})",
            hint="`graphopt channels MODEL` lists all families; best_effort=true leaves the model as it is.",
        )

    def scores(self, anatomy: Anatomy, chosen: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """Return the importance of each unit of the *chosen* families."""
        criterion = Obs() if self.options.sensitivity == "output" else self.criterion()
        subjects = {name: anatomy.subject(name, self.seed) for name in chosen}
        check_finite(subjects.values())
        needs = needs_of(criterion, subjects.values())
        if isinstance(criterion, Obs) and self.options.sensitivity == "output":
            data, rows = self.context.data, self.options.rows_per_sample
            held = self.options.ridge == "auto"
            subjects, self.curves = weighed(
                anatomy, criterion, subjects, needs, data, self.seed, rows, hold_out=held
            )
            self.selection = criterion.ridges
        else:
            statistics = self.context.statistics(needs) if needs else None
            subjects = {name: replace(subject, statistics=statistics) for name, subject in subjects.items()}
            self.curves = dict(criterion.curves(subjects))
        if isinstance(criterion, Obs):
            self.warnings |= dict.fromkeys(criterion.notes)
        return {
            name: scores_of(criterion, subject, self.options.criterion) for name, subject in subjects.items()
        }

    def criterion(self) -> Criterion:
        """Return the criterion that was asked for."""
        known = self.context.criteria
        name = self.options.criterion
        if name not in known:
            raise OptionError(
                f"there is no criterion {name!r}",
                where="option 'criterion'",
                hint=nearest(name, known, what="criteria"),
            )
        found = known[name]
        made: Criterion = found() if isinstance(found, type) else found
        return made

    def candidates(
        self, whole: Model, anatomy: Anatomy, chosen: Sequence[str]
    ) -> tuple[list[Candidate], Meter]:
        """Return the *chosen* families as the allocation sees them, and what counts what they cost."""
        found = []
        for name, scores in self.scores(anatomy, chosen).items():
            width, readers = anatomy.width(name), anatomy.readers(name)
            found.append(Candidate(name, scores, ordered(scores), width, readers, self.curves.get(name)))
        ranks = {each.name: np.argsort(each.order).astype(np.intp) for each in found}
        return found, Meter(whole, anatomy.shapes, anatomy.rows, ranks)

    def timed(self, whole: Model, anatomy: Anatomy, chosen: Sequence[str]) -> _Cut | None:
        """Return the cut that takes no more than its share of the time, as measured."""
        timer = Timer(whole, self.context, self.options.timed_as)
        candidates, meter = self.candidates(whole, anatomy, chosen)

        def kept(counts: Mapping[str, int]) -> Kept:
            return {
                each.name: np.sort(each.order[: counts[each.name]])
                for each in candidates
                if each.name in counts
            }

        def cut(counts: Mapping[str, int]) -> Model:
            made = self.cut(whole, anatomy, kept(counts))
            return whole if made is None else made.model

        found = search(candidates, meter, timer, self.options, _alignment(self.context.target), cut)
        self.time = found.report
        return self.cut(whole, anatomy, kept(found.counts))

    def allocated(
        self, whole: Model, anatomy: Anatomy, chosen: Sequence[str], first: Cost, part: float, *, final: bool
    ) -> _Cut | None:
        """Return the cut that meets the ratio, judged by the cut model itself."""
        options = self.options
        if options.time_ratio is not None:
            return self.timed(whole, anatomy, chosen)
        budget: Budget = "parameters" if options.macs_ratio is None else "macs"
        ratio = options.params_ratio if options.macs_ratio is None else options.macs_ratio
        assert ratio is not None
        limit = math.floor(ratio**part * amount_of(first, budget))
        to_remove = amount_of(self.now, budget) - limit
        if to_remove <= 0:
            return None
        candidates, meter = self.candidates(whole, anatomy, chosen)
        for _attempt in range(_ATTEMPTS):
            plan = allocate(
                candidates,
                meter,
                budget=budget,
                to_remove=to_remove,
                scope=options.scope,
                round_to=None if options.round_to == "auto" else options.round_to,
                preferred=_alignment(self.context.target),
                min_family=options.min_family,
            )
            kept = {each.name: np.sort(each.order[: plan.counts[each.name]]) for each in candidates}
            cut = self.cut(whole, anatomy, kept)
            got = amount_of(self.now if cut is None else cut.cost, budget)
            if got <= limit or not plan.reached:
                break
            # The meter counts both branches of an If, the budget only the larger one.
            gone, wanted = amount_of(self.now, budget) - got, amount_of(self.now, budget) - limit
            to_remove = max(to_remove + got - limit, math.ceil(to_remove * wanted / max(gone, 1)))
        if plan.note:
            self.notes[plan.note] = None
        if got > limit and final:
            floor = self.cut(
                whole,
                anatomy,
                {each.name: np.sort(each.order[: plan.floors[each.name]]) for each in candidates},
            )
            least = got if floor is None else min(got, amount_of(floor.cost, budget))
            self.fall_short(budget, ratio, amount_of(first, budget), got, least, len(candidates))
        return cut

    def planned(self, anatomy: Anatomy, chosen: Sequence[str]) -> dict[str, int | npt.NDArray[np.intp]]:
        """Return what the plan keeps of each family that it cuts: a number, or the units."""
        assert self.options.plan is not None
        sizes = {family.name: family.size for family in anatomy.families}
        decisions, made_for = read_decisions(self.options.plan, sizes)
        if made_for and made_for != fingerprint(self.model):
            self.skip(f"plan {self.options.plan}", "made for another state of the model; families go by name")
        wanted = {
            name: keep
            for name, keep in decisions.items()
            if (keep if isinstance(keep, int) else len(keep)) < sizes[name]
        }
        for name in wanted:
            if name not in chosen:
                reason = self.skipped_because(f"family {name!r}")
                raise OptionError(
                    f"the plan cuts family {name!r}, but {reason}", where=str(self.options.plan)
                )
        return wanted

    def followed(self, anatomy: Anatomy, chosen: Sequence[str]) -> Kept:
        """Return the units that the plan keeps; where it gives a number, the most important ones."""
        wanted = self.planned(anatomy, chosen)
        numbers = [name for name, keep in wanted.items() if isinstance(keep, int)]
        scores = self.scores(anatomy, numbers) if numbers else {}
        return {
            name: np.sort(ordered(scores[name])[:keep]) if isinstance(keep, int) else keep
            for name, keep in wanted.items()
        }

    def skipped_because(self, where: str) -> str:
        """Return why *where* is left alone."""
        return next((reason for place, reason in self.skipped if place == where), "it is left alone")

    def fall_short(
        self, budget: Budget, ratio: float, total: int, got: int, least: int, families: int
    ) -> None:
        """Say how far the ratio was reached, as an error unless that is what was asked for."""
        option = "macs_ratio" if budget == "macs" else "params_ratio"
        if self.options.best_effort:
            self.notes[f"{option}={ratio:g} is out of reach: {got / total:.4f} was reached"] = None
            return
        reasons = [f"{where}: {reason}" for where, reason in self.skipped]
        raise GateFailed(
            f"{option}={ratio:g} cannot be reached: with every free family at its floor {least / total:.4f}"
            f" remains ({families} families are free;"
            f" {'; '.join(reasons[:_MOST_LOCKS]) or 'nothing is locked'})",
            where=f"option {option!r}",
            hint="Ask for less, allow more (units, allow_approximate, min_family, round_to), or set"
            " best_effort=true.",
        )

    def prove(self, before: Model, pruned: Model, anatomy: Anatomy, kept: Kept) -> None:
        """Hold the pruned model against the masked original, exact units apart from approximate ones.

        Raises:
            PassFailed: They differ.
        """
        try:
            feeds = self.feeds(before)
        except (ProviderError, DataError) as error:
            add_way_out(error)
            raise
        exact = {name: units for name, units in kept.items() if anatomy.family(name).exact}
        if exact:
            self.judge("exact", before, anatomy, exact, feeds, pruned if len(exact) == len(kept) else None)
        if len(exact) < len(kept):
            self.judge("approximate", before, anatomy, kept, feeds, pruned)

    def judge(
        self,
        what: str,
        before: Model,
        anatomy: Anatomy,
        kept: Kept,
        feeds: Sequence[Feeds],
        pruned: Model | None,
    ) -> None:
        """Prove that cutting *before* to *kept* equals masking it."""
        try:
            verdict = judge(before, claim_of(anatomy, kept), feeds, seed=self.seed, pruned=pruned)
        except (ProviderError, DataError) as error:
            add_way_out(error)
            raise
        self.verdicts[what].append(verdict)
        if not verdict.passed:
            raise PassFailed(
                f"the pruned model differs from the masked original: relative error {verdict.error:.3g} of"
                f" output {verdict.output!r}, allowed {verdict.tolerance:g} ({what} units)",
                where="oracle",
                hint="This is a fault of the channel analysis: report it with the reproducer, and protect the"
                " families concerned to go on.",
            )

    def feeds(self, model: Model) -> Sequence[Feeds]:
        """Return what the oracle runs: the first of the data, else seeded random feeds."""
        data = self.context.data
        if data is not None:
            found = list(islice(iter(data), _FEEDS))
            if found:
                return found
        return oracle_feeds(model, self.context.dims, self.seed, _FEEDS)

    def report(self, first: Cost, last: Cost) -> Report:
        """Put everything together."""
        for note in self.notes:
            self.skip("budget", note)
        extra: dict[str, object] = {
            "macs_ratio": _ratio(last.known_macs, first.known_macs),
            "params_ratio": _ratio(last.parameters, first.parameters),
            "families": list(self.taken.families.values()),
            "oracle": {
                what: [verdict.record() for verdict in verdicts]
                for what, verdicts in self.verdicts.items()
                if verdicts
            }
            if self.options.oracle
            else "switched off",
        }
        if plan := self.taken.plan():
            extra["plan"] = plan
        if self.notes:
            extra["notes"] = list(self.notes)
        if self.time:
            extra["time"] = self.time
        if self.compensated:
            extra["recovery"] = self.compensated
        families, removed = self.taken.families, self.taken.removed
        counts = {"families_cut": len(families), **dict(removed)} if families else {}
        return Report(
            changed=bool(families),
            counts=counts,
            skipped=tuple(self.skipped),
            extra=extra,
            warnings=tuple(self.warnings),
        )


def _ratio(after: int, before: int) -> float:
    return after / before if before else 1.0


def _alignment(target: Target) -> int:
    return 1 if target.channels is None else target.channels.alignment
