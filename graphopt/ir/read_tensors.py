"""From TensorProto and SparseTensorProto to tensors that do not keep the message alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as oir

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.ir import meta
from graphopt.ir.infos import DATA_TYPES, as_text, read_props
from graphopt.ir.tensors import RawTensor, SparseTensor, byte_size, string_tensor

if TYPE_CHECKING:
    from graphopt.ir.external import DataFolder

_T = onnx.TensorProto
_VALUE_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
# Which typed field holds which element types; everything of at most 32 bits that is not listed: int32_data.
_TYPED_FIELD: dict[int, str] = {
    _T.FLOAT: "float_data",
    _T.COMPLEX64: "float_data",
    _T.DOUBLE: "double_data",
    _T.COMPLEX128: "double_data",
    _T.INT64: "int64_data",
    _T.UINT32: "uint64_data",
    _T.UINT64: "uint64_data",
    _T.STRING: "string_data",
}


class TensorReader:
    """Reads tensors of one model; external ones are checked against its folder.

    Args:
        folder: Where external data may be.
        model: What to call the model in errors.
    """

    def __init__(self, folder: DataFolder, model: str) -> None:
        self._folder = folder
        self._model = model

    def read(self, proto: onnx.TensorProto, owner: str = "") -> oir.TensorProtocol:
        """Return the tensor: inline numbers as :class:`RawTensor`, else a string or an external tensor.

        Args:
            proto: The message.
            owner: What holds the tensor, where it is no initializer.

        Raises:
            InvalidModelError: Type, shape and data do not fit together, or the external data is not there.
            UnsupportedModelError: The element type is not known, or the tensor is cut into segments.
        """
        name = as_text(proto.name, self._model)
        where = f"{owner or f'tensor {name!r}'} in {self._model}"
        dims = tuple(proto.dims)
        dtype = DATA_TYPES.get(proto.data_type)
        if dtype is None:
            raise UnsupportedModelError(f"its element type {proto.data_type} is not known", where=where)
        if dtype is oir.DataType.UNDEFINED:
            raise InvalidModelError("it has no element type", where=where)
        if any(dim < 0 for dim in dims):
            raise InvalidModelError(f"its shape {list(dims)} has a negative dim", where=where)
        if proto.HasField("segment"):
            raise UnsupportedModelError(
                "it is cut into segments, which graphopt cannot represent", where=where
            )
        about: dict[str, Any] = {
            "name": name or None,
            "doc_string": as_text(proto.doc_string, where) or None,
            "metadata_props": read_props(proto.metadata_props, where) if len(proto.metadata_props) else None,
        }
        entries = {as_text(e.key, where): as_text(e.value, where) for e in proto.external_data}
        tensor: oir.TensorProtocol
        if proto.data_location == _T.EXTERNAL:
            tensor = self._external(proto, dtype, dims, entries, where, about)
            for key in ("location", "offset", "length"):
                entries.pop(key, None)
        elif dtype is oir.DataType.STRING:
            tensor = self._strings(proto, dims, where, about)
        else:
            tensor = RawTensor(_inline_bytes(proto, dtype, dims, where), dtype, dims, **about)
        if entries:
            tensor.meta[meta.EXTERNAL_ENTRIES] = tuple(entries.items())
        return tensor

    def _external(
        self,
        proto: onnx.TensorProto,
        dtype: oir.DataType,
        dims: tuple[int, ...],
        entries: dict[str, str],
        where: str,
        about: dict[str, Any],
    ) -> oir.TensorProtocol:
        if dtype is oir.DataType.STRING:
            raise InvalidModelError("it holds strings, which cannot be external data", where=where)
        if any(len(getattr(proto, field)) for field in _VALUE_FIELDS):
            raise InvalidModelError("it has both inline and external data", where=where)
        if len(entries) != len(proto.external_data):
            raise InvalidModelError("a key of its external data occurs twice", where=where)
        about["name"] = about["name"] or ""
        return self._folder.tensor(entries, dtype, dims, **about)

    @staticmethod
    def _strings(
        proto: onnx.TensorProto, dims: tuple[int, ...], where: str, about: dict[str, Any]
    ) -> oir.TensorProtocol:
        items = list(proto.string_data)
        if len(items) != _count(dims) or any(
            len(getattr(proto, field)) for field in _VALUE_FIELDS if field != "string_data"
        ):
            raise InvalidModelError(
                f"its shape {list(dims)} needs {_count(dims)} strings, its data has {len(items)}", where=where
            )
        return string_tensor(items, dims, **about)

    def read_sparse(self, proto: onnx.SparseTensorProto, owner: str = "") -> SparseTensor:
        """Return the tensor, still sparse.

        Raises:
            InvalidModelError: As :meth:`read`, or values, indices and tensor do not fit together.
            UnsupportedModelError: As :meth:`read`.
        """
        where = f"{owner or f'sparse tensor {proto.values.name!r}'} in {self._model}"
        values = self.read(proto.values, owner)
        indices = self.read(proto.indices, owner or f"indices of sparse tensor {proto.values.name!r}")
        dims = tuple(proto.dims)
        count = values.shape.numpy()
        places = indices.shape.numpy()
        if (
            any(dim < 0 for dim in dims)
            or len(count) != 1
            or places not in {count, (*count, len(dims))}
            or indices.dtype is not oir.DataType.INT64
        ):
            raise InvalidModelError(
                f"values of shape {list(count)} and {indices.dtype.name} indices of shape {list(places)}"
                f" do not fit the shape {list(dims)}",
                where=where,
            )
        return SparseTensor(values, indices, dims, name=values.name)


def _count(dims: tuple[int, ...]) -> int:
    product = 1
    for dim in dims:
        product *= dim
    return product


def _inline_bytes(proto: onnx.TensorProto, dtype: oir.DataType, dims: tuple[int, ...], where: str) -> bytes:
    expected = byte_size(dtype, dims)
    if proto.HasField("raw_data"):
        field, data = "raw_data", proto.raw_data
    else:
        field = _TYPED_FIELD.get(proto.data_type, "int32_data")
        try:
            data = oir.serde.TensorProtoTensor(proto).tobytes() if len(getattr(proto, field)) else b""
        except (ValueError, OverflowError, AssertionError) as error:
            raise InvalidModelError(f"its {field} cannot be read ({error})", where=where) from error
    if len(data) != expected:
        raise InvalidModelError(
            f"type {dtype.name} and shape {list(dims)} need {expected} bytes, its {field} has {len(data)}",
            where=where,
        )
    others = [name for name in _VALUE_FIELDS if name != field and len(getattr(proto, name))]
    if others:
        raise InvalidModelError(f"it has data in both {field} and {others[0]}", where=where)
    return data
