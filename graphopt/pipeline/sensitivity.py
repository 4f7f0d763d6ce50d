"""Which layer hurts: what quantising each node alone does to the outputs, and what it saves in time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from graphopt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.runtime.measurements import Measured
    from graphopt.runtime.session import Feeds

FEEDS = 16
"""Feeds that errors are measured on unless told otherwise; the ranking settles after a few."""

_AT_ONCE = 8  # models that stand in memory and on disk while they are timed in one child


@dataclass(frozen=True, slots=True)
class NodeSensitivity:
    """What quantising one node means.

    Attributes:
        node: Its name.
        sqnr_db: Signal to noise of the worst output with it alone quantised; infinite where nothing shows.
        time_ratio: Time of the model with all but it quantised, over the time with all quantised: above 1
            it saves time. None where nothing was measured.
        noise: How far a ratio of equal models was from 1.
        quantise: What the plan says.
    """

    node: str
    sqnr_db: float
    time_ratio: float | None
    noise: float | None
    quantise: bool


def rank(
    model: Model,
    options: Any,  # noqa: ANN401 - options of insert-qdq
    context: Context,
    feeds: Iterable[Feeds],
    *,
    count: int = FEEDS,
    timed: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[NodeSensitivity], list[tuple[str, str]]]:
    """Return the nodes that insert-qdq would quantise, worst first, and (node, reason) of the others.

    A node is planned float only where that is faster by more than the noise.

    Args:
        model: The float model.
        options: Options of insert-qdq.
        context: Statistics and measurements; *model* is bound to it.
        feeds: Data to compare outputs on.
        count: Feeds to take.
        timed: Whether to measure time where the target's provider is here.
        progress: Told how many nodes are done.

    Raises:
        DataError: No node can be quantised, or there are no feeds.
    """
    from graphopt.passes.quantize.run import Quantizer
    from graphopt.passes.quantize.search import Variant

    quantizer = Quantizer(model, options, context)
    found = quantizer.candidates()
    skipped = list(quantizer.skipped)
    if not found:
        raise DataError("no node of the model can run on codes", where="sensitivity")
    statistics = context.statistics(quantizer.needs())
    build = quantizer.builder(statistics)
    taken = list(islice(feeds, count))
    if not taken:
        raise DataError("the data holds no feeds", where="sensitivity")
    reference = _outputs(model, taken)
    everything = Variant(frozenset(range(len(found))))
    whole = build(everything) if timed and context.can_measure else None
    rows = []
    for first in range(0, len(found), _AT_ONCE):
        group = range(first, min(first + _AT_ONCE, len(found)))
        timings: dict[str, Measured] = {}
        if whole is not None:
            without = {
                f"all but {found[index].label}": build(Variant(everything.nodes - {index})) for index in group
            }
            models = {label: model for label, model in without.items() if model is not None}
            timings = context.latencies(whole, models, trials=1, budget_s=2.0)
        for index in group:
            label = found[index].label
            alone = build(Variant(frozenset({index})))
            if alone is None:
                skipped.append((label, "its values have no range that makes a scale"))
                continue
            error = _worst_sqnr_db(reference, _outputs(alone, taken))
            measured = timings.get(f"all but {label}")
            ratio = noise = None
            if measured is not None:
                ratio, noise = measured.ratio, measured.noise_floor
            quantise = ratio is None or noise is None or ratio >= 1.0 - noise
            rows.append(NodeSensitivity(label, error, ratio, noise, quantise))
            if progress is not None:
                progress(index + 1, len(found))
    return sorted(rows, key=lambda row: (row.sqnr_db, row.node)), skipped


def write_plan(path: Path, model: Model, rows: Iterable[NodeSensitivity]) -> None:
    """Write *rows* as a plan that ``insert-qdq{plan=FILE}`` follows.

    Raises:
        GraphoptError: The file cannot be written.
    """
    from graphopt.ir.fingerprint import fingerprint
    from graphopt.passes.quantize.plans import INSERT_QDQ
    from graphopt.planfile import PlanFile
    from graphopt.planfile import write_plan as write_file

    items = []
    for row in rows:
        item: dict[str, Any] = {"node": row.node, "quantise": row.quantise}
        if math.isfinite(row.sqnr_db):
            item["sqnr_db"] = round(row.sqnr_db, 2)
        if row.time_ratio is not None:
            item["time_ratio"] = round(row.time_ratio, 4)
        items.append(item)
    comment = (
        "What quantising each node alone does, the most harmful first: sqnr_db of the worst output, and\n"
        "time_ratio, the time without it over the time with all quantised (above 1 it saves time).\n"
        'Set quantise = false to keep a node float: graphopt run --pipeline "insert-qdq{plan=THIS FILE}"'
    )
    write_file(path, PlanFile(INSERT_QDQ, tuple(items), fingerprint(model), comment))


def _outputs(model: Model, feeds: Iterable[Feeds]) -> list[Any]:
    from graphopt.ir.emit import emit
    from graphopt.runtime.session import open_session

    with open_session(emit(model).SerializeToString(), provider="cpu", where="sensitivity") as session:
        return [session.run(feed) for feed in feeds]


def _worst_sqnr_db(reference: list[Any], candidate: list[Any]) -> float:
    import numpy as np

    worst = math.inf
    for name in reference[0]:
        signal = noise = 0.0
        for one, two in zip(reference, candidate, strict=True):
            if not isinstance(one[name], np.ndarray) or one[name].dtype.kind not in "fiu":
                continue
            before, after = (np.asarray(each[name], np.float64) for each in (one, two))
            signal += float(np.sum(before**2))
            noise += float(np.sum((before - after) ** 2))
        if noise > 0.0:
            worst = min(worst, 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf)
    return worst
