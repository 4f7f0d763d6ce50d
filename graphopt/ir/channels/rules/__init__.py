"""The rules of the operators of ONNX and com.microsoft, one file a family of operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.ir.channels.types import ChannelRule

Rules = dict[tuple[str, str], "ChannelRule"]


def rule_table(extra: Iterable[ChannelRule] = ()) -> Rules:
    """Return all rules by (domain, op_type); those of *extra* go before the built-in ones."""
    from graphopt.ir.channels.rules import (
        attention,
        control,
        indexing,
        linear,
        movement,
        picking,
        pointwise,
        quantized,
        recurrent,
        sizes,
    )

    table: Rules = {}
    modules = (
        linear,
        pointwise,
        movement,
        picking,
        sizes,
        control,
        recurrent,
        quantized,
        attention,
        indexing,
    )
    for module in modules:
        for rule in module.RULES:
            table[rule.domain, rule.op_type] = rule
    for rule in extra:
        table[rule.domain, rule.op_type] = rule
    return table
