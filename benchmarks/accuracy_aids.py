"""What equalize-ranges, correct-bias and error feedback give back of what coarse codes take, on tasks.

For every case: run the pipeline on calibration feeds, then the task's metric on its evaluation feeds, and
over the same feeds how the first output agrees with that of the original: signal to noise, and the share of
rows whose largest element is at the same place. equalize-ranges alone must leave every bit as it was; exit
status 1 where it does not.

    python benchmarks/accuracy_aids.py [TASK ...] [--json FILE] [--limit N] [--time]

--limit ends the evaluation after N rows; then there is no metric. --time measures the speed of every result
over that of the original instead: one thread, interleaved, medians of thread CPU time. Needs GRAPHOPT_ASSETS,
and pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import graphopt
from tests.corpora import asset_tasks

TENSOR, CHANNEL = "insert-qdq{measure=off,per_channel=false}", "insert-qdq{measure=off}"
EQUAL = "equalize-ranges{clip=per-channel}"
BIAS = "correct-bias"
PALETTE = "share-weights{bits=4}"


def _fed(step: str) -> str:
    """The same step with error feedback."""
    return step.removesuffix("}") + ",feedback=true}"


PIPELINES = (
    CHANNEL, f"{CHANNEL},{BIAS}", _fed(CHANNEL), f"{_fed(CHANNEL)},{BIAS}",
    TENSOR, _fed(TENSOR), f"{_fed(TENSOR)},{BIAS}", f"{TENSOR},{BIAS}", f"{EQUAL},{TENSOR}",
    f"{EQUAL},{TENSOR},{BIAS}",
    PALETTE, f"{PALETTE},{BIAS}", _fed(PALETTE),
)  # fmt: skip
TASKS = {"mobilenetv2": 100, "resnet8": 200, "cifar-resnet20": 200, "squeezenet": 100}
"""Calibration feeds of each task."""


ROUNDS = 25


class _EnoughError(Exception):
    pass


def evaluate(task: Any, model: Path, limit: int) -> tuple[float | None, list[np.ndarray]]:
    """Return the metric, and the first output of every feed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = []

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = session.run(None, feeds)
        found.append(np.asarray(outputs[0]).astype(np.float64))
        if limit and sum(map(len, found)) >= limit:
            raise _EnoughError
        return list(outputs)

    try:
        return float(task.evaluate(run)), found
    except _EnoughError:
        return None, found


def agreement(want: list[np.ndarray], have: list[np.ndarray]) -> dict[str, float]:
    """Return signal to noise in dB, and the share of rows whose largest element is at the same place."""
    noise = sum(float(np.sum((one - two) ** 2)) for one, two in zip(want, have, strict=True))
    signal = sum(float(np.sum(one * one)) for one in want)
    same = sum(int(np.sum(one.argmax(-1) == two.argmax(-1))) for one, two in zip(want, have, strict=True))
    rows = sum(one[..., 0].size for one in want)
    return {"sqnr_db": round(10 * np.log10(signal / max(noise, 1e-300)), 2), "same": round(same / rows, 4)}


def run_task(name: str, task: Any, limit: int, folder: Path) -> list[dict[str, Any]]:
    """Return one row for every pipeline."""
    feeds = list(islice(task.calibration(TASKS[name]), TASKS[name]))
    data = folder / f"{name}.npz"
    np.savez(data, **{key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]})
    metric, want = evaluate(task, task.model, limit)
    rows: list[dict[str, Any]] = [{"task": name, "pipeline": "", "metric": metric}]
    print(f"{name}: {task.metric} {metric}", flush=True)
    equal = folder / "equal.onnx"
    graphopt.run(task.model, EQUAL, out=equal, validate=False)
    _, same = evaluate(task, equal, min(limit or 64, 64))
    exact = all(np.array_equal(one, two) for one, two in zip(want, same, strict=False))
    rows.append({"task": name, "pipeline": EQUAL, "exact": exact})
    print(f"  {EQUAL}: {'the same bits' if exact else 'NOT the same bits'}", flush=True)
    for pipeline in PIPELINES:
        out = folder / "out.onnx"
        start = time.process_time()
        result = graphopt.run(task.model, pipeline, data=str(data), out=out, validate=False)
        seconds = time.process_time() - start
        metric, have = evaluate(task, out, limit)
        row = {"task": name, "pipeline": pipeline, "metric": metric, **agreement(want, have)}
        row |= {"cpu_s": round(seconds, 1), "calibration": len(feeds)}
        row["steps"] = [dict(step.counts) for step in result.report.steps]
        rows.append(row)
        print(f"  {pipeline}: {metric} {row['sqnr_db']} dB, {row['same']:.1%} the same", flush=True)
    return rows


def time_task(name: str, task: Any, folder: Path) -> list[dict[str, Any]]:
    """Return one row for every pipeline: the speed of its result over that of the original."""
    feeds = list(islice(task.calibration(20), 20))
    data = folder / f"{name}.npz"
    np.savez(data, **{key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]})
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {"": ort.InferenceSession(str(task.model), options, providers=["CPUExecutionProvider"])}
    for pipeline in PIPELINES:
        out = folder / "timed.onnx"
        graphopt.run(task.model, pipeline, data=str(data), out=out, validate=False)
        sessions[pipeline] = ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    times: dict[str, list[float]] = {pipeline: [] for pipeline in sessions}
    for turn in range(ROUNDS):
        for pipeline in list(sessions)[:: 1 if turn % 2 else -1]:
            start = time.thread_time()
            sessions[pipeline].run(None, feeds[turn % len(feeds)])
            times[pipeline].append(time.thread_time() - start)
    medians = {pipeline: statistics.median(found) for pipeline, found in times.items()}
    rows = [
        {"task": name, "pipeline": pipeline, "speed": round(medians[""] / medians[pipeline], 3)}
        for pipeline in PIPELINES
    ]
    for row in rows:
        print(f"{name} {row['pipeline']}: {row['speed']} times as fast", flush=True)
    return rows


def main() -> int:
    """Run the cases and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    known = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.tasks:
            place = Path(folder)
            found = time_task(name, known[name], place) if arguments.time else None
            rows += run_task(name, known[name], arguments.limit, place) if found is None else found
            if arguments.json is not None:
                document = {"onnxruntime": ort.__version__, "limit": arguments.limit, "rows": rows}
                arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.get("exact", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
