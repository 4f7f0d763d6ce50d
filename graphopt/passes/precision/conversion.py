"""Which nodes compute in half precision, and the edit: casts where the type changes, constants converted."""

from __future__ import annotations

import fnmatch
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir import rewrite, tensors
from graphopt.passes.precision import types
from graphopt.passes.precision.streaming import half_tensor, tensor_fits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir import Model, Shapes

FLOAT = oir.DataType.FLOAT

_STORED_TWICE = 1024
"""Bytes up to which a constant that float nodes and halves read is stored in both types; else it is cast."""


class Conversion:
    """One run of convert-float16 that computes in half precision.

    Args:
        model: What to change.
        shapes: Types of its values, from inference.
        dtype: "float16" or "bfloat16".
        keep: Patterns of names of nodes that stay float.
        keep_ops: Operators that stay float.
        keep_io: Whether inputs and outputs of the graph keep their types.
        statistics: Ranges of values, where there are any.
        headroom: Factor by which a calibrated range must fit in the type.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        *,
        dtype: str,
        keep: Sequence[str],
        keep_ops: Sequence[str],
        keep_io: bool,
        statistics: Statistics | None,
        headroom: float,
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.dtype = dtype
        self.half = types.HALVES[dtype]
        self.keep = keep
        self.keep_ops = frozenset(keep_ops)
        self.keep_io = keep_io
        self.statistics = statistics
        self.headroom = headroom
        self.counts: Counter[str] = Counter()
        self.skipped: list[tuple[str, str]] = []
        self.overridable = 0
        self.halves: dict[oir.Node, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self.large: set[oir.Value] = set()
        self.fitting: dict[oir.Value, bool] = {}
        self.converted: dict[tuple[oir.Value, int], oir.Value] = {}
        self.is_half: set[oir.Value] = set()

    def run(self) -> None:
        """Decide, then edit graph by graph, outer ones first."""
        graphs = list(self._graphs(self.model.graph))
        for graph in graphs:
            for node in graph:
                self._look_at(node)
        for _ in range(3):
            if not self._smooth(graphs):
                break
        self._leave_batch_transposes(graphs)
        if not self.halves:
            return
        if not self.keep_io:
            for value in self.model.graph.inputs:
                if self._is_float(value) and not value.is_initializer():
                    value.dtype = self.half
                    self.is_half.add(value)
        for graph in graphs:
            self._edit(graph)

    def _graphs(self, graph: oir.Graph) -> Any:  # noqa: ANN401 - an iterator of graphs
        yield graph
        for node in graph:
            for body in rewrite.node_graphs(node):
                yield from self._graphs(body)

    def _is_float(self, value: oir.Value | None) -> bool:
        return value is not None and self.shapes.dtype(value) == FLOAT

    # Deciding -------------------------------------------------------------------------------------------

    def _look_at(self, node: oir.Node) -> None:
        if not any(self._is_float(value) for value in node.outputs):
            return
        inputs = [value for value in node.inputs if value is not None]
        large = [value for value in inputs if value in self.large or self._exceeds(value)]
        own = self._attribute_exceeds(node)
        if (large or own) and not self._is_bounded(node):
            self.large.update(node.outputs)
        where = f"{node.op_type} {node.name or node.outputs[0].name!r}"
        slots = None
        reason = ""
        if node.op_type == "Constant" and rewrite.is_op(node, "Constant"):
            return
        if not rewrite.is_op(node, node.op_type):
            reason = f"an operator of {node.domain} has the types that it has"
        elif any(True for _ in rewrite.node_graphs(node)):
            reason = "what enters and leaves its bodies stays float"
        elif node.op_type in types.FLOAT_ONLY:
            reason = "the operator needs float, or has no kernel for halves"
        elif node.op_type in self.keep_ops:
            reason = "its operator is to be kept"
        elif any(fnmatch.fnmatchcase(node.name or "", pattern) for pattern in self.keep):
            reason = "it is to be kept"
        elif own or large:
            reason = f"a constant on its way exceeds the largest {self.dtype}, {types.LARGEST[self.dtype]:g}"
        elif ranged := self._out_of_range(node):
            reason = ranged
        else:
            slots = types.half_slots(node.op_type, self.model.opset, self.dtype)
            if slots is None:
                reason = f"opset {self.model.opset} has no {self.dtype} form of it"
        if slots is None:
            self.skipped.append((where, reason))
        else:
            self.halves[node] = slots

    def _exceeds(self, value: oir.Value) -> bool:
        tensor = tensors.constant_of(value)
        if tensor is None or tensor.dtype != FLOAT:
            return False
        if value not in self.fitting:
            self.fitting[value] = tensor_fits(tensor, self.dtype)
        if self.fitting[value]:
            return False
        self.large.add(value)
        return True

    def _is_bounded(self, node: oir.Node) -> bool:
        """Return whether what *node* gives fits in the type whatever it reads."""
        if not rewrite.is_op(node, "Clip"):
            return rewrite.is_op(node, *types.BOUNDED)
        bounds = [rewrite.attribute(node, "min"), rewrite.attribute(node, "max")]
        bounds += [rewrite.constant_array(rewrite.input_at(node, index)) for index in (1, 2)]
        known = [np.asarray(bound, np.float64) for bound in bounds if bound is not None]
        return len(known) == 2 and all(
            bool((np.abs(bound) <= types.LARGEST[self.dtype]).all()) for bound in known
        )

    def _attribute_exceeds(self, node: oir.Node) -> bool:
        if not rewrite.is_op(node, "ConstantOfShape"):
            return False
        tensor = rewrite.attribute(node, "value")
        return tensor is not None and not types.fits(tensors.to_array(tensor).astype(np.float64), self.dtype)

    def _out_of_range(self, node: oir.Node) -> str:
        if self.statistics is None:
            return ""
        limit = types.LARGEST[self.dtype] / self.headroom
        for value in (*node.inputs, *node.outputs):
            name = "" if value is None else value.name or ""
            if name and self.statistics.has_range(name):
                low, high = self.statistics.range(name).minmax()
                if max(abs(low), abs(high)) > limit:
                    return f"on the data {name!r} reaches {max(abs(low), abs(high)):g}, beyond {limit:g}"
        return ""

    def _smooth(self, graphs: Sequence[oir.Graph]) -> bool:
        """Let nodes that only move data go with their neighbours, where that takes fewer casts."""
        changed = False
        for graph in graphs:
            for node in graph:
                if node not in self.halves or node.op_type not in types.MOVING:
                    continue
                sources = [
                    value.producer() in self.halves or tensors.constant_of(value) is not None
                    for value in node.inputs
                    if value is not None and self._is_float(value)
                ]
                readers = [user in self.halves for value in node.outputs for user in value.consumers()]
                ends = sum(value.is_graph_output() for value in node.outputs)
                half_casts = sources.count(False) + bool(readers.count(False) + ends)
                float_casts = sources.count(True) + bool(readers.count(True))
                if float_casts < half_casts or (readers and not any(readers) and not any(sources)):
                    del self.halves[node]
                    changed = True
        return changed

    def _leave_batch_transposes(self, graphs: Sequence[oir.Graph]) -> None:
        """Let what puts the first axis in front of the last stay float where a MatMul reads it.

        onnxruntime fuses the two; on the CPU, which has no MatMul of halves, the process then crashes as the
        model is loaded (seen with 1.32). Models for other providers are validated on the CPU too.
        """
        for node in (node for graph in graphs for node in graph if rewrite.is_op(node, "Transpose")):
            perm = rewrite.attribute(node, "perm")
            rank = 0 if perm is None else len(perm)
            if node not in self.halves or rank < 3 or list(perm) != [*range(1, rank - 1), 0, rank - 1]:
                continue
            readers = [user for user, index in node.outputs[0].uses() if index == 0]
            if any(
                reader in self.halves
                and rewrite.is_op(reader, "MatMul")
                and tensors.constant_of(reader.inputs[1]) is not None
                for reader in readers
            ):
                del self.halves[node]
                where = f"Transpose {node.name or node.outputs[0].name!r}"
                self.skipped.append(
                    (where, "onnxruntime's CPU provider crashes on it in half before a MatMul")
                )

    # Editing --------------------------------------------------------------------------------------------

    def _edit(self, graph: oir.Graph) -> None:
        for node in list(graph):
            slots = self.halves.get(node)
            variables = self._variables(node, slots[0]) if slots is not None else frozenset()
            for index, value in enumerate(node.inputs):
                if value is None or not value.name:
                    continue
                if slots is not None and types.slot(slots[0], index) in variables:
                    if self._is_float(value) and value not in self.is_half:
                        node.replace_input_with(index, self._as(value, self.half, node))
                elif value in self.is_half and not (rewrite.is_op(node, *types.ANY_TYPE) and index == 0):
                    node.replace_input_with(index, self._as(value, FLOAT, node))
            if slots is not None:
                self._convert(node, slots[1], variables)
        self._outputs(graph)

    def _variables(self, node: oir.Node, slots: tuple[str, ...]) -> frozenset[str]:
        """Return the type variables that stand for float at *node* and become half."""
        if rewrite.is_op(node, "Cast", "ConstantOfShape"):
            return frozenset()
        found = {types.slot(slots, index) for index, value in enumerate(node.inputs) if self._is_float(value)}
        return frozenset(found - {""})

    def _convert(self, node: oir.Node, slots: tuple[str, ...], variables: frozenset[str]) -> None:
        from_attribute = rewrite.is_op(node, "Cast", "ConstantOfShape")
        if rewrite.is_op(node, "Cast"):
            node.attributes["to"] = oir.AttrInt64("to", int(self.half))
        elif rewrite.is_op(node, "ConstantOfShape"):
            tensor = rewrite.attribute(node, "value")
            array = np.zeros(1, np.float32) if tensor is None else tensors.to_array(tensor)
            content = tensors.from_array(types.to_half(array, self.dtype))
            node.attributes["value"] = oir.AttrTensor("value", content)
        for index, value in enumerate(node.outputs):
            if self._is_float(value) and (from_attribute or types.slot(slots, index) in variables):
                value.dtype = self.half
                self.is_half.add(value)
        self.counts["nodes_converted"] += 1

    def _as(self, value: oir.Value, dtype: oir.DataType, reader: oir.Node) -> oir.Value:
        """Return *value* as *dtype*, made once, where *value* is defined."""
        key = (value, int(dtype))
        if key in self.converted:
            return self.converted[key]
        tensor = tensors.constant_of(value)
        graph = value.graph or reader.graph
        assert graph is not None
        name = f"{value.name}_{dtype.name.lower()}"
        if tensor is not None and dtype == self.half and not self._is_kept(value, tensor):
            new = rewrite.add_initializer(self.model, graph, name, half_tensor(tensor, self.dtype, name))
            self.counts["constants_converted"] += 1
        else:
            node = rewrite.make_node(
                self.model, "Cast", [value], attributes={"to": int(dtype)}, name=name, outputs=[name]
            )
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                producer.graph.insert_after(producer, node)
            elif len(graph):
                graph.insert_before(graph[0], node)
            else:
                graph.append(node)
            new = node.outputs[0]
            new.dtype = dtype
            new.shape = value.shape.copy() if value.shape is not None else None
            self.counts["casts"] += 1
            self.overridable += tensors.is_overridable(value)
        self.converted[key] = new
        return new

    def _is_kept(self, value: oir.Value, tensor: oir.TensorProtocol) -> bool:
        """Return whether a constant of some size is needed as float too: then it is not stored twice."""
        if tensors.nbytes(tensor) <= _STORED_TWICE:
            return False
        for node, index in value.uses():
            slots = self.halves.get(node)
            if slots is None or types.slot(slots[0], index) not in self._variables(node, slots[0]):
                return True
        return value.is_graph_output()

    def _outputs(self, graph: oir.Graph) -> None:
        main = graph is self.model.graph
        for value in list(graph.outputs):
            if value not in self.is_half or (main and not self.keep_io):
                continue
            # The output keeps its name and type: the half gets another name, a Cast stands behind it.
            name = value.name or ""
            back = rewrite.make_node(
                self.model, "Cast", [value], attributes={"to": int(FLOAT)}, name=f"{name}_float",
                outputs=[f"{name}_float"],
            )  # fmt: skip
            new = back.outputs[0]
            new.dtype, new.shape = FLOAT, value.shape.copy() if value.shape is not None else None
            graph.append(back)
            for at, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[at] = new
            value.name = self.model.fresh_name(f"{name}_{self.dtype}")
            new.name = name
            self.counts["casts"] += 1
