"""How much work a function does, counted instead of timed: the same on every machine, however busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_run(function: Callable[[], object]) -> int:
    """Return how many lines of Python *function* executes, calls included.

    What C code does inside one line is not seen; loops, comprehensions and everything called are.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def growth(work: Callable[[int], Callable[[], object]], small: int, large: int) -> float:
    """Return how much more a unit costs in *large* than in *small*: 1 where work is linear.

    Args:
        work: Prepares a problem of a size and returns what is to be counted.
        small: Size of the smaller problem.
        large: Size of the larger one.
    """
    work(small)()  # imports and caches are no work of the first size
    return (lines_run(work(large)) / large) / (lines_run(work(small)) / small)
