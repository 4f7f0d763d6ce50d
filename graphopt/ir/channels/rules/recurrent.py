"""LSTM, GRU and RNN: hidden unit h is one index in every gate, in every direction and in every state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.view import NodeView


def _recurrent(gates: int) -> Callable[[NodeView], None]:
    def constrain(view: NodeView) -> None:
        """W [dirs, gates * hidden, input], R [dirs, gates * hidden, hidden], B [dirs, 2 * gates * hidden]."""
        data, first_dim = view.axes(0), view.attribute("layout", 0)
        weight, recurrence = view.axes(1), view.axes(2)
        hidden = view.shape(2)[2]
        units = view.slots.fresh(hidden) if hidden > 1 else None
        view.contract(0, 2, 1, 2)
        for axes in (weight, recurrence):
            view.lock(axes[0], "one of its directions")
        many = None if units is None else np.tile(units, gates)
        view.same(many, weight[1])
        view.same(many, recurrence[1])
        view.same(units, recurrence[2])
        view.produces(1, weight[1])
        view.recurs(2, 2)
        if view.has(3):
            view.same(None if units is None else np.tile(units, 2 * gates), view.axes(3)[1])
            view.lock(view.axes(3)[0], "one of its directions")
        for index in (5, 6):
            if view.has(index):
                *outer, state = view.axes(index)
                view.same(units, state, "holds a state that is given in full")
                for axis in outer:
                    view.lock(axis, "one of its directions or samples")
        if view.has(7):
            view.same(None if units is None else np.tile(units, 3), view.axes(7)[1])
            view.lock(view.axes(7)[0], "one of its directions")
        view.lock_inputs("says how long each sample is", (4,))
        for axis in data[:2]:
            view.lock(axis, "runs along it" if axis is data[first_dim] else "one of its samples")
        view.emit([None, None, None, units])
        for index in (1, 2):
            view.emit([None, None, units], index)

    return constrain


def _set_hidden(cut: NodeCut) -> None:
    hidden = cut.count(2, 2)
    if cut.attribute("hidden_size") is not None and hidden is not None:
        cut.set_attribute("hidden_size", hidden)


RULES = [
    ChannelRule("LSTM", _recurrent(4), _set_hidden),
    ChannelRule("GRU", _recurrent(3), _set_hidden),
    ChannelRule("RNN", _recurrent(1), _set_hidden),
    ChannelRule(
        "DynamicQuantizeLSTM", lambda view: view.lock_inputs("its weights are packed"), None, "com.microsoft"
    ),
]
