"""What a cut of each family does to the outputs of the model, measured one family at a time.

A curve of the criterion obs says what the readers of a family lose. What that is worth depends on all that
comes behind them: an early layer amplifies it, a late one damps it. So each family is cut alone, its readers
refitted, and the model run to its outputs; curves are scaled to what is found there. Weights are fitted to
some samples and run on others, so that a fit which holds only for the samples that it was made from counts
as the loss that it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from graphopt.calibrate.collection import collect
from graphopt.errors import DataError
from graphopt.passes.pruning.allocation import ordered
from graphopt.passes.pruning.obs import seen_by
from graphopt.passes.pruning.readers import columns_of
from graphopt.recover.outputs import Outputs
from graphopt.recover.solve import solve_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model
    from graphopt.passes.pruning.criterion import Criterion, Subject
    from graphopt.runtime.session import Feeds

    Floats = npt.NDArray[np.float64]

_LEVELS = (0.8, 0.55)
"""Shares of the units that stay in the cuts that are measured; curves are scaled in between."""

_HELD = 4  # one sample of so many is run, the others are fitted
_MOST_RUN = 48  # samples
_LEAST_SAMPLES = 8


def weighed(
    model: Model,
    criterion: Criterion,
    subjects: Mapping[str, Subject],
    needs: Needs,
    data: Iterable[Feeds] | None,
    seed: int,
    rows_per_sample: int,
) -> tuple[dict[str, Subject], dict[str, Floats]]:
    """Return the *subjects* with statistics of the samples that are fitted, and curves by errors of outputs.

    Args:
        model: The whole model; it is not changed.
        criterion: One that gives curves of all families that linear operators read.
        subjects: The families by name, without statistics.
        needs: What the criterion wants to know.
        data: Unlabelled inputs.
        seed: Seed of the rows that are drawn.
        rows_per_sample: How many are drawn from each sample.

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
    fitted = [feed for index, feed in enumerate(feeds) if index % _HELD != _HELD - 1]
    run = feeds[_HELD - 1 :: _HELD][:_MOST_RUN]
    statistics = collect(model, fitted, needs, seed=seed, rows_per_sample=rows_per_sample)
    subjects = {name: replace(subject, statistics=statistics) for name, subject in subjects.items()}
    curves = dict(criterion.curves(subjects))
    whole = Outputs(
        model, run, where="prune-channels", hint="Give other samples with --data, or sensitivity=local."
    )
    scaled = {}
    for name, subject in subjects.items():
        curve = curves.get(name)
        if curve is None or not seen_by(subject):
            continue
        scaled[name] = _scaled(model, criterion, subject, curve, whole)
    return subjects, scaled


def _scaled(model: Model, criterion: Criterion, subject: Subject, curve: Floats, whole: Outputs) -> Floats:
    order = ordered(np.asarray(criterion.scores(subject), np.float64))
    most = float(np.max(curve))
    points = []
    for level in _LEVELS:
        kept = max(1, round(subject.size * level))
        if kept < subject.size and curve[kept] > 1e-9 * most:
            error = whole.error(_cut_alone(model, subject, np.sort(order[:kept])))
            points.append((kept, error / float(curve[kept])))
    if not points:
        return curve
    points.sort()
    places, factors = (list(side) for side in zip(*points, strict=True))
    scaled: Floats = curve * np.interp(np.arange(len(curve)), places, factors)
    # More units never lose more.
    return np.maximum.accumulate(scaled[::-1])[::-1].copy()


def _cut_alone(model: Model, subject: Subject, units: npt.NDArray[np.intp]) -> Model:
    """Return a copy of *model* in which only *units* of one family are read, by weights fitted to them."""
    changed = model.clone()
    nodes = {node.outputs[0].name: node for node in changed.graph if node.outputs}
    for seen in seen_by(subject):
        linear = seen.reader.linear
        node = nodes.get(linear.output)
        if node is None:
            continue
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
