"""Time of ``import graphopt`` in a fresh interpreter, and what it pulls in.

Prints the median over fresh processes of what ``-X importtime`` says the import takes, and the heaviest parts
of the last run. The exit status is 1 above the limit, or where a heavy package is imported at all.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys

LIMIT_S = 0.3
HEAVY = (
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "networkx",
    "onnx_graphsurgeon",
    "pydantic",
    "typer",
    "rich",
)
FORBIDDEN = ("onnx", "onnx_ir", "onnxruntime", "networkx", "onnx_graphsurgeon")
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="fresh processes")
    options = parser.parse_args(arguments)
    times = []
    modules: dict[str, int] = {}
    for _ in range(options.rounds):
        modules = _import()
        times.append(modules["graphopt"] / 1e6)
    median = statistics.median(times)
    print(f"import graphopt: median {median:.3f} s, min {min(times):.3f} s, max {max(times):.3f} s")
    for name, microseconds in sorted(modules.items(), key=lambda item: -item[1])[:8]:
        print(f"  {microseconds / 1e6:7.3f} s  {name}")
    loaded = [name for name in HEAVY if name in modules]
    print(f"heavy packages loaded: {', '.join(loaded) or 'none'}")
    return 1 if median > LIMIT_S or any(name in modules for name in FORBIDDEN) else 0


def _import() -> dict[str, int]:
    """Return the cumulative microseconds of every module that ``import graphopt`` loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import graphopt"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {}
    for line in done.stderr.splitlines():
        if (match := _LINE.match(line)) is not None:
            modules[match[4]] = int(match[2])
    return modules


if __name__ == "__main__":
    sys.exit(main())
