"""Ridge least squares that always has an answer: the weights that make up best for what was lost.

With rows x, targets y, a weight W and a bias b the objective is

    mean |W x + b - y|^2 + ridge * scale * |W - prior|^2,

``scale`` being the mean variance of a column, so that ``ridge`` has no unit. The bias is free. Centred, the
minimum is ``W - prior = (cov(x) + ridge * scale)^-1 (cov(x, y) - cov(x) prior)``.

Rows of one sample are alike, so their number says little about how much may be fitted to them. Where moments
come with a part that is held out, by samples, the ridge is the one whose fit to the others predicts it best;
where none predicts it better than the weights do as they are, they stay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.recover.grouped import LARGEST, Stacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from graphopt.recover.moments import Matrix, Moments

    Indices = npt.NDArray[np.int64]

RIDGE = 1e-3
"""Default ridge (design/recovery.md; benchmarks/recovery.py)."""

ROWS_PER_UNKNOWN = 4
"""Rows that each effective unknown should have (mobilenetv2's classifier reads 1,280 features of 200 images:
with one row an unknown every choice of 271 of them fits the samples; benchmarks/recovery.py)."""

MANY_GROUPS = 32
"""Convolutions of more groups than this (depthwise ones) keep their weights in the first walk behind a cut.

The solves are cheap, but serve little: mobilenetv2 at 0.8 of its MACs keeps 74.8 % with them and 76.8 %
without; with ridge=auto 79.4 and 78.4; with a second sweep too 82.25 either way, at 14.9 and 17.6 dB of
agreement with the original (benchmarks/recovery.py mobilenetv2-80-obs-ls, -auto and -sweeps, 800 images)."""

_HIGHEST_RIDGE = 1e3
_LOWEST_RIDGE = 1e-5  # that is tried on held samples
_RIDGE_STEP = 10**0.5
_LEAST_SCALE = 1e-30
_LEAST_PIVOT = 1e-6  # of the largest


@dataclass(frozen=True, slots=True)
class Solution:
    """What came out of one solve.

    Attributes:
        weight: [m, d].
        bias: [m].
        residual_before: Relative mean squared error of the prior weight and bias.
        residual_after: The same of the result.
        ridge: The ridge that was needed; at least the one asked for.
        notes: One sentence for everything that was not as it should be.
    """

    weight: Matrix
    bias: Matrix
    residual_before: float
    residual_after: float
    ridge: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Regular:
    """A covariance made safe to invert.

    Attributes:
        matrix: [d, d] covariance with the ridge on its diagonal; positive definite.
        ridge: The relative ridge that this took.
        penalty: The ridge in the units of the covariance.
        notes: Why it is more than what was asked for.
    """

    matrix: Matrix
    ridge: float
    penalty: float
    notes: tuple[str, ...] = ()


def regularise(covariance: Matrix, count: int, ridge: float, stage: str) -> Regular:
    """Add a ridge to *covariance* that makes it positive definite.

    Args:
        covariance: [d, d], finite.
        count: Rows that it was measured on. The ridge rises until they are :data:`ROWS_PER_UNKNOWN` times the
            effective number of unknowns, ``sum(s / (s + ridge * scale))`` over the eigenvalues s: with fewer
            the solution fits what is special about the samples.
        ridge: What is added at least, times the mean variance of a column.
        stage: How notes name the place.
    """
    size = covariance.shape[0]
    notes = []
    symmetric = (covariance + covariance.T) / 2
    scale = max(float(np.trace(symmetric)) / max(size, 1), _LEAST_SCALE)
    if count < ROWS_PER_UNKNOWN * size:
        risen = _ridge_for(symmetric, scale, max(count, 1) / ROWS_PER_UNKNOWN, ridge)
        if f"{risen:.3g}" != f"{ridge:.3g}":  # few rows may still be enough for the few directions that vary
            unknowns = f"{count} rows for {size + 1} unknowns"
            notes.append(f"{stage}: {unknowns}; the ridge rises from {ridge:.3g} to {risen:.3g}")
        ridge = risen
    asked = ridge
    while True:
        penalty = ridge * scale
        matrix = symmetric + penalty * np.eye(size)
        if _is_positive_definite(matrix):
            break
        if ridge >= _HIGHEST_RIDGE:
            # Nothing of the covariance is to be trusted: only its scale is kept.
            matrix = scale * (1 + ridge) * np.eye(size)
            break
        ridge = max(10 * ridge, 1e-9)
    if ridge > asked:
        notes.append(f"{stage}: the Gram matrix is singular; the ridge rises from {asked:.3g} to {ridge:.3g}")
    return Regular(matrix, ridge, penalty, tuple(notes))


def _ridge_for(symmetric: Matrix, scale: float, unknowns: float, least: float) -> float:
    """Return the smallest ridge, *least* at least, that leaves that many effective unknowns."""
    try:
        values = np.maximum(np.linalg.eigvalsh(symmetric), 0.0) / scale
    except np.linalg.LinAlgError:
        return max(least, 1.0)

    def left(ridge: float) -> float:
        return float(np.sum(values / (values + ridge)))

    low, high = max(least, 1e-9), _HIGHEST_RIDGE
    if left(low) <= unknowns:
        return low if least > 0 else least
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if left(middle) > unknowns else (low, middle)
    return high


def _is_positive_definite(matrix: Matrix) -> bool:
    try:
        lower = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    diagonal: Matrix = np.diag(lower)
    # What Cholesky accepts with pivots at the rounding error of the largest has no digits left to solve with.
    return bool(diagonal.size == 0 or np.min(diagonal) > _LEAST_PIVOT * np.max(diagonal))


def solve(
    moments: Moments,
    prior_weight: Matrix,
    prior_bias: Matrix,
    *,
    stage: str,
    ridge: float = RIDGE,
    columns: Indices | None = None,
) -> Solution:
    """Return the weight and bias that map rows to targets best.

    Args:
        moments: Rows of the model as it is now, and the targets that it should hit.
        prior_weight: [m, d] what the ridge pulls towards: the weight as it was.
        prior_bias: [m] bias as it was.
        stage: How notes name the place.
        ridge: See the module; without meaning where samples are held out.
        columns: Indices of the columns that may be used, ascending; the others get the weight zero. All by
            default.

    Returns:
        A solution in any case: where data are missing or not finite it is the prior, with a note.
    """
    weight = prior_weight.astype(np.float64)
    if columns is not None:
        mask = np.zeros(moments.columns, bool)
        mask[columns] = True
        weight = np.where(mask, weight, 0.0)
    if not moments.is_finite:
        note = f"{stage}: activations are not finite; the weights stay"
        return Solution(weight, prior_bias, float("nan"), float("nan"), ridge, (note,))
    before = moments.residual(weight, prior_bias)
    if moments.count == 0:
        return Solution(weight, prior_bias, before, before, ridge, (f"{stage}: no rows; the weights stay",))
    if moments.is_constant:
        bias = moments.best_bias(weight)
        note = f"{stage}: the activations are constant over {moments.count} rows; the weights stay"
        return Solution(weight, bias, before, moments.residual(weight, bias), ridge, (note,))
    chosen = np.arange(moments.columns) if columns is None else np.asarray(columns)
    covariance = moments.covariance
    if moments.held is not None:
        ridge, error = _ridge_on_held(moments, moments.held, weight, chosen)
        if not error < moments.held.residual(weight, prior_bias):
            return Solution(weight, prior_bias, before, before, ridge)
    regular = regularise(covariance[np.ix_(chosen, chosen)], moments.count, ridge, stage)
    wanted = moments.cross_covariance[chosen] - covariance[np.ix_(chosen, chosen)] @ weight[:, chosen].T
    notes = regular.notes
    with np.errstate(all="ignore"):
        delta = np.linalg.solve(regular.matrix, wanted).T
    if not np.isfinite(delta).all():
        delta = np.zeros_like(delta)
        notes = (*notes, f"{stage}: the solve gave non-finite weights; they stay")
    result = weight.copy()
    result[:, chosen] += delta
    bias = moments.best_bias(result)
    return Solution(result, bias, before, moments.residual(result, bias), regular.ridge, notes)


def _ridge_on_held(moments: Moments, held: Moments, weight: Matrix, chosen: Indices) -> tuple[float, float]:
    """Return the ridge whose fit to the other samples predicts the held ones best, and its residual there."""
    rest = moments.without(held)
    covariance = rest.covariance[np.ix_(chosen, chosen)]
    covariance = (covariance + covariance.T) / 2
    wanted = rest.cross_covariance[chosen] - covariance @ weight[:, chosen].T
    scale = max(float(np.trace(covariance)) / max(len(chosen), 1), _LEAST_SCALE)
    best, found = _LOWEST_RIDGE, float("inf")
    ridge = _LOWEST_RIDGE
    while ridge <= _HIGHEST_RIDGE:
        try:
            delta = np.linalg.solve(covariance + ridge * scale * np.eye(len(chosen)), wanted).T
        except np.linalg.LinAlgError:
            delta = np.full_like(weight[:, chosen], np.nan)
        tried = weight.copy()
        tried[:, chosen] += delta
        error = held.residual(tried, rest.best_bias(tried)) if np.isfinite(delta).all() else float("inf")
        # Well beyond the best one the error only rises.
        if 1.02 * found < error < float("inf"):
            break
        if error < found:
            best, found = ridge, error
        ridge *= _RIDGE_STEP
    return best, found


def solve_groups(
    moments: Sequence[Moments],
    prior_weight: Matrix,
    prior_bias: Matrix,
    *,
    stage: str,
    ridge: float = RIDGE,
    columns: Sequence[Indices] | None = None,
    free_bias: bool = True,
) -> Solution:
    """Solve for each group of a grouped convolution, or for the one group of any other operator.

    Args:
        moments: One for each group.
        prior_weight: [m, d] with the groups one below the other.
        prior_bias: [m].
        stage: How notes name the place.
        ridge: See the module.
        columns: For each group, the columns that may be used; all by default.
        free_bias: Whether the bias may change; the result has the prior one otherwise.
    """
    step = len(prior_weight) // len(moments)
    parts = [slice(group * step, (group + 1) * step) for group in range(len(moments))]
    seen = moments
    if not free_bias:
        seen = [each.uncentred(prior_bias[part]) for each, part in zip(moments, parts, strict=True)]
    priors = [prior_bias[part] if free_bias else np.zeros(step) for part in parts]
    together = _solve_together(seen, prior_weight, np.stack(priors), ridge) if columns is None else {}
    solutions = [
        together.get(group)
        or solve(
            each,
            prior_weight[parts[group]],
            priors[group],
            stage=stage if len(moments) == 1 else f"{stage}, group {group}",
            ridge=ridge,
            columns=None if columns is None else columns[group],
        )
        for group, each in enumerate(seen)
    ]
    if len(solutions) == 1 and free_bias:
        return solutions[0]
    if not free_bias:
        solutions = [over_variance(*each) for each in zip(solutions, seen, moments, strict=True)]
    return Solution(
        np.concatenate([one.weight for one in solutions]),
        np.concatenate([one.bias for one in solutions]) if free_bias else prior_bias,
        _of_all([one.residual_before for one in solutions], moments),
        _of_all([one.residual_after for one in solutions], moments),
        max(one.ridge for one in solutions),
        _of_groups([one.notes for one in solutions], stage),
    )


def over_variance(solution: Solution, seen: Moments, moments: Moments) -> Solution:
    """Return *solution* with residuals over the variance of the targets, where their bias is fixed.

    Args:
        solution: That of *seen*.
        seen: The uncentred form of *moments*, whose residuals are over a mean square.
        moments: Those with the targets as they are.
    """
    variance = moments.target_variance
    if not variance > 0.0:
        return solution
    unit = seen.target_variance / variance
    return replace(
        solution,
        residual_before=solution.residual_before * unit,
        residual_after=solution.residual_after * unit,
    )


def _of_all(residuals: Sequence[float], moments: Sequence[Moments]) -> float:
    """Return the residual of all groups: that of each counts by the variance of its targets."""
    shares = np.array([one.target_variance if one.is_finite else 0.0 for one in moments])
    counted = shares > 0
    if not counted.any():
        return float(np.mean(residuals))
    return float(np.average(np.asarray(residuals)[counted], weights=shares[counted]))


def _solve_together(
    moments: Sequence[Moments], prior_weight: Matrix, prior_bias: Matrix, ridge: float
) -> dict[int, Solution]:
    """Return what :func:`solve` gives for the groups in which nothing is out of the ordinary, all at once.

    Groups with too few rows, constant ones, numbers that are not finite or singular moments are left out.

    Args:
        moments: One for each group.
        prior_weight: [g * m, d].
        prior_bias: [g, m].
        ridge: As for :func:`solve`.
    """
    groups, size = len(moments), prior_weight.shape[1]
    if groups == 1 or size > LARGEST or len({each.held is None for each in moments}) > 1:
        return {}
    every = Stacked.of(moments)
    usual = every.is_finite & (every.count >= ROWS_PER_UNKNOWN * size)
    usual &= ~np.array([each.is_constant for each in moments])
    numbers = np.flatnonzero(usual).tolist()
    if not numbers:
        return {}
    seen = every.of_groups(usual)
    weight = prior_weight.astype(np.float64).reshape(groups, -1, size)[usual]
    bias = prior_bias[usual]
    ridges = np.full(len(numbers), ridge)
    moves = np.ones(len(numbers), bool)
    held = [moments[number].held for number in numbers]
    if held[0] is not None:
        aside = Stacked.of([each for each in held if each is not None])
        ridges, errors = _ridges_on_held(seen.without(aside), aside, weight)
        moves = errors < aside.residual(weight, bias)
    covariance = seen.covariance
    matrix, scale = _symmetric(covariance)
    matrix = matrix + (ridges * scale)[:, None, None] * np.eye(size)
    delta = _deltas(matrix, seen.cross_covariance - covariance @ weight.transpose(0, 2, 1))
    sound = _are_positive_definite(matrix) & np.isfinite(delta).all(axis=(1, 2))
    before = seen.residual(weight, bias)
    result = np.where(moves[:, None, None], weight + delta, weight)
    best = np.where(moves[:, None], seen.best_bias(result), bias)
    after = seen.residual(result, best)
    return {
        number: Solution(
            result[place], best[place], float(before[place]), float(after[place]), float(ridges[place])
        )
        for place, number in enumerate(numbers)
        if sound[place] or not moves[place]
    }


def _are_positive_definite(matrices: Matrix) -> npt.NDArray[np.bool_]:
    """Return what :func:`_is_positive_definite` says of each of [g, d, d]."""
    try:
        pivots = np.einsum("gdd->gd", np.linalg.cholesky(matrices))
    except np.linalg.LinAlgError:  # which of them, it does not say
        return np.array([_is_positive_definite(matrix) for matrix in matrices])
    found: npt.NDArray[np.bool_] = pivots.min(axis=1) > _LEAST_PIVOT * pivots.max(axis=1)
    return found


def _symmetric(covariance: Matrix) -> tuple[Matrix, Matrix]:
    """Return [g, d, d] symmetric in spite of rounding, and the mean variance of a column, [g]."""
    symmetric = (covariance + covariance.transpose(0, 2, 1)) / 2
    scale = np.einsum("gdd->g", symmetric) / max(symmetric.shape[1], 1)
    return symmetric, np.maximum(scale, _LEAST_SCALE)


def _deltas(matrix: Matrix, wanted: Matrix) -> Matrix:
    """Return what to add to weights, [g, m, d]; NaN where there is no telling."""
    with np.errstate(all="ignore"):
        try:
            return np.linalg.solve(matrix, wanted).transpose(0, 2, 1)
        except np.linalg.LinAlgError:
            return np.full_like(wanted, np.nan).transpose(0, 2, 1)


def _ridges_on_held(rest: Stacked, held: Stacked, weight: Matrix) -> tuple[Matrix, Matrix]:
    """Return what :func:`_ridge_on_held` does, for each of many groups."""
    covariance = rest.covariance
    wanted = rest.cross_covariance - covariance @ weight.transpose(0, 2, 1)
    symmetric, scale = _symmetric(covariance)
    best, found = np.full(len(scale), _LOWEST_RIDGE), np.full(len(scale), np.inf)
    open_ = np.ones(len(scale), bool)
    ridge = _LOWEST_RIDGE
    while ridge <= _HIGHEST_RIDGE and open_.any():
        matrix = symmetric + (ridge * scale)[:, None, None] * np.eye(symmetric.shape[1])
        delta = _deltas(matrix, wanted)
        tried = weight + delta
        with np.errstate(invalid="ignore"):
            error = held.residual(tried, rest.best_bias(tried))
        error = np.where(np.isfinite(delta).all(axis=(1, 2)), error, np.inf)
        # Well beyond the best one the error only rises.
        open_ &= ~((1.02 * found < error) & np.isfinite(error))
        better = open_ & (error < found)
        best, found = np.where(better, ridge, best), np.where(better, error, found)
        ridge *= _RIDGE_STEP
    return best, found


def _of_groups(notes: Sequence[tuple[str, ...]], stage: str) -> tuple[str, ...]:
    """Return the notes of all groups: of each reason the first, and in how many others it stands too."""
    first: dict[str, str] = {}
    more: Counter[str] = Counter()
    for note in (each for group in notes for each in group):
        reason = note.partition(": ")[2].partition(";")[0]
        if reason in first:
            more[reason] += 1
        first.setdefault(reason, note)
    counted = (
        f"{stage}: {reason} in {count} more of its {len(notes)} groups" for reason, count in more.items()
    )
    return *first.values(), *counted


def refit_bias(moments: Moments, weight: Matrix, bias: Matrix, *, stage: str) -> Solution:
    """Return *weight* with the bias that is best for it: least squares in the bias alone.

    Args:
        moments: As for :func:`solve`.
        weight: [m, d].
        bias: [m] bias as it was; kept where the data are missing or not finite.
        stage: How notes name the place.
    """
    if not moments.is_finite or moments.count == 0:
        reason = "no rows" if moments.is_finite else "activations are not finite"
        nan = float("nan")
        return Solution(weight, bias, nan, nan, 0.0, (f"{stage}: {reason}; the bias stays",))
    best = moments.best_bias(weight)
    return Solution(weight, best, moments.residual(weight, bias), moments.residual(weight, best), 0.0)


def refit_bias_groups(
    moments: Sequence[Moments], weight: Matrix, bias: Matrix, *, stage: str, free_bias: bool = True
) -> Solution:
    """Return *weight* with the best bias for each group of a grouped convolution, or the one group of others.

    Args:
        moments: One for each group.
        weight: [m, d] with the groups one below the other.
        bias: [m] bias as it was.
        stage: How notes name the place.
        free_bias: Whether the bias may change; else there are only residuals to tell.
    """
    if not free_bias:
        # A huge ridge keeps the weights and only computes the residuals; held samples would choose
        # a small one.
        whole = [replace(one, held=None) for one in moments]
        return solve_groups(whole, weight, bias, stage=stage, ridge=1e12, free_bias=False)
    step = len(weight) // len(moments)
    parts = [slice(group * step, (group + 1) * step) for group in range(len(moments))]
    found = [
        refit_bias(one, weight[part], bias[part], stage=stage)
        for one, part in zip(moments, parts, strict=True)
    ]
    return replace(
        found[0],
        weight=weight,
        bias=np.concatenate([one.bias for one in found]),
        residual_before=_of_all([one.residual_before for one in found], moments),
        residual_after=_of_all([one.residual_after for one in found], moments),
        notes=_of_groups([one.notes for one in found], stage),
    )
