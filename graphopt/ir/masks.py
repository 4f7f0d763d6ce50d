"""Additive masks: constants of very low numbers on the way to a Softmax, which switch elements off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.quantised import moves
from graphopt.ir.rewrite import constant_array, input_at, is_op

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir.model import Model

MASK = -1e4
"""Constants below this on the way to a Softmax switch elements off; they say nothing about the others."""

_LARGEST_MASK_BYTES = 1 << 28

_CARRIERS = (
    "Add", "And", "Cast", "Concat", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Not", "Reshape",
    "ScatterND", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
)  # fmt: skip
_CUTTING = ("Cast", "Expand", "Gather", "Slice", "Split", "Tile")


def masked_values(model: Model, below: float = MASK) -> frozenset[oir.Value]:
    """Return the values between a constant with elements of at most *below* and the Softmax that reads it."""
    pending: list[oir.Value] = []
    for graph in model.graphs():
        stored = (value for value in graph.initializers.values() if value.const_value is not None)
        made = (node.outputs[0] for node in graph if is_op(node, "Constant", "ConstantOfShape"))
        pending.extend(value for value in (*stored, *made) if _masks(value, below))
    forward: dict[oir.Value, None] = {}
    while pending:
        value = pending.pop()
        if value in forward:
            continue
        forward[value] = None
        for user in value.consumers():
            if is_op(user, *_CARRIERS) or moves(user):
                pending.extend(user.outputs)
    # Only what leads to a Softmax is a mask; a bias of -2e4 is a bias.
    leading: set[oir.Value] = set()
    softmaxes = [node for node in model.nodes() if node.op_type in {"Softmax", "LogSoftmax"}]
    stack = [node.inputs[0] for node in softmaxes if node.inputs]
    while stack:
        reached = stack.pop()
        if reached is None or reached in leading or reached not in forward:
            continue
        leading.add(reached)
        producer = reached.producer()
        if producer is not None:
            stack.extend(producer.inputs)
    return frozenset(leading)


def masked_share(value: oir.Value, masked: frozenset[oir.Value], below: float) -> float | None:
    """Return the share of the elements of *value* that a mask switches off, or None where that is not known.

    It is known where the mask is a constant or a part of one (which is taken for the whole: the first rows
    and columns of a causal mask are one too), a triangle of a constant, or chosen by a constant condition.

    Args:
        value: What a Softmax reads, or a value on the way to it.
        masked: What :func:`masked_values` found.
        below: Elements of at most this are switched off.
    """
    held = constant_array(value, limit_bytes=_LARGEST_MASK_BYTES)
    if held is not None:
        # One number says nothing: where it goes is decided by what reads it.
        return float((held <= below).mean()) if held.size > 1 else None
    node = value.producer()
    if node is None:
        return None
    if is_op(node, "Where"):
        chosen = constant_array(input_at(node, 0), limit_bytes=_LARGEST_MASK_BYTES)
        if chosen is not None and chosen.size > 1:
            off = [_is_off(input_at(node, index), below) for index in (1, 2)]
            if off[0] != off[1]:
                return float(chosen.mean()) if off[0] else 1.0 - float(chosen.mean())
    if is_op(node, "Trilu") and _is_off(input_at(node, 0), below):
        return 0.5
    if not (is_op(node, "Add", "Where", *_CUTTING) or moves(node)):
        return None
    shares = [
        share
        for source in node.inputs
        if source is not None and source in masked
        for share in [masked_share(source, masked, below)]
        if share is not None
    ]
    return max(shares, default=None)


def _is_off(value: oir.Value | None, below: float) -> bool:
    """Return whether every element of *value* is known to be at most *below*."""
    array = None if value is None else _content(value)
    return array is not None and array.dtype.kind == "f" and bool(array.size) and bool(array.max() <= below)


def _masks(value: oir.Value, below: float) -> bool:
    array = _content(value)
    if array is None or array.dtype.kind != "f" or not array.size:
        return False
    return bool(array.min() <= below)


def _content(value: oir.Value) -> npt.NDArray[Any] | None:
    """Return the elements of a constant, or the one that ConstantOfShape fills with."""
    producer = value.producer()
    if is_op(producer, "ConstantOfShape"):
        assert producer is not None
        found = producer.attributes.get("value")
        return None if found is None or found.is_ref() else np.asarray(found.as_tensor().numpy())
    return constant_array(value, limit_bytes=_LARGEST_MASK_BYTES)
