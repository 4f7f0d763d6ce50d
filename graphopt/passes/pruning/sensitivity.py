"""What a cut of each family does to the outputs of the model, measured one family at a time.

A curve of the criterion obs says what the readers of a family lose. What that is worth depends on all that
comes behind them: an early layer amplifies it, a late one damps it. So each family is cut alone, its readers
refitted, and the model run to its outputs; curves are scaled to what is found there. Weights are fitted to
some samples and run on others, so that a fit which holds only for the samples that it was made from counts
as the loss that it is.

In which order units had best go depends on how far others can be counted on to make up for them: where a
family has about as many units as there are samples, least squares finds stand-ins that hold for these samples
alone. So the order is drawn with several ridges, and the one that costs the outputs least is taken.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from graphopt.calibrate.collection import collect
from graphopt.errors import DataError
from graphopt.passes.pruning.obs import seen_by
from graphopt.passes.pruning.oracle import masked_as_cut
from graphopt.passes.pruning.readers import columns_of
from graphopt.recover.outputs import Outputs
from graphopt.recover.solve import RIDGE, solve_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from graphopt.calibrate.needs import Needs
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir import Model
    from graphopt.passes.pruning.anatomy import Anatomy
    from graphopt.passes.pruning.criterion import Subject
    from graphopt.passes.pruning.obs import Drawn, Obs
    from graphopt.runtime.session import Feeds

    Floats = npt.NDArray[np.float64]

_LEVELS = (0.8, 0.55)
"""Shares of the units that stay in the cuts that are measured; curves are scaled in between."""

_RIDGES = (RIDGE, 1.0, 100.0)
"""Ridges that the order in which units go is drawn with; the one that costs the outputs least is taken."""

_HELD = 4  # one sample of so many is run, the others are fitted
_MOST_RUN = 48  # samples
_LEAST_SAMPLES = 8


def weighed(
    anatomy: Anatomy,
    criterion: Obs,
    subjects: Mapping[str, Subject],
    needs: Needs,
    data: Iterable[Feeds] | None,
    seed: int,
    rows_per_sample: int,
    *,
    hold_out: bool = False,
) -> tuple[dict[str, Subject], dict[str, Floats]]:
    """Return the *subjects* with statistics of the samples that are fitted, and curves by errors of outputs.

    Args:
        anatomy: The families of the whole model.
        criterion: It is left with the orders of units that cost the outputs least.
        subjects: The families by name, without statistics.
        needs: What the criterion wants to know.
        data: Unlabelled inputs.
        seed: Seed of the rows that are drawn.
        rows_per_sample: How many are drawn from each sample.
        hold_out: Whether the ridge of each fit is chosen on a part of the samples that are fitted.

    Raises:
        DataError: There are too few samples to hold some out, or the outputs are no numbers.
    """
    feeds = list(islice(iter(data), 1 << 20)) if data is not None else []
    if len(feeds) < _LEAST_SAMPLES:
        raise DataError(
            f"sensitivity=output measures on samples that are held out, and there are {len(feeds)} in all;"
            f" expected {_LEAST_SAMPLES}",
            where="prune-channels",
            hint="Give more samples with --data, or sensitivity=local.",
        )
    model = anatomy.model
    fitted, run = _parted(feeds)
    run = run[:_MOST_RUN]
    held = None
    if hold_out:
        fitted, aside = _parted(fitted)
        held = collect(model, aside, needs, seed=seed, rows_per_sample=rows_per_sample)
    statistics = collect(model, fitted, needs, seed=seed, rows_per_sample=rows_per_sample)
    if held is not None:
        statistics += held
    subjects = {name: replace(subject, statistics=statistics) for name, subject in subjects.items()}
    criterion.curves(subjects)
    whole = Outputs(
        model, run, where="prune-channels", hint="Give other samples with --data, or sensitivity=local."
    )
    scaled = {}
    for name, subject in subjects.items():
        # Where nothing is fitted there is one order.
        ridges = _RIDGES if seen_by(subject) else _RIDGES[:1]
        best = min(
            (_Measured(anatomy, criterion.draw(subject, ridge), whole, held) for ridge in ridges),
            key=lambda one: one.error,
        )
        criterion.use(best.drawn)
        scaled[name] = best.curve()
    return subjects, scaled


def _parted(feeds: Sequence[Feeds]) -> tuple[list[Feeds], list[Feeds]]:
    """Return the samples that are fitted, and those that are held out."""
    fitted = [feed for index, feed in enumerate(feeds) if index % _HELD != _HELD - 1]
    return fitted, list(feeds[_HELD - 1 :: _HELD])


class _Measured:
    """A family cut alone, with units that go in the order of *drawn*.

    Attributes:
        drawn: The family and the order.
        error: That of the outputs, at the first of the levels.
    """

    def __init__(self, anatomy: Anatomy, drawn: Drawn, whole: Outputs, held: Statistics | None) -> None:
        self.drawn = drawn
        self._anatomy, self._whole, self._held = anatomy, whole, held
        self._first = self._kept(_LEVELS[0])
        self.error = self._cut(self._first)

    def _kept(self, level: float) -> int:
        return max(1, round(self.drawn.subject.size * level))

    def _cut(self, kept: int) -> float:
        return self._whole.error(_cut_alone(self._anatomy, self.drawn, kept, self._held))

    def curve(self) -> Floats:
        """Return the curve of the criterion, scaled to errors of the outputs."""
        curve = self.drawn.curve()
        most = float(np.max(curve))
        points = {}
        for kept in dict.fromkeys(map(self._kept, _LEVELS)):
            if kept < self.drawn.subject.size and curve[kept] > 1e-9 * most:
                error = self.error if kept == self._first else self._cut(kept)
                points[kept] = error / float(curve[kept])
        if not points:
            return curve
        places = sorted(points)
        scaled: Floats = curve * np.interp(np.arange(len(curve)), places, [points[kept] for kept in places])
        # More units never lose more.
        return np.maximum.accumulate(scaled[::-1])[::-1].copy()


def _cut_alone(anatomy: Anatomy, drawn: Drawn, kept: int, held: Statistics | None) -> Model:
    """Return a copy of the model in which *kept* units of one family are read, by weights fitted to them.

    What is not fitted computes in it what it would behind the cut.
    """
    subject = drawn.subject
    units = drawn.kept(kept)
    chosen = {subject.name: units}
    walked = {node.outputs[0].name for node in anatomy.model.graph if node.outputs}
    fitted = [seen for seen in seen_by(subject, held) if seen.reader.output in walked]
    if len(fitted) == len(subject.contractions) and not anatomy.compressed(chosen):
        changed = anatomy.model.clone()
    else:
        changed = masked_as_cut(anatomy.model, anatomy, chosen)
    nodes = {node.outputs[0].name: node for node in changed.graph if node.outputs}
    for seen in fitted:
        linear = seen.reader.linear
        node = nodes[linear.output]
        taps = math.prod(linear.kernel)
        stays = ~seen.reader.gone(units.tolist()).reshape(linear.groups, -1)
        solution = solve_groups(
            seen.groups,
            linear.weight(),
            linear.bias(),
            stage=linear.where,
            columns=[columns_of(np.flatnonzero(part), taps) for part in stays],
            free_bias=linear.has_bias,
        )
        bias = solution.bias if linear.has_bias else None
        replace(linear, node=node).write(changed, solution.weight, bias)
    return changed
