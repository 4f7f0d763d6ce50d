"""Sharing a budget, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.recover.allocate import Choice, allocate, hull


def curve(generator: np.random.Generator, size: int) -> list[Choice]:
    costs = np.sort(generator.integers(1, 40, size))[::-1]
    losses = np.cumsum(generator.uniform(0.0, 1.0, size))
    losses[0] = 0.0
    return [
        Choice(float(cost), float(loss), i) for i, (cost, loss) in enumerate(zip(costs, losses, strict=True))
    ]


@pytest.mark.parametrize("seed", range(12))
def test_it_is_within_one_step_of_the_best_of_all_combinations(seed: int) -> None:
    generator = np.random.default_rng(seed)
    items = [curve(generator, 5) for _ in range(4)]
    dearest = sum(max(one.cost for one in item) for item in items)
    budget = 0.6 * dearest
    got = allocate(items, budget)
    feasible = [
        sum(one.loss for one in combination)
        for combination in itertools.product(*items)
        if sum(one.cost for one in combination) <= budget
    ]
    if not feasible:
        assert not got.met
        return
    assert got.met
    assert got.cost <= budget
    assert got.cost == sum(one.cost for one in got.chosen)
    largest_step = max(b.loss - a.loss for item in items for a, b in itertools.pairwise(hull(item)))
    assert min(feasible) <= got.loss <= min(feasible) + largest_step + 1e-12


def test_no_need_no_loss() -> None:
    items = [[Choice(10, 0.0, 0), Choice(5, 1.0, 1)], [Choice(8, 0.0, 0), Choice(2, 0.5, 1)]]
    assert [one.value for one in allocate(items, 18).chosen] == [0, 0]
    assert [one.value for one in allocate(items, 12).chosen] == [0, 1]
    assert [one.value for one in allocate(items, 7).chosen] == [1, 1]


def test_a_budget_out_of_reach_gives_the_cheapest() -> None:
    got = allocate([[Choice(10, 0.0, 0), Choice(5, 1.0, 1)]], 3)
    assert (got.met, got.cost, got.chosen[0].value) == (False, 5, 1)
    assert allocate([], 0).met


def test_the_hull_is_convex_and_falls() -> None:
    line = hull(
        [Choice(10, 0.0, 0), Choice(8, 5.0, 1), Choice(6, 1.0, 2), Choice(6, 0.9, 3), Choice(7, 9.0, 4)]
    )
    assert [one.value for one in line] == [0, 3]
    assert [one.value for one in hull([Choice(10, 1.0, 0), Choice(5, 1.0, 1)])] == [1]
