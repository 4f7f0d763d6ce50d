"""report.json: the record of a run as one JSON document (schema 1)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from graphopt.errors import PathError, WriteError

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


def write_whole(path: Path, text: str) -> None:
    """Write *text* to *path* whole or not at all: a sibling file takes its place once complete.

    Raises:
        PathError: The folder cannot be written to.
        WriteError: The device failed or is full.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        # A path in another encoding than UTF-8 is shown as well as it can be.
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
        scratch.replace(path)
    except (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise PathError(f"cannot write the file: {error.strerror}", where=str(path)) from error
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise WriteError(f"cannot write the file: {error.strerror}", where=str(path)) from error
