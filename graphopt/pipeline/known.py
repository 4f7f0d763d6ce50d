"""What a run knows beforehand: statistics and measurements, given or to be made from its data."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from graphopt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.calibrate.calibration import Calibration
    from graphopt.ir import Model
    from graphopt.pipeline.request import RunRequest
    from graphopt.record import RunRecord
    from graphopt.runtime.measurements import Measurements
    from graphopt.runtime.session import Feeds
    from graphopt.targets import Target


def make_calibration(request: RunRequest, model: Model, feeds: Iterable[Feeds] | None) -> Calibration:
    """Return where passes get statistics from, having held those given against the model.

    Raises:
        DataError: The statistics cannot be read, or are of another model.
    """
    from graphopt.calibrate.calibration import Calibration
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir.fingerprint import content_hash

    given = None
    if request.statistics is not None:
        given = Statistics.load(request.statistics)
        if given.model and given.model != content_hash(model):
            raise DataError(
                "the statistics are of another model: their content hash differs",
                where=str(request.statistics),
                hint="Calibrate anew with: graphopt calibrate MODEL --data SRC -o FILE",
            )
    return Calibration(
        feeds, given=given, cache=request.cache, seed=request.seed, progress=request.watch.progress
    )


def make_measurements(request: RunRequest, target: Target, feeds: Iterable[Feeds] | None) -> Measurements:
    """Return where passes get latencies from.

    Raises:
        PathError: The file of measurements does not exist.
        DataError: It holds none.
    """
    from graphopt.runtime.measurements import Measurements, read_measurements

    replay = None if request.measurements is None else read_measurements(request.measurements)
    return Measurements(target.provider, feeds=feeds, dims=request.dims, seed=request.seed, replay=replay)


def note(record: RunRecord, calibration: Calibration, measurements: Measurements) -> None:
    """Write what was collected and measured into *record*."""
    from graphopt.runtime.measurements import as_document

    if calibration.runs:
        record.extra["calibration"] = [asdict(each) for each in calibration.runs]
    if measurements.records:
        record.extra["measurements"] = as_document(measurements.records)
    record.warnings += calibration.warnings
