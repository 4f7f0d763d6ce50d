"""Pause the cyclic garbage collector while many long-lived objects are built.

Building a graph allocates hundreds of thousands of objects that all survive; each generation-2 collection
walks them again, which makes building three times slower (benchmarks/chain.py).
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def collector_paused() -> Iterator[None]:
    """Disable the cyclic collector inside the block and restore its former state behind it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
