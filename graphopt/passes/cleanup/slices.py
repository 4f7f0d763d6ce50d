"""Merge Slices of different axes into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.rewrite import input_at, is_op
from graphopt.passes.cleanup.noops import int_list

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.passes.cleanup.workbench import Workbench

_Range = tuple[int, int, int]

# Every reader of the inner Slice looks at all of them; more than a few are not worth it.
_READERS = 16


def merge_slices(bench: Workbench, node: oir.Node) -> bool:
    """Let a Slice of a Slice of other axes take both parts from the source at once.

    Only where every reader of the inner Slice does, so that the inner one goes and nothing is copied twice.
    """
    value = input_at(node, 0)
    inner = None if value is None else value.producer()
    if value is None or inner is None or not is_op(inner, "Slice") or value.is_graph_output():
        return False
    source, theirs = input_at(inner, 0), _ranges(bench, inner)
    uses = value.uses()
    if source is None or theirs is None or len(uses) > _READERS:
        return False
    for reader, index in uses:
        if index != 0 or not is_op(reader, "Slice") or reader.graph is not inner.graph:
            return False
        ranges = _ranges(bench, reader)
        if ranges is None or not theirs.keys().isdisjoint(ranges):
            return False
    own = _ranges(bench, node) or {}
    merged = sorted((theirs | own).items())
    columns = [
        bench.ints(node, f"{node.name}_{name}", column)
        for name, column in (
            ("starts", [part[0] for _, part in merged]),
            ("ends", [part[1] for _, part in merged]),
            ("axes", [axis for axis, _ in merged]),
            ("steps", [part[2] for _, part in merged]),
        )
    ]
    bench.replace(node, "Slice", [source, *columns])
    bench.counts["merged_slice"] += 1
    return True


def _ranges(bench: Workbench, node: oir.Node) -> dict[int, _Range] | None:
    """Return (start, end, step) by axis counted from the front, or None where something is not constant."""
    if bench.facts.version(node) < 10:
        return None
    starts, ends = (int_list(node, index, "", as_attribute=False) for index in (1, 2))
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes: list[int] | None = list(range(len(starts)))
    steps: list[int] | None = [1] * len(starts)
    if input_at(node, 3) is not None:
        axes = int_list(node, 3, "", as_attribute=False)
    if input_at(node, 4) is not None:
        steps = int_list(node, 4, "", as_attribute=False)
    if axes is None or steps is None or not len(axes) == len(steps) == len(starts):
        return None
    if any(axis < 0 for axis in axes):
        rank = bench.facts.rank(input_at(node, 0))
        if rank is None:
            return None
        axes = [axis % rank for axis in axes]
    if len(set(axes)) != len(axes):
        return None
    return dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))
