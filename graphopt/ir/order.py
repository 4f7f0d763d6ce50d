"""Why a name does not resolve, and who calls whom: the slow answers that errors need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx
    import onnx_ir as oir

Identifier = tuple[str, str, str]
"""Domain, name and overload of a function."""


def explain_unresolved(name: str, nodes: Iterable[onnx.NodeProto], index: int) -> str:
    """Say why the input *name* of node number *index* has no value yet."""
    protos = list(nodes)
    producers = {output: k for k, node in enumerate(protos) for output in node.output if output}
    if name not in producers:
        return f"nothing produces its input {name!r}"
    seen = set()
    waiting = [producers[name]]
    while waiting:
        k = waiting.pop()
        if k == index:
            return f"it is part of a cycle through its input {name!r}"
        if k not in seen:
            seen.add(k)
            waiting += [producers[item] for item in _reads(protos[k]) if item in producers]
    return f"its input {name!r} is produced by a later node; the nodes are not in topological order"


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)


def find_call_cycle(functions: Mapping[Identifier, oir.Function]) -> list[Identifier]:
    """Return functions that call each other in a ring, the first again at the end; empty without one."""
    calls = {
        key: list(
            dict.fromkeys(c for node in function.all_nodes() if (c := node.op_identifier()) in functions)
        )
        for key, function in functions.items()
    }
    done: set[Identifier] = set()
    for start in calls:
        path: list[Identifier] = []
        stack: list[tuple[Identifier, bool]] = [(start, False)]
        while stack:
            key, leaving = stack.pop()
            if leaving:
                path.pop()
                done.add(key)
            elif key in path:
                return [*path[path.index(key) :], key]
            elif key not in done:
                path.append(key)
                stack.append((key, True))
                stack += [(callee, False) for callee in calls[key]]
    return []
