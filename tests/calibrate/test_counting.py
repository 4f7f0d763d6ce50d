"""Counting against numpy's bincount of all elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.calibrate.accumulate import RangeAccumulator
from graphopt.calibrate.counting import _PART, ALL_COUNTED, TAIL, ranks
from graphopt.calibrate.sketch import RangeSketch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    from graphopt.calibrate.ranges import Range

    Array = npt.NDArray[np.float32]

RNG = np.random.default_rng
LONG = 2 * _PART + 7


def table(arrays: Iterable[Array]) -> npt.NDArray[np.int64]:
    """Return the count of each code; NaN and infinity are left out."""
    flat = np.concatenate([each.reshape(-1) for each in arrays])
    return np.bincount(flat[np.isfinite(flat)].view(np.uint32) >> 16, minlength=1 << 16)


def sketch(arrays: Iterable[Array]) -> RangeSketch:
    accumulator = RangeAccumulator()
    for each in arrays:
        accumulator.update(each)
    return accumulator.result()


def filled(found: RangeSketch) -> npt.NDArray[np.int64]:
    counts = np.zeros(1 << 16, np.int64)
    counts[found.codes] = found.counts
    return counts


def gauss(rng: np.random.Generator, size: int) -> Array:
    return rng.standard_normal(size).astype(np.float32)


def relu(rng: np.random.Generator, size: int) -> Array:
    return np.maximum(gauss(rng, size), 0)


def negative(rng: np.random.Generator, size: int) -> Array:
    return -np.exp(gauss(rng, size))


def signed_zeros(rng: np.random.Generator, size: int) -> Array:
    return rng.choice(np.array([0.0, -0.0, 1.0, -2.0], np.float32), size, p=[0.5, 0.4985, 0.001, 0.0005])


@pytest.mark.parametrize("bad", [0, 1])
def test_one_long_feed_is_counted_exactly(bad: int) -> None:
    array = gauss(RNG(2), LONG)
    array[_PART : _PART + bad] = np.nan
    found = RangeSketch.of(array)
    expected = table([array])
    assert np.array_equal(found.codes, np.flatnonzero(expected))
    assert np.array_equal(found.counts, expected[expected > 0])
    assert [found.minimum, found.maximum] == [np.nanmin(array), np.nanmax(array)]
    assert found.nonfinite == bad


def test_small_feeds_are_counted_exactly_however_many_there_are() -> None:
    arrays = [gauss(RNG(seed), 5000) for seed in range(3 * ALL_COUNTED // 5000)]
    assert np.array_equal(filled(sketch(arrays)), table(arrays))


@pytest.mark.parametrize("draw", [gauss, relu, negative, signed_zeros])
def test_sampling_keeps_tails_and_totals(draw: Callable[[np.random.Generator, int], Array]) -> None:
    arrays = [draw(RNG(seed), LONG) for seed in range(4)]
    found, expected = sketch(arrays), table(arrays)
    counts = filled(found)
    assert counts.sum() == found.count == sum(each.size for each in arrays)
    assert found.minimum == min(float(np.min(each)) for each in arrays)
    assert found.maximum == max(float(np.max(each)) for each in arrays)
    order = np.argsort(ranks(np.arange(1 << 16, dtype=np.uint16)))
    share = np.cumsum(expected[order]) / expected.sum()
    # The tails begin where the first feed had them: inside the tails of all feeds, by a margin.
    tails = order[(share < TAIL / 2) | (np.concatenate([[0], share[:-1]]) > 1 - TAIL / 2)]
    assert np.array_equal(counts[tails], expected[tails])
    # One in eight of two feeds' worth: the sampled shares have a standard error below sqrt(1/4/65536).
    difference = np.cumsum(counts[order] - expected[order]) / expected.sum()
    assert np.abs(difference).max() < 5 * np.sqrt(1 / 4 / 65536)


def test_ranges_of_a_sampled_value() -> None:
    arrays = [gauss(RNG(seed), LONG) for seed in range(4)]
    found = sketch(arrays)
    exact = sum((RangeSketch.of(each) for each in arrays), RangeSketch())
    assert np.array_equal(filled(exact), table(arrays))
    assert found.minmax() == exact.minmax()
    assert found.moving_average() == exact.moving_average()
    assert found.percentile(99.9) == exact.percentile(99.9)
    # What they minimise is flat around its minimum, so that the place of it says little.
    values = np.concatenate(arrays)
    assert rounding_error(values, found.mse()) < 1.005 * rounding_error(values, exact.mse())
    assert found.entropy().high == pytest.approx(exact.entropy().high, rel=0.1)


def rounding_error(values: Array, within: Range) -> float:
    """Return the mean squared error of 8-bit codes."""
    step = (within.high - within.low) / 255
    rounded = np.rint((np.clip(values, within.low, within.high) - within.low) / step) * step + within.low
    return float(np.mean((rounded - values) ** 2))


@pytest.mark.parametrize("period", [2, 8, 64])
def test_channels_in_the_last_axis_are_all_seen(period: int) -> None:
    array = np.resize(np.arange(1, period + 1, dtype=np.float32), LONG // period * period)
    found = sketch([array] * 6)
    assert found.counts == pytest.approx(table([array] * 6)[found.codes], rel=0.2)


def test_eight_feeds_see_every_element_once() -> None:
    # The same numbers, 16 of them, all of them rare, in random places of eight feeds behind the first.
    values = RNG(5).permutation(np.repeat(np.arange(1, 17, dtype=np.float32), ALL_COUNTED // 8))
    assert np.array_equal(filled(sketch([values] * 9)), table([values] * 9))


def test_a_value_that_drifts_is_counted() -> None:
    arrays = [np.ones(LONG, np.float32), np.full(LONG, 5, np.float32)]
    arrays[1][3] = 1  # the only one that is no tail, and at a place that is not sampled or is: one element
    assert np.array_equal(filled(sketch(arrays)), table(arrays))


def test_a_constant_takes_no_memory() -> None:
    accumulator = RangeAccumulator()
    for _ in range(5):
        accumulator.update(np.zeros(LONG, np.float32))
    found = accumulator.result()
    assert [*found.codes] == [0]
    assert [*found.counts] == [5 * LONG]


def test_infinities_after_sampling_began() -> None:
    arrays = [gauss(RNG(seed), LONG) for seed in range(3)]
    arrays[2][:9] = np.inf
    found = sketch(arrays)
    assert found.nonfinite == 9
    assert filled(found).sum() == found.count == 3 * LONG - 9
    assert found.maximum == max(float(np.max(each[np.isfinite(each)])) for each in arrays)
