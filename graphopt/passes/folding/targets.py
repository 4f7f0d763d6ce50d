"""Shapes that are known but for a dynamic dim: written as constants where ONNX has a way to say it.

A Reshape to [batch, 12, 64] is one to [0, 12, 64] where ``batch`` is the first dim of its input too, else one
to [-1, 12, 64]; an Expand to a shape that the value has already is nothing at all. With that the chain that
computed the shape is dead. Each rewrite is exact for every size of the dynamic dims, zero included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir import rewrite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir import Model, Shapes

    Dims = Sequence[int | str | None]


def simplify_targets(model: Model, shapes: Shapes) -> list[oir.Value]:
    """Simplify every node that is fed a partly known shape; return the shapes that they no longer read."""
    released: list[oir.Value] = []
    for node in list(model.nodes()):
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in {"", "ai.onnx"} or node.graph is None:
            continue
        if rewrite.has_reference(node) or rewrite.input_at(node, 1) is None:
            continue
        if (old := rule(model, node, shapes)) is not None:
            released.append(old)
    return released


def _is_computed(value: oir.Value | None) -> bool:
    """Whether *value* is computed by nodes; constants and inputs of the graph gain nothing."""
    return (
        value is not None
        and value.producer() is not None
        and rewrite.constant_array(value, 0) is None
        and not (rewrite.is_op(value.producer(), "Constant"))
    )


def _elements(shapes: Shapes, value: oir.Value) -> Dims | None:
    """Return the elements of a vector of sizes, or None where nothing is known of it."""
    shape = shapes.shape(value)
    if shape is None or len(shape) != 1:
        return None
    known = shapes.known(value)
    if known is None and isinstance(shape[0], int):
        return [None] * shape[0]
    return known


def _feed(
    model: Model, node: oir.Node, index: int, target: Sequence[int], dtype: type[np.signedinteger] = np.int64
) -> oir.Value:
    """Make *target* the input *index* of *node* and return what it was."""
    old = node.inputs[index]
    assert old is not None and node.graph is not None  # noqa: PT018 - one state, two facts
    constant = rewrite.add_initializer(model, node.graph, f"{old.name}_known", np.array(target, dtype))
    node.replace_input_with(index, constant)
    return old


def _reshape(model: Model, node: oir.Node, shapes: Shapes) -> oir.Value | None:
    source, target = node.inputs[0], node.inputs[1]
    if source is None or target is None or not _is_computed(target):
        return None
    wanted = _elements(shapes, target)
    if wanted is None or all(isinstance(item, int) for item in wanted):
        return None
    have = shapes.shape(source)
    text = reshape_target(wanted, have, allow_zero=bool(rewrite.attribute(node, "allowzero", 0)))
    if text is None:
        return None
    if 0 in text:
        node.attributes.pop("allowzero", None)
    return _feed(model, node, 1, text)


def reshape_target(wanted: Dims, have: Dims | None, *, allow_zero: bool) -> list[int] | None:
    """Return a constant Reshape target that is exactly *wanted*, or None where ONNX cannot say it.

    A symbolic element is 0 (copied) where the input has the same dim at the same place; at a size of zero
    that is what a computed zero means too. A target without such elements may have one -1 (inferred), but
    only beside positive numbers: where a dim beside it may be zero, what is left to infer is not determined,
    and runtimes refuse it.

    Args:
        wanted: Elements of the target; a number, the name of a dim, or None.
        have: Dims of the input.
        allow_zero: Whether a zero means a dim of size zero instead of a copied one.
    """
    text: list[int] = []
    unknown = 0
    for place, item in enumerate(wanted):
        if isinstance(item, int):
            text.append(item)
        elif isinstance(item, str) and have is not None and place < len(have) and have[place] == item:
            text.append(0)
        else:
            text.append(-1)
            unknown += 1
    if unknown == 0:
        # With copying, a zero cannot also mean a size of zero.
        return None if allow_zero and (0 in wanted or -1 in wanted) else text
    if unknown == 1 and all(item > 0 or place == text.index(-1) for place, item in enumerate(text)):
        return text
    return None


def _expand(model: Model, node: oir.Node, shapes: Shapes) -> oir.Value | None:
    source, target = node.inputs[0], node.inputs[1]
    if source is None or target is None:
        return None
    wanted, have = _elements(shapes, target), shapes.shape(source)
    if wanted is None or have is None:
        return None
    offset = len(have) - len(wanted)
    text = [
        1 if item is not None and place + offset >= 0 and have[place + offset] == item else item
        for place, item in enumerate(wanted)
    ]
    if offset >= 0 and all(item == 1 for item in text):
        if not (node.outputs[0].is_graph_output() and source.producer() is None):
            rewrite.replace_value(model, node.outputs[0], source)
            rewrite.remove_node(node)
            return target
        return None
    numbers = [item for item in text if isinstance(item, int)]
    if len(numbers) != len(text) or not _is_computed(target) or all(isinstance(item, int) for item in wanted):
        return None
    return _feed(model, node, 1, numbers)


def _slice(model: Model, node: oir.Node, shapes: Shapes) -> oir.Value | None:
    source, starts, ends = node.inputs[0], rewrite.input_at(node, 1), rewrite.input_at(node, 2)
    if source is None or starts is None or ends is None or not _is_computed(ends):
        return None
    have, last, first = shapes.shape(source), _elements(shapes, ends), _elements(shapes, starts)
    axes_value, steps_value = rewrite.input_at(node, 3), rewrite.input_at(node, 4)
    axes = None if axes_value is None else _elements(shapes, axes_value)
    steps = None if steps_value is None else _elements(shapes, steps_value)
    if have is None or last is None or first is None or all(isinstance(item, int) for item in last):
        return None
    if (axes_value is not None and axes is None) or (steps_value is not None and steps is None):
        return None
    dtype = np.int32 if shapes.dtype(starts) == oir.DataType.INT32 else np.int64
    text: list[int] = []
    for place, item in enumerate(last):
        axis = place if axes is None else axes[place]
        step = 1 if steps is None else steps[place]
        if isinstance(item, int):
            text.append(item)
        elif (
            isinstance(axis, int)
            and isinstance(step, int)
            and step > 0
            and item == have[axis]
            and item is not None
        ):
            text.append(int(np.iinfo(dtype).max))
        else:
            return None
    return _feed(model, node, 2, text, dtype)


_RULES = {"Expand": _expand, "Reshape": _reshape, "Slice": _slice}
