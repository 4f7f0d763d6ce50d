"""Make inner values of a model visible as outputs, those in bodies of If, Loop and Scan included.

A value of a branch is handed out by its If; the other branch hands out an empty tensor in its place. A value
of an iteration is handed out by its Loop or Scan as one more scan output, with the iterations as leading
axis. What cannot be handed out is named with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir.rewrite import is_op, make_node, node_graphs
from graphopt.ir.tensors import from_array

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes

_FLOATS = frozenset({
    oir.DataType.FLOAT, oir.DataType.FLOAT16, oir.DataType.BFLOAT16, oir.DataType.DOUBLE,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exposed:
    """Where a value can be seen.

    Attributes:
        output: Name of the output of the model.
        leading: How many leading axes count iterations of loops around the value.
    """

    output: str
    leading: int = 0


@dataclass
class Exposure:
    """A model with more outputs, and what they show.

    Attributes:
        model: The model to run.
        outputs: Where each value is seen, by its name.
        inputs: Values that are inputs of the model; their feeds show them.
        constants: Values that are constants, by name.
        skipped: Why a value cannot be seen, by its name.
    """

    model: Model
    outputs: dict[str, Exposed] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    constants: dict[str, oir.TensorProtocol] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def expose(model: Model, names: Iterable[str]) -> Exposure:
    """Return a copy of *model* whose outputs are the values called *names*, as far as that can be."""
    from graphopt.ir.shapes import infer_shapes

    working = model.clone()
    working.forget_names()
    return _Exposer(working, infer_shapes(working)).run(sorted(set(names)))


class _Exposer:
    def __init__(self, model: Model, shapes: Shapes) -> None:
        self.model = model
        self.shapes = shapes
        self.exposure = Exposure(model)
        self.values: dict[str, list[oir.Value]] = {}
        self.holders: dict[oir.Graph, oir.Node] = {}
        self.functions: dict[oir.Graph, str] = {}
        self._index()

    def _index(self) -> None:
        for function in self.model.functions.values():
            for graph in (function.graph, *function.graph.subgraphs()):
                self.functions[graph] = function.name
        for graph in self.model.graphs():
            defined = [*graph.inputs, *(value for value in graph.initializers.values())]
            for node in graph:
                defined += node.outputs
                for body in node_graphs(node):
                    self.holders[body] = node
            for value in defined:
                if value.name:
                    found = self.values.setdefault(value.name, [])
                    if not any(value is other for other in found):
                        found.append(value)

    def run(self, names: Iterable[str]) -> Exposure:
        graph = self.model.graph
        shown: list[oir.Value] = []
        for name in names:
            try:
                shown += self._one(name)
            except _NotVisibleError as reason:
                self.exposure.skipped[name] = str(reason)
        # Only what is asked for is computed: the runtime drops the rest.
        graph.outputs[:] = list(dict.fromkeys(shown))
        return self.exposure

    def _one(self, name: str) -> list[oir.Value]:
        """Make one value visible and return the outputs that show it.

        Raises:
            _NotVisibleError: It cannot be made visible.
        """
        found = self.values.get(name, [])
        if not found:
            raise _NotVisibleError("the model has no value of that name")
        if len(found) > 1:
            raise _NotVisibleError(f"the name stands for {len(found)} values in different bodies")
        (value,) = found
        graph = value.graph
        if graph in self.functions:
            raise _NotVisibleError(f"it is inside the function {self.functions[graph]!r}")
        dtype = self.shapes.dtype(value)
        if dtype is not None and dtype not in _FLOATS:
            raise _NotVisibleError(f"it is not a floating-point tensor ({dtype.name.lower()})")
        if value.is_initializer():
            if value.const_value is None:
                raise _NotVisibleError("it has no content")
            self.exposure.constants[name] = value.const_value
            if not value.is_graph_input() or graph is not self.model.graph:
                return []
        if value.is_graph_input() and graph is self.model.graph:
            self.exposure.inputs[name] = name
            return []
        if self.shapes.type(value) is not None and not isinstance(self.shapes.type(value), oir.TensorType):
            raise _NotVisibleError("it is no tensor")
        leading = 0
        inner = value
        while graph is not self.model.graph:
            assert graph is not None
            holder = self.holders[graph]
            inner, added = self._lifted(inner, value, graph, holder, leading)
            leading += added
            graph = holder.graph
        if inner is not value:
            inner.name = self.model.fresh_name(f"{name}_seen")
        if inner.type is None and dtype is not None:
            inner.type = oir.TensorType(dtype)
        self.exposure.outputs[name] = Exposed(inner.name or "", leading)
        return [inner]

    def _lifted(
        self, inner: oir.Value, value: oir.Value, graph: oir.Graph, holder: oir.Node, leading: int
    ) -> tuple[oir.Value, int]:
        """Return an output of *holder* that shows *inner* of its body, and how many axes that adds."""
        if is_op(holder, "If"):
            return self._through_branch(inner, value, graph, holder, leading), 0
        if is_op(holder, "Loop", "Scan"):
            return self._through_loop(inner, value, graph, holder), 1
        raise _NotVisibleError(f"it is inside a body of {holder.op_type}")

    def _through_branch(
        self, inner: oir.Value, value: oir.Value, graph: oir.Graph, holder: oir.Node, leading: int
    ) -> oir.Value:
        rank, dtype = self.shapes.rank(value), self.shapes.dtype(value)
        if rank is None or dtype is None:
            raise _NotVisibleError("it is inside a branch, and its rank or type is unknown")
        if self._is_in_loop(holder):
            raise _NotVisibleError("it is inside a branch of an If that is inside a loop")
        if rank + leading == 0:  # an empty tensor needs an axis
            shape = self._constant(graph, np.array([1], np.int64))
            inner = self._append(graph, make_node(self.model, "Reshape", [inner, shape]))
        else:
            inner = self._append(graph, make_node(self.model, "Identity", [inner]))
        inner.type = oir.TensorType(dtype)
        empty_shape = (0,) * max(rank + leading, 1)
        for branch in node_graphs(holder):
            if branch is graph:
                branch.outputs.append(inner)
                continue
            empty = self._constant(branch, np.zeros(empty_shape, dtype.numpy()))
            empty.type = oir.TensorType(dtype)
            branch.outputs.append(empty)
        return self._new_output(holder, dtype)

    def _through_loop(
        self, inner: oir.Value, value: oir.Value, graph: oir.Graph, holder: oir.Node
    ) -> oir.Value:
        dims = self.shapes.shape(value)
        dtype = self.shapes.dtype(value)
        if dims is None or dtype is None:
            raise _NotVisibleError("it is inside a loop, and its rank or type is unknown")
        if not all(isinstance(dim, int) or self.shapes.is_declared(dim) for dim in dims):
            raise _NotVisibleError("it is inside a loop, and its size may change between iterations")
        if holder.op_type == "Scan" and "scan_output_axes" in holder.attributes:
            raise _NotVisibleError("it is inside a Scan with scan_output_axes")
        inner = self._append(graph, make_node(self.model, "Identity", [inner]))
        inner.type = oir.TensorType(dtype)
        graph.outputs.append(inner)
        return self._new_output(holder, dtype)

    def _is_in_loop(self, node: oir.Node) -> bool:
        graph = node.graph
        while graph is not None and graph in self.holders:
            holder = self.holders[graph]
            if not is_op(holder, "If"):
                return True
            graph = holder.graph
        return False

    def _new_output(self, holder: oir.Node, dtype: oir.DataType) -> oir.Value:
        holder.resize_outputs(len(holder.outputs) + 1)
        output = holder.outputs[-1]
        output.name = self.model.fresh_name(f"{holder.name or holder.op_type}_seen")
        output.type = oir.TensorType(dtype)
        return output

    @staticmethod
    def _append(graph: oir.Graph, node: oir.Node) -> oir.Value:
        graph.append(node)
        return node.outputs[0]

    def _constant(self, graph: oir.Graph, array: np.ndarray[Any, np.dtype[Any]]) -> oir.Value:
        node = make_node(self.model, "Constant", [], attributes={"value": from_array(array, "value")})
        if len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        return node.outputs[0]


class _NotVisibleError(Exception):
    """Why a value cannot be shown; never leaves this module."""
