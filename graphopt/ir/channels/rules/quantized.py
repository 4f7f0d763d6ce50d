"""QuantizeLinear, DequantizeLinear, integer forms of Conv and MatMul: scales go with what they scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.channels.rules.linear import convolve, regroup_conv
from graphopt.ir.channels.types import ChannelRule
from graphopt.ir.semantics import MICROSOFT_DOMAIN

if TYPE_CHECKING:
    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.view import NodeView


def _scaled(view: NodeView) -> None:
    """A scale for each index of a dim goes with it; of blocked scales only whole blocks may go."""
    axes = view.weight_axes(0)
    rank = len(axes)
    axis = view.attribute("axis", 1) % rank if rank else 0
    block = view.attribute("block_size", 0)
    for index in (1, 2):
        if not view.has(index):
            continue
        scale, dims = view.weight_axes(index), view.shape(index)
        if block and len(scale) == rank:
            for k in range(rank):
                if k != axis:
                    view.same(axes[k], scale[k])
            _tie_blocks(view, axes[axis], scale[axis], dims[axis], block)
        elif len(scale) == 1 and dims[0] != 1 and rank:
            view.same(axes[axis], scale[0])
    view.emit(axes)


def _tie_blocks(view: NodeView, axis: Array | None, scale: Array | None, blocks: int, block: int) -> None:
    if axis is None:
        view.lock(scale, "meets a dim that is fixed")
    elif blocks * block != len(axis):
        view.lock(axis, "its last block is not full")
        view.lock(scale, "its last block is not full")
    else:
        whole, inside = view.split(axis, (blocks, block))
        view.lock(inside, "is quantised in blocks")
        view.same(whole, scale)


def _dynamic(view: NodeView) -> None:
    """The scale is taken over everything, so that whatever goes may change it."""
    for axis in view.axes(0):
        view.approximate(axis)
    view.emit(view.axes(0))
    view.emit_nothing(1)
    view.emit_nothing(2)


def _per_output(view: NodeView, outputs: Array | None, *indices: int) -> None:
    """Tie scales, zero points and biases that hold one number an output."""
    for index in indices:
        if view.has(index) and len(view.shape(index)) == 1 and view.shape(index)[0] != 1:
            view.same(outputs, view.weight_axes(index)[0])


def _qlinear_conv(view: NodeView) -> None:
    """X, its scale and zero point, W, its own, those of Y, and an int32 bias."""
    outputs = convolve(view, 0, 3, bias=99)
    _per_output(view, outputs, 4, 5, 8)
    view.emit([view.axes(0)[0], outputs, *[None] * (len(view.output_shape()) - 2)])


def _conv_integer(view: NodeView) -> None:
    outputs = convolve(view, 0, 1, bias=99)
    _per_output(view, outputs, 3)
    view.emit([view.axes(0)[0], outputs, *[None] * (len(view.output_shape()) - 2)])


def _regroup_qlinear(cut: NodeCut) -> None:
    regroup_conv(cut, weight=3)


def _product(view: NodeView, second: int, *parameters: int) -> None:
    a, b = view.axes(0), view.axes(second)
    if len(a) < 2 or len(b) < 2:
        view.lock_inputs("multiplies vectors")
        return
    view.contract(0, len(a) - 1, second, len(b) - 2)
    view.produces(second, b[-1])
    _per_output(view, b[-1], *parameters)
    dims = view.output_shape()
    batch = view.align([a[:-2], b[:-2]], [view.shape(0)[:-2], view.shape(second)[:-2]], dims[:-2])
    view.emit([*batch, a[-2], b[-1]])


def _matmul_integer(view: NodeView) -> None:
    _product(view, 1, 3)


def _qlinear_matmul(view: NodeView) -> None:
    _product(view, 3, 4, 5)


def _matmul_integer_to_float(view: NodeView) -> None:
    _product(view, 1, 3, 5, 6)


def _dynamic_quantize_matmul(view: NodeView) -> None:
    """The scale of A is taken over everything in it."""
    for axis in view.axes(0):
        view.approximate(axis)
    _product(view, 1, 2, 3, 4)


def _qlinear_elementwise(view: NodeView) -> None:
    """Two operands, each followed by its scale and zero point."""
    dims = view.output_shape()
    view.emit(view.broadcast((0, 3), len(dims), dims))


def _qlinear_first(view: NodeView) -> None:
    view.emit(view.axes(0))


def _qlinear_pool(view: NodeView) -> None:
    axes = view.axes(0)
    if view.attribute("channels_last", 0):
        view.lock_inputs("holds channels last", (0,))
        return
    for axis in axes[2:]:
        view.lock(axis, "slides along it")
    view.emit([*axes[:2], *[None] * (len(axes) - 2)])


RULES = [
    ChannelRule("QuantizeLinear", _scaled),
    ChannelRule("DequantizeLinear", _scaled),
    ChannelRule("QuantizeLinear", _scaled, None, MICROSOFT_DOMAIN),
    ChannelRule("DequantizeLinear", _scaled, None, MICROSOFT_DOMAIN),
    ChannelRule("DynamicQuantizeLinear", _dynamic),
    ChannelRule("QLinearConv", _qlinear_conv, _regroup_qlinear),
    ChannelRule("ConvInteger", _conv_integer, regroup_conv),
    ChannelRule("MatMulInteger", _matmul_integer),
    ChannelRule("QLinearMatMul", _qlinear_matmul),
    ChannelRule("QLinearAdd", _qlinear_elementwise, None, MICROSOFT_DOMAIN),
    ChannelRule("QLinearMul", _qlinear_elementwise, None, MICROSOFT_DOMAIN),
    ChannelRule("QLinearLeakyRelu", _qlinear_first, None, MICROSOFT_DOMAIN),
    ChannelRule("QLinearSigmoid", _qlinear_first, None, MICROSOFT_DOMAIN),
    ChannelRule("QLinearAveragePool", _qlinear_pool, None, MICROSOFT_DOMAIN),
    ChannelRule("QLinearGlobalAveragePool", _qlinear_pool, None, MICROSOFT_DOMAIN),
    ChannelRule("MatMulIntegerToFloat", _matmul_integer_to_float, None, MICROSOFT_DOMAIN),
    ChannelRule("DynamicQuantizeMatMul", _dynamic_quantize_matmul, None, MICROSOFT_DOMAIN),
]
