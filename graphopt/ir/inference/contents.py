"""Contents of small tensors through shape arithmetic: what Shape -> Gather -> Concat comes to.

Each rule gives the elements of the first output from those of the inputs. An element is a number, the symbol
of a size, or None. All rules are sound: an element that they state is the one that running gives.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx

from graphopt.ir.inference.facts import BOOL, FLOATS, INTEGERS, MAX_CONTENT, Fact, array_of, static_dims
from graphopt.ir.inference.rules import slice_positions

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from graphopt.ir.inference.call import Call
    from graphopt.ir.inference.facts import Item
    from graphopt.ir.inference.symbols import Dim

    Data = tuple[Item, ...]
    Found = Data | npt.NDArray[Any] | None
    Rule = Callable[[Call, Fact], Found]

_MAX_RANK = 4


def contents_of(call: Call, out: Fact) -> Data | None:
    """Return the elements of the first output *out* of *call*, or None where nothing is known of them."""
    rule = _RULES.get(call.op_type) if not call.domain else None
    if rule is None or out.shape is None or len(out.shape) > _MAX_RANK:
        return None
    dims = static_dims(out)
    size = math.prod(dims)
    if len(dims) != len(out.shape) or size > MAX_CONTENT:
        return None
    try:
        found = rule(call, out)
    except ValueError:
        return (
            None  # sizes that do not fit, as where open dims stand for 1: the runtime would refuse the node
        )
    if found is None:
        return None
    data = tuple(found.reshape(-1).tolist()) if isinstance(found, np.ndarray) else found
    if len(data) != size or all(item is None for item in data):
        return None
    return data


def _number(value: Any, dtype: int) -> Item:  # noqa: ANN401 - whatever numpy computed
    """Return *value* as an element of *dtype*, or None where it does not fit."""
    if dtype == BOOL:
        return bool(value)
    if dtype in FLOATS:
        number = float(value)
        return number if math.isfinite(number) else None
    if not math.isfinite(value):
        return None
    info = np.iinfo(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    return int(value) if info.min <= int(value) <= info.max else None


def _shape(call: Call, out: Fact) -> Found:
    del out
    source = call.at(0)
    if source is None or source.shape is None:
        return None
    rank = len(source.shape)
    start, end = call.attributes.get("start", 0), call.attributes.get("end", rank)
    start, end = (min(max(k + rank if k < 0 else k, 0), rank) for k in (start, end))
    return source.shape[start:end]


def _size(call: Call, out: Fact) -> Found:
    del out
    source = call.at(0)
    return None if source is None or source.shape is None else (call.symbols.product(source.shape),)


def _same(call: Call, out: Fact) -> Found:
    del out
    return call.data(0)


def _cast(call: Call, out: Fact) -> Data | None:
    data = call.data(0)
    return None if data is None else tuple(_cast_item(item, out.dtype, call) for item in data)


def _cast_item(item: Item, dtype: int, call: Call) -> Item:
    if item is None:
        return None
    if isinstance(item, str):
        # Sizes fit 32 bits wherever a tensor of that size fits memory; as float they lose their exactness.
        return item if dtype in {6, 7, 12, 13} and call.symbols.is_non_negative(item) else None
    if dtype in FLOATS:
        with np.errstate(all="ignore"):
            array = np.asarray(item).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
        return _number(array, dtype)
    if dtype in INTEGERS or dtype == BOOL:
        if dtype != BOOL and isinstance(item, float):
            if not math.isfinite(item):
                return None
            item = math.trunc(item)
        return _number(item, dtype)
    return None


def _array(call: Call, index: int) -> npt.NDArray[Any] | None:
    fact = call.at(index)
    return None if fact is None else array_of(fact)


def _gather(call: Call, out: Fact) -> Found:
    del out
    source, indices, fact = _array(call, 0), call.ints(1), call.at(1)
    if source is None or indices is None or fact is None:
        return None
    axis = call.attributes.get("axis", 0)
    if not -source.ndim <= axis < source.ndim:
        return None
    size = source.shape[axis]
    if any(not -size <= index < size for index in indices):
        return None
    positions = np.array(indices, dtype=np.int64).reshape(static_dims(fact))
    # Picking a single element gives the element itself, not an array of rank 0.
    return np.asarray(np.take(source, positions, axis=axis), dtype=object)


def _slice(call: Call, out: Fact) -> Found:
    del out
    source = _array(call, 0)
    starts, ends = call.ints_of("starts", 1), call.ints_of("ends", 2)
    if source is None or starts is None or ends is None:
        return None
    axes = call.ints_of("axes", 3)
    if axes is None and call.at(3) is None:
        axes = tuple(range(len(starts)))
    steps = (1,) * len(starts) if call.at(4) is None else call.ints(4)
    if axes is None or steps is None or 0 in steps or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not -source.ndim <= axis < source.ndim:
            return None
        positions = slice_positions(source.shape[axis], start, end, step)
        source = np.take(source, np.array(positions, dtype=np.int64), axis=axis)
    return source


def _concat(call: Call, out: Fact) -> Found:
    arrays = [_array(call, index) for index in range(len(call.inputs))]
    known = [array for array in arrays if array is not None]
    axis = call.attributes.get("axis", 1)
    if len(known) != len(arrays) or not out.shape:
        return None
    joined: npt.NDArray[Any] = np.concatenate(known, axis=axis)
    return joined


def _transpose(call: Call, out: Fact) -> Found:
    del out
    source = _array(call, 0)
    return None if source is None else source.transpose(call.attributes.get("perm"))


def _elementwise(
    exact: Callable[..., Any], symbolic: Callable[[Call, Any, Any], Item] | None = None
) -> Callable[[Call, Fact], Found]:
    """Return the rule of an operator that works element by element with broadcasting.

    Args:
        exact: Computes on numpy scalars of the input's dtype.
        symbolic: Computes where at least one of two elements is a symbol.
    """

    def rule(call: Call, out: Fact) -> Found:
        facts = [fact for fact in call.inputs if fact is not None]
        if len(facts) != len(call.inputs) or all(fact.data is None for fact in facts):
            return None
        dtype = facts[0].dtype
        if dtype not in INTEGERS and dtype not in FLOATS and dtype != BOOL:
            return None
        columns = [column for fact in facts if (column := _stretch(fact, out)) is not None]
        if len(columns) != len(facts):
            return None
        kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
        return tuple(
            _apply(call, row, kind, out.dtype, exact, symbolic) for row in zip(*columns, strict=True)
        )

    return rule


def _stretch(fact: Fact, out: Fact) -> Data | None:
    """Return the elements of *fact* broadcast to the shape of *out*, or None where it is not small."""
    array = array_of(fact)
    if array is None:
        return None
    try:
        return tuple(np.broadcast_to(array, static_dims(out)).reshape(-1).tolist())
    except ValueError:
        return None


def _apply(
    call: Call,
    row: tuple[Item, ...],
    kind: np.dtype[Any],
    dtype: int,
    exact: Callable[..., Any],
    symbolic: Callable[[Call, Any, Any], Item] | None,
) -> Item:
    if any(item is None for item in row):
        return None
    if any(isinstance(item, str) for item in row):
        return symbolic(call, *row) if symbolic is not None and len(row) == 2 else None
    if kind.kind in "iu":
        result = exact(*(int(cast("int", item)) for item in row))
    else:
        with np.errstate(all="ignore"):
            result = exact(*(np.asarray(item).astype(kind)[()] for item in row))
    return None if result is None else _number(result, dtype)


def _exact_div(a: Any, b: Any) -> Any:  # noqa: ANN401 - python ints or numpy scalars
    if isinstance(a, int):
        return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a / b


def _mod(call: Call, out: Fact) -> Found:
    fmod = bool(call.attributes.get("fmod", 0))

    def exact(a: Any, b: Any) -> Any:  # noqa: ANN401 - python ints or numpy scalars
        if b == 0:
            return None
        return np.fmod(a, b) if fmod else a % b

    def symbolic(call: Call, a: Dim, b: Dim) -> Item:
        return 0 if b != 0 and call.symbols.exact_div(a, b) is not None else None

    return _elementwise(exact, symbolic)(call, out)


def _compare(call: Call, a: Dim, b: Dim) -> int | None:
    """Return the sign of a - b where it is the same whatever the symbols are, else None."""
    if a == b:
        return 0
    difference = call.symbols.sub(a, b)
    if call.symbols.is_positive(difference):
        return 1
    return -1 if call.symbols.is_positive(call.symbols.mul(difference, -1)) else None


def _equal(call: Call, a: Dim, b: Dim) -> Item:
    sign = _compare(call, a, b)
    return None if sign is None else sign == 0


def _less(call: Call, a: Dim, b: Dim) -> Item:
    sign = _compare(call, a, b)
    return None if sign is None else sign < 0


def _minimum(call: Call, a: Dim, b: Dim) -> Item:
    if call.symbols.is_non_negative(call.symbols.sub(a, b)):
        return b
    return a if call.symbols.is_non_negative(call.symbols.sub(b, a)) else None


def _maximum(call: Call, a: Dim, b: Dim) -> Item:
    smaller = _minimum(call, a, b)
    return None if smaller is None else (b if smaller == a else a)


def _variadic(exact: Callable[[Any, Any], Any], symbolic: Callable[[Call, Any, Any], Item]) -> Rule:
    def rule(call: Call, out: Fact) -> Found:
        if len(call.inputs) == 1:
            return call.data(0)
        return _elementwise(exact, symbolic)(call, out) if len(call.inputs) == 2 else None

    return rule


def _clip(call: Call, out: Fact) -> Found:
    del out
    source = call.at(0)
    if source is None or source.data is None:
        return None
    low, high = (_bound(call, name, index) for name, index in (("min", 1), ("max", 2)))
    if low is None or high is None:
        return None
    return tuple(_clip_item(call, item, low[0], high[0]) for item in source.data)


def _bound(call: Call, name: str, index: int) -> Data | None:
    """Return the bound of a Clip in a tuple, (None,) where it has none; None where it is not known."""
    if name in call.attributes:
        return (call.attributes[name],)
    if call.at(index) is None:
        return (None,)
    data = call.data(index)
    return data if data and isinstance(data[0], int | float) else None


def _clip_item(call: Call, item: Item, low: Item, high: Item) -> Item:
    if isinstance(item, str):
        return (
            item
            if high is None and (low is None or low == 0) and call.symbols.is_non_negative(item)
            else None
        )
    if item is None:
        return None
    if isinstance(low, int | float):
        item = max(item, low)
    return min(item, high) if isinstance(high, int | float) else item


def _where(call: Call, out: Fact) -> Found:
    columns = [None if (fact := call.at(index)) is None else _stretch(fact, out) for index in range(3)]
    condition, yes, no = columns
    if condition is None or yes is None or no is None:
        return None
    return tuple(
        (b if b == c else None) if a is None else b if a else c
        for a, b, c in zip(condition, yes, no, strict=True)
    )


def _constant_of_shape(call: Call, out: Fact) -> Data | None:
    size = math.prod(static_dims(out))
    value = call.attributes.get("value")
    if value is None:
        return (0.0,) * size
    if out.dtype not in INTEGERS and out.dtype not in FLOATS and out.dtype != BOOL:
        return None
    return tuple(np.asarray(value.numpy()).reshape(-1).tolist()) * size


def _range(call: Call, out: Fact) -> Data | None:
    start, limit, delta = (call.data(index) for index in range(3))
    if not start or not limit or not delta or out.dtype not in INTEGERS:
        return None
    first, last, step = start[0], limit[0], delta[0]
    if isinstance(first, int) and isinstance(last, int) and isinstance(step, int) and step:
        return tuple(range(first, last, step))
    return None


def _expand(call: Call, out: Fact) -> Found:
    source = call.at(0)
    return None if source is None or source.data is None else _stretch(source, out)


def _reduction(
    exact: Callable[[Any], Any], symbolic: Callable[[Call, Any, Any], Item]
) -> Callable[[Call, Fact], Found]:
    def rule(call: Call, out: Fact) -> Data | None:
        source, data = call.at(0), call.data(0)
        if source is None or source.shape is None or data is None or len(source.shape) > 1:
            return None
        axes = call.attributes.get("axes", call.data(1))
        if call.at(1) is not None and call.at(1).data is None:  # type: ignore[union-attr]  # checked just before
            return None
        if not source.shape or (not axes and call.attributes.get("noop_with_empty_axes", 0)):
            return data
        if not data or any(item is None for item in data):
            return None
        if all(not isinstance(item, str) for item in data):
            kind = onnx.helper.tensor_dtype_to_np_dtype(out.dtype)
            if kind.kind in "iu":
                return (_number(exact([int(cast("int", item)) for item in data]), out.dtype),)
            return None  # The order of a float reduction is the runtime's own.
        result = data[0]
        for item in data[1:]:
            if result is None:
                return None
            result = symbolic(call, result, item)
        return (result,)

    return rule


def _nearest_even(a: Any) -> Any:  # noqa: ANN401 - a python int or a numpy scalar
    return a if isinstance(a, int) else np.rint(a)


_RULES: dict[str, Rule] = {
    "Abs": _elementwise(abs),
    "Add": _elementwise(lambda a, b: a + b, lambda call, a, b: call.symbols.add(a, b)),
    "And": _elementwise(lambda a, b: bool(a) and bool(b)),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _elementwise(np.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_exact_div, lambda call, a, b: call.symbols.truncated_div(a, b)),
    "Equal": _elementwise(lambda a, b: a == b, _equal),
    "Expand": _expand,
    "Flatten": _same,
    "Floor": _elementwise(np.floor),
    "Gather": _gather,
    "Greater": _elementwise(lambda a, b: a > b, lambda call, a, b: _less(call, b, a)),
    "GreaterOrEqual": _elementwise(
        lambda a, b: a >= b, lambda call, a, b: None if (less := _less(call, a, b)) is None else not less
    ),
    "Identity": _same,
    "Less": _elementwise(lambda a, b: a < b, _less),
    "LessOrEqual": _elementwise(
        lambda a, b: a <= b, lambda call, a, b: None if (more := _less(call, b, a)) is None else not more
    ),
    "Max": _variadic(max, _maximum),
    "Min": _variadic(min, _minimum),
    "Mod": _mod,
    "Mul": _elementwise(lambda a, b: a * b, lambda call, a, b: call.symbols.mul(a, b)),
    "Neg": _elementwise(lambda a: -a),
    "Not": _elementwise(lambda a: not a),
    "Or": _elementwise(lambda a, b: bool(a) or bool(b)),
    "Range": _range,
    "ReduceMax": _reduction(max, _maximum),
    "ReduceMin": _reduction(min, _minimum),
    "ReduceProd": _reduction(math.prod, lambda call, a, b: call.symbols.mul(a, b)),
    "ReduceSum": _reduction(sum, lambda call, a, b: call.symbols.add(a, b)),
    "Reshape": _same,
    "Round": _elementwise(_nearest_even),
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": _same,
    "Sub": _elementwise(lambda a, b: a - b, lambda call, a, b: call.symbols.sub(a, b)),
    "Transpose": _transpose,
    "Unsqueeze": _same,
    "Where": _where,
}
