"""From a ModelProto to an onnx-ir store: the model around its graph, and its functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as oir

from graphopt.errors import UnsupportedModelError
from graphopt.ir import meta
from graphopt.ir.infos import read_info, read_props, settle_exact
from graphopt.ir.order import find_call_cycle
from graphopt.ir.read_graph import GraphReader, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

MIN_IR_VERSION = 3
"""Earlier files carry no opset_import, so the meaning of their operators is not defined."""

_EXPERIMENTAL_FUNCTION_INFO_BEFORE = 10
"""Before this IR version functions have no value_info; exporters put it into the main graph."""


class ModelReader(GraphReader):
    """Reads one message into a store; see the base class for what it is made with."""

    def model(self, proto: onnx.ModelProto) -> oir.Model:
        """Return the store.

        Raises:
            InvalidModelError: The message breaks a rule of ONNX.
            UnsupportedModelError: It has something that graphopt cannot keep.
        """
        self._check_header(proto)
        imports = self._imports(proto.opset_import, "the model")
        self._configurations = {
            item.name: oir.serde.deserialize_model_configuration(item) for item in proto.configuration
        }
        experimental: dict[str, onnx.ValueInfoProto] = {}
        if proto.ir_version < _EXPERIMENTAL_FUNCTION_INFO_BEFORE and len(proto.functions):
            experimental = {info.name: info for info in proto.graph.value_info if "::" in info.name}
        functions = [self._function(item, experimental) for item in proto.functions]
        self._check_functions(functions)
        self._opsets = imports
        claimed = {f"{f.domain}::{f.name}/{value.name}" for f in functions for value in _own_values(f)}
        graph = self._graph(proto.graph, [], "the main graph", skip_infos=claimed & experimental.keys())
        graph.opset_imports.update(imports)
        self._texts += [text for item in proto.configuration for text in (item.name, *item.device)]
        self._texts += [proto.producer_name, proto.producer_version, proto.domain, proto.doc_string]
        self._check_texts("the model")
        return oir.Model(
            graph,
            ir_version=proto.ir_version,
            producer_name=proto.producer_name or None,
            producer_version=proto.producer_version or None,
            domain=proto.domain or None,
            model_version=proto.model_version or None,
            doc_string=proto.doc_string or None,
            functions=functions,
            metadata_props=read_props(proto.metadata_props, self._name),
            device_configurations=tuple(self._configurations.values()),
        )

    def _check_header(self, proto: onnx.ModelProto) -> None:
        if not proto.ir_version or not proto.HasField("graph"):
            lacks = "graph" if proto.ir_version else "IR version"
            raise self._invalid(f"it is not an ONNX model: it has no {lacks}")
        if proto.ir_version < MIN_IR_VERSION:
            raise UnsupportedModelError(
                f"its IR version {proto.ir_version} names no operator set; expected {MIN_IR_VERSION} or more",
                where=self._name,
                hint="Convert it with the exporter that made it.",
            )
        if len(proto.training_info):
            raise UnsupportedModelError(
                "it has training_info, which graphopt cannot represent",
                where=self._name,
                hint="Export the model for inference.",
            )
        if not len(proto.opset_import):
            raise self._invalid("it imports no operator set (opset_import is empty)")
        graph = proto.graph
        if not (len(graph.node) or len(graph.output)):
            raise self._invalid("its graph has neither nodes nor outputs")

    def _imports(self, entries: Iterable[onnx.OperatorSetIdProto], owner: str) -> dict[str, int]:
        imports: dict[str, int] = {}
        for entry in entries:
            self._texts.append(entry.domain)
            if entry.version < 1:
                raise self._invalid(
                    f"it imports version {entry.version} of operator set {entry.domain or 'ai.onnx'!r}", owner
                )
            if imports.setdefault(entry.domain, entry.version) != entry.version:
                raise self._invalid(
                    f"the operator set {entry.domain or 'ai.onnx'!r} is imported with version"
                    f" {imports[entry.domain]} and {entry.version}",
                    owner,
                )
        return imports

    def _function(
        self, proto: onnx.FunctionProto, experimental: dict[str, onnx.ValueInfoProto]
    ) -> oir.Function:
        label = f"function {proto.domain}::{proto.name}"
        if not proto.name:
            raise self._invalid("it has no name", label)
        self._opsets = self._imports(proto.opset_import, label)
        scope: Scope = {}
        infos = {info.name: info for info in proto.value_info}
        if not infos and not proto.overload:
            infos = _experimental_infos(experimental, f"{proto.domain}::{proto.name}/")
        inputs = []
        for name in proto.input:
            if not name or name in scope:
                raise self._invalid(f"the name {name!r} is given to two inputs or is empty", label)
            value = scope[name] = oir.Value(name=name)
            if name in infos:
                read_info(infos[name], value, "value_info", f"input {name!r} of {label} in {self._name}")
            inputs.append(value)
        self._references = frozenset((*proto.attribute, *(item.name for item in proto.attribute_proto)))
        nodes = self._nodes(proto.node, [scope], infos)
        self._references = frozenset()
        missing = next((name for name in proto.output if name not in scope), None)
        if missing is not None:
            raise self._invalid(f"nothing in it produces its output {missing!r}", label)
        for name, value in scope.items():
            if name in infos:
                value.meta[meta.DECLARED] = True
            if meta.peek_meta(value):
                settle_exact(value)
            self._texts.append(name)
        graph = oir.Graph(
            inputs,
            [scope[name] for name in proto.output],
            nodes=nodes,
            doc_string=proto.doc_string or None,
            opset_imports=self._opsets,
            name=proto.name,
            metadata_props=read_props(proto.metadata_props, f"{label} in {self._name}"),
        )
        if len(proto.value_info):
            graph.meta[meta.INFOS_INSIDE] = True
            leftover = [info for name, info in infos.items() if name not in scope]
            if leftover:
                graph.meta[meta.LEFTOVER_INFOS] = tuple(
                    info.SerializeToString(deterministic=True) for info in leftover
                )
        owner = onnx.NodeProto(op_type=proto.name, domain=proto.domain)
        attributes = [self._attribute(item, [], owner) for item in proto.attribute_proto]
        attributes += [oir.Attr(name, oir.AttributeType.UNDEFINED, None) for name in proto.attribute]
        self._texts += proto.attribute
        if len({item.name for item in attributes}) < len(attributes):
            raise self._invalid("two of its attributes have the same name", label)
        self._texts += [proto.name, proto.domain, proto.overload, proto.doc_string]
        self._check_texts(label)
        return oir.Function(proto.domain, proto.name, proto.overload, graph=graph, attributes=attributes)

    def _check_functions(self, functions: list[oir.Function]) -> None:
        known = {}
        for function in functions:
            if function.identifier() in known:
                raise self._invalid("it is defined twice", f"function {function.domain}::{function.name}")
            known[function.identifier()] = function
        cycle = find_call_cycle(known)
        if cycle:
            path = " -> ".join(f"{domain}::{name}" for domain, name, _ in cycle)
            raise self._invalid(
                f"the function calls itself ({path})", f"function {cycle[0][0]}::{cycle[0][1]}"
            )


def _experimental_infos(
    experimental: dict[str, onnx.ValueInfoProto], prefix: str
) -> dict[str, onnx.ValueInfoProto]:
    found = {}
    for name, info in experimental.items():
        if name.startswith(prefix):
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(info)
            copy.name = name.removeprefix(prefix)
            found[copy.name] = copy
    return found


def _own_values(function: oir.Function) -> Iterable[oir.Value]:
    if meta.peek_meta(function.graph).get(meta.INFOS_INSIDE):
        return
    for value in (*function.inputs, *(output for node in function for output in node.outputs)):
        if meta.peek_meta(value).get(meta.DECLARED):
            yield value
