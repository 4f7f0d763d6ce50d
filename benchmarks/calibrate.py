"""What calibration costs: CPU time over plain inference, memory over the number of batches.

    GRAPHOPT_ASSETS=... python benchmarks/calibrate.py [--net resnet50] [--samples 32] [--batches 10,400]

Time is that of the process on one thread; plain inference and calibration alternate, the ratio is that of the
medians. One collection serves all methods of choosing a range, so there is one figure. Memory is the peak of
a fresh process.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

import graphopt
from graphopt.calibrate import collect
from graphopt.pipeline.calibrating import for_pipeline
from graphopt.pipeline.plugins import load_plugins
from graphopt.runtime.feeds import input_specs, iter_random_feeds, random_feeds
from graphopt.targets import load_target
from tests.corpora import zoo_model

if TYPE_CHECKING:
    from graphopt.calibrate import Needs
    from graphopt.ir import Model

CLEAN = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead"
ROUNDS = 3
LIMIT_TIME = 2.0
LIMIT_MEMORY = 1.10


def wanted(model: Model) -> Needs:
    """Return what insert-qdq asks for."""
    return for_pipeline(model, "insert-qdq", load_plugins(), load_target("ort-cpu")).needs


def plain(path: Path, count: int) -> float:
    """Return the CPU seconds of *count* inferences."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = random_feeds(graphopt.load(path), count, 0)
    session.run(None, feeds[0])
    start = time.process_time()
    for feed in feeds:
        session.run(None, feed)
    return time.process_time() - start


def calibrated(path: Path, count: int) -> float:
    """Return the CPU seconds of collecting what insert-qdq asks for over *count* samples."""
    model = graphopt.load(path)
    needs = wanted(model)
    feeds = random_feeds(model, count + 1, 0)
    start = time.process_time()
    collect(model, feeds[:1], needs)
    middle = time.process_time()
    collect(model, feeds, needs)
    # What a collection costs whatever the number of samples is taken off: the session, for one.
    return (time.process_time() - middle) - (middle - start)


def peak(path: Path, count: int) -> int:
    """Return the peak memory in KiB of a process that calibrates over *count* samples."""
    command = [sys.executable, "-W", "ignore", __file__, "--grow", str(path), "--samples", str(count)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(out.stdout.split()[-1])


def grow(path: str, count: int) -> None:
    """Calibrate and print the peak of this process."""
    model = graphopt.load(path)
    specs = input_specs(model)
    collect(model, iter_random_feeds(specs, count, 0, {}), wanted(model))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(argv: list[str]) -> int:
    """Print both figures; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batches", default="10,400")
    parser.add_argument("--grow", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.grow:
        grow(options.grow, options.samples)
        return 0
    source = zoo_model(Path(os.environ["GRAPHOPT_ASSETS"]), options.net)
    path = source.with_name("clean.onnx")
    graphopt.run(source, CLEAN, out=path, validate=False)
    pairs = [(plain(path, options.samples), calibrated(path, options.samples)) for _ in range(ROUNDS)]
    ratio = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)
    print(
        f"time: {ratio:.2f}x plain inference over {options.samples} samples (limit {LIMIT_TIME}x)", flush=True
    )
    few, many = (int(each) for each in options.batches.split(","))
    first, last = peak(path, few), peak(path, many)
    growth = last / first
    print(f"memory: {first / 1024:.0f} MiB at {few}, {last / 1024:.0f} MiB at {many} batches, x{growth:.3f}")
    return 0 if ratio <= LIMIT_TIME and growth <= LIMIT_MEMORY else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
