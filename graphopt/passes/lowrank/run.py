"""One run of factorize-lowrank, from candidates to the report."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.api import Report
from graphopt.calibrate.collection import collect
from graphopt.calibrate.needs import Needs
from graphopt.calibrate.widen import widened
from graphopt.errors import DataError, GateFailed, OptionError
from graphopt.ir.cost import measure_cost
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.spill import Spill
from graphopt.passes.lowrank import candidates as pool
from graphopt.passes.lowrank import choose, embedding, fit, measured, plans, rewrite
from graphopt.passes.lowrank.forms import Evidence, Splitter
from graphopt.passes.lowrank.prospects import survey
from graphopt.recover.response import Response
from graphopt.recover.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from graphopt.api import Context
    from graphopt.calibrate.moments import Gram
    from graphopt.calibrate.needs import Rows
    from graphopt.ir.model import Model
    from graphopt.passes.lowrank.candidates import Candidate
    from graphopt.passes.lowrank.choose import Chosen
    from graphopt.passes.lowrank.forms import Form
    from graphopt.passes.lowrank.prospects import Prospect
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix
    from graphopt.runtime.session import Feeds

DEFAULT_ENERGY = 0.99
_FALLBACK_GAIN = 1.0


class Run:
    """See the module.

    Args:
        model: The model to change.
        options: Options of the pass.
        context: Target, statistics and measurements.
    """

    def __init__(self, model: Model, options: Any, context: Context) -> None:  # noqa: ANN401 - the pass's options
        self.model = model
        self.options = options
        self.context = context
        rules = context.target.low_rank
        of_parameters = options.params_ratio is not None
        round_to = options.round_to if options.round_to != "auto" else (rules.round_to if rules else 1)
        gain = _FALLBACK_GAIN
        if options.min_gain is not None:
            gain = options.min_gain
        elif rules is not None and not of_parameters:
            gain = rules.min_gain
        self.rules = pool.Rules(
            tuple(form for form in options.forms if form != "embedding"),
            int(round_to),
            # A measured gain is asked of the clock; theory only has to leave it something to find.
            gain if options.gain == "theory" else 1.0 + 1e-9,
            of_parameters,
            options.keep,
        )
        self.min_gain = gain
        self.shapes = infer_shapes(model)
        if options.widen:
            self._check_inputs()
        self.numbers = infer_shapes(model, context.dims, unbound=1)
        self.candidates, self.skipped = pool.find(model, self.shapes, self.rules, self.numbers)
        self.notes: list[str] = []
        self.metrics: dict[str, Matrix] = {}
        self.wide: list[Feeds] = []
        self.grams: Mapping[Rows, Gram] = {}
        self.spread: Mapping[Rows, Gram] = {}
        self.means: dict[str, Matrix] = {}
        self.planned: list[plans.Decision | None] = []
        self.spill = Spill()

    def _check_inputs(self) -> None:
        for value in self.model.graph.inputs:
            dtype = self.shapes.dtype(value)
            if not value.is_initializer() and (dtype is None or not dtype.is_floating_point()):
                raise OptionError(
                    f"widen moves samples by what others differ from the mean, and input {value.name!r} "
                    f"holds {'values of unknown type' if dtype is None else dtype.name}",
                    where="factorize-lowrank",
                    hint="Set widen=0",
                )

    def needs(self) -> Needs:
        """Return the second moments of the rows of all candidates."""
        if not self.options.whiten and self.options.recover == "none":
            return Needs()
        return Needs(grams=frozenset(candidate.linear.rows for candidate in self.candidates))

    def run(self, feeds: Iterable[Feeds] | None) -> Report:
        """Do everything."""
        before = measure_cost(self.model, self.context.dims)
        samples = list(feeds) if feeds is not None and self._reads_samples else []
        if self.options.widen and samples:
            self.wide = list(widened(samples, self.options.widen, self.context.seed))
        self.metrics = self._metrics(self.wide or samples, before.known_macs)
        if self.options.plan is not None:
            self.planned = plans.decisions(self.candidates, self.options.plan)
        self._read_statistics()
        chosen = self._choose(self._survey(), before.known_macs, before.parameters)
        if self.options.gain == "measured" and self.options.plan is None:
            chosen = measured.keep_what_pays(
                self.model,
                self.numbers,
                self.candidates,
                chosen,
                self._split,
                self.rules,
                self.context,
                self.min_gain,
                self.notes,
            )
        self.skipped += [
            (candidate.linear.where, reason)
            for candidate, reason in zip(self.candidates, chosen.reasons, strict=True)
            if reason
        ]
        done = self._fit(chosen, feeds) if any(chosen.ways) else fit.Fit()
        for each in done.fitted:
            rewrite.put(self.model, each)
        counts = {"factorized": sum(one is not None for one in chosen.ways)}
        for way in chosen.ways:
            if way is not None:
                counts[way.form] = counts.get(way.form, 0) + 1
        refitted = sum(one.form is None for one in done.fitted)
        if refitted:
            counts["refitted"] = refitted
        if "embedding" in self.options.forms:
            tables = embedding.factorize(self.model, self.options, self.rules, self.spill)
            self.skipped += tables.skipped
            if tables.count:
                counts["embedding"] = tables.count
        changed = bool(done.fitted) or "embedding" in counts
        after = measure_cost(self.model, self.context.dims)
        self._check(before, after)
        extra: dict[str, object] = {
            "macs_ratio": _ratio(after.known_macs, before.known_macs),
            "params_ratio": _ratio(after.parameters, before.parameters),
            "weights": [
                {
                    "where": candidate.linear.where,
                    "form": way.form,
                    "ranks": list(way.ranks),
                    "loss": round(way.loss, 6),
                }
                for candidate, way in zip(self.candidates, chosen.ways, strict=True)
                if way is not None
            ],
            **done.extra,
        }
        if any(chosen.ways):
            extra["plan"] = plans.items_of(self.candidates, chosen)
        notes = list(dict.fromkeys([*self.notes, *done.notes]))
        if notes:
            extra["warnings"] = notes
        counts = {key: count for key, count in counts.items() if count}
        return Report(changed, counts, tuple(self.skipped), extra, tuple(notes))

    @property
    def _reads_samples(self) -> bool:
        return bool(self.options.widen) or self.options.sensitivity == "output"

    def _metrics(self, samples: list[Feeds], macs: int) -> dict[str, Matrix]:
        """Return what errors of each candidate do to the outputs; those that cannot be asked are left out."""
        if self.options.sensitivity != "output":
            return {}
        if not samples:
            raise DataError(
                "sensitivity=output measures what errors do to the outputs, and there are no data",
                where="factorize-lowrank",
                hint="Give samples with --data, or sensitivity=local.",
            )
        walked = set(self.model.graph)
        inside = [each for each in self.candidates if each.linear.node not in walked]
        reason = "it is inside a body, whose errors cannot be followed to the outputs"
        self.skipped += [(each.linear.where, reason) for each in inside]
        self.candidates = [each for each in self.candidates if each.linear.node in walked]
        response = Response(
            self.model,
            self.shapes,
            samples,
            macs=macs,
            seed=self.context.seed,
            where="factorize-lowrank",
            hint="Give other samples with --data, or sensitivity=local.",
        )
        return {each.linear.output: response.metric(each.linear) for each in self.candidates}

    def _read_statistics(self) -> None:
        """Keep second moments of what the candidates read, and its means, where they are known."""
        needs = self.needs()
        if needs and self.context.has_statistics(needs):
            statistics = self.context.statistics(needs)
            self.grams = self.spread = statistics.grams
            for name, reason in sorted(statistics.skipped.items()):
                if any(rows.value == name for rows in needs.grams):
                    self.notes.append(f"value {name!r}: no second moments: {reason}")
        elif needs:
            self.notes.append("there are no data: plain SVD, and nothing is fitted")
        if needs and self.wide:
            self.spread = collect(self.model, self.wide, needs, seed=self.context.seed).grams
        if self.options.recover != "none":
            for candidate in self.candidates:
                gram = self.grams.get(candidate.linear.rows)
                if gram is not None:
                    self.means[candidate.linear.output] = gram.mean

    def _evidence(self, linear: Linear) -> Evidence:
        """Return what is known of the rows and the outputs of *linear*."""
        gram = self.grams.get(linear.rows)
        spread = self.spread.get(linear.rows, gram)
        covariance = None
        if gram is not None and spread is not None and self.options.whiten:
            # A bias takes the mean of what is lost; where there is none, it counts.
            takes_mean = fit.may_have_bias(linear) and self.options.recover != "none"
            covariance = spread.covariance if takes_mean else spread.second_moment
        return Evidence.of(
            covariance,
            self.metrics.get(linear.output),
            count=0 if gram is None else gram.count,
            stage=linear.where,
        )

    def _survey(self) -> list[Prospect]:
        """Return what each candidate would lose; one weight at a time is in memory."""
        prospects = []
        for place, candidate in enumerate(self.candidates):
            self.context.progress(place, len(self.candidates))
            ranks, evidence = self._ranks(place), self._evidence(candidate.linear)
            prospects.append(survey(candidate.linear, candidate.geometry, ranks, evidence))
        return prospects

    def _ranks(self, place: int) -> dict[Form, list[tuple[int, ...]]]:
        """Return the ranks of each form of a candidate that may be chosen."""
        candidate = self.candidates[place]
        if self.options.plan is not None:
            decision = self.planned[place]
            return {} if decision is None else {decision[0]: [decision[1]]}
        if self.options.rank is not None:
            rank = self.rules.rounded(self.options.rank)
            return {form: [ranks] for form, ranks in pool.ranks_at(candidate, self.rules, rank).items()}
        return {form: list(pool.ranks_of(candidate, form, self.rules)) for form in candidate.forms}

    def _split(self, candidate: Candidate) -> Splitter:
        """Read the weight of *candidate*, to be cut."""
        linear = candidate.linear
        evidence = self._evidence(linear)
        return Splitter(linear.weight(), candidate.geometry, evidence, seed=self.context.seed)

    def _choose(self, prospects: list[Prospect], macs: int, parameters: int) -> Chosen:
        options = self.options
        arguments = self.candidates, prospects, self.rules
        if options.plan is not None:
            return plans.by_plan(*arguments, self.planned)
        if options.rank is not None:
            return choose.by_rank(*arguments, options.rank)
        if options.weight_ratio is not None:
            return choose.by_ratio(*arguments, options.weight_ratio)
        ratio = options.params_ratio if self.rules.of_parameters else options.macs_ratio
        if ratio is None:
            return choose.by_energy(*arguments, DEFAULT_ENERGY if options.energy is None else options.energy)
        total = parameters if self.rules.of_parameters else macs
        others = total - sum(self.rules.full_cost(candidate.geometry) for candidate in self.candidates)
        budget = int(ratio * total) - others
        policy = choose.automatic if options.allocation == "automatic" else choose.uniform
        return policy(*arguments, budget)

    def _fit(self, chosen: Chosen, feeds: Iterable[Feeds] | None) -> fit.Fit:
        options = self.options
        if options.recover != "least-squares" or feeds is None:
            done = fit.plain(self.candidates, chosen.ways, self._split, self.means, self.spill)
            if options.recover == "bias" and feeds is not None:
                with Walk(self.model, feeds, start=self._with(done.fitted)) as walk:
                    done.extra["agreement"] = walk.finish().as_json()
                done.extra["effort"] = walk.effort.as_json()
            return done
        # What stands in bodies cannot be walked: it is cut by itself, and the walk sees it so.
        walked = set(self.model.graph)
        inside, outside = (
            [
                way if (candidate.linear.node in walked) is here else None
                for candidate, way in zip(self.candidates, chosen.ways, strict=True)
            ]
            for here in (False, True)
        )
        alone = fit.plain(self.candidates, inside, self._split, self.means, self.spill)
        with Walk(
            self.model,
            feeds,
            options.rows_per_sample,
            self.context.seed,
            start=self._with(alone.fitted) if alone.fitted else None,
            own_stream=not options.compensate,
        ) as walk:
            done = fit.compensated(
                walk,
                self.candidates,
                outside,
                self.spill,
                ridge=options.ridge,
                whiten=options.whiten,
                refit_others=options.refit == "all" and options.compensate,
                keep=options.keep,
                metrics=self.metrics,
            )
        done.fitted += alone.fitted
        done.notes += alone.notes
        return done

    def _with(self, fitted: Iterable[rewrite.Fitted]) -> Model:
        """Return a copy of the model with *fitted* in the place of its operators."""
        copy = self.model.clone()
        twins = dict(zip(self.model.nodes(), list(copy.nodes()), strict=True))
        for each in fitted:
            rewrite.put(copy, replace(each, linear=replace(each.linear, node=twins[each.linear.node])))
        return copy

    def _check(self, before: Any, after: Any) -> None:  # noqa: ANN401 - costs
        options = self.options
        for name, ratio, one, two in (
            ("macs_ratio", options.macs_ratio, before.known_macs, after.known_macs),
            ("params_ratio", options.params_ratio, before.parameters, after.parameters),
        ):
            if ratio is None or two <= ratio * one:
                continue
            if options.best_effort:
                self.notes.append(f"{name} {ratio:g} was asked for, {_ratio(two, one):g} is what can be had")
                continue
            raise GateFailed(
                f"{name} {ratio:g} cannot be reached; the weights that may be factorised allow "
                f"{_ratio(two, one):g}",
                where="factorize-lowrank",
                hint="Ask for less, allow more with min_gain and round_to, or set best_effort=true",
            )


def _ratio(after: int, before: int) -> float:
    return round(float(np.divide(after, before)), 6) if before else 1.0
