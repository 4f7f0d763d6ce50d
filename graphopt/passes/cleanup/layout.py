"""Rules that merge two nodes that only rearrange or rename dims into one, or into none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir.rewrite import attribute, has_reference, input_at, is_op, sole_user
from graphopt.passes.cleanup.facts import equal_dims
from graphopt.passes.cleanup.noops import int_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.passes.cleanup.facts import Dim
    from graphopt.passes.cleanup.workbench import Workbench


def simplify_transpose(bench: Workbench, node: oir.Node) -> bool:
    """Drop a Transpose that moves nothing but dims of size one onto themselves; merge one into the next."""
    value = input_at(node, 0)
    perm = _perm(bench, node)
    if value is None or perm is None:
        return False
    if perm == list(range(len(perm))):
        return bench.bypass(node, value)
    inner = value.producer()
    first = _perm(bench, inner) if inner is not None and is_op(inner, "Transpose") else None
    source = None if inner is None else input_at(inner, 0)
    if first is not None and source is not None and len(first) == len(perm):
        merged = [first[axis] for axis in perm]
        if merged == list(range(len(merged))):
            return bench.bypass(node, source)
        node.attributes["perm"] = oir.AttrInt64s("perm", merged)
        bench.rewire(node, 0, source)
        bench.counts["merged_transpose"] += 1
        return True
    if len(perm) > 8:
        return False
    shape = bench.facts.shape(value) if _worth_a_look(inner, node) else None
    if shape is not None and _keeps_order(perm, shape) and equal_dims([shape[axis] for axis in perm], shape):
        return bench.bypass(node, value)
    return False


def _worth_a_look(inner: oir.Node | None, node: oir.Node) -> bool:
    """Return whether the shape is worth inferring: dims of size one come from or go to a change of rank."""
    views = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand")
    return is_op(inner, *views) or any(is_op(user, *views) for user in node.outputs[0].consumers())


def _perm(bench: Workbench, node: oir.Node) -> list[int] | None:
    if has_reference(node):
        return None
    perm = attribute(node, "perm")
    if perm is not None:
        return [int(axis) for axis in perm]
    rank = bench.facts.rank(input_at(node, 0))
    return None if rank is None else list(reversed(range(rank)))


def _keeps_order(perm: list[int], shape: Sequence[Dim]) -> bool:
    """Return whether *perm* moves dims of size one only, so that the elements stay in their order."""
    moved = [axis for axis in perm if shape[axis] != 1]
    return len(perm) == len(shape) and moved == sorted(moved)


def merge_unsqueeze(bench: Workbench, node: oir.Node) -> bool:
    """Unsqueeze of Unsqueeze is one Unsqueeze; of the Squeeze of the same axes, nothing."""
    return _merge_axes(bench, node, inverse="Squeeze")


def merge_squeeze(bench: Workbench, node: oir.Node) -> bool:
    """Squeeze of Squeeze is one Squeeze; of the Unsqueeze of the same axes, nothing."""
    return _merge_axes(bench, node, inverse="Unsqueeze")


def _merge_axes(bench: Workbench, node: oir.Node, *, inverse: str) -> bool:
    value = input_at(node, 0)
    inner = None if value is None else value.producer()
    if (
        value is None
        or inner is None
        or not is_op(inner, "Squeeze", "Unsqueeze")
        or inner.graph is not node.graph
    ):
        return False
    old = bench.facts.version(node) < 13
    outer_axes = int_list(node, 1, "axes", as_attribute=old)
    inner_axes = int_list(inner, 1, "axes", as_attribute=old)
    source = input_at(inner, 0)
    if not outer_axes or not inner_axes or source is None:
        return False
    if is_op(inner, inverse):
        # Both lists count the dims of the same shape: the one with the axes in it.
        return sorted(outer_axes) == sorted(inner_axes) and bench.bypass(node, source)
    if min(outer_axes) < 0 or min(inner_axes) < 0 or sole_user(value) is not node:
        return False
    if node.op_type == "Unsqueeze":
        # Axes of the inner one count dims of a shape that the outer one then spreads out.
        merged = [*outer_axes, *(_spread(axis, outer_axes) for axis in inner_axes)]
    else:
        merged = [*inner_axes, *(_spread(axis, inner_axes) for axis in outer_axes)]
    merged.sort()
    if old:
        node.attributes["axes"] = oir.AttrInt64s("axes", merged)
    else:
        node.replace_input_with(1, bench.ints(node, f"{node.name}_axes", merged))
    bench.rewire(node, 0, source)
    bench.counts[f"merged_{node.op_type.lower()}"] += 1
    return True


def _spread(axis: int, inserted: list[int]) -> int:
    """Return where dim *axis* stands once dims have been inserted at the positions *inserted* of the result.

    >>> [_spread(axis, [0, 2]) for axis in range(3)]
    [1, 3, 4]
    """
    for position in sorted(inserted):
        if position <= axis:
            axis += 1
    return axis


def merge_reshape(bench: Workbench, node: oir.Node) -> bool:
    """Reshape of something that only renames dims is a Reshape of what that was made from."""
    value = input_at(node, 0)
    version = bench.facts.version(node)
    if value is None or version < 5 or has_reference(node):
        return False
    inner = value.producer()
    source = _behind_view(bench, inner)
    if inner is None or source is None:
        return False
    target = int_list(node, 1, "shape", as_attribute=False)
    if target is None:
        return False
    if not attribute(node, "allowzero", 0) and 0 in target:
        resolved = _without_copies(bench, target, value, source)
        if resolved is None:
            return False
        if resolved != target:
            node.replace_input_with(1, bench.ints(node, f"{node.name}_shape", resolved))
    bench.rewire(node, 0, source)
    bench.counts[f"merged_{inner.op_type.lower()}"] += 1
    return True


def _behind_view(bench: Workbench, node: oir.Node | None) -> oir.Value | None:
    """Return the input of *node* where its output holds the same elements in the same order."""
    if node is None or has_reference(node) or not node.inputs:
        return None
    if is_op(node, "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return input_at(node, 0)
    if is_op(node, "Transpose"):
        source, perm = input_at(node, 0), _perm(bench, node)
        shape = bench.facts.shape(source)
        if source is not None and perm is not None and shape is not None and _keeps_order(perm, shape):
            return source
    return None


def _without_copies(
    bench: Workbench, target: list[int], value: oir.Value, source: oir.Value
) -> list[int] | None:
    """Return *target*, whose zeros copy dims of *value*, as a target for *source*; None where it has none."""
    shape, other = bench.facts.shape(value), bench.facts.shape(source)
    resolved: list[int] = []
    for axis, number in enumerate(target):
        dim = None if shape is None or axis >= len(shape) else shape[axis]
        if number != 0 or (isinstance(dim, int) and dim > 0):
            resolved.append(number if number != 0 or not isinstance(dim, int) else dim)
        elif dim is not None and other is not None and axis < len(other) and other[axis] == dim:
            resolved.append(0)
        elif -1 not in target and -1 not in resolved:
            resolved.append(-1)
        else:
            return None
    # With a copied dim of size zero, -1 has no meaning; it had none before either where it stood there.
    if 0 in resolved and -1 in resolved and -1 not in target:
        return None
    return resolved


def view_to_reshape(bench: Workbench, node: oir.Node) -> bool:
    """Something that only renames dims, behind another that is read by it alone, is one Reshape.

    Only where the resulting shape is known but for one dim, and has no dim of size zero.
    """
    value = input_at(node, 0)
    if value is None or bench.facts.version(node) < 5 or sole_user(value) is not node:
        return False
    inner = value.producer()
    if inner is None or not is_op(inner, "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"):
        return False
    if is_op(inner, "Transpose") and is_op(node, "Transpose"):
        return False
    if _behind_view(bench, node) is None or (source := _behind_view(bench, inner)) is None:
        return False
    shape = bench.facts.shape(node.outputs[0])
    if shape is None:
        return False
    target = [dim if isinstance(dim, int) else -1 for dim in shape]
    if target.count(-1) > 1 or 0 in target:
        return False
    new = bench.replace(node, "Reshape", [source, bench.ints(node, f"{node.name}_shape", target)])
    bench.counts[f"merged_{inner.op_type.lower()}"] += 1
    bench.enqueue((new,))
    return True


def simplify_concat(bench: Workbench, node: oir.Node) -> bool:
    """Leave out constant inputs without elements; take over the inputs of a Concat read by this one alone."""
    axis = attribute(node, "axis")
    if axis is None or any(value is None for value in node.inputs):
        return False
    kept: list[oir.Value | None] = []
    for value in node.inputs:
        assert value is not None
        shape = bench.facts.shape(value) if value.is_initializer() and not value.is_graph_input() else None
        if shape is not None and -len(shape) <= axis < len(shape) and shape[axis] == 0:
            continue
        inner = value.producer()
        nested = inner is not None and is_op(inner, "Concat") and attribute(inner, "axis") == axis
        if nested and inner is not None and sole_user(value) is node and list(node.inputs).count(value) == 1:
            kept.extend(inner.inputs)
        else:
            kept.append(value)
    if not kept or kept == list(node.inputs):
        return False
    bench.replace(node, "Concat", kept, {"axis": axis})
    bench.counts["merged_concat"] += 1
    return True
