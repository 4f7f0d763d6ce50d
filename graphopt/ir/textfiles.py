"""Text files that are there whole or not at all."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from graphopt.errors import PathError, WriteError

if TYPE_CHECKING:
    from pathlib import Path


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
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        message = f"cannot write the file: {error.strerror}"
        if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise PathError(message, where=str(path)) from error
        raise WriteError(message, where=str(path)) from error
