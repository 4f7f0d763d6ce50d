"""Views of a model as networkx graphs: for looking and asking, never for changing.

The store stays onnx-ir's. A view is built on demand, holds copies of names only, and may be thrown away; it
gives everything that networkx knows about graphs (paths, components, GraphML, DOT) to reports and plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx
import onnx_ir as oir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.ir.model import Model


def operator_graph(model: Model) -> nx.DiGraph:
    """Return the main graph's data flow: one vertex a node, one edge a value that flows between two nodes.

    Vertices are the positions of the nodes in the graph, with attributes ``name``, ``op_type`` and
    ``domain``; an edge's ``values`` lists the names of the values it stands for. What a node's bodies
    capture from the main graph flows into that node.
    """
    view = nx.DiGraph()
    position: dict[oir.Node, int] = {}
    for index, node in enumerate(model.graph):
        position[node] = index
        view.add_node(index, name=node.name or "", op_type=node.op_type, domain=node.domain)
    for node, index in position.items():
        for value in _reads(node):
            producer = value.producer()
            if producer is None or producer not in position:
                continue
            source = position[producer]
            if view.has_edge(source, index):
                values = view.edges[source, index]["values"]
                if value.name not in values:
                    values.append(value.name)
            else:
                view.add_edge(source, index, values=[value.name])
    return view


def call_graph(model: Model) -> nx.DiGraph:
    """Return who calls which model-local function; the main graph is the vertex ``"main"``.

    Function vertices are (domain, name, overload). ONNX forbids a cycle here.
    """
    view = nx.DiGraph()
    view.add_node("main")
    view.add_nodes_from(model.functions)
    for caller, graph in [("main", model.graph), *((key, f.graph) for key, f in model.functions.items())]:
        for node in oir.traversal.RecursiveGraphIterator(graph):
            callee = (node.domain, node.op_type, node.overload or "")
            if callee in model.functions:
                view.add_edge(caller, callee)
    return view


def longest_chain(view: nx.DiGraph) -> list[int]:
    """Return the vertices of a longest path of an :func:`operator_graph`: what cannot run in parallel."""
    path: list[int] = nx.dag_longest_path(view, weight=None, default_weight=1)
    return path


def _reads(node: oir.Node) -> Iterator[oir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == oir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == oir.AttributeType.GRAPHS:
            bodies = list(attribute.as_graphs())
        else:
            continue
        for body in bodies:
            for inner in oir.traversal.RecursiveGraphIterator(body):
                yield from (value for value in inner.inputs if value is not None)
            yield from body.outputs
