"""One-pass collectors: each takes the arrays of one value, feed by feed, and keeps only its statistic."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.counting import CodeCounter
from graphopt.calibrate.moments import ChannelMoments, Gram
from graphopt.calibrate.rows import gather_rows
from graphopt.calibrate.sketch import RangeSketch
from graphopt.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.calibrate.needs import Rows

    Array = npt.NDArray[Any]

# Rows wait until there are this many, because a product of many rows is faster than many of few.
_PENDING_ROWS = 256


class RangeAccumulator:
    """Collects a :class:`RangeSketch`."""

    def __init__(self) -> None:
        self._sketch = RangeSketch()
        self._counter = CodeCounter()
        self._followers: list[DerivedAccumulator] = []
        self._uneven: RangeAccumulator | None = None

    def derive(self, low: float, high: float) -> DerivedAccumulator:
        """Return the collector of a value that has the same elements, cut off at *low* and *high*."""
        follower = DerivedAccumulator(self, low, high)
        self._followers.append(follower)
        return follower

    @property
    def regular(self) -> RangeSketch:
        """The sketch of the feeds without NaN and infinity."""
        self._sketch.codes, self._sketch.counts = self._counter.result()
        return self._sketch

    def update(self, array: Array) -> None:
        """Take the value of one feed; NaN and infinity are counted apart."""
        if not array.size:
            return
        flat = _as_float32(array)
        look = self._counter.look(flat)
        if not look.is_finite:
            if self._followers:
                # What becomes of an infinity depends on the bounds: these feeds are looked at one by one.
                self._uneven = self._uneven or RangeAccumulator()
                self._uneven.update(flat)
                for follower in self._followers:
                    follower.look_at(flat)
                return
            finite = flat[np.isfinite(flat)]
            self._sketch.nonfinite += flat.size - finite.size
            if not finite.size:
                return
            flat = finite
            look = self._counter.look(flat)
        sketch = self._sketch
        sketch.count += flat.size
        sketch.minimum, sketch.maximum = min(sketch.minimum, look.low), max(sketch.maximum, look.high)
        sketch.batches += 1
        sketch.minimum_sum += look.low
        sketch.maximum_sum += look.high
        for follower in self._followers:
            follower.see(look.low, look.high)
        self._counter.add(look)

    def result(self) -> RangeSketch:
        """Return the sketch of all that was taken."""
        return self.regular if self._uneven is None else self.regular + self._uneven.result()


class DerivedAccumulator:
    """Collects the :class:`RangeSketch` of a value whose elements are those of another one, cut off.

    Args:
        source: The collector of the other value.
        low: What smaller elements become.
        high: What larger elements become.
    """

    def __init__(self, source: RangeAccumulator, low: float, high: float) -> None:
        self._source = source
        self._low = low
        self._high = high
        self._minimum_sum = self._maximum_sum = 0.0
        self._own: RangeAccumulator | None = None

    def see(self, low: float, high: float) -> None:
        """Take the extremes of the source in one feed."""
        self._minimum_sum += min(max(low, self._low), self._high)
        self._maximum_sum += min(max(high, self._low), self._high)

    def look_at(self, flat: npt.NDArray[np.float32]) -> None:
        """Take the source of one feed itself."""
        self._own = self._own or RangeAccumulator()
        bounds = np.float32(self._low), np.float32(self._high)
        self._own.update(np.minimum(np.maximum(flat, bounds[0]), bounds[1]))

    def result(self) -> RangeSketch:
        """Return the sketch of all that was taken."""
        sketch = self._source.regular.clamped(self._low, self._high)
        sketch.minimum_sum, sketch.maximum_sum = self._minimum_sum, self._maximum_sum
        return sketch if self._own is None else sketch + self._own.result()


class ChannelAccumulator:
    """Collects :class:`ChannelMoments` along one axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._moments: ChannelMoments | None = None

    def update(self, array: Array) -> None:
        """Take the value of one feed.

        Raises:
            DataError: The number of channels changed, or the axis does not exist.
        """
        if not -array.ndim <= self._axis < array.ndim:
            raise DataError(f"it has rank {array.ndim}, without an axis {self._axis}")
        if not array.size:  # also what a branch that was not taken shows: an empty tensor of no set width
            return
        moments = ChannelMoments.of(array, self._axis)
        if self._moments is None:
            self._moments = moments
            return
        if len(self._moments.total) != len(moments.total):
            raise DataError(f"axis {self._axis} has no fixed size")
        self._moments = self._moments + moments

    def result(self) -> ChannelMoments | None:
        """Return the moments of all that was taken; None where nothing was."""
        return self._moments


class GramAccumulator:
    """Collects the :class:`Gram` of sampled rows.

    Args:
        rows: Which rows.
        rows_per_sample: Positions drawn from each sample (each index of the first axis); None takes all.
        seed: Seed of the draw; each value and feed has a stream of its own.
    """

    def __init__(self, rows: Rows, rows_per_sample: int | None, seed: int) -> None:
        self._rows = rows
        self._per_sample = rows_per_sample
        self._seed = (seed, zlib.crc32(repr(rows.key).encode()))
        self._index = 0
        self._gram: Gram | None = None
        self._pending: list[Array] = []
        self._pending_rows = 0

    def update(self, array: Array) -> None:
        """Take the value of one feed.

        Raises:
            DataError: The length of a row changed, or the window does not fit the value.
        """
        generator = np.random.default_rng((*self._seed, self._index))
        self._index += 1
        found = gather_rows(array, self._rows, self._per_sample, generator)
        if not len(found):
            return
        width = found.shape[1]
        if (self._pending and self._pending[0].shape[1] != width) or (
            self._gram is not None and self._gram.size != width
        ):
            raise DataError("its rows have no fixed length")
        self._pending.append(found)
        self._pending_rows += len(found)
        if self._pending_rows >= _PENDING_ROWS:
            self._flush()

    def result(self) -> Gram | None:
        """Return the Gram matrix of all that was taken; None where nothing was."""
        self._flush()
        return self._gram

    def _flush(self) -> None:
        if not self._pending:
            return
        new = Gram.of(np.concatenate(self._pending))
        if self._gram is None:
            self._gram = new
        else:
            self._gram.matrix += new.matrix
            self._gram.count += new.count
        self._pending, self._pending_rows = [], 0


def _as_float32(array: Array) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32).reshape(-1)
