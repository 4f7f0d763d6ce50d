"""Rows of a benchmark's result file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def merge(path: Path, rows: Iterable[Mapping[str, Any]], order: Iterable[str], indent: int = 2) -> None:
    """Put *rows* into the file at *path*; cases that did not run this time stay as they were.

    Args:
        path: The file; it need not exist.
        rows: What was measured, each with its "case".
        order: All cases, in the order that the file is to have.
        indent: Spaces of each level.
    """
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = {each["case"]: each for each in (*known, *rows)}
    ordered = [found[case] for case in order if case in found]
    path.write_text(json.dumps(ordered, indent=indent) + "\n", encoding="utf-8")
