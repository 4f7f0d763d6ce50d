"""Codebooks of one-dimensional data: weighted k-means, and grids of fixed spacing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Spacing = Literal["kmeans", "linear", "log", "power-of-two"]

_BINS = 768
"""Points that the dynamic programme looks at; Lloyd's steps on all points follow."""

_EXACT_SIZE = 64
"""Up to this many clusters the dynamic programme runs; its time grows with their number."""

_ROUNDS = 30


def make_codebook(points: Floats, mass: Floats | None, size: int, spacing: Spacing) -> Floats:
    """Return at most *size* ascending values that stand for *points*.

    Args:
        points: [n] finite numbers, in any order.
        mass: [n] how much the squared error of each counts, or None for all alike.
        size: Most values to return.
        spacing: How they are laid: free (k-means), at equal distances from the least to the largest,
            at equal ratios around zero, or at powers of two around zero.

    Returns:
        [k] with k <= size, exactly the distinct points where there are no more than *size* of them.
    """
    order = np.argsort(points, kind="stable")
    ordered = points[order]
    weights = np.ones(len(points)) if mass is None else np.asarray(mass, np.float64)[order]
    distinct, starts = np.unique(ordered, return_index=True)
    if len(distinct) <= size:
        return distinct
    counted = np.add.reduceat(weights, starts)
    if spacing == "linear":
        return _linear(distinct, counted, size)
    if spacing == "log":
        return _best_log(distinct, counted, size)
    if spacing == "power-of-two":
        return _powers(distinct, size)
    return _kmeans(distinct, counted, size)


def nearest_codes(points: npt.NDArray[Any], codebook: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the index of the nearest value of an ascending *codebook* for each of *points*."""
    return np.searchsorted((codebook[1:] + codebook[:-1]) / 2, points)


def _kmeans(points: Floats, mass: Floats, size: int) -> Floats:
    """Minimise sum mass * (point - centre)^2 over *size* centres; *points* ascend.

    The dynamic programme over intervals (Wang and Song, 2011) is exact on the points it is given; where
    there are more than it can take, they are gathered in bins first and Lloyd's steps on all points follow.
    """
    if not mass.sum() > 0:
        mass = np.ones(len(points))
    totals = np.concatenate([[0.0], np.cumsum(mass)])
    sums = np.concatenate([[0.0], np.cumsum(mass * points)])
    if size <= _EXACT_SIZE:
        edges = _bins(points, mass)
        bounds = edges[_partition(points, mass, edges, size)]
    else:
        # The density of centres that is best for many of them goes with the cube root of the points' own.
        grid = _bins(points, mass)
        width = np.diff(points[np.minimum(grid, len(points) - 1)])
        share = np.concatenate([[0.0], np.cumsum(np.diff(totals[grid]) ** (1 / 3) * width ** (2 / 3))])
        wanted = np.linspace(0, share[-1], size + 1)
        bounds = np.unique(np.round(np.interp(wanted, share, grid)).astype(np.int64))
    centres = _means(points, totals, sums, bounds)
    for _ in range(_ROUNDS):
        inner = np.searchsorted(points, (centres[1:] + centres[:-1]) / 2)
        moved = np.unique(np.concatenate([[0], inner, [len(points)]]))
        if np.array_equal(moved, bounds):
            break
        bounds = moved
        centres = _means(points, totals, sums, bounds)
    return _with_zero(points, mass, bounds, centres)


def _bins(points: Floats, mass: Floats) -> npt.NDArray[np.int64]:
    """Return ascending indices that cut *points* into at most _BINS parts, half by mass, half by value."""
    n = len(points)
    if n <= _BINS:
        return np.arange(n + 1)
    half = _BINS // 2
    cumulated = np.cumsum(mass)
    by_mass = np.searchsorted(cumulated, np.linspace(0, cumulated[-1], half + 1)[1:-1])
    by_value = np.searchsorted(points, np.linspace(points[0], points[-1], half + 1)[1:-1])
    return np.unique(np.concatenate([[0], by_mass, by_value, [n]])).astype(np.int64)


def _partition(
    points: Floats, mass: Floats, edges: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.int64]:
    """Return indices into *edges*, from 0 to the last, that bound the best *size* intervals."""
    n = len(edges) - 1
    if n <= size:
        return np.arange(n + 1)
    centre = float(np.average(points, weights=mass))
    shifted = points - centre
    cumulated = [np.concatenate([[0.0], np.cumsum(mass * shifted**power)])[edges] for power in range(3)]
    zeroth, first, second = (sums[None, :] - sums[:, None] for sums in cumulated)
    # cost[i, j]: squared error of the bins i .. j - 1 around their mean.
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = second - np.where(zeroth > 0, first**2 / zeroth, 0.0)
    cost[np.tril_indices(n + 1, -1)] = np.inf
    best = cost[0].copy()
    origins = []
    for _ in range(size - 1):
        candidates = best[:, None] + cost
        origin = candidates.argmin(0)
        origins.append(origin)
        best = candidates[origin, np.arange(n + 1)]
    bounds = [n]
    for origin in reversed(origins):
        bounds.append(int(origin[bounds[-1]]))
    bounds.append(0)
    return np.unique(np.array(bounds, np.int64))


def _means(points: Floats, totals: Floats, sums: Floats, bounds: npt.NDArray[np.int64]) -> Floats:
    weight = np.diff(totals[bounds])
    means = np.diff(sums[bounds]) / np.where(weight > 0, weight, 1.0)
    plain = (points[bounds[:-1]] + points[np.maximum(bounds[1:] - 1, 0)]) / 2
    # Rounding of long sums must not move a mean out of its interval.
    means = np.where(weight > 0, means, plain)
    return np.clip(means, points[bounds[:-1]], points[np.maximum(bounds[1:] - 1, 0)])


def _with_zero(points: Floats, mass: Floats, bounds: npt.NDArray[np.int64], centres: Floats) -> Floats:
    """Put a centre at zero where zero outweighs the rest of its cluster: pruned weights stay zero."""
    at = int(np.searchsorted(points, 0.0))
    if at < len(points) and points[at] == 0.0:
        cluster = int(np.searchsorted(bounds, at, side="right")) - 1
        if mass[at] * 2 > mass[bounds[cluster] : bounds[cluster + 1]].sum():
            centres = centres.copy()
            centres[cluster] = 0.0
    return np.unique(centres)


def _error(points: Floats, mass: Floats, codebook: Floats) -> float:
    return float((mass * (points - codebook[nearest_codes(points, codebook)]) ** 2).sum())


def _linear(points: Floats, mass: Floats, size: int) -> Floats:
    """Equal distances; the ends are drawn in where that lessens the error, and zero is one of them."""
    best, least = np.zeros(1), np.inf
    for share in np.linspace(0.5, 1.0, 26):
        low, high = min(points[0] * share, 0.0), max(points[-1] * share, 0.0)
        step = (high - low) / (size - 1)
        candidate = (np.arange(size) + np.round(low / step)) * step
        error = _error(points, mass, candidate)
        if error < least:
            best, least = candidate, error
    return best


def _signed(points: Floats, levels: Floats, size: int) -> Floats:
    """Return zero and *levels* (descending, positive) on the sides of zero that *points* lie on."""
    both = points[0] < 0 < points[-1]
    negative = (size - 1) // 2 if both else (size - 1) * bool(points[-1] <= 0)
    positive = size - 1 - negative
    return np.unique(np.concatenate([-levels[:negative], [0.0], levels[:positive]]))


def _best_log(points: Floats, mass: Floats, size: int) -> Floats:
    """Equal ratios from the largest magnitude downwards; the ratio is the best of a search."""
    largest = np.abs(points).max()
    best, least = np.zeros(1), np.inf
    for top in (1.0, 0.9, 0.8, 0.7, 0.6):
        for decades in np.linspace(0.3, 4.0, 38):
            levels = largest * top * 10.0 ** (-decades * np.arange(size) / max(size / 2 - 1, 1))
            candidate = _signed(points, levels, size)
            error = _error(points, mass, candidate)
            if error < least:
                best, least = candidate, error
    return best


def _powers(points: Floats, size: int) -> Floats:
    """Powers of two downwards from the one that is nearest to the largest magnitude."""
    largest = np.abs(points).max()
    top = np.floor(np.log2(largest * 4 / 3))
    return _signed(points, 2.0 ** (top - np.arange(size, dtype=np.float64)), size)
