"""The work of share-weights: share what is alike, choose a palette for each weight, put it in its place."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.api import Report
from graphopt.ir import rewrite
from graphopt.ir.stream import is_finite
from graphopt.ir.tensors import stored_bytes
from graphopt.passes.cleanup.annotations import annotated_names
from graphopt.passes.cleanup.sharing import Sharing
from graphopt.passes.constants.expressions import Writer, put_in_place
from graphopt.passes.palettes.budget import spread_bits
from graphopt.passes.palettes.candidates import find_candidates, importance
from graphopt.passes.palettes.choose import Wish, choose, is_constant
from graphopt.passes.palettes.feedback import Outcome, Settings, feed_back_all, why_not
from graphopt.passes.palettes.sharing import share_nearly_equal
from graphopt.passes.palettes.storage import encode, lookup, rounded, table_bytes

if TYPE_CHECKING:
    from graphopt.api import Context
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir import Model
    from graphopt.ir.tensors import Array
    from graphopt.passes.palettes.candidates import Candidate
    from graphopt.passes.palettes.choose import Choice
    from graphopt.passes.palettes.feedback import Fed
    from graphopt.passes.share_weights import ShareWeights


def candidates_of(
    model: Model, options: ShareWeights.Options
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return the weights that may become palettes, and why others may not."""
    return find_candidates(
        model, min_elements=options.min_elements, keep=options.keep, annotated=annotated_names(model)
    )


def weighted(model: Model, options: ShareWeights.Options) -> list[Candidate]:
    """Return the candidates whose errors statistics weight: with feedback, those that it cannot take."""
    found = candidates_of(model, options)[0]
    return [each for each in found if not options.feedback or why_not(each, model)]


@dataclass(frozen=True, slots=True)
class _Put:
    """A palette that is to stand in the place of a weight.

    Attributes:
        candidate: The weight.
        choice: The palette.
        before: Bytes that the weight takes.
        told: What the report says besides.
    """

    candidate: Candidate
    choice: Choice
    before: int
    told: dict[str, object]

    @property
    def after(self) -> int:
        """Bytes that the palette takes, about, without what all palettes share."""
        return self.choice.palette.nbytes(self.candidate.size)


def _of_fed(candidate: Candidate, fed: Fed) -> _Put:
    told: dict[str, object] = {
        "weighted": True,
        "output_error": fed.output_error,
        "output_error_nearest": fed.output_error_nearest,
    }
    return _Put(fed.candidate, fed.choice, stored_bytes(candidate.tensor), told)


class Sharer:
    """One run over one model.

    Args:
        model: Changed in place.
        options: Options of the pass.
        context: What the manager gives.
        statistics: Of the inputs of the weights, where errors are to be weighted.
        uint4: Whether planes of 4 bits are stored as uint4.
    """

    def __init__(
        self,
        model: Model,
        options: ShareWeights.Options,
        context: Context,
        statistics: Statistics | None,
        *,
        uint4: bool,
    ) -> None:
        self._model = model
        self._options = options
        self._context = context
        self._statistics = statistics
        self._uint4 = uint4
        self._wish = Wish(
            None if options.bits == "auto" else options.bits,
            options.sqnr_db,
            options.granularity,
            options.group_size,
            options.spacing,
        )
        self._bits: dict[str, int] = {}
        self._writer = Writer(model)
        self._counts: Counter[str] = Counter()
        self._skipped: list[tuple[str, str]] = []
        self._nearest: dict[Candidate, tuple[Choice, bool] | None] = {}
        self._told: list[dict[str, object]] = []
        self._extra: dict[str, object] = {}
        self._warnings: tuple[str, ...] = ()

    def run(self) -> Report:
        """Do it; see the module."""
        options = self._options
        sharing = Sharing(self._model, options.min_elements)
        sharing.initializers()
        self._counts.update(sharing.counts)
        candidates = self._usable()
        self._skipped += list(sharing.skips)
        if options.share_within > 0:
            candidates, shared = share_nearly_equal(self._model, candidates, options.share_within)
            self._counts["nearly_equal_shared"] += len(shared)
            if shared:
                self._extra["shared"] = shared
        if options.mean_bits is not None:
            sizes = {each.name: each.size for each in candidates}
            self._bits = spread_bits(sizes, options.mean_bits)
        outcome = self._feed_back(candidates) if options.feedback else Outcome()
        puts = []
        for done, candidate in enumerate(candidates):
            self._context.progress(done, len(candidates))
            if candidate.name in outcome.fed:
                puts.append(_of_fed(candidate, outcome.fed[candidate.name]))
            elif (nearest := self._nearest_of(candidate)) is not None:
                choice, weighted = nearest
                puts.append(_Put(candidate, choice, stored_bytes(candidate.tensor), {"weighted": weighted}))
        self._put_all(puts, outcome)
        if self._told:
            self._extra["palettes"] = self._told
        if not any(self._counts.values()) and not self._skipped:
            reason = (
                f"no initializer of {options.min_elements} elements or more is a float weight; canonicalize "
                "makes initializers of Constant nodes"
            )
            self._skipped.append(("model", reason))
        return Report(
            changed=any(self._counts.values()),
            counts={key: number for key, number in sorted(self._counts.items()) if number},
            skipped=tuple(self._skipped),
            extra=self._extra,
            warnings=self._warnings,
        )

    def _wish_of(self, candidate: Candidate) -> Wish:
        """Return what is asked for this weight; its bits where the mean over all is what was given."""
        return replace(self._wish, bits=self._bits.get(candidate.name, self._wish.bits))

    def _usable(self) -> list[Candidate]:
        found, skipped = candidates_of(self._model, self._options)
        self._skipped += skipped
        usable = []
        for candidate in found:
            if not is_finite(candidate.tensor):
                self._skip(candidate, "it holds NaN or infinities")
            elif is_constant(candidate.tensor):
                self._skip(candidate, "all its elements are the same; synthesize-constants takes it")
            else:
                usable.append(candidate)
        return usable

    def _skip(self, candidate: Candidate, reason: str) -> None:
        self._skipped.append((f"weight {candidate.name!r}", reason))

    def _feed_back(self, candidates: list[Candidate]) -> Outcome:
        options = self._options
        able, others = [], []
        for candidate in candidates:
            reason = why_not(candidate, self._model)
            if reason:
                self._skip(candidate, f"nearest codes, without feedback: {reason}")
                others.append(candidate)
            else:
                able.append(candidate)
        settings = Settings(options.ridge, options.rows_per_sample, self._context.seed)
        outcome = feed_back_all(
            self._model,
            able,
            self._context.data,
            self._wish_of,
            settings,
            self._context.progress,
            start=self._with_nearest(others) if able else None,
            nearest_of=self._rounded,
        )
        for name, reason in outcome.skipped:
            self._skipped.append((f"weight {name!r}", f"nearest codes, without feedback: {reason}"))
        return outcome

    def _with_nearest(self, candidates: list[Candidate]) -> Model | None:
        """Return a copy of the model with nearest codes for *candidates*; None where that changes nothing."""
        copy = self._model.clone()
        writer = Writer(copy)
        twins = {
            value: twin.initializers[name]
            for graph, twin in zip(self._model.graphs(), copy.graphs(), strict=True)
            for name, value in graph.initializers.items()
        }
        changed = False
        for candidate in candidates:
            nearest = self._nearest_of(candidate)
            if nearest is not None:
                changed = True
                self._stand_in(copy, writer, replace(candidate, value=twins[candidate.value]), nearest[0])
        return copy if changed else None

    def _rounded(self, candidate: Candidate) -> Array | None:
        nearest = self._nearest_of(candidate)
        return None if nearest is None else rounded(candidate.tensor, nearest[0].palette)

    def _nearest_of(self, candidate: Candidate) -> tuple[Choice, bool] | None:
        """Return the palette with nearest codes and whether errors are weighted; None where it saves nothing.

        What speaks against it is said once.
        """
        if candidate not in self._nearest:
            self._nearest[candidate] = self._choose(candidate)
        return self._nearest[candidate]

    def _choose(self, candidate: Candidate) -> tuple[Choice, bool] | None:
        mass = importance(candidate, self._statistics)
        if self._statistics is not None and mass is None and candidate.activation is not None:
            reason = self._statistics.skipped.get(
                candidate.activation[0], "its input has no moments that fit it"
            )
            self._skip(candidate, f"its errors are not weighted: {reason}")
        choice = choose(candidate, mass, self._wish_of(candidate))
        before = stored_bytes(candidate.tensor)
        after = choice.palette.nbytes(candidate.size)
        if after >= before:
            self._skip(candidate, f"as a palette it would take {after} bytes instead of {before}")
            return None
        return choice, mass is not None

    def _put_all(self, puts: list[_Put], outcome: Outcome) -> None:
        """Store the palettes, unless the tables that all of them share take what they save.

        Args:
            puts: The palettes.
            outcome: What those that were found with feedback do to the biases.
        """
        tables: dict[tuple[int, int], int] = {}
        for put in puts:
            tables |= table_bytes(put.choice.palette.bits, uint4=self._uint4)
        shared = sum(tables.values())
        saved = sum(put.before - put.after for put in puts)
        if puts and saved <= shared:
            reason = f"palettes would save {saved} bytes, and the tables that they share would take {shared}"
            self._skipped.append(("model", reason))
            return
        outcome.write(self._model)
        if outcome.report:
            self._extra["recovery"] = outcome.report
            self._warnings = outcome.warnings
        self._counts["fed_back"] += len(outcome.fed)
        for put in puts:
            self._put(put)
        self._counts["bytes_saved"] += saved - shared

    def _put(self, put: _Put) -> None:
        """Store a palette, let the lookup stand in the place of the weight, and note it."""
        choice, palette = put.choice, put.choice.palette
        name = put.candidate.name  # before another value takes it
        self._stand_in(self._model, self._writer, put.candidate, choice)
        self._counts["palettes"] += 1
        self._told.append({
            "weight": name,
            "bits": palette.bits,
            "clusters": int(palette.codebooks.size),
            "form": palette.form,
            "sqnr_db": None if math.isinf(choice.sqnr_db) else round(choice.sqnr_db, 2),
            "exact": choice.exact,
            "bytes": [put.before, put.after],
            **put.told,
        })  # fmt: skip

    def _stand_in(self, model: Model, writer: Writer, candidate: Candidate, choice: Choice) -> None:
        """Let a lookup in the palette stand in the place of the value of *candidate*, which is of *model*."""
        palette, uint4 = choice.palette, self._uint4
        graph = candidate.value.graph
        assert graph is not None
        stored = [
            rewrite.add_initializer(model, graph, plane.name or "codes", plane)
            for plane in encode(candidate.tensor, palette, candidate.name, uint4=uint4)
        ]
        made = lookup(stored, palette, candidate.dims, candidate.tensor.dtype.numpy(), uint4=uint4)
        put_in_place(model, writer, candidate.value, made)
