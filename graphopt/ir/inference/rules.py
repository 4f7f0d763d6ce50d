"""Shape rules of standard operators whose output depends on the contents of an input, with symbols.

The onnx package's own inference functions need numbers; these rules work with partly known contents and with
symbolic dims. A rule returns None to leave the operator to onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from graphopt.ir.inference.facts import BOOL, INT64, MAX_CONTENT, Fact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.ir.inference.call import Call
    from graphopt.ir.inference.symbols import Dim, Symbols

    Rule = Callable[[Call], Sequence[Fact] | None]

# Ends of slices at least this large mean "to the end" in every exporter.
_TO_THE_END = 2**31 - 1
# From this version on Split may cut a dim that its number of parts does not divide.
_UNEVEN_SPLIT = 18


def shape_rule(call: Call) -> Sequence[Fact] | None:
    """Return the facts of the outputs of *call* by a rule of this module, or None where none applies."""
    rule = _RULES.get(call.op_type) if not call.domain else None
    facts = None if rule is None else rule(call)
    return None if facts is None else [_possible(fact, call.symbols) for fact in facts]


def _possible(fact: Fact, symbols: Symbols) -> Fact:
    """Return *fact* without sizes below zero, which a node that never runs may come to."""
    if fact.shape is None or not any(isinstance(dim, int) and dim < 0 for dim in fact.shape):
        return fact
    shape = tuple(symbols.fresh() if isinstance(dim, int) and dim < 0 else dim for dim in fact.shape)
    return Fact(fact.dtype, shape)


def _fresh(symbols: Symbols, rank: int) -> tuple[Dim, ...]:
    return tuple(symbols.fresh() for _ in range(rank))


def _contents_length(call: Call, index: int) -> int | None:
    """Return how many elements the one-dimensional input *index* has, or None."""
    fact = call.at(index)
    if fact is None or fact.shape is None or len(fact.shape) != 1:
        return None
    length = fact.shape[0]
    return length if isinstance(length, int) else None


def _target(call: Call, index: int) -> list[Dim | None] | None:
    """Return the sizes that input *index* lists, None for each unknown one, or None without their number."""
    length = _contents_length(call, index)
    if length is None or length > MAX_CONTENT:
        return None
    data = call.data(index)
    if data is None:
        return [None] * length
    return [item if isinstance(item, int | str) else None for item in data]


def _reshape(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    if source is None or "shape" in call.attributes:
        return None
    target = _target(call, 1)
    if target is None:
        return [Fact(source.dtype)]
    symbols = call.symbols
    shape: list[Dim | None] = []
    inferred: int | None = None
    for position, item in enumerate(target):
        if item == -1 and not isinstance(item, bool):
            inferred = position
            shape.append(None)
        elif item == 0 and not call.attributes.get("allowzero", 0):
            known = source.shape is not None and position < len(source.shape)
            shape.append(source.shape[position] if known and source.shape is not None else None)
        elif isinstance(item, str) and not symbols.is_positive(item):
            # A size that turns out to be zero would mean "copy the input's", but only where the input has a
            # dim of that position; then that is what an exporter meant, and the two agree.
            shape.append(item if symbols.is_non_negative(item) else None)
        else:
            shape.append(item)
    unknown = [position for position, dim in enumerate(shape) if dim is None]
    if len(unknown) == 1 and source.shape is not None:
        # Either a -1, or an element that is not known: the number of elements decides both.
        rest = symbols.product(dim for dim in shape if dim is not None)
        shape[unknown[0]] = symbols.exact_div(symbols.product(source.shape), rest) if rest != 0 else None
        if shape[unknown[0]] is None and unknown[0] == inferred and rest != 0:
            shape[unknown[0]] = symbols.memo(("reshape", source.shape, tuple(shape), unknown[0]))
    return [Fact(source.dtype, tuple(symbols.fresh() if dim is None else dim for dim in shape))]


def _expand(call: Call) -> Sequence[Fact] | None:
    source, target = call.at(0), _target(call, 1)
    if source is None or source.shape is None or target is None:
        return None if source is None else [Fact(source.dtype)]
    rank = max(len(source.shape), len(target))
    left: list[Dim] = [*([1] * (rank - len(source.shape))), *source.shape]
    right: list[Dim | None] = [*([1] * (rank - len(target))), *target]
    shape = []
    for a, b in zip(left, right, strict=True):
        if b is None:
            # At least the input's size; only a size other than 1 settles it.
            shape.append(a if isinstance(a, int) and a != 1 else call.symbols.fresh())
        else:
            shape.append(call.symbols.broadcast(a, b))
    return [Fact(source.dtype, tuple(shape))]


def _constant_of_shape(call: Call) -> Sequence[Fact] | None:
    target = _target(call, 0)
    value = call.attributes.get("value")
    dtype = onnx.TensorProto.FLOAT if value is None else int(value.dtype)
    if target is None:
        return [Fact(dtype)]
    return [Fact(dtype, tuple(call.symbols.fresh() if dim is None else dim for dim in target))]


def _range(call: Call) -> Sequence[Fact] | None:
    start, limit, delta = (call.data(index) for index in range(3))
    source = call.at(0)
    if source is None:
        return None
    if not start or not limit or not delta or source.dtype != INT64:
        return None
    first, last, step = start[0], limit[0], delta[0]
    if not isinstance(first, int | str) or not isinstance(last, int | str) or step != 1:
        return None
    return [Fact(source.dtype, (call.symbols.at_least_zero(call.symbols.sub(last, first)),))]


def _tile(call: Call) -> Sequence[Fact] | None:
    source, repeats = call.at(0), _target(call, 1)
    if source is None or source.shape is None or repeats is None or len(repeats) != len(source.shape):
        return None
    symbols = call.symbols
    return [
        Fact(
            source.dtype,
            tuple(
                symbols.fresh() if count is None else symbols.mul(dim, count)
                for dim, count in zip(source.shape, repeats, strict=True)
            ),
        )
    ]


def _slice(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    if source is None or source.shape is None:
        return None
    rank = len(source.shape)
    old = "starts" in call.attributes
    starts = list(call.attributes["starts"]) if old else _target(call, 1)
    ends = list(call.attributes["ends"]) if old else _target(call, 2)
    if starts is None or ends is None:
        return [Fact(source.dtype, _fresh(call.symbols, rank))]
    axes = _slice_axes(call, len(starts), old=old)
    steps = (1,) * len(starts) if old or call.at(4) is None else call.ints(4)
    if axes is None:
        return [Fact(source.dtype, _fresh(call.symbols, rank))]
    shape = list(source.shape)
    for k, (axis, start, end) in enumerate(zip(axes, starts, ends, strict=True)):
        if not -rank <= axis < rank:
            return None
        step = None if steps is None or len(steps) != len(starts) else steps[k]
        shape[axis] = _slice_dim(call.symbols, shape[axis], start, end, step)
    return [Fact(source.dtype, tuple(shape))]


def _slice_axes(call: Call, count: int, *, old: bool) -> tuple[int, ...] | None:
    if old:
        return tuple(call.attributes.get("axes", range(count)))
    return tuple(range(count)) if call.at(3) is None else call.ints(3)


def _slice_dim(symbols: Symbols, dim: Dim, start: Dim | None, end: Dim | None, step: int | None) -> Dim:
    """Return how many elements of a dim a slice keeps."""
    if start is None or end is None or not step:
        return symbols.fresh()
    if isinstance(start, int) and isinstance(end, int) and isinstance(dim, int):
        return _slice_count(dim, start, end, step)
    if step != 1:
        return symbols.memo(("slice", dim, start, end, step))
    first = _slice_bound(symbols, dim, start)
    last = _slice_bound(symbols, dim, end)
    if first is None or last is None:
        return symbols.memo(("slice", dim, start, end, step))
    return symbols.at_least_zero(symbols.sub(last, first))


def _slice_count(dim: int, start: int, end: int, step: int) -> int:
    return len(slice_positions(dim, start, end, step))


def _slice_bound(symbols: Symbols, dim: Dim, bound: Dim) -> Dim | None:
    """Return *bound* of a slice with step 1 clamped to 0 ... dim; None where that depends on the symbols."""
    if bound in {0, dim}:
        return bound
    if isinstance(bound, int):
        if bound >= _TO_THE_END:
            return dim
        if bound < 0:
            bound = symbols.add(dim, bound)
            return bound if symbols.is_non_negative(bound) else None
    if symbols.is_non_negative(bound) and symbols.is_non_negative(symbols.sub(dim, bound)):
        return bound
    return dim if symbols.is_non_negative(symbols.sub(bound, dim)) else None


def _concat(call: Call) -> Sequence[Fact] | None:
    facts = [fact for fact in call.inputs if fact is not None]
    if not facts or len(facts) != len(call.inputs):
        return None
    shapes = [fact.shape for fact in facts if fact.shape is not None]
    if len(shapes) != len(facts) or any(len(shape) != len(shapes[0]) for shape in shapes) or not shapes[0]:
        return None
    symbols, rank = call.symbols, len(shapes[0])
    axis = call.attributes.get("axis", 1)
    if not -rank <= axis < rank:
        return None
    shape = list(shapes[0])
    for other in shapes[1:]:
        for k in range(rank):
            if k == axis % rank:
                shape[k] = symbols.add(shape[k], other[k])
            else:
                shape[k] = symbols.unify(shape[k], other[k])
    return [Fact(facts[0].dtype, tuple(shape))]


def _flatten(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    if source is None or source.shape is None:
        return None
    axis, rank = call.attributes.get("axis", 1), len(source.shape)
    if not -rank <= axis <= rank:
        return None
    axis = axis + rank if axis < 0 else axis
    symbols = call.symbols
    return [Fact(source.dtype, (symbols.product(source.shape[:axis]), symbols.product(source.shape[axis:])))]


def _split(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    if source is None or source.shape is None or not source.shape:
        return None
    rank, axis = len(source.shape), call.attributes.get("axis", 0)
    if not -rank <= axis < rank:
        return None
    axis, symbols, count = axis % rank, call.symbols, call.outputs
    dim = source.shape[axis]
    given = list(call.attributes["split"]) if "split" in call.attributes else None
    if given is None and call.at(1) is not None:
        given = _target(call, 1) or [None] * count
    if given is not None:
        sizes = [symbols.fresh() if size is None else size for size in given]
        if len(sizes) != count:
            return None
    else:
        sizes = _even_parts(symbols, dim, count, call.opset)
    facts = []
    begin: int | None = 0
    for size in sizes:
        shape = (*source.shape[:axis], size, *source.shape[axis + 1 :])
        end = begin + size if begin is not None and isinstance(size, int) else None
        data = (
            source.data[begin:end]
            if source.data is not None and begin is not None and end is not None
            else None
        )
        facts.append(Fact(source.dtype, shape, data if data is None or len(data) == size else None))
        begin = end
    return facts


def _even_parts(symbols: Symbols, dim: Dim, count: int, opset: int) -> list[Dim]:
    """Return the sizes of *count* parts of *dim*: equal, the last one smaller where it does not divide."""
    if isinstance(dim, int):
        part = -(-dim // count)
        return [min(part, max(0, dim - k * part)) for k in range(count)]
    exact = symbols.exact_div(dim, count)
    if exact is not None:
        return [exact] * count
    if opset < _UNEVEN_SPLIT:
        return [symbols.memo(("part", dim, count))] * count
    return [symbols.fresh() for _ in range(count)]


def _pad(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    if source is None or source.shape is None:
        return None
    rank, symbols = len(source.shape), call.symbols
    pads: Sequence[Dim | None] | None
    pads = list(call.attributes["pads"]) if "pads" in call.attributes else _target(call, 1)
    axes = tuple(range(rank)) if call.at(3) is None else call.ints(3)
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return [Fact(source.dtype, _fresh(symbols, rank))]
    shape = list(source.shape)
    for k, axis in enumerate(axes):
        before, after = pads[k], pads[k + len(axes)]
        if not -rank <= axis < rank:
            return None
        if before is None or after is None:
            shape[axis] = symbols.fresh()
        else:
            shape[axis] = symbols.add(symbols.add(shape[axis], before), after)
    return [Fact(source.dtype, tuple(shape))]


def _resize(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    plain = (
        "axes" not in call.attributes
        and call.attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    )
    if source is None or source.shape is None or not plain or call.opset < 11:
        return None
    rank, symbols = len(source.shape), call.symbols
    sizes = _target(call, 3)
    if sizes and len(sizes) == rank:
        return [Fact(source.dtype, tuple(symbols.fresh() if size is None else size for size in sizes))]
    if call.attributes.get("coordinate_transformation_mode") in {"tf_crop_and_resize", b"tf_crop_and_resize"}:
        # The region of interest decides too, which onnx leaves out of its inference.
        return [Fact(source.dtype, _fresh(symbols, rank))]
    scales = call.data(2)
    if scales is None or len(scales) != rank:
        return None
    shape: list[Dim] = []
    for dim, scale in zip(source.shape, scales, strict=True):
        if scale is None or isinstance(scale, str):
            return None
        if isinstance(dim, int):
            shape.append(int(np.floor(np.float32(dim) * np.float32(scale))))
        elif float(scale).is_integer():
            shape.append(symbols.mul(dim, int(scale)))
        else:
            shape.append(symbols.memo(("scaled", dim, scale)))
    return [Fact(source.dtype, tuple(shape))]


def slice_positions(size: int, start: int, end: int, step: int) -> range:
    """Return the positions that ONNX Slice keeps of a dim of *size* elements; *step* is not 0.

    Python's slices agree for positive steps. For negative ones ONNX clamps the start to 0 ... size-1 and the
    end to -1 ... size-1, after adding *size* to negative ones.
    """
    if step > 0 or size == 0:
        return range(size)[start:end:step]
    first = min(max(start + size if start < 0 else start, 0), size - 1)
    last = min(max(end + size if end < 0 else end, -1), size - 1)
    return range(first, last, step)


def _like_first(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    return None if source is None or call.outputs != 1 else [Fact(source.dtype, source.shape)]


def _cast_like(call: Call) -> Sequence[Fact] | None:
    source, like = call.at(0), call.at(1)
    return None if source is None or like is None else [Fact(like.dtype, source.shape)]


def _comparison(call: Call) -> Sequence[Fact] | None:
    """GreaterOrEqual and LessOrEqual, which have no inference function of their own in version 12."""
    a, b = call.at(0), call.at(1)
    if a is None or b is None or a.shape is None or b.shape is None:
        return [Fact(BOOL)]
    rank = max(len(a.shape), len(b.shape))
    left = (1,) * (rank - len(a.shape)) + a.shape
    right = (1,) * (rank - len(b.shape)) + b.shape
    return [Fact(BOOL, tuple(call.symbols.broadcast(x, y) for x, y in zip(left, right, strict=True)))]


def _reduce(call: Call) -> Sequence[Fact] | None:
    """A reduction over axes that are not known, keeping its rank; all others are onnx's."""
    source, axes = call.at(0), call.at(1)
    if source is None or source.shape is None or axes is None or call.ints(1) is not None:
        return None
    if not call.attributes.get("keepdims", 1):
        return None
    return [Fact(source.dtype, _fresh(call.symbols, len(source.shape)))]


def _non_zero(call: Call) -> Sequence[Fact] | None:
    source = call.at(0)
    data = call.data(0)
    if source is None or source.shape is None or data is None:
        return None
    if any(item is None or isinstance(item, str) for item in data):
        return None
    return [Fact(INT64, (len(source.shape), sum(1 for item in data if item)))]


_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "CastLike": _cast_like,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "GreaterOrEqual": _comparison,
    "GroupNormalization": _like_first,
    "LessOrEqual": _comparison,
    "MeanVarianceNormalization": _like_first,
    "NonZero": _non_zero,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
}
