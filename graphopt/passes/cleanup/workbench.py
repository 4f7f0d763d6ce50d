"""A worklist of nodes and the edits that rewrite rules are made of.

Every edit puts the nodes that it may matter to back on the list, so that one run reaches a fixed point in
time linear in nodes plus edits, and counts itself for the report.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir import rewrite, scopes, semantics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt

    from graphopt.ir import Model
    from graphopt.passes.cleanup.facts import Facts

    Rule = Callable[["Workbench", oir.Node], bool]

# A value with more readers than this is not worth telling them all that one of them is gone.
_FEW_READERS = 8


class Workbench:
    """Applies rules to the nodes of a model until none has anything left to do.

    Args:
        model: The model to change.
        facts: What is known about its values.
    """

    def __init__(self, model: Model, facts: Facts) -> None:
        self.model = model
        self.facts = facts
        self.counts: Counter[str] = Counter()
        self._skips: dict[tuple[str, str], None] = {}
        self._queue: deque[oir.Node] = deque()
        self._queued: set[oir.Node] = set()
        self._constants: dict[tuple[oir.Graph, str, tuple[int, ...], bytes], oir.Value] = {}

    @property
    def skips(self) -> tuple[tuple[str, str], ...]:
        """What was left alone: (node, reason), each once, in order of first meeting."""
        return tuple(self._skips)

    def run(self, rules: Mapping[str, tuple[Rule, ...]], general: tuple[Rule, ...] = ()) -> None:
        """Apply *rules*, by operator of the default domain, and *general* ones to inputs and outputs."""
        if renamed := scopes.unshadow(self.model):
            self.counts["renamed_hiding_values"] += renamed
        self.enqueue(self.model.nodes())
        while self._queue:
            node = self._queue.popleft()
            self._queued.discard(node)
            # Most nodes have neither an omitted last input nor a second output.
            if (node.inputs and node.inputs[-1] is None) or len(node.outputs) > 1:
                for rule in general:
                    if node.graph is not None and rule(self, node):
                        self.enqueue((node,))
            if node.domain not in {"", "ai.onnx"}:
                continue
            for rule in rules.get(node.op_type, ()):
                if node.graph is None:
                    break
                if rule(self, node):
                    self.enqueue((node,))
                    break

    def enqueue(self, nodes: Iterable[oir.Node]) -> None:
        """Put *nodes* on the list that are not on it."""
        for node in nodes:
            if node not in self._queued and node.graph is not None:
                self._queued.add(node)
                self._queue.append(node)

    def skip(self, node: oir.Node, reason: str) -> None:
        """Note that *node* is left alone for *reason*."""
        self._skips[f"{node.op_type} {node.name!r}", reason] = None

    def bypass(self, node: oir.Node, value: oir.Value, *, key: str = "") -> bool:
        """Let *value*, an input of *node*, stand in for its first output, which equals it; drop the node.

        Where the output must stay a graph output of its own name, an Identity remains.

        Returns:
            Whether anything changed.
        """
        output = node.outputs[0]
        readers = output.consumers()
        if not value.name or not output.name:
            return False
        type_, shape = output.type, output.shape
        if not rewrite.replace_value(self.model, output, value):
            if readers:
                self.counts["redirected"] += 1
            self.enqueue(readers)
            return bool(readers)
        self.counts[key or f"removed_{node.op_type.lower()}"] += 1
        self.enqueue(readers)
        if value.type is None:
            value.type = type_
        # An output of a graph keeps what it declares, and be it nothing: a Loop goes by that.
        if value.shape is None and shape is not None and not value.is_graph_output():
            value.shape = shape.copy()
        others = [other for other in node.inputs if other is not None and (other is not value or not readers)]
        rewrite.remove_node(node)
        for other in others:
            self._release(other)
        return True

    def rewire(self, node: oir.Node, index: int, value: oir.Value) -> None:
        """Let input *index* of *node* read *value*; what nothing reads any more is removed."""
        old = node.inputs[index]
        node.replace_input_with(index, value)
        self.enqueue((node,))
        if old is not None:
            self._release(old)

    def drop_inputs(self, node: oir.Node, size: int) -> None:
        """Keep the first *size* inputs of *node*."""
        dropped = [value for value in node.inputs[size:] if value is not None]
        node.resize_inputs(size)
        self.enqueue((node,))
        for value in dropped:
            self._release(value)

    def clear_input(self, node: oir.Node, index: int) -> None:
        """Leave out the optional input *index* of *node*; trailing omitted inputs are cut off."""
        old = node.inputs[index]
        node.replace_input_with(index, None)
        size = len(node.inputs)
        while size and node.inputs[size - 1] is None:
            size -= 1
        node.resize_inputs(size)
        self.enqueue((node,))
        if old is not None:
            self._release(old)

    def replace(
        self,
        node: oir.Node,
        op_type: str,
        inputs: list[oir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> oir.Node:
        """Put a new node where *node* stands; it takes over names, types and metadata."""
        old = [value for value in node.inputs if value is not None]
        new = rewrite.make_node(self.model, op_type, inputs, attributes=attributes, replaces=(node,))
        name = node.name
        self.facts.adopt(new.outputs[0], node.outputs[0])
        rewrite.replace_node(self.model, node, new)
        new.name = name
        self.enqueue((new, *new.outputs[0].consumers()))
        for value in old:
            self._release(value)
        return new

    def constant(self, node: oir.Node, hint: str, array: npt.NDArray[Any]) -> oir.Value:
        """Return a value that holds *array* and that *node* can read; equal ones are shared."""
        graph = node.graph
        assert graph is not None
        shared = self.facts.holds_initializers(graph)
        key = (graph, array.dtype.str, array.shape, array.tobytes())
        if shared and (known := self._constants.get(key)) is not None and known.is_initializer():
            return known
        if shared:
            value = rewrite.add_initializer(self.model, graph, hint, array)
            self._constants[key] = value
            return value
        tensor = oir.Tensor(array)
        maker = rewrite.make_node(
            self.model, "Constant", [], attributes={"value": oir.AttrTensor("value", tensor)}, outputs=[hint]
        )
        maker.outputs[0].type = oir.TensorType(tensor.dtype)
        maker.outputs[0].shape = oir.Shape(array.shape)
        graph.insert_before(node, maker)
        return maker.outputs[0]

    def ints(self, node: oir.Node, hint: str, numbers: Iterable[int]) -> oir.Value:
        """Return a value that holds *numbers* as a vector of int64 and that *node* can read."""
        return self.constant(node, hint, np.array(list(numbers), np.int64))

    def _release(self, value: oir.Value) -> None:
        """Remove the producer of *value* where nothing needs it now, and so on upwards."""
        pending = [value]
        while pending:
            released = pending.pop()
            node = released.producer()
            if node is None or node.graph is None:
                continue
            readers = released.consumers()
            if len(readers) <= _FEW_READERS:
                self.enqueue(readers)
            if readers or not all(map(rewrite.is_unused, node.outputs)):
                continue
            if not semantics.is_pure(node, self.model.functions):
                continue
            pending.extend(source for source in node.inputs if source is not None)
            if node.attributes:
                pending.extend(rewrite.captured_values(node))
            rewrite.remove_node(node)
            self.counts["removed_unused"] += 1
