"""What is known about one value, and conversions to and from ONNX types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as oir
from onnx import numpy_helper

from graphopt.ir.infos import dim_name

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.ir.inference.symbols import Dim, Symbols

Item = int | float | bool | str | None
"""One element of a small tensor: a number, the symbol of a size, or None for unknown."""

# Shape arithmetic lives on a handful of elements; position indices and masks beyond this are data.
MAX_CONTENT = 256
MAX_FLOAT_CONTENT = 32

INTEGERS = frozenset({2, 3, 4, 5, 6, 7, 12, 13})
# Low-precision floats are left out: nobody computes shapes in them.
FLOATS = frozenset({1, 10, 11})
BOOL = 9
INT64 = 7


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known about a value.

    Attributes:
        dtype: Element type as in ``TensorProto.DataType``; 0 where unknown or not a tensor.
        shape: Its dims, or None where even the rank is unknown.
        data: Its elements in row-major order where it is a small tensor of static shape, such as shape
            arithmetic is made of.
        type: Its type where it is a sequence, an optional or another non-tensor.
    """

    dtype: int = 0
    shape: tuple[Dim, ...] | None = None
    data: tuple[Item, ...] | None = None
    type: onnx.TypeProto | None = None


UNKNOWN = Fact()


def from_type(proto: onnx.TypeProto, symbols: Symbols) -> Fact:
    """Return the fact that *proto*, made by an inference function, states; unknown dims are new symbols."""
    kind = proto.WhichOneof("value")
    if kind is None:
        return UNKNOWN
    if kind != "tensor_type":
        return Fact(type=proto)
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return Fact(tensor.elem_type)
    shape: list[Dim] = []
    for dim in tensor.shape.dim:
        which = dim.WhichOneof("value")
        if which == "dim_value" and dim.dim_value >= 0:
            shape.append(dim.dim_value)
        elif which == "dim_param" and dim.dim_param:
            shape.append(symbols.recall(dim.dim_param))
        else:
            shape.append(symbols.fresh())
    return Fact(tensor.elem_type, tuple(shape))


def to_type(fact: Fact) -> onnx.TypeProto:
    """Return the ONNX type that says what *fact* knows; symbols become dim params."""
    if fact.type is not None:
        return fact.type
    proto = onnx.TypeProto()
    if fact.dtype:
        tensor = proto.tensor_type
        tensor.elem_type = fact.dtype
        if fact.shape is not None:
            tensor.shape.SetInParent()
            for dim in fact.shape:
                if isinstance(dim, int):
                    tensor.shape.dim.add().dim_value = dim
                else:
                    tensor.shape.dim.add().dim_param = dim
    return proto


def from_value(value: oir.Value, symbols: Symbols) -> Fact:
    """Return what *value* itself declares: a fact for inputs, a claim for all others."""
    if value.type is None:
        return UNKNOWN
    if not isinstance(value.type, oir.TensorType):
        return Fact(type=oir.serde.serialize_type(value.type))
    if value.shape is None:
        return Fact(int(value.type.dtype))
    return Fact(
        int(value.type.dtype),
        tuple(
            dim
            if isinstance(dim, int) and dim >= 0
            else symbols.declare(name)
            if (name := dim_name(dim)) is not None
            else symbols.unnamed()
            for dim in value.shape
        ),
    )


def from_tensor(tensor: oir.TensorProtocol) -> Fact:
    """Return dtype, shape and, where small enough to be shape arithmetic, contents of a constant."""
    dtype, shape = int(tensor.dtype), tuple(tensor.shape.numpy())
    return Fact(dtype, shape, contents(tensor, dtype, shape))


def contents(tensor: oir.TensorProtocol, dtype: int, shape: tuple[int, ...]) -> tuple[Item, ...] | None:
    """Return the elements of *tensor* where it is small, else None without reading it."""
    limit = (
        MAX_FLOAT_CONTENT if dtype in FLOATS else MAX_CONTENT if dtype in INTEGERS or dtype == BOOL else -1
    )
    if math.prod(shape) > limit:
        return None
    return tuple(np.asarray(tensor.numpy()).reshape(-1).tolist())


def to_tensor(fact: Fact) -> onnx.TensorProto | None:
    """Return the contents of *fact* as a constant where all of its elements are numbers."""
    if fact.data is None or any(item is None or isinstance(item, str) for item in fact.data):
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(fact.dtype)
    return numpy_helper.from_array(np.array(fact.data, dtype=dtype).reshape(static_dims(fact)))


def static_dims(fact: Fact) -> tuple[int, ...]:
    """Return the shape of a fact that has contents, which only tensors of static shape have."""
    return tuple(dim for dim in fact.shape or () if isinstance(dim, int))


def array_of(fact: Fact) -> npt.NDArray[Any] | None:
    """Return the contents of *fact* as an array of Python objects, all None where unknown.

    None where the shape is not static or the tensor is not small.
    """
    if fact.shape is None or not all(isinstance(dim, int) for dim in fact.shape):
        return None
    dims = static_dims(fact)
    if math.prod(dims) > MAX_CONTENT:
        return None
    array = np.full(dims, None, dtype=object)
    if fact.data is not None:
        array.reshape(-1)[:] = fact.data
    return array
