"""Statistics on demand: given in a file, found in the cache, or collected from the data of the run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.calibrate.collection import ROWS_PER_SAMPLE, collect
from graphopt.calibrate.needs import Needs
from graphopt.calibrate.statistics import Statistics
from graphopt.calibrate.storage import SCHEMA
from graphopt.errors import DataError, GraphoptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from graphopt.ir.model import Model
    from graphopt.runtime.session import Feeds

_PACKAGES = ("graphopt", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """One pass over the data, as it stands in the report.

    Attributes:
        where: The step that asked.
        feeds: Feeds that were run.
        ranges: Distributions collected.
        channels: Sets of channel moments collected.
        grams: Second moments collected.
        seconds: Wall-clock seconds.
        cached: Whether they came from the cache.
        skipped: (value, reason) of what could not be collected.
    """

    where: str
    feeds: int
    ranges: int
    channels: int
    grams: int
    seconds: float
    cached: bool
    skipped: tuple[tuple[str, str], ...]


class Calibration:
    """Statistics of the model that is being worked on; valid until a pass changes what values hold.

    Args:
        data: Feeds that can be iterated again and again; None where there are none.
        given: Statistics of the model that the run begins with, of the right model.
        cache: Folder in which collected statistics are kept; None keeps none.
        seed: Seed of the rows drawn for second moments.
        provider: What to run on.
        progress: Told how many feeds are done.

    Attributes:
        data: As given.
        planned: What the steps ahead want of the same model, collected along with what is asked for.
        where: The step that is running.
        runs: What was collected so far.
        warnings: Sentences that belong into the report.
    """

    def __init__(
        self,
        data: Iterable[Feeds] | None = None,
        *,
        given: Statistics | None = None,
        cache: Path | None = None,
        seed: int = 0,
        provider: str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.data = data
        self.planned = Needs()
        self.where = ""
        self.runs: list[CalibrationRun] = []
        self.warnings: list[str] = []
        self._held = Statistics()
        if given is not None:
            self._held.update(given)
        self._was_given = given is not None
        self._stale = False
        self._cache = cache
        self._seed = seed
        self._provider = provider
        self._progress = progress

    @property
    def held(self) -> Statistics | None:
        """What is held about the model as it is now; None where that is nothing."""
        return self._held if self._held.held else None

    def has(self, needs: Needs) -> bool:
        """Return whether :meth:`get` can answer: all is held, or there is data to collect it from."""
        return self.data is not None or not self._held.missing(needs)

    def get(self, model: Model, needs: Needs) -> Statistics:
        """Return statistics that hold *needs* about *model*, or name what they lack as skipped.

        Raises:
            DataError: Something is not held and there is no data to collect it from.
        """
        missing = self._held.missing(needs)
        if not missing:
            return self._held
        if self.data is None:
            raise self._unavailable(missing)
        wanted = missing | self._held.missing(self.planned)
        self._held.update(self._collected(model, wanted))
        return self._held

    def fork(self, given: Statistics | None) -> Calibration:
        """Return calibration of another model on the same data; what is collected is noted in common.

        Args:
            given: What is known about the other model.
        """
        other = Calibration(
            self.data,
            given=given,
            cache=self._cache,
            seed=self._seed,
            provider=self._provider,
            progress=self._progress,
        )
        other.runs, other.warnings, other.where = self.runs, self.warnings, self.where
        return other

    def invalidate(self) -> None:
        """Forget what is held: the values of the model hold something else now."""
        self._stale = self._stale or bool(self._held.held)
        self._held = Statistics()

    def _unavailable(self, missing: Needs) -> DataError:
        sample = missing.values[0]
        if self._was_given and self._stale:
            return DataError(
                "the statistics given are of the model that the run began with, and an earlier step has"
                " changed what its values hold",
                hint="Give the data itself with --data, or calibrate the model as it is before this step.",
            )
        if self._was_given:
            return DataError(
                f"the statistics lack {missing.described()}, for example of the value {sample!r}",
                hint="Calibrate with `graphopt calibrate MODEL --pipeline TEXT`, or give --data as well.",
            )
        return DataError(
            f"it needs statistics ({missing.described()}) and there is no data to collect them from",
            hint="Give inputs with --data, or statistics with --statistics.",
        )

    def _collected(self, model: Model, needs: Needs) -> Statistics:
        assert self.data is not None
        start = time.perf_counter()
        place = self._place(model, needs)
        found = _read(place)
        cached = found is not None
        if found is None:
            found = collect(
                model, self.data, needs, seed=self._seed, progress=self._progress, provider=self._provider
            )
            found.data = str(getattr(self.data, "identity", ""))
            if place is not None:
                self._keep(found, place)
        self.runs.append(
            CalibrationRun(
                where=self.where,
                feeds=found.feeds,
                ranges=len(found.ranges),
                channels=len(found.channels),
                grams=len(found.grams),
                seconds=time.perf_counter() - start,
                cached=cached,
                skipped=tuple(sorted(found.skipped.items())),
            )
        )
        return found

    def _place(self, model: Model, needs: Needs) -> Path | None:
        """Return the file of the cache for this model, data and versions; None without a cache."""
        identity = getattr(self.data, "identity", None)
        if self._cache is None or not isinstance(identity, str):
            return None
        from graphopt.ir.fingerprint import content_hash

        parts: list[Any] = [
            SCHEMA,
            content_hash(model),
            identity,
            self._seed,
            ROWS_PER_SAMPLE,
            self._provider,
            sorted(needs.ranges),
            sorted(needs.channels),
            [repr(rows.key) for rows in sorted(needs.grams, key=lambda rows: rows.key)],
            [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES],
        ]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        return self._cache / f"{digest}.npz"

    def _keep(self, found: Statistics, place: Path) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            found.save(place)
        except (GraphoptError, OSError) as error:
            self.warnings.append(f"the statistics were not put into the cache: {error}")


def _read(place: Path | None) -> Statistics | None:
    """Return what the cache holds at *place*; a damaged entry is no entry."""
    if place is not None and place.is_file():
        with suppress(GraphoptError):
            return Statistics.load(place)
    return None
