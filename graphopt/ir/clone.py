"""An independent copy of a store that shares nothing mutable with it.

onnx-ir's own clone shares types, attributes, annotations and writable arrays, and loses what it does not
know; an edit of the copy must never show in the original, because that is what a roll-back returns to.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

from graphopt.ir.meta import peek_meta, peek_props
from graphopt.ir.tensors import freeze_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def clone_store(store: oir.Model) -> oir.Model:
    """Return a copy of *store*; tensors are shared, and their arrays frozen so that sharing is safe."""
    cloner = _Cloner()
    functions = [cloner.function(function) for function in store.functions.values()]
    clone = oir.Model(
        cloner.graph(store.graph),
        ir_version=store.ir_version,
        producer_name=store.producer_name,
        producer_version=store.producer_version,
        domain=store.domain,
        model_version=store.model_version,
        doc_string=store.doc_string,
        functions=functions,
        metadata_props=_props(store),
        device_configurations=store.device_configurations,
    )
    _copy_meta(store, clone)
    return clone


def clone_part(
    store: oir.Model,
    nodes: Iterable[oir.Node],
    inputs: Mapping[oir.Value, oir.Value],
    outputs: Iterable[oir.Value],
) -> oir.Model:
    """Return a copy of some *nodes* of the main graph of *store*, as a model of their own.

    Args:
        store: The whole; only what is copied is looked at.
        nodes: Nodes of its main graph, in graph order.
        inputs: The new graph input that stands for each value which the nodes do not compute themselves.
        outputs: What becomes the graph outputs; none of them is among the inputs.
    """
    cloner = _Cloner()
    old = store.graph
    copied = [cloner._node(node) for node in nodes]  # noqa: SLF001 - the class is this module's own
    values = cloner._values  # noqa: SLF001 - as above
    # Nodes are copied whole, then their inputs are replaced: one that computes an input beside what is
    # wanted keeps an output of its own.
    used = []
    for value, given in inputs.items():
        known = values.get(value)
        if known is None or not known.uses():
            continue
        for user, index in known.uses():
            user.replace_input_with(index, given)
        known.name = f"{value.name}_computed"
        used.append(given)
    replaced = set(inputs)
    graph = oir.Graph(
        used,
        [cloner.value(value) for value in outputs],
        nodes=copied,
        initializers=[
            values[value] for value in old.initializers.values() if value in values and value not in replaced
        ],
        doc_string=old.doc_string,
        opset_imports=dict(old.opset_imports),
        name=old.name,
        metadata_props=_props(old),
    )
    _copy_meta(old, graph)
    clone = oir.Model(
        graph,
        ir_version=store.ir_version,
        functions=[cloner.function(function) for function in store.functions.values()],
    )
    _copy_meta(store, clone)
    return clone


def clone_value(value: oir.Value) -> oir.Value:
    """Return a copy of *value* that no node produces or uses; its tensor is shared and frozen."""
    return _Cloner().value(value)


def clone_attribute(attribute: oir.Attr, captured: Mapping[oir.Value, oir.Value]) -> oir.Attr:
    """Return a copy of *attribute*; bodies in it read what *captured* maps their outer values to."""
    cloner = _Cloner()
    cloner._values.update(captured)  # noqa: SLF001 - the class is this module's own
    return cloner._attribute(attribute)  # noqa: SLF001 - as above


def copy_meta(old: Any, new: Any) -> None:  # noqa: ANN401 - as _props
    """Copy everything remembered about a model, graph, node, value or attribute to another one."""
    _copy_meta(old, new)


def _props(thing: Any) -> dict[str, str] | None:  # noqa: ANN401 - model, graph, node or value
    props = peek_props(thing)
    return dict(props) if props else None


def _copy_meta(old: Any, new: Any) -> None:  # noqa: ANN401 - as _props
    for key, item in peek_meta(old).items():
        new.meta[key] = copy.copy(item) if isinstance(item, dict | list | set) else item
        if not old.meta.is_valid(key):
            new.meta.invalidate(key)


def _type(old: oir.TypeProtocol) -> oir.TypeProtocol:
    # Types are mutable: setting the dtype of a value writes into its type object.
    if isinstance(old, oir.TensorType):
        return oir.TensorType(old.dtype, denotation=old.denotation)
    if isinstance(old, oir.SparseTensorType):
        return oir.SparseTensorType(old.dtype, denotation=old.denotation)
    if isinstance(old, oir.SequenceType):
        return oir.SequenceType(_type(old.elem_type), denotation=old.denotation)
    if isinstance(old, oir.OptionalType):
        return oir.OptionalType(_type(old.elem_type), denotation=old.denotation)
    return copy.copy(old)


class _Cloner:
    def __init__(self) -> None:
        self._values: dict[oir.Value, oir.Value] = {}

    def value(self, old: oir.Value) -> oir.Value:
        new = self._values.get(old)
        if new is None:
            shape, type_, tensor = old.shape, old.type, old.const_value
            if tensor is not None:
                freeze_tensor(tensor)
            new = self._values[old] = oir.Value(
                name=old.name,
                shape=None if shape is None else shape.copy(),
                type=None if type_ is None else _type(type_),
                doc_string=old.doc_string,
                const_value=tensor,
                metadata_props=_props(old),
            )
            if peek_meta(old):
                _copy_meta(old, new)
        return new

    def graph(self, old: oir.Graph) -> oir.Graph:
        new = oir.Graph(
            [self.value(value) for value in old.inputs],
            [self.value(value) for value in old.outputs],
            nodes=[self._node(node) for node in old],
            initializers=[self.value(value) for value in old.initializers.values()],
            doc_string=old.doc_string,
            opset_imports=dict(old.opset_imports),
            name=old.name,
            metadata_props=_props(old),
        )
        _copy_meta(old, new)
        return new

    def function(self, old: oir.Function) -> oir.Function:
        return oir.Function(
            old.domain,
            old.name,
            old.overload,
            graph=self.graph(old.graph),
            attributes=[self._attribute(attribute) for attribute in old.attributes.values()],
        )

    def _node(self, old: oir.Node) -> oir.Node:
        value = self.value
        attributes = [self._attribute(attribute) for attribute in old.attributes.values()]
        new = oir.Node(
            old.domain,
            old.op_type,
            [None if item is None else value(item) for item in old.inputs],
            attributes,
            overload=old.overload,
            outputs=[value(item) for item in old.outputs],
            version=old.version,
            name=old.name,
            doc_string=old.doc_string,
            metadata_props=_props(old),
        )
        if old.device_configurations:
            new.device_configurations = tuple(self._devices(old.device_configurations))
        if peek_meta(old):
            _copy_meta(old, new)
        return new

    def _devices(self, old: Iterable[oir.NodeDeviceConfiguration]) -> Iterable[oir.NodeDeviceConfiguration]:
        for configuration in old:
            specs = [
                spec if spec.value is None else dataclasses.replace(spec, value=self.value(spec.value))
                for spec in configuration.sharding_specs
            ]
            yield dataclasses.replace(configuration, sharding_specs=tuple(specs))

    def _attribute(self, old: oir.Attr) -> oir.Attr:
        kind, content = old.type, old.value
        if old.is_ref():
            new = oir.RefAttr(old.name, old.ref_attr_name or "", kind, doc_string=old.doc_string)
        else:
            if content is None:
                pass
            elif kind is oir.AttributeType.GRAPH:
                content = self.graph(content)
            elif kind is oir.AttributeType.GRAPHS:
                content = [self.graph(graph) for graph in content]
            elif kind is oir.AttributeType.TENSOR:
                freeze_tensor(content)
            elif kind is oir.AttributeType.TENSORS:
                for tensor in content:
                    freeze_tensor(tensor)
            elif kind is oir.AttributeType.TYPE_PROTO:
                content = _type_and_shape(content)
            elif kind is oir.AttributeType.TYPE_PROTOS:
                content = [_type_and_shape(item) for item in content]
            new = oir.Attr(old.name, kind, content, doc_string=old.doc_string)
        _copy_meta(old, new)
        return new


def _type_and_shape(old: oir.TypeAndShape) -> oir.TypeAndShape:
    return oir.TypeAndShape(
        None if old.type is None else _type(old.type), None if old.shape is None else old.shape.copy()
    )
