"""Rounding with error feedback: what one column loses, the columns behind it make up for.

The columns of a weight are rounded one by one; the error of each is spread over those still to come in the
way that least disturbs the outputs on the data (GPTQ: Frantar et al. 2022; the order and the use of the
Cholesky factor are theirs). The result lies on the grid that the caller's rounding defines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.recover.solve import regularise

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.recover.moments import Matrix

    Round = Callable[[Matrix, int], Matrix]
    """Rounds the values [m] of the column with that index; the result stands for what will be stored."""
    Begin = Callable[[Matrix, int], None]
    """Told the values [m, n] of the group of columns that begins at that index, before any is rounded."""

DAMPING = 0.01
"""Ridge on the second moments, as in GPTQ."""

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight on a grid.

    Attributes:
        weight: [m, d].
        error: Mean squared error of the outputs over their mean square, with the weight.
        error_nearest: The same with rounding to nearest, without feedback; None where groups were begun anew.
        notes: What was not as it should be.
    """

    weight: Matrix
    error: float
    error_nearest: float | None
    notes: tuple[str, ...] = ()


def round_with_feedback(
    weight: Matrix,
    second_moment: Matrix,
    count: int,
    round_column: Round,
    *,
    stage: str,
    damping: float = DAMPING,
    group: int | None = None,
    begin_group: Begin | None = None,
) -> Rounded:
    """Round *weight* column by column.

    Args:
        weight: [m, d].
        second_moment: [d, d] mean of x x^T over the rows that it is multiplied with.
        count: Rows that this was measured on.
        round_column: See :data:`Round`; a pure function between two calls of *begin_group*.
        stage: How notes name the place.
        damping: Relative ridge on the second moments.
        group: Columns that share scales, which *begin_group* chooses from what came of them.
        begin_group: See :data:`Begin`.

    Returns:
        The rounded weight in any case: without finite second moments it is rounded without feedback.
    """
    rows, columns = weight.shape
    current = weight.astype(np.float64).copy()
    result = np.empty_like(current)
    finite = bool(np.isfinite(second_moment).all())
    notes: tuple[str, ...] = ()
    upper = np.eye(columns)
    if finite and count:
        regular = regularise(second_moment, count, damping, stage)
        notes = regular.notes
        # The upper Cholesky factor of the inverse, from the lower one of the reversed matrix: no inverse of
        # an inverse, so that nothing is lost where the moments are nearly singular.
        lower = np.linalg.cholesky(regular.matrix[::-1, ::-1])
        upper = np.linalg.solve(lower[::-1, ::-1], np.eye(columns))
    else:
        notes = (f"{stage}: no finite activations; rounded without feedback",)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((rows, stop - start))
        for column in range(start, stop):
            if begin_group is not None and group and column % group == 0:
                # Columns of the group behind this block have not been told of its errors yet.
                behind = min(column + group, columns)
                seen = current[:, column:behind].copy()
                if behind > stop and column > start:
                    seen[:, stop - column :] -= errors[:, : column - start] @ upper[start:column, stop:behind]
                begin_group(seen, column)
            result[:, column] = round_column(current[:, column], column)
            error = (current[:, column] - result[:, column]) / upper[column, column]
            errors[:, column - start] = error
            current[:, column + 1 : stop] -= np.outer(error, upper[column, column + 1 : stop])
        current[:, stop:] -= errors @ upper[start:stop, stop:]
    nearest = None
    if begin_group is None:
        plain = np.stack([round_column(weight[:, column], column) for column in range(columns)], axis=1)
        nearest = output_error(plain - weight, weight, second_moment) if finite else float("nan")
    error_after = output_error(result - weight, weight, second_moment) if finite else float("nan")
    return Rounded(result, error_after, nearest, notes)


def output_error(change: Matrix, weight: Matrix, second_moment: Matrix) -> float:
    """Return what *change* [m, d] of *weight* does to the outputs: mean square over that of the outputs."""
    error = float(np.einsum("md,md->", change @ second_moment, change))
    scale = float(np.einsum("md,md->", weight @ second_moment, weight))
    if scale <= 0.0:
        return 0.0 if error <= 0.0 else float("inf")
    return max(error, 0.0) / scale
