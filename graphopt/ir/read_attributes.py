"""Attributes of nodes: which field of AttributeProto holds which type, and how plain ones are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Callable


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        # ONNX asks for UTF-8, custom operators keep binary data there.
        return data


def contradiction(proto: onnx.AttributeProto, field: str) -> str:
    """Return how the fields of *proto* contradict its type, whose place is *field*; empty where they fit."""
    present = {descriptor.name for descriptor, _ in proto.ListFields()} - _ATTRIBUTE_HEADER
    wrong = present - {field}
    if wrong:
        return f"it says that it holds {field!r} but it also has {min(wrong)!r}"
    if field in _REQUIRED_FIELDS and field not in present:
        return f"it says that it holds {field!r} but it has none"
    return ""


_A = onnx.AttributeProto
PLAIN_READERS: dict[int, tuple[str, Callable[[onnx.AttributeProto], object]]] = {
    _A.INT: ("i", lambda proto: proto.i),
    _A.FLOAT: ("f", lambda proto: proto.f),
    _A.STRING: ("s", lambda proto: _text_or_bytes(proto.s)),
    _A.INTS: ("ints", lambda proto: tuple(proto.ints)),
    _A.FLOATS: ("floats", lambda proto: tuple(proto.floats)),
    _A.STRINGS: ("strings", lambda proto: tuple(_text_or_bytes(item) for item in proto.strings)),
}
"""Type -> its field and how that is read, for numbers and texts."""

FIELDS: dict[int, str] = {kind: field for kind, (field, _) in PLAIN_READERS.items()} | {
    _A.TENSOR: "t",
    _A.TENSORS: "tensors",
    _A.SPARSE_TENSOR: "sparse_tensor",
    _A.SPARSE_TENSORS: "sparse_tensors",
    _A.GRAPH: "g",
    _A.GRAPHS: "graphs",
    _A.TYPE_PROTO: "tp",
    _A.TYPE_PROTOS: "type_protos",
}
"""Type -> its field, for all types."""

_REQUIRED_FIELDS = frozenset({"t", "sparse_tensor", "g", "tp"})
_ATTRIBUTE_HEADER = frozenset({"name", "type", "doc_string"})
