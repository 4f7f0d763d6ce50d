"""Large constants that look like weights and are none to the passes over weights: they are named, too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphopt.ir.rewrite import is_op
from graphopt.ir.semantics import WeightRole, weight_roles
from graphopt.ir.tensors import constant_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as oir

    from graphopt.ir import Model

_WEIGHTS = frozenset({WeightRole.WEIGHT, WeightRole.RECURRENT_WEIGHT, WeightRole.TABLE})
_MOVING = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity", "Slice", "Concat")
_SEEN_THROUGH = 6
"""Nodes between a constant and what multiplies with it that are looked through."""


def overlooked(
    model: Model, *, min_elements: int, reads_constant_nodes: bool, reads_moved: bool
) -> Iterator[tuple[str, str]]:
    """Yield the names of float constants of two dims or more that a pass does not look at, and why.

    Args:
        model: Any model.
        min_elements: Smallest constant that counts.
        reads_constant_nodes: Whether the pass takes weights in Constant nodes.
        reads_moved: Whether it takes weights behind Transpose and Reshape.
    """
    functions = {
        id(graph): function.name
        for function in model.functions.values()
        for graph in (function.graph, *function.subgraphs())
    }
    for graph in model.graphs():
        name = functions.get(id(graph), "")
        nodes = (node.outputs[0] for node in graph if is_op(node, "Constant") and node.outputs)
        for value in (*graph.initializers.values(), *nodes):
            tensor = constant_of(value)
            if tensor is None or not tensor.dtype.is_floating_point():
                continue
            dims = tensor.shape.numpy()
            if len(dims) < 2 or math.prod(dims) < min_elements:
                continue
            if name and _is_weight(value):
                yield value.name or "", f"it stands in function {name!r}, and weights in functions stay"
            elif not name:
                is_node = not value.is_initializer()
                reason = _why(
                    model, value, is_hidden=is_node and not reads_constant_nodes, reads_moved=reads_moved
                )
                if reason:
                    yield value.name or "", reason


def _is_weight(value: oir.Value) -> bool:
    return any(weight_roles(node).get(index) in _WEIGHTS for node, index in value.uses())


def _why(model: Model, value: oir.Value, *, is_hidden: bool, reads_moved: bool) -> str:
    if _is_weight(value):
        return "it stands in a Constant node; canonicalize before it would help" if is_hidden else ""
    for node in value.consumers():
        if node.op_identifier() in model.functions:
            return f"function {node.op_type!r} reads it, and weights in functions stay"
        if _leads_to_weight(node, _SEEN_THROUGH):
            if reads_moved and is_op(node, "Transpose", "Reshape", "Identity"):
                continue
            # A Cast is meant to stay, and what is taken from a weight anew in every run cannot be folded.
            stays = is_op(node, "Cast") or any(
                each is not None and not _is_moved(each) for each in node.inputs
            )
            help_ = "" if stays else "; fold-constants before it would help"
            return f"{node.op_type} stands between it and what multiplies with it{help_}"
    return ""


def _leads_to_weight(node: oir.Node, depth: int) -> bool:
    """Return whether *node* moves constants, and an operator reads them as a weight, further on."""
    if not is_op(node, *_MOVING) or (is_op(node, "Concat") and not all(map(_is_moved, node.inputs))):
        return False
    return any(
        _is_weight(output)
        or (depth > 0 and any(_leads_to_weight(reader, depth - 1) for reader in output.consumers()))
        for output in node.outputs
    )


def _is_moved(value: oir.Value | None) -> bool:
    return value is not None and (constant_of(value) is not None or is_op(value.producer(), *_MOVING))
