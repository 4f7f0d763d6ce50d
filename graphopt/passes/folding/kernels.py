"""Exact evaluation of shape arithmetic and simple float arithmetic in numpy.

Graphs hold tens of thousands of small foldable nodes; a runtime session for each would cost a thousand times
what the arithmetic does. A kernel here is used only where its result has the bits that onnxruntime's CPU
provider computes without optimisation: operations on integers and booleans, moving of elements, and float
operations that IEEE 754 rounds in one way (tests/passes/test_fold_constants.py compares them). Everything
else, and every case that a kernel declines by returning None, is left to the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir import rewrite
from graphopt.ir.inference.rules import slice_positions

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Kernel = Callable[[oir.Node, int, "Sequence[Array | None]"], "Array | Sequence[Array] | None"]
"""From a node, its opset version and its inputs to its outputs, or None where it declines."""

IMMEDIATE_BYTES = 1 << 20
"""Largest result that is computed before it is known to be wanted."""


def evaluate(node: oir.Node, opset: int, inputs: Sequence[Array | None]) -> list[Array] | None:
    """Return the outputs of *node* for *inputs*, bit-equal to the runtime's, or None.

    Args:
        node: A node of the default domain.
        opset: Version of the default domain where it stands.
        inputs: Its inputs as arrays; None for omitted ones.
    """
    kernel = KERNELS.get(node.op_type)
    if kernel is None:
        return None
    try:
        with np.errstate(all="ignore"):
            result = kernel(node, opset, inputs)
    except (ValueError, IndexError, TypeError, OverflowError, MemoryError):
        # Malformed constants (an axis out of range, shapes that do not broadcast): the runtime has the say.
        return None
    if result is None:
        return None
    results = list(result) if isinstance(result, (list, tuple)) else [result]
    return [np.asarray(array) for array in results]


def handles(node: oir.Node) -> bool:
    """Return whether there is a kernel for the operator of *node*; it may still decline."""
    return node.op_type in KERNELS


def integers_of(node: oir.Node, name: str, index: int, inputs: Sequence[Array | None]) -> list[int] | None:
    """Return integers that older opsets give as attribute *name* and newer ones as input *index*."""
    value = rewrite.attribute(node, name)
    if value is not None:
        return [int(item) for item in value]
    if index < len(inputs) and (array := inputs[index]) is not None:
        return [int(item) for item in array.reshape(-1)]
    return None


def slices_of(
    node: oir.Node, rank: int, inputs: Sequence[Array | None]
) -> list[tuple[int, int, int, int]] | None:
    """Return (axis, start, end, step) of each sliced axis of a Slice node, or None where it is malformed."""
    starts = integers_of(node, "starts", 1, inputs)
    ends = integers_of(node, "ends", 2, inputs)
    if starts is None or ends is None:
        return None
    axes = integers_of(node, "axes", 3, inputs)
    steps = integers_of(node, "steps", 4, inputs)
    axes = list(range(len(starts))) if axes is None else [axis + rank if axis < 0 else axis for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    return list(zip(axes, starts, ends, steps, strict=True))


def _need(array: Array | None) -> Array:
    if array is None:
        raise ValueError("an input that the operator needs is omitted")
    return array


def _is_integer(*arrays: Array) -> bool:
    return all(array.dtype.kind in "iu" for array in arrays)


def _is_plain(*arrays: Array) -> bool:
    """Whether numpy computes in the very type: integers, and floats that both sides round once."""
    first = arrays[0].dtype
    return all(array.dtype == first for array in arrays) and (
        first.kind in "iu" or first in (np.float32, np.float64)
    )


def _fits(*arrays: Array) -> bool:
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    return _small(shape, max(array.dtype.itemsize for array in arrays))


def _small(shape: Sequence[int], itemsize: int) -> bool:
    total = itemsize
    for size in shape:
        if size < 0:
            return False
        total *= size
    return total <= IMMEDIATE_BYTES or 0 in shape


def _binary(function: Callable[[Array, Array], Array], accept: Callable[..., bool]) -> Kernel:
    def kernel(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
        a, b = _need(inputs[0]), _need(inputs[1])
        if "broadcast" in node.attributes or a.dtype != b.dtype or not accept(a, b) or not _fits(a, b):
            return None
        return function(a, b)

    return kernel


def _unary(function: Callable[[Array], Array], accept: Callable[..., bool]) -> Kernel:
    def kernel(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
        array = _need(inputs[0])
        return function(array) if accept(array) else None

    return kernel


def _comparable(a: Array, b: Array) -> bool:
    return _is_plain(a, b) or (a.dtype == b.dtype == np.bool_)


def _boolean(*arrays: Array) -> bool:
    return all(array.dtype == np.bool_ for array in arrays)


def _single(*arrays: Array) -> bool:
    return all(array.dtype in (np.float32, np.float64) for array in arrays)


def _divide(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    a, b = _need(inputs[0]), _need(inputs[1])
    if not _is_plain(a, b) or not _fits(a, b):
        return None
    if a.dtype.kind == "f":
        return a / b
    if not _divides(a, b):
        return None
    # ONNX truncates towards zero, numpy rounds down.
    quotient = np.floor_divide(a, b)
    remainder = a - quotient * b
    return np.where((remainder != 0) & ((a < 0) != (b < 0)), quotient + 1, quotient).astype(a.dtype)


def _divides(a: Array, b: Array) -> bool:
    """Whether every integer quotient exists; the runtime is killed by the processor's trap where not."""
    if (b == 0).any():
        return False
    return a.dtype.kind == "u" or not ((b == -1).any() and (a == np.iinfo(a.dtype).min).any())


def _modulo(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    a, b = _need(inputs[0]), _need(inputs[1])
    if not (_is_integer(a, b) and a.dtype == b.dtype and _divides(a, b) and _fits(a, b)):
        return None
    return np.fmod(a, b) if rewrite.attribute(node, "fmod", 0) else np.mod(a, b)


def _cast(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array = _need(inputs[0])
    to = oir.DataType(rewrite.attribute(node, "to"))
    if to == oir.DataType.STRING or array.dtype.kind not in "iubf":
        return None
    target = to.numpy()
    if target == array.dtype:
        return array
    if target.kind not in "iubf" or np.float16 in (target, array.dtype):
        return None
    # To numpy float8_e5m2 is a float like its own; only the runtime knows how it saturates.
    if target.isbuiltin != 1 or array.dtype.isbuiltin != 1:
        return None
    if array.dtype.kind == "f" and target.kind in "iu":
        # Out of range, and on NaN, the result of the conversion is the processor's.
        info = np.iinfo(target)
        if not (
            np.isfinite(array).all() and (array > float(info.min)).all() and (array < float(info.max)).all()
        ):
            return None
    if array.dtype.kind in "iu" and target.kind == "f" and (np.abs(array.astype(np.float64)) >= 2**24).any():
        return None
    return array.astype(target)


def _cast_like(node: oir.Node, opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array, like = _need(inputs[0]), _need(inputs[1])
    if array.dtype == like.dtype:
        return array
    del node, opset
    return None


def _identity(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    return _need(inputs[0])


def _shape(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    shape = np.array(_need(inputs[0]).shape, np.int64)
    return shape[rewrite.attribute(node, "start", 0) : rewrite.attribute(node, "end")]


def _size(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    return np.array(_need(inputs[0]).size, np.int64)


def _reshape(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array = _need(inputs[0])
    target = integers_of(node, "shape", 1, inputs)
    if target is None:
        return None
    if not rewrite.attribute(node, "allowzero", 0):
        target = [array.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return array.reshape(target)


def _transpose(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    return np.ascontiguousarray(np.transpose(_need(inputs[0]), rewrite.attribute(node, "perm")))


def _squeeze(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    axes = integers_of(node, "axes", 1, inputs)
    return np.squeeze(_need(inputs[0]), None if axes is None else tuple(axes))


def _unsqueeze(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    axes = integers_of(node, "axes", 1, inputs)
    return None if axes is None else np.expand_dims(_need(inputs[0]), tuple(axes))


def _flatten(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array = _need(inputs[0])
    axis = rewrite.attribute(node, "axis", 1)
    axis = axis + array.ndim if axis < 0 else axis
    rows = int(np.prod(array.shape[:axis], dtype=np.int64))
    return array.reshape(rows, int(np.prod(array.shape[axis:], dtype=np.int64)))


def _concat(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    arrays = [_need(array) for array in inputs]
    return np.concatenate(arrays, axis=rewrite.attribute(node, "axis", 1))


def _slice(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array = _need(inputs[0])
    parts = slices_of(node, array.ndim, inputs)
    if parts is None:
        return None
    for axis, start, end, step in parts:
        positions = slice_positions(array.shape[axis], start, end, step)
        array = np.take(array, np.array(positions, np.int64), axis=axis)
    return array


def _gather(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array, indices = _need(inputs[0]), _need(inputs[1])
    axis = rewrite.attribute(node, "axis", 0)
    size = array.shape[axis]
    if not ((indices >= -size).all() and (indices < size).all()):
        return None
    shape = (*array.shape[:axis], *indices.shape, *array.shape[axis:][1:]) if axis >= 0 else None
    if shape is not None and not _small(shape, array.dtype.itemsize):
        return None
    return np.take(array, indices, axis=axis)


def _constant_of_shape(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    shape = [int(size) for size in _need(inputs[0]).reshape(-1)]
    tensor = rewrite.attribute(node, "value")
    fill = np.zeros(1, np.float32) if tensor is None else np.asarray(tensor.numpy())
    return np.full(shape, fill.reshape(-1)[0], fill.dtype) if _small(shape, fill.dtype.itemsize) else None


def _expand(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array = _need(inputs[0])
    shape = np.broadcast_shapes(array.shape, tuple(int(size) for size in _need(inputs[1])))
    return np.broadcast_to(array, shape).copy() if _small(shape, array.dtype.itemsize) else None


def _tile(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    array, repeats = _need(inputs[0]), [int(count) for count in _need(inputs[1]).reshape(-1)]
    if len(repeats) != array.ndim:
        return None
    shape = [size * count for size, count in zip(array.shape, repeats, strict=True)]
    return np.tile(array, repeats) if _small(shape, array.dtype.itemsize) else None


def _range(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    arrays = [_need(array) for array in inputs]
    if not _is_integer(*arrays):
        return None
    start, limit, delta = (int(array.reshape(-1)[0]) for array in arrays)
    if delta == 0:
        return None
    values = range(start, limit, delta)
    return np.array(values, arrays[0].dtype) if _small([len(values)], arrays[0].dtype.itemsize) else None


def _where(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
    condition, a, b = (_need(array) for array in inputs)
    return np.where(condition, a, b) if a.dtype == b.dtype and _fits(condition, a, b) else None


def _reduce(function: Callable[..., Array]) -> Kernel:
    def kernel(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
        array = _need(inputs[0])
        axes = integers_of(node, "axes", 1, inputs)
        if not _is_integer(array) or array.size == 0:
            return None
        keep = bool(rewrite.attribute(node, "keepdims", 1))
        if not axes:
            if rewrite.attribute(node, "noop_with_empty_axes", 0):
                return array
            return function(array, axis=None, keepdims=keep).astype(array.dtype)
        return function(array, axis=tuple(axes), keepdims=keep).astype(array.dtype)

    return kernel


def _extreme(function: Callable[[Array, Array], Array]) -> Kernel:
    def kernel(_node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Array | None:
        arrays = [_need(array) for array in inputs]
        # Of floats only integers' worth is safe: the two sides differ on NaN and on the sign of zero.
        if not _is_integer(*arrays) or len({array.dtype for array in arrays}) != 1 or not _fits(*arrays):
            return None
        result = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return result

    return kernel


def _split(node: oir.Node, _opset: int, inputs: Sequence[Array | None]) -> Sequence[Array] | None:
    array = _need(inputs[0])
    sizes = integers_of(node, "split", 1, inputs)
    axis = rewrite.attribute(node, "axis", 0)
    if sizes is None:
        count = len(node.outputs)
        size = -(-array.shape[axis] // count)
        sizes = [min(size, array.shape[axis] - i * size) for i in range(count)]
    if sum(sizes) != array.shape[axis] or len(sizes) != len(node.outputs) or min(sizes) < 0:
        return None
    return [np.ascontiguousarray(part) for part in np.split(array, np.cumsum(sizes)[:-1], axis=axis)]


KERNELS: dict[str, Kernel] = {
    "Abs": _unary(np.abs, _is_plain),
    "Add": _binary(np.add, _is_plain),
    "And": _binary(np.logical_and, _boolean),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _unary(np.ceil, _single),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _binary(np.equal, _comparable),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(np.floor, _single),
    "Gather": _gather,
    "Greater": _binary(np.greater, _is_plain),
    "GreaterOrEqual": _binary(np.greater_equal, _is_plain),
    "Identity": _identity,
    "Less": _binary(np.less, _is_plain),
    "LessOrEqual": _binary(np.less_equal, _is_plain),
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Mod": _modulo,
    "Mul": _binary(np.multiply, _is_plain),
    "Neg": _unary(np.negative, _is_plain),
    "Not": _unary(np.logical_not, _boolean),
    "Or": _binary(np.logical_or, _boolean),
    "Range": _range,
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _unary(np.sqrt, _single),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract, _is_plain),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "Xor": _binary(np.logical_xor, _boolean),
}
