"""A readable form of a model that is the same for the same model: golden tests, ``graphopt inspect --text``.

It shows what is computed: graphs, functions, nodes with attributes, types, constants. It cannot be read back;
metadata, documentation and annotations are left out, and large tensors are named by a short hash.

    model: ir_version=8, opset {"": 17}
    graph main(%x: f32[N,3,224,224]) {
      %w: f32[64,3,7,7] = initializer #1f0c9a2b
      %y: f32[N,64,112,112] = Conv(%x, %w) {strides=[2,2]}  # conv1
      return %y
    }
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.ir.model import Model

_SHORT = {
    "FLOAT": "f32",
    "DOUBLE": "f64",
    "FLOAT16": "f16",
    "BFLOAT16": "bf16",
    "INT8": "i8",
    "INT16": "i16",
    "INT32": "i32",
    "INT64": "i64",
    "UINT8": "u8",
    "UINT16": "u16",
    "UINT32": "u32",
    "UINT64": "u64",
    "BOOL": "bool",
    "STRING": "str",
    "COMPLEX64": "c64",
    "COMPLEX128": "c128",
}
_HASH_DIGITS = 8


def to_text(model: Model, *, weights: bool = True, limit: int = 8) -> str:
    """Return the text form of *model*, ending with a newline.

    Args:
        model: Any model.
        weights: Show a hash of tensors that are not shown in full, which reads them; else only their type.
        limit: Tensors of at most this many elements are shown in full.
    """
    return "".join(f"{line}\n" for line in _Printer(weights=weights, limit=limit).model(model))


def type_text(value: oir.Value) -> str:
    """Return dtype and shape of *value* as ``f32[N,3,224,224]``; "?" stands for what is not declared."""
    return _type(value.type, value.shape)


def _type(type_: oir.TypeProtocol | None, shape: oir.Shape | None) -> str:
    if type_ is None:
        return "?"
    if isinstance(type_, oir.SequenceType | oir.OptionalType):
        kind = "seq" if isinstance(type_, oir.SequenceType) else "optional"
        return f"{kind}({_type(type_.elem_type, None)})"
    name = _dtype(type_.dtype)
    text = name if shape is None else f"{name}[{','.join(_dim(dim) for dim in shape)}]"
    return f"sparse({text})" if isinstance(type_, oir.SparseTensorType) else text


def _dtype(dtype: oir.DataType) -> str:
    return _SHORT.get(dtype.name, dtype.name.lower())


def _dim(dim: int | oir.SymbolicDim) -> str:
    if isinstance(dim, oir.SymbolicDim):
        return str(dim.value) if dim.value is not None else "?"
    return str(dim)


class _Printer:
    def __init__(self, *, weights: bool, limit: int) -> None:
        self._weights = weights
        self._limit = limit

    def model(self, model: Model) -> Iterator[str]:
        yield f"model: ir_version={model.ir_version}, opset {json.dumps(model.opset_imports, sort_keys=True)}"
        yield from self._graph(f"graph {model.graph.name or 'main'}", model.graph, "")
        for (domain, name, overload), function in sorted(model.functions.items()):
            label = f"{domain}.{name}" if domain else name
            label += f":{overload}" if overload else ""
            attributes = [
                key if attribute.value is None else f"{key}={self._attribute_value(attribute)}"
                for key, attribute in function.attributes.items()
            ]
            label += f" <{', '.join(attributes)}>" if attributes else ""
            label += f" opset {json.dumps(function.opset_imports, sort_keys=True)}"
            yield from self._graph(f"function {label}", function.graph, "")

    def _graph(self, title: str, graph: oir.Graph, indent: str) -> Iterator[str]:
        inputs = ", ".join(self._typed(value) for value in graph.inputs)
        yield f"{indent}{title}({inputs}) {{"
        inner = indent + "  "
        for value in graph.initializers.values():
            default = "default" if value.is_graph_input() else "initializer"
            content = "" if value.const_value is None else self._tensor(value.const_value)
            name = f"%{value.name}" if value.is_graph_input() else self._typed(value)
            yield f"{inner}{name} = {default} {content}".rstrip()
        for node in graph:
            yield from self._node(node, inner)
        yield f"{inner}return {', '.join(self._output(value) for value in graph.outputs)}".rstrip()
        yield f"{indent}}}"

    def _node(self, node: oir.Node, indent: str) -> Iterator[str]:
        outputs = ", ".join(self._typed(value) if value.name else "_" for value in node.outputs)
        inputs = ", ".join(
            "_" if value is None or not value.name else f"%{value.name}" for value in node.inputs
        )
        op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        op_type += f":{node.overload}" if node.overload else ""
        plain = [a for _, a in sorted(node.attributes.items()) if not _is_graph(a)]
        bodies = [a for _, a in sorted(node.attributes.items()) if _is_graph(a)]
        attributes = ", ".join(f"{a.name}={self._attribute_value(a)}" for a in plain)
        line = f"{indent}{outputs} = {op_type}({inputs})" if outputs else f"{indent}{op_type}({inputs})"
        line += f" {{{attributes}}}" if attributes else ""
        line += f"  # {node.name}" if node.name else ""
        yield line
        for attribute in bodies:
            graphs: Sequence[oir.Graph]
            if attribute.type == oir.AttributeType.GRAPH:
                graphs = [attribute.as_graph()]
            else:
                graphs = attribute.as_graphs()
            for graph in graphs:
                yield from self._graph(f"{attribute.name} = graph", graph, indent + "    ")

    def _typed(self, value: oir.Value) -> str:
        type_ = type_text(value)
        return f"%{value.name}" if type_ == "?" else f"%{value.name}: {type_}"

    def _output(self, value: oir.Value) -> str:
        # The type of an output that a node produces stands at the node.
        return f"%{value.name}"

    def _attribute_value(self, attribute: oir.Attr) -> str:
        if attribute.is_ref():
            return f"@{attribute.ref_attr_name}"
        value = attribute.value
        kind = attribute.type
        if kind == oir.AttributeType.TENSOR:
            return self._tensor(value, typed=True)
        if kind == oir.AttributeType.TENSORS:
            return f"[{', '.join(self._tensor(tensor, typed=True) for tensor in value)}]"
        if isinstance(value, list | tuple):
            return f"[{','.join(_scalar(item) for item in value)}]"
        return _scalar(value)

    def _tensor(self, tensor: oir.TensorProtocol, *, typed: bool = False) -> str:
        shape = tensor.shape.numpy()
        prefix = f"{_dtype(tensor.dtype)}[{','.join(map(str, shape))}] " if typed else ""
        if math.prod(shape) <= self._limit:
            return prefix + _nested(tensors.to_array(tensor).tolist())
        if not self._weights:
            return f"{prefix}...".strip()
        return f"{prefix}#{_hash(tensor)}"


def _is_graph(attribute: oir.Attr) -> bool:
    return not attribute.is_ref() and attribute.type in {oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS}


def _nested(item: object) -> str:
    if isinstance(item, list):
        return f"[{','.join(_nested(part) for part in item)}]"
    return _scalar(item)


def _scalar(item: object) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, int):
        return str(item)
    if isinstance(item, bytes):
        return json.dumps(item.decode("utf-8", "backslashreplace"))
    if isinstance(item, str):
        return json.dumps(item)
    if isinstance(item, complex):
        return str(item)
    try:
        number = float(item)  # type: ignore[arg-type]  # a float or a scalar of a low-precision type
    except (TypeError, ValueError):
        return str(item)
    # Six digits are what a reader compares; attributes are stored as float32, whose further digits are noise.
    return f"{number:.6g}"


def _hash(tensor: oir.TensorProtocol) -> str:
    digest = hashlib.blake2b(digest_size=_HASH_DIGITS // 2)
    if tensor.dtype == oir.DataType.STRING:
        for item in tensors.to_array(tensor).reshape(-1).tolist():
            digest.update(len(item).to_bytes(8, "little") + bytes(item))
    else:
        digest.update(np.frombuffer(tensor.tobytes(), np.uint8))
    return digest.hexdigest()
