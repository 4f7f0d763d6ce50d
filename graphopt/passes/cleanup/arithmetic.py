"""Rules about arithmetic that changes nothing: neutral elements, operators that undo or repeat each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir.rewrite import attribute, constant_array, has_reference, input_at, is_op

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.passes.cleanup.workbench import Workbench

# Larger operands are weights in all likelihood, and reading them costs more than the node does.
_OPERAND_BYTES = 1 << 20

# Per operator: (index of the neutral operand, its value). A zero is neutral up to the sign of zero:
# -0.0 + 0.0 is 0.0, the one difference that these rules allow themselves.
_NEUTRAL: dict[str, tuple[tuple[int, float], ...]] = {
    "Add": ((0, 0), (1, 0)),
    "And": ((0, 1), (1, 1)),
    "Div": ((1, 1),),
    "Mul": ((0, 1), (1, 1)),
    "Or": ((0, 0), (1, 0)),
    "Pow": ((1, 1),),
    "Sub": ((1, 0),),
    "Xor": ((0, 0), (1, 0)),
}


def drop_neutral(bench: Workbench, node: oir.Node) -> bool:
    """Add or Sub of zeros, Mul, Div or Pow by ones, And with true, Or and Xor with false.

    The neutral operand must not widen the other by broadcasting. Dtypes agree by the definition of the
    operators; Pow may mix them and gives the type of its first operand.
    """
    if len(node.inputs) != 2 or bench.facts.version(node) < 7:
        return False
    for index, neutral in _NEUTRAL[node.op_type]:
        other, operand = input_at(node, 1 - index), input_at(node, index)
        if other is None or operand is None:
            continue
        array = constant_array(_spread_from(operand), limit_bytes=_OPERAND_BYTES)
        if array is None or not _is_all(array, neutral):
            continue
        shape = bench.facts.static_shape(operand)
        if shape is not None and _fits_into(bench, shape, other):
            return bench.bypass(node, other)
    return False


# What these make of a constant whose elements are all the same holds that element only.
_SPREADING = frozenset({
    "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip
_SPREADING_STEPS = 8


def _spread_from(value: oir.Value) -> oir.Value | None:
    """Return the value whose elements *value* consists of: itself, or what it was moved or repeated from."""
    found: oir.Value | None = value
    for _ in range(_SPREADING_STEPS):
        node = None if found is None else found.producer()
        if node is None or node.op_type not in _SPREADING or not is_op(node, node.op_type):
            break
        found = input_at(node, 0)
    return found


def _is_all(array: npt.NDArray[np.generic], number: float) -> bool:
    if array.size == 0 or array.dtype.kind in "OSU":
        return False
    flat = array.reshape(-1)
    # The first element decides nearly always.
    return bool(flat[0] == number) and bool(np.all(flat == number))


def _fits_into(bench: Workbench, shape: tuple[int, ...], value: oir.Value) -> bool:
    """Return whether broadcasting *value* with something of *shape* leaves the shape of *value* as it is."""
    if not shape:
        return True
    other = bench.facts.shape(value)
    if other is None or len(shape) > len(other):
        return False
    # A dim of unknown size may be 1 and would then be widened by anything but 1.
    return all(size in {1, dim} for size, dim in zip(reversed(shape), reversed(other), strict=False))


def drop_where(bench: Workbench, node: oir.Node) -> bool:
    """Where with a constant condition that always takes the same side."""
    condition = constant_array(input_at(node, 0), limit_bytes=_OPERAND_BYTES)
    if condition is None or condition.size == 0:
        return False
    if bool(np.all(condition)):
        taken, other = input_at(node, 1), input_at(node, 2)
    elif not bool(np.any(condition)):
        taken, other = input_at(node, 2), input_at(node, 1)
    else:
        return False
    if taken is None or other is None:
        return False
    shape = bench.facts.static_shape(other)
    if shape is None or not (_fits_into(bench, shape, taken) and _fits_into(bench, condition.shape, taken)):
        return False
    return bench.bypass(node, taken)


def drop_twice_inverse(bench: Workbench, node: oir.Node) -> bool:
    """Neg of Neg, Not of Not, BitwiseNot of BitwiseNot."""
    value = input_at(node, 0)
    inner = None if value is None else value.producer()
    if inner is None or not is_op(inner, node.op_type):
        return False
    source = input_at(inner, 0)
    return source is not None and bench.bypass(node, source)


def drop_repeated(bench: Workbench, node: oir.Node) -> bool:
    """Relu of Relu, Abs of Abs and others that find nothing left to do."""
    value = input_at(node, 0)
    return value is not None and is_op(value.producer(), node.op_type) and bench.bypass(node, value)


# Per source type, the types that hold every value of it exactly.
_BITS = {
    "UINT8": 8,
    "UINT16": 16,
    "UINT32": 32,
    "UINT64": 64,
    "INT8": 8,
    "INT16": 16,
    "INT32": 32,
    "INT64": 64,
}
# Mantissa bits, the hidden one included, and exponent bits.
_FLOATS = {"FLOAT16": (11, 5), "BFLOAT16": (8, 8), "FLOAT": (24, 8), "DOUBLE": (53, 11)}


def is_lossless(source: oir.DataType, target: oir.DataType) -> bool:
    """Return whether *target* holds every value of *source* exactly.

    >>> is_lossless(oir.DataType.INT32, oir.DataType.DOUBLE)
    True
    >>> is_lossless(oir.DataType.INT32, oir.DataType.FLOAT)
    False
    """
    one, two = source.name, target.name
    if one == two:
        return True
    if one == "BOOL":
        return two in _BITS or two in _FLOATS
    if one in _BITS and two in _BITS:
        if one.startswith("U"):
            return _BITS[two] > _BITS[one] or (two.startswith("U") and _BITS[two] >= _BITS[one])
        return not two.startswith("U") and _BITS[two] >= _BITS[one]
    if one in _BITS and two in _FLOATS:
        magnitude = _BITS[one] - (0 if one.startswith("U") else 1)
        return magnitude <= _FLOATS[two][0] and 2 ** (_FLOATS[two][1] - 1) > _BITS[one]
    if one in _FLOATS and two in _FLOATS:
        return all(small <= large for small, large in zip(_FLOATS[one], _FLOATS[two], strict=True))
    return False


def simplify_cast(bench: Workbench, node: oir.Node) -> bool:
    """Drop a Cast to the type at hand; let a Cast behind an exact widening read what was widened.

    Cast(Cast(x: A to B) to C) is Cast(x to C) where B holds all of A and C is A again or holds all of B.
    """
    value, to = input_at(node, 0), attribute(node, "to")
    if value is None or to is None:
        return False
    target = oir.DataType(to)
    if bench.facts.dtype(value) == target:
        return bench.bypass(node, value)
    inner = value.producer()
    if inner is None or not is_op(inner, "Cast"):
        return False
    source, middle = input_at(inner, 0), bench.facts.dtype(value)
    origin = bench.facts.dtype(source)
    if source is None or origin is None or middle is None or not is_lossless(origin, middle):
        return False
    if origin == target:
        return bench.bypass(node, source)
    if is_lossless(middle, target):
        bench.rewire(node, 0, source)
        bench.counts["merged_cast"] += 1
        return True
    return False


def cast_like_to_cast(bench: Workbench, node: oir.Node) -> bool:
    """Turn CastLike into the Cast that it is where the type is known."""
    target = bench.facts.dtype(input_at(node, 1))
    if target is None or has_reference(node):
        return False
    node.op_type = "Cast"
    node.attributes["to"] = oir.AttrInt64("to", int(target))
    bench.drop_inputs(node, 1)
    bench.counts["cast_like_to_cast"] += 1
    return True
