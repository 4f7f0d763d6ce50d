"""Scenario A5: percentile and entropy over 10, 40 and 400 batches take the same memory and find the same."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from graphopt.calibrate import Needs, RangeSketch, Statistics, collect
from graphopt.ir.lower import lower
from tests.calibrate.test_collect import net, values

NEEDS = Needs(ranges=frozenset({"x", "c"}))


class Batches:
    """Batches made up when they are asked for: of data from a file no more is held either."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self._count):
            rng = np.random.default_rng(index)
            yield {"x": rng.normal(size=(8, 3, 16, 16)).astype(np.float32)}


def collected(count: int) -> tuple[Statistics, int]:
    """Return the statistics of so many batches, and the most bytes that were held at once."""
    tracemalloc.start()
    try:
        found = collect(lower(net()), Batches(count), NEEDS)
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TABLE = 65_536 * 8
"""Bytes of a histogram over the upper 16 bits of float32, whose counters have grown to 64 bits."""


def test_memory_does_not_grow_with_the_batches() -> None:
    """Counters may grow to their full width; 390 batches kept would be four times that and more."""
    collected(1)  # what is imported and cached on first use
    few, more, many = (collected(count)[1] for count in (10, 40, 400))
    one = sum(each.nbytes for each in next(iter(Batches(1))).values())
    bound = few + len(NEEDS.ranges) * TABLE
    assert max(more, many) <= bound < few + 390 * one / 4


@pytest.mark.parametrize("count", [10, 40])
def test_thresholds_are_those_of_all_elements_at_once(count: int) -> None:
    found, _ = collected(count)
    every = np.concatenate([each.reshape(-1) for each in values(net(), "c", list(Batches(count)))])
    low, high = found.range("c").percentile(99.0)
    for mine, exact in ((low, np.quantile(every, 0.005)), (high, np.quantile(every, 0.995))):
        assert abs(mine - exact) <= abs(exact) / 128
    codes, counts = np.unique(every.view(np.uint32) >> np.uint32(16), return_counts=True)
    whole = RangeSketch(
        count=every.size,
        minimum=float(every.min()),
        maximum=float(every.max()),
        codes=codes.astype(np.uint16),
        counts=counts.astype(np.int64),
    )
    np.testing.assert_allclose(found.range("c").entropy(), whole.entropy(), rtol=1 / 128)
