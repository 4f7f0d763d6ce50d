"""Rules that drop one node because its output equals its input in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.rewrite import attribute, constant_array, has_reference, input_at, is_unused
from graphopt.passes.cleanup.facts import equal_dims

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.passes.cleanup.facts import Dim
    from graphopt.passes.cleanup.workbench import Workbench

# Lists of axes, pads, shapes and the like; anything longer is no such list.
_LIST_BYTES = 4096
# "To slice to the end of a dim of unknown size, pass INT_MAX" (Slice); exporters also write INT64_MAX.
_TO_THE_END = 2**31 - 1


def int_list(node: oir.Node, index: int, name: str, *, as_attribute: bool) -> list[int] | None:
    """Return the constant integers of an argument: attribute *name* or, since some opset, input *index*.

    None where it is absent, computed, or a reference to an attribute of a function.
    """
    if as_attribute:
        numbers = attribute(node, name)
        return None if numbers is None else [int(number) for number in numbers]
    array = constant_array(input_at(node, index), limit_bytes=_LIST_BYTES)
    return (
        None
        if array is None or array.dtype.kind not in "iu"
        else [int(number) for number in array.reshape(-1)]
    )


def drop_identity(bench: Workbench, node: oir.Node) -> bool:
    """Identity."""
    value = input_at(node, 0)
    return value is not None and bench.bypass(node, value)


def drop_single_input(bench: Workbench, node: oir.Node) -> bool:
    """Concat, Sum, Max, Min or Mean of one input."""
    value = input_at(node, 0)
    return len(node.inputs) == 1 and value is not None and bench.bypass(node, value)


def drop_split_in_one(bench: Workbench, node: oir.Node) -> bool:
    """Split into one part."""
    value = input_at(node, 0)
    return len(node.outputs) == 1 and value is not None and bench.bypass(node, value)


def drop_dropout(bench: Workbench, node: oir.Node) -> bool:
    """Dropout that does not train; before opset 7 the attribute is_test said so, since 12 an input does."""
    value = input_at(node, 0)
    if value is None or has_reference(node):
        return False
    version = bench.facts.version(node)
    if version < 7 and not attribute(node, "is_test", 0):
        bench.skip(node, "it trains")
        return False
    mode = input_at(node, 2)
    if version >= 12 and mode is not None:
        training = constant_array(mode, limit_bytes=64)
        if training is None or bool(np.any(training)):
            bench.skip(node, "it trains, or may")
            return False
    if any(not is_unused(output) for output in node.outputs[1:]):
        bench.skip(node, "its mask is read")
        return False
    return bench.bypass(node, value)


def drop_reshape(bench: Workbench, node: oir.Node) -> bool:
    """Reshape to the shape that its input has."""
    value = input_at(node, 0)
    if value is None:
        return False
    target = int_list(node, 1, "shape", as_attribute=bench.facts.version(node) < 5)
    zero_copies = not attribute(node, "allowzero", 0) and "allowzero" not in _references(node)
    if target is not None and zero_copies and target and all(number == 0 for number in target):
        return bench.facts.rank(value) == len(target) and bench.bypass(node, value)
    shape = bench.facts.shape(value)
    if shape is None:
        return False
    if target is not None and not _keeps_shape(target, shape, zero_copies=zero_copies):
        return False
    if target is None:
        result = bench.facts.shape(node.outputs[0])
        if result is None or not equal_dims(result, shape):
            return False
    return bench.bypass(node, value)


def _keeps_shape(target: list[int], shape: tuple[Dim, ...], *, zero_copies: bool) -> bool:
    if len(target) != len(shape) or target.count(-1) > 1:
        return False
    return all(
        number == -1 or (number == 0 and zero_copies) or number == dim
        for number, dim in zip(target, shape, strict=True)
    )


def drop_flatten(bench: Workbench, node: oir.Node) -> bool:
    """Flatten of a matrix between its two dims."""
    value = input_at(node, 0)
    if value is None or has_reference(node) or attribute(node, "axis", 1) not in {1, -1}:
        return False
    return bench.facts.rank(value) == 2 and bench.bypass(node, value)


def drop_squeeze(bench: Workbench, node: oir.Node) -> bool:
    """Squeeze without axes of a shape that has no dim of size one."""
    value = input_at(node, 0)
    if value is None or input_at(node, 1) is not None or "axes" in node.attributes:
        return False
    shape = bench.facts.static_shape(value)
    return shape is not None and 1 not in shape and bench.bypass(node, value)


def drop_unsqueeze(bench: Workbench, node: oir.Node) -> bool:
    """Unsqueeze of no axes."""
    value = input_at(node, 0)
    axes = int_list(node, 1, "axes", as_attribute=bench.facts.version(node) < 13)
    return value is not None and axes == [] and bench.bypass(node, value)


def drop_expand(bench: Workbench, node: oir.Node) -> bool:
    """Expand to a shape that the input has already."""
    value = input_at(node, 0)
    if value is None:
        return False
    target = int_list(node, 1, "shape", as_attribute=False)
    shape = bench.facts.shape(value)
    if shape is None:
        return False
    if target is not None:
        if len(target) > len(shape):
            return False
        tail = shape[len(shape) - len(target) :]
        # An unknown dim may be 1 and would be expanded, so only ones and equal sizes keep it.
        same = all(number in {1, dim} for number, dim in zip(target, tail, strict=True))
    else:
        result = bench.facts.shape(node.outputs[0])
        same = result is not None and equal_dims(result, shape)
    return same and bench.bypass(node, value)


def drop_pad(bench: Workbench, node: oir.Node) -> bool:
    """Pad by nothing, in any mode."""
    value = input_at(node, 0)
    old = bench.facts.version(node) < 11
    pads = int_list(node, 1, "pads" if bench.facts.version(node) >= 2 else "paddings", as_attribute=old)
    return value is not None and pads is not None and not any(pads) and bench.bypass(node, value)


def drop_slice(bench: Workbench, node: oir.Node) -> bool:
    """Slice that takes everything."""
    value = input_at(node, 0)
    old = bench.facts.version(node) < 10
    starts = int_list(node, 1, "starts", as_attribute=old)
    ends = int_list(node, 2, "ends", as_attribute=old)
    if value is None or starts is None or ends is None or len(starts) != len(ends):
        return False
    axes = int_list(node, 3, "axes", as_attribute=old)
    if axes is None:
        if "axes" in node.attributes or (not old and input_at(node, 3) is not None):
            return False
        axes = list(range(len(starts)))
    if not old and input_at(node, 4) is not None:
        steps = int_list(node, 4, "steps", as_attribute=False)
        if steps is None or any(step != 1 for step in steps):
            return False
    shape: tuple[Dim, ...] | None = None
    for start, end, axis in zip(starts, ends, axes, strict=False):
        if start == 0 and end >= _TO_THE_END:
            continue
        shape = bench.facts.shape(value) if shape is None else shape
        if shape is None or not -len(shape) <= axis < len(shape):
            return False
        size = shape[axis]
        from_start = start == 0 or (isinstance(size, int) and start <= -size)
        to_end = end >= _TO_THE_END or (isinstance(size, int) and end >= size)
        if not (from_start and to_end):
            return False
    return bench.bypass(node, value)


def drop_tile(bench: Workbench, node: oir.Node) -> bool:
    """Tile once along every axis."""
    value = input_at(node, 0)
    repeats = int_list(node, 1, "repeats", as_attribute=False)
    if value is None or repeats is None or bench.facts.version(node) < 6:
        return False
    return all(repeat == 1 for repeat in repeats) and bench.bypass(node, value)


def drop_resize(bench: Workbench, node: oir.Node) -> bool:
    """Resize or Upsample by one along every axis; the runtime itself copies then, in every mode."""
    value = input_at(node, 0)
    if value is None or has_reference(node):
        return False
    if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    position = 1 if node.op_type == "Upsample" or bench.facts.version(node) < 11 else 2
    if "scales" in node.attributes:
        scales: object = list(attribute(node, "scales"))
        unit = all(scale == 1 for scale in attribute(node, "scales"))
    else:
        scales = constant_array(input_at(node, position), limit_bytes=_LIST_BYTES)
        unit = isinstance(scales, np.ndarray) and scales.size > 0 and bool(np.all(scales == 1))
    return unit and bench.bypass(node, value)


def drop_block(bench: Workbench, node: oir.Node) -> bool:
    """DepthToSpace or SpaceToDepth with blocks of one element."""
    value = input_at(node, 0)
    return value is not None and attribute(node, "blocksize") == 1 and bench.bypass(node, value)


def drop_clip(bench: Workbench, node: oir.Node) -> bool:
    """Clip of integers without bounds; absent bounds are the largest finite numbers, which clip inf."""
    value = input_at(node, 0)
    if value is None or bench.facts.version(node) < 11:
        return False
    if input_at(node, 1) is not None or input_at(node, 2) is not None:
        return False
    dtype = bench.facts.dtype(value)
    return dtype is not None and dtype.is_integer() and bench.bypass(node, value)


def drop_reduction(bench: Workbench, node: oir.Node) -> bool:
    """A sum, product, mean or extremum over axes of size one that keeps them, or over no axes at all."""
    value = input_at(node, 0)
    if value is None or has_reference(node):
        return False
    version = bench.facts.version(node)
    old = version < (13 if node.op_type == "ReduceSum" else 18)
    axes = int_list(node, 1, "axes", as_attribute=old)
    if axes is None and not old and input_at(node, 1) is not None:
        return False
    if not axes:
        if not old and attribute(node, "noop_with_empty_axes", 0):
            return bench.bypass(node, value)
        return False
    shape = bench.facts.shape(value)
    if not attribute(node, "keepdims", 1) or shape is None:
        return False
    if any(not -len(shape) <= axis < len(shape) or shape[axis] != 1 for axis in axes):
        return False
    return bench.bypass(node, value)


def _references(node: oir.Node) -> set[str]:
    return {name for name, found in node.attributes.items() if found.is_ref()}
