"""The model as passes see it: a semantic layer over an ``onnx_ir.Model``.

The store is onnx-ir's; this class adds what every pass needs and onnx-ir leaves to its caller: a walk
over *all* graphs (subgraphs and function bodies included), names that are fresh against every name in the
model, clones that never share mutable weights, and a memory of where the model came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir.collector import collector_paused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from graphopt.ir.fingerprint import TensorRegistry


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model was read from.

    Attributes:
        path: The ``.onnx`` file.
        external_files: Data files that its tensors point into, absolute, in order of first use.
    """

    path: Path
    external_files: tuple[Path, ...] = ()


class Model:
    """An ONNX model in memory, ready to be changed by passes.

    Attributes:
        store: The underlying ``onnx_ir.Model``; passes may edit it freely through onnx-ir's API.
        source: The file that it was read from, or None for a model made in memory.
    """

    __slots__ = ("__weakref__", "_names", "_numbers", "_registry", "source", "store")

    def __init__(
        self, store: oir.Model, *, source: Source | None = None, registry: TensorRegistry | None = None
    ) -> None:
        self.store = store
        self.source = source
        self._registry = registry
        self._names: set[str] | None = None
        self._numbers: dict[str, int] = {}

    @property
    def graph(self) -> oir.Graph:
        """The main graph."""
        return self.store.graph

    @property
    def functions(self) -> dict[tuple[str, str, str], oir.Function]:
        """Model-local functions by (domain, name, overload)."""
        return self.store.functions

    @property
    def ir_version(self) -> int:
        """The ONNX IR version that the model declares."""
        return self.store.ir_version

    @property
    def opset_imports(self) -> dict[str, int]:
        """Opset version by domain of the main graph; the default domain is the empty string."""
        return self.store.graph.opset_imports

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain; 0 where the model does not import it."""
        return self.opset_imports.get("", self.opset_imports.get("ai.onnx", 0))

    @property
    def registry(self) -> TensorRegistry:
        """Identities of tensors, shared by all clones of one model (see fingerprint.py)."""
        if self._registry is None:
            from graphopt.ir.fingerprint import TensorRegistry

            self._registry = TensorRegistry()
        return self._registry

    def graphs(self) -> Iterator[oir.Graph]:
        """Yield the main graph, its subgraphs at every depth, then each function body with its subgraphs."""
        yield from with_subgraphs(self.store.graph)
        for function in self.store.functions.values():
            yield from with_subgraphs(function.graph)

    def nodes(self) -> Iterator[oir.Node]:
        """Yield every node of every graph of :meth:`graphs`, each graph in its own order."""
        yield from _with_inner_nodes(self.store.graph)
        for function in self.store.functions.values():
            yield from _with_inner_nodes(function.graph)

    def clone(self) -> Model:
        """Return an independent copy; tensors are shared, and frozen so that sharing is safe."""
        with collector_paused():
            from graphopt.ir.clone import clone_store

            return Model(clone_store(self.store), source=self.source, registry=self.registry)

    def fresh_name(self, hint: str) -> str:
        """Return a name based on *hint* that nothing in the model carries, and claim it.

        Values, nodes and initializers of all graphs count, because an inner graph sees the names of the
        outer ones and must not redefine them.
        """
        if self._names is None:
            self._names = self._all_names()
        if hint and hint not in self._names:
            self._names.add(hint)
            return hint
        # Names are never given back, so the search for a number goes on where the last one ended.
        number = self._numbers.get(hint, 1)
        while (name := f"{hint}_{number}") in self._names:
            number += 1
        self._numbers[hint] = number + 1
        self._names.add(name)
        return name

    def forget_names(self) -> None:
        """Make :meth:`fresh_name` look at all names anew; needed after edits that claimed no names."""
        self._names = None
        self._numbers.clear()

    def _all_names(self) -> set[str]:
        names: set[str | None] = set()
        for graph in self.graphs():
            names.update(value.name for value in (*graph.inputs, *graph.outputs))
            names.update(graph.initializers)
            for node in graph:
                names.add(node.name)
                for value in node.outputs:
                    names.add(value.name)
                for used in node.inputs:
                    if used is not None:
                        names.add(used.name)
        return {name for name in names if name}


def with_subgraphs(graph: oir.Graph) -> Iterator[oir.Graph]:
    """Yield *graph* and its subgraphs at every depth, in the order of :meth:`Model.graphs`."""
    # onnx-ir's walk builds lists for every node and is five times slower.
    yield graph
    for node in graph:
        # The dict inside: its wrapper answers len() and values() in Python, for every node of every walk.
        if node.attributes.data:
            for body in _bodies(node):
                yield from with_subgraphs(body)


def _with_inner_nodes(graph: oir.Graph) -> Iterator[oir.Node]:
    """Yield the nodes of *graph*, then those of its subgraphs, but for what the caller removes meanwhile."""
    holders = []
    for node in graph:
        yield node
        if node.attributes.data and any(True for _ in _bodies(node)):
            holders.append(node)
    for node in holders:
        if node.graph is graph:
            for body in _bodies(node):
                yield from _with_inner_nodes(body)


def _bodies(node: oir.Node) -> Iterator[oir.Graph]:
    for attribute in node.attributes.data.values():
        if attribute.type is oir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.value
        elif attribute.type is oir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attribute.value
