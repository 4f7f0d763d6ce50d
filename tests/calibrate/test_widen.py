"""widened: the same mean, twice the variance, and only where samples are alike."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.calibrate.widen import widened
from graphopt.errors import DataError


def test_a_share_of_one_doubles_the_variance_about_the_same_mean() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(3.0, 2.0, (4000, 5)).astype(np.float32)
    moved = np.stack([feed["x"] for feed in widened([{"x": row} for row in samples], 1.0, seed=1)])
    assert moved.dtype == np.float32
    # 256 partners: their variance is known to 9 % at one standard error, the mean of 4000 of them to 3 %.
    np.testing.assert_allclose(moved.mean(axis=0), samples.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(moved.var(axis=0) / samples.var(axis=0), 2.0, rtol=0.2)


def test_directions_that_do_not_occur_do_not_appear() -> None:
    generator = np.random.default_rng(1)
    samples = generator.normal(size=(50, 2)) @ generator.normal(size=(2, 6))
    moved = np.stack([feed["x"] for feed in widened([{"x": row} for row in samples], 1.0)])
    assert np.linalg.matrix_rank(moved - samples.mean(axis=0), tol=1e-9) == 2


def test_the_seed_decides_and_nothing_else() -> None:
    feeds = [{"x": np.full(3, k, np.float32)} for k in range(20)]
    one, again, other = (
        np.stack([feed["x"] for feed in widened(feeds, 0.5, seed=seed)]) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_samples_of_different_shapes_are_refused() -> None:
    feeds = [{"x": np.zeros((1, 3))}, {"x": np.zeros((1, 4))}]
    with pytest.raises(DataError, match=r"shape \[1, 4\], those before it \[1, 3\]"):
        list(widened(feeds, 1.0))
    with pytest.raises(DataError, match="no feeds"):
        list(widened([], 1.0))
