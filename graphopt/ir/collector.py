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

_FROZEN_AT_START = 1000
"""CPython 3.12 freezes about 400 objects of its own when it starts, other versions none."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """Disable the cyclic collector inside the block and restore its former state behind it.

    What the block leaves behind counts as old from then on, so that the next collection of young objects does
    not walk it either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            _age()
            gc.enable()


def _age() -> None:
    """Move all objects to the oldest generation; unlike a collection, it looks at none of them."""
    if gc.get_freeze_count() < _FROZEN_AT_START:  # else what the caller has frozen would thaw
        gc.freeze()
        gc.unfreeze()
