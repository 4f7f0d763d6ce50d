"""Find values that hold the same and let one of them serve all: initializers and expressions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from graphopt.ir import rewrite, scopes, semantics, tensors
from graphopt.ir.meta import peek_props
from graphopt.passes.cleanup import content
from graphopt.passes.cleanup.annotations import annotated_names

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import onnx_ir as oir

    from graphopt.ir import Model

# An initializer of a subgraph becomes a capture of an outer one only from this size on: below it saves
# nothing, and shape inference sees constants of the same graph only.
CAPTURE_BYTES = 1024

# Swapping the operands of these changes no bit of the result (a NaN stays some NaN).
_COMMUTATIVE = frozenset({
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor",
})  # fmt: skip


class Sharing:
    """Merges equal values of one model and counts what it did.

    Args:
        model: The model to change.
        min_bytes: Initializers smaller than this are left as they are.
    """

    def __init__(self, model: Model, min_bytes: int) -> None:
        self._model = model
        self._min_bytes = min_bytes
        self.counts: Counter[str] = Counter()
        self._skips: dict[tuple[str, str], None] = {}
        self._deterministic: dict[tuple[str, str, str], bool] = {}
        if renamed := scopes.unshadow(model):
            self.counts["renamed_hiding_values"] += renamed

    @property
    def skips(self) -> tuple[tuple[str, str], ...]:
        """What was left alone and why, in order of first meeting."""
        return tuple(self._skips)

    # Initializers ---------------------------------------------------------------------------------------

    def initializers(self) -> None:
        """Let equal initializers be one, within a graph and from subgraphs to the graphs around them."""
        candidates = [value for graph in self._model.graphs() for value in graph.initializers.values()]
        groups: dict[Hashable, list[oir.Value]] = {}
        for value in candidates:
            tensor = value.const_value
            if tensor is None or tensors.is_overridable(value) or tensors.nbytes(tensor) < self._min_bytes:
                continue
            groups.setdefault(content.group_key(tensor), []).append(value)
        doubtful = [group for group in groups.values() if len(group) > 1]
        if not doubtful:
            return
        outer = _outer_graphs(self._model)
        annotated = annotated_names(self._model)
        digests: dict[Hashable, bytes] = {}
        for group in doubtful:
            equal: dict[bytes, list[oir.Value]] = {}
            locations = {content.location_key(value.const_value) for value in group if value.const_value}
            for value in group:
                tensor = value.const_value
                assert tensor is not None
                location = content.location_key(tensor)
                # One storage needs no look at its bytes.
                if len(locations) > 1 and location not in digests:
                    digests[location] = content.digest(tensor)
                equal.setdefault(digests.get(location, b""), []).append(value)
            for same in equal.values():
                if len(same) > 1:
                    self._merge_initializers(same, outer, annotated)

    def _merge_initializers(
        self, values: list[oir.Value], outer: Mapping[oir.Graph, oir.Graph | None], annotated: frozenset[str]
    ) -> None:
        """Merge *values*, which hold the same; graphs stand before their subgraphs in the list."""
        keepers: dict[oir.Graph, oir.Value] = {}
        # Outputs and annotations refer to an initializer by name, so those survive.
        named = [value for value in values if value.is_graph_output() or value.name in annotated]
        for value in (*named, *values):
            graph = value.graph
            if graph is not None:
                keepers.setdefault(graph, value)
        for value in values:
            graph = value.graph
            if graph is None:
                continue
            keeper = self._visible(value, keepers, outer)
            if keeper is None or keeper is value:
                continue
            if value.is_graph_output() or value.name in annotated:
                self._skips[
                    f"initializer {value.name!r}", f"equal to {keeper.name!r}, but its name is needed"
                ] = None
                continue
            tensor = value.const_value
            assert tensor is not None
            for reader, index in value.uses():
                reader.replace_input_with(index, keeper)
            del graph.initializers[value.name or ""]
            self.counts["initializers_merged"] += 1
            self.counts["bytes_saved"] += tensors.nbytes(tensor)

    @staticmethod
    def _visible(
        value: oir.Value, keepers: Mapping[oir.Graph, oir.Value], outer: Mapping[oir.Graph, oir.Graph | None]
    ) -> oir.Value | None:
        """Return what stands in for *value*: the keeper of the outermost graph around it that has one."""
        graph, found = value.graph, None
        tensor = value.const_value
        may_capture = tensor is not None and tensors.nbytes(tensor) >= CAPTURE_BYTES
        while graph is not None:
            found = keepers.get(graph, found)
            if not may_capture:
                break
            graph = outer.get(graph)
        return found

    # Expressions ----------------------------------------------------------------------------------------

    def expressions(self) -> None:
        """Let nodes that compute the same from the same be one, in every graph and from inner to outer."""
        self._scan(self._model.graph, ())
        for function in self._model.functions.values():
            self._scan(function.graph, ())

    def _scan(self, graph: oir.Graph, outside: tuple[dict[Hashable, oir.Node], ...]) -> None:
        """Merge within *graph* and with the nodes of the graphs around it, *outside*, innermost first."""
        known: dict[Hashable, oir.Node] = {}
        for node in graph:
            if node.attributes and semantics.has_bodies(node):
                for body in rewrite.node_graphs(node):
                    self._scan(body, (known, *outside))
                continue
            key = self._key(node)
            if key is None:
                continue
            first = next((scope[key] for scope in (known, *outside) if key in scope), None)
            if first is None:
                known[key] = node
            else:
                self._merge_nodes(node, first)

    def _key(self, node: oir.Node) -> Hashable | None:
        identifier = node.op_identifier()
        if not node.outputs or not self._is_deterministic(node, identifier):
            return None
        inputs = [None if value is None or value.name == "" else id(value) for value in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        if node.op_type in _COMMUTATIVE and node.domain in {"", "ai.onnx"}:
            inputs.sort(key=lambda item: item or 0)
        attributes = []
        for attribute in node.attributes.data.values():  # the dict inside: its wrapper answers in Python
            key = content.attribute_key(attribute)
            if key is None:
                return None
            attributes.append(key)
        if len(attributes) > 1:
            attributes.sort(key=lambda item: item[0])  # type: ignore[index]  # every key starts with the name
        present = tuple(bool(value.name) for value in node.outputs)
        return (identifier, tuple(inputs), tuple(attributes), present)

    def _is_deterministic(self, node: oir.Node, identifier: tuple[str, str, str]) -> bool:
        # Dropout depends on its inputs, bodies on their content; everything else on the operator alone.
        if node.op_type == "Dropout" or semantics.has_bodies(node):
            return semantics.is_deterministic(node, self._model.functions)
        if identifier not in self._deterministic:
            self._deterministic[identifier] = semantics.is_deterministic(node, self._model.functions)
        return self._deterministic[identifier]

    def _merge_nodes(self, node: oir.Node, first: oir.Node) -> None:
        """Let the outputs of *first* stand in for those of *node*; drop *node* where none is still needed."""
        same_graph = first.graph is node.graph
        pairs = [pair for pair in zip(node.outputs, first.outputs, strict=True) if pair[0].name]
        bound = [
            value for value, other in pairs
            if value.is_graph_output() and (other.is_graph_output() or not same_graph)
        ]  # fmt: skip
        for value, substitute in pairs:
            if not bound and substitute.type is None:
                substitute.type = value.type
            # An output of a graph keeps what it declares, and be it nothing: a Loop goes by that.
            silent = substitute.shape is None and not substitute.is_graph_output()
            if not bound and silent and value.shape is not None:
                substitute.shape = value.shape.copy()
            if value in bound:
                readers = value.uses()
                for reader, index in readers:
                    reader.replace_input_with(index, substitute)
                self.counts["readers_moved"] += len(readers)
            elif not rewrite.is_unused(value):
                rewrite.replace_value(self._model, value, substitute)
                self.counts["readers_moved"] += len(bound)
        if bound:
            where = "both names are outputs" if same_graph else "a subgraph must make its outputs itself"
            reason = f"computes the same as {first.name!r}, but {where}"
            self._skips[f"{node.op_type} {node.name!r}", reason] = None
            return
        for key, text in peek_props(node).items():
            first.metadata_props.setdefault(key, text)
        rewrite.remove_node(node)
        self.counts["expressions_merged"] += 1


def _outer_graphs(model: Model) -> dict[oir.Graph, oir.Graph | None]:
    """Return the graph around each subgraph; None for the main graph and for bodies of functions."""
    outer: dict[oir.Graph, oir.Graph | None] = {}
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        outer[root] = None
    for graph in model.graphs():
        for node in graph:
            if node.attributes:
                for body in rewrite.node_graphs(node):
                    outer[body] = graph
    return outer
