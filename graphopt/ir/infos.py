"""Types, shapes and value_info entries: between protobuf messages and onnx-ir's objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as oir

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.ir.meta import DECLARED, EXACT, peek_meta, peek_props

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Type = oir.TensorType | oir.SparseTensorType | oir.SequenceType | oir.OptionalType

_PLACES = ("value_info", "input", "output")

DATA_TYPES = {int(member): member for member in oir.DataType}


def as_text(text: str | bytes, where: str) -> str:
    """Return *text*; protobuf hands out bytes where a text field is not UTF-8.

    Raises:
        InvalidModelError: It is bytes.
    """
    if isinstance(text, str):
        return text
    raise InvalidModelError(f"the text {text!r} is not UTF-8", where=where)


def read_props(entries: Iterable[onnx.StringStringEntryProto], where: str) -> dict[str, str] | None:
    """Return string entries as a dict, None where there are none.

    Raises:
        InvalidModelError: A key occurs twice; ONNX wants them distinct.
    """
    props: dict[str, str] | None = None
    for entry in entries:
        if props is None:
            props = {}
        if entry.key in props:
            raise InvalidModelError(f"the metadata key {entry.key!r} occurs twice", where=where)
        props[as_text(entry.key, where)] = as_text(entry.value, where)
    return props


def write_props(entries: Iterable[onnx.StringStringEntryProto], props: Mapping[str, str]) -> None:
    """Append *props* in their order."""
    for key, value in props.items():
        entries.add(key=key, value=value)  # type: ignore[attr-defined]  # a repeated field


def read_type(proto: onnx.TypeProto, where: str) -> tuple[Type | None, oir.Shape | None, bool]:
    """Return (type, shape, whether the two say all that *proto* says).

    The shape is that of the innermost tensor. A message without an element type has no type here.

    Raises:
        UnsupportedModelError: It is or holds a map, an opaque type, or an element type that is not known.
    """
    kind = proto.WhichOneof("value")
    denotation = as_text(proto.denotation, where) or None
    if kind == "tensor_type" or kind == "sparse_tensor_type":  # noqa: PLR1714 - twice as fast as a set here
        tensor = proto.tensor_type if kind == "tensor_type" else proto.sparse_tensor_type
        dtype = DATA_TYPES.get(tensor.elem_type)
        if dtype is None:
            raise UnsupportedModelError(f"its element type {tensor.elem_type} is not known", where=where)
        shape = read_shape(tensor.shape, where) if tensor.HasField("shape") else None
        if not tensor.elem_type:
            return None, shape, False
        if kind == "tensor_type":
            return oir.TensorType(dtype, denotation=denotation), shape, True
        return oir.SparseTensorType(dtype, denotation=denotation), shape, True
    if kind == "sequence_type" or kind == "optional_type":  # noqa: PLR1714 - as above
        holder = proto.sequence_type if kind == "sequence_type" else proto.optional_type
        inner, shape, exact = read_type(holder.elem_type, where)
        if inner is None:
            return None, None, False
        wrap = oir.SequenceType if kind == "sequence_type" else oir.OptionalType
        return wrap(inner, denotation=denotation), shape, exact
    if kind is not None:
        raise UnsupportedModelError(
            f"it is or holds a value of {kind.replace('_', ' ')}, which graphopt cannot represent",
            where=where,
            hint="Cut the model so that this value lies outside.",
        )
    return None, None, False


def read_shape(proto: onnx.TensorShapeProto, where: str) -> oir.Shape:
    """Return the shape, unfrozen; a dim of -1 is one that is not known.

    ONNX gives negative dims no meaning. Paddle's converter wrote -1 all the same, and onnxruntime and onnx's
    checker take it for a dim without a size.

    Raises:
        InvalidModelError: A dim is below -1, or a text is not UTF-8.
    """
    dims: list[int | str | None] = []
    denotations: list[str | None] | None = None
    for k, dim in enumerate(proto.dim):
        which = dim.WhichOneof("value")
        if which == "dim_value":
            if dim.dim_value < -1:
                raise InvalidModelError(f"dim {k} of its shape is {dim.dim_value}", where=where)
            dims.append(None if dim.dim_value == -1 else dim.dim_value)
        else:
            dims.append(as_text(dim.dim_param, where) if which else None)
        if dim.denotation:
            denotations = denotations or [None] * len(proto.dim)
            denotations[k] = as_text(dim.denotation, where)
    return oir.Shape(dims, denotations)


def dim_name(dim: int | oir.SymbolicDim) -> str | None:
    """Return the name of a dim that is open; None where it has none.

    Paddle's converter calls every dim that it does not know "?": height and width of an image are not equal
    because both are called so.
    """
    name = None if isinstance(dim, int) else dim.value
    return None if name in {"", "?"} else name


def write_type(proto: onnx.TypeProto, type_: oir.TypeProtocol | None, shape: oir.Shape | None) -> None:
    """Fill in *proto*; a shape without a type has no place in ONNX and stays out."""
    if type_ is None:
        return
    if type_.denotation:
        proto.denotation = type_.denotation
    if isinstance(type_, oir.TensorType):
        tensor = proto.tensor_type
    elif isinstance(type_, oir.SparseTensorType):
        tensor = proto.sparse_tensor_type
    elif isinstance(type_, oir.SequenceType | oir.OptionalType):
        is_sequence = isinstance(type_, oir.SequenceType)
        holder = proto.sequence_type if is_sequence else proto.optional_type
        write_type(holder.elem_type, type_.elem_type, shape)
        return
    else:
        raise TypeError(f"a value has type {type_!r}")
    tensor.elem_type = int(type_.dtype)
    if shape is not None:
        write_shape(tensor.shape, shape)


def write_shape(proto: onnx.TensorShapeProto, shape: oir.Shape) -> None:
    """Fill in *proto*; a shape without dims is that of a scalar."""
    proto.SetInParent()
    add = proto.dim.add
    for k, dim in enumerate(shape.dims):
        entry = add()
        if isinstance(dim, int):
            entry.dim_value = dim
        elif dim.value is not None:
            entry.dim_param = dim.value
        denotation = shape.get_denotation(k)
        if denotation:
            entry.denotation = denotation


def read_info(proto: onnx.ValueInfoProto, value: oir.Value, place: str, where: str) -> None:
    """Put what *proto* says into *value*, and remember it whole where onnx-ir has no room for it.

    Args:
        proto: An entry of a graph's inputs, outputs or value_info.
        value: The value of that name; a later entry overrides an earlier one.
        place: ``value_info``, ``input`` or ``output``; entries of one value have to come in this order.
        where: How errors call the value.
    """
    again = value.type is not None or value.shape is not None or peek_meta(value) or says_something(value)
    if again:
        # What earlier entries said is, up to here, what the value says; settle_exact drops what stays true.
        said = _plain_bytes(value)
        for earlier in _PLACES[: _PLACES.index(place)]:
            value.meta.setdefault(EXACT, {}).setdefault(earlier, (b"", said))
    exact = True
    if proto.HasField("type"):
        type_, shape, exact = read_type(proto.type, where)
        if type_ is not None or value.type is None:
            # Where two entries agree on the type, the one that knows the shape is worth more.
            value.shape = value.shape if shape is None and type_ == value.type else shape
            value.type = type_
    if proto.doc_string or again:
        value.doc_string = as_text(proto.doc_string, where) or value.doc_string
    if len(proto.metadata_props):
        value.metadata_props.update(read_props(proto.metadata_props, where) or {})
    if place == "value_info" and not says_something(value):
        value.meta[DECLARED] = True
    if again or not exact:
        value.meta.setdefault(EXACT, {})[place] = (b"", proto.SerializeToString(deterministic=True))


def settle_exact(value: oir.Value) -> None:
    """Finish :func:`read_info` once all entries of *value* are read: keep those that it does not express."""
    exact = peek_meta(value).get(EXACT)
    if not exact:
        return
    now = _plain_bytes(value)
    kept = {place: (now, read) for place, (_, read) in exact.items() if read != now}
    if kept:
        value.meta[EXACT] = kept
    else:
        del value.meta[EXACT]


def _plain_bytes(value: oir.Value) -> bytes:
    plain = onnx.ValueInfoProto()
    write_plain_info(plain, value)
    data: bytes = plain.SerializeToString(deterministic=True)
    return data


def misfit(value: oir.Value, tensor: oir.TensorProtocol) -> str:
    """Return how the declared type or shape of an initializer contradicts its tensor, empty where it fits."""
    if value.dtype is not None and value.dtype != tensor.dtype:
        return f"it is declared as {value.dtype.name}, its tensor is {tensor.dtype.name}"
    dims = tensor.shape.numpy()
    if value.shape is not None and not (
        len(value.shape) == len(dims)
        and all(not isinstance(want, int) or want == got for want, got in zip(value.shape, dims, strict=True))
    ):
        return f"it is declared with shape {value.shape}, its tensor has {list(dims)}"
    return ""


def says_something(value: oir.Value) -> bool:
    """Return whether there is anything but a name to write about *value*."""
    return bool(value.type is not None or value.doc_string or peek_props(value))


def write_plain_info(proto: onnx.ValueInfoProto, value: oir.Value, name: str = "") -> None:
    """Fill in *proto* with what *value* says itself."""
    proto.name = name or value.name or ""
    if value.type is not None:
        write_type(proto.type, value.type, value.shape)
    if value.doc_string:
        proto.doc_string = value.doc_string
    props = peek_props(value)
    if props:
        write_props(proto.metadata_props, props)


def write_info(proto: onnx.ValueInfoProto, value: oir.Value, place: str) -> None:
    """Fill in *proto*, exactly as it was read where *value* has not changed since."""
    write_plain_info(proto, value)
    exact = peek_meta(value).get(EXACT)
    if exact and place in exact:
        now, read = exact[place]
        if proto.SerializeToString(deterministic=True) == now:
            proto.ParseFromString(read)
