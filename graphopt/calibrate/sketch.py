"""Distribution of a value in one pass: a histogram over the upper 16 bits of its float32 elements.

The upper 16 bits of a float32 are sign, exponent and 7 bits of mantissa, so a bucket is at most 1/128 of its
value wide, no range need be known beforehand, and histograms of shards merge by addition. One sketch serves
every method of choosing a range (ranges.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.counting import BUCKETS, added, ranks

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.calibrate.ranges import Range

_SIGN = 1 << 15
_FINITE_END = 0x7F80  # the first bucket that is infinite or NaN


@dataclass(eq=False)
class RangeSketch:
    """Distribution of the finite elements of a value over all feeds.

    Attributes:
        count: Finite elements seen.
        nonfinite: Elements that were NaN or infinite; they are in no other number.
        minimum: Smallest finite element; +inf where there is none.
        maximum: Largest finite element; -inf where there is none.
        batches: Feeds in which the value had finite elements.
        minimum_sum: Sum over those feeds of the smallest element; divided by *batches* it is the averaged
            minimum.
        maximum_sum: The same of the largest.
        codes: Upper 16 bits of occupied buckets, ascending. [n] uint16
        counts: Elements in them. [n] int64
    """

    count: int = 0
    nonfinite: int = 0
    minimum: float = np.inf
    maximum: float = -np.inf
    batches: int = 0
    minimum_sum: float = 0.0
    maximum_sum: float = 0.0
    codes: npt.NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @staticmethod
    def of(array: npt.NDArray[Any]) -> RangeSketch:
        """Return the sketch of one array, taken as one feed."""
        from graphopt.calibrate.accumulate import RangeAccumulator

        accumulator = RangeAccumulator()
        accumulator.update(array)
        return accumulator.result()

    def __add__(self, other: RangeSketch) -> RangeSketch:
        codes, counts = added(self.codes, self.counts, other.codes, other.counts)
        return RangeSketch(
            count=self.count + other.count,
            nonfinite=self.nonfinite + other.nonfinite,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            batches=self.batches + other.batches,
            minimum_sum=self.minimum_sum + other.minimum_sum,
            maximum_sum=self.maximum_sum + other.maximum_sum,
            codes=codes,
            counts=counts,
        )

    def clamped(self, low: float, high: float) -> RangeSketch:
        """Return the sketch of the same elements, those below *low* and above *high* moved to them.

        Sums of extremes are not known from a sketch of several feeds; they are those of the extremes.
        """
        order = ranks(self.codes)
        table = np.zeros(BUCKETS, np.int64)
        codes = self.codes.copy()
        for bound, beyond in ((low, np.less), (high, np.greater)):
            if np.isfinite(bound):
                code = np.uint16(np.array(bound, np.float32).view(np.uint32) >> 16)
                codes[beyond(order, ranks(code))] = code
        np.add.at(table, codes, self.counts)
        occupied = np.flatnonzero(table)
        minimum, maximum = (min(max(each, low), high) for each in (self.minimum, self.maximum))
        return RangeSketch(
            count=self.count,
            nonfinite=self.nonfinite,
            minimum=minimum if self.count else self.minimum,
            maximum=maximum if self.count else self.maximum,
            batches=self.batches,
            minimum_sum=minimum * self.batches if self.count else 0.0,
            maximum_sum=maximum * self.batches if self.count else 0.0,
            codes=occupied.astype(np.uint16),
            counts=table[occupied],
        )

    @property
    def is_constant(self) -> bool:
        """Whether all elements seen were equal, or there were none."""
        return self.minimum >= self.maximum

    def buckets(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return lower edges, upper edges and counts of the occupied buckets, by ascending value.

        The outermost edges are clipped to the smallest and largest element.
        """
        low, high = bucket_edges(self.codes)
        order = np.argsort(low, kind="stable")
        low, high, counts = low[order], high[order], self.counts[order]
        return np.clip(low, self.minimum, None), np.clip(high, None, self.maximum), counts

    def quantile(self, fraction: float) -> float:
        """Return the value below which *fraction* of the elements lie, interpolated within its bucket.

        Raises:
            ValueError: *fraction* is not in [0, 1].
        """
        from graphopt.calibrate.ranges import quantile

        return quantile(self, fraction)

    def minmax(self) -> Range:
        """Return the smallest and the largest element."""
        from graphopt.calibrate.ranges import minmax

        return minmax(self)

    def moving_average(self) -> Range:
        """Return the mean over the feeds of the smallest and of the largest element."""
        from graphopt.calibrate.ranges import moving_average

        return moving_average(self)

    def percentile(self, percent: float = 99.99) -> Range:
        """Return the range that holds *percent* of the elements; see :func:`ranges.percentile`."""
        from graphopt.calibrate.ranges import percentile

        return percentile(self, percent)

    def entropy(self, *, bits: int = 8, symmetric: bool = False) -> Range:
        """Return the range of least Kullback-Leibler divergence; see :func:`ranges.entropy`."""
        from graphopt.calibrate.ranges import entropy

        return entropy(self, bits=bits, symmetric=symmetric)

    def mse(self, *, bits: int = 8, symmetric: bool = False) -> Range:
        """Return the range of least mean squared error; see :func:`ranges.mse`."""
        from graphopt.calibrate.ranges import mse

        return mse(self, bits=bits, symmetric=symmetric)


def bucket_edges(
    codes: npt.NDArray[np.uint16],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the lower and upper edge of each bucket; the magnitude of its elements is rounded down."""
    magnitude = (codes & np.uint16(_SIGN - 1)).astype(np.uint32)
    inner = (magnitude << np.uint32(16)).view(np.float32).astype(np.float64)
    outer = ((magnitude + np.uint32(1)) << np.uint32(16)).view(np.float32).astype(np.float64)
    negative = codes >= _SIGN
    return np.where(negative, -outer, inner), np.where(negative, -inner, outer)
