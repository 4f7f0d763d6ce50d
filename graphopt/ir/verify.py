"""Structural checks of a model, as a list of small named functions; weights are never read.

A file names values by text, so the checks look at a model as its file would be read: an input must resolve,
through the scopes, to the very value that the node holds. Custom domains are opaque and allowed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.errors import VerifyError
from graphopt.ir.infos import misfit
from graphopt.ir.order import find_call_cycle
from graphopt.ir.tensors import SparseTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from graphopt.ir.model import Model

_SHOWN = 5
_MIN_IR_VERSION = 3
_FUNCTIONS_SINCE_IR = 8
_OVERLOADS_SINCE_IR = 10
_DEFAULT_DOMAINS = ("", "ai.onnx")
_GRAPH_KINDS = frozenset({oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS})


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule.

    Attributes:
        check: Name of the check that found it.
        where: The node, value, graph or function that it is about.
        message: What is wrong.
    """

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.check}]"


def verify(model: Model) -> None:
    """Raise where *model* breaks a structural rule; O(nodes).

    Raises:
        VerifyError: It does; the message lists up to five problems.
    """
    found = list(itertools.islice(_problems(model), _SHOWN + 1))
    if not found:
        return
    listed = "; ".join(str(problem) for problem in found[:_SHOWN])
    more = "; and more" if len(found) > _SHOWN else ""
    name = str(model.source.path) if model.source is not None else "the model"
    raise VerifyError(f"the model is not well formed: {listed}{more}", where=name)


def problems(model: Model) -> list[Problem]:
    """Return everything that is wrong with *model*, in the order of :data:`CHECKS`."""
    return list(_problems(model))


def _problems(model: Model) -> Iterator[Problem]:
    walk = _Walk(model)
    for check in CHECKS:
        for where, message in check(walk):
            yield Problem(check.__name__, where, message)


Finding = tuple[str, str]
"""Where, and what is wrong."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A graph, its nodes, and the body that it is or stands in: the main graph or that of a function."""

    graph: oir.Graph
    nodes: tuple[oir.Node, ...]
    body: oir.Graph
    label: str
    function: oir.Function | None


class _Walk:
    """Every graph and node of a model, met once for all checks.

    Attributes:
        model: The model.
        places: Its graphs, in the order of ``Model.graphs``.
        inner: The bodies of each node that has some, with the name of the attribute.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.places: list[_Place] = []
        self.inner: dict[oir.Node, list[tuple[str, oir.Graph]]] = {}
        self._nodes: dict[oir.Graph, tuple[oir.Node, ...]] = {}
        self._meet(model.graph, model.graph, "the main graph", None)
        for function in model.functions.values():
            self._meet(function.graph, function.graph, _function_label(function), function)

    def nodes(self, graph: oir.Graph) -> tuple[oir.Node, ...]:
        """Return the nodes of *graph* in their order."""
        return self._nodes[graph]

    def _meet(self, graph: oir.Graph, body: oir.Graph, label: str, function: oir.Function | None) -> None:
        nodes = self._nodes[graph] = tuple(graph)
        self.places.append(_Place(graph, nodes, body, label, function))
        for node in nodes:
            # The dict inside: its wrapper answers in Python, and most nodes have no attributes at all.
            for attribute in node.attributes.data.values():
                if attribute.type in _GRAPH_KINDS and not attribute.is_ref():
                    bodies = (
                        attribute.value if attribute.type is oir.AttributeType.GRAPHS else [attribute.value]
                    )
                    self.inner.setdefault(node, []).extend((attribute.name, inner) for inner in bodies)
            for _name, inner in self.inner.get(node, ()):
                self._meet(inner, body, label, function)


def _function_label(function: oir.Function) -> str:
    return f"function {function.domain}::{function.name}"


def node_label(node: oir.Node) -> str:
    """Return how errors call *node*: by name, or by type and first output where it has none."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    first = next((value.name for value in node.outputs if value.name), "")
    return f"the {node.op_type} node that makes {first!r}"


# The checks


def versions_are_declared(walk: _Walk) -> Iterator[Finding]:
    """The IR version is known and new enough for what the model has; operator sets have positive versions."""
    model = walk.model
    version = model.ir_version
    if version < _MIN_IR_VERSION:
        yield "the model", f"its IR version is {version}; expected {_MIN_IR_VERSION} or later"
    if model.functions and version < _FUNCTIONS_SINCE_IR:
        yield "the model", f"it has functions, which need IR version {_FUNCTIONS_SINCE_IR}; it has {version}"
    for (domain, name, overload), function in model.functions.items():
        if overload and version < _OVERLOADS_SINCE_IR:
            yield f"function {domain}::{name}", f"an overload needs IR version {_OVERLOADS_SINCE_IR}"
        if function.identifier() != (domain, name, overload):
            yield f"function {domain}::{name}", f"it calls itself {function.identifier()}"
    for place in walk.places:
        if place.graph is not place.body:
            continue
        for domain, number in place.graph.opset_imports.items():
            if number < 1:
                yield place.label, f"it imports version {number} of operator set {domain or 'ai.onnx'!r}"


def operators_are_known(walk: _Walk) -> Iterator[Finding]:
    """Every node says which operator it is, of an operator set that the model, or its function, imports."""
    imported: set[str] = set()
    for place in walk.places:
        if place.graph is place.body:
            imported = set(place.body.opset_imports)
            if imported.intersection(_DEFAULT_DOMAINS):
                imported.update(_DEFAULT_DOMAINS)
        for node in place.nodes:
            if node.domain not in imported:
                domain = node.domain or "ai.onnx"
                yield node_label(node), f"{place.label} imports no operator set {domain!r}"
            if not node.op_type:
                yield node_label(node), "it has no op_type"


def names_resolve(walk: _Walk) -> Iterator[Finding]:
    """Each name is given once, and each use comes after the definition and finds the value that is meant."""
    for place in walk.places:
        if place.graph is place.body:
            yield from _scope(walk, place.graph, [], place.label)


def _scope(walk: _Walk, graph: oir.Graph, outer: list[dict[str, oir.Value]], label: str) -> Iterator[Finding]:
    scope: dict[str, oir.Value] = {}
    scopes = [*outer, scope]
    for value in graph.inputs:
        if not value.name:
            yield label, "it has an input without a name"
        elif value.name in scope:
            yield label, f"two inputs have the name {value.name!r}"
        scope[value.name or ""] = value
    for name, value in graph.initializers.items():
        if value.name != name:
            yield label, f"the initializer {name!r} is called {value.name!r}"
        if scope.setdefault(name, value) is not value:
            yield label, f"an input and an initializer have the name {name!r} but are two values"
    for node in walk.nodes(graph):
        if node.graph is not graph:
            yield node_label(node), f"it stands in {label} but belongs to another graph"
        for used in node.inputs:
            if used is None or scope.get(used.name or "") is used:
                continue
            found = next((s[used.name] for s in reversed(outer) if used.name in s), None)
            if used.name in scope or found is not used:
                yield node_label(node), _unresolved(used, known=used.name in scope or found is not None)
        for name, inner in walk.inner.get(node, ()):
            yield from _scope(walk, inner, scopes, f"{name} of {node_label(node)}")
        for output in node.outputs:
            name = output.name or ""
            if not name:
                if output.uses() or output.is_graph_output():
                    yield node_label(node), f"its output {output.index()} is used but has no name"
            elif name in scope or any(name in s for s in outer):
                yield node_label(node), f"its output {name!r} has the name of another value"
            scope[name] = output
    for value in graph.outputs:
        if scope.get(value.name or "") is not value:
            yield label, f"nothing in it produces its output {value.name!r}"


def _unresolved(value: oir.Value, *, known: bool) -> str:
    if known:
        return f"its input {value.name!r} has the name of another value"
    producer = value.producer()
    if producer is None:
        return f"nothing produces its input {value.name!r}"
    if producer.graph is None:
        return f"its input {value.name!r} is made by {node_label(producer)}, which is in no graph any more"
    return f"its input {value.name!r} is made by {node_label(producer)}, which does not come before it"


def initializers_hold_tensors(walk: _Walk) -> Iterator[Finding]:
    """Every initializer has a tensor of its declared type and shape; functions have none."""
    for place in walk.places:
        if place.graph is place.body and place.function is not None and place.graph.initializers:
            yield place.label, "it has initializers, which functions cannot hold"
    for place in walk.places:
        for name, value in place.graph.initializers.items():
            tensor = value.const_value
            where = f"initializer {name!r}"
            if tensor is None:
                yield where, "it has no tensor"
                continue
            contradiction = misfit(value, tensor)
            if contradiction:
                yield where, contradiction


def attributes_are_complete(walk: _Walk) -> Iterator[Finding]:
    """Attributes have their own name, a type and a value; references name an attribute of their function."""
    for place in walk.places:
        declared = frozenset(() if place.function is None else place.function.attributes)
        for node in place.nodes:
            if node.attributes.data:
                yield from _attributes(node, declared)


def _attributes(node: oir.Node, declared: frozenset[str]) -> Iterator[Finding]:
    for name, attribute in node.attributes.items():
        if attribute.name != name:
            yield node_label(node), f"the attribute {name!r} calls itself {attribute.name!r}"
        if attribute.is_ref():
            if attribute.ref_attr_name not in declared:
                yield (
                    node_label(node),
                    f"its attribute {name!r} refers to {attribute.ref_attr_name!r}, unknown to its function",
                )
        elif attribute.type is oir.AttributeType.UNDEFINED or attribute.value is None:
            yield node_label(node), f"its attribute {name!r} has no type or no value"
        elif attribute.type is oir.AttributeType.TENSOR and isinstance(attribute.value, SparseTensor):
            yield node_label(node), f"its attribute {name!r} is a sparse tensor where a dense one is declared"


def functions_do_not_recur(walk: _Walk) -> Iterator[Finding]:
    """No function calls itself, directly or through others."""
    functions = walk.model.functions
    cycle = find_call_cycle(functions) if functions else None
    if cycle:
        path = " -> ".join(f"{domain}::{name}" for domain, name, _ in cycle)
        yield f"function {cycle[0][0]}::{cycle[0][1]}", f"it calls itself ({path})"


def shapes_are_possible(walk: _Walk) -> Iterator[Finding]:
    """No dim of any value is negative."""
    for place in walk.places:
        for value in place.graph.inputs:
            yield from _dims(value)
        for node in place.nodes:
            for value in node.outputs:
                if value.shape is not None:
                    yield from _dims(value)


def _dims(value: oir.Value) -> Iterator[Finding]:
    for dim in value.shape.dims if value.shape is not None else ():
        if isinstance(dim, int) and dim < 0:
            yield f"value {value.name!r}", f"its shape {value.shape} has a negative dim"


CHECKS: tuple[Callable[[_Walk], Iterator[Finding]], ...] = (
    versions_are_declared,
    operators_are_known,
    names_resolve,
    initializers_hold_tensors,
    attributes_are_complete,
    functions_do_not_recur,
    shapes_are_possible,
)
"""All checks, in the order in which problems are reported."""
