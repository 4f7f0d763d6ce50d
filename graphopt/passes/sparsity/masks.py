"""Which elements of a weight stay: scores of elements, and masks in a pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from graphopt.calibrate.moments import ChannelMoments

    Array = npt.NDArray[Any]
    Mask = npt.NDArray[np.bool_]


_COMPARED = 8
"""Neighbours that are compared each with each, which is faster than sorting (benchmarks/streaming.py)."""


def rows_of(array: Array, axis: int, input_axis: int | None) -> Array:
    """Return *array* as [rows, inputs].

    Args:
        array: A weight, or a part of one.
        axis: Axis of its output channels, which become the outer part of the rows.
        input_axis: Axis of its input channels; None takes all other axes together.
    """
    moved = np.moveaxis(array, axis, 0)
    if input_axis is None:
        return moved.reshape(moved.shape[0], -1)
    at = input_axis + (input_axis < axis)
    moved = np.moveaxis(moved, at, -1)
    return moved.reshape(-1, moved.shape[-1])


def back(rows: Array, dims: Sequence[int], axis: int, input_axis: int | None) -> Array:
    """Undo :func:`rows_of` of an array of shape *dims*."""
    rest = [each for each in range(len(dims)) if each not in {axis, input_axis}]
    order = [axis, *rest] + ([] if input_axis is None else [input_axis])
    return rows.reshape([dims[each] for each in order]).transpose(np.argsort(order))


def factors(moments: ChannelMoments, criterion: str) -> npt.NDArray[np.float64]:
    """Return by what the magnitudes of the weights of each input channel are multiplied.

    Args:
        moments: Of the channels of the activation.
        criterion: "wanda": the root of the mean square (Sun et al. 2023). "entropy": the information in bits
            that a Gaussian signal of the channel's variance carries, against noise of the mean variance.
    """
    if criterion == "wanda":
        return np.sqrt(moments.mean_square)
    variance = moments.variance
    noise = variance.mean()
    bits: npt.NDArray[np.float64] = (
        0.5 * np.log2(1 + variance / noise) if noise > 0 else np.ones(variance.size)
    )
    return bits


def mask_of(
    scores: Array,
    sparsity: float,
    *,
    pattern: str,
    nm: tuple[int, int],
    block: tuple[int, int],
    scope: str,
    positions: int = 1,
) -> Mask:
    """Return which elements of a [rows, inputs] matrix of *scores* stay.

    Args:
        scores: Non-negative importance.
        sparsity: Share of the elements to remove; with n:m the pattern says it.
        pattern: "unstructured", "n:m" or "block".
        nm: Of each *m* neighbours along the inputs the *n* with the largest score stay.
        block: Rows and inputs of a block, which divide the matrix.
        scope: "row" compares within each output, "tensor" within the whole weight.
        positions: Rows, one behind the other, that belong to one output: positions of a kernel.
    """
    rows, inputs = scores.shape
    if pattern == "n:m":
        keep, group = nm
        grouped = scores.reshape(rows, inputs // group, group)
        if group <= _COMPARED:
            return _rank(grouped, keep).reshape(rows, inputs)
        order = np.argsort(-grouped, axis=-1, kind="stable")
        mask = np.zeros(grouped.shape, bool)
        np.put_along_axis(mask, order[..., :keep], True, axis=-1)  # noqa: FBT003 - numpy's own signature
        return mask.reshape(rows, inputs)
    if pattern == "block":
        high, wide = block
        sums = (scores**2).reshape(rows // high, high, inputs // wide, wide).sum((1, 3))
        kept = _largest(sums.reshape(1, -1), sparsity).reshape(sums.shape)
        return np.repeat(np.repeat(kept, high, 0), wide, 1)
    if scope == "row":
        return _largest(scores.reshape(rows // positions, -1), sparsity).reshape(scores.shape)
    return _largest(scores.reshape(1, -1), sparsity).reshape(scores.shape)


def _largest(scores: Array, sparsity: float) -> Mask:
    """Keep the largest of each row; of equal ones the first."""
    remove = round(scores.shape[1] * sparsity)
    order = np.argsort(-scores, axis=1, kind="stable")
    mask = np.zeros(scores.shape, bool)
    kept = order[:, : scores.shape[1] - remove]
    np.put_along_axis(mask, kept, True, axis=1)  # noqa: FBT003 - as above
    return mask


def _rank(grouped: Array, keep: int) -> Mask:
    """Keep the largest along the last axis, comparing each with each; of equal ones the first."""
    size = grouped.shape[-1]
    larger = np.zeros(grouped.shape, np.uint8)
    for one in range(size):
        for two in range(one + 1, size):
            beaten = grouped[..., two] > grouped[..., one]
            larger[..., one] += beaten
            larger[..., two] += ~beaten
    mask: Mask = larger < keep
    return mask
