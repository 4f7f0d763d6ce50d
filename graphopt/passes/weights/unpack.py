"""The nodes that stand between codes and the readers of a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir.rewrite import (
    add_initializer,
    attribute,
    input_at,
    is_unused,
    make_node,
    remove_node,
    replace_node,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir import Model
    from graphopt.passes.weights.places import Use, Weight
    from graphopt.passes.weights.recipes import Codes

MICROSOFT = "com.microsoft"


class Unpacker:
    """Puts codes into the graph that holds a weight, and nodes in front of its readers."""

    def __init__(self, model: Model, weight: Weight) -> None:
        self._model = model
        self._weight = weight
        graph = weight.value.graph
        assert graph is not None
        self._graph = graph
        self._shared: dict[int, oir.Value] = {}
        self._dequantized: oir.Value | None = None

    def constant(self, tensor: oir.TensorProtocol, role: str) -> oir.Value:
        """Return *tensor* as a constant of the graph, each once."""
        value = self._shared.get(id(tensor))
        if value is None:
            value = self._shared[id(tensor)] = add_initializer(
                self._model, self._graph, f"{self._weight.name}_{role}", tensor
            )
        return value

    def stored(self, codes: Codes) -> list[oir.Value]:
        """Return codes, scale and, where there is one, zero point as constants."""
        made = [self.constant(codes.codes, "codes"), self.constant(codes.scale, "scale")]
        if codes.zero is not None:
            made.append(self.constant(codes.zero, "zero"))
        return made

    def dequantize(self, codes: Codes, use: Use, *, axis: int, block: int, turned: bool) -> None:
        """Put a DequantizeLinear in front of one reader; a Gemm that read the transpose no longer does.

        Readers in bodies share one that stands outside: onnxruntime looks for the codes of a product in the
        graph of the product alone, and does not load the model where they stand in an outer one.
        """
        if turned:
            use.node.attributes.pop("transB")
        outside = use.node.graph is not self._graph
        if outside and self._dequantized is not None:
            use.node.replace_input_with(use.index, self._dequantized)
            return
        attributes = {"axis": axis} | ({"block_size": block} if block else {})
        node = make_node(
            self._model,
            "DequantizeLinear",
            self.stored(codes),
            attributes=attributes,
            outputs=[f"{self._weight.name}_dequantized"],
            name=f"{self._weight.name}_dequantize",
        )
        self._type(node.outputs[0], tuple(codes.codes.shape.numpy()))
        anchor = self._graph[0] if outside else use.node
        self._graph.insert_before(anchor, node)
        use.node.replace_input_with(use.index, node.outputs[0])
        if outside:
            self._dequantized = node.outputs[0]

    def nbits(self, codes: Codes, use: Use, *, rows: int, columns: int, bits: int, block: int) -> None:
        """Write the product as MatMulNBits, with the bias of a Gemm as an Add."""
        node = use.node
        bias = input_at(node, 2) if node.op_type == "Gemm" else None
        product = make_node(
            self._model,
            "MatMulNBits",
            [node.inputs[0], *self.stored(codes)],
            attributes={"K": rows, "N": columns, "bits": bits, "block_size": block},
            domain=MICROSOFT,
            replaces=[node],
        )
        self._model.opset_imports.setdefault(MICROSOFT, 1)
        if bias is None:
            replace_node(self._model, node, product)
            return
        assert node.graph is not None
        node.graph.insert_before(node, product)
        add = make_node(self._model, "Add", [product.outputs[0], bias], name=f"{node.name}_bias")
        replace_node(self._model, node, add)

    def gather(self, codes: Codes, use: Use) -> None:
        """Gather codes and scales, then multiply."""
        node = use.node
        indices = node.inputs[1]
        stored = self.stored(codes)
        graph = node.graph
        assert graph is not None
        parts = []
        for value, role in zip(stored, ("codes", "scale", "zero"), strict=False):
            picked = make_node(
                self._model,
                "Gather",
                [value, indices],
                attributes={"axis": 0},
                outputs=[f"{self._weight.name}_{role}_rows"],
                name=f"{node.name or self._weight.name}_{role}",
            )
            graph.insert_before(node, picked)
            parts.append(picked.outputs[0])
        floats = [self._cast(part, node) for part in (parts[0], *parts[2:])]
        if len(floats) == 2:
            floats = [self._binary("Sub", floats[0], floats[1], node)]
        last = make_node(self._model, "Mul", [floats[0], parts[1]], replaces=[node])
        replace_node(self._model, node, last)

    def folded(self, codes: Codes, dims: Sequence[int]) -> None:
        """Compute the weight from constants, which the runtime does once, in front of all its readers."""
        graph = self._graph
        # The readers are taken down before anything new reads the constants.
        readers = list(self._weight.value.uses())
        stored = self.stored(codes)
        anchor = graph[0]
        floats = [self._cast(part, anchor) for part in (stored[0], *stored[2:])]
        if len(floats) == 2:
            floats = [self._binary("Sub", floats[0], floats[1], anchor)]
        result = self._binary("Mul", floats[0], stored[1], anchor)
        if tuple(codes.codes.shape.numpy()) != tuple(dims):
            shape = add_initializer(
                self._model, graph, f"{self._weight.name}_shape", np.array(dims, np.int64)
            )
            result = self._binary("Reshape", result, shape, anchor)
        self._type(result, tuple(dims))
        for node, index in readers:
            node.replace_input_with(index, result)

    def drop(self) -> None:
        """Remove the float weight, where nothing reads it any more."""
        value = self._weight.value
        if not is_unused(value):
            return
        producer = value.producer()
        if producer is not None:
            remove_node(producer)
        elif value.name is not None and value.name in self._graph.initializers:
            del self._graph.initializers[value.name]

    def _cast(self, value: oir.Value, before: oir.Node) -> oir.Value:
        node = make_node(
            self._model,
            "Cast",
            [value],
            attributes={"to": int(oir.DataType.FLOAT)},
            outputs=[f"{value.name}_float"],
            name=f"{value.name}_cast",
        )
        assert before.graph is not None
        before.graph.insert_before(before, node)
        return node.outputs[0]

    def _binary(self, op_type: str, left: oir.Value, right: oir.Value, before: oir.Node) -> oir.Value:
        node = make_node(
            self._model,
            op_type,
            [left, right],
            outputs=[f"{self._weight.name}_{op_type.lower()}"],
            name=f"{self._weight.name}_{op_type.lower()}",
        )
        assert before.graph is not None
        before.graph.insert_before(before, node)
        return node.outputs[0]

    @staticmethod
    def _type(value: oir.Value, dims: tuple[int, ...]) -> None:
        value.type, value.shape = oir.TensorType(oir.DataType.FLOAT), oir.Shape(dims)


def replace_clamp(model: Model, node: oir.Node) -> bool:
    """Write a Relu or Clip as Max and Min, which the runtime leaves alone; return whether it was one.

    A Clip of opset 10 or earlier has its bounds in attributes and stays.
    """
    graph = node.graph
    assert graph is not None
    if node.op_type == "Relu":
        zero = add_initializer(model, graph, f"{node.name or 'relu'}_zero", np.zeros((), np.float32))
        replace_node(model, node, make_node(model, "Max", [node.inputs[0], zero], replaces=[node]))
        return True
    least, most = input_at(node, 1), input_at(node, 2)
    if (
        attribute(node, "min") is not None
        or attribute(node, "max") is not None
        or (least is None and most is None)
    ):
        return False
    source = node.inputs[0]
    if least is not None and most is not None:
        first = make_node(model, "Max", [source, least], name=f"{node.name}_max")
        graph.insert_before(node, first)
        source, least = first.outputs[0], None
    last = make_node(
        model,
        "Min" if most is not None else "Max",
        [source, most if most is not None else least],
        replaces=[node],
    )
    replace_node(model, node, last)
    return True
