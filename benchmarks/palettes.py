"""What palettes cost in accuracy and save in bytes, on trained models with data and a metric.

For every case: run the pipeline, then canonicalize, fold-constants and deduplicate behind it, compare the
file, the task's metric and the time with the original. Exit status 1 where a limit is missed.

    python benchmarks/palettes.py [CASE ...] [--json palettes.json] [--no-time]

Needs GRAPHOPT_ASSETS, and pillow for the tasks with images.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphopt
from benchmarks.rows import evaluate, keeper, parser_of, show_all, verdict
from tests.corpora import asset_tasks

CLEAN = ",canonicalize,fold-constants,deduplicate,eliminate-dead{traces=true}"


@dataclass(frozen=True)
class Case:
    """One pipeline on one task, and its limits."""

    task: str
    pipeline: str
    calibration: int = 0
    size_ratio: float = 1.0
    spare_bytes: int = 0
    drop: float | None = None


CASES = {
    "resnet56-4": Case("cifar-resnet56", "share-weights{bits=4}", 0, 0.14, 1 << 16, 0.010),
    "resnet56-4-data": Case("cifar-resnet56", "share-weights{bits=4}", 128, 0.14, 1 << 16, 0.010),
    "mobilenetv2-8": Case("mobilenetv2", "share-weights{bits=8}", 0, 0.27, 0, 0.007),
    "mobilenetv2-6": Case("mobilenetv2", "share-weights{bits=6}", 0),
    "mobilenetv2-6-data": Case("mobilenetv2", "share-weights{bits=6}", 64, 0.21, 0, 0.020),
    "mobilenetv2-6-tensor": Case("mobilenetv2", "share-weights{bits=6,granularity=tensor,weighting=none}"),
    "mobilenetv2-4": Case("mobilenetv2", "share-weights{bits=4}", 64),
    "mobilenetv2-4-feedback": Case(
        "mobilenetv2",
        "share-weights{bits=4,feedback=true,granularity=group,group_size=8}",
        200,
        0.15,
        0,
        0.045,
    ),
    "resnet56-4-feedback": Case(
        "cifar-resnet56", "share-weights{bits=4,feedback=true}", 512, 0.14, 1 << 16, 0.010
    ),
    "llama-ts-4": Case("stories-llama", "synthesize-constants,share-weights{bits=6}", 0, 0.14, 1 << 16, 0.03),
    "llama-ts-4-data": Case(
        "stories-llama", "synthesize-constants,share-weights{bits=6}", 16, 0.14, 1 << 16, 0.03
    ),
    "llama-ts-5-data": Case("stories-llama", "synthesize-constants,share-weights{bits=5}", 16),
    "llama-dynamo-4-data": Case(
        "stories-llama-dynamo", "synthesize-constants,share-weights{bits=6}", 16, 0.14, 1 << 16, 0.03
    ),
}


@dataclass
class Row:
    """What was measured."""

    case: str
    file_bytes: int
    original_bytes: int
    size_ratio: float
    metric: float
    metric_fp32: float
    drop: float
    time_ratio: float | None
    noise_ratio: float | None
    seconds: float
    passed: bool


def run_case(name: str, tasks: Any, *, timed: bool, known: dict[str, float]) -> Row:
    """Measure one case."""
    case = CASES[name]
    task = tasks[case.task]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        data = list(task.calibration(case.calibration)) if case.calibration else None
        graphopt.run(task.model, case.pipeline + CLEAN, out=out, data=data, validate=False)
        seconds = time.perf_counter() - start
        if case.task not in known:
            known[case.task] = evaluate(task, task.model)
        fp32, metric = known[case.task], evaluate(task, out)
        before, after = task.model.stat().st_size, out.stat().st_size
        drop = metric / fp32 - 1 if task.metric == "ppl" else fp32 - metric
        ratio = noise = None
        if timed:
            latency = graphopt.validate(task.model, out, data=list(task.calibration(1))).latency
            if latency is not None:
                ratio, noise = latency.ratio, latency.noise_ratio
    passed = after <= before * case.size_ratio + case.spare_bytes and (case.drop is None or drop <= case.drop)
    if ratio is not None and noise is not None:
        passed &= abs(ratio - 1) <= 0.03 + abs(noise - 1)
    return Row(name, after, before, after / before, metric, fp32, drop, ratio, noise, seconds, passed)


def line_of(row: Row) -> str:
    """What is printed of a case."""
    timing = "" if row.time_ratio is None else f" | time {row.time_ratio:.3f}x"
    return (
        f"{row.case:22s} {row.file_bytes:9d} bytes {row.size_ratio:6.1%} | "
        f"{row.metric_fp32:.4f} -> {row.metric:.4f} (drop {row.drop:+.4f}){timing} | "
        f"{row.seconds:.1f} s{verdict(row.passed)}"
    )


def main() -> int:
    """Run the cases that are named, or all."""
    parser = parser_of(__doc__, CASES)
    parser.add_argument("--no-time", action="store_true")
    arguments = parser.parse_args()
    tasks = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))
    known: dict[str, float] = {}
    timed = not arguments.no_time
    rows = show_all(
        (run_case(name, tasks, timed=timed, known=known) for name in arguments.cases or CASES),
        line_of,
        keeper(arguments.json, CASES, indent=1),
    )
    return int(not all(row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
