"""Constants as small expressions of ONNX operators, and the edit that puts one into a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir import rewrite, tensors
from graphopt.ir.packed import mark_packed

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir import Model

    Array = npt.NDArray[Any]

_NODE_BYTES = 100
"""What a node takes in a file with its names, about; only to tell what is worth it."""


_SMALL = 1 << 16
"""Bytes of an array up to which an equal one is looked for."""


def _key_of(array: Array) -> tuple[Hashable, ...]:
    return str(array.dtype), array.shape, array.tobytes()


@dataclass(frozen=True, eq=False)
class Made:
    """A node to be: an operator over arrays, existing values and other expressions.

    Attributes:
        op_type: Operator of the default domain.
        inputs: What it reads.
        attributes: Its attributes.
    """

    op_type: str
    inputs: tuple[Made | Array | oir.Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost_bytes(self) -> int:
        """About how many bytes it takes in a file, with all that it reads."""
        total = _NODE_BYTES
        for each in self.inputs:
            if isinstance(each, Made):
                total += each.cost_bytes
            elif isinstance(each, np.ndarray):
                total += each.nbytes + 24
        return total

    @property
    def op_types(self) -> tuple[str, ...]:
        """Operators of the expression, what is read first."""
        inner = [each.op_types for each in self.inputs if isinstance(each, Made)]
        return (*(name for names in inner for name in names), self.op_type)


class Writer:
    """Puts expressions at the start of graphs; what is equal and small stands once in each graph.

    That holds for arrays, and for nodes inside of expressions that read nothing else: the tables of palettes.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._arrays: dict[tuple[Hashable, ...], oir.Value] = {}
        self._nodes: dict[tuple[Hashable, ...], oir.Value] = {}
        self._anchors: dict[int, oir.Node | None] = {}

    def array(self, graph: oir.Graph, hint: str, array: Array) -> oir.Value:
        """Return a constant of *graph* that holds *array*."""
        if array.nbytes > _SMALL:
            return rewrite.add_initializer(self._model, graph, hint, array)
        key = (id(graph), *_key_of(array))
        value = self._arrays.get(key)
        if value is None or value.graph is not graph:
            value = rewrite.add_initializer(self._model, graph, hint, array)
            self._arrays[key] = value
        return value

    def write(self, graph: oir.Graph, name: str, made: Made) -> oir.Value:
        """Put *made* in front of the nodes that *graph* had and return what it computes.

        Args:
            graph: Where the value is defined; what *made* reads is a constant of it or made before.
            name: Prefix of the names of values and nodes.
            made: The expression.
        """
        inputs = [self._input(graph, name, each) for each in made.inputs]
        node = mark_packed(
            rewrite.make_node(
                self._model,
                made.op_type,
                inputs,
                attributes=made.attributes,
                name=f"{name}_{made.op_type.lower()}",
                outputs=[f"{name}_{made.op_type.lower()}"],
            )
        )
        anchor = self._anchor(graph)
        if anchor is None:
            graph.append(node)
        else:
            graph.insert_before(anchor, node)
        return node.outputs[0]

    def _anchor(self, graph: oir.Graph) -> oir.Node | None:
        key = id(graph)
        if key not in self._anchors:
            # Constant nodes come first, so that what they hold may be read.
            self._anchors[key] = next((node for node in graph if node.op_type != "Constant"), None)
        return self._anchors[key]

    def _input(self, graph: oir.Graph, name: str, each: Made | Array | oir.Value) -> oir.Value:
        if isinstance(each, Made):
            if not all(isinstance(one, np.ndarray) and one.nbytes <= _SMALL for one in each.inputs):
                return self.write(graph, name, each)
            arrays = (_key_of(one) for one in each.inputs if isinstance(one, np.ndarray))
            key = (id(graph), each.op_type, repr(sorted(each.attributes.items())), *arrays)
            if key not in self._nodes:
                self._nodes[key] = self.write(graph, name, each)
            return self._nodes[key]
        if isinstance(each, np.ndarray):
            return self.array(graph, f"{name}_{'codes' if each.size > 64 else 'value'}", each)
        return each


def put_in_place(model: Model, writer: Writer, old: oir.Value, made: Made) -> oir.Value:
    """Let what *made* computes stand in for the constant *old*, under the name of *old*.

    Args:
        model: The model that is changed.
        writer: Shared by all edits of one run.
        old: An initializer, or the output of a Constant node; no output of a graph.
        made: What computes the same.
    """
    graph = old.graph
    assert graph is not None
    name = old.name or "constant"
    tensor = tensors.constant_of(old)
    new = writer.write(graph, name, made)
    if tensor is not None:
        import onnx_ir as ir

        new.type, new.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    rewrite.replace_value(model, old, new)
    if old.is_initializer():
        del graph.initializers[name]
    else:
        producer = old.producer()
        assert producer is not None
        rewrite.remove_node(producer)
    old.name = model.fresh_name(f"{name}_replaced")
    new.name = name
    return new
