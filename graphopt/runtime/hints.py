"""Which integers an input can take, read from what the graph does with it.

A random token that lies outside an embedding table, or a sample rate that no branch knows, makes a session
fail for no fault of the model. So the value is followed through operators that only move or convert it, up to
the first one that gives it a meaning: an index into an axis, a count, an axis, a mask, a compared constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as oir

from graphopt.ir.tensors import constant_of, is_small, to_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from graphopt.ir import Model

Meaning = Literal["index", "choice", "mask", "count", "axis", "offset"]

_SMALL_BYTES = 64  # constants that an input is compared with or shifted by
_MOST_STEPS = 2000  # uses looked at per input; a hint is not worth walking a whole graph

# Operators that hand their input on unchanged, and which of their inputs that holds for.
_MOVES: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "CastLike": (0,),
    "Clip": (0,),
    "Concat": None,
    "Dropout": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
# Inputs that index an axis of input 0: the attribute that names it, its number, None where any may be meant.
_INDEXES: dict[tuple[str, str, int], str | int | None] = {
    ("", "NegativeLogLikelihoodLoss", 1): 1,
    ("", "SoftmaxCrossEntropyLoss", 1): 1,
    ("", "Gather", 1): "axis",
    ("", "GatherElements", 1): "axis",
    ("", "ScatterElements", 1): "axis",
    ("", "Scatter", 1): "axis",
    ("", "GatherND", 1): None,
    ("", "ScatterND", 1): None,
    ("com.microsoft", "GatherND", 1): None,
    ("com.microsoft", "GatherBlockQuantized", 1): "gather_axis",
}
# Inputs that index axis 0 of another input.
_TABLES = {
    ("com.microsoft", "EmbedLayerNormalization", 0): 2,
    ("com.microsoft", "EmbedLayerNormalization", 1): 4,
}
_COUNTS = {
    ("ConstantOfShape", 0),
    ("Expand", 1),
    ("GRU", 4),
    ("LSTM", 4),
    ("Loop", 0),
    ("OneHot", 1),
    ("RNN", 4),
    ("Range", 0),
    ("Range", 1),
    ("Range", 2),
    ("Reshape", 1),
    ("Resize", 3),
    ("Slice", 2),
    ("Slice", 4),
    ("Split", 1),
    ("Tile", 1),
    ("TopK", 1),
}
_AXES = {("CumSum", 1), ("Slice", 3), ("Squeeze", 1), ("Unsqueeze", 1)}
_OFFSETS = {("Pad", 1), ("Slice", 1), ("Trilu", 1)}


@dataclass(frozen=True, slots=True)
class IntegerHint:
    """What the integers of an input mean and which of them are safe.

    Attributes:
        meaning: "index" into an axis, "choice" among constants that the graph compares with, "mask",
            "count" (a size or a number of repetitions), "axis", or "offset" (a padding or a start).
        low: Lowest safe value.
        high: One more than the highest safe value.
    """

    meaning: Meaning
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Visit:
    value: oir.Value
    offset: int


def integer_hint(model: Model, value: oir.Value) -> IntegerHint | None:
    """Return what the integers of graph input *value* mean; None where the graph does not say.

    Where several uses disagree, an index outweighs all others, and index ranges are intersected as long as
    something remains.
    """
    found = sorted(_findings(model, value), key=lambda each: (_RANK[each[1].meaning], abs(each[0])))
    if not found:
        return None
    hint = found[0][1]
    for _, other in found[1:]:
        low, high = max(hint.low, other.low), min(hint.high, other.high)
        if other.meaning == hint.meaning == "index" and low < high:
            hint = IntegerHint("index", low, high)
    return hint


_RANK: dict[Meaning, int] = {"index": 0, "count": 1, "axis": 2, "offset": 3, "choice": 4, "mask": 5}


def _findings(model: Model, start: oir.Value) -> Iterator[tuple[int, IntegerHint]]:
    """Yield (constant added on the way, hint) for each use that gives the value a meaning."""
    pending, seen, steps = [_Visit(start, 0)], {(start, 0)}, 0
    while pending:
        visit = pending.pop()
        for use in visit.value.uses():
            steps += 1
            if steps > _MOST_STEPS:
                return
            hint = _meaning(use.node, use.idx, visit)
            if hint is not None:
                yield visit.offset, hint
            for onward in _onward(model, use.node, use.idx, visit):
                if (onward.value, onward.offset) not in seen:
                    seen.add((onward.value, onward.offset))
                    pending.append(onward)


def _meaning(node: oir.Node, index: int, visit: _Visit) -> IntegerHint | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    key = (domain, node.op_type, index)
    if key in _INDEXES:
        return _index(_axis_sizes(node, _INDEXES[key]), visit.offset)
    if key in _TABLES:
        table = node.inputs[_TABLES[key]] if len(node.inputs) > _TABLES[key] else None
        return _index(_sizes(table)[:1], visit.offset)
    if domain:
        return None
    if key[1:] == ("OneHot", 0):
        depth = _constant(node.inputs[1])
        return _index([depth], visit.offset) if depth is not None else None
    if key[1:] in _COUNTS:
        return IntegerHint("count", 1, 2)
    if key[1:] in _AXES or (node.op_type.startswith("Reduce") and index == 1):
        return IntegerHint("axis", 0, 1)
    if key[1:] in _OFFSETS:
        return IntegerHint("offset", 0, 1)
    if node.op_type == "Equal" and (constant := _constant(node.inputs[1 - index])) is not None:
        return IntegerHint("choice", constant - visit.offset, constant - visit.offset + 1)
    if _reads_a_mask(node, index):
        return IntegerHint("mask", 0, 2)
    return None


def _reads_a_mask(node: oir.Node, index: int) -> bool:
    """Whether the value is turned into a bool, or subtracted from one as additive masks are made."""
    if node.op_type == "Cast":
        attribute = node.attributes.get("to")
        return attribute is not None and attribute.as_int() == oir.DataType.BOOL
    return node.op_type == "Sub" and index == 1 and _constant(node.inputs[0]) == 1


def _index(sizes: Iterable[int | None], offset: int) -> IntegerHint | None:
    """Return the hint of an index into axes of *sizes*; an axis of unknown size has at least one element."""
    limit = min((1 if size is None else size for size in sizes), default=1)
    return IntegerHint("index", -offset, max(limit, 1) - offset)


def _axis_sizes(node: oir.Node, axis: str | int | None) -> list[int | None]:
    sizes = _sizes(node.inputs[0])
    if axis is None or not sizes:
        return sizes
    position = axis if isinstance(axis, int) else _integer(node, axis)
    return [sizes[position]] if -len(sizes) <= position < len(sizes) else [None]


def _integer(node: oir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None or attribute.ref_attr_name else attribute.as_int()


def _sizes(value: oir.Value | None) -> list[int | None]:
    """Return the sizes of *value*'s dims, None where free; one unknown dim where nothing is known."""
    tensor = constant_of(value)
    shape = tensor.shape if tensor is not None else None if value is None else value.shape
    if shape is None:
        return [None]
    return [size if isinstance(size, int) else None for size in shape]


def _constant(value: oir.Value | None) -> int | None:
    """Return the one whole number that *value* always holds, None otherwise."""
    tensor = constant_of(value)
    if tensor is None or not is_small(tensor, _SMALL_BYTES) or tensor.dtype == oir.DataType.STRING:
        return None
    array = to_array(tensor)
    if array.size != 1:
        return None
    number = float(array.reshape(-1)[0])
    return int(number) if np.isfinite(number) and number == int(number) else None


def _onward(model: Model, node: oir.Node, index: int, visit: _Visit) -> Iterator[_Visit]:
    """Yield the values that carry the same integers behind *node*."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        if index < len(function.inputs):
            yield _Visit(function.inputs[index], visit.offset)
        return
    if node.domain not in {"", "ai.onnx"}:
        return
    if node.op_type in {"Loop", "Scan"}:
        body = node.attributes.get("body")
        inputs = body.as_graph().inputs if body is not None and not body.ref_attr_name else []
        if index < len(inputs) and (node.op_type == "Scan" or index >= 2):
            yield _Visit(inputs[index], visit.offset)
        return
    offset = visit.offset
    if node.op_type in {"Add", "Sub"}:
        constant = _constant(node.inputs[1 - index])
        if constant is None or (node.op_type == "Sub" and index == 1):
            return
        offset += constant if node.op_type == "Add" else -constant
    elif node.op_type not in _MOVES or ((places := _MOVES[node.op_type]) is not None and index not in places):
        return
    for output in node.outputs:
        yield _Visit(output, offset)
