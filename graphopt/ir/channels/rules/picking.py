"""Operators that join, cut and pick along a dim: Concat, Split, Slice, Gather, Pad, Tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.channels.rules.movement import is_integer
from graphopt.ir.channels.slots import LOCKED
from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.view import NodeView


def _concat(view: NodeView) -> None:
    dims = view.output_shape()
    axis = view.attribute("axis", 1) % len(dims)
    inputs = [index for index in range(len(view.node.inputs)) if view.has(index)]
    parts = [view.axes(index) for index in inputs]
    sizes = [view.shape(index) for index in inputs]
    result: list[Array | None] = []
    for k, dim in enumerate(dims):
        if k != axis:
            result.extend(view.align([[part[k]] for part in parts], [[size[k]] for size in sizes], [dim]))
        elif all(part[k] is None for part in parts):
            result.append(None)
        elif min(size[k] for size in sizes) < 0:
            for part in parts:
                view.lock(part[k], "joins it with a dim of unknown size")
            result.append(None)
        elif len(parts) == 1:
            result.append(parts[0][k])
        else:
            result.append(
                np.concatenate(
                    [
                        np.full(size[k], LOCKED) if part[k] is None else part[k]
                        for part, size in zip(parts, sizes, strict=True)
                    ]
                )
            )
    view.emit(result)


def _split(view: NodeView) -> None:
    axes = view.axes(0)
    axis = view.attribute("axis", 0) % len(axes)
    sizes = [view.output_shape(index)[axis] for index in range(len(view.node.outputs))]
    whole = axes[axis]
    fits = whole is None or (min(sizes) >= 0 and sum(sizes) == len(whole))
    if not fits:
        view.lock(whole, "where it cuts is unknown")
    bounds = np.cumsum([0, *sizes])
    for index in range(len(sizes)):
        part = (
            None
            if whole is None or not fits or sizes[index] == 1
            else whole[bounds[index] : bounds[index + 1]]
        )
        if whole is not None and fits and sizes[index] == 1:
            view.lock(whole[bounds[index] : bounds[index + 1]], "cuts it off alone")
        view.emit([*axes[:axis], part, *axes[axis + 1 :]], index)


def _resize_split(cut: NodeCut) -> None:
    axis = cut.attribute("axis", 0) % len(cut.shape(0))
    if cut.keep(0, axis) is None:
        return
    sizes = [cut.size_output(index, axis) for index in range(len(cut.node.outputs))]
    if cut.opset >= 13:
        cut.set_attribute("num_outputs", None)
        cut.set_input(1, np.array(sizes, np.int64))
    else:
        cut.set_attribute("split", sizes)


def _slices(view: NodeView | NodeCut) -> dict[int, tuple[int, int | None, int | None, int]] | None:
    """Return (position in the arguments, start, end, step) by dim; None where the dims are unknown."""
    rank = len(view.shape(0))
    if view.attribute("starts") is not None:
        starts, ends = view.attribute("starts"), view.attribute("ends")
        axes = view.attribute("axes") or list(range(len(starts)))
        steps: Sequence[int | str | None] = [1] * len(starts)
    else:
        count = view.shape(1)
        if len(count) != 1 or count[0] < 0:
            return None
        starts = view.entries(1) or [None] * count[0]
        ends = view.entries(2) or [None] * count[0]
        given = view.entries(3) if view.has(3) else list(range(count[0]))
        steps_given = view.entries(4) if view.has(4) else [1] * count[0]
        if given is None or steps_given is None:
            return None
        axes, steps = list(given), steps_given
    whole = [item for item in (*axes, *steps) if isinstance(item, int)]
    if len(whole) < len(axes) + len(steps):
        return None
    return {
        axis % rank: (k, _number(starts[k]), _number(ends[k]), step)
        for k, (axis, step) in enumerate(zip(whole[: len(axes)], whole[len(axes) :], strict=True))
    }


def _number(item: int | str | None) -> int | None:
    return item if isinstance(item, int) else None


def _slice(view: NodeView) -> None:
    axes, after = view.axes(0), view.output_shape()
    slices = _slices(view)
    if slices is None:
        view.lock_inputs("which dims it cuts is unknown", (0,))
        return
    for axis, (_, start, end, step) in slices.items():
        whole = axes[axis]
        if whole is None:
            continue
        picked = None if start is None or end is None else np.arange(len(whole))[slice(start, end, step)]
        if picked is None and after[axis] == len(whole) and view.is_static(0, axis):
            picked = np.arange(len(whole))[::step] if abs(step) == 1 else None
        if picked is None or len(picked) != after[axis]:
            view.lock(whole, "where it cuts is unknown")
            axes[axis] = None
        elif len(picked) == 1:
            view.lock(whole[picked], "picks this index")
            axes[axis] = None
        elif not np.array_equal(picked, np.arange(len(whole))):
            axes[axis] = whole[picked]
    view.emit(axes)


def _move_slices(cut: NodeCut) -> None:
    """Rewrite starts and ends; where the kept indices are no longer evenly spaced, gather them in front."""
    slices = _slices(cut) or {}
    bounds: dict[str, dict[int, int]] = {"starts": {}, "ends": {}}
    for axis, (position, start, end, step) in slices.items():
        keep = cut.keep(0, axis)
        if keep is None:
            continue
        if start is None or end is None:  # all of it
            continue
        picked = np.arange(len(keep))[slice(start, end, step)]
        places = (np.cumsum(keep) - 1)[picked[keep[picked]]]
        forward = step > 0
        if len(places) > 1 and not (np.diff(places) == step).all():
            cut.gather_first(0, axis, places)
            places, forward = np.arange(len(places)), True
            cut.override(4, {position: 1}, attribute="steps")
        first, last = (int(places[0]), int(places[-1])) if len(places) else (0, -1)
        bounds["starts"][position] = first
        beyond = last + (1 if forward else -1)
        bounds["ends"][position] = beyond if beyond >= 0 else -(2**31)
    cut.override(1, bounds["starts"], attribute="starts")
    cut.override(2, bounds["ends"], attribute="ends")


def _gather(view: NodeView) -> None:
    """Constant indices pick labels; indices from elsewhere may pick anything."""
    axes = view.axes(0)
    axis = view.attribute("axis", 0) % len(axes)
    indices, whole = view.constant(1), axes[axis]
    rank = len(view.shape(1))
    picked: list[Array | None] = [None] * rank
    for index_axis in view.axes(1):
        view.lock(index_axis, "says which indices to pick")
    if whole is not None and (indices is None or view.is_weight(0)):
        view.lock(whole, "picks from it by index")
    elif whole is not None and indices is not None:
        chosen = whole[indices]
        if chosen.size == 1:
            view.lock(chosen.reshape(-1), "picks this index")
        elif rank == 1:
            picked = [chosen]
        else:
            picked = view.split(chosen.reshape(-1), indices.shape)
    view.emit([*axes[:axis], *picked, *axes[axis + 1 :]])


def _renumber(cut: NodeCut) -> None:
    axis = cut.attribute("axis", 0) % len(cut.shape(0))
    keep = cut.keep(0, axis)
    if keep is None:
        return
    indices = cut.content(1)
    assert indices is not None
    indices = np.where(indices < 0, indices + len(keep), indices)
    for k, kept in enumerate(cut.keeps_output(0)[axis : axis + indices.ndim]):
        if kept is not None:
            indices = np.compress(kept, indices, axis=k)
    cut.set_input(1, (np.cumsum(keep) - 1)[indices].astype(np.int64))


def _pads(view: NodeView | NodeCut) -> list[tuple[int, int] | None] | None:
    """Return (before, after) of each dim, None where it is unknown."""
    rank = len(view.shape(0))
    pads = view.attribute("pads") or view.attribute("paddings") or view.entries(1)
    if pads is None:
        return None
    axes = list(range(rank))
    if view.has(3):
        given = view.entries(3)
        if given is None or not all(isinstance(item, int) for item in given):
            return None
        axes = [int(item or 0) % rank for item in given]
    result: list[tuple[int, int] | None] = [(0, 0)] * rank
    half = len(pads) // 2
    for k, axis in enumerate(axes):
        before, after = pads[k], pads[half + k]
        result[axis] = (before, after) if isinstance(before, int) and isinstance(after, int) else None
    return result


def _pad(view: NodeView) -> None:
    """Cells around a dim all hold the same constant, so that any of them may go."""
    axes, before, after = view.axes(0), view.shape(0), view.output_shape()
    pads = _pads(view)
    for k, axis in enumerate(axes):
        pair = pads[k] if pads is not None else None
        if pair == (0, 0):
            continue
        if pair is None or (axis is not None and view.attribute("mode", "constant") != "constant"):
            view.lock(axis, "pads it")
            axes[k] = None
        elif axis is not None or (before[k] == 1 and view.is_static(0, k)):
            if view.attribute("mode", "constant") != "constant" or (axis is None and is_integer(view)):
                continue
            first, last = pair
            inner = np.full(1, LOCKED) if axis is None else axis
            inner = inner[max(0, -first) : len(inner) - max(0, -last)]
            ends = [view.slots.fresh(size) if size > 0 else inner[:0] for size in pair]
            padded = np.concatenate([ends[0], inner, ends[1]])
            axes[k] = padded if len(padded) == after[k] else None
            if len(padded) != after[k]:
                view.lock(padded, "pads it by an unknown size")
    view.emit(axes)


def _shrink_pads(cut: NodeCut) -> None:
    pads = _pads(cut)
    if pads is None:
        return
    changes: dict[int, int] = {}
    given = cut.entries(3) if cut.has(3) else None
    for k, keep in enumerate(cut.keeps_output(0)):
        pair = pads[k]
        whole = cut.keep(0, k)
        if pair in {None, (0, 0)} or (keep is None and whole is None):
            continue
        assert pair is not None
        position = k if given is None else [int(item or 0) % len(pads) for item in given].index(k)
        half = len(pads) if given is None else len(given)
        size = cut.shape(0)[k]
        whole = np.ones(size, bool) if whole is None else whole
        out = np.ones(size + sum(pair), bool) if keep is None else keep
        first, last = pair
        changes[position] = (
            int(out[:first].sum()) if first > 0 else -int(whole[:-first].sum()) if first else 0
        )
        changes[half + position] = (
            int(out[len(out) - last :].sum()) if last > 0 else -int(whole[size + last :].sum()) if last else 0
        )
    name = "paddings" if cut.attribute("paddings") is not None else "pads"
    cut.override(1, changes, attribute=name)


def _tile(view: NodeView) -> None:
    axes, before, after = view.axes(0), view.shape(0), view.output_shape()
    repeats = view.entries(1)
    for k, axis in enumerate(axes):
        count = repeats[k] if repeats is not None else None
        if count == 1:
            continue
        if not isinstance(count, int):
            view.lock(axis, "repeats it as often as it is told")
            axes[k] = None
        elif axis is not None:
            axes[k] = np.tile(axis, count)
        elif before[k] == 1 and view.is_static(0, k) and not is_integer(view):
            axes[k] = view.fresh(after[k])
    view.emit(axes)


def _retile(cut: NodeCut) -> None:
    keeps = cut.keeps_output(0)
    cut.override(
        1, {k: int(keep.sum()) for k, keep in enumerate(keeps) if keep is not None and cut.shape(0)[k] == 1}
    )


RULES = [
    ChannelRule("Concat", _concat),
    ChannelRule("Split", _split, _resize_split),
    ChannelRule("Slice", _slice, _move_slices),
    ChannelRule("Gather", _gather, _renumber),
    ChannelRule("Pad", _pad, _shrink_pads),
    ChannelRule("Tile", _tile, _retile),
]
