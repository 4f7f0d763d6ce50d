"""One-pass collectors: each takes the arrays of one value, feed by feed, and keeps only its statistic."""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.moments import ChannelMoments, Gram
from graphopt.calibrate.rows import gather_rows
from graphopt.calibrate.sketch import RangeSketch
from graphopt.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.calibrate.needs import Rows

    Array = npt.NDArray[Any]

_HIGH_HALF = 1 if sys.byteorder == "little" else 0
# Counting clears and adds a table of 65,536 buckets whatever the number of codes, so codes of small tensors
# wait until there are half as many (an estimate; benchmarks/calibrate.py shows what it all costs).
_PENDING_CODES = 1 << 15
# Rows wait until there are this many, because a product of many rows is faster than many of few.
_PENDING_ROWS = 256


class RangeAccumulator:
    """Collects a :class:`RangeSketch`."""

    def __init__(self) -> None:
        self._sketch = RangeSketch()
        self._pending: list[npt.NDArray[np.uint16]] = []
        self._pending_size = 0

    def update(self, array: Array) -> None:
        """Take the value of one feed; NaN and infinity are counted apart."""
        if not array.size:
            return
        flat = _as_float32(array)
        sketch = self._sketch
        low, high = float(np.min(flat)), float(np.max(flat))
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            sketch.nonfinite += flat.size - finite.size
            if not finite.size:
                return
            flat, low, high = finite, float(np.min(finite)), float(np.max(finite))
        sketch.count += flat.size
        sketch.minimum, sketch.maximum = min(sketch.minimum, low), max(sketch.maximum, high)
        sketch.batches += 1
        sketch.minimum_sum += low
        sketch.maximum_sum += high
        codes = flat.view(np.uint16)[_HIGH_HALF::2]
        if flat.size >= _PENDING_CODES:
            self._count(codes)
            return
        self._pending.append(codes.copy())
        self._pending_size += codes.size
        if self._pending_size >= _PENDING_CODES:
            self._flush()

    def result(self) -> RangeSketch:
        """Return the sketch of all that was taken."""
        self._flush()
        return self._sketch

    def _flush(self) -> None:
        if self._pending:
            self._count(np.concatenate(self._pending))
            self._pending, self._pending_size = [], 0

    def _count(self, codes: npt.NDArray[np.uint16]) -> None:
        table = np.bincount(codes, minlength=1 << 16)
        sketch = self._sketch
        known = table[sketch.codes]
        if int(known.sum()) == codes.size:  # nothing in a bucket that was empty so far: the usual case
            sketch.counts += known
            return
        occupied = table.copy()
        occupied[sketch.codes] += sketch.counts
        found = np.flatnonzero(occupied)
        sketch.codes, sketch.counts = found.astype(np.uint16), occupied[found].astype(np.int64)


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
