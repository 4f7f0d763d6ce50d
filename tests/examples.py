"""How many examples hypothesis tries: a quarter of them where GRAPHOPT_EXAMPLES=few, as tox.ini sets it."""

from __future__ import annotations

import os

FEW = os.environ.get("GRAPHOPT_EXAMPLES") == "few"


def examples(count: int) -> int:
    """Return *count*, or a quarter of it, five at least."""
    return max(5, count // 4) if FEW else count
