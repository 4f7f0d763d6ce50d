"""Accuracy back without gradients: pruning, low rank and rounding on trained models, with unlabelled data.

    python benchmarks/recovery.py [CASE ...] [--json recovery.json]
    python benchmarks/recovery.py --memory

For every case: run the pipeline on one thread, evaluate the task's metric, count CPU seconds, and where the
case is about time measure the latency ratio. Exit status 1 where a limit is missed. ``--memory`` compares the
peak memory of a walk over 512 and over 4,096 samples, each in a process of its own.

Needs GRAPHOPT_ASSETS, and pillow for the tasks with images. Run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphopt
from benchmarks.rows import evaluate, keeper, parser_of, show_all, verdict
from tests.corpora import asset_tasks

LS = "recover=least-squares"
TIGHT = "round_to=1"


@dataclass(frozen=True)
class Case:
    """One pipeline on one task.

    Attributes:
        task: Name of the task.
        pipeline: What is run.
        samples: Calibration feeds.
        drop: Largest loss: points of top-1 or AUC, or the relative rise of perplexity; None reports only.
        cpu_s: Most CPU seconds of the pipeline.
        speed: Least factor of time at batch 1.
    """

    task: str
    pipeline: str
    samples: int = 512
    drop: float | None = None
    cpu_s: float | None = None
    speed: float | None = None


def _prune(
    task: str, ratio: float, drop: float, samples: int = 512, cpu_s: float | None = 60.0
) -> dict[str, Case]:
    """L1 alone, L1 with recovery, and block-OBS with recovery, beside each other."""
    base = f"macs_ratio={ratio:g},{TIGHT}"
    name = f"{task}-{round(100 * ratio)}"
    return {
        f"{name}-l1": Case(task, f"prune-channels{{{base},criterion=l1}}", samples),
        f"{name}-l1-ls": Case(task, f"prune-channels{{{base},criterion=l1,{LS}}}", samples),
        f"{name}-obs-ls": Case(task, f"prune-channels{{{base},criterion=obs,{LS}}}", samples, drop, cpu_s),
    }


def _rank(ratio: float, drop: float) -> dict[str, Case]:
    base = f"macs_ratio={ratio:g},{TIGHT},min_gain=1"
    thin = f"weight_ratio={ratio:g},{TIGHT},min_gain=1,forms=thin"
    name = f"lowrank-resnet20-{round(100 * ratio)}"
    return {
        f"{name}-plain": Case("cifar-resnet20", f"factorize-lowrank{{{thin},whiten=false,recover=none}}"),
        f"{name}-white": Case("cifar-resnet20", f"factorize-lowrank{{{thin},recover=bias}}"),
        f"{name}-thin": Case("cifar-resnet20", f"factorize-lowrank{{{thin}}}"),
        f"{name}": Case("cifar-resnet20", f"factorize-lowrank{{{base}}}", 512, drop),
    }


def _llama(ratio: float, options: str, drop: float | None = None) -> Case:
    """The small Llama's MLPs and heads cut to *ratio* of its parameters."""
    cut = f"params_ratio={ratio:g},units=[heads,hidden],rows_per_sample=512,{TIGHT},{options}"
    return Case("stories-llama", f"synthesize-constants,prune-channels{{{cut}}}", 32, drop)


_OUTPUT = f"criterion=obs,sensitivity=output,{LS},ridge=auto"
_INT4 = "upgrade-opset{to=21},quantize-weights{bits=4,block_size=32"

CASES = {
    **_prune("cifar-resnet20", 0.5, 0.08),
    **_prune("cifar-resnet20", 0.75, 0.024),
    **_prune("cifar-resnet56", 0.5, 0.045),
    **_prune("cifar-resnet56", 0.75, 0.007),
    **_prune("mobilenetv2", 0.8, 0.05, 200, None),
    "mobilenetv2-80-obs-changed": Case(
        "mobilenetv2", f"prune-channels{{macs_ratio=0.8,{TIGHT},criterion=obs,{LS},refit=changed}}", 200, 0.05
    ),
    "mobilenetv2-80-obs-auto": Case(
        "mobilenetv2",
        f"prune-channels{{macs_ratio=0.8,{TIGHT},criterion=obs,{LS},ridge=auto,rows_per_sample=196}}",
        200,
        0.05,
    ),
    "mobilenetv2-80-obs-sweeps": Case(
        "mobilenetv2",
        f"prune-channels{{macs_ratio=0.8,{TIGHT},criterion=obs,sensitivity=output,{LS},ridge=auto,sweeps=2,"
        "rows_per_sample=196}",
        200,
        0.05,
    ),
    **_rank(0.75, 0.025),
    **_rank(0.5, 0.08),
    "anomaly-ae-lowrank": Case(
        "anomaly-ae", "factorize-lowrank{macs_ratio=0.5,round_to=8,min_gain=1}", 3920, 0.005, None, 1.5
    ),
    "llama-80-l1": _llama(0.8, "criterion=l1"),
    "llama-80-obs-ls": _llama(0.8, f"scope=family,criterion=obs,{LS}", 0.15),
    "llama-80-obs-output": _llama(0.8, _OUTPUT, 0.15),
    **{f"llama-{round(100 * ratio)}-obs-output": _llama(ratio, _OUTPUT) for ratio in (0.85, 0.9, 0.93, 0.96)},
    "llama-int4": Case("stories-llama", f"{_INT4}}}", 32),
    "llama-int4-feedback": Case("stories-llama", f"{_INT4},feedback=true}}", 32),
}


@dataclass
class Row:
    """What was measured."""

    case: str
    metric: float
    metric_fp32: float
    drop: float
    macs_ratio: float | None
    agreement: Any
    cpu_s: float
    speed: float | None
    passed: bool | None


def run_case(name: str, tasks: Any, known: dict[str, float]) -> Row:
    """Measure one case."""
    case = CASES[name]
    task = tasks[case.task]
    data = list(task.calibration(case.samples))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        start = time.process_time()
        result = graphopt.run(task.model, case.pipeline, out=out, data=data, validate=False)
        cpu_s = time.process_time() - start
        if case.task not in known:
            known[case.task] = evaluate(task, task.model)
        fp32, metric = known[case.task], evaluate(task, out)
        drop = metric / fp32 - 1 if task.metric == "ppl" else fp32 - metric
        speed = None
        if case.speed is not None:
            latency = graphopt.validate(task.model, out, data=data[:1]).latency
            speed = None if latency is None else 1 / latency.ratio
    extra = [step.extra for step in result.report.steps]
    macs = next((each["macs_ratio"] for each in extra if "macs_ratio" in each), None)
    agreement = next((r.get("agreement") for each in extra if (r := each.get("recovery", each))), None)
    limits = (case.drop, case.cpu_s, case.speed)
    passed = None
    if any(limit is not None for limit in limits):
        passed = (
            (case.drop is None or drop <= case.drop)
            and (case.cpu_s is None or cpu_s <= case.cpu_s)
            and (case.speed is None or (speed or 0) >= case.speed)
        )
    return Row(name, metric, fp32, drop, macs, agreement, cpu_s, speed, passed)


def walk_of(samples: int) -> int:
    """Return the peak memory of a recovery over so many samples, in bytes; run in a process of its own."""
    from graphopt.ir import load
    from graphopt.recover.solve import solve
    from graphopt.recover.walk import Walk

    tasks = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))
    task = tasks["cifar-resnet20"]
    feeds = task.calibration(samples)
    with Walk(load(task.model), feeds) as walk:
        for stage in walk.stages()[:6]:
            (moments,) = walk.observe(stage)
            found = solve(moments, stage.linear.weight(), stage.linear.bias(), stage=stage.output)
            walk.write(stage, found.weight, found.bias)
        walk.finish()
        return walk.effort.peak_bytes


def line_of(row: Row) -> str:
    """What is printed of a case."""
    macs = "" if row.macs_ratio is None else f" | MACs {row.macs_ratio:.3f}"
    speed = "" if row.speed is None else f" | {row.speed:.2f}x"
    return (
        f"{row.case:32} {row.metric:8.4f} of {row.metric_fp32:.4f} | drop {row.drop:8.4f}{macs}"
        f" | {row.cpu_s:6.1f} CPU-s{speed}{verdict(row.passed)}"
    )


def main() -> int:
    """Run the cases that are named, or all."""
    parser = parser_of(__doc__, CASES)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--walk", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.walk:
        print(walk_of(arguments.walk))
        return 0
    if arguments.memory:
        peaks = [
            int(
                subprocess.run(
                    [sys.executable, __file__, "--walk", str(n)], check=True, capture_output=True
                ).stdout
            )
            for n in (512, 4096)
        ]
        print(f"peak memory {peaks[0] / 2**20:.0f} MiB at 512, {peaks[1] / 2**20:.0f} MiB at 4,096 samples")
        return 0 if peaks[1] <= 1.1 * peaks[0] else 1
    tasks = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))
    known: dict[str, float] = {}
    rows = show_all(
        (run_case(name, tasks, known) for name in arguments.cases or CASES),
        line_of,
        keeper(arguments.json, CASES),
    )
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
