"""Error feedback for the codes of products: what one weight loses in rounding, those behind it make up for.

The weight is moved onto its grid beforehand (graphopt.recover.feedback), so that the recipes that make codes
find nothing left to round. For that the largest code of every group has to be there, because the scale is
read off it: where feedback has moved it away, the largest one is put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.recover.feedback import output_error, round_with_feedback

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.calibrate.moments import Gram
    from graphopt.passes.weights.grid import Grid

    Floats = npt.NDArray[np.float64]

_RATIOS = tuple(np.linspace(1.0, 0.5, 26).tolist())
"""Shares of the range that are tried for a scale."""


def on_grid(
    weight: npt.NDArray[np.float32], gram: Gram, grid: Grid, block: int, stage: str
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return *weight* rounded onto the symmetric grid, and what that does to the outputs.

    Args:
        weight: [d, m], the contracted axis first.
        gram: Second moments of the rows that it is multiplied with.
        grid: Symmetric, with scales from the extremes.
        block: Elements along the contracted axis that share a scale; 0 for all.
        stage: How notes name the place.
    """
    rows, columns = weight.shape
    size = min(block or rows, rows)
    start = weight.T.astype(np.float64)
    scale = np.ones(columns)
    scales: dict[int, Floats] = {}

    def begin(values: Floats, column: int) -> None:
        nonlocal scale
        scale = _best_scale(values, importance[column : column + values.shape[1]], grid.high)
        scales[column] = scale

    def to_grid(values: Floats, column: int) -> Floats:
        del column
        return np.asarray(np.clip(np.rint(values / scale), -grid.high, grid.high) * scale)

    moment = gram.second_moment
    importance = np.where(np.isfinite(np.diag(moment)), np.diag(moment), 0.0)
    rounded = round_with_feedback(
        start, moment, gram.count, to_grid, stage=stage, group=size, begin_group=begin
    )
    result = rounded.weight
    for column, found in scales.items():
        part = slice(column, min(column + size, rows))
        codes = np.rint(result[:, part] / found[:, None])
        most = np.abs(codes).max(axis=1)
        for line in np.flatnonzero((most > 0) & (most < grid.high)):
            place = int(np.argmax(np.abs(start[line, part])))
            codes[line, place] = np.copysign(grid.high, start[line, column + place])
        result[:, part] = codes * found[:, None]
    nearest = np.empty_like(start)
    for column in scales:
        part = slice(column, min(column + size, rows))
        plain = _scale(start[:, part], grid.high)[:, None]
        nearest[:, part] = np.rint(start[:, part] / plain) * plain
    told: dict[str, Any] = {
        "output_error": output_error(result - start, start, moment),
        "output_error_nearest": output_error(nearest - start, start, moment),
    }
    if rounded.notes:
        told["warnings"] = list(rounded.notes)
    return np.ascontiguousarray(result.T).astype(np.float32), told


def _best_scale(values: Floats, importance: Floats, high: int) -> Floats:
    """Return for each line the scale that loses least, an error counting by what it is multiplied with.

    Args:
        values: [m, n].
        importance: [n] mean square of what each column is multiplied with.
        high: Largest code.
    """
    widest = _scale(values, high)
    best, least = widest, np.full(len(values), np.inf)
    for ratio in _RATIOS:
        scale = widest * ratio
        codes = np.clip(np.rint(values / scale[:, None]), -high, high)
        error = np.square(codes * scale[:, None] - values) @ importance
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best


def _scale(values: Floats, high: int) -> Floats:
    scale = np.abs(values).max(axis=1) / high
    return np.where(scale > 0, scale, 1.0)
