"""Write what a script left of a GraphSurgeon graph into a store, beside the model that it came from.

Names decide identity, as in GraphSurgeon's own exporter: two tensor objects of one name are one value. What
GraphSurgeon has no place for (metadata, docs, annotations, exact types, overloads, devices, defaults of
inputs, hidden attributes) is taken from the original node or value, found by object or else by name.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs
import onnx_ir as oir
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.errors import PassFailed
from graphopt.ir.clone import clone_attribute, clone_value, copy_meta
from graphopt.ir.graphsurgeon import is_shown, variable_kind
from graphopt.ir.graphsurgeon_convert import (
    dim_of,
    element_type,
    fits,
    in_export_dtype,
    plain_attribute,
    reference_type,
    same_attribute,
    type_of,
)
from graphopt.ir.meta import peek_props
from graphopt.ir.tensors import from_array, same_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graphopt.ir.graphsurgeon import Origins
    from graphopt.ir.model import Model

Scopes = tuple[dict[str, oir.Value], ...]


class StoreWriter:
    """Writes one store.

    Args:
        model: The model as it was shown to the script.
        origins: Where the parts that were shown come from.
    """

    def __init__(self, model: Model, origins: Origins) -> None:
        self._model = model
        self._origins = origins
        self._seen: set[oir.Node] = set()
        self._tensors: dict[int, tuple[object, oir.TensorProtocol]] = {}
        self.nodes_added = 0
        self.nodes_removed = 0
        self.tensors_changed = 0

    def model(self, surgeon: gs.Graph) -> oir.Model:
        """Return the store of *surgeon*, the main graph."""
        old = self._model.store
        functions = [self._function(function) for function in surgeon.functions]
        overloaded = [function for function in old.functions.values() if function.overload]
        self._seen.update(node for function in overloaded for node in function.all_nodes())
        graph = self._graph(surgeon, (), self._model.graph)
        graph.opset_imports.update(_opsets(surgeon, old.graph.opset_imports, graph))
        self._restore_defaults(graph)
        store = oir.Model(
            graph,
            ir_version=surgeon.ir_version or old.ir_version,
            producer_name=surgeon.producer_name or old.producer_name,  # Graph.copy() forgets both
            producer_version=surgeon.producer_version or old.producer_version,
            domain=old.domain,
            model_version=old.model_version,
            doc_string=old.doc_string,
            functions=[*functions, *overloaded],
            metadata_props=dict(old.metadata_props),
            device_configurations=old.device_configurations,
        )
        copy_meta(old, store)
        for each in (graph, *(function.graph for function in functions)):
            _sort(each)
        self.nodes_removed = sum(node not in self._seen for node in self._model.nodes())
        return _ordered_functions(store, old)

    def _function(self, surgeon: gs.Function) -> oir.Function:
        identifier = (surgeon.domain or "", surgeon.name, "")
        old = self._model.functions.get(identifier)
        graph = self._graph(surgeon, (), None if old is None else old.graph, in_function=True)
        imports = {} if old is None else old.graph.opset_imports
        graph.opset_imports.update(_opsets(surgeon, imports, graph))
        known: Mapping[str, oir.Attr] = {} if old is None else old.attributes
        attributes = []
        for name, default in surgeon.attrs.items():
            if default is None:
                attributes.append(oir.Attr(name, oir.AttributeType.UNDEFINED, None))
            else:
                attributes.append(self._attribute(name, default, known.get(name), (), surgeon.name))
        attributes += [
            item for item in known.values() if item.name not in surgeon.attrs and not is_shown(item)
        ]
        if old is not None:  # required ones and ones with a default stand in lists of their own
            order = {name: place for place, name in enumerate(known)}
            attributes.sort(key=lambda attribute: order.get(attribute.name, len(order)))
        return oir.Function(*identifier, graph=graph, attributes=attributes)

    def _graph(
        self, surgeon: gs.Graph, outer: Scopes, fallback: oir.Graph | None, *, in_function: bool = False
    ) -> oir.Graph:
        old = self._origins.graphs.get(id(surgeon), fallback)
        local: dict[str, oir.Value] = {}
        scopes = (local, *outer)
        values = _OldValues(old, self._origins)
        inputs = [self._declare(tensor, local, values, "an input of the graph") for tensor in surgeon.inputs]
        for node in surgeon.nodes:
            for tensor in node.outputs:
                if not tensor.is_empty():
                    self._declare(tensor, local, values, f"an output of node {_label(node)}", fresh=True)
        constants = self._constants(surgeon, local, outer, values, old)
        nodes = [self._node(node, scopes) for node in surgeon.nodes]
        outputs = [_find(tensor, (local,), "an output of the graph") for tensor in surgeon.outputs]
        if in_function:
            nodes = [*_constant_nodes(constants, self._model), *nodes]
            constants = []
        graph = oir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=constants,
            doc_string=surgeon.doc_string or None,
            opset_imports={} if old is None else dict(old.opset_imports),
            name=surgeon.name or None,
            metadata_props=None if old is None else dict(peek_props(old)),
        )
        if old is not None:
            copy_meta(old, graph)
            graph.name = old.name if surgeon.name == old.name else graph.name
        return graph

    def _declare(
        self,
        tensor: gs.Tensor,
        local: dict[str, oir.Value],
        values: _OldValues,
        role: str,
        *,
        fresh: bool = False,
    ) -> oir.Value:
        if tensor.name in local:
            if fresh:
                raise PassFailed("the value is produced twice", where=f"value {tensor.name!r}, {role}")
            return local[tensor.name]
        if fresh and isinstance(tensor, gs.Constant):
            raise PassFailed(
                "the value is a constant and also produced by a node",
                where=f"value {tensor.name!r}, {role}",
                hint="Clear tensor.inputs before to_constant().",
            )
        value = local[tensor.name] = values.like(tensor)
        return value

    def _constants(
        self,
        surgeon: gs.Graph,
        local: dict[str, oir.Value],
        outer: Scopes,
        values: _OldValues,
        old: oir.Graph | None,
    ) -> list[oir.Value]:
        """Return the initializers: known ones in their old order, then new ones in order of use."""
        found: dict[str, gs.Constant] = {}
        own = {} if old is None else old.initializers
        for tensor in _used(surgeon):
            if isinstance(tensor, gs.Constant) and not any(tensor.name in scope for scope in outer):
                _add_constant(found, tensor)
        for tensor in _used_inside(surgeon):
            # A constant that only inner graphs read stays where it was; a new one belongs to its reader.
            if isinstance(tensor, gs.Constant) and tensor.name in own:
                _add_constant(found, tensor)
        constants: dict[str, oir.Value] = {}
        for name, constant in found.items():
            value = local.get(name)
            if value is not None and value.producer() is None and constant not in surgeon.inputs:
                raise PassFailed("the value is a constant and also a variable", where=f"value {name!r}")
            if value is None:
                value = local[name] = values.like(constant)
            value.const_value = self._tensor(constant)
            constants[name] = value
        for name, idle in own.items():
            if name not in constants and name not in local and not idle.uses() and not idle.is_graph_output():
                # GraphSurgeon does not show what nothing uses.
                kept = values.copy(name)
                kept.const_value = idle.const_value
                constants[name] = local[name] = kept
        order = {name: place for place, name in enumerate(own)}
        return sorted(constants.values(), key=lambda value: order.get(value.name or "", len(order)))

    def _tensor(self, constant: gs.Constant) -> oir.TensorProtocol:
        """Return the tensor of *constant*: the original object unless its content differs."""
        values = constant._values  # noqa: SLF001 - reading .values would load it
        if isinstance(values, LazyValues):
            origin = getattr(values, "origin", None)
            if origin is not None:
                return origin  # type: ignore[no-any-return]  # onnx_graphsurgeon has no types
            values = values.load()  # from another model that the script has read
        if id(values) in self._tensors:
            return self._tensors[id(values)][1]
        tensor = from_array(in_export_dtype(constant, values), constant.name)
        _, read = self._origins.read.get(id(values), (None, None))
        if read is not None and same_bytes(tensor, read):
            tensor = read
        else:
            self.tensors_changed += 1
        self._tensors[id(values)] = (values, tensor)
        return tensor

    def _node(self, surgeon: gs.Node, scopes: Scopes) -> oir.Node:
        label = f"node {_label(surgeon)}"
        old = self._origins.nodes.get(id(surgeon)) or self._node_by_output(surgeon)
        if old is None:
            self.nodes_added += 1
        else:
            self._seen.add(old)
        same_op = old is not None and old.op_type == surgeon.op and old.domain == _domain(surgeon)
        known: Mapping[str, oir.Attr] = {} if old is None else old.attributes
        attributes = [
            self._attribute(name, content, known.get(name), scopes, label)
            for name, content in surgeon.attrs.items()
        ]
        if same_op:
            attributes += [
                clone_attribute(attribute, self._captured(attribute, scopes))
                for attribute in known.values()
                if not is_shown(attribute)
            ]
            order = {name: place for place, name in enumerate(known)}
            attributes.sort(key=lambda attribute: order.get(attribute.name, len(order)))
        inputs = [
            None if tensor.is_empty() else _find(tensor, scopes, f"an input of {label}")
            for tensor in surgeon.inputs
        ]
        outputs = [
            oir.Value(name="") if tensor.is_empty() else scopes[0][tensor.name] for tensor in surgeon.outputs
        ]
        node = oir.Node(
            _domain(surgeon),
            surgeon.op,
            inputs,
            attributes,
            outputs=outputs,
            overload=old.overload if old is not None and same_op else "",
            version=old.version if old is not None and same_op else None,
            name=surgeon.name or "",  # None would make onnx-ir invent one
            doc_string=None if old is None else old.doc_string,
            metadata_props=None if old is None else dict(peek_props(old)) or None,
        )
        if old is not None:
            copy_meta(old, node)
            if same_op and old.device_configurations:
                node.device_configurations = tuple(_devices(old, scopes))
        return node

    def _node_by_output(self, surgeon: gs.Node) -> oir.Node | None:
        """Return the original of a node of a copied graph: same operator, same first output."""
        name = next((tensor.name for tensor in surgeon.outputs if not tensor.is_empty()), None)
        if name is None:
            return None
        if not hasattr(self, "_producers"):
            self._producers = {
                value.name: node for node in self._model.nodes() for value in node.outputs if value.name
            }
        node = self._producers.get(name)
        return node if node is not None and node not in self._seen and node.op_type == surgeon.op else None

    def _attribute(
        self, name: str, content: object, old: oir.Attr | None, scopes: Scopes, label: str
    ) -> oir.Attr:
        new: oir.Attr
        if isinstance(content, gs.Graph):
            fallback = old.as_graph() if old is not None and old.type is oir.AttributeType.GRAPH else None
            new = oir.AttrGraph(name, self._graph(content, scopes, fallback))
        elif isinstance(content, gs.Node.AttributeRef):
            if old is not None and old.is_ref() and old.ref_attr_name == content.name:
                new = oir.RefAttr(name, content.name, old.type)
            else:
                new = oir.RefAttr(name, content.name, reference_type(content.type))
        elif isinstance(content, gs.Constant):
            new = oir.AttrTensor(name, self._tensor(content))
        elif old is not None and not old.is_ref() and is_shown(old) and same_attribute(content, old):
            return clone_attribute(old, {})
        else:
            new = plain_attribute(name, content, old, label)
        if old is not None and old.type == new.type:
            new.doc_string = old.doc_string
            copy_meta(old, new)
        return new

    def _captured(self, attribute: oir.Attr, scopes: Scopes) -> dict[oir.Value, oir.Value]:
        """Return what the bodies of a hidden attribute read from outside, mapped to the new values."""
        graphs = attribute.as_graphs() if attribute.type is oir.AttributeType.GRAPHS else ()
        nodes = [node for graph in graphs for node in graph.all_nodes()]
        self._seen.update(nodes)
        own = {value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())}
        own.update(value for node in nodes for value in node.outputs)
        read = {value for node in nodes for value in node.inputs if value is not None} - own
        return {
            value: scope[value.name]
            for value in read
            for scope in scopes[::-1]
            if value.name is not None and value.name in scope
        }

    def _restore_defaults(self, graph: oir.Graph) -> None:
        """Make initializers inputs again that were both; GraphSurgeon takes them for plain constants."""
        place = 0
        names = {value.name: index for index, value in enumerate(graph.inputs)}
        for value in self._model.graph.inputs:
            name = value.name or ""
            if name in names:
                place = max(place, next(k for k, item in enumerate(graph.inputs) if item.name == name) + 1)
            elif value.is_initializer() and name in graph.initializers:
                graph.inputs.insert(place, graph.initializers[name])
                place += 1
        if self._model.ir_version < 4:  # there every initializer is an input
            shown = {value.name for value in graph.inputs}
            graph.inputs.extend(value for value in graph.initializers.values() if value.name not in shown)


class _OldValues:
    """The values of one original graph, by name."""

    def __init__(self, old: oir.Graph | None, origins: Origins) -> None:
        self._values: dict[str, oir.Value] = {}
        self._kinds: dict[str, tuple[object, ...]] = {}
        if old is None:
            return
        self._kinds = origins.kinds.get(id(old), {})
        for node in old:
            self._values.update((value.name, value) for value in node.outputs if value.name)
        for group in (old.initializers.values(), old.inputs, old.outputs):
            self._values.update((value.name, value) for value in group if value.name)

    def copy(self, name: str) -> oir.Value:
        """Return a new value with everything that is known about the one called *name*."""
        return clone_value(self._values[name])

    def like(self, tensor: gs.Tensor) -> oir.Value:
        """Return a value for *tensor*, of the original type and shape unless the script changed them."""
        old = self._values.get(tensor.name)
        value = oir.Value(name=tensor.name) if old is None else clone_value(old)
        if isinstance(tensor, gs.Constant):
            if old is None or old.const_value is None:
                dtype, shape = element_type(tensor.dtype, tensor.name), list(tensor.shape)
                value.type, value.shape = oir.TensorType(dtype), oir.Shape(shape)
            elif value.shape is not None and not fits(value.shape, tensor.shape):
                value.shape = oir.Shape(list(tensor.shape))
            return value
        kind = variable_kind(tensor)
        if old is None or self._kinds.get(tensor.name) != kind:
            value.type = None if tensor.dtype is None else type_of(tensor)
            value.shape = None if tensor.shape is None else oir.Shape([dim_of(dim) for dim in tensor.shape])
        return value


def _used(surgeon: gs.Graph) -> Iterator[gs.Tensor]:
    for node in surgeon.nodes:
        yield from (tensor for tensor in node.inputs if not tensor.is_empty())
    yield from surgeon.inputs
    yield from surgeon.outputs


def _used_inside(surgeon: gs.Graph) -> Iterator[gs.Tensor]:
    for graph in surgeon.subgraphs(recursive=True):
        yield from _used(graph)


def _add_constant(found: dict[str, gs.Constant], constant: gs.Constant) -> None:
    other = found.setdefault(constant.name, constant)
    if other is not constant and other._values is not constant._values:  # noqa: SLF001 - reading .values would load it
        raise PassFailed(
            "two different constants have the same name",
            where=f"value {constant.name!r}",
            hint="Give the new one a name of its own.",
        )


def _constant_nodes(constants: Sequence[oir.Value], model: Model) -> Iterator[oir.Node]:
    """Yield Constant nodes in place of initializers, which the body of a function cannot hold."""
    for value in constants:
        tensor, value.const_value = value.const_value, None
        name = model.fresh_name(f"{value.name}_constant")
        attribute = oir.AttrTensor("value", tensor)  # type: ignore[arg-type]  # set by _constants
        yield oir.Node("", "Constant", (), [attribute], outputs=[value], name=name)


def _find(tensor: gs.Tensor, scopes: Sequence[dict[str, oir.Value]], role: str) -> oir.Value:
    for scope in scopes:
        if tensor.name in scope:
            return scope[tensor.name]
    raise PassFailed(
        "nothing produces the value, and it is no input and no constant",
        where=f"value {tensor.name!r}, {role}",
    )


def _label(node: gs.Node) -> str:
    return repr(node.name) if node.name else f"{node.op} -> {[tensor.name for tensor in node.outputs]}"


def _domain(node: gs.Node) -> str:
    return "" if node.domain in {None, "ai.onnx"} else str(node.domain)


def _devices(old: oir.Node, scopes: Scopes) -> Iterator[oir.NodeDeviceConfiguration]:
    for configuration in old.device_configurations:
        specs = []
        for spec in configuration.sharding_specs:
            name = None if spec.value is None else spec.value.name
            value = next((scope[name] for scope in scopes if name in scope), None) if name else None
            if value is not None or spec.value is None:
                specs.append(dataclasses.replace(spec, value=value))
        yield dataclasses.replace(configuration, sharding_specs=tuple(specs))


def _opsets(surgeon: gs.Graph, old: Mapping[str, int], graph: oir.Graph) -> dict[str, int]:
    """Return the operator sets: the graph's, the version that a script set, any new domain at 1."""
    imports = {item.domain: item.version for item in surgeon.import_domains or ()}
    default = "ai.onnx" if "ai.onnx" in imports and "" not in imports else ""
    used = {node.domain for node in graph.all_nodes()}
    if default in imports or "" in used:
        if imports.get(default) == old.get(default):
            imports[default] = surgeon.opset  # a script that only sets graph.opset means it
        used.discard("")
    for domain in sorted(used):
        imports.setdefault(domain, 1)
    return imports


def _sort(graph: oir.Graph) -> None:
    """Sort the nodes of *graph* and its subgraphs, only where a script left them out of order."""
    for each in (graph, *graph.subgraphs()):
        place = {node: index for index, node in enumerate(each)}
        if any(place.get(source, -1) > place[node] for node in each for source in _sources(node, place)):
            try:
                graph.sort()
            except ValueError as error:
                raise PassFailed("the script left a cycle", where=f"graph {graph.name!r}") from error
            return


def _sources(node: oir.Node, place: Mapping[oir.Node, int]) -> Iterator[oir.Node]:
    inner = (
        each
        for attribute in node.attributes.values()
        if attribute.type is oir.AttributeType.GRAPH and not attribute.is_ref()
        for each in attribute.as_graph().all_nodes()
    )
    for reader in (node, *inner):
        for value in reader.inputs:
            source = None if value is None else value.producer()
            if source is not None and source in place:
                yield source


def _ordered_functions(store: oir.Model, old: oir.Model) -> oir.Model:
    """Put functions that were there before back into their old order, new ones behind."""
    order = {identifier: index for index, identifier in enumerate(old.functions)}
    functions = sorted(store.functions.items(), key=lambda item: order.get(item[0], len(order)))
    store.functions.clear()
    store.functions.update(functions)
    return store
