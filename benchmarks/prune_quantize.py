"""Pruned and quantised: how fast, at what accuracy, with channels or whole blocks chosen by measured time.

    python benchmarks/prune_quantize.py [CASE ...] [--json results/prune_quantize.json]

For every case: run the pipeline on one thread over 512 calibration images of cifar-resnet56, evaluate top-1
on 5,000 others, and measure the time at batch 1 against the fp32 original. Exit status 1 where a limit is
missed.

Needs GRAPHOPT_ASSETS and pillow. Run with OMP_NUM_THREADS=1, on a machine that does nothing else: the cut
follows what is measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphopt
from benchmarks.rows import evaluate, keeper, parser_of, show_all, verdict
from tests.corpora import asset_tasks

TASK = "cifar-resnet56"
SAMPLES = 512
LS = "recover=least-squares"
FIT = f"criterion=obs,{LS},oracle=false"
AS = 'timed_as="insert-qdq{measure=off}"'
CLEAN_AS = 'timed_as="canonicalize,insert-qdq{measure=off}"'
INT8 = "insert-qdq{measure=off}"
STREAMS = "protect=[onnx::Conv_615*,onnx::Conv_675*,onnx::Conv_729*]"
"""The three streams, which all blocks of a stage add to, stay; `graphopt channels` shows the families."""


@dataclass(frozen=True)
class Case:
    """One pipeline and its limits: points of top-1 lost at most, and times as fast as fp32 at least."""

    pipeline: str
    drop: float | None = None
    speed: float | None = None


CASES = {
    "int8": Case(INT8),
    "macs-60": Case(f"prune-channels{{macs_ratio=0.6,{FIT}}},{INT8}"),
    "time-streams": Case(f"prune-channels{{time_ratio=0.38,{AS},{FIT}}},{INT8}"),
    "time-channels": Case(f"prune-channels{{time_ratio=0.375,{AS},{FIT},best_effort=true,{STREAMS}}},{INT8}"),
    "blocks-2.6x": Case(f"prune-blocks{{time_ratio=0.37,{CLEAN_AS},{LS}}},canonicalize,{INT8}", 0.035, 2.6),
    "blocks-3x": Case(f"prune-blocks{{time_ratio=0.32,{CLEAN_AS},{LS}}},canonicalize,{INT8}", 0.035, 3.0),
    "blocks-3x-unfitted": Case(f"prune-blocks{{time_ratio=0.32,{CLEAN_AS}}},canonicalize,{INT8}"),
}


@dataclass
class Row:
    """What was measured."""

    case: str
    pipeline: str
    metric: float
    metric_fp32: float
    drop: float
    speed: float | None
    noise_ratio: float | None
    macs_ratio: float | None
    widths: dict[str, int]
    blocks: list[str]
    time: Any
    cpu_s: float
    passed: bool | None


def run_case(name: str, task: Any, fp32: float) -> Row:
    """Measure one case."""
    case = CASES[name]
    data = list(task.calibration(SAMPLES))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        start = time.process_time()
        result = graphopt.run(task.model, case.pipeline, out=out, data=data, validate=False)
        cpu_s = time.process_time() - start
        latency = graphopt.validate(task.model, out, data=data[:1]).latency
        metric = evaluate(task, out)
    extra = [step.extra for step in result.report.steps]
    macs = next((each["macs_ratio"] for each in extra if "macs_ratio" in each), None)
    timed = next((each["time"] for each in extra if "time" in each), None)
    widths = Counter(
        f"{family['units']}->{family['kept']}" for each in extra for family in each.get("families", ())
    )
    blocks = [block["name"] for each in extra for block in each.get("blocks", ())]
    speed = None if latency is None else 1 / latency.ratio
    passed = None
    if case.drop is not None and case.speed is not None:
        passed = fp32 - metric <= case.drop and (speed or 0.0) >= case.speed
    noise = None if latency is None else latency.noise_ratio
    return Row(
        name,
        case.pipeline,
        metric,
        fp32,
        fp32 - metric,
        speed,
        noise,
        macs,
        dict(widths),
        blocks,
        timed,
        cpu_s,
        passed,
    )


def line_of(row: Row) -> str:
    """What is printed of a case."""
    speed = "-" if row.speed is None else f"{row.speed:.2f}x"
    return (
        f"{row.case:18} {row.metric:.4f} of {row.metric_fp32:.4f} | drop {row.drop:.4f} | {speed}"
        f" | {row.widths or row.blocks} | {row.cpu_s:.0f} CPU-s{verdict(row.passed)}"
    )


def main() -> int:
    """Run the cases that are named, or all."""
    arguments = parser_of(__doc__, CASES).parse_args()
    task = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))[TASK]
    fp32 = evaluate(task, task.model)
    rows = show_all(
        (run_case(name, task, fp32) for name in arguments.cases or CASES),
        line_of,
        keeper(arguments.json, CASES, indent=1),
    )
    return int(any(row.passed is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
