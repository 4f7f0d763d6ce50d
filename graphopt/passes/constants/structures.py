"""Structures of constants: each is compared bit for bit with what its expression computes.

An expression is only proposed where every operator in it is exact by definition (it moves elements, compares
or adds integers, or casts integers that the type holds), so that any runtime computes the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.passes.constants.expressions import Made

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Bits = npt.NDArray[Any]

TYPES = frozenset({"float32", "float64", "float16", "int32", "int64", "int8", "uint8", "bool"})
"""Types that onnxruntime's kernels of the operators used here take; others are left alone."""

MIN_OPSET = 9
"""ConstantOfShape is there since version 9, Range since 11; Expand since 8."""

_TRILU_TYPES = frozenset({"float32", "float64", "int64"})
_EXACT_INTEGERS = {"float64": 1 << 53, "float32": 1 << 24, "float16": 1 << 11}
_MIN_GAIN = 2
"""An expression must take at most one part in this many of what it stands for."""


def find_structure(array: Array, opset: int) -> Made | None:
    """Return the cheapest expression found for *array*, or None where it shows no structure.

    Args:
        array: A constant of one of :data:`TYPES`.
        opset: Version of the default domain.
    """
    if opset < MIN_OPSET or array.dtype.name not in TYPES or array.size < 2:
        return None
    found = _find(_Bits(array), opset)
    if not isinstance(found, Made) or found.cost_bytes * _MIN_GAIN > array.nbytes:
        return None
    return found


class _Bits:
    """An array with its elements as integers, so that -0.0 and every NaN compare as what they are."""

    def __init__(self, array: Array) -> None:
        self.array = np.ascontiguousarray(array).reshape(array.shape)
        self.bits: Bits = self.array.view(np.dtype(f"u{array.dtype.itemsize}"))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def reshaped(self, shape: tuple[int, ...]) -> _Bits:
        return _Bits(self.array.reshape(shape))


def _find(given: _Bits, opset: int) -> Made | Array:
    """Return an expression of *given*, or the array itself."""
    if given.array.size < 2:
        return given.array
    rules: tuple[Callable[[_Bits, int], Made | None], ...] = (
        _fill, _broadcast, _flat, _affine, _triangle, _step, _one_hot, _toeplitz, _tiled, _stretched,
    )  # fmt: skip
    found = [made for rule in rules[:2] if (made := rule(given, opset)) is not None]
    if not found:
        found = [made for rule in rules[2:] if (made := rule(given, opset)) is not None]
    cheapest = min(found, key=lambda made: made.cost_bytes, default=None)
    if cheapest is None or cheapest.cost_bytes >= given.array.nbytes + 24:
        return given.array
    return cheapest


def _int64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def _reshape(inner: Made | Array, shape: tuple[int, ...]) -> Made:
    return Made("Reshape", (inner, _int64(*shape)))


def _fill(given: _Bits, opset: int) -> Made | None:
    """The same element everywhere."""
    del opset
    if not (given.bits == given.bits.reshape(-1)[0]).all():
        return None
    one = given.array.reshape(-1)[:1].copy()
    return Made("ConstantOfShape", (_int64(*given.shape),), {"value": _tensor(one)})


def _tensor(array: Array) -> Any:  # noqa: ANN401 - what an attribute takes
    from graphopt.ir.tensors import from_array

    return from_array(array)


def _broadcast(given: _Bits, opset: int) -> Made | None:
    """All slices along some axes are equal: one of them, expanded."""
    inner = given
    for axis in range(given.array.ndim):
        if given.shape[axis] > 1:
            first = np.take(inner.bits, [0], axis)
            if (inner.bits == first).all():
                inner = _Bits(np.take(inner.array, [0], axis))
    if inner.shape == given.shape:
        return None
    return Made("Expand", (_find(inner, opset), _int64(*given.shape)))


def _flat(given: _Bits, opset: int) -> Made | None:
    """Dims of 1 in front or between: the structure of what is left."""
    dims = tuple(size for size in given.shape if size > 1)
    if dims == given.shape:
        return None
    inner = _find(given.reshaped(dims), opset)
    return _reshape(inner, given.shape) if isinstance(inner, Made) else None


def _matrix(given: _Bits) -> Bits | None:
    return given.bits if given.array.ndim == 2 and min(given.shape) > 1 else None


def _range(count: int, start: int = 0, delta: int = 1) -> Made:
    scalars = (np.array(number, np.int64) for number in (start, start + count * delta, delta))
    return Made("Range", tuple(scalars))


def _column(count: int, start: int = 0, delta: int = 1) -> Made:
    return _reshape(_range(count, start, delta), (count, 1))


def _affine(given: _Bits, opset: int) -> Made | None:
    """Integers that grow by one step along each axis: ranges, position ids, relative distances."""
    array = given.array
    if opset < 11 or array.dtype.kind not in "iuf" or array.ndim > 4:
        return None
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            return None
        limit = _EXACT_INTEGERS[array.dtype.name]
        if (np.abs(array) > limit).any() or (array != np.floor(array)).any():
            return None
    whole = array.astype(np.int64)
    origin = int(whole.reshape(-1)[0])
    steps: list[int] = []
    for axis in range(array.ndim):
        corner = [0] * array.ndim
        corner[axis] = 1
        steps.append(int(whole[tuple(corner)]) - origin if array.shape[axis] > 1 else 0)
    expected = np.full(array.shape, origin, np.int64)
    for axis, step in enumerate(steps):
        along = [1] * array.ndim
        along[axis] = -1
        expected = expected + np.arange(array.shape[axis], dtype=np.int64).reshape(along) * step
    if expected.astype(array.dtype).tobytes() != array.tobytes():
        return None
    made: Made | None = None
    flat = np.arange(array.size, dtype=np.int64) * steps[-1] + origin
    if array.ndim > 1 and (expected.reshape(-1) == flat).all():
        made = _reshape(_range(array.size, origin, steps[-1]), array.shape)
    else:
        for axis, step in enumerate(steps):
            start = origin if axis == 0 else 0
            dims = [1] * array.ndim
            dims[axis] = array.shape[axis]
            part: Made = _range(array.shape[axis], start, step) if step else Made(
                "ConstantOfShape", (_int64(array.shape[axis]),), {"value": _tensor(_int64(start))}
            )  # fmt: skip
            part = part if array.ndim == 1 else _reshape(part, tuple(dims))
            made = part if made is None else Made("Add", (made, part))
    assert made is not None
    return made if array.dtype == np.int64 else Made("Cast", (made,), {"to": _onnx_type(array)})


def _onnx_type(array: Array) -> int:
    import onnx_ir as oir

    return int(oir.DataType.from_numpy(array.dtype))


def _step_of(bits: Bits) -> tuple[int, Any, Any] | None:
    """Return (k, below, above) where element (i, j) is *above* exactly where j - i >= k, else None."""
    rows, columns = bits.shape
    below, above = bits[-1, 0], bits[0, -1]
    if below == above:
        return None
    # The first row, or the first column where the first row is all above, shows where the step is.
    row = np.flatnonzero(bits[0] != below)
    k = int(row[0]) if row.size else columns
    if k == 0:
        column = np.flatnonzero(bits[:, 0] != above)
        k = 1 - int(column[0]) if column.size else -rows
    expected = np.arange(columns)[None] - np.arange(rows)[:, None] >= k
    return (k, below, above) if (np.where(expected, above, below) == bits).all() else None


def _triangle(given: _Bits, opset: int) -> Made | None:
    """Zero on one side of a diagonal, one number on the other: causal masks."""
    bits = _matrix(given)
    if bits is None or opset < 14 or given.array.dtype.name not in _TRILU_TYPES:
        return None
    found = _step_of(bits)
    if found is None:
        return None
    k, below, above = found
    if below and above:
        return None
    fill = np.array([above or below], bits.dtype).view(given.array.dtype)
    filled = Made("ConstantOfShape", (_int64(*given.shape),), {"value": _tensor(fill)})
    upper = not below
    diagonal = np.array(k if upper else k - 1, np.int64)
    return Made("Trilu", (filled, diagonal), {"upper": int(upper)})


def _choose(condition: Made, given: _Bits, no: Any, yes: Any) -> Made:  # noqa: ANN401 - numpy scalars
    """Return *yes* where *condition* holds, else *no*, by picking from both: exact for every type."""
    pair = np.array([no, yes], given.bits.dtype).view(given.array.dtype)
    import onnx_ir as oir

    index = Made("Cast", (condition,), {"to": int(oir.DataType.INT32)})
    return Made("Gather", (pair, index), {"axis": 0})


def _step(given: _Bits, opset: int) -> Made | None:
    """One number on one side of a diagonal, another on the other."""
    bits = _matrix(given)
    found = None if bits is None or opset < 11 else _step_of(bits)
    if found is None:
        return None
    k, below, above = found
    rows, columns = given.shape
    condition = Made("Greater", (_range(columns), _column(rows, k - 1)))
    return _choose(condition, given, below, above)


def _one_hot(given: _Bits, opset: int) -> Made | None:
    """One element of each row differs, and those are alike: identities, permutations, one-hot tables."""
    bits = _matrix(given)
    if bits is None or opset < 11:
        return None
    rows, columns = bits.shape
    if columns < 3:
        return None
    off = bits[0, 0] if bits[0, 0] == bits[0, 1] or bits[0, 0] == bits[0, 2] else bits[0, 1]
    different = bits != off
    if not (different.sum(1) == 1).all():
        return None
    places = different.argmax(1).astype(np.int64)
    on = bits[0, places[0]]
    if not (bits[np.arange(rows), places] == on).all():
        return None
    steps = np.diff(places)
    if rows > 1 and (steps == steps[0]).all() and steps[0]:
        where = _column(rows, int(places[0]), int(steps[0]))
        return _choose(Made("Equal", (_range(columns), where)), given, off, on)
    return _choose(Made("Equal", (_range(columns), places.reshape(rows, 1))), given, off, on)


def _toeplitz(given: _Bits, opset: int) -> Made | None:
    """Constant along each diagonal: bands and tables of relative positions."""
    bits = _matrix(given)
    if bits is None or opset < 11 or not (bits[1:, 1:] == bits[:-1, :-1]).all():
        return None
    rows, columns = given.shape
    diagonals = np.concatenate([given.array[::-1, 0], given.array[0, 1:]])
    index = Made("Add", (_range(columns), _column(rows, rows - 1, -1)))
    return Made("Gather", (diagonals, index), {"axis": 0})


def _tiled(given: _Bits, opset: int) -> Made | None:
    """Blocks that repeat along axes."""
    inner, repeats = given, [1] * given.array.ndim
    for axis in range(given.array.ndim):
        period = _period(inner.bits, axis)
        if period is not None:
            repeats[axis] = given.shape[axis] // period
            inner = _Bits(np.take(inner.array, range(period), axis))
    if inner.shape == given.shape:
        return None
    return Made("Tile", (_find(inner, opset), _int64(*repeats)))


def _period(bits: Bits, axis: int) -> int | None:
    size = bits.shape[axis]
    moved = np.moveaxis(bits, axis, 0)
    # A probe of the first slice's repetitions is cheap and rules nearly everything out.
    probe = moved.reshape(size, -1)[:, 0]
    for period in range(1, size // 2 + 1):
        if size % period or not (probe[period:] == probe[:-period]).all():
            continue
        if (moved[period:] == moved[:-period]).all():
            return period
    return None


def _stretched(given: _Bits, opset: int) -> Made | None:
    """Elements that are repeated one after another along an axis."""
    for axis, size in enumerate(given.shape):
        if size < 2:
            continue
        moved = np.moveaxis(given.bits, axis, 0)
        changes = np.flatnonzero((moved[1:] != moved[:-1]).reshape(size - 1, -1).any(1)) + 1
        times = math.gcd(size, *changes.tolist())
        if times > 1:
            shape = given.shape
            inner = _Bits(np.take(given.array, range(0, size, times), axis))
            apart = (*shape[:axis], size // times, 1, *shape[axis + 1 :])
            wide = (*shape[:axis], size // times, times, *shape[axis + 1 :])
            expanded = Made("Expand", (_reshape(_find(inner, opset), apart), _int64(*wide)))
            return _reshape(expanded, shape)
    return None
