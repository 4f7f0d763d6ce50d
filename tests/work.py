"""How much work a function does, counted instead of timed, and how much memory it takes at most."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

# Not getrusage: a child inherits the peak of its parent there.
_PRINT_PEAK = """
from pathlib import Path
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(peak.split()[1])
"""


def peak_kib(code: str, *arguments: str) -> int:
    """Return the peak memory, in KiB, of a process of its own that runs *code*.

    One thread: others have buffers of their own, and wait for each other on a busy machine.

    Args:
        code: Python, indented as a whole; it finds *arguments* from ``sys.argv[1]``.
        arguments: What it is given.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    command = [sys.executable, "-c", textwrap.dedent(code) + _PRINT_PEAK, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


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
