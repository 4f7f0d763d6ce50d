"""The closed-form solves against numpy on the data, brute force and the data themselves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.recover.feedback import output_error, round_with_feedback
from graphopt.recover.grouped import GroupedMoments
from graphopt.recover.lowrank import Weighed, decompose, energies
from graphopt.recover.moments import Moments
from graphopt.recover.selection import Problem, trajectory
from graphopt.recover.solve import refit_bias, refit_bias_groups, regularise, solve, solve_groups


def data(
    count: int = 400, rows: int = 12, targets: int = 5, seed: int = 0, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Correlated rows and noisy linear targets."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(rows, rows))
    x = np.maximum(generator.normal(size=(count, rows)) @ mixing + 0.5, 0.0)
    y = x @ generator.normal(size=(rows, targets)) + 2.0 + noise * generator.normal(size=(count, targets))
    return x, y


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    moments = Moments.empty(x.shape[1], y.shape[1])
    for start in range(0, len(x), 37):  # in uneven pieces
        moments.add(x[start : start + 37], y[start : start + 37])
    return moments


def zeros(m: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((m, d)), np.zeros(m)


def ridge_by_rows(
    x: np.ndarray, y: np.ndarray, penalty: float, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve with the ridge as extra rows, the bias free: what lstsq makes of the data themselves."""
    n, d = x.shape
    top = np.concatenate([x, np.ones((n, 1))], axis=1)
    bottom = np.concatenate([np.sqrt(penalty * n) * np.eye(d), np.zeros((d, 1))], axis=1)
    right = np.concatenate([y, np.sqrt(penalty * n) * prior.T])
    solution = np.linalg.lstsq(np.concatenate([top, bottom]), right)[0]
    return solution[:d].T, solution[d]


def test_solve_is_least_squares() -> None:
    x, y = data()
    weight, bias = ridge_by_rows(x, y, 0.0, np.zeros((5, 12)))
    got = solve(moments_of(x, y), *zeros(5, 12), stage="s", ridge=0.0)
    np.testing.assert_allclose(got.weight, weight, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got.bias, bias, rtol=1e-8)
    assert not got.notes


def test_the_ridge_pulls_towards_the_prior_and_spares_the_bias() -> None:
    x, y = data()
    prior = np.random.default_rng(1).normal(size=(5, 12))
    ridge = 0.2
    weight, bias = ridge_by_rows(x, y, ridge * np.trace(np.cov(x.T, bias=True)) / 12, prior)
    got = solve(moments_of(x, y), prior, np.zeros(5), stage="s", ridge=ridge)
    np.testing.assert_allclose(got.weight, weight, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(got.bias, bias, rtol=1e-8)


def test_solve_on_a_choice_of_columns() -> None:
    x, y = data()
    columns = np.array([0, 3, 4, 9])
    weight, bias = ridge_by_rows(x[:, columns], y, 0.0, np.zeros((5, 4)))
    got = solve(moments_of(x, y), *zeros(5, 12), stage="s", ridge=0.0, columns=columns)
    np.testing.assert_allclose(got.weight[:, columns], weight, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got.bias, bias, rtol=1e-8)
    assert not np.delete(got.weight, columns, axis=1).any()


def test_the_residual_is_that_of_the_data() -> None:
    x, y = data()
    generator = np.random.default_rng(2)
    weight, bias = generator.normal(size=(5, 12)), generator.normal(size=5)
    error = np.mean(np.sum((x @ weight.T + bias - y) ** 2, axis=1)) / np.sum(np.var(y, axis=0))
    moments = moments_of(x, y)
    assert moments.residual(weight, bias) == pytest.approx(error, rel=1e-9)
    got = solve(moments, weight, bias, stage="s", ridge=1e-6)
    after = np.mean(np.sum((x @ got.weight.T + got.bias - y) ** 2, axis=1)) / np.sum(np.var(y, axis=0))
    assert got.residual_before == pytest.approx(error, rel=1e-9)
    assert got.residual_after == pytest.approx(after, rel=1e-6)
    assert after < error


def test_moments_merge_by_addition() -> None:
    x, y = data()
    whole, part, rest = moments_of(x, y), moments_of(x[:100], y[:100]), moments_of(x[100:], y[100:])
    part.merge(rest)
    assert part.count == whole.count
    np.testing.assert_allclose(part.gram, whole.gram)
    np.testing.assert_allclose(part.covariance, np.cov(x.T, bias=True), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(part.energy, whole.energy)


def test_moments_of_a_gram_have_the_operators_own_outputs_as_targets() -> None:
    x, _ = data()
    weight, bias = np.random.default_rng(3).normal(size=(5, 12)), np.arange(5.0)
    extended = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    got = Moments.of_gram(len(x), extended.T @ extended, weight, bias)
    want = moments_of(x, x @ weight.T + bias)
    for name in ("rows_sum", "targets_sum", "gram", "cross", "energy"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-9)


def test_shapes_that_disagree_are_refused() -> None:
    moments = Moments.empty(3, 2)
    with pytest.raises(DataError, match="do not belong together"):
        moments.add(np.zeros((4, 3)), np.zeros((5, 2)))
    with pytest.raises(DataError, match="expected 3 and 2 columns"):
        moments.add(np.zeros((4, 2)), np.zeros((4, 2)))


def test_the_bias_alone() -> None:
    x, y = data()
    weight = np.random.default_rng(4).normal(size=(5, 12))
    got = refit_bias(moments_of(x, y), weight, np.zeros(5), stage="s")
    np.testing.assert_allclose(got.bias, np.mean(y - x @ weight.T, axis=0), rtol=1e-9)
    assert got.residual_after < got.residual_before


def test_a_bias_that_may_not_change_leaves_the_weights_where_samples_are_held_out_too() -> None:
    x, y = data()
    weight = np.random.default_rng(4).normal(size=(5, 12))
    moments = moments_of(x, y)
    moments.held = moments_of(x[::4], y[::4])
    got = refit_bias_groups([moments], weight, np.zeros(5), stage="s", free_bias=False)
    np.testing.assert_allclose(got.weight, weight, rtol=1e-9)
    left = np.square(y - x @ weight.T).mean(axis=0).sum() / y.var(axis=0).sum()
    assert got.residual_before == pytest.approx(left)
    assert got.residual_after == pytest.approx(left)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda x: x[:5], "s: 5 rows for 13 unknowns; the ridge rises from 0.001 to 5.1"),
        (lambda x: np.where(np.arange(12) < 6, x, x[:, 5:6]), None),  # equal columns: the ridge suffices
        # constants: nothing to learn but the bias
        (np.ones_like, "s: the activations are constant over 400 rows; the weights stay"),
        (np.zeros_like, "s: the activations are constant over 400 rows; the weights stay"),
        (lambda x: np.where(x > 0.5, np.nan, x), "s: activations are not finite; the weights stay"),
        (lambda x: x[:0], "s: no rows; the weights stay"),
        (lambda x: x * 1e200, "s: activations are not finite; the weights stay"),
    ],
)
def test_bad_data_give_a_note_and_an_answer(change: Any, note: str | None) -> None:
    x, y = data()
    x = change(x)
    y = y[: len(x)]
    prior = np.random.default_rng(5).normal(size=(5, 12))
    got = solve(moments_of(x, y), prior, np.zeros(5), stage="s")
    assert np.isfinite(got.weight).all()
    assert np.isfinite(got.bias).all()
    assert got.notes == (() if note is None else (note,))


def test_constant_rows_with_rounding_noise_move_the_bias_alone() -> None:
    # The covariance of such rows is what the sums have rounded off: its inverse would be a weight of 1e10.
    x = np.tile(0.1 + np.arange(12) / 3, (401, 1)) * (1 + 1e-16)
    y = np.tile(np.arange(5) / 7, (401, 1))
    prior = np.random.default_rng(5).normal(size=(5, 12))
    moments = moments_of(x, y)
    assert np.abs(moments.covariance).max() > 0
    got = solve(moments, prior, np.zeros(5), stage="s")
    np.testing.assert_array_equal(got.weight, prior)
    np.testing.assert_allclose(x @ got.weight.T + got.bias, y, atol=1e-9)


def test_notes_of_many_groups_are_one_sentence_and_a_number() -> None:
    x, y = data(rows=2, targets=1)
    moments = [moments_of(x, y), *(moments_of(np.ones_like(x), y) for _ in range(7))]
    got = solve_groups(moments, *zeros(8, 2), stage="s")
    assert got.notes == (
        "s, group 1: the activations are constant over 400 rows; the weights stay",
        "s: the activations are constant over 400 rows in 6 more of its 8 groups",
    )


def test_sums_that_overflow_merge_without_a_warning() -> None:
    x, y = data()
    one, two = moments_of(x * 1e160, y), moments_of(-x * 1e160, y * 1e160)
    one.merge(two)
    assert not one.is_finite
    assert not one.without(two).is_finite


def test_a_singular_gram_without_ridge_makes_it_rise() -> None:
    x, y = data()
    x[:, 3] = x[:, 4]
    got = solve(moments_of(x, y), *zeros(5, 12), stage="'conv'", ridge=0.0)
    assert "'conv': the Gram matrix is singular; the ridge rises from 0 to" in got.notes[0]
    assert got.ridge > 0
    top = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    fitted = top @ np.linalg.lstsq(top, y)[0]  # of least norm: the ranks of lstsq are its own affair
    exact = np.sum((fitted - y) ** 2) / np.sum((y - y.mean(axis=0)) ** 2)
    assert got.residual_after == pytest.approx(exact, rel=1e-3)


def test_few_rows_leave_few_effective_unknowns() -> None:
    x, _ = data(count=20)
    covariance = np.cov(x.T, bias=True)
    got = regularise(covariance, 20, 1e-3, "s")
    values = np.linalg.eigvalsh(covariance)
    assert np.sum(values / (values + got.penalty)) == pytest.approx(20 / 4, rel=1e-3)
    assert "20 rows for 13 unknowns" in got.notes[0]
    assert not regularise(covariance, 48, 1e-3, "s").notes
    # Rows that vary in one direction alone have one unknown, however long they are.
    thin = regularise(np.outer(covariance[0], covariance[0]), 8, 1e-3, "s")
    assert thin.ridge == 1e-3
    assert not thin.notes


def test_the_ridge_is_chosen_on_samples_that_are_held_out() -> None:
    generator = np.random.default_rng(3)
    truth = generator.normal(size=(3, 40))

    def drawn(samples: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a sample differ little, so that many rows hold few independent ones."""
        centres = generator.normal(size=(samples, 1, 40))
        rows = (centres + 0.05 * generator.normal(size=(samples, 32, 40))).reshape(-1, 40)
        offsets = np.repeat(noise * generator.normal(size=(samples, 1, 3)), 32, axis=1).reshape(-1, 3)
        return rows, rows @ truth.T + offsets

    def seen(samples: int, noise: float) -> Moments:
        moments, held = Moments.empty(40, 3), Moments.empty(40, 3)
        moments.add(*drawn(samples, noise))
        held.add(*drawn(samples // 3, noise))
        moments.merge(held)
        moments.held = held
        return moments

    prior = truth + 0.3 * generator.normal(size=truth.shape)
    fresh = Moments.empty(40, 3)
    fresh.add(*drawn(500, 0.0))
    poor = seen(30, 3.0)
    chosen = solve(poor, prior, np.zeros(3), stage="s", ridge=1e-4)
    poor.held = None
    fixed = solve(poor, prior, np.zeros(3), stage="s", ridge=1e-4)
    assert chosen.ridge > 10 * fixed.ridge
    assert fresh.residual(chosen.weight, chosen.bias) < 0.5 * fresh.residual(fixed.weight, fixed.bias)
    rich = seen(600, 0.0)
    found = solve(rich, prior, np.zeros(3), stage="s", ridge=1e-6)
    np.testing.assert_allclose(found.weight, truth, atol=1e-3)


def test_weights_that_no_fit_betters_on_held_samples_stay() -> None:
    """Targets are the weights' own outputs and noise: whatever is fitted to that is wrong elsewhere."""
    generator = np.random.default_rng(4)
    truth, bias = generator.normal(size=(3, 20)), generator.normal(size=3)

    def drawn(count: int) -> Moments:
        rows = generator.normal(size=(count, 20))
        return moments_of(rows, rows @ truth.T + bias + 5 * generator.normal(size=(count, 3)))

    moments, moments_held = drawn(30), drawn(2000)
    moments.merge(moments_held)
    moments.held = moments_held
    got = solve(moments, truth, bias, stage="s")
    assert np.array_equal(got.weight, truth)
    assert np.array_equal(got.bias, bias)
    assert got.residual_after == got.residual_before
    assert not np.array_equal(solve(moments, 2 * truth, bias, stage="s").weight, 2 * truth)


def grouped_data(
    groups: int, count: int = 300, rows: int = 6, targets: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and targets of groups side by side; their means are far from zero."""
    parts = [data(count, rows, targets, seed=seed + group) for group in range(groups)]
    x, y = (np.concatenate(side, axis=1) for side in zip(*parts, strict=True))
    return (x + 100.0).astype(np.float32), y.astype(np.float32)


def parts_of(array: np.ndarray, groups: int) -> list[np.ndarray]:
    return np.split(array, groups, axis=1)


def test_groups_taken_together_are_those_taken_one_by_one() -> None:
    x, y = grouped_data(5)
    together = GroupedMoments(5, 6, 2)
    for start in range(0, len(x), 37):
        together.add(x[start : start + 37], y[start : start + 37])
    for one, rows, targets in zip(together.each, parts_of(x, 5), parts_of(y, 5), strict=True):
        wide, wanted = rows.astype(np.float64), targets.astype(np.float64)
        assert one.count == len(x)
        np.testing.assert_allclose(one.covariance, np.cov(wide.T, bias=True), rtol=1e-4, atol=1e-4)
        cross = (wide - wide.mean(0)).T @ (wanted - wanted.mean(0)) / len(x)
        np.testing.assert_allclose(one.cross_covariance, cross, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(one.energy, (wanted**2).sum(0), rtol=1e-6)
        np.testing.assert_allclose(one.gram, wide.T @ wide, rtol=1e-6)
    with pytest.raises(DataError, match=r"expected as many of each, with 30 and 10 columns"):
        together.add(x, y[:, :4])


@pytest.mark.parametrize("hold_out", [False, True])
@pytest.mark.parametrize("free_bias", [False, True])
def test_many_groups_are_solved_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, *, hold_out: bool, free_bias: bool
) -> None:
    """One group is constant, one not finite, one has two equal columns; those that are special come alone."""
    groups = 9
    x, y = grouped_data(groups)
    x[:, 6:12] = 3.0
    x[0, 12] = np.inf
    x[:, 19] = x[:, 18]
    generator = np.random.default_rng(3)
    prior, bias = generator.normal(size=(2 * groups, 6)), generator.normal(size=2 * groups)
    moments = [moments_of(*each) for each in zip(parts_of(x, groups), parts_of(y, groups), strict=True)]
    if hold_out:
        for one, rows, targets in zip(moments, parts_of(x, groups), parts_of(y, groups), strict=True):
            one.held = moments_of(rows[::4], targets[::4])
    options: dict[str, Any] = {"stage": "s", "ridge": 1e-14}
    alone_there: list[str] = []

    def spied(*arguments: Any, stage: str, **others: Any) -> Any:
        alone_there.append(stage)
        return solve(*arguments, stage=stage, **others)

    monkeypatch.setattr("graphopt.recover.solve.solve", spied)
    found = solve_groups(moments, prior, bias, free_bias=free_bias, **options)
    # Held samples ask for a ridge that makes up for equal columns; without a mean a constant is all equal.
    singular = set() if hold_out else {1, 3}
    constant = {1} if free_bias else set()
    assert set(alone_there) == {f"s, group {group}" for group in {2} | singular | constant}
    weights, biases = [], []
    for group, one in enumerate(moments):
        part = slice(2 * group, 2 * group + 2)
        seen = one if free_bias else one.uncentred(bias[part])
        alone = solve(seen, prior[part], bias[part] if free_bias else np.zeros(2), **options)
        weights.append(alone.weight)
        biases.append(alone.bias if free_bias else bias[part])
    np.testing.assert_allclose(found.weight, np.concatenate(weights), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.bias, np.concatenate(biases), rtol=1e-6, atol=1e-6)
    assert "s, group 2: activations are not finite; the weights stay" in found.notes


def test_an_indefinite_covariance_is_made_definite() -> None:
    got = regularise(np.diag([1.0, -5.0, 2.0]), 100, 1e-3, "s")
    assert np.min(np.linalg.eigvalsh(got.matrix)) > 0
    assert got.notes


# --- selection ------------------------------------------------------------

BLOCKS = [np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([6, 7, 8]), np.array([9, 10, 11])]


def objective(x: np.ndarray, y: np.ndarray, gone: tuple[int, ...], ridge: float) -> float:
    """Minimum of the ridge objective with the units *gone*, over the variance of the targets; by rows."""
    penalty = ridge * np.trace(np.cov(x.T, bias=True)) / x.shape[1]
    kept = np.concatenate([BLOCKS[u] for u in range(4) if u not in gone])
    weight, bias = ridge_by_rows(x[:, kept], y, penalty, np.zeros((y.shape[1], len(kept))))
    error = np.mean(np.sum((x[:, kept] @ weight.T + bias - y) ** 2, axis=1)) + penalty * np.sum(weight**2)
    return float(error / np.sum(np.var(y, axis=0)))


def test_the_cost_of_a_unit_is_what_its_removal_adds_to_the_minimum() -> None:
    x, y = data()
    base = objective(x, y, (), 0.01)
    problem = Problem(moments_of(x, y), BLOCKS, stage="s", ridge=0.01)
    expected = [objective(x, y, (unit,), 0.01) - base for unit in range(4)]
    np.testing.assert_allclose(problem.costs(range(4)), expected, rtol=1e-6)
    problem.remove(2)
    after = objective(x, y, (2,), 0.01)
    expected = [objective(x, y, (2, unit), 0.01) - after for unit in (0, 1, 3)]
    np.testing.assert_allclose(problem.costs([0, 1, 3]), expected, rtol=1e-6)


def test_the_trajectory_is_greedy_and_its_losses_add_up() -> None:
    x, y = data(seed=7)
    got = trajectory([Problem(moments_of(x, y), BLOCKS, stage="s", ridge=0.01)], 4)
    gone: tuple[int, ...] = ()
    for step in range(3):
        costs = {u: objective(x, y, (*gone, u), 0.01) for u in range(4) if u not in gone}
        best = min(costs, key=costs.__getitem__)
        assert got.order[step] == best
        gone = (*gone, best)
        assert got.losses[step + 1] == pytest.approx(costs[best] - objective(x, y, (), 0.01), rel=1e-6)
    assert got.kept(2, 4) == tuple(sorted(set(range(4)) - set(got.order[:2])))


def test_units_may_share_columns() -> None:
    x, y = data()
    blocks = [np.arange(0, 5), np.arange(3, 8), np.arange(6, 12)]
    problem = Problem(moments_of(x, y), blocks, stage="s", ridge=0.01)
    penalty = 0.01 * np.trace(np.cov(x.T, bias=True)) / x.shape[1]

    def minimum(kept: np.ndarray) -> float:
        weight, bias = ridge_by_rows(x[:, kept], y, penalty, np.zeros((y.shape[1], len(kept))))
        error = np.mean(np.sum((x[:, kept] @ weight.T + bias - y) ** 2, axis=1)) + penalty * np.sum(weight**2)
        return float(error / np.sum(np.var(y, axis=0)))

    problem.remove(0)
    costs = [
        minimum(np.arange(8, 12)) - minimum(np.arange(5, 12)),
        minimum(np.array([5])) - minimum(np.arange(5, 12)),
    ]
    np.testing.assert_allclose(problem.costs([1, 2]), costs, rtol=1e-6)


def test_it_knows_what_the_others_can_make_up_for() -> None:
    # Two copies of one unit with large weights, and an independent one with small weights: magnitude would
    # drop the small one, but a copy costs nothing.
    generator = np.random.default_rng(0)
    x = generator.normal(size=(500, 3))
    x[:, 1] = x[:, 0]
    y = x @ np.array([[3.0], [3.0], [1.0]])
    blocks = [np.array([i]) for i in range(3)]
    got = trajectory([Problem(moments_of(x, y), blocks, stage="s", ridge=1e-6)], 3)
    assert got.order[0] in {0, 1}
    assert got.losses[1] < 1e-4
    assert got.order[1] == 2


def test_costs_of_several_consumers_are_added() -> None:
    x, y = data()
    other, target = data(seed=9)

    variance = float(np.sum(np.var(target, axis=0)))

    def problems() -> list[Problem]:
        return [
            Problem(moments_of(x, y), BLOCKS, stage="a", ridge=0.01),
            Problem(moments_of(other, target), BLOCKS[::-1], stage="b", ridge=0.01, scale=2 / variance),
        ]

    one, two = problems()
    summed = one.costs(range(4)) + two.costs(range(4))
    assert trajectory(problems(), 4).order[0] == int(np.argmin(summed))
    plain = Problem(moments_of(other, target), BLOCKS[::-1], stage="b", ridge=0.01)
    np.testing.assert_allclose(two.costs(range(4)), 2 * plain.costs(range(4)))


def test_units_of_different_width_and_units_nobody_reads() -> None:
    x, y = data()
    blocks = [np.arange(5), np.arange(5, 6), np.arange(6, 12), np.array([], np.int64)]
    got = trajectory([Problem(moments_of(x, y), blocks, stage="s")], 4)
    assert got.order[0] == 3
    assert got.losses[1] == 0.0


def test_selection_without_data_says_so() -> None:
    x, y = data()
    got = trajectory([Problem(moments_of(x * np.nan, y), BLOCKS, stage="'fc'")], 4, removals=2)
    assert got.notes == ("'fc': no finite activations; it has no say in what goes",)
    assert len(got.order) == 2
    constant = trajectory([Problem(moments_of(np.ones_like(x), np.ones_like(y)), BLOCKS, stage="s")], 4)
    assert constant.losses == (0.0, 0.0, 0.0, 0.0)


# --- rounding with error feedback ------------------------------------------------------------


def grid(step: float) -> Any:
    return lambda values, _: np.round(values / step) * step


def second_moment(x: np.ndarray) -> np.ndarray:
    moment: np.ndarray = x.T @ x / len(x)
    return moment


def test_feedback_beats_nearest_and_stays_on_the_grid() -> None:
    x, _ = data(rows=80, count=2000)
    weight = np.random.default_rng(1).normal(size=(16, 80))
    got = round_with_feedback(weight, second_moment(x), len(x), grid(0.25), stage="s")
    np.testing.assert_allclose(got.weight / 0.25, np.round(got.weight / 0.25), atol=1e-9)
    nearest = np.round(weight / 0.25) * 0.25
    by_rows = [
        np.mean((x @ (w - weight).T) ** 2) / np.mean((x @ weight.T) ** 2) for w in (got.weight, nearest)
    ]
    assert got.error == pytest.approx(by_rows[0], rel=1e-9)
    assert got.error_nearest == pytest.approx(by_rows[1], rel=1e-9)
    assert by_rows[0] < 0.6 * by_rows[1]


def test_feedback_follows_the_definition_column_by_column() -> None:
    # The textbook form: round a column, solve for all later ones anew on what is left.
    x, _ = data(rows=6, count=300)
    weight = np.random.default_rng(2).normal(size=(3, 6))
    moment = second_moment(x)
    damped = moment + 0.01 * np.trace(moment) / 6 * np.eye(6)
    current = weight.copy()
    for column in range(6):
        rounded = np.round(current[:, column] / 0.5) * 0.5
        change = rounded - current[:, column]
        current[:, column] = rounded
        later = np.arange(column + 1, 6)
        if later.size:
            # minimise over the later columns: |change x_c + delta x_later|^2
            current[:, later] -= np.outer(
                change, np.linalg.solve(damped[np.ix_(later, later)], damped[later, column])
            )
    got = round_with_feedback(weight, moment, 300, grid(0.5), stage="s")
    np.testing.assert_allclose(got.weight, current, atol=1e-9)


def test_small_cases_come_near_the_best_of_all_roundings() -> None:
    x, _ = data(rows=5, count=200, seed=3)
    weight = np.random.default_rng(3).uniform(-1, 1, size=(1, 5))
    moment = second_moment(x)
    floor = np.floor(weight[0] / 0.5)
    best = min(
        output_error((floor + np.array(up)) * 0.5 - weight, weight, moment)
        for up in itertools.product((0, 1), repeat=5)
    )
    got = round_with_feedback(weight, moment, 200, grid(0.5), stage="s")
    assert got.error_nearest is not None
    assert best <= got.error * (1 + 1e-9) or got.error < best  # feedback may leave the two neighbours
    assert got.error <= got.error_nearest


@pytest.mark.parametrize("group", [16, 24, 100])
def test_groups_see_what_the_feedback_made_of_them(group: int) -> None:
    x, _ = data(rows=150, count=3000)
    weight = np.random.default_rng(4).normal(size=(4, 150))
    moment = second_moment(x)
    scales: dict[int, np.ndarray] = {}
    seen: dict[int, np.ndarray] = {}

    def begin(values: np.ndarray, start: int) -> None:
        seen[start] = values.copy()
        scales[start // group] = np.abs(values).max(axis=1) / 7

    def to_grid(values: np.ndarray, column: int) -> np.ndarray:
        scale = scales[column // group]
        rounded: np.ndarray = np.clip(np.round(values / scale), -7, 7) * scale
        return rounded

    got = round_with_feedback(weight, moment, 3000, to_grid, stage="s", group=group, begin_group=begin)
    assert sorted(seen) == list(range(0, 150, group))
    assert got.error_nearest is None
    # What a group was shown is what the solve on the data would make of it, given the columns before.
    damped = moment + 0.01 * np.trace(moment) / 150 * np.eye(150)
    for start, values in seen.items():
        if start:
            later = np.arange(start, 150)
            change = got.weight[:, :start] - weight[:, :start]
            shift = (
                -np.linalg.solve(damped[np.ix_(later, later)], damped[np.ix_(later, np.arange(start))])
                @ change.T
            )
            np.testing.assert_allclose(values, (weight[:, later] + shift.T)[:, : values.shape[1]], atol=1e-8)


def test_feedback_without_data_is_rounding_to_nearest() -> None:
    weight = np.random.default_rng(5).normal(size=(3, 6))
    got = round_with_feedback(weight, np.full((6, 6), np.nan), 10, grid(0.5), stage="'m'")
    np.testing.assert_array_equal(got.weight, np.round(weight / 0.5) * 0.5)
    assert got.notes == ("'m': no finite activations; rounded without feedback",)
    singular = round_with_feedback(weight, np.ones((6, 6)), 100, grid(0.5), stage="s", damping=0.0)
    assert np.isfinite(singular.weight).all()
    assert "singular" in singular.notes[0]


# --- low rank ------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
@pytest.mark.parametrize("white", [False, True])
def test_full_rank_is_exact(shape: tuple[int, int], white: bool) -> None:
    weight = np.random.default_rng(0).normal(size=shape)
    x, _ = data(rows=shape[1])
    covariance = np.cov(x.T, bias=True) if white else None
    outer, inner = decompose(weight, covariance, count=len(x)).cut(min(shape))
    np.testing.assert_allclose(outer @ inner, weight, atol=1e-10)
    assert energies(Weighed(weight, covariance, count=len(x)).gram()).loss(min(shape)) == 0.0


def test_plain_low_rank_is_the_truncated_svd() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 15))
    outer, inner = decompose(weight).cut(3)
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    np.testing.assert_allclose(outer @ inner, (u[:, :3] * s[:3]) @ v[:3], atol=1e-10)
    for given in (weight, weight.T):
        got = energies(Weighed(given).gram())
        np.testing.assert_allclose(got.squares, s**2, rtol=1e-10)
        assert got.loss(3) == pytest.approx(1 - np.sum(s[:3] ** 2) / np.sum(s**2))


def test_whitened_low_rank_is_optimal_for_the_outputs() -> None:
    # Eckart and Young on the outputs themselves: no other rank-r map can come nearer to them.
    x, _ = data(rows=15, count=600)
    weight = np.random.default_rng(2).normal(size=(8, 15))
    centred = x - x.mean(axis=0)
    seen = weight, np.cov(x.T, bias=True)
    spectrum = decompose(*seen, count=len(x), ridge=1e-9)
    loss = energies(Weighed(*seen, count=len(x), ridge=1e-9).gram()).loss
    values = np.linalg.svd(centred @ weight.T, compute_uv=False)
    for rank in (1, 3, 6):
        outer, inner = spectrum.cut(rank)
        error = np.sum((centred @ (outer @ inner - weight).T) ** 2)
        assert error == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-5)
        assert loss(rank) == pytest.approx(np.sum(values[rank:] ** 2) / np.sum(values**2), rel=1e-5)
        plain = decompose(weight).cut(rank)
        assert error < np.sum((centred @ (plain[0] @ plain[1] - weight).T) ** 2)


def test_the_rank_for_an_energy() -> None:
    weight = np.diag([4.0, 2.0, 1.0, 0.0])
    got = energies(Weighed(weight).gram())
    assert [got.rank_for(energy) for energy in (0.5, 16 / 21, 0.9, 20 / 21, 0.99, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert energies(np.zeros((3, 3))).rank_for(1.0) == 1
    assert energies(np.full((3, 3), np.inf)).rank_for(0.9) == 3


def test_the_randomised_form_finds_the_leading_values(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.recover import lowrank

    generator = np.random.default_rng(3)
    left, _ = np.linalg.qr(generator.normal(size=(120, 120)))
    right, _ = np.linalg.qr(generator.normal(size=(150, 120)))
    weight = (left * 0.8 ** np.arange(120)) @ right.T
    monkeypatch.setattr(lowrank, "EXACT_LIMIT", 64)
    got = decompose(weight, largest_rank=10)
    assert len(got.values) == 10
    np.testing.assert_allclose(got.values, 0.8 ** np.arange(10), rtol=1e-6)
    outer, inner = got.cut(10)
    exact = np.sum(0.8 ** (2 * np.arange(10, 120)))
    assert np.sum((outer @ inner - weight) ** 2) == pytest.approx(exact, rel=1e-3)
    again = decompose(weight, largest_rank=10)
    np.testing.assert_array_equal(got.inner, again.inner)


@pytest.mark.parametrize("rank", [16, 80])
def test_where_nothing_stands_out_the_randomised_form_loses_a_hundredth_more(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    from graphopt.recover import lowrank

    weight = np.random.default_rng(5).normal(size=(500, 420))
    best = np.sum(np.linalg.svd(weight, compute_uv=False)[rank:] ** 2)
    monkeypatch.setattr(lowrank, "EXACT_LIMIT", 64)
    got = decompose(weight, largest_rank=rank)
    assert len(got.values) == rank
    outer, inner = got.cut(rank)
    assert best < np.sum((outer @ inner - weight) ** 2) < 1.01 * best


@pytest.mark.parametrize("shape", [(90, 110), (110, 90)])
@pytest.mark.parametrize("white", [False, True])
def test_large_weights_are_cut_as_small_ones_are(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], white: bool
) -> None:
    from graphopt.recover import lowrank

    generator = np.random.default_rng(6)
    weight = generator.normal(size=shape)
    covariance = np.cov(generator.normal(size=(shape[1], 2000)) * 5) if white else None
    small = decompose(weight, covariance, count=2000)
    monkeypatch.setattr(lowrank, "EXACT_LIMIT", 64)
    large = decompose(weight, covariance, count=2000)
    np.testing.assert_allclose(large.values, small.values, rtol=1e-9)
    for rank in (1, 40, 90):
        one, two = (outer @ inner for outer, inner in (small.cut(rank), large.cut(rank)))
        np.testing.assert_allclose(one, two, atol=1e-9)
    found = Weighed(weight, covariance, count=2000).directions()[:, :40]
    np.testing.assert_allclose(found @ found.T @ small.outer[:, :40], small.outer[:, :40], atol=1e-9)


def test_low_rank_with_bad_covariances() -> None:
    weight = np.random.default_rng(4).normal(size=(6, 8))
    plain = decompose(weight)
    got = decompose(weight, np.full((8, 8), np.inf), count=10, stage="'fc'")
    assert got.notes == ("'fc': activations are not finite; plain SVD instead",)
    np.testing.assert_allclose(got.values, plain.values)
    for covariance in (np.zeros((8, 8)), np.ones((8, 8))):
        singular = decompose(weight, covariance, count=100, stage="s")
        outer, inner = singular.cut(6)
        np.testing.assert_allclose(outer @ inner, weight, atol=1e-8)


@pytest.mark.parametrize("size", [0.0, 1e-28, 1.0, 1e20])
def test_factors_are_of_one_size_whatever_unit_the_metric_has(size: float) -> None:
    weight = np.random.default_rng(4).normal(size=(6, 8))
    metric = np.diag(np.arange(1.0, 7.0)) * size
    got = decompose(weight, metric=metric)
    outer, inner = got.cut(4)
    # In float32, which models compute in, a factor of 1e15 and one of 1e-15 are no weight any more.
    assert np.abs(outer).max() < 10
    assert np.abs(inner).max() < 100
    if size:
        unit = decompose(weight, metric=metric / size)
        np.testing.assert_allclose(outer @ inner, np.matmul(*unit.cut(4)), atol=1e-9)
        total = energies(Weighed(weight, metric=metric).gram()).total
        assert total == pytest.approx(np.trace(metric @ weight @ weight.T))
        np.testing.assert_allclose(got.values, unit.values * np.sqrt(size))


def test_small_variance_far_from_zero_survives_float32() -> None:
    x, y = data()
    far = (x * 0.01 + 1000).astype(np.float32)
    got = moments_of(far, y.astype(np.float32)).covariance
    np.testing.assert_allclose(got, np.cov(far.astype(np.float64).T, bias=True), rtol=1e-3, atol=1e-7)
