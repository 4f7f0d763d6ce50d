"""Operators that read sizes: whoever computes with a size goes on seeing the original number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.view import NodeView


def _shape(view: NodeView) -> None:
    view.emit_nothing()


def _size(view: NodeView) -> None:
    view.lock_inputs("its number of elements is read")
    view.emit_nothing()


def _keep_shape(cut: NodeCut) -> None:
    """Consumers of sizes are told the new ones themselves; arithmetic like sqrt(d) stays what it was."""
    keeps = cut.keeps(0)
    first, last, _ = slice(cut.attribute("start", 0), cut.attribute("end")).indices(len(keeps))
    numbers = {k - first: len(keep) for k, keep in enumerate(keeps) if keep is not None and first <= k < last}
    if numbers:
        cut.override_output(numbers, last - first)


RULES = [ChannelRule("Shape", _shape, _keep_shape), ChannelRule("Size", _size)]
