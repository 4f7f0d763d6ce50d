"""Let a convolution pad by itself what a Pad in front of it pads with zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir.rewrite import attribute, constant_array, has_reference, input_at, is_op, sole_user
from graphopt.passes.cleanup.noops import int_list

if TYPE_CHECKING:
    from graphopt.passes.cleanup.workbench import Workbench


def pad_into_conv(bench: Workbench, node: oir.Node) -> bool:
    """Add the pads of a Pad with zeros, read by this Conv alone, to the pads of the Conv.

    The same products are summed, the padded ones being zero either way. Batch and channels must not be
    padded, nothing be cut off, and no side get more pads than the kernel reaches over.
    """
    value = input_at(node, 0)
    pad = None if value is None else value.producer()
    if value is None or pad is None or not is_op(pad, "Pad") or sole_user(value) is not node:
        return False
    source = input_at(pad, 0)
    if source is None or has_reference(node) or has_reference(pad) or bench.facts.version(pad) < 2:
        return False
    if attribute(node, "auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return False
    kernel = bench.facts.static_shape(input_at(node, 1))
    extra = None if kernel is None else _spatial_pads(bench, pad, len(kernel))
    if kernel is None or extra is None:
        return False
    spatial = len(kernel) - 2
    dilations = attribute(node, "dilations") or [1] * spatial
    own = attribute(node, "pads") or [0] * (2 * spatial)
    pads = [int(one) + two for one, two in zip(own, extra, strict=True)]
    if any(
        pads[side] > (kernel[2 + side % spatial] - 1) * dilations[side % spatial]
        for side in range(2 * spatial)
    ):
        return False
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = oir.AttrInt64s("pads", pads)
    bench.rewire(node, 0, source)
    bench.counts["merged_pad"] += 1
    return True


def _spatial_pads(bench: Workbench, pad: oir.Node, rank: int) -> list[int] | None:
    """Return begins and ends of the spatial axes, or None where *pad* does anything but add zeros there."""
    if attribute(pad, "mode", "constant") != "constant":
        return None
    old = bench.facts.version(pad) < 11
    fill = input_at(pad, 2)
    if old:
        zeros = attribute(pad, "value", 0.0) == 0
    else:
        filling = constant_array(fill, limit_bytes=64)
        zeros = fill is None or (filling is not None and not any(filling.tobytes()))
    numbers = int_list(pad, 1, "pads", as_attribute=old)
    if not zeros or numbers is None:
        return None
    axes = list(range(len(numbers) // 2))
    if input_at(pad, 3) is not None:
        listed = int_list(pad, 3, "axes", as_attribute=False)
        if listed is None:
            return None
        axes = [axis % rank for axis in listed]
    if len(numbers) != 2 * len(axes) or any(number < 0 for number in numbers):
        return None
    pads = [0] * (2 * rank)
    for position, axis in enumerate(axes):
        pads[axis], pads[rank + axis] = numbers[position], numbers[len(axes) + position]
    if any((pads[0], pads[1], pads[rank], pads[rank + 1])):
        return None
    return [*pads[2:rank], *pads[rank + 2 :]]
