"""Bytes: of what folding adds and removes, and the rule that compressed weights stay compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir import rewrite
from graphopt.ir.meta import peek_props

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir import Shapes

SMALL_BYTES = 1024
"""A constant up to this size is no weight; what is computed from it is not unpacked."""

_SCALE_BYTES = 256
"""A float up to this size is a scale, a bias or a factor: its cast from a narrower type may be folded."""

GROWING = frozenset({
    "CenterCropPad", "Col2Im", "ConstantOfShape", "EyeLike", "Expand", "Gather", "GatherElements", "GatherND",
    "MatMul", "MaxUnpool", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample", "HannWindow",
    "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "Einsum", "Gemm", "NonZero",
})  # fmt: skip
"""Operators whose output may be far larger than their inputs; evaluated only once the size is known."""


def shape_bytes(shape: Sequence[int | str | None] | None, dtype: oir.DataType | None) -> int | None:
    """Return how many bytes a tensor takes, or None where a dim or the type is unknown."""
    if shape is None or dtype is None or dtype == oir.DataType.UNDEFINED:
        return None
    count = 1
    for size in shape:
        if not isinstance(size, int):
            return None
        count *= size
    return 16 * count if dtype == oir.DataType.STRING else -(-count * dtype.bitwidth // 8)


def node_bytes(node: oir.Node) -> int:
    """Return a lower bound of what *node* takes in a file: its names, tags and attributes."""
    total = 8 + len(node.op_type) + len(node.name or "") + len(node.doc_string or "")
    for value in (*node.inputs, *node.outputs):
        if value is not None:
            total += 2 + len(value.name or "")
    for key, text in peek_props(node).items():
        total += 4 + len(key) + len(text)
    for attribute in node.attributes.data.values():  # the dict inside: its wrapper answers in Python
        total += 8 + len(attribute.name)
        if attribute.is_ref():
            continue
        if attribute.type == oir.AttributeType.TENSOR:
            total += int(attribute.as_tensor().nbytes)
        elif attribute.type in {oir.AttributeType.INTS, oir.AttributeType.FLOATS}:
            total += 2 * len(attribute.value)
    return total


def compressed(
    node: oir.Node, input_bytes: Sequence[int | None], output_bytes: int | None, *, is_float: bool
) -> str:
    """Return why folding *node*, whose inputs are constant, would unpack a compressed weight; "" where not.

    Args:
        node: A node of the default domain.
        input_bytes: Bytes of each input; None for omitted ones.
        output_bytes: Bytes of its first output; None where unknown.
        is_float: Whether that is of a floating-point type.
    """
    if node.op_type == "DequantizeLinear":
        return "it unpacks a quantised constant, which stays quantised"
    if output_bytes is None or output_bytes <= _SCALE_BYTES or not is_float:
        return ""
    source = input_bytes[0] if input_bytes else None
    if node.op_type in {"Cast", "CastLike"} and source is not None and output_bytes > source:
        return f"it widens a constant from {source} to {output_bytes} bytes, which stays narrow"
    return ""


def lookup(node: oir.Node) -> bool:
    """Return whether *node* picks rows of a table, as a palette of weights is unpacked."""
    return rewrite.is_op(node, "Gather", "GatherElements", "GatherND")


def known_bytes(shapes: Shapes, value: oir.Value) -> int | None:
    """Return the size of *value* that shape inference knows, in bytes, or None."""
    return shape_bytes(shapes.shape(value), shapes.dtype(value))
