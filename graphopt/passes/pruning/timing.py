"""A budget of measured time: what a cut saves is asked of the target's provider, not counted in MACs.

Families whose cuts save the same MACs are alike and are cut and timed together, so that what is measured
stands out of the noise; each has an equal share of it. Between the widths that are timed the time goes in a
straight line. A step that saves no more than the noise, or makes the model slower, is never taken: kernels
like 16 channels better than 8.
With ``timed_as`` each candidate goes through the passes that will follow before it is timed.

Times add up only about, so the cut that the table promises is timed as a whole, and goes further where it has
to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import GateFailed, OptionError, PlanError, ProviderError
from graphopt.passes.pruning.allocation import FLOOR_SHARE, choices_for, greedy, uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.passes.prune_channels import PruneChannels
    from graphopt.passes.pruning.allocation import Candidate
    from graphopt.passes.pruning.meter import Counts, Meter
    from graphopt.runtime.measurements import Measured

UNIT = 1e-9
"""Shares of the original's time are counted in these, as whole numbers."""

_WIDTHS = 3
"""Widths of a family that are timed at most."""

_TABLE_S = 3.0
"""Seconds of inference for one entry of the table."""

_ATTEMPTS = 5


@dataclass(frozen=True)
class Alike:
    """Families that are timed together.

    Attributes:
        names: The families.
        offered: Counts that each may be cut to, the full size first, falling.
        timed: Those of them that are timed.
    """

    names: tuple[str, ...]
    offered: tuple[int, ...]
    timed: tuple[int, ...]


class TimeTable:
    """What each family saves by its kept units, as shares of the original's time; saving adds up.

    Args:
        saved: [size + 1] for each family.
    """

    def __init__(self, saved: Mapping[str, npt.NDArray[np.float64]]) -> None:
        self._saved = saved

    def saved(self, counts: Counts, family: str, kept: int) -> int:
        """Return what more is saved when *family* goes from ``counts[family]`` to *kept* units, in UNIT."""
        table = self._saved[family]
        return round(float(table[kept] - table[counts[family]]) / UNIT)

    def removed(self, counts: Counts) -> int:
        """Return what a cut to *counts* saves, in UNIT."""
        return round(sum(float(self._saved[name][kept]) for name, kept in counts.items()) / UNIT)

    def worth(self, family: str, offered: Sequence[int]) -> tuple[int, ...]:
        """Return the counts of *offered*, falling, that save more than every larger one."""
        table = self._saved[family]
        kept = [offered[0]]
        for count in offered[1:]:
            if table[count] > table[kept[-1]]:
                kept.append(count)
        return tuple(kept)


def alike(candidates: Sequence[Candidate], offered: Mapping[str, Sequence[int]], meter: Meter) -> list[Alike]:
    """Return the families by what they have in common: their choices, and the MACs that these save."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for each in candidates:
        counts = tuple(offered[each.name])
        if len(counts) > 1:
            saved = tuple(meter.saved_macs(meter.sizes, each.name, count) for count in counts[1:])
            found.setdefault((counts, saved), []).append(each.name)
    groups = []
    for (counts, _), names in found.items():
        cuts = counts[1:]
        places = np.unique(np.linspace(0, len(cuts) - 1, min(_WIDTHS, len(cuts))).round().astype(int))
        groups.append(Alike(tuple(names), counts, tuple(cuts[place] for place in places)))
    return groups


def table_of(
    groups: Sequence[Alike], sizes: Mapping[str, int], whole: Measured, times: Mapping[str, Measured]
) -> TimeTable:
    """Return the table that measurements make.

    Args:
        groups: What was timed together.
        sizes: Units of every family.
        whole: The time of the uncut model.
        times: The times of the cut ones, by :func:`label_of`.
    """
    saved = {name: np.zeros(size + 1) for name, size in sizes.items()}
    for group in groups:
        together = [saving(whole, times[label_of(group, kept)]) for kept in group.timed]
        size = group.offered[0]
        share = [each / len(group.names) for each in together]
        points = [(size, 0.0), *zip(group.timed, share, strict=True)]
        points.sort()
        kept, values = zip(*points, strict=True)
        line = np.interp(np.arange(size + 1), kept, values)
        for name in group.names:
            saved[name] = line
    return TimeTable(saved)


def saving(whole: Measured, cut: Measured) -> float:
    """Return what is saved as a share of the original's time; 0 where it does not stand out of the noise."""
    saved = whole.ratio - cut.ratio
    return 0.0 if 0 < saved <= max(whole.noise_floor, cut.noise_floor) * whole.ratio else saved


def label_of(group: Alike, kept: int) -> str:
    """Return what names the measurement of *group* at *kept* units."""
    more = f" and {len(group.names) - 1} like it" if len(group.names) > 1 else ""
    return f"{kept} of {group.offered[0]} units of {group.names[0]}{more}"


class Timer:
    """Times candidates as they will be run.

    Args:
        whole: The model before the cut.
        context: What measures.
        pipeline: What candidates go through before they are timed (``timed_as``); None for nothing.

    Raises:
        ProviderError: Nothing can be measured here.
    """

    def __init__(self, whole: Model, context: Context, pipeline: str | None) -> None:
        if not context.can_measure:
            raise ProviderError(
                "time_ratio is a budget of measured time, and nothing can be measured here",
                where="option 'time_ratio'",
                hint="Give measurements of a machine that has the target's provider with --measurements, or a"
                " macs_ratio.",
            )
        self._whole = whole
        self._context = context
        self._pipeline = pipeline

    def times(self, models: Mapping[str, Model], *, whole: bool = False) -> dict[str, Measured]:
        """Return the time of *models*, by label, over that of the model before the cut.

        Args:
            models: What to time; put through ``timed_as`` first.
            whole: Whether to measure by the whole protocol.
        """
        made = {label: self._as_run(model) for label, model in models.items()}
        if whole:
            return self._context.latencies(self._whole, made)
        return self._context.latencies(self._whole, made, budget_s=_TABLE_S)

    def _as_run(self, model: Model) -> Model:
        if not self._pipeline:
            return model
        try:
            return self._context.derived(model, self._pipeline)
        except PlanError as error:
            raise OptionError(error.message, where="option 'timed_as'", hint=error.hint) from error


@dataclass(frozen=True)
class Timed:
    """What a search for a cut of a given time found.

    Attributes:
        counts: Units that stay, by family.
        report: What to report.
    """

    counts: Mapping[str, int]
    report: dict[str, object]


def search(
    candidates: Sequence[Candidate],
    meter: Meter,
    timer: Timer,
    options: PruneChannels.Options,
    preferred: int,
    cut: Callable[[Mapping[str, int]], Model],
) -> Timed:
    """Return the counts whose cut takes no more than ``time_ratio`` of the original's time.

    Args:
        candidates: The families that may be cut.
        meter: Tells which families are alike.
        timer: Times what *cut* makes.
        options: Options of the pass.
        preferred: The target's alignment.
        cut: Makes the model whose families keep so many units.

    Raises:
        GateFailed: The ratio cannot be reached, and best_effort is not set.
    """
    limit = options.time_ratio
    assert limit is not None
    round_to = None if options.round_to == "auto" else options.round_to
    offered = {
        each.name: choices_for(each, round_to, preferred, options.min_family, FLOOR_SHARE)[0]
        for each in candidates
    }
    groups = alike(candidates, offered, meter)
    models: dict[str, Model] = {}
    for group in groups:
        for kept in group.timed:
            models[label_of(group, kept)] = cut(dict.fromkeys(group.names, kept))
    # All entries are held against the uncut model, so that one is measured with the most care.
    uncut = timer.times({_UNCUT: cut({})}, whole=True)[_UNCUT]
    times = timer.times(models) if models else {}
    table = table_of(groups, meter.sizes, uncut, times)
    offered = {name: table.worth(name, counts) for name, counts in offered.items()}
    spread = uniform if options.scope == "family" else greedy
    report: dict[str, object] = {
        "limit": limit,
        "timed_as": options.timed_as,
        "uncut": round(uncut.ratio, 4),
        "table": [
            {
                "families": list(group.names),
                "units": group.offered[0],
                "kept": kept,
                "ratio": round(times[label_of(group, kept)].ratio, 4),
            }
            for group in groups
            for kept in group.timed
        ],
    }
    floors = {name: counts[-1] for name, counts in offered.items()}
    most = table.removed(floors)
    wanted = math.ceil((uncut.ratio - limit) / UNIT)
    tried: list[dict[str, object]] = []
    counts: Mapping[str, int] = dict(meter.sizes)
    got = uncut.ratio
    for attempt in range(1, _ATTEMPTS + 1):
        if got <= limit:
            break
        counts = spread(candidates, offered, table, min(wanted, most))
        measured = timer.times({f"cut {attempt}": cut(counts)}, whole=True)[f"cut {attempt}"]
        got = measured.ratio
        expected = uncut.ratio - table.removed(counts) * UNIT
        tried.append({"expected": round(expected, 4), "measured": round(got, 4)})
        if counts == floors:
            break
        # What one share of the table was worth, all of it in proportion.
        promised = table.removed(counts)
        gone = max(uncut.ratio - got, 0.1 * promised * UNIT)
        further = math.ceil(max(wanted, promised) * (uncut.ratio - limit) / gone)
        wanted = max(further, promised + 1)
    report |= {"tried": tried, "measured": round(got, 4)}
    if got > limit and not options.best_effort:
        raise GateFailed(
            f"time_ratio={limit:g} was not reached: {got:.3f} at best, {uncut.ratio:.3f} without a cut"
            f" ({len(candidates)} families are free)",
            where="option 'time_ratio'",
            hint="Ask for less, allow more (units, allow_approximate, round_to), or set best_effort=true.",
        )
    return Timed(counts, report)


_UNCUT = "no cut"
