"""Rows of an activation as a linear operator sees them, all of them or some drawn at random."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.calibrate.needs import Rows, Window

    Array = npt.NDArray[Any]


def gather_rows(
    array: Array, rows: Rows, per_sample: int | None = None, generator: np.random.Generator | None = None
) -> Array:
    """Return the rows of *array*, [n, d], in the order of their positions.

    Args:
        array: The activation.
        rows: How rows are taken from it.
        per_sample: How many positions to draw for each index of the first axis; None takes all.
        generator: Draws them; needed with *per_sample*.

    Raises:
        DataError: The rank does not fit.
    """
    if rows.window is not None:
        return _windows(array, rows.window, per_sample, generator)
    if not -array.ndim <= rows.axis < array.ndim:
        raise DataError(f"it has rank {array.ndim}, without an axis {rows.axis}")
    samples = array.shape[0] if array.ndim > 1 and rows.axis % array.ndim else 1
    moved = np.moveaxis(array, rows.axis, -1)
    width = moved.shape[-1]
    positions = math.prod(moved.shape[:-1])
    if not positions or not width:
        return np.zeros((0, width), array.dtype)
    flat = moved.reshape(positions, width)
    if per_sample is None or positions <= per_sample * samples:
        return flat
    assert generator is not None
    return flat[_draw(generator, positions, per_sample * samples)]


def window_positions(sizes: tuple[int, ...], window: Window) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the number of positions on every spatial axis, and the padding at the begin of each.

    Args:
        sizes: Spatial sizes of the activation.
        window: How the convolution slides.
    """
    rank = len(window.kernel)
    counts, begins = [], []
    for axis, size in enumerate(sizes):
        extent = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        stride = window.strides[axis]
        if window.auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            count = -(-size // stride)
            total = max((count - 1) * stride + extent - size, 0)
            begin = total // 2 if window.auto_pad == "SAME_UPPER" else total - total // 2
        else:
            begin = 0 if window.auto_pad == "VALID" else window.pads[axis]
            end = 0 if window.auto_pad == "VALID" else window.pads[rank + axis]
            count = max((size + begin + end - extent) // stride + 1, 0)
        counts.append(count)
        begins.append(begin)
    return tuple(counts), tuple(begins)


def _windows(
    array: Array, window: Window, per_sample: int | None, generator: np.random.Generator | None
) -> Array:
    rank = len(window.kernel)
    if array.ndim != rank + 2:
        raise DataError(f"it has rank {array.ndim}, a window of {rank} axes needs {rank + 2}")
    batch, channels = array.shape[:2]
    counts, begins = window_positions(array.shape[2:], window)
    positions = batch * math.prod(counts)
    width = channels * math.prod(window.kernel)
    if not positions or not width:
        return np.zeros((0, width), array.dtype)
    if per_sample is None or positions <= per_sample * batch:
        chosen = np.arange(positions)
    else:
        assert generator is not None
        chosen = _draw(generator, positions, per_sample * batch)
    # A view of all windows, [batch, positions..., channels, kernel...]; what is drawn from it is copied once.
    padded = _padded(array, counts, begins, window)
    step, spatial = padded.strides[:2], padded.strides[2:]
    view = np.lib.stride_tricks.as_strided(
        padded,
        (batch, *counts, channels, *window.kernel),
        (
            step[0],
            *(stride * size for stride, size in zip(window.strides, spatial, strict=True)),
            step[1],
            *(dilation * size for dilation, size in zip(window.dilations, spatial, strict=True)),
        ),
        writeable=False,
    )
    picked = view[np.unravel_index(chosen, (batch, *counts))]
    return np.ascontiguousarray(picked).reshape(len(chosen), width)


def _padded(array: Array, counts: tuple[int, ...], begins: tuple[int, ...], window: Window) -> Array:
    """Return *array* with zeros where windows reach over its edges."""
    needs = tuple(
        (count - 1) * stride + (kernel - 1) * dilation + 1
        for count, stride, kernel, dilation in zip(
            counts, window.strides, window.kernel, window.dilations, strict=True
        )
    )
    sizes = array.shape[2:]
    if not any(begins) and all(need <= size for need, size in zip(needs, sizes, strict=True)):
        return array
    padded = np.zeros((*array.shape[:2], *needs), array.dtype)
    into: list[Any] = [...]
    out_of: list[Any] = [...]
    for need, size, begin in zip(needs, sizes, begins, strict=True):
        length = min(size, need - begin) if begin >= 0 else min(size + begin, need)
        first = max(begin, 0)
        into.append(slice(first, first + max(length, 0)))
        out_of.append(slice(max(-begin, 0), max(-begin, 0) + max(length, 0)))
    padded[tuple(into)] = array[tuple(out_of)]
    return padded


def _draw(generator: np.random.Generator, positions: int, count: int) -> npt.NDArray[np.int64]:
    drawn = generator.choice(positions, count, replace=False, shuffle=False)
    return np.sort(drawn)
