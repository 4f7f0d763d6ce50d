"""Names across scopes: what a body may call its inputs and constants without hiding what stands around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.model import with_subgraphs
from graphopt.ir.rewrite import node_graphs

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir.model import Model


def unshadow(model: Model) -> int:
    """Give every input and initializer of a body that hides an outer value a name of its own.

    Runtimes accept a Loop whose state is called like a value outside. A pass that lets a node of the body
    read that outer value could not say so: the name would mean the state. Bodies are bound by position, so
    that their inputs may be renamed freely.

    Returns:
        How many values got another name.
    """
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    nested = (root for root in roots if any(graph is not root for graph in with_subgraphs(root)))
    return sum(_unshadow(model, root, []) for root in nested)


def _unshadow(model: Model, graph: oir.Graph, outer: list[set[str]]) -> int:
    renamed = 0
    scope: set[str] = set()
    for value in dict.fromkeys((*graph.inputs, *graph.initializers.values())):
        name = value.name or ""
        if any(name in names for names in outer):
            value.name = model.fresh_name(name)
            renamed += 1
        scope.add(value.name or "")
    scopes = [*outer, scope]
    for node in graph:
        if node.attributes:
            renamed += sum(_unshadow(model, body, scopes) for body in node_graphs(node))
        scope.update(value.name or "" for value in node.outputs)
    return renamed
