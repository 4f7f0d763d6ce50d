"""Operators that read or write by computed indices: what is indexed stays whole, what comes along passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.view import NodeView

_BY_INDEX = "reads or writes it by computed indices"


def _everything(view: NodeView) -> None:
    view.lock_inputs(_BY_INDEX)


def _gather_nd(view: NodeView) -> None:
    """The last dim of the indices says how many dims of the data, behind the batch dims, it addresses."""
    axes = view.axes(0)
    batch = view.attribute("batch_dims", 0)
    addressed = batch + view.shape(1)[-1]
    if view.shape(1)[-1] < 0:
        addressed = len(axes)
    view.lock_inputs(_BY_INDEX, (1,))
    for axis in axes[:addressed]:
        view.lock(axis, _BY_INDEX)
    rest = axes[addressed:]
    view.emit([*[None] * (len(view.output_shape()) - len(rest)), *rest])


def _scatter_nd(view: NodeView) -> None:
    axes, updates = view.axes(0), view.axes(2)
    addressed = view.shape(1)[-1]
    if addressed < 0:
        view.lock_inputs(_BY_INDEX)
        return
    view.lock_inputs(_BY_INDEX, (1,))
    rest = axes[addressed:]
    for axis in (*axes[:addressed], *updates[: len(updates) - len(rest)]):
        view.lock(axis, _BY_INDEX)
    tied = updates[len(updates) - len(rest) :]
    for one, other in zip(rest, tied, strict=True):
        view.same(one, other)
    result: list[Array | None] = [
        one if other is not None else None for one, other in zip(rest, tied, strict=True)
    ]
    view.emit([*[None] * addressed, *result])


def _compress(view: NodeView) -> None:
    axes = view.axes(0)
    axis = view.attribute("axis")
    view.lock_inputs("says what to keep", (1,))
    if axis is None:
        view.lock_inputs(_BY_INDEX, (0,))
        return
    axis %= len(axes)
    view.lock(axes[axis], _BY_INDEX)
    view.emit([None if k == axis else found for k, found in enumerate(axes)])


RULES = [
    *[
        ChannelRule(name, _everything)
        for name in (
            "GatherElements",
            "NonMaxSuppression",
            "NonZero",
            "OneHot",
            "Scatter",
            "ScatterElements",
            "Unique",
        )
    ],
    ChannelRule("GatherND", _gather_nd),
    ChannelRule("ScatterND", _scatter_nd),
    ChannelRule("TensorScatter", _everything),
    ChannelRule("Compress", _compress),
]
