"""From a sketch to the range that a quantised value covers: minmax, moving average, percentile, entropy, MSE.

All methods answer with a :class:`Range` that lies within the smallest and largest element; what a scale and a
zero point make of it (zero included, symmetric or not) is the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.calibrate.sketch import RangeSketch

    Floats = npt.NDArray[np.float64]

_LINEAR_BINS = 2048  # of the histogram that the divergence is computed on, as in TensorRT's calibrator
_CANDIDATES = 100  # ranges that the squared error is computed for in a sweep


class Range(NamedTuple):
    """A closed interval of values."""

    low: float
    high: float


EMPTY = Range(0.0, 0.0)
"""The range of a value that had no finite element."""


def minmax(sketch: RangeSketch) -> Range:
    """Return the smallest and the largest element."""
    return Range(sketch.minimum, sketch.maximum) if sketch.count else EMPTY


def moving_average(sketch: RangeSketch) -> Range:
    """Return the mean over the feeds of the smallest and of the largest element.

    onnxruntime calls the same mean its moving average; unlike an exponential one it does not depend on the
    order of the feeds, so that shards merge.
    """
    if not sketch.batches:
        return EMPTY
    return Range(sketch.minimum_sum / sketch.batches, sketch.maximum_sum / sketch.batches)


def quantile(sketch: RangeSketch, fraction: float) -> float:
    """Return the value below which *fraction* of the elements lie, interpolated within its bucket.

    Raises:
        ValueError: *fraction* is not in [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"expected a fraction in [0, 1], got {fraction}")
    if not sketch.count:
        return 0.0
    low, high, counts = sketch.buckets()
    total = np.cumsum(counts)
    # numpy's definition: position fraction * (n - 1) in the sorted elements, counted from 0.
    rank = fraction * (sketch.count - 1)
    index = min(int(np.searchsorted(total, rank, side="right")), len(counts) - 1)
    before = float(total[index] - counts[index])
    share = (rank - before + 0.5) / float(counts[index])
    value = float(low[index] + (high[index] - low[index]) * min(max(share, 0.0), 1.0))
    return min(max(value, sketch.minimum), sketch.maximum)


def percentile(sketch: RangeSketch, percent: float = 99.99) -> Range:
    """Return the range that holds *percent* of the elements; half of the rest is cut off at either end.

    Where no element is negative nothing is cut off at the lower end and all of the rest at the upper one;
    the same the other way round.

    Raises:
        ValueError: *percent* is not in (0, 100].
    """
    if not 0.0 < percent <= 100.0:
        raise ValueError(f"expected a percentage in (0, 100], got {percent}")
    if not sketch.count:
        return EMPTY
    cut = (100.0 - percent) / 100.0
    if sketch.minimum >= 0.0:
        return Range(sketch.minimum, quantile(sketch, 1.0 - cut))
    if sketch.maximum <= 0.0:
        return Range(quantile(sketch, cut), sketch.maximum)
    return Range(quantile(sketch, cut / 2.0), quantile(sketch, 1.0 - cut / 2.0))


def entropy(sketch: RangeSketch, *, bits: int = 8, symmetric: bool = False) -> Range:
    """Return the range that loses least information, by the Kullback-Leibler divergence.

    The histogram of magnitudes, 2048 bins up to the largest, is cut at a threshold, what lies beyond counts
    to the last bin, and is compared with itself after quantisation to 2**(bits - 1) levels (2**bits where no
    element is negative and the range need not be *symmetric*). S. Migacz, 8-bit Inference with TensorRT, GTC
    2017.
    """
    if not sketch.count:
        return EMPTY
    largest = max(abs(sketch.minimum), abs(sketch.maximum))
    one_sided = sketch.minimum >= 0.0 or sketch.maximum <= 0.0
    levels = 1 << (bits if one_sided and not symmetric else bits - 1)
    bins = max(_LINEAR_BINS, 4 * levels)
    # Zeros (ReLU, padding) are exact whatever the scale; counted, they would drown the rest.
    histogram = _magnitudes(sketch, largest, bins)
    threshold = largest * _best_cut(histogram, levels) / bins
    return Range(max(sketch.minimum, -threshold), min(sketch.maximum, threshold))


def mse(sketch: RangeSketch, *, bits: int = 8, symmetric: bool = False) -> Range:
    """Return the range with the least mean squared error of rounding and clipping to 2**bits levels.

    Both ends shrink together first, then each on its own; with *symmetric* the levels reach as far on either
    side of zero. Elements are taken as evenly spread within a bucket, for which the error has a closed form.
    """
    if not sketch.count or sketch.is_constant:
        return minmax(sketch)
    low, high, counts = sketch.buckets()
    steps = float((1 << bits) - 1)
    weights = counts / sketch.count

    def error(bottom: float, top: float) -> float:
        if symmetric:
            top = max(-bottom, top)
            bottom = -top
        step = (top - bottom) / (steps - 1.0 if symmetric else steps)
        return _squared_error(low, high, weights, bottom, top, step)

    bottom, top = min(sketch.minimum, 0.0), max(sketch.maximum, 0.0)
    shrink = np.geomspace(0.02, 1.0, _CANDIDATES)
    best = min(shrink[::-1], key=lambda factor: error(bottom * factor, top * factor))
    ends = [bottom * float(best), top * float(best)]
    for _ in range(2):
        for side, limit in ((0, bottom), (1, top)):
            if limit == 0.0:
                continue
            tried = [float(ends[side] * factor) for factor in np.geomspace(0.8, 1.25, 31)]
            tried = [ends[side], *(end for end in tried if abs(end) <= abs(limit)), limit]
            other = ends[1 - side]
            ends[side] = min(tried, key=lambda end: error(*((end, other) if not side else (other, end))))
    return Range(max(sketch.minimum, ends[0]), min(sketch.maximum, ends[1]))


def _magnitudes(sketch: RangeSketch, largest: float, bins: int) -> Floats:
    """Return how many magnitudes, zeros left out, fall into each of *bins* equal parts of [0, largest]."""
    if largest == 0.0:
        return np.zeros(bins)
    low, high, counts = sketch.buckets()
    inner, outer = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
    kept = outer > np.finfo(np.float32).tiny
    inner, outer, weights = inner[kept], outer[kept], counts[kept].astype(np.float64)
    # The cumulative distribution is linear within a bucket; its differences at the edges are the counts.
    edges = np.linspace(0.0, largest, bins + 1)
    cumulative = np.zeros(bins + 1)
    order = np.argsort(inner, kind="stable")
    inner, outer, weights = inner[order], outer[order], weights[order]
    narrow = outer <= inner
    for group in (slice(None),):
        start, end, weight = inner[group], outer[group], weights[group]
        first = np.clip(np.searchsorted(edges, start, side="right"), 1, bins)
        last = np.clip(np.searchsorted(edges, end, side="left"), 1, bins)
        inside = (first == last) | narrow[group]
        np.add.at(cumulative, first[inside], weight[inside])
        wide = np.flatnonzero(~inside)
        for index in wide:
            where = edges[first[index] - 1 : last[index] + 1]
            share = np.clip((where - start[index]) / (end[index] - start[index]), 0.0, 1.0)
            cumulative[first[index] : last[index] + 1] += weight[index] * np.diff(share)
    return cumulative[1:]


def _best_cut(histogram: Floats, levels: int) -> int:
    """Return the number of bins that the range of least divergence spans."""
    bins = len(histogram)
    total = histogram.sum()
    if not total:
        return bins
    occupied = histogram > 0
    best, best_divergence = bins, np.inf
    beyond = total - np.cumsum(histogram)
    for cut in range(levels, bins + 1, max(1, (bins - levels) // 256)):
        reference = histogram[:cut].copy()
        tail = beyond[cut - 1]
        reference[-1] += tail
        # Each level spreads what it holds over those of its bins that hold something.
        starts = (np.arange(levels) * cut) // levels
        held = np.add.reduceat(histogram[:cut], starts)
        filled = np.add.reduceat(occupied[:cut].astype(np.float64), starts)
        per_bin = np.divide(held, filled, out=np.zeros(levels), where=filled > 0)
        lengths = np.diff(np.append(starts, cut))
        quantised = np.where(occupied[:cut], np.repeat(per_bin, lengths), 0.0)
        if tail and not quantised[-1]:
            continue  # what is clipped would come out as something that never occurred
        mask = reference > 0
        p, q = reference[mask] / total, quantised[mask] / (total - tail)
        divergence = float(np.sum(p * np.log(p / q)))
        if divergence < best_divergence:
            best, best_divergence = cut, divergence
    return best


def _squared_error(
    low: Floats, high: Floats, weights: Floats, bottom: float, top: float, step: float
) -> float:
    """Return the mean squared error of elements spread evenly in buckets, rounded to multiples of *step*."""
    if step <= 0.0:
        middle = (low + high) / 2.0
        return float(np.sum(weights * middle**2))
    inside_low, inside_high = np.clip(low, bottom, top), np.clip(high, bottom, top)
    width = high - low
    share = np.divide(inside_high - inside_low, width, out=np.ones_like(width), where=width > 0)
    rounded = step**2 * _mean_rounding(inside_low / step, inside_high / step)
    above = _mean_square(np.maximum(low - top, 0.0), np.maximum(high - top, 0.0))
    below = _mean_square(np.maximum(bottom - high, 0.0), np.maximum(bottom - low, 0.0))
    is_out = (low >= top) & (high > top) | (high <= bottom) & (low < bottom)
    share = np.where(is_out, 0.0, share)
    return float(np.sum(weights * (share * rounded + (1.0 - share) * (above + below))))


def _mean_rounding(low: Floats, high: Floats) -> Floats:
    """Return the mean of (u - round(u))**2 over u in [low, high]."""
    width = high - low
    safe = np.where(width > 1e-9, width, 1.0)
    integral = _rounding_integral(high) - _rounding_integral(low)
    middle = (low + high) / 2.0
    return np.where(width > 1e-9, integral / safe, (middle - np.round(middle)) ** 2)


def _rounding_integral(u: Floats) -> Floats:
    nearest = np.round(u)
    rest = u - nearest
    # Not rest**3: numpy's power of floats takes ten times as long as two products.
    return nearest / 12.0 + rest * rest * rest / 3.0


def _mean_square(low: Floats, high: Floats) -> Floats:
    """Return the mean of u**2 over u in [low, high], of the part that is above zero."""
    return (low**2 + low * high + high**2) / 3.0
