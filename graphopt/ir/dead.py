"""Remove what an edit has left without a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir import rewrite, semantics

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    import onnx_ir as oir


def remove_unread(values: Iterable[oir.Value | None], keep: Container[str] = ()) -> int:
    """Remove the constants and nodes that only served *values*, upwards; return how many nodes went.

    A pass that replaces constants must take the old ones away in the same step, or the file holds both until
    eliminate-dead runs. What nothing read before stays. Constant nodes are not counted.

    Args:
        values: What the edit stopped reading; those that something still reads are left alone.
        keep: Names of values that stay anyway, as those that quantization annotations refer to.
    """
    removed = 0
    stack = [value for value in values if value is not None]
    while stack:
        value = stack.pop()
        if not rewrite.is_unused(value) or value.is_graph_input() or value.name in keep:
            continue
        if value.is_initializer():
            graph = value.graph
            name = value.name or ""
            if graph is not None and graph.initializers.get(name) is value:
                del graph.initializers[name]
            continue
        node = value.producer()
        if node is None or node.graph is None or not semantics.is_pure(node):
            continue
        if not all(rewrite.is_unused(one) and one.name not in keep for one in node.outputs):
            continue
        stack.extend(one for one in node.inputs if one is not None)
        stack.extend(rewrite.captured_values(node) if node.attributes else ())
        rewrite.remove_node(node)
        removed += node.op_type != "Constant"
    return removed


def nodes_that_serve(value: oir.Value, reader: oir.Node) -> list[oir.Node]:
    """Return the nodes that would go with :func:`remove_unread` if *reader* did not read *value*.

    Args:
        value: What it reads.
        reader: A node of the main graph or of a function, not of a body inside it.

    Returns:
        The nodes, in no order; none where something else needs *value*.
    """
    gone: set[oir.Node] = set()
    inside: set[oir.Node] = set()  # those, and what stands in their bodies
    stack = [value]
    while stack:
        node = stack.pop().producer()
        if node is None or node in gone or not semantics.is_pure(node):
            continue
        if not all(_read_within(one, inside, reader if one is value else None) for one in node.outputs):
            continue
        gone.add(node)
        inside.add(node)
        stack.extend(one for one in node.inputs if one is not None)
        if node.attributes:
            inside.update(rewrite.nested_nodes(node))
            stack.extend(rewrite.captured_values(node))
    return list(gone)


def _read_within(value: oir.Value, nodes: Container[oir.Node], reader: oir.Node | None) -> bool:
    """Return whether nothing but *nodes* and *reader* reads *value*."""
    return not value.is_graph_output() and all(user is reader or user in nodes for user in value.consumers())
