"""From a GraphProto to an onnx-ir graph, each rule of ONNX checked where it is met."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as oir

from graphopt.errors import InvalidModelError
from graphopt.ir import meta
from graphopt.ir.infos import as_text, misfit, read_info, read_props, read_type, settle_exact
from graphopt.ir.order import explain_unresolved
from graphopt.ir.read_attributes import FIELDS, PLAIN_READERS, contradiction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.ir.read_tensors import TensorReader

Scope = dict[str, oir.Value]


class GraphReader:
    """Reads the graphs of one message; read_model.py reads what is around them.

    Args:
        tensors: Reads the tensors.
        name: What to call the model in errors.
    """

    def __init__(self, tensors: TensorReader, name: str) -> None:
        self._tensors = tensors
        self._name = name
        self._opsets: dict[str, int] = {}
        self._configurations: dict[str, oir.ModelConfiguration] = {}
        self._references: frozenset[str] = frozenset()  # attributes of the function that is being read
        self._texts: list[str] = []  # everything that has to be text; joined at the end of each graph

    def _invalid(self, message: str, what: str = "", hint: str = "") -> InvalidModelError:
        return InvalidModelError(message, where=f"{what} in {self._name}" if what else self._name, hint=hint)

    def _graph(
        self, proto: onnx.GraphProto, outer: list[Scope], label: str, skip_infos: Iterable[str] = ()
    ) -> oir.Graph:
        scope: Scope = {}
        scopes = [*outer, scope]
        infos = {info.name: info for info in proto.value_info if info.name not in skip_infos}
        repeated = len(infos) + len(set(skip_infos)) != len(proto.value_info)
        inputs = self._inputs(proto, scope, infos, label)
        initializers = self._initializers(proto, scope, infos, label)
        nodes = self._nodes(proto.node, scopes, infos)
        outputs = self._outputs(proto, scope, infos, label)
        for name, value in scope.items():
            if meta.peek_meta(value):
                settle_exact(value)
            self._texts.append(name)
        for value in initializers:
            problem = "" if value.const_value is None else misfit(value, value.const_value)
            if problem:
                raise self._invalid(problem, f"initializer {value.name!r}")
        self._texts += [proto.name, proto.doc_string]
        graph = oir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            doc_string=proto.doc_string or None,
            name=proto.name or None,
            metadata_props=read_props(proto.metadata_props, f"{label} in {self._name}"),
        )
        self._leftovers(graph, proto, set(infos) - scope.keys(), repeated=repeated)
        self._annotations(graph, proto, scope)
        self._check_texts(label)
        return graph

    def _inputs(
        self, proto: onnx.GraphProto, scope: Scope, infos: dict[str, onnx.ValueInfoProto], label: str
    ) -> list[oir.Value]:
        inputs = []
        for info in proto.input:
            name = info.name
            if not name:
                raise self._invalid("it has an input without a name", label)
            if name in scope:
                raise self._invalid(f"the name {name!r} is given to two inputs", label)
            value = scope[name] = oir.Value(name=name)
            if name in infos:
                self._declared(infos, value)
            read_info(info, value, "input", f"input {name!r} in {self._name}")
            inputs.append(value)
        return inputs

    def _initializers(
        self, proto: onnx.GraphProto, scope: Scope, infos: dict[str, onnx.ValueInfoProto], label: str
    ) -> list[oir.Value]:
        initializers: dict[str, oir.Value] = {}
        dense = (self._tensors.read(tensor) for tensor in proto.initializer)
        sparse = (self._tensors.read_sparse(tensor) for tensor in proto.sparse_initializer)
        for tensor in (*dense, *sparse):
            name = tensor.name
            if not name:
                raise self._invalid("it has an initializer without a name", label)
            if name in initializers:
                raise self._invalid(f"the name {name!r} is given to two initializers", label)
            value = scope.get(name)
            if value is None:
                value = scope[name] = oir.Value(name=name)
                if name in infos:
                    self._declared(infos, value)
                if value.type is None:
                    value.type = oir.TensorType(tensor.dtype)
                    value.shape = oir.Shape(tensor.shape.numpy())
            value.const_value = tensor
            initializers[name] = value
        return list(initializers.values())

    def _outputs(
        self, proto: onnx.GraphProto, scope: Scope, infos: dict[str, onnx.ValueInfoProto], label: str
    ) -> list[oir.Value]:
        outputs: list[oir.Value] = []
        seen: dict[str, bytes] = {}
        for info in proto.output:
            name = info.name
            value = scope.get(name)
            if value is None:
                if not name:
                    raise self._invalid("it has an output without a name", label)
                raise self._invalid(
                    f"nothing in it produces its output {name!r}",
                    label,
                    "A value of an outer graph needs an Identity node to become an output.",
                )
            message = info.SerializeToString(deterministic=True)
            if name not in seen:
                if name in infos:
                    value.meta[meta.DECLARED] = True
                read_info(info, value, "output", f"output {name!r} in {self._name}")
            elif seen[name] != message:
                raise self._invalid(f"it lists its output {name!r} twice with different types", label)
            seen[name] = message
            outputs.append(value)
        return outputs

    def _declared(self, infos: dict[str, onnx.ValueInfoProto], value: oir.Value) -> None:
        read_info(infos[value.name or ""], value, "value_info", f"value {value.name!r} in {self._name}")
        value.meta[meta.DECLARED] = True

    # Nodes

    def _nodes(
        self,
        protos: Iterable[onnx.NodeProto],
        scopes: list[Scope],
        infos: dict[str, onnx.ValueInfoProto],
    ) -> list[oir.Node]:
        nodes = []
        scope = scopes[-1]
        texts = self._texts
        for index, proto in enumerate(protos):
            op_type, domain = proto.op_type, proto.domain
            if domain not in self._opsets and not self._is_default_imported(domain):
                raise self._invalid(
                    f"its domain {domain or 'ai.onnx'!r} is no operator set that the model imports",
                    _node_label(proto),
                )
            if not op_type:
                raise self._invalid("it has no op_type", _node_label(proto) + f" (number {index})")
            inputs: list[oir.Value | None] = []
            for name in proto.input:
                value = scope.get(name)
                if value is None and name:
                    for outer in reversed(scopes):
                        if name in outer:
                            value = outer[name]
                            break
                    else:
                        reason = explain_unresolved(name, protos, index)
                        raise self._invalid(reason, _node_label(proto))
                inputs.append(value)
            attributes = [self._attribute(item, scopes, proto) for item in proto.attribute]
            if len(attributes) > 1 and len({item.name for item in attributes}) < len(attributes):
                raise self._invalid("two of its attributes have the same name", _node_label(proto))
            outputs = [self._declare(name, scopes, infos, proto) for name in proto.output]
            node = oir.Node(
                domain,
                op_type,
                inputs,
                attributes,
                overload=proto.overload,
                outputs=outputs,
                name=proto.name,
                doc_string=proto.doc_string or None,
                metadata_props=read_props(proto.metadata_props, _node_label(proto))
                if len(proto.metadata_props)
                else None,
            )
            if domain and node.domain != domain:
                node.meta[meta.DOMAIN_AS_READ] = domain
            if len(proto.device_configurations):
                node.device_configurations = self._devices(proto, scopes)
            texts.append(op_type)
            texts.append(proto.name)
            texts.append(proto.doc_string)
            texts.append(proto.overload)
            nodes.append(node)
        return nodes

    def _is_default_imported(self, domain: str) -> bool:
        return domain in {"", "ai.onnx"} and ("" in self._opsets or "ai.onnx" in self._opsets)

    def _declare(
        self, name: str, scopes: list[Scope], infos: dict[str, onnx.ValueInfoProto], node: onnx.NodeProto
    ) -> oir.Value:
        value = oir.Value(name=name)
        if not name:
            return value
        for scope in scopes:
            if name in scope:
                raise self._invalid(
                    f"its output {name!r} has the name of another value; ONNX wants each name given once",
                    _node_label(node),
                )
        scopes[-1][name] = value
        info = infos.get(name)
        if info is not None:
            read_info(info, value, "value_info", f"value {name!r} in {self._name}")
        return value

    def _attribute(self, proto: onnx.AttributeProto, scopes: list[Scope], node: onnx.NodeProto) -> oir.Attr:
        kind = proto.type
        self._texts += (proto.name, proto.doc_string, proto.ref_attr_name)
        reader = PLAIN_READERS.get(kind)
        if reader is not None and not proto.ref_attr_name:
            field, read = reader
            attribute = oir.Attr(
                proto.name, oir.AttributeType(kind), read(proto), doc_string=proto.doc_string or None
            )
            self._check_fields(proto, field, node)
            return attribute
        return self._rich_attribute(proto, scopes, node)

    def _rich_attribute(
        self, proto: onnx.AttributeProto, scopes: list[Scope], node: onnx.NodeProto
    ) -> oir.Attr:
        where = f"attribute {proto.name!r} of {_node_label(node)}"
        if proto.type not in FIELDS:
            raise self._invalid(
                "it has no type" if not proto.type else f"its type {proto.type} is not known", where
            )
        kind = oir.AttributeType(proto.type)
        doc = proto.doc_string or None
        if proto.ref_attr_name:
            self._check_fields(proto, "ref_attr_name", node)
            if proto.ref_attr_name not in self._references:
                raise self._invalid(
                    f"it refers to {proto.ref_attr_name!r}, which no function around it has", where
                )
            return oir.RefAttr(proto.name, proto.ref_attr_name, kind, doc_string=doc)
        self._check_fields(proto, FIELDS[proto.type], node)
        value: Any
        names: tuple[str, ...] = ()
        if kind is oir.AttributeType.TENSOR:
            value = self._tensors.read(proto.t, where)
            names = (proto.t.name,)
        elif kind is oir.AttributeType.TENSORS:
            value = [self._tensors.read(tensor, where) for tensor in proto.tensors]
            names = tuple(tensor.name for tensor in proto.tensors)
        elif kind is oir.AttributeType.SPARSE_TENSOR:
            value = self._tensors.read_sparse(proto.sparse_tensor, where)
            names = (proto.sparse_tensor.values.name,)
        elif kind is oir.AttributeType.SPARSE_TENSORS:
            value = tuple(self._tensors.read_sparse(tensor, where) for tensor in proto.sparse_tensors)
            names = tuple(tensor.values.name for tensor in proto.sparse_tensors)
        elif kind is oir.AttributeType.GRAPH:
            value = self._graph(proto.g, scopes, f"graph {proto.g.name!r} of {_node_label(node)}")
        elif kind is oir.AttributeType.GRAPHS:
            value = [self._graph(g, scopes, f"graph {g.name!r} of {_node_label(node)}") for g in proto.graphs]
        else:
            value = self._types(proto, where)
        attribute = oir.Attr(proto.name, kind, value, doc_string=doc)
        if any(names):
            attribute.meta[meta.TENSOR_NAMES] = names
        return attribute

    def _types(self, proto: onnx.AttributeProto, where: str) -> object:
        found = []
        for item in [proto.tp] if proto.type == onnx.AttributeProto.TYPE_PROTO else proto.type_protos:
            type_, shape, exact = read_type(item, f"{where} in {self._name}")
            if type_ is None or not exact:
                raise self._invalid("it holds a type without an element type", where)
            found.append(oir.TypeAndShape(type_, shape))
        return found[0] if proto.type == onnx.AttributeProto.TYPE_PROTO else found

    def _check_fields(self, proto: onnx.AttributeProto, field: str, node: onnx.NodeProto) -> None:
        problem = contradiction(proto, field)
        if problem:
            raise self._invalid(problem, f"attribute {proto.name!r} of {_node_label(node)}")

    def _devices(self, proto: onnx.NodeProto, scopes: list[Scope]) -> tuple[oir.NodeDeviceConfiguration, ...]:
        visible: Scope = {}
        for scope in scopes:
            visible.update(scope)
        found = []
        for item in proto.device_configurations:
            if not item.configuration_id or not all(spec.tensor_name for spec in item.sharding_spec):
                raise self._invalid(
                    "its device configuration names no configuration or no tensor", _node_label(proto)
                )
            self._texts += (item.configuration_id, *(spec.tensor_name for spec in item.sharding_spec))
            read = oir.serde.deserialize_node_device_configuration(item, values=visible)
            known = self._configurations.get(item.configuration_id)
            found.append(dataclasses.replace(read, configuration=known) if known is not None else read)
        return tuple(found)

    # What a graph has beside its nodes

    def _leftovers(
        self, graph: oir.Graph, proto: onnx.GraphProto, names: set[str], *, repeated: bool
    ) -> None:
        if repeated:
            seen: dict[str, bytes] = {}
            for info in proto.value_info:
                message = info.SerializeToString(deterministic=True)
                if seen.setdefault(info.name, message) != message:
                    raise self._invalid("its value_info says two things about it", f"value {info.name!r}")
        if names:
            graph.meta[meta.LEFTOVER_INFOS] = tuple(
                {
                    info.name: info.SerializeToString(deterministic=True)
                    for info in proto.value_info
                    if info.name in names
                }.values()
            )

    def _annotations(self, graph: oir.Graph, proto: onnx.GraphProto, scope: Scope) -> None:
        leftovers = []
        for item in proto.quantization_annotation:
            value = scope.get(item.tensor_name)
            where = f"a quantization annotation in {self._name}"
            pairs = {
                as_text(e.key, where): as_text(e.value, where) for e in item.quant_parameter_tensor_names
            }
            if (
                value is None
                or meta.QUANTIZATION in meta.peek_meta(value)
                or len(pairs) != len(item.quant_parameter_tensor_names)
            ):
                leftovers.append(item.SerializeToString(deterministic=True))
            else:
                value.meta[meta.QUANTIZATION] = pairs
        if leftovers:
            graph.meta[meta.LEFTOVER_ANNOTATIONS] = tuple(leftovers)

    def _check_texts(self, label: str) -> None:
        try:
            "".join(self._texts)
        except TypeError as error:
            # protobuf hands out bytes where a text field is not UTF-8.
            texts: list[object] = [*self._texts]
            bad = next(text for text in texts if not isinstance(text, str))
            raise self._invalid(f"the text {bad!r} is not UTF-8", label) from error
        self._texts.clear()


def _node_label(proto: onnx.NodeProto) -> str:
    if proto.name:
        return f"node {proto.name!r} ({proto.op_type})"
    first = next((name for name in proto.output if name), "")
    return f"the {proto.op_type} node that makes {first!r}"
