"""Operators that only move indices: reshaping, transposing, joining and picking.

Each copies the labels of an input dim to the output dim that it becomes. Where several dims become one, their
slots are multiplied; where one becomes several, it is split into factors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.view import NodeView


def regroup(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """Return the finest groups of consecutive dims that hold the same elements; dims of 1 belong nowhere.

    None where the sizes do not agree or are unknown.
    """
    if min((*before, *after), default=1) <= 0 or math.prod(before) != math.prod(after):
        return None
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        size_left = size_right = 1
        while True:
            if size_left <= size_right and i < len(before):
                size_left *= before[i]
                left.append(i)
                i += 1
            elif j < len(after):
                size_right *= after[j]
                right.append(j)
                j += 1
            else:
                break
            if size_left == size_right and size_left != 1:
                break
        groups.append(([k for k in left if before[k] != 1], [k for k in right if after[k] != 1]))
    return [group for group in groups if group[0] or group[1]]


def _may_stay_open(entries: Sequence[int | str | None] | None, position: int) -> bool:
    """Return whether a dim without a number may shrink: the runtime must be able to work out its size."""
    if entries is None or position >= len(entries):
        return False
    if entries[position] == -1:
        return True
    return -1 not in entries and all(isinstance(item, str) or (item or 0) > 0 for item in entries)


def _reshape(view: NodeView) -> None:
    before, after = view.shape(0), view.output_shape()
    axes = view.axes(0)
    groups = regroup(before, after)
    if groups is None:
        # What is certain even so: equal numbers at either end stay what they are.
        result: list[Array | None] = [None] * len(after)
        front = 0
        while front < min(len(before), len(after)) and before[front] == after[front] > 0:
            result[front] = axes[front]
            front += 1
        for axis in axes[front:]:
            view.lock(axis, "its sizes are unknown")
        view.emit(result)
        return
    result = [None] * len(after)
    for left, right in groups:
        found = [axes[k] for k in left]
        if all(axis is None for axis in found):
            continue
        if len(left) == len(right) == 1:
            result[right[0]] = axes[left[0]]
            continue
        flat = view.outer(found, [before[k] for k in left])
        for k, axis in zip(right, view.split(flat, [after[k] for k in right]), strict=True):
            result[k] = axis
    for k, axis in enumerate(result):
        if axis is not None and not view.is_static(0, k) and view.node.op_type == "Reshape":
            entries = view.attribute("shape") or view.entries(1)
            if not _may_stay_open(entries, k):
                view.lock(axis, "its size is computed while running")
    view.emit(result)


def _resize_reshape(cut: NodeCut) -> None:
    changes: dict[int, int] = {}
    entries = cut.attribute("shape") or cut.entries(1)
    for k, keep in enumerate(cut.keeps_output(0)):
        if keep is None or (entries is not None and entries[k] == -1):
            continue
        size = int(keep.sum()) if cut.is_static(0, k) else -1
        if (
            entries is not None
            and entries[k] == 0
            and not cut.attribute("allowzero", 0)
            and cut.count(0, k) == size
        ):
            continue
        changes[k] = size
    cut.override(1, changes, attribute="shape")


def _flatten(view: NodeView) -> None:
    axes, dims = view.axes(0), view.shape(0)
    axis = view.attribute("axis", 1)
    axis += len(axes) if axis < 0 else 0
    if min(dims, default=1) < 0:
        keep = [part[0] if len(part) == 1 else None for part in (axes[:axis], axes[axis:])]
        for part, found in zip((axes[:axis], axes[axis:]), keep, strict=True):
            for one in part:
                if found is None:
                    view.lock(one, "its sizes are unknown")
        view.emit(keep)
        return
    view.emit([view.outer(axes[:axis], dims[:axis]), view.outer(axes[axis:], dims[axis:])])


def _transpose(view: NodeView) -> None:
    axes = view.axes(0)
    order = view.attribute("perm") or range(len(axes) - 1, -1, -1)
    view.emit([axes[k] for k in order])


def _given_axes(view: NodeView, index: int = 1) -> list[int] | None:
    axes: list[int] | None = view.attribute("axes")
    if axes is None and view.has(index):
        content = view.constant(index)
        axes = None if content is None else content.reshape(-1).tolist()
    return axes


def _squeeze(view: NodeView) -> None:
    axes = _given_axes(view)
    rank = len(view.shape(0))
    if axes is None and not view.has(1):
        axes = [k for k, dim in enumerate(view.shape(0)) if dim == 1]
    if axes is None or rank - len(axes) != len(view.output_shape()):
        view.lock_inputs("which dims it drops is unknown")
        return
    dropped = {axis % rank for axis in axes}
    view.emit([axis for k, axis in enumerate(view.axes(0)) if k not in dropped])


def _name_squeezed(cut: NodeCut) -> None:
    """Without axes it would drop a dim of which one index is left, too."""
    if cut.attribute("axes") is None and len(cut.node.inputs) < 2:
        axes = [k for k, dim in enumerate(cut.shape(0)) if dim == 1]
        if cut.opset >= 13:
            cut.set_input(1, np.array(axes, np.int64))
        else:
            cut.set_attribute("axes", axes)


def _unsqueeze(view: NodeView) -> None:
    axes = _given_axes(view)
    rank = len(view.output_shape())
    if axes is None:
        view.lock_inputs("which dims it adds is unknown")
        return
    added = {axis % rank for axis in axes}
    rest = iter(view.axes(0))
    view.emit([None if k in added else next(rest) for k in range(rank)])


def is_integer(view: NodeView) -> bool:
    """Return whether input 0 holds indices or sizes rather than activations."""
    return view.dtype(0) in {oir.DataType.INT64, oir.DataType.INT32}


def _expand(view: NodeView) -> None:
    """A stretched dim repeats one index, so that any of the copies may go."""
    axes, before, after = view.axes(0), view.shape(0), view.output_shape()
    result: list[Array | None] = []
    for k, dim in enumerate(after):
        position = k - len(after) + len(axes)
        if position >= 0 and before[position] == dim:
            result.append(axes[position])
        elif view.is_static(0, k) and not is_integer(view):
            result.append(view.fresh(dim))
        else:
            result.append(None)
    for k, axis in enumerate(result):
        if axis is not None and not view.is_static(0, k):
            view.lock(axis, "its size is computed while running")
    view.emit(result)


def _resize_expand(cut: NodeCut) -> None:
    keeps = cut.keeps_output(0)
    shape = cut.shape(1)
    offset = len(keeps) - shape[0] if shape else 0
    cut.override(
        1, {k - offset: int(keep.sum()) for k, keep in enumerate(keeps) if keep is not None and k >= offset}
    )


def _constant_of_shape(view: NodeView) -> None:
    if _is_integer_value(view.attribute("value")):
        view.emit_nothing()
        return
    dims = view.output_shape()
    view.emit([view.fresh(dim) if view.is_static(0, k) else None for k, dim in enumerate(dims)])


def _is_integer_value(value: Any) -> bool:  # noqa: ANN401 - a tensor or None
    return value is not None and value.dtype in {oir.DataType.INT64, oir.DataType.INT32}


def _resize_filled(cut: NodeCut) -> None:
    cut.override(0, {k: int(keep.sum()) for k, keep in enumerate(cut.keeps_output(0)) if keep is not None})


def _depth_to_space(view: NodeView) -> None:
    axes = view.axes(0)
    block = view.attribute("blocksize", 1)
    channels = axes[1]
    result = None
    if channels is not None:
        inner = len(channels) // block**2
        if view.attribute("mode", "DCR") == "DCR":
            cells, result = view.split(channels, (block**2, inner))
        else:
            result, cells = view.split(channels, (inner, block**2))
        view.lock(cells, "spreads it over the image")
    for axis in axes[2:]:
        view.lock(axis, "an image dim")
    view.emit([axes[0], result, None, None])


def _space_to_depth(view: NodeView) -> None:
    axes = view.axes(0)
    block = view.attribute("blocksize", 1)
    channels = view.outer([None, axes[1]], [block**2, view.shape(0)[1]])
    for axis in axes[2:]:
        view.lock(axis, "an image dim")
    view.emit([axes[0], channels, None, None])


def _resize(view: NodeView) -> None:
    axes, before, after = view.axes(0), view.shape(0), view.output_shape()
    result: list[Array | None] = []
    for axis, one, other in zip(axes, before, after, strict=True):
        if axis is not None and one != other:
            view.lock(axis, "resizes it")
        result.append(axis if one == other else None)
    view.emit(result)


def _resize_sizes(cut: NodeCut) -> None:
    if not cut.has(3):
        return
    axes = [axis % len(cut.shape(0)) for axis in cut.attribute("axes") or range(len(cut.shape(0)))]
    keeps = cut.keeps_output(0)
    changes = {}
    for position, axis in enumerate(axes):
        keep = keeps[axis]
        if keep is not None:
            changes[position] = int(keep.sum())
    cut.override(3, changes)


def _reverse(view: NodeView) -> None:
    view.lock_inputs("says how much to reverse", (1,))
    axes = view.axes(0)
    view.emit([None if k < 2 else axis for k, axis in enumerate(axes)])
    for axis in axes[:2]:
        view.lock(axis, "reverses along it")


RULES = [
    ChannelRule("Reshape", _reshape, _resize_reshape),
    ChannelRule("Flatten", _flatten),
    ChannelRule("Transpose", _transpose),
    ChannelRule("Squeeze", _squeeze, _name_squeezed),
    ChannelRule("Unsqueeze", _unsqueeze),
    ChannelRule("Expand", _expand, _resize_expand),
    ChannelRule("ConstantOfShape", _constant_of_shape, _resize_filled),
    ChannelRule("DepthToSpace", _depth_to_space),
    ChannelRule("SpaceToDepth", _space_to_depth),
    ChannelRule("Resize", _resize, _resize_sizes),
    ChannelRule("Upsample", _resize),
    ChannelRule("ReverseSequence", _reverse),
]
