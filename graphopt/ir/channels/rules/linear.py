"""Operators that sum products: Conv, ConvTranspose, Gemm, MatMul, Einsum and their fused kin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.channels.types import ChannelRule
from graphopt.ir.semantics import MICROSOFT_DOMAIN

if TYPE_CHECKING:
    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.view import NodeView

SPATIAL = "slides along it"


def lock_spatial(view: NodeView, data: int, weight: int) -> None:
    """Lock all dims behind the second of the data and of its kernel."""
    for axis in view.axes(data)[2:]:
        view.lock(axis, SPATIAL)
    for axis in view.axes(weight)[2:]:
        view.fix(axis)


def group_split(view: NodeView, axis: Array | None, groups: int) -> tuple[Array | None, Array | None]:
    """Return (groups, channels of one group) of the channels of a grouped convolution."""
    if axis is None:
        return None, None
    rows, columns = view.split(axis, (groups, len(axis) // groups))
    return rows, columns


def convolve(view: NodeView, data: int = 0, weight: int = 1, bias: int = 2) -> Array | None:
    """State the equations of Conv, X [N, C, ...], W [M, C / group, ...], and return the axis of M."""
    lock_spatial(view, data, weight)
    groups = view.attribute("group", 1)
    outputs, inputs = view.axes(weight)[:2]
    channels = view.axes(data)[1]
    if groups == 1:
        view.contract(data, 1, weight, 1)
    elif inputs is None and view.shape(weight)[1] == 1 and view.shape(weight)[0] == groups:
        view.same(channels, outputs)
    else:
        of_group, inside = group_split(view, channels, groups)
        view.same(inside, inputs)
        view.summed(data, 1)
        made, _ = group_split(view, outputs, groups)
        view.same(of_group, made)
    view.produces(weight, outputs)
    if view.has(bias):
        view.same(outputs, view.axes(bias)[0])
    return outputs


def _emit_spatial(view: NodeView, channels: Array | None) -> None:
    rank = len(view.output_shape())
    view.emit([view.axes(0)[0], channels, *[None] * (rank - 2)])


def _conv(view: NodeView) -> None:
    outputs = convolve(view)
    _emit_spatial(view, outputs)
    if view.node.op_type == "FusedConv" and view.has(3):
        axes = view.align(
            [[view.axes(0)[0], outputs], view.axes(3)[:2]],
            [view.output_shape()[:2]] * 2,
            view.output_shape()[:2],
        )
        for axis in view.axes(3)[2:]:
            view.lock(axis, SPATIAL)
        view.emit([*axes, *[None] * (len(view.output_shape()) - 2)])


def _conv_transpose(view: NodeView) -> None:
    """W is [C, M / group, ...]; the outputs of one group stand beside each other."""
    lock_spatial(view, 0, 1)
    groups = view.attribute("group", 1)
    inputs, outputs = view.axes(1)[:2]
    channels = view.axes(0)[1]
    if groups == 1:
        view.contract(0, 1, 1, 0)
        made = outputs
        view.produces(1, outputs)
    else:
        view.same(channels, inputs)
        of_group, _ = group_split(view, channels, groups)
        if view.shape(1)[0] != groups:
            view.summed(0, 1)
        made = view.outer([of_group, outputs], [groups, view.shape(1)[1]])
        view.produces(1, made)
    if view.has(2):
        view.same(made, view.axes(2)[0])
    _emit_spatial(view, made)


def _deform_conv(view: NodeView) -> None:
    view.lock_inputs("offsets and masks come by kernel position", (2, 4))
    _emit_spatial(view, convolve(view, bias=3))


def regroup_conv(cut: NodeCut, weight: int = 1) -> None:
    """Set ``group`` to the kept channels over those of one group; X [N, C, ...], W [M, C / group, ...]."""
    if cut.attribute("group", 1) == 1:
        return
    channels, inside = cut.count(0, 1), cut.count(weight, 1)
    if channels is not None and inside:
        cut.set_attribute("group", channels // inside)


def _regroup_transposed(cut: NodeCut) -> None:
    groups = cut.attribute("group", 1)
    made, inside = cut.count_output(0, 1), cut.count(1, 1)
    if groups != 1 and made is not None and inside:
        cut.set_attribute("group", made // inside)


def _gemm(view: NodeView) -> None:
    transpose_a, transpose_b = view.attribute("transA", 0), view.attribute("transB", 0)
    a, b = view.axes(0), view.axes(1)
    view.contract(0, 0 if transpose_a else 1, 1, 1 if transpose_b else 0)
    rows, columns = a[1 if transpose_a else 0], b[0 if transpose_b else 1]
    view.produces(1, columns)
    view.produces(0, rows)
    result = [rows, columns]
    if view.has(2):
        dims = view.output_shape()
        result = view.align([result, view.axes(2)], [dims, view.shape(2)], dims)
    view.emit(result)


def matmul(view: NodeView, *, transpose_a: bool = False, transpose_b: bool = False) -> None:
    """State the equations of a product over the last two dims, the leading ones broadcast."""
    a, b, dims_a, dims_b = view.axes(0), view.axes(1), view.shape(0), view.shape(1)
    contracted_a = -2 if transpose_a and len(a) > 1 else -1
    contracted_b = -1 if transpose_b or len(b) == 1 else -2
    view.contract(0, contracted_a % len(a), 1, contracted_b % len(b))
    rows = a[-1 if transpose_a else -2] if len(a) > 1 else None
    columns = b[-2 if transpose_b else -1] if len(b) > 1 else None
    view.produces(1, columns)
    view.produces(0, rows)
    dims = view.output_shape()
    batch = dims[: len(dims) - (len(a) > 1) - (len(b) > 1)]
    result = view.align([a[:-2], b[:-2]], [dims_a[:-2], dims_b[:-2]], batch)
    if not view.is_weight(0) and not view.is_weight(1):
        for found in result:
            view.mark(found, "heads")
        for found in (a[contracted_a], rows, columns):
            view.mark(found, "head_dims")
    if len(a) > 1:
        result.append(rows)
    if len(b) > 1:
        result.append(columns)
    view.emit(result)


def _matmul(view: NodeView) -> None:
    matmul(view)


def _fused_matmul(view: NodeView) -> None:
    if view.attribute("transBatchA", 0) or view.attribute("transBatchB", 0):
        view.lock_inputs("transposes batch dims inside")
        return
    matmul(
        view,
        transpose_a=bool(view.attribute("transA", 0)),
        transpose_b=bool(view.attribute("transB", 0)),
    )


def parse_equation(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]] | None:
    """Return the index names of each operand and of the result of an Einsum; "0", "1", ... for an ellipsis.

    None where the equation does not fit the ranks.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    width = max(
        (
            rank - len(term.replace("...", ""))
            for term, rank in zip(terms, ranks, strict=True)
            if "..." in term
        ),
        default=0,
    )
    operands = []
    for term, rank in zip(terms, ranks, strict=True):
        head, dots, tail = term.partition("...")
        own = rank - len(head) - len(tail)
        if own < 0 or (own and not dots):
            return None
        operands.append([*head, *[str(k) for k in range(width - own, width)], *tail])
    if arrow:
        head, dots, tail = right.partition("...")
        result = [*head, *([str(k) for k in range(width)] if dots else []), *tail]
    else:
        letters = [name for operand in operands for name in operand if not name.isdigit()]
        result = [*map(str, range(width)), *sorted({name for name in letters if letters.count(name) == 1})]
    return operands, result


def _einsum(view: NodeView) -> None:
    count = len(view.node.inputs)
    parsed = parse_equation(
        view.attribute("equation", ""), [len(view.shape(index)) for index in range(count)]
    )
    if parsed is None:
        view.lock_inputs("its equation does not fit its inputs")
        return
    operands, result = parsed
    places: dict[str, list[tuple[int, int]]] = {}
    for index, operand in enumerate(operands):
        for axis, name in enumerate(operand):
            if view.shape(index)[axis] != 1:
                places.setdefault(name, []).append((index, axis))
    found: dict[str, Array | None] = {}
    weights = [view.is_weight(index) for index in range(count)]
    for name, uses in places.items():
        axes = [view.axes(index)[axis] for index, axis in uses]
        first = next((one for one in axes if one is not None), None)
        for one in axes:
            view.same(first, one)
        found[name] = first if all(one is not None for one in axes) else None
        inputs = [index for index, _ in uses]
        if len(set(inputs)) < len(inputs):
            view.lock(first, "takes a diagonal")
        elif name not in result and len(uses) == 1:
            view.summed(*uses[0])
        elif name not in result:
            for other in uses[1:]:
                view.contract(*uses[0], *other)
        elif len(uses) == 1:
            view.produces(inputs[0], first)
    if count == 2 and not any(weights):
        shared = {name for name, uses in places.items() if len(uses) == 2 and name in result}
        for name, labels in found.items():
            view.mark(labels, "heads" if name in shared else "head_dims")
    view.emit([found.get(name) for name in result])


def _matmul_nbits(view: NodeView) -> None:
    """B is [N, blocks, bytes], packed along K: whole outputs may go, inputs may not."""
    view.lock_inputs("maps its groups", (4,))
    view.lock(view.axes(0)[-1], "its weight is packed along this dim")
    outputs = view.weight_axes(1)
    columns = view.attribute("N", 0)
    for axis in outputs[1:]:
        view.lock(axis, "packed")
    made = outputs[0]
    for index in (2, 3, 5):
        if not view.has(index):
            continue
        parameter = view.weight_axes(index)[0]
        if parameter is not None and len(parameter) != columns:
            parameter, blocks = view.split(parameter, (columns, len(parameter) // columns))
            view.lock(blocks, "packed")
        view.same(made, parameter)
    view.produces(1, made)
    view.emit([*view.axes(0)[:-1], made])


def _set_columns(cut: NodeCut) -> None:
    keep = cut.keep(1, 0)
    if keep is not None:
        cut.set_attribute("N", int(keep.sum()))


RULES = [
    ChannelRule("Conv", _conv, regroup_conv),
    ChannelRule("FusedConv", _conv, regroup_conv, MICROSOFT_DOMAIN),
    ChannelRule("ConvTranspose", _conv_transpose, _regroup_transposed),
    ChannelRule("DeformConv", _deform_conv, regroup_conv),
    ChannelRule("Gemm", _gemm),
    ChannelRule("FusedGemm", _gemm, None, MICROSOFT_DOMAIN),
    ChannelRule("MatMul", _matmul),
    ChannelRule("FusedMatMul", _fused_matmul, None, MICROSOFT_DOMAIN),
    ChannelRule("TransposeMatMul", _fused_matmul, None, MICROSOFT_DOMAIN),
    ChannelRule("Einsum", _einsum),
    ChannelRule("MatMulNBits", _matmul_nbits, _set_columns, MICROSOFT_DOMAIN),
]
