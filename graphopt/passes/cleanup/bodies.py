"""Take unread outputs off nodes that run subgraphs, together with what only they needed inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir import rewrite, semantics

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.ir import Model
    from graphopt.passes.cleanup.facts import Facts


def shrink(model: Model, node: oir.Node, facts: Facts) -> int:
    """Drop the outputs of an If, Loop or Scan that nothing reads and return how many outputs went.

    *node* is then replaced by a new node with the same bodies. Nodes in the bodies that fed only what was
    dropped stay; removing dead nodes from the bodies removes them. An output stays where the bodies need it
    themselves (a loop-carried state that another one depends on), and one output always stays.
    """
    if rewrite.is_op(node, "If"):
        return _shrink_if(node)
    if rewrite.is_op(node, "Loop"):
        return _shrink_loop(model, node)
    # Scan-8 carries a batch axis and other inputs; nothing has written it for years.
    if rewrite.is_op(node, "Scan") and facts.version(node) >= 9:
        return _shrink_scan(model, node)
    return 0


def _unread(node: oir.Node) -> list[int]:
    """Return the outputs of *node* that may go; at least one is left out of the list."""
    unread = [index for index, value in enumerate(node.outputs) if rewrite.is_unused(value)]
    return unread[1:] if len(unread) == len(node.outputs) else unread


def _shrink_if(node: oir.Node) -> int:
    branches = list(rewrite.node_graphs(node))
    unread = _unread(node)
    if not unread or len(branches) != 2 or any(len(b.outputs) != len(node.outputs) for b in branches):
        return 0
    for branch in branches:
        for index in reversed(unread):
            branch.outputs.pop(index)
    _rebuild(node, node.inputs, drop=unread)
    return len(unread)


@dataclass(frozen=True)
class _Frame:
    """Where a Loop or Scan keeps its carried states.

    Attributes:
        states: How many states there are.
        node_input: Index of the first state among the inputs of the node.
        body_input: Index of the first state among the inputs of the body.
        body_output: Index of the first state among the outputs of the body; scan outputs follow the states.
    """

    states: int
    node_input: int
    body_input: int
    body_output: int


def _shrink_loop(model: Model, node: oir.Node) -> int:
    body = rewrite.attribute(node, "body")
    if body is None or len(body.inputs) < 2:
        return 0
    frame = _Frame(len(body.inputs) - 2, node_input=2, body_input=2, body_output=1)
    if len(node.inputs) != 2 + frame.states or len(body.outputs) != 1 + len(node.outputs):
        return 0
    return len(_drop_states_and_scans(model, node, body, frame))


def _shrink_scan(model: Model, node: oir.Node) -> int:
    body, count = rewrite.attribute(node, "body"), rewrite.attribute(node, "num_scan_inputs")
    if body is None or count is None or rewrite.has_reference(node):
        return 0
    frame = _Frame(len(body.inputs) - count, node_input=0, body_input=0, body_output=0)
    if len(node.inputs) != len(body.inputs) or len(body.outputs) != len(node.outputs) or frame.states < 0:
        return 0
    lists = [name for name in ("scan_output_axes", "scan_output_directions") if name in node.attributes]
    kept_lists = {name: list(rewrite.attribute(node, name)) for name in lists}
    if any(len(numbers) != len(node.outputs) - frame.states for numbers in kept_lists.values()):
        return 0
    dropped = _drop_states_and_scans(model, node, body, frame, lists=kept_lists)
    return len(dropped)


def _drop_states_and_scans(
    model: Model,
    node: oir.Node,
    body: oir.Graph,
    frame: _Frame,
    *,
    lists: dict[str, list[int]] | None = None,
) -> list[int]:
    """Drop what is unread and not needed inside; *lists* are attributes with one number per scan output."""
    unread = _unread(node)
    if not unread:
        return []
    needed = _needed_states(model, body, frame, unread)
    drop = [index for index in unread if index >= frame.states or index not in needed]
    if len(drop) == len(node.outputs) or not drop:
        return []
    for name, numbers in (lists or {}).items():
        kept = [number for index, number in enumerate(numbers) if frame.states + index not in drop]
        node.attributes[name] = oir.AttrInt64s(name, kept)
    for index in reversed(drop):
        body.outputs.pop(frame.body_output + index)
        if index < frame.states:
            body.inputs.pop(frame.body_input + index)
    gone = {frame.node_input + index for index in drop if index < frame.states}
    inputs = [value for index, value in enumerate(node.inputs) if index not in gone]
    _rebuild(node, inputs, drop=drop)
    return drop


def _needed_states(model: Model, body: oir.Graph, frame: _Frame, unread: list[int]) -> set[int]:
    """Return the carried states that something needs: a read output, the condition, or a needed state.

    One walk backwards through the body; a state that is reached makes what it is updated from needed too.
    """
    offset = frame.body_output
    roots = [body.outputs[index] for index in range(offset)]
    roots += [value for index, value in enumerate(body.outputs[offset:]) if index not in unread]
    for inner in body:
        if not semantics.is_pure(inner, model.functions):
            roots.extend(_reads(inner))
    state_of = {body.inputs[frame.body_input + index]: index for index in range(frame.states)}
    needed = {index for index in range(frame.states) if index not in unread}
    seen: set[oir.Value] = set()
    while roots:
        value = roots.pop()
        if value in seen:
            continue
        seen.add(value)
        if (state := state_of.get(value)) is not None and state not in needed:
            needed.add(state)
            roots.append(body.outputs[offset + state])
        producer = value.producer()
        if producer is not None and producer.graph is body:
            roots.extend(_reads(producer))
    return needed


def _reads(node: oir.Node) -> Iterable[oir.Value]:
    yield from (value for value in node.inputs if value is not None)
    if node.attributes:
        yield from rewrite.captured_values(node)


def _rebuild(node: oir.Node, inputs: Sequence[oir.Value | None], *, drop: list[int]) -> None:
    """Put a node with *inputs* and without the outputs *drop* where *node* stands; bodies move over."""
    graph = node.graph
    assert graph is not None
    kept = [value for index, value in enumerate(node.outputs) if index not in drop]
    outputs = []
    for value in kept:
        copy = oir.Value(
            name=value.name,
            type=value.type,
            shape=value.shape,
            doc_string=value.doc_string,
            metadata_props=dict(value.metadata_props) or None,
        )
        copy.meta.update(value.meta)
        outputs.append(copy)
    new = oir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        overload=node.overload,
        outputs=outputs,
        version=node.version,
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props) or None,
        device_configurations=node.device_configurations,
    )
    graph.insert_before(node, new)
    for value, copy in zip(kept, outputs, strict=True):
        rewrite.hand_over(value, copy)
    # The bodies belong to the new node now; removing the old one must not take them apart.
    node.attributes.clear()
    rewrite.remove_node(node)
