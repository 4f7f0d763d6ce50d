"""Codes, values and scales of a palette that serve the outputs: one quadratic objective, lessened in turns.

With the rows x of an operator, C their regularised second moments (about the mean where the bias is free), W
the weight and V what the palette makes of it, the objective is

    sum over the output channels m of (v_m - w_m) C (v_m - w_m)^T,    v_md = scale_m * book[code_md],

what the change does to the outputs on the data. The first codes come from error feedback (GPTQ; Frantar et
al. 2022). Then, in turns, each exact and never for the worse: the values of the codebooks (least squares for
given codes), the scales (one number a channel, in closed form), and the codes one column after the other with
all others fixed (coordinate descent, as in QuantEase; Behdin et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.palettes.codebook import nearest_codes
from graphopt.recover.feedback import round_with_feedback

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Codes = npt.NDArray[np.intp]

ROUNDS = 12
"""Turns at most."""

_ENOUGH = 2e-3
"""Turns end where one lessens the objective by no more than this share of it."""

_BLOCK = 64
_BOOK_RIDGE = 1e-9
_HELD = 1 << 23
"""Numbers that are held at once to set up the equations of a codebook."""


@dataclass(frozen=True)
class Problem:
    """A weight and what it is multiplied with.

    Attributes:
        weight: [groups, rows, d]: output channels of each group of the operator, contracted axis last.
        moments: [groups, d, d] regularised second moments of what each group reads; positive definite.
        counts: Rows of data that they were measured on.
        stage: How notes name the place.
    """

    weight: Floats
    moments: Floats
    counts: int
    stage: str

    def objective(self, values: Floats) -> float:
        """Return what *values* in the place of the weight do to the outputs."""
        change = values - self.weight
        return float(np.einsum("grd,grd->", change @ self.moments, change))

    def relative(self, values: Floats) -> float:
        """Return the same over what the weight itself gives."""
        whole = float(np.einsum("grd,grd->", self.weight @ self.moments, self.weight))
        return self.objective(values) / whole if whole > 0 else 0.0


@dataclass(frozen=True)
class Shared:
    """Values that are shared, and who takes which.

    Attributes:
        books: [books, k] ascending in every row.
        scales: [groups, rows] positive.
        book_of: [groups, rows] which codebook a channel takes.
        codes: [groups, rows, d].
    """

    books: Floats
    scales: Floats
    book_of: Codes
    codes: Codes

    def levels(self) -> Floats:
        """Return the values without the scales, [groups, rows, d]."""
        levels: Floats = self.books[self.book_of[..., None], self.codes]
        return levels

    def values(self) -> Floats:
        """Return what stands for the weight, [groups, rows, d]."""
        return self.levels() * self.scales[..., None]


def nearest(wanted: Floats, books: Floats, book_of: Codes) -> Codes:
    """Return the code of the nearest value for [..., n] numbers; *book_of* has the leading dims."""
    if len(books) == 1:
        return nearest_codes(wanted, books[0])
    edges = ((books[:, 1:] + books[:, :-1]) / 2)[book_of]
    codes = np.zeros(wanted.shape, np.intp)
    for place in range(edges.shape[-1]):
        codes += wanted > edges[..., place, None]
    return codes


def feed_back(problem: Problem, books: Floats, scales: Floats, book_of: Codes) -> Shared:
    """Return the first codes: column by column, the error of each pushed onto those still to come.

    The columns with the most energy go first, while the most others are left to make up for them.
    """
    codes = np.empty(problem.weight.shape, np.intp)
    for group, (weight, moments) in enumerate(zip(problem.weight, problem.moments, strict=True)):
        order = np.argsort(-np.diag(moments), kind="stable")
        scale, book = scales[group], book_of[group]

        def onto_book(values: Floats, _: int, scale: Floats = scale, book: Codes = book) -> Floats:
            found = nearest((values / scale)[:, None], books, book)[:, 0]
            rounded: Floats = books[book, found] * scale
            return rounded

        found = round_with_feedback(
            weight[:, order],
            moments[np.ix_(order, order)],
            problem.counts,
            onto_book,
            stage=problem.stage,
            damping=0.0,
        )
        values = np.empty_like(weight)
        values[:, order] = found.weight
        codes[group] = nearest(values / scale[:, None], books, book)
    return Shared(books, scales, book_of, codes)


def descend(problem: Problem, shared: Shared) -> Shared:
    """Return better codes: each column takes the values that are best with all other columns as they are."""
    codes = shared.codes.copy()
    scales = shared.scales
    change = shared.values() - problem.weight
    moments = problem.moments
    columns = change.shape[2]
    slopes = change @ moments
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        inner = moments[:, start:stop, start:stop]
        slope = slopes[..., start:stop].copy()
        moved = np.zeros_like(slope)
        for column in range(start, stop):
            at = column - start
            curvature = moments[:, column, column][:, None]
            value = change[..., column] + problem.weight[..., column]
            wanted = (value - slope[..., at] / curvature) / scales
            found = nearest(wanted[..., None], shared.books, shared.book_of)[..., 0]
            step = shared.books[shared.book_of, found] * scales - value
            codes[..., column] = found
            moved[..., at] = step
            slope += step[..., None] * inner[:, None, at]
        change[..., start:stop] += moved
        slopes += moved @ moments[:, start:stop]
    return replace(shared, codes=codes)


def refit_scales(problem: Problem, shared: Shared) -> Shared:
    """Return the scales that are best for the codes; one that would not be positive stays."""
    levels = shared.levels()
    seen = levels @ problem.moments
    power = np.einsum("grd,grd->gr", seen, levels)
    best = np.einsum("grd,grd->gr", seen, problem.weight) / np.where(power > 0, power, 1.0)
    usable = (power > 0) & (best > 0) & np.isfinite(best)
    return replace(shared, scales=np.where(usable, best, shared.scales))


def refit_books(problem: Problem, shared: Shared) -> Shared:
    """Return the codebooks that are best for the codes; values that nobody takes stay where they are."""
    books = shared.books.copy()
    size = books.shape[1]
    normal = np.zeros((len(books), size, size))
    wanted = np.zeros((len(books), size))
    aim = problem.weight @ problem.moments
    for group, moments in enumerate(problem.moments):
        for index in np.unique(shared.book_of[group]):
            mine = np.flatnonzero(shared.book_of[group] == index)
            step = max(1, _HELD // (size * len(moments)))
            for start in range(0, len(mine), step):
                rows = mine[start : start + step]
                codes, scale = shared.codes[group][rows], shared.scales[group][rows][:, None]
                taken = (codes == np.arange(size)[:, None, None]) * scale
                seen = taken @ moments
                wanted[index] += np.tensordot(taken, aim[group][rows], axes=2)
                normal[index] += np.tensordot(seen, taken, axes=((1, 2), (1, 2)))
    for index in range(len(books)):
        square = (normal[index] + normal[index].T) / 2
        used = np.diag(square) > 0
        if not used.any():
            continue
        inner = square[np.ix_(used, used)]
        ridge = _BOOK_RIDGE * float(np.trace(inner)) / len(inner)
        gap = wanted[index, used] - inner @ books[index, used]
        moved = books[index, used] + np.linalg.solve(inner + ridge * np.eye(len(inner)), gap)
        if np.isfinite(moved).all():
            books[index, used] = moved
    return _ascending(replace(shared, books=books))


def _ascending(shared: Shared) -> Shared:
    order = np.argsort(shared.books, axis=1, kind="stable")
    places = np.argsort(order, axis=1, kind="stable")
    return replace(
        shared,
        books=np.take_along_axis(shared.books, order, axis=1),
        codes=places[shared.book_of[..., None], shared.codes],
    )


def improve(
    problem: Problem, shared: Shared, *, books: bool, scales: bool, dtype: npt.DTypeLike, rounds: int = ROUNDS
) -> Shared:
    """Take turns until they no longer pay, and end on values that the type of the weight can hold.

    Args:
        problem: The weight and its data.
        shared: Where to begin.
        books: Whether the codebooks may move; not where their spacing was asked for.
        scales: Whether the channels have scales.
        dtype: Type of the weight.
        rounds: Turns at most.
    """
    best, least = shared, problem.objective(shared.values())
    for _ in range(rounds):
        found = best
        if scales:
            found = refit_scales(problem, found)
        if books:
            found = refit_books(problem, found)
        found = descend(problem, found)
        error = problem.objective(found.values())
        if error >= least:
            break
        gain = least - error
        best, least = found, error
        if gain <= _ENOUGH * error:
            break
    stored = replace(
        best,
        books=np.sort(best.books.astype(dtype).astype(np.float64), axis=1),
        scales=best.scales.astype(dtype).astype(np.float64),
    )
    return descend(problem, stored)
