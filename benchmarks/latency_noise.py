"""How far two measurements of the same model are apart: the house's method against the wall-clock minimum.

    python benchmarks/latency_noise.py MODEL.onnx [--busy N] [--repeat R] [--dim name=value]...

Measures MODEL against itself R times while N busy processes load the machine, and prints the largest distance
of the ratio from 1 for both methods, as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.ir.lower import load
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.latency import measure_latency
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from graphopt.runtime.session import Feeds

_RUNS = 50


def wall_clock_minimum(model: Path, feeds: Feeds) -> float:
    """Return the shortest of 50 runs in seconds, as many tools measure."""
    run = open_session(model).bind(feeds)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--busy", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--dim", action="append", default=[])
    arguments = parser.parse_args()
    dims = {name: int(size) for name, _, size in (each.partition("=") for each in arguments.dim)}
    feeds = random_feeds(load(arguments.model), 1, dims=dims)[0]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    try:
        results = [measure_latency(arguments.model, arguments.model, feeds) for _ in range(arguments.repeat)]
        minima = [
            wall_clock_minimum(arguments.model, feeds) / wall_clock_minimum(arguments.model, feeds)
            for _ in range(arguments.repeat)
        ]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    record = {
        "model": arguments.model.name,
        "busy_processes": arguments.busy,
        "repeats": arguments.repeat,
        "inference_s": results[0].before_s,
        "house_worst": max(abs(result.ratio - 1) for result in results),
        "house_noise_worst": max(abs(statistics.median(result.noise_ratios) - 1) for result in results),
        "wall_clock_minimum_worst": max(abs(ratio - 1) for ratio in minima),
    }
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
