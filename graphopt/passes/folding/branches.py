"""Replace an If whose condition is constant by the branch that it takes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from graphopt.ir import rewrite

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir import Model

_CONDITION_BYTES = 64


def inline_constant_branches(model: Model) -> list[oir.Value]:
    """Move the taken branch of every decided If into the graph around it; return their conditions.

    The branch's values keep their names where nothing else in the model carries them, else they get fresh
    ones: an If may hold the same names in both branches, and other graphs may hold them too.
    """
    conditions: list[oir.Value] = []
    names: Counter[str] | None = None
    while True:
        decided = [(node, taken) for node in model.nodes() if (taken := _taken_branch(node)) is not None]
        # An outer If first: with it, whatever its other branch holds is gone.
        decided = [(node, taken) for node, taken in decided if not _is_inside(node, decided)]
        if not decided:
            return conditions
        for node, branch in decided:
            names = _names(model) if names is None else names
            condition = node.inputs[0]
            assert condition is not None
            conditions.append(condition)
            _inline(model, node, branch, names)


def _taken_branch(node: oir.Node) -> oir.Graph | None:
    if not rewrite.is_op(node, "If") or not node.inputs or rewrite.has_reference(node):
        return None
    condition = rewrite.constant_array(node.inputs[0], _CONDITION_BYTES)
    if condition is None or condition.size != 1:
        return None
    branch = node.attributes["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
    return branch.as_graph()


def _is_inside(node: oir.Node, decided: list[tuple[oir.Node, oir.Graph]]) -> bool:
    return any(
        node is not other and any(node.graph is body for body in _bodies(other)) for other, _branch in decided
    )


def _bodies(node: oir.Node) -> list[oir.Graph]:
    return [graph for body in rewrite.node_graphs(node) for graph in (body, *body.subgraphs())]


def _names(model: Model) -> Counter[str]:
    names: Counter[str] = Counter()
    for graph in model.graphs():
        names.update(value.name or "" for value in graph.inputs)
        names.update(name for name, value in graph.initializers.items() if not value.is_graph_input())
        for node in graph:
            names.update([node.name or "", *(value.name or "" for value in node.outputs)])
    return names


def _inline(model: Model, node: oir.Node, branch: oir.Graph, names: Counter[str]) -> None:
    graph = node.graph
    assert graph is not None
    outputs = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        del branch.initializers[value.name or ""]
        assert value.const_value is not None
        if any(function.graph is graph for function in model.functions.values()):
            moved = rewrite.add_initializer(model, graph, value.name or "", value.const_value)
            rewrite.replace_value(model, value, moved)
            outputs = [moved if output is value else output for output in outputs]
        else:
            _claim(model, value, names)
            graph.initializers.add(value)
    nodes = list(branch)
    branch.remove(nodes)
    for inner in nodes:
        if inner.name and names[inner.name] > 1:
            names[inner.name] -= 1
            inner.name = model.fresh_name(inner.name)
        for value in inner.outputs:
            if value.name:
                _claim(model, value, names)
        for key, text in node.metadata_props.items():
            inner.metadata_props.setdefault(key, text)
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        if old.name:
            if new.type is None:
                new.type = old.type
            rewrite.replace_value(model, old, new)
    rewrite.remove_node(node)


def _claim(model: Model, value: oir.Value, names: Counter[str]) -> None:
    """Make the name of *value* one that nothing else carries."""
    name = value.name or ""
    if names[name] > 1:
        names[name] -= 1
        value.name = model.fresh_name(name)
