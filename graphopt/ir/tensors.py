"""Tensors: frozen arrays, packed low-precision types, sparse tensors, comparison without copies.

The classes here are what lower makes of a file's tensors. They are immutable, so that clones can share them;
anything that numpy would let a pass change in place is handed out read-only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]


def freeze(array: Array) -> Array:
    """Return a view of *array* that refuses in-place edits."""
    view = array.view()
    view.flags.writeable = False
    return view


def pack(
    array: Array,
    bits: int,
    *,
    work: npt.NDArray[np.uint8] | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Pack the low *bits* (2 or 4) of every element, first element lowest, padded with zeros to a byte.

    Args:
        array: Elements of one byte each, any shape; int4 and int2 as ml_dtypes, or plain uint8 / int8.
        bits: Width of an element.
        work: Room for what is between, overwritten: twice the bytes of *array* with its padding.
        out: Where the bytes go; what is returned.

    Returns:
        [ceil(size * bits / 8)] bytes, as ``TensorProto.raw_data`` holds them.
    """
    per_byte = 8 // bits
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if flat.size % per_byte:
        padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
        padded[: flat.size] = flat
        flat = padded
    # Elements that share a byte are one word of as many bytes; shifting words takes a tenth of the time of
    # picking columns. Halves of the word are folded together until all elements stand in its lowest byte.
    words = flat.view(f"<u{per_byte}")
    kind = words.dtype.type
    lowest = kind(int.from_bytes(bytes([(1 << bits) - 1] * per_byte), "little"))
    work = np.empty(2 * flat.size, np.uint8) if work is None else work
    packed, moved = work[: flat.size].view(words.dtype), work[flat.size : 2 * flat.size].view(words.dtype)
    np.bitwise_and(words, lowest, out=packed)
    for folds in range(per_byte.bit_length() - 1):
        np.right_shift(packed, kind((8 - bits) << folds), out=moved)
        np.bitwise_or(packed, moved, out=packed)
    narrow = np.empty(words.size, np.uint8) if out is None else out
    np.copyto(narrow, packed, casting="unsafe")
    return narrow


def unpack(data: npt.NDArray[np.uint8], bits: int, size: int) -> npt.NDArray[np.uint8]:
    """Undo :func:`pack`: [size] elements, each in the low *bits* of its own byte."""
    per_byte = 8 // bits
    columns = np.empty((data.size, per_byte), np.uint8)
    for k in range(per_byte):
        columns[:, k] = (data >> np.uint8(bits * k)) & np.uint8((1 << bits) - 1)
    return columns.reshape(-1)[:size]


def byte_size(dtype: oir.DataType, dims: Sequence[int]) -> int:
    """Return how many bytes ``raw_data`` of this type and shape has; packed types round up to a byte."""
    return -(-math.prod(dims) * dtype.bitwidth // 8)


def decode(data: bytes | npt.NDArray[np.uint8], dtype: oir.DataType, dims: Sequence[int]) -> Array:
    """Return ``raw_data`` as a read-only array of shape *dims*; plain types are a view of *data*."""
    if dtype.bitwidth in {2, 4}:
        packed = np.frombuffer(data, np.uint8)
        return freeze(unpack(packed, dtype.bitwidth, math.prod(dims)).view(dtype.numpy()).reshape(dims))
    if dtype.bitwidth == 6:
        # Four elements in three bytes; onnx-ir knows the order.
        import onnx

        proto = onnx.TensorProto(data_type=int(dtype), dims=dims, raw_data=bytes(data))
        return freeze(oir.serde.TensorProtoTensor(proto).numpy())
    return freeze(np.frombuffer(data, np.dtype(dtype.numpy()).newbyteorder("<")).reshape(dims))


class FrozenTensor(oir.TensorProtocol):
    """Base of the tensors made by lower: their data, type and shape never change."""

    __slots__ = ("_dims", "_dtype", "_metadata", "_metadata_props", "doc_string", "name")

    def __init__(
        self,
        dtype: oir.DataType,
        dims: tuple[int, ...],
        *,
        name: str | None = None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.doc_string = doc_string
        self._dtype = dtype
        self._dims = dims
        self._metadata_props = metadata_props
        self._metadata: dict[str, Any] | None = None

    @property
    def metadata_props(self) -> dict[str, str]:  # type: ignore[override]  # the protocol has a variable, onnx-ir properties
        """Metadata that is written to the file."""
        if self._metadata_props is None:
            self._metadata_props = {}
        return self._metadata_props

    @property
    def meta(self) -> dict[str, Any]:  # type: ignore[override]  # as metadata_props
        """Notes that are not written to the file."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @property
    def dtype(self) -> oir.DataType:  # type: ignore[override]  # as metadata_props
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> oir.Shape:  # type: ignore[override]  # as metadata_props
        """Shape of the dense tensor."""
        return oir.Shape(self._dims, frozen=True)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self._dims)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor in a file."""
        return byte_size(self._dtype, self._dims)

    def described(self, **_about: Any) -> FrozenTensor:  # noqa: ANN401 - as above
        """Return the same tensor with another name, documentation and metadata, where it can have some."""
        return self

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, *, stream: object = None) -> object:
        return self.numpy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self._dtype},{list(self._dims)}>(name={self.name!r})"


class RawTensor(FrozenTensor):
    """A tensor that stood inline in a file, as the bytes of ``raw_data``."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes, dtype: oir.DataType, dims: tuple[int, ...], **about: Any) -> None:  # noqa: ANN401 - as the base class
        super().__init__(dtype, dims, **about)
        self._data = data

    @property
    def raw(self) -> bytes:
        """The bytes, little-endian, packed."""
        return self._data

    def numpy(self) -> Array:
        """Return the values, read-only."""
        return decode(self._data, self._dtype, self._dims)

    def tobytes(self) -> bytes:
        """Return the bytes without a copy."""
        return self._data

    def described(self, **about: Any) -> RawTensor:  # noqa: ANN401 - as the base class
        """Return the same tensor with another name, documentation and metadata."""
        return RawTensor(self._data, self._dtype, self._dims, **about)


class SparseTensor(FrozenTensor):
    """A tensor kept as its non-zero values and their places; it becomes dense only when it is read.

    Attributes:
        values: [n] non-zero values.
        indices: int64, [n] places in the flattened tensor or [n, rank] coordinates.
    """

    __slots__ = ("indices", "values")

    def __init__(
        self,
        values: oir.TensorProtocol,
        indices: oir.TensorProtocol,
        dims: tuple[int, ...],
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(values.dtype, dims, name=name)
        self.values = values
        self.indices = indices

    @property
    def raw(self) -> Array:
        """The dense values."""
        return self.numpy()

    def numpy(self) -> Array:
        """Return the dense values, read-only.

        Raises:
            InvalidModelError: A place lies outside the tensor.
        """
        places = to_array(self.indices)
        if places.ndim == 2:
            inside = bool(((places >= 0) & (places < np.array(self._dims, np.int64))).all())
            strides = np.cumprod([1, *self._dims[:0:-1]], dtype=np.int64)[::-1][: len(self._dims)]
            places = places @ strides if inside else places
        else:
            inside = bool(((places >= 0) & (places < self.size)).all())
        if not inside:
            raise InvalidModelError(
                f"an index lies outside the shape {list(self._dims)}", where=f"sparse tensor {self.name!r}"
            )
        values = to_array(self.values)
        dense: Array = np.zeros(self.size, values.dtype)
        if values.dtype == object:
            dense[:] = b""
        dense[places] = values
        return freeze(dense.reshape(self._dims))

    def tobytes(self) -> bytes:
        """Return the dense bytes."""
        return oir.Tensor(np.array(self.numpy()), dtype=self._dtype).tobytes()


def from_array(array: Array, name: str = "") -> oir.TensorProtocol:
    """Return a tensor over a frozen view of *array*; ml_dtypes arrays keep their type, text becomes UTF-8."""
    array = np.asarray(array)
    if array.dtype.kind in "OSUT":
        flat = np.empty(array.size, dtype=object)
        flat[:] = [
            item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1).tolist()
        ]
        return string_tensor(flat.tolist(), array.shape, name=name)
    contiguous = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    return oir.Tensor(freeze(contiguous), name=name)


def string_tensor(items: Sequence[bytes], dims: Sequence[int], **about: Any) -> oir.StringTensor:  # noqa: ANN401 - for the tensor
    """Return a tensor of byte strings; unlike a numpy bytes array it keeps trailing zero bytes."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return oir.StringTensor(freeze(array.reshape(tuple(dims))), shape=oir.Shape(dims), **about)


def to_array(tensor: oir.TensorProtocol) -> Array:
    """Return the logical values of *tensor*, read-only.

    Low-precision types come as ml_dtypes, strings as bytes objects.
    """
    if isinstance(tensor, oir.StringTensor):
        array = np.empty(tensor.size, dtype=object)
        array[:] = list(tensor.string_data())
        return freeze(array.reshape(tensor.shape.numpy()))
    return freeze(np.asarray(tensor.numpy()))


def to_buffer(tensor: oir.TensorProtocol) -> bytes | memoryview:
    """Return the bytes of ``raw_data``, without a copy where the tensor holds them so already."""
    if isinstance(tensor, oir.Tensor) and tensor.dtype.bitwidth >= 8 and isinstance(tensor.raw, np.ndarray):
        array = tensor.raw
        little = array.dtype.byteorder != ">" and np.little_endian
        if little and array.flags.c_contiguous and array.size:
            return memoryview(array.reshape(-1).view(np.uint8))
    return tensor.tobytes()


def nbytes(tensor: oir.TensorProtocol) -> int:
    """Return how many bytes the dense content of *tensor* takes, without reading it."""
    return int(tensor.nbytes)


def stored_bytes(tensor: oir.TensorProtocol) -> int:
    """Return the bytes of *tensor* in a file, of a sparse one those of values and places; it is not read."""
    if isinstance(tensor, SparseTensor):
        return int(tensor.values.nbytes + tensor.indices.nbytes)
    return int(tensor.nbytes)


def is_small(tensor: oir.TensorProtocol, limit: int) -> bool:
    """Return whether *tensor* takes at most *limit* bytes."""
    return nbytes(tensor) <= limit


def freeze_tensor(tensor: oir.TensorProtocol | None) -> None:
    """Make the array behind *tensor* refuse in-place edits; called before a tensor is shared by a clone."""
    if isinstance(tensor, oir.Tensor | oir.StringTensor) and isinstance(tensor.raw, np.ndarray):
        tensor.raw.flags.writeable = False


def describe(
    tensor: oir.TensorProtocol, metadata_props: Mapping[str, str], doc_string: str
) -> oir.TensorProtocol:
    """Return a tensor over the same data with other metadata; the given one may be shared and stays."""
    about: dict[str, Any] = {
        "name": tensor.name,
        "doc_string": doc_string or None,
        "metadata_props": dict(metadata_props) or None,
    }
    if isinstance(tensor, FrozenTensor):
        return tensor.described(**about)
    if isinstance(tensor, oir.StringTensor):
        return string_tensor(list(tensor.string_data()), tensor.shape.numpy(), **about)
    if isinstance(tensor, oir.ExternalTensor):
        copy = type(tensor)(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            base_dir=tensor.base_dir,
            **about,
        )
        copy.meta.update(tensor.meta)
        return copy
    return oir.Tensor(freeze(np.asarray(tensor.numpy())), dtype=tensor.dtype, **about)


def is_overridable(value: oir.Value) -> bool:
    """Return whether *value* is an initializer that a caller may replace, being a graph input too."""
    return value.is_initializer() and value.is_graph_input()


def constant_of(value: oir.Value | None) -> oir.TensorProtocol | None:
    """Return the tensor that *value* always holds, or None where it is computed or may be overridden.

    It always holds one where it is an initializer that is no input, or the output of a Constant node whose
    attribute is no reference to a function's attribute.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in {"", "ai.onnx"}:
        return None
    return _constant_node_tensor(node)


def _constant_node_tensor(node: oir.Node) -> oir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        content = attribute.value
        if name in {"value", "sparse_value"}:
            return content  # type: ignore[no-any-return]  # attribute values are untyped
        if name in {"value_float", "value_floats"}:
            return from_array(np.array(content, np.float32))
        if name in {"value_int", "value_ints"}:
            return from_array(np.array(content, np.int64))
        if name == "value_string":
            return string_tensor([_as_bytes(content)], ())
        if name == "value_strings":
            return string_tensor([_as_bytes(item) for item in content], (len(content),))
    return None


def _as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def same_bytes(a: oir.TensorProtocol, b: oir.TensorProtocol) -> bool:
    """Return whether two tensors have the same type, shape and bytes (NaN payloads and -0.0 included)."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape.numpy() != b.shape.numpy():
        return False
    if isinstance(a, oir.StringTensor) and isinstance(b, oir.StringTensor):
        return list(a.string_data()) == list(b.string_data())
    return to_buffer(a) == to_buffer(b)
