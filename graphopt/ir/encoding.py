"""What file names may hold; not in ``files``, so that a child that only runs models loads no ONNX library."""

from __future__ import annotations


def is_utf8(text: str) -> bool:
    """Return whether *text* has a form in UTF-8; the name of a file in another encoding has none."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
