"""Which rules canonicalize applies to which operator, in order; the first that changes something wins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.passes.cleanup import arithmetic, constants, layout, noops, optional, padding, slices

if TYPE_CHECKING:
    from graphopt.passes.cleanup.workbench import Rule

# Of one element they return that element; norms, logarithms and the like do not.
_COPYING_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")

_RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (constants.constant_to_initializer, ("Constant",)),
    (noops.drop_identity, ("Identity",)),
    (arithmetic.cast_like_to_cast, ("CastLike",)),
    (arithmetic.simplify_cast, ("Cast",)),
    (arithmetic.drop_neutral, ("Add", "And", "Div", "Mul", "Or", "Pow", "Sub", "Xor")),
    (arithmetic.drop_where, ("Where",)),
    (arithmetic.drop_twice_inverse, ("BitwiseNot", "Neg", "Not")),
    (arithmetic.drop_repeated, ("Abs", "Ceil", "Floor", "Relu", "Round", "Sign")),
    (noops.drop_single_input, ("Concat", "Max", "Mean", "Min", "Sum")),
    (noops.drop_split_in_one, ("Split",)),
    (noops.drop_dropout, ("Dropout",)),
    (noops.drop_reshape, ("Reshape",)),
    (noops.drop_flatten, ("Flatten",)),
    (noops.drop_squeeze, ("Squeeze",)),
    (noops.drop_unsqueeze, ("Unsqueeze",)),
    (noops.drop_expand, ("Expand",)),
    (noops.drop_pad, ("Pad",)),
    (noops.drop_slice, ("Slice",)),
    (noops.drop_tile, ("Tile",)),
    (noops.drop_resize, ("Resize", "Upsample")),
    (noops.drop_block, ("DepthToSpace", "SpaceToDepth")),
    (noops.drop_clip, ("Clip",)),
    (noops.drop_reduction, _COPYING_REDUCTIONS),
    (layout.simplify_transpose, ("Transpose",)),
    (layout.merge_unsqueeze, ("Unsqueeze",)),
    (layout.merge_squeeze, ("Squeeze",)),
    (layout.merge_reshape, ("Reshape",)),
    (layout.view_to_reshape, ("Flatten", "Squeeze", "Transpose", "Unsqueeze")),
    (layout.simplify_concat, ("Concat",)),
    (slices.merge_slices, ("Slice",)),
    (padding.pad_into_conv, ("Conv",)),
    (optional.drop_default_inputs, tuple(sorted(optional.DEFAULTED))),
)

GENERAL: tuple[Rule, ...] = (optional.trim_inputs, optional.trim_outputs)
"""Rules for every operator of the standard."""


def by_operator() -> dict[str, tuple[Rule, ...]]:
    """Return the rules of each operator of the default domain."""
    table: dict[str, tuple[Rule, ...]] = {}
    for rule, op_types in _RULES:
        for op_type in op_types:
            table[op_type] = (*table.get(op_type, ()), rule)
    return table
