"""What calibration found out about the values of one model: mergeable, and stored in one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from graphopt.calibrate.needs import Needs, Rows
from graphopt.errors import DataError, nearest

if TYPE_CHECKING:
    from os import PathLike

    from graphopt.calibrate.moments import ChannelMoments, Gram
    from graphopt.calibrate.sketch import RangeSketch


@dataclass
class Statistics:
    """Statistics of the values of one model over the feeds of one source of data.

    Attributes:
        ranges: Distribution by name of the value.
        channels: Moments by (name of the value, axis).
        grams: Second moments by the rows they were taken of.
        skipped: Why a value has no statistics, by its name.
        feeds: Number of feeds.
        model: Content hash of the model; "" where it is not known.
        data: Identity of the data; "" where it is not known. Of merged statistics, all of them.
    """

    ranges: dict[str, RangeSketch] = field(default_factory=dict)
    channels: dict[tuple[str, int], ChannelMoments] = field(default_factory=dict)
    grams: dict[Rows, Gram] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    feeds: int = 0
    model: str = ""
    data: str = ""

    def range(self, value: str) -> RangeSketch:
        """Return the distribution of *value*.

        Raises:
            DataError: There is none; the message says why.
        """
        if value not in self.ranges:
            raise self._absent("no range was collected", value, list(self.ranges))
        return self.ranges[value]

    def channel(self, value: str, axis: int) -> ChannelMoments:
        """Return the moments of the channels of *value* along *axis*, written as it was asked for.

        Raises:
            DataError: There are none; the message says why.
        """
        if (value, axis) not in self.channels:
            raise self._absent(
                f"no moments along axis {axis} were collected", value, [name for name, _ in self.channels]
            )
        return self.channels[value, axis]

    def gram(self, rows: Rows) -> Gram:
        """Return the second moments of *rows*.

        Raises:
            DataError: There are none; the message says why.
        """
        if rows not in self.grams:
            raise self._absent(
                "no second moments were collected", rows.value, [each.value for each in self.grams]
            )
        return self.grams[rows]

    def has_range(self, value: str) -> bool:
        """Return whether *value* was seen with at least one finite element."""
        return value in self.ranges and self.ranges[value].count > 0

    @property
    def held(self) -> Needs:
        """All that is held."""
        return Needs(frozenset(self.ranges), frozenset(self.channels), frozenset(self.grams))

    def missing(self, needs: Needs) -> Needs:
        """Return the part of *needs* that is neither held nor named as skipped."""
        left = needs - self.held
        return left.of_values({name for name in left.values if name not in self.skipped})

    def update(self, other: Statistics) -> None:
        """Take over what *other* holds about the same model and data, and this does not."""
        self.ranges = {**other.ranges, **self.ranges}
        self.channels = {**other.channels, **self.channels}
        self.grams = {**other.grams, **self.grams}
        self.skipped = {**other.skipped, **self.skipped}
        self.feeds = max(self.feeds, other.feeds)
        self.model = self.model or other.model
        self.data = self.data or other.data

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of feeds together.

        A value that only one of them saw has what that one saw.

        Raises:
            DataError: They are of different models.
        """
        if self.model and other.model and self.model != other.model:
            raise DataError(
                "the statistics are of different models and cannot be merged",
                where="statistics",
                hint="Calibrate all shards with the same model file.",
            )
        return Statistics(
            ranges=_added(self.ranges, other.ranges),
            channels=_added(self.channels, other.channels),
            grams=_added(self.grams, other.grams),
            skipped={**self.skipped, **other.skipped},
            feeds=self.feeds + other.feeds,
            model=self.model or other.model,
            data=" + ".join(each for each in (self.data, other.data) if each),
        )

    def __add__(self, other: Statistics) -> Statistics:
        return self.merge(other)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything into one file, the same bytes for the same statistics; it appears whole or not.

        Raises:
            PathError: The file cannot be written.
        """
        from graphopt.calibrate.storage import save

        save(self, path)

    @staticmethod
    def load(path: str | PathLike[str]) -> Statistics:
        """Return what :meth:`save` wrote.

        Raises:
            PathError: The file does not exist.
            DataError: It holds no statistics, or is damaged.
        """
        from graphopt.calibrate.storage import load

        return load(path)

    def _absent(self, what: str, value: str, known: list[str]) -> DataError:
        if value in self.skipped:
            return DataError(f"{what}: {self.skipped[value]}", where=f"value {value!r}")
        return DataError(what, where=f"value {value!r}", hint=nearest(value, set(known)))


K = TypeVar("K")
V = TypeVar("V", "RangeSketch", "ChannelMoments", "Gram")


def _added(one: dict[K, V], two: dict[K, V]) -> dict[K, V]:
    return {
        **one,
        **{key: one[key] + value if key in one else value for key, value in two.items()},
    }
