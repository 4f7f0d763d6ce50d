"""What calibration costs: CPU time over plain inference, memory over the number of batches.

    GRAPHOPT_ASSETS=... python benchmarks/calibrate.py [--net resnet50] [--samples 32] [--values all]
        [--batches 10,400] [--json calibrate.json]

Time is that of the process on one thread; plain inference and calibration alternate, the ratio is that of the
medians. One collection serves all methods of choosing a range, so there is one figure for what insert-qdq
asks for, or for all activations. Memory is the peak of a fresh process that collects what insert-qdq asks
for. ``--samples 0`` leaves time out, ``--batches ""`` memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

import graphopt
from graphopt.calibrate import Needs, collect
from graphopt.pipeline.calibrating import for_pipeline
from graphopt.pipeline.plugins import load_plugins
from graphopt.runtime.feeds import input_specs, iter_random_feeds, random_feeds
from graphopt.targets import load_target
from tests.corpora import zoo_model

if TYPE_CHECKING:
    from graphopt.ir import Model

CLEAN = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead"
ROUNDS = 3
LIMIT_TIME = 2.0
LIMIT_MEMORY = 1.10
LIMIT_MIB = 1.5e9 / 2**20


def wanted(model: Model, values: str = "insert-qdq") -> Needs:
    """Return what insert-qdq asks for, or the ranges of all values."""
    if values == "all":
        inner = (value.name for node in model.graph for value in node.outputs)
        names = {*(value.name for value in model.graph.inputs), *inner}
        return Needs(ranges=frozenset(name for name in names if name))
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


def calibrated(path: Path, count: int, values: str) -> float:
    """Return the CPU seconds of collecting the ranges of *values* over *count* samples."""
    model = graphopt.load(path)
    needs = wanted(model, values)
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
    # Not getrusage where that can be: a child inherits the peak of its parent there.
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    print(found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(argv: list[str]) -> int:
    """Print both figures; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batches", default="10,400")
    parser.add_argument("--values", choices=("insert-qdq", "all"), default="insert-qdq")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grow", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.grow:
        grow(options.grow, options.samples)
        return 0
    source = zoo_model(Path(os.environ["GRAPHOPT_ASSETS"]), options.net)
    path = source.with_name("clean.onnx")
    graphopt.run(source, CLEAN, out=path, validate=False)
    results: list[dict[str, Any]] = []
    passed = True
    if options.samples:
        pairs = [
            (plain(path, options.samples), calibrated(path, options.samples, options.values))
            for _ in range(ROUNDS)
        ]
        one, two = (statistics.median(each) for each in zip(*pairs, strict=True))
        passed &= two / one <= LIMIT_TIME
        print(f"time: {two / one:.2f}x plain inference over {options.samples} samples (limit {LIMIT_TIME}x)")
        results.append(
            {
                "net": options.net,
                "values": options.values,
                "samples": options.samples,
                "plain_cpu_s": round(one, 3),
                "calibration_cpu_s": round(two, 3),
                "ratio": round(two / one, 3),
            }
        )
    if options.batches:
        counts = [int(each) for each in options.batches.split(",")]
        peaks = [peak(path, count) / 1024 for count in counts]
        growth = peaks[-1] / peaks[0]
        passed &= growth <= LIMIT_MEMORY and peaks[-1] < LIMIT_MIB
        told = ", ".join(f"{each:.0f} MiB at {count}" for each, count in zip(peaks, counts, strict=True))
        print(f"memory: {told} batches, x{growth:.3f} (limits x{LIMIT_MEMORY}, {LIMIT_MIB:.0f} MiB)")
        results.append(
            {"net": options.net, "batches": counts, "peak_mib": [round(each) for each in peaks]}
            | {"growth": round(growth, 3)}
        )
    if options.json:
        kept = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else []
        asked = [[row.get("net"), row.get("values"), row.get("batches")] for row in results]
        kept = [row for row in kept if [row.get("net"), row.get("values"), row.get("batches")] not in asked]
        options.json.write_text(json.dumps(kept + results, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
