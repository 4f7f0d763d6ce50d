"""Small edits that passes are made of, right for subgraphs, functions, graph outputs and shared values.

onnx-ir keeps, for each value, the nodes that use it in whatever graph they stand, so captured values need no
search. What it leaves to its caller is done here: an output of a graph keeps its name and its declared type
whatever produces it, a removed node lets go of what its bodies captured, initializers appear only where a
graph may hold them, and a new node remembers the metadata of what it replaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import PassFailed
from graphopt.ir import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from graphopt.ir.model import Model

_DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
# onnx-ir's serializer keeps the tensor names of quantization_annotation under this key of Value.meta.
_QUANTIZATION_KEY = "quant_parameter_tensor_names"


def is_overridable(value: oir.Value) -> bool:
    """Return whether *value* is an initializer whose content the caller of the model may replace."""
    return tensors.is_overridable(value)


def is_op(node: oir.Node | None, *op_types: str) -> bool:
    """Return whether *node* is one of the operators *op_types* of the default ONNX domain."""
    return node is not None and node.op_type in op_types and node.domain in _DEFAULT_DOMAINS


def users(value: oir.Value) -> tuple[oir.Node, ...]:
    """Return the nodes that read *value*, in any graph, each once, in order of first use."""
    return tuple(value.consumers())


def uses_outside_graph(value: oir.Value) -> tuple[oir.Node, ...]:
    """Return the nodes in other graphs than the one that defines *value* (its subgraphs) that read it."""
    return tuple(node for node in value.consumers() if node.graph is not value.graph)


def is_unused(value: oir.Value) -> bool:
    """Return whether nothing reads *value*: no node of any graph and no graph output."""
    return not value.uses() and not value.is_graph_output()


def sole_user(value: oir.Value) -> oir.Node | None:
    """Return the only node that reads *value*, or None where others do or it is a graph output.

    A node in a subgraph is never a sole user: it may run any number of times.
    """
    if value.is_graph_output():
        return None
    nodes = value.consumers()
    return nodes[0] if len(nodes) == 1 and nodes[0].graph is value.graph else None


def attribute(node: oir.Node, name: str, default: Any = None) -> Any:  # noqa: ANN401 - attributes are of many types
    """Return the value of attribute *name* of *node*, or *default* where it is absent.

    A reference to an attribute of the enclosing function has no value yet and gives *default* too; see
    :func:`has_reference`.
    """
    found = node.attributes.get(name)
    return default if found is None or found.is_ref() else found.value


def has_reference(node: oir.Node) -> bool:
    """Return whether some attribute of *node* refers to an attribute of the enclosing function."""
    attributes = node.attributes.data  # as in node_graphs
    return bool(attributes) and any(found.is_ref() for found in attributes.values())


def input_at(node: oir.Node, index: int) -> oir.Value | None:
    """Return input *index* of *node*, or None where it is omitted or beyond the last.

    An omitted input is None or, in models built by hand, a value with an empty name.
    """
    if index >= len(node.inputs):
        return None
    value = node.inputs[index]
    return None if value is None or value.name == "" else value


def constant_array(value: oir.Value | None, limit_bytes: int | None = None) -> npt.NDArray[Any] | None:
    """Return what *value* always holds, read-only, or None.

    Args:
        value: Any value, or None for an omitted input.
        limit_bytes: Give None for constants that take more than this, without reading them.
    """
    tensor = tensors.constant_of(value)
    if tensor is None or (limit_bytes is not None and not tensors.is_small(tensor, limit_bytes)):
        return None
    return tensors.to_array(tensor)


def node_graphs(node: oir.Node) -> Iterator[oir.Graph]:
    """Yield the bodies of *node* (If, Loop, Scan, ...), not those nested inside them."""
    # The dict inside: its wrapper answers in Python, and most nodes have no attributes at all.
    for found in node.attributes.data.values():
        if found.is_ref():
            continue
        if found.type == oir.AttributeType.GRAPH:
            yield found.as_graph()
        elif found.type == oir.AttributeType.GRAPHS:
            yield from found.as_graphs()


def nested_nodes(node: oir.Node) -> Iterator[oir.Node]:
    """Yield every node inside the bodies of *node*, at every depth."""
    for graph in node_graphs(node):
        yield from oir.traversal.RecursiveGraphIterator(graph)


def captured_values(node: oir.Node) -> tuple[oir.Value, ...]:
    """Return the values of outer graphs that the bodies of *node* read, each once, in order of first use."""
    bodies: set[oir.Graph] = set()
    inner: list[oir.Node] = []
    for graph in node_graphs(node):
        bodies.add(graph)
        bodies.update(graph.subgraphs())
        inner.extend(oir.traversal.RecursiveGraphIterator(graph))
    found: dict[oir.Value, None] = {}
    for body_node in inner:
        for value in body_node.inputs:
            if value is not None and value.graph is not None and value.graph not in bodies:
                found[value] = None
    return tuple(found)


def make_node(
    model: Model,
    op_type: str,
    inputs: Sequence[oir.Value | None],
    *,
    attributes: Mapping[str, Any] | None = None,
    domain: str = "",
    outputs: int | Sequence[str] = 1,
    name: str = "",
    replaces: Iterable[oir.Node] = (),
) -> oir.Node:
    """Return a new node, not yet part of any graph, with names that are fresh in *model*.

    Args:
        model: The model that it will stand in; only its names are used.
        op_type: Operator.
        inputs: Its inputs; None is an omitted one.
        attributes: Python values or ``onnx_ir.Attr`` by name.
        domain: Domain of the operator.
        outputs: How many outputs, or a name hint for each.
        name: Hint for the node's name; by default the name of the first node it replaces.
        replaces: Nodes whose metadata it inherits; where two carry the same key, the first wins.
    """
    replaced = tuple(replaces)
    hint = name or next((node.name for node in replaced if node.name), "") or op_type
    hints = [f"{hint}_output"] * outputs if isinstance(outputs, int) else outputs
    values = [oir.Value(name=model.fresh_name(output)) for output in hints]
    converted = [
        value if isinstance(value, oir.Attr) else oir.convenience.convert_attribute(key, value)
        for key, value in (attributes or {}).items()
    ]
    node = oir.Node(domain, op_type, inputs, converted, outputs=values, name=model.fresh_name(hint))
    for source in reversed(replaced):
        node.metadata_props.update(source.metadata_props)
        node.doc_string = source.doc_string or node.doc_string
    return node


def add_initializer(
    model: Model, graph: oir.Graph, name_hint: str, content: npt.NDArray[Any] | oir.TensorProtocol
) -> oir.Value:
    """Return a new constant value visible in *graph* and its subgraphs.

    It is an initializer, or, since the body of a function cannot hold any, the output of a Constant node at
    the body's start.

    Args:
        model: The model that *graph* is part of.
        graph: Where it is defined.
        name_hint: Its name, made fresh.
        content: An array, frozen and not copied, or a tensor.
    """
    name = model.fresh_name(name_hint)
    tensor = tensors.from_array(content, name) if isinstance(content, np.ndarray) else content
    type_, shape = oir.TensorType(tensor.dtype), oir.Shape(tensor.shape.numpy())
    if any(function.graph is graph for function in model.functions.values()):
        node = oir.Node(
            "",
            "Constant",
            (),
            [oir.AttrTensor("value", tensor)],
            outputs=[oir.Value(name=name, type=type_, shape=shape)],
            name=model.fresh_name(f"{name}_constant"),
        )
        if len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        return node.outputs[0]
    value = oir.Value(name=name, type=type_, shape=shape, const_value=tensor)
    graph.initializers.add(value)
    return value


def replace_value(model: Model, old: oir.Value, new: oir.Value) -> bool:
    """Let *new* stand in for *old* everywhere: in every node of every graph and as graph output.

    A graph output keeps its name, declared type, shape, documentation and metadata: the producer of *new*
    takes over the name where it may, else an Identity with that name is put behind it (*new* is an input, an
    initializer, another output, or belongs to an outer graph). The caller makes sure that *new* is defined
    before all uses of *old* and holds the same.

    Returns:
        Whether *old* is free now, so that its node can be removed. It is not where it must stay the graph
        output itself: it is a graph input, or already the output of an Identity of *new*.

    Raises:
        PassFailed: *new* is *old*.
    """
    if new is old:
        raise PassFailed("a value cannot be replaced by itself", where=f"value {old.name!r}")
    if old.is_graph_output():
        producer = old.producer()
        held = is_op(producer, "Identity") and _reads_only(producer, new) and not _may_rename(old, new)
        if old.is_graph_input() or held:
            for user, index in old.uses():
                if user is not producer:
                    user.replace_input_with(index, new)
            return False
        substitute = new if _may_rename(old, new) else _identity_of(model, old, new)
        _take_over(model, old, substitute)
        # Other readers go to *new* itself, not through the Identity.
        _as_outputs(old, substitute)
    for user, index in old.uses():
        user.replace_input_with(index, new)
    return True


def hand_over(old: oir.Value, new: oir.Value) -> None:
    """Let *new* be read, and put out, where *old* is; names stay with their values."""
    if old.is_graph_output():
        _as_outputs(old, new)
    for user, index in old.uses():
        user.replace_input_with(index, new)


def _as_outputs(old: oir.Value, new: oir.Value) -> None:
    graph = old.graph
    assert graph is not None
    for position, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[position] = new


def _reads_only(node: oir.Node | None, value: oir.Value) -> bool:
    return node is not None and len(node.inputs) == 1 and node.inputs[0] is value


def _may_rename(old: oir.Value, new: oir.Value) -> bool:
    node = new.producer()
    return node is not None and node.graph is old.graph and not new.is_graph_output()


def _identity_of(model: Model, old: oir.Value, new: oir.Value) -> oir.Value:
    """Put an Identity of *new* into the graph of *old* and return its output."""
    graph = old.graph
    assert graph is not None
    node = make_node(model, "Identity", [new], name=f"{old.name}_identity")
    source, producer = new.producer(), old.producer()
    if source is not None and source.graph is graph:
        graph.insert_after(source, node)
    elif producer is not None:
        graph.insert_before(producer, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
    return node.outputs[0]


def _take_over(model: Model, old: oir.Value, new: oir.Value) -> None:
    """Give *new* the name, type, shape and documentation of *old*, and *old* another name."""
    name = old.name
    _rename(old, model.fresh_name(f"{name}_replaced"))
    new.name = name
    if old.type is not None:
        new.type = old.type
    new.shape = None if old.shape is None else old.shape.copy()
    if old.doc_string:
        new.doc_string = old.doc_string
    if old.metadata_props:
        new.metadata_props.update(old.metadata_props)
    if old.meta.get(_QUANTIZATION_KEY) and not new.meta.get(_QUANTIZATION_KEY):
        new.meta[_QUANTIZATION_KEY] = old.meta[_QUANTIZATION_KEY]


def _rename(value: oir.Value, name: str) -> None:
    # Renaming an initializer renames its tensor too, which is shared with the snapshot that a roll-back
    # returns to; harmless, since a tensor is emitted under the name of its value.
    value.name = name


def replace_node(model: Model, old: oir.Node, new: oir.Node) -> None:
    """Put *new* where *old* stands; its outputs take over names, types and uses of those of *old*.

    Values keep their names, so that names in metadata, annotations and reports stay true. *old* is removed.

    Args:
        model: The model that *old* is part of.
        old: A node of some graph of *model*.
        new: A node in no graph, with at least as many outputs as *old* has used ones.

    Raises:
        PassFailed: *old* is in no graph or has a used output that *new* lacks.
    """
    graph = old.graph
    if graph is None:
        raise PassFailed("a node that is in no graph cannot be replaced", where=f"node {old.name!r}")
    graph.insert_before(old, new)
    for index, value in enumerate(old.outputs):
        if index >= len(new.outputs):
            if not is_unused(value):
                raise PassFailed(
                    f"output {index} is used, but {new.op_type}, its replacement, has {len(new.outputs)}",
                    where=f"node {old.name!r}",
                )
            continue
        substitute = new.outputs[index]
        if not value.name:
            continue
        _take_over(model, value, substitute)
        hand_over(value, substitute)
    remove_nodes([old])


def bypass_node(model: Model, node: oir.Node, operand: int) -> None:
    """Let *node*, of one output, pass its input *operand* on: an Identity in its place, under the same name.

    What only made its other inputs stays in the graph, unread.
    """
    replace_node(model, node, make_node(model, "Identity", [node.inputs[operand]], replaces=[node]))


def remove_node(node: oir.Node) -> None:
    """Remove *node* from its graph; it lets go of its inputs and of all that its bodies captured.

    Raises:
        PassFailed: One of its outputs is still read, or it is in no graph.
    """
    graph = node.graph
    if graph is not None and all(map(is_unused, node.outputs)) and not any(True for _ in node_graphs(node)):
        graph.remove(node)
        _detach(node)
    else:
        remove_nodes([node])


def remove_nodes(nodes: Iterable[oir.Node]) -> None:
    """Remove *nodes*, which may read each other, from their graphs in time linear in their number.

    Raises:
        PassFailed: An output is still read by a node that stays, or is a graph output; nothing is removed.
    """
    doomed = dict.fromkeys(nodes)
    # A reader inside a body of a doomed node goes with it.
    going = {body for node in doomed for body in _all_bodies(node)}
    for node in doomed:
        if node.graph is None:
            raise PassFailed("the node is in no graph", where=f"node {node.name!r}")
        for value in node.outputs:
            if value.is_graph_output():
                raise PassFailed(
                    f"its output {value.name!r} is a graph output",
                    where=f"node {node.name!r} ({node.op_type})",
                )
            for reader, _index in value.uses():
                if reader in doomed or reader.graph in going:
                    continue
                raise PassFailed(
                    f"its output {value.name!r} is still read by {reader.op_type} {reader.name!r}",
                    where=f"node {node.name!r} ({node.op_type})",
                )
    by_graph: dict[oir.Graph, list[oir.Node]] = {}
    for node in doomed:
        assert node.graph is not None
        by_graph.setdefault(node.graph, []).append(node)
    for graph, group in by_graph.items():
        graph.remove(group)
    for node in doomed:
        _detach(node)
        if node.attributes.data:
            for inner in nested_nodes(node):
                _detach(inner)


def _all_bodies(node: oir.Node) -> Iterator[oir.Graph]:
    for graph in node_graphs(node):
        yield graph
        yield from graph.subgraphs()


def _detach(node: oir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            node.replace_input_with(index, None)
