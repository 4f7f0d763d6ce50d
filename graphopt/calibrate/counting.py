"""How often each code, the upper 16 bits of a float32, occurs in a value over its feeds.

Counting an element costs more than half of what a convolution net takes to compute it
(benchmarks/calibrate.py). So once the distribution of a value is known from enough elements, only its tails
are still counted one by one: they are what percentiles and clipping errors depend on. Of the elements between
them one in eight is counted and stands for eight, another one in each of eight feeds.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Codes = npt.NDArray[np.uint16]
    Counts = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float32]

BUCKETS = 1 << 16
ALL_COUNTED = 1 << 16
"""Elements of a value that are counted one by one before any are sampled."""
TAIL = 0.001
"""The share of the elements at either end that goes on being counted one by one."""

_SMALL = 1 << 15  # of smaller arrays too few would be sampled
_WAITING = 1 << 16  # codes that are counted together: a table of all buckets has to be cleared for them
_PART = 1 << 17  # elements looked at together: they and their indices stay in a core's cache
_STRIDE = 8  # one element of so many is sampled
_HIGH_HALF = 1 if sys.byteorder == "little" else 0
_SIGN = 1 << 15


def ranks(codes: npt.NDArray[np.uint16] | np.uint16) -> npt.NDArray[np.int32]:
    """Return whole numbers in the order of the values that *codes* stand for; -0 is below 0."""
    wide = np.asarray(codes, np.int32)
    ordered: npt.NDArray[np.int32] = np.where(wide < _SIGN, wide, _SIGN - 1 - wide)
    return ordered


@dataclass(frozen=True, slots=True)
class Look:
    """What one walk over the elements of a feed finds.

    Attributes:
        low: The smallest element; NaN where there is one.
        high: The largest.
        codes: Codes to count.
        sample: Codes of a sample of the other elements.
        others: How many other elements there are.
    """

    low: float
    high: float
    codes: list[Codes]
    sample: list[Codes]
    others: int

    @property
    def is_finite(self) -> bool:
        """Whether all elements are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


class CodeCounter:
    """Counts the codes of the finite elements of one value."""

    def __init__(self) -> None:
        self._tally = _Tally()
        self._sample = _Tally()
        self._others = 0
        self._turn = 0
        self._inner: _Inner | None = None

    def look(self, flat: Floats) -> Look:
        """Return what is to be counted of one feed, and its extremes; of at least one element. [n]."""
        if self._inner is None and self._tally.size >= ALL_COUNTED:
            self._inner = _Inner(*self._tally.result())
        inner = self._inner if flat.size >= _SMALL else None
        lows: list[np.float32] = []
        highs: list[np.float32] = []
        codes: list[Codes] = []
        sample: list[Codes] = []
        for start in range(0, flat.size, _PART):
            part = flat[start : start + _PART]
            lows.append(np.min(part))
            highs.append(np.max(part))
            if inner is None:
                codes.append(_codes(part).copy())
            else:
                codes.append(inner.tails(part, lows[-1]))
                sample.append(_sampled(part, self._turn))
        others = 0 if inner is None else flat.size - sum(each.size for each in codes)
        return Look(float(np.min(lows)), float(np.max(highs)), codes, sample, others)

    def add(self, look: Look) -> None:
        """Count what was found, all of it finite."""
        self._others += look.others
        self._turn = (self._turn + 1) % _STRIDE
        for tally, found in ((self._tally, look.codes), (self._sample, look.sample)):
            for codes in found:
                tally.add(codes)

    def result(self) -> tuple[Codes, Counts]:
        """Return the occupied codes, ascending, and how many elements have each. [n], [n].

        The counts add up to the number of elements.
        """
        counted = self._tally.result()
        if self._inner is None:
            return counted
        codes, counts = self._inner.within(*self._sample.result())
        if not counts.size:
            codes, counts = self._inner.known
        upto = np.rint(np.cumsum(counts) * (self._others / counts.sum())).astype(np.int64)
        estimated = np.diff(upto, prepend=0)
        return added(*counted, codes[estimated > 0], estimated[estimated > 0])


class _Tally:
    """Counts codes.

    Attributes:
        size: How many codes were added.
    """

    def __init__(self) -> None:
        self.size = 0
        self._codes, self._counts = np.zeros(0, np.uint16), np.zeros(0, np.int64)
        self._waiting: list[Codes] = []
        self._waiting_size = 0

    def add(self, codes: Codes) -> None:
        """Count *codes*, which are kept for a while."""
        if not codes.size:
            return
        self.size += codes.size
        self._waiting.append(codes)
        self._waiting_size += codes.size
        if self._waiting_size >= _WAITING:
            self._flush()

    def result(self) -> tuple[Codes, Counts]:
        """Return the codes that occur, ascending, and how often each does. [n], [n]."""
        if self._waiting:
            self._flush()
        return self._codes, self._counts

    def _flush(self) -> None:
        table = np.bincount(np.concatenate(self._waiting), minlength=BUCKETS)
        size, self._waiting, self._waiting_size = self._waiting_size, [], 0
        known = table[self._codes]
        if int(known.sum()) == size:  # nothing in a bucket that was empty so far: the usual case
            self._counts += known
            return
        table[self._codes] += self._counts
        codes = np.flatnonzero(table)
        self._codes, self._counts = codes.astype(np.uint16), table[codes].astype(np.int64)


class _Inner:
    """Where the tails of a value begin.

    Args:
        codes: Occupied codes of what was counted so far, ascending. [n]
        counts: How often each occurs. [n]

    Attributes:
        known: Those of them that are not in the tails.
    """

    def __init__(self, codes: Codes, counts: Counts) -> None:
        order = np.argsort(ranks(codes), kind="stable")
        share = np.cumsum(counts[order]) / counts.sum()
        first = codes[order[np.searchsorted(share, TAIL, side="right")]]
        last = codes[order[np.searchsorted(share, 1 - TAIL, side="left")]]
        # Zeros of both signs are within as soon as those of one are: a comparison does not tell them apart.
        first = np.uint16(_SIGN) if first == 0 else first
        last = np.uint16(0) if last == _SIGN else last
        self._first, self._last = int(ranks(first)), int(ranks(last))
        self._low = _float(int(first) << 16 | (0xFFFF if first > _SIGN else 0))
        self._high = _float(int(last) << 16 | (0xFFFF if last < _SIGN else 0))
        self.known = self.within(codes, counts)

    def tails(self, part: Floats, least: np.float32) -> Codes:
        """Return the codes of the elements in the tails; *least* is the smallest element."""
        outside = part > self._high
        if not least >= self._low:  # behind a Relu there is no lower tail
            outside |= part < self._low
        return part.view(np.uint16)[2 * np.flatnonzero(outside) + _HIGH_HALF]

    def within(self, codes: Codes, counts: Counts) -> tuple[Codes, Counts]:
        """Return those codes that are not in the tails, and their counts."""
        order = ranks(codes)
        within = (order >= self._first) & (order <= self._last)
        return codes[within], counts[within]


def added(codes_a: Codes, counts_a: Counts, codes_b: Codes, counts_b: Counts) -> tuple[Codes, Counts]:
    """Return the codes that occur in either, and the sums of their counts."""
    codes = np.union1d(codes_a, codes_b).astype(np.uint16)
    counts = np.zeros(len(codes), np.int64)
    counts[np.searchsorted(codes, codes_a)] += counts_a
    counts[np.searchsorted(codes, codes_b)] += counts_b
    return codes, counts


def _sampled(part: Floats, turn: int) -> Codes:
    """Return the codes of one element in each stride."""
    places = _places(turn)
    if part.size < _PART:
        places = places[: np.searchsorted(places, 2 * part.size)]
    return part.view(np.uint16).take(places)


@functools.cache
def _places(turn: int) -> npt.NDArray[np.intp]:
    """Return which of the halves of a part's elements are sampled, ascending.

    Random places, since even steps would see some channels or columns more often than others; over as many
    turns as a stride has elements, each element is seen once.
    """
    chosen = np.random.default_rng(0).integers(0, _STRIDE, _PART // _STRIDE)
    return 2 * (np.arange(0, _PART, _STRIDE) + (chosen + turn) % _STRIDE) + _HIGH_HALF


def _codes(flat: Floats) -> Codes:
    return flat.view(np.uint16)[_HIGH_HALF::2]


def _float(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)
