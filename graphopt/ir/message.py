"""Writes a store into a ModelProto: the mirror image of lower.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
import onnx_ir as oir

from graphopt.errors import VerifyError
from graphopt.ir import meta
from graphopt.ir.infos import says_something, write_info, write_plain_info, write_props, write_type
from graphopt.ir.tensors import SparseTensor, to_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_EXPERIMENTAL_FUNCTION_INFO_BEFORE = 10
"""Before this IR version value_info of functions stands in the main graph (see lower.py)."""


class Slot(NamedTuple):
    """Where a tensor's bytes stand in a data file: location, and offset and length in bytes."""

    location: str
    offset: int
    length: int


class MessageWriter:
    """Writes one store.

    Args:
        store: The store.
        slots: Where tensors stand in the new data file, by ``id``; all others go inline. None leaves external
            tensors where they are.
    """

    def __init__(self, store: oir.Model, slots: Mapping[int, Slot] | None = None) -> None:
        self._store = store
        self._slots = slots

    def model(self) -> onnx.ModelProto:
        """Return the message.

        Raises:
            VerifyError: Something in the store cannot be written, for example an attribute out of range.
        """
        store = self._store
        proto = onnx.ModelProto(ir_version=store.ir_version)
        for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            content = getattr(store, field)
            if content:
                setattr(proto, field, content)
        for domain, version in store.graph.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        write_props(proto.metadata_props, meta.peek_props(store))
        for configuration in store.device_configurations:
            proto.configuration.append(oir.serde.serialize_model_configuration(configuration))
        self._graph(proto.graph, store.graph)
        for function in store.functions.values():
            self._function(proto, function)
        return proto

    def _graph(self, proto: onnx.GraphProto, graph: oir.Graph) -> None:
        proto.name = graph.name or ""
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        write_props(proto.metadata_props, meta.peek_props(graph))
        # A value may be input, initializer and output at once; what stands beside it is written once.
        done: set[oir.Value] = set()
        for value in graph.inputs:
            write_info(proto.input.add(), value, "input")
            self._beside(proto, value, done, declared_only=True)
        for value in graph.initializers.values():
            self._initializer(proto, value)
            self._beside(proto, value, done, declared_only=not says_more_than_its_tensor(value))
        for node in graph:
            self._node(proto.node.add(), node)
            for value in node.outputs:
                self._beside(proto, value, done, declared_only=value.is_graph_output())
        for value in graph.outputs:
            write_info(proto.output.add(), value, "output")
        self._leftovers(proto, graph)

    @staticmethod
    def _beside(
        proto: onnx.GraphProto, value: oir.Value, done: set[oir.Value], *, declared_only: bool
    ) -> None:
        notes = meta.peek_meta(value)
        if not notes:
            if not declared_only and value.name and says_something(value):
                write_info(proto.value_info.add(), value, "value_info")
            return
        if value in done or not value.name:
            return
        done.add(value)
        if notes.get(meta.DECLARED) or (not declared_only and says_something(value)):
            write_info(proto.value_info.add(), value, "value_info")
        pairs = notes.get(meta.QUANTIZATION)
        if pairs is not None:
            annotation = proto.quantization_annotation.add(tensor_name=value.name)
            write_props(annotation.quant_parameter_tensor_names, pairs)

    def _initializer(self, proto: onnx.GraphProto, value: oir.Value) -> None:
        tensor = value.const_value
        if tensor is None:
            raise VerifyError("the initializer has no tensor", where=f"value {value.name!r}")
        if isinstance(tensor, SparseTensor):
            self._sparse(proto.sparse_initializer.add(), tensor, value.name or "")
        else:
            self._tensor(proto.initializer.add(), tensor, value.name or "")

    @staticmethod
    def _leftovers(proto: onnx.GraphProto | onnx.FunctionProto, graph: oir.Graph) -> None:
        notes = meta.peek_meta(graph)
        infos = notes.get(meta.LEFTOVER_INFOS, ())
        annotations = notes.get(meta.LEFTOVER_ANNOTATIONS, ())
        if not (infos or annotations):
            return
        known = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        known.update(value.name for node in graph for value in node.outputs)
        for data in infos:
            info = onnx.ValueInfoProto.FromString(data)
            # A pass may have given the name to a value of its own since.
            if info.name not in known:
                proto.value_info.append(info)
        for data in annotations:
            proto.quantization_annotation.append(onnx.TensorAnnotation.FromString(data))

    def _function(self, model: onnx.ModelProto, function: oir.Function) -> None:
        proto = model.functions.add(name=function.name, domain=function.domain)
        graph = function.graph
        if function.overload:
            proto.overload = function.overload
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        for domain, version in graph.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        write_props(proto.metadata_props, meta.peek_props(graph))
        for attribute in function.attributes.values():
            if attribute.type == oir.AttributeType.UNDEFINED and not attribute.is_ref():
                proto.attribute.append(attribute.name)
            else:
                self._attribute(proto.attribute_proto.add(), attribute)
        inside = (
            self._store.ir_version >= _EXPERIMENTAL_FUNCTION_INFO_BEFORE
            or meta.INFOS_INSIDE in meta.peek_meta(graph)
        )
        infos = proto.value_info if inside else model.graph.value_info
        prefix = "" if inside else f"{function.domain}::{function.name}/"

        def declare(value: oir.Value) -> None:
            if value.name and (says_something(value) or meta.DECLARED in meta.peek_meta(value)):
                if inside:
                    write_info(infos.add(), value, "value_info")
                else:
                    write_plain_info(infos.add(), value, prefix + value.name)

        for value in graph.inputs:
            proto.input.append(value.name or "")
            declare(value)
        for node in graph:
            self._node(proto.node.add(), node)
            for value in node.outputs:
                declare(value)
        proto.output.extend(value.name or "" for value in graph.outputs)
        self._leftovers(proto, graph)

    def _node(self, proto: onnx.NodeProto, node: oir.Node) -> None:
        try:
            proto.op_type = node.op_type
            domain = node.domain
            notes = meta.peek_meta(node)
            if notes and not domain:
                domain = notes.get(meta.DOMAIN_AS_READ, "")
            if domain:
                proto.domain = domain
            if node.name:
                proto.name = node.name
            if node.overload:
                proto.overload = node.overload
            if node.doc_string:
                proto.doc_string = node.doc_string
            proto.input.extend(["" if value is None else value.name or "" for value in node.inputs])
            proto.output.extend([value.name or "" for value in node.outputs])
            for attribute in node.attributes.values():
                self._attribute(proto.attribute.add(), attribute)
            props = meta.peek_props(node)
            if props:
                write_props(proto.metadata_props, props)
            for configuration in node.device_configurations:
                proto.device_configurations.append(
                    oir.serde.serialize_node_device_configuration(configuration)
                )
        except (TypeError, ValueError) as error:
            raise VerifyError(f"it cannot be written ({error})", where=f"node {node.name!r}") from error

    def _attribute(self, proto: onnx.AttributeProto, attribute: oir.Attr) -> None:
        kind, content = attribute.type, attribute.value
        proto.name = attribute.name
        proto.type = int(kind)  # type: ignore[assignment]  # the stub wants its own enum
        if attribute.doc_string:
            proto.doc_string = attribute.doc_string
        if attribute.is_ref():
            proto.ref_attr_name = attribute.ref_attr_name or ""
            return
        plain = _PLAIN_WRITERS.get(kind)
        if plain is not None:
            plain(proto, content)
            return
        names = meta.peek_meta(attribute).get(meta.TENSOR_NAMES, ())
        if kind is oir.AttributeType.TENSOR:
            self._tensor(proto.t, content, names[0] if names else "")
        elif kind is oir.AttributeType.TENSORS:
            for k, tensor in enumerate(content):
                self._tensor(proto.tensors.add(), tensor, names[k] if names else "")
        elif kind is oir.AttributeType.SPARSE_TENSOR:
            self._sparse(proto.sparse_tensor, content, names[0] if names else "")
        elif kind is oir.AttributeType.SPARSE_TENSORS:
            for k, tensor in enumerate(content):
                self._sparse(proto.sparse_tensors.add(), tensor, names[k] if names else "")
        elif kind is oir.AttributeType.GRAPH:
            self._graph(proto.g, content)
        elif kind is oir.AttributeType.GRAPHS:
            for graph in content:
                self._graph(proto.graphs.add(), graph)
        elif kind is oir.AttributeType.TYPE_PROTO:
            write_type(proto.tp, content.type, content.shape)
        elif kind is oir.AttributeType.TYPE_PROTOS:
            for item in content:
                write_type(proto.type_protos.add(), item.type, item.shape)
        else:
            raise ValueError(f"attribute {attribute.name!r} has no type")

    def _sparse(self, proto: onnx.SparseTensorProto, tensor: oir.TensorProtocol, name: str) -> None:
        if not isinstance(tensor, SparseTensor):
            raise TypeError(f"expected a sparse tensor, got {type(tensor).__name__}")
        self._tensor(proto.values, tensor.values, name)
        self._tensor(proto.indices, tensor.indices, tensor.indices.name or "")
        proto.dims.extend(tensor.shape.numpy())

    def _tensor(self, proto: onnx.TensorProto, tensor: oir.TensorProtocol, name: str) -> None:
        if isinstance(tensor, SparseTensor):
            raise TypeError("a sparse tensor stands where ONNX wants a dense one")
        if name:
            proto.name = name
        if tensor.doc_string:
            proto.doc_string = tensor.doc_string
        proto.data_type = int(tensor.dtype)
        proto.dims.extend(tensor.shape.numpy())
        entries: Iterable[tuple[str, object]] = ()
        slot = self._slots.get(id(tensor)) if self._slots is not None else None
        if slot is not None:
            proto.data_location = onnx.TensorProto.EXTERNAL
            entries = slot._asdict().items()
        elif self._slots is None and isinstance(tensor, oir.ExternalTensor):
            proto.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": tensor.location, "offset": tensor.offset, "length": tensor.length}
            entries = [(key, item) for key, item in place.items() if item is not None]
            entries += meta.peek_meta(tensor).get(meta.EXTERNAL_ENTRIES, ())
        elif isinstance(tensor, oir.StringTensor):
            proto.string_data.extend(tensor.string_data())
        else:
            proto.raw_data = bytes(to_buffer(tensor))
        for key, item in entries:
            proto.external_data.add(key=key, value=str(item))
        props = meta.peek_props(tensor)
        if props:
            write_props(proto.metadata_props, props)


def says_more_than_its_tensor(value: oir.Value) -> bool:
    """Return whether value_info of an initializer would add to its tensor and to its entry as an input."""
    return bool(not value.is_graph_input() and (value.doc_string or meta.peek_props(value)))


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _write_text(proto: onnx.AttributeProto, content: str | bytes) -> None:
    proto.s = _bytes(content)


_A = oir.AttributeType
_PLAIN_WRITERS: dict[oir.AttributeType, Callable[[onnx.AttributeProto, Any], None]] = {
    _A.INT: lambda proto, content: setattr(proto, "i", content),
    _A.FLOAT: lambda proto, content: setattr(proto, "f", content),
    _A.STRING: _write_text,
    _A.INTS: lambda proto, content: proto.ints.extend(content),
    _A.FLOATS: lambda proto, content: proto.floats.extend(content),
    _A.STRINGS: lambda proto, content: proto.strings.extend(map(_bytes, content)),
}
