"""eliminate-dead: remove what no output needs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from graphopt.api import Pass, PassInfo, PassOptions, Report
from graphopt.ir import rewrite, semantics
from graphopt.passes.cleanup.annotations import annotated_names
from graphopt.passes.cleanup.bodies import shrink
from graphopt.passes.cleanup.facts import Facts
from graphopt.passes.cleanup.optional import drop_unused_outputs
from graphopt.passes.cleanup.traces import remove_traces

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.api import Context
    from graphopt.ir import Model

_Identifier = tuple[str, str, str]


class EliminateDead(Pass):
    """Remove nodes, initializers, functions and outputs that nothing needs, in every graph.

    A node goes when none of its outputs is read; random operators go too, operators of unknown domains stay,
    because they may do more than compute. Outputs of If, Loop and Scan that nothing reads are taken off
    together with their part of the bodies; a loop-carried state only where nothing else depends on it.
    Optional outputs that nothing reads are left out. The inputs of the model always stay, and with them the
    initializers that are their defaults.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="eliminate-dead",
        summary="Remove nodes, initializers, functions and outputs that no output of the model needs.",
        preserves=frozenset({"shapes", "statistics"}),
    )

    class Options(PassOptions):
        """What else goes."""

        traces: bool = Field(
            default=False,
            description="metadata in which exporters say where in their source a thing comes from goes too "
            "(pkg.torch.*, pkg.onnxscript.* and namespace; true or false)",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Sweep every graph once, from its last node to its first."""
        sweep = _Sweep(model, Facts(model, context))
        sweep.graph(model.graph)
        sweep.functions()
        for graph in model.graphs():
            sweep.initializers(graph)
        if options.traces:
            sweep.counts["traces_removed"] += remove_traces(model)
        counts = {key: count for key, count in sorted(sweep.counts.items()) if count}
        return Report(changed=bool(counts), counts=counts, skipped=tuple(sweep.skipped))


class _Sweep:
    def __init__(self, model: Model, facts: Facts) -> None:
        self.model = model
        self.facts = facts
        self.counts: Counter[str] = Counter()
        self.skipped: list[tuple[str, str]] = []
        self._called: dict[_Identifier, None] = {}
        self._annotated: frozenset[str] | None = None

    def graph(self, graph: oir.Graph) -> None:
        """Remove dead nodes of *graph* and its subgraphs; readers stand behind what they read."""
        for node in reversed(graph):
            if all(map(rewrite.is_unused, node.outputs)):
                if semantics.is_pure(node, self.model.functions):
                    rewrite.remove_node(node)
                    self.counts["nodes_removed"] += 1
                    continue
                self.skipped.append(
                    (f"{node.op_type} {node.name!r}", "nothing reads it, but it may have side effects")
                )
            if node.attributes and semantics.has_bodies(node):
                if dropped := shrink(self.model, node, self.facts):
                    self.counts["outputs_removed"] += dropped
                    continue  # its replacement stands just before it and comes next
                for body in rewrite.node_graphs(node):
                    self.graph(body)
            elif len(node.outputs) > 1:
                self.counts["outputs_removed"] += drop_unused_outputs(node, self.facts)
            identifier = node.op_identifier()
            if identifier in self.model.functions:
                self._called[identifier] = None

    def functions(self) -> None:
        """Sweep the functions that are called, and those that they call; remove all others."""
        pending = list(self._called)
        swept: set[_Identifier] = set()
        while pending:
            identifier = pending.pop()
            if identifier in swept:
                continue
            swept.add(identifier)
            self._called.clear()
            self.graph(self.model.functions[identifier].graph)
            pending.extend(self._called)
        for identifier in [known for known in self.model.functions if known not in swept]:
            del self.model.functions[identifier]
            self.counts["functions_removed"] += 1

    def initializers(self, graph: oir.Graph) -> None:
        """Remove initializers of *graph* that nothing reads and nothing names."""
        unread = [value for value in graph.initializers.values() if rewrite.is_unused(value)]
        for value in unread:
            name = value.name or ""
            if value.is_graph_input():
                self.skipped.append(
                    (f"initializer {name!r}", "nothing reads it, but it is an input of the model")
                )
            elif name in self._names_in_annotations():
                self.skipped.append((f"initializer {name!r}", "a quantization annotation names it"))
            else:
                del graph.initializers[name]
                self.counts["initializers_removed"] += 1

    def _names_in_annotations(self) -> frozenset[str]:
        if self._annotated is None:
            self._annotated = annotated_names(self.model)
        return self._annotated
