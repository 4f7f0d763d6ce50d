"""Which parts of a model are quantised: nodes that work on codes, and those wrapped in DequantizeLinear.

Judged by what stands in the graph alone, so that the same question can be put to a model and to what a
runtime made of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from graphopt.ir.rewrite import input_at, is_unused, node_graphs
from graphopt.ir.semantics import (
    DEFAULT_DOMAIN,
    MICROSOFT_DOMAIN,
    WeightRole,
    domain_of,
    is_data_movement,
    weight_roles,
)
from graphopt.ir.tensors import constant_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as oir

    from graphopt.ir.model import Model

Wrapping = Literal["weight", "whole"]
"""Only the weight is stored as codes, or what goes in and comes out is quantised too."""

_NCHWC_DOMAIN = "com.microsoft.nchwc"  # the runtime's blocked layout
_KNOWN_DOMAINS = frozenset({DEFAULT_DOMAIN, MICROSOFT_DOMAIN, _NCHWC_DOMAIN})

# Operators that take codes and combine them as such, besides all whose name begins with QLinear.
_INTEGER_OPS = frozenset({
    "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulBnb4",
    "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MulInteger", "QAttention",
    "QEmbedLayerNormalization", "QGemm", "QMoE",
})  # fmt: skip

# What moves all elements and changes none: the question where a value comes from passes through.
_MOVES = frozenset({
    "Flatten", "Identity", "ReorderInput", "ReorderOutput", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip

_WEIGHTS = frozenset({WeightRole.WEIGHT, WeightRole.RECURRENT_WEIGHT, WeightRole.TABLE})


def is_quantize(node: oir.Node | None) -> bool:
    """Return whether *node* is a QuantizeLinear of ONNX or of onnxruntime."""
    return _is(node, "QuantizeLinear")


def is_dequantize(node: oir.Node | None) -> bool:
    """Return whether *node* is a DequantizeLinear of ONNX or of onnxruntime."""
    return _is(node, "DequantizeLinear")


def _is(node: oir.Node | None, op_type: str) -> bool:
    return (
        node is not None and node.op_type == op_type and domain_of(node) in {DEFAULT_DOMAIN, MICROSOFT_DOMAIN}
    )


def is_integer(node: oir.Node) -> bool:
    """Return whether *node* computes on codes: QLinearConv, MatMulInteger, MatMulNBits and the like."""
    return domain_of(node) in _KNOWN_DOMAINS and (
        node.op_type.startswith("QLinear") or node.op_type in _INTEGER_OPS
    )


def holds_quantisation(model: Model) -> bool:
    """Return whether some node of *model* makes codes, reads them, or computes on them."""
    return any(
        is_quantize(node) or is_dequantize(node) or is_integer(node) or _is(node, "DynamicQuantizeLinear")
        for node in model.nodes()
    )


def dequantizer(value: oir.Value | None) -> oir.Node | None:
    """Return the DequantizeLinear that *value* comes from, through nodes that only move elements."""
    node = _source(value)
    return node if is_dequantize(node) else None


def has_constant_codes(node: oir.Node) -> bool:
    """Return whether the codes that a DequantizeLinear reads are stored in the model."""
    value = input_at(node, 0)
    while value is not None:
        if constant_of(value) is not None:
            return True
        producer = value.producer()
        value = input_at(producer, 0) if producer is not None and moves(producer) else None
    return False


def _source(value: oir.Value | None) -> oir.Node | None:
    node = None if value is None else value.producer()
    while node is not None and moves(node):
        moved = input_at(node, 0)
        node = None if moved is None else moved.producer()
    return node


def moves(node: oir.Node) -> bool:
    """Return whether *node* moves all elements of its first input and changes none."""
    return node.op_type in _MOVES and domain_of(node) in _KNOWN_DOMAINS


def dequantised_weights(node: oir.Node) -> Iterator[tuple[int, oir.Node]]:
    """Yield (input, DequantizeLinear) for each weight or table of *node* that is stored as codes."""
    for index, role in weight_roles(node).items():
        if role in _WEIGHTS and not _is_quantiser(node):
            found = dequantizer(input_at(node, index))
            if found is not None and has_constant_codes(found):
                yield index, found


def wrapping(node: oir.Node) -> Wrapping | None:
    """Return how much of a float node is quantised, or None where it is no float node or nothing is.

    "weight": a weight or table comes from stored codes. "whole": every other tensor it computes on comes from
    a DequantizeLinear too, or, for a node without such a weight, everything that it reads does and everything
    that reads it is a QuantizeLinear. What lies between a quantised and a float node is neither.
    """
    if _is_quantiser(node) or is_integer(node) or moves(node) or is_clamp(node) or _skipped(node):
        return None
    weights = {index for index, _ in dequantised_weights(node)}
    data = list(_data_inputs(node, weights))
    from_codes = bool(data) and all(dequantizer(value) is not None for value in data)
    if weights:
        return "whole" if from_codes else "weight"
    return "whole" if from_codes and is_requantised(node) else None


def is_requantised(node: oir.Node) -> bool:
    """Return whether every reader of every output of *node* is a QuantizeLinear; there is at least one.

    A Relu or Clip may stand between: the range of a quantised value bounds it as well.
    """
    outputs = [value for value in node.outputs if value.name and not is_unused(value)]
    return bool(outputs) and all(map(_is_requantised, outputs))


def _is_requantised(value: oir.Value) -> bool:
    readers = value.consumers()
    if value.is_graph_output() or not readers:
        return False
    return all(
        is_quantize(user)
        or (is_clamp(user) and all(map(is_quantize, user.outputs[0].consumers())) and not _ends(user))
        for user in readers
    )


def _ends(node: oir.Node) -> bool:
    return any(value.is_graph_output() for value in node.outputs)


def is_clamp(node: oir.Node) -> bool:
    """Return whether *node* only bounds its input, as the range of a quantised value does by itself."""
    return node.op_type in {"Clip", "Relu"} and domain_of(node) == DEFAULT_DOMAIN


def _data_inputs(node: oir.Node, weights: set[int]) -> Iterator[oir.Value]:
    """Yield the inputs of *node* that carry activations: no constants, biases, scales, indices."""
    roles = weight_roles(node)
    passive = {WeightRole.BIAS, WeightRole.NORMALIZATION, WeightRole.SCALE}
    last = 1 if is_data_movement(node) and node.op_type != "Concat" else len(node.inputs)
    for index in range(last):
        value = input_at(node, index)
        if value is None or index in weights or roles.get(index) in passive or constant_of(value) is not None:
            continue
        yield value


def _is_quantiser(node: oir.Node) -> bool:
    return is_quantize(node) or is_dequantize(node)


def _skipped(node: oir.Node) -> bool:
    return domain_of(node) not in _KNOWN_DOMAINS or any(True for _ in node_graphs(node))
