"""report.json: the record of a run as one JSON document (schema 1)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from graphopt.ir.textfiles import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.record import RunRecord


def to_text(record: RunRecord) -> str:
    """Return the JSON document of *record*, indented, with a final newline.

    Numbers that are not finite are null: JSON has no word for them. Characters outside ASCII are escaped,
    because a path need not be valid Unicode and a terminal need not speak UTF-8.
    """
    return json.dumps(record.to_json(), indent=2, allow_nan=False, default=_plain) + "\n"


def _plain(value: object) -> object:
    """Return what a pass left in ``extra`` as JSON: NumPy scalars as numbers, the rest as it prints."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        number = item()
        return None if isinstance(number, float) and not math.isfinite(number) else number
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def write(record: RunRecord, folder: Path) -> None:
    """Write ``report.json`` into *folder*.

    Raises:
        PathError: The folder cannot be written to.
        WriteError: The file could not be written whole.
    """
    write_whole(folder / "report.json", to_text(record))
