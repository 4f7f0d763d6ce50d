"""plan.toml of insert-qdq: one item a node, ``node`` and ``quantise``, written by sensitivity or by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import OptionError
from graphopt.planfile import read_plan

if TYPE_CHECKING:
    from pathlib import Path

INSERT_QDQ = "insert-qdq"


def read_decisions(path: Path) -> dict[str, bool]:
    """Return whether each node that the plan in *path* names is to be quantised.

    Raises:
        PathError: There is no such file.
        OptionError: The plan is malformed, or for another pass.
    """
    found: dict[str, bool] = {}
    for number, item in enumerate(read_plan(path, INSERT_QDQ).items, 1):
        node, quantise = item.get("node"), item.get("quantise")
        if not isinstance(node, str) or not isinstance(quantise, bool):
            raise OptionError(
                f"item {number} of the plan needs node = TEXT and quantise = true or false", where=str(path)
            )
        if found.setdefault(node, quantise) != quantise:
            raise OptionError(f"item {number} contradicts an earlier one about {node!r}", where=str(path))
    return found
