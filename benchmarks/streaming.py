"""Passes over large external weights: time beside raw reading and writing, and peak memory.

    python benchmarks/streaming.py [--gib 4] [--trials 3] [--others] [--folder FOLDER] [--output FILE]

Generates a model of matrix products with external weights, quantises it to 8 and to 4 bits in a child process
and compares time with raw input and output, and takes the child's peak memory. Raw is one thread that reads
the same file once, from a warm page cache through a buffer of 16 MiB, writes as many bytes as the quantised
model has, and makes them durable with fsync as graphopt does. The time of the child is that of graphopt.run,
its own fsync included; a run on a model of one small matrix goes before, so that imports stand apart, in
start_s (CPU). Raw and child alternate; time_ratio is that of the medians of wall time, cpu_ratio that of the
medians of CPU time: of one thread here, of two there. ``--others`` does the same with other passes over
weights, whose time has no limit. One line of JSON a measurement; the exit status is 1 where a limit is
missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 4096
BLOCK_BYTES = 16 << 20
STREAM_TIME_LIMIT = 2.0
STREAM_PEAK_LIMIT_GB = 0.5
STREAMED = ("quantize-weights", "quantize-weights{bits=4}")
OTHERS = (
    "convert-float16",
    "convert-float16{form=storage}",
    "sparsify-weights",
    "sparsify-weights{scope=row}",
    'sparsify-weights{pattern="n:m"}',
    "sparsify-weights{pattern=block}",
    "share-weights",
    "factorize-lowrank{rank=256}",
)
"""Passes whose memory has the limit of the stream, and whose time has none."""


def report(results: list[dict[str, Any]], **line: Any) -> None:
    """Print one measurement and keep it."""
    results.append(line)
    print(json.dumps(line), flush=True)


def make_large(folder: Path, total_bytes: int, side: int = SIDE) -> Path:
    """Write a chain of square products with *total_bytes* of external weights and return its path."""
    from onnx import TensorProto, helper

    count = max(1, total_bytes // (side * side * 4))
    base = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32) * 0.02
    nodes, tensors = [], []
    with (folder / "weights.bin").open("wb") as file:
        for k in range(count):
            file.write(np.roll(base, 97 * k).data)
            tensor = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[side, side])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "weights.bin"),
                ("offset", k * base.nbytes),
                ("length", base.nbytes),
            ):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"], name=f"product{k}"))
    infos = [helper.make_tensor_value_info(name, 1, [1, side]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run_child(model: Path, out: Path, pipeline: str) -> None:
    """Run a pipeline in this process; prints seconds and peak resident bytes."""
    import graphopt

    with tempfile.TemporaryDirectory() as name:
        small = make_large(Path(name), 0, side=512)
        cpu = time.process_time()
        graphopt.run(small, pipeline, out=small.with_name("out.onnx"), validate=False)
        start_s = time.process_time() - cpu
    start, cpu = time.perf_counter(), time.process_time()
    graphopt.run(model, pipeline, out=out, validate=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    (line,) = [
        text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM")
    ]
    found = {
        "seconds": seconds,
        "cpu_s": cpu,
        "start_s": start_s,
        "peak_gb": int(line.split()[1]) * 1024 / 1e9,
    }
    print(json.dumps(found))


def raw_seconds(source: Path, target: Path, write_bytes: int) -> tuple[float, float]:
    """Read all of *source* and write *write_bytes*, durably; return seconds, of the clock and of the CPU."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    total = source.stat().st_size
    start, cpu = time.perf_counter(), time.process_time()
    done = written = 0
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as out:
        while count := file.readinto(buffer):
            done += count
            due = write_bytes * done // total - written
            written += out.write(buffer[:due])
        os.fsync(out.fileno())
    return time.perf_counter() - start, time.process_time() - cpu


def stream(
    results: list[dict[str, Any]],
    folder: Path,
    gib: float,
    trials: int,
    pipelines: tuple[str, ...] = STREAMED,
    limit: float = STREAM_TIME_LIMIT,
) -> bool:
    """Run *pipelines* over a large model, each in a process of its own."""
    model = make_large(folder, int(gib * 2**30))
    os.sync()  # what was just made must not be written while the clock runs
    source, passed = folder / "weights.bin", True
    for pipeline in pipelines:
        ours, cpu, begun, raw, raw_cpu, peak, size = [], [], [], [], [], 0.0, 0
        for _ in range(trials):
            out = folder / "out.onnx"
            command = [sys.executable, __file__, "--child", str(model), str(out), pipeline]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = (folder / "out.onnx.data").stat().st_size
            (folder / "out.onnx.data").unlink()
            one, two = raw_seconds(source, folder / "copy.bin", size)
            raw.append(one)
            raw_cpu.append(two)
            (folder / "copy.bin").unlink()
            ours.append(found["seconds"])
            cpu.append(found["cpu_s"])
            begun.append(found["start_s"])
            peak = max(peak, found["peak_gb"])
        ratio = statistics.median(ours) / statistics.median(raw)
        good = ratio <= limit and peak < STREAM_PEAK_LIMIT_GB
        passed &= good
        report(
            results,
            pipeline=pipeline,
            gib=gib,
            seconds=round(statistics.median(ours), 2),
            cpu_s=round(statistics.median(cpu), 2),
            start_s=round(statistics.median(begun), 2),
            raw_s=round(statistics.median(raw), 2),
            raw_cpu_s=round(statistics.median(raw_cpu), 2),
            time_ratio=round(ratio, 2),
            cpu_ratio=round(statistics.median(cpu) / statistics.median(raw_cpu), 2),
            time_limit=limit if math.isfinite(limit) else None,
            peak_gb=round(peak, 3),
            peak_limit_gb=STREAM_PEAK_LIMIT_GB,
            output_gb=round(size / 1e9, 2),
            passed=good,
        )
    return passed


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(Path(options.child[0]), Path(options.child[1]), options.child[2])
        return 0
    results: list[dict[str, Any]] = []
    pipelines, limit = (OTHERS, math.inf) if options.others else (STREAMED, STREAM_TIME_LIMIT)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        passed = stream(results, Path(name), options.gib, options.trials, pipelines, limit)
    if options.output:
        # What other runs left there stays, so that long ones can be made one by one.
        measured = {(line["pipeline"], line["gib"]) for line in results}
        if options.output.exists():
            kept = json.loads(options.output.read_text(encoding="utf-8"))
            results = [line for line in kept if (line["pipeline"], line["gib"]) not in measured] + results
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
