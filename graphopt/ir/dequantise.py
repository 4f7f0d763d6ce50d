"""The arithmetic of DequantizeLinear over stored codes, as onnxruntime does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir.rewrite import attribute, has_reference, input_at
from graphopt.ir.tensors import constant_of, to_array

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """A DequantizeLinear whose inputs are all stored in the model.

    Attributes:
        codes: What it unpacks.
        scale: Of rank 0 or one element, [codes.shape[axis]], or of the shape of the codes with
            ceil(size / block) along *axis*.
        zero_point: Of the shape of *scale*, or None for 0.
        axis: The axis of *scale*, not negative; 0 where there is one scale for all.
        block: Codes that share a scale along *axis*; 0 where the scales are not in blocks.
        dtype: Element type of the result.
    """

    codes: oir.TensorProtocol
    scale: oir.TensorProtocol
    zero_point: oir.TensorProtocol | None
    axis: int
    block: int
    dtype: oir.DataType

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes and of the result."""
        return tuple(int(size) for size in self.codes.shape.numpy())


def stored_codes(node: oir.Node) -> StoredCodes | str:
    """Return what the DequantizeLinear *node* unpacks, or in words why that is not known."""
    if has_reference(node):
        return "its attributes come from the caller of the function"
    tensors = [constant_of(input_at(node, index)) for index in range(3)]
    codes, scale, zero_point = tensors
    if codes is None or scale is None or (zero_point is None and input_at(node, 2) is not None):
        return "what it unpacks is computed, or may be overridden by callers"
    rank = len(codes.shape.numpy())
    axis = int(attribute(node, "axis", 1))
    block = int(attribute(node, "block_size", 0))
    scales = tuple(int(size) for size in scale.shape.numpy())
    single = int(np.prod(scales, dtype=np.int64)) == 1 and len(scales) <= 1 and not block
    if single:
        axis = 0
    elif not -rank <= axis < rank:
        return f"its axis {axis} lies outside the rank {rank} of its codes"
    axis %= max(rank, 1)
    shape = [int(size) for size in codes.shape.numpy()]
    if block:
        shape[axis] = -(-shape[axis] // block)
    expected = tuple(shape) if block else (shape[axis],) if not single else scales
    if scales != expected or (zero_point is not None and tuple(zero_point.shape.numpy()) != scales):
        return f"a scale of shape {list(scales)} does not fit codes of shape {list(codes.shape.numpy())}"
    chosen = int(attribute(node, "output_dtype", 0))
    return StoredCodes(codes, scale, zero_point, axis, block, oir.DataType(chosen) if chosen else scale.dtype)


def dequantise(stored: StoredCodes) -> Array:
    """Return the weight: (codes - zero point) * scale in float32, rounded once to the type of the result.

    onnxruntime's CPU kernel does the same, so that the bits are equal for float32 and float16.
    """
    codes = to_array(stored.codes)
    scale = _spread(to_array(stored.scale), stored)
    wide = np.int64 if codes.dtype.kind in "iu" and codes.dtype.itemsize >= 4 else np.int32
    whole = stored.codes.dtype.is_integer()
    values = codes.astype(wide) if whole else codes.astype(np.float32)
    if stored.zero_point is not None:
        zero = to_array(stored.zero_point)
        values -= _spread(zero.astype(wide if whole else np.float32), stored)
    result = values.astype(np.float32) * scale.astype(np.float32)
    return np.asarray(result.astype(stored.dtype.numpy()))


def _spread(parameter: Array, stored: StoredCodes) -> Array:
    """Give a scale or zero point a shape that broadcasts against the codes."""
    if stored.block:
        spread = np.repeat(parameter, stored.block, axis=stored.axis)
        return np.asarray(np.take(spread, range(stored.shape[stored.axis]), axis=stored.axis))
    if parameter.size == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    shape = [1] * len(stored.shape)
    shape[stored.axis] = -1
    return parameter.reshape(shape)
