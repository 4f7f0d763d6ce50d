"""Every pass over stored weights on every model of GRAPHOPT_ASSETS: does it load, run and agree?

For each model of ``models/`` and each pipeline, and each model of the zoo and one pipeline a pass: run it,
open the result in onnxruntime without and with its optimisations, and report the smallest SQNR of the outputs
that are not constant, the bytes over those before, or why nothing changed. The feed is one of the task's own
where the model has a task (tasks.py of the assets), else made up from a seed. Exit status 1 where a result
does not load or run, gives values that are not finite where the original's are, differs where the pipeline is
exact, or is unchanged without a reason. What a lossy pipeline costs in accuracy is measured on the tasks
(palettes.py, recovery.py, quantize.py); here the SQNR has no limit. What stands in the JSON file already is
not run again.

    python benchmarks/weight_passes.py [--models PATTERN] [--pipelines NAME ...] [--json weight_passes.json]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

import graphopt
from tests.corpora import asset_models, asset_tasks, zoo_model, zoo_names

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPELINES = {
    "synthesize": "synthesize-constants",
    "residual-sum": "rewrite-residual-sum",
    "masked-softmax": "rewrite-masked-softmax",
    "share-4": "share-weights{bits=4}",
    "share-8": "synthesize-constants,share-weights{bits=8}",
    "weights-8": "quantize-weights",
    "weights-8-zero": "quantize-weights{symmetric=false,clip=mse}",
    "weights-8-dequantize": "quantize-weights{form=dequantize}",
    "weights-4": "quantize-weights{bits=4,block_size=32,refine=hqq}",
    "weights-4-nearest": "quantize-weights{bits=4,block_size=32}",
    "weights-4-nbits": "quantize-weights{bits=4,block_size=32,form=matmulnbits}",
    "weights-2": "quantize-weights{bits=2,block_size=16}",
    "dynamic": "quantize-dynamic",
    "float16": "convert-float16",
    "float16-storage": "convert-float16{form=storage}",
    "bfloat16-storage": "convert-float16{form=storage,dtype=bfloat16}",
    "sparse": "sparsify-weights{sparsity=0.3,storage=sparse}",
    "sparse-0.8": "sparsify-weights{sparsity=0.8,storage=sparse}",
    "two-of-four": 'sparsify-weights{pattern="n:m"}',
    "lowrank": "factorize-lowrank{energy=0.99}",
    "lowrank-embedding": "factorize-lowrank{forms=[thin,embedding],weight_ratio=0.7}",
    "lowrank-half": "factorize-lowrank{weight_ratio=0.5,round_to=1,min_gain=1.0}",
}  # fmt: skip

# Versions that a pipeline needs: models of lower ones are upgraded first, weights that are inputs frozen,
# and Constant nodes made initializers, which is not measured.
OPSETS = {
    "dynamic": 11,
    "bfloat16-storage": 13,
    "weights-8-dequantize": 13,
    "weights-4": 21,
    "weights-4-nearest": 21,
    "weights-4-nbits": 13,
    "weights-2": 25,
}

# One or two of each pass: what models of the zoo, whose weights are random, go through. Those that search
# for better codes (share-4, weights-4) take ten times as long, and find nothing in random weights.
SHORT = (
    "synthesize", "residual-sum", "masked-softmax", "weights-8", "weights-4-nearest", "dynamic", "float16",
    "float16-storage", "sparse-0.8", "share-8", "lowrank",
)  # fmt: skip

EXACT = frozenset({"synthesize", "residual-sum"})


def models(assets: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every model; those of the zoo are filled in one by one."""
    for path in asset_models(assets):
        if fnmatch.fnmatchcase(path.stem, pattern):
            yield path.stem, path
    for name in zoo_names(assets):
        if fnmatch.fnmatchcase(name, pattern):
            yield name, zoo_model(assets, name)


def feed_of(name: str, path: Path, tasks: dict[str, Any]) -> dict[str, Any]:
    """Return one of the task's own feeds where the model has a task, else one that is made up."""
    from graphopt.runtime.feeds import random_feeds

    for task in tasks.values():
        if task.model.stem == name:
            feed: dict[str, Any] = next(iter(task.calibration(1)))
            return feed
    loaded = graphopt.load(path)
    # A frame of silero is 512 samples behind 64 of context; only one of the files names its dims.
    silero = [{"input[0]": 1, "input[1]": 576, "state[1]": 1}, {"batch": 1, "sequence": 576}]
    dims = silero["op15" in name] if name.startswith("silero") else {}
    return random_feeds(loaded, 1, 0, dims)[0]


def outputs(path: Path, feeds: Any, *, optimised: bool) -> list[Any]:
    """What onnxruntime computes with all of its optimisations, or with none."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, feeds)
    return results


def flat(values: Any) -> list[Any]:
    """Return the tensors of outputs, those of sequences one by one."""
    return [
        tensor for value in values for tensor in (flat(value) if isinstance(value, list) else [value])
    ]  # fmt: skip


def is_constant(value: Any) -> bool:
    """Return whether all elements of an output are the same: its SQNR would say nothing about the error."""
    return value.size > 1 and value.dtype.kind == "f" and float(np.ptp(value)) == 0.0


def sqnr_db(one: Any, two: Any) -> float:
    """Signal to error in dB; inf where they are equal, -inf where they cannot be compared."""
    one, two = np.asarray(one), np.asarray(two)
    if one.shape != two.shape or one.dtype != two.dtype:
        return -math.inf
    if one.dtype.kind not in "fiub" or np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
        return math.inf
    if not np.array_equal(np.isfinite(one), np.isfinite(two)):
        return -math.inf
    finite = np.isfinite(one)
    wide, error = one[finite].astype(np.float64), one[finite].astype(np.float64) - two[finite]
    total = float((error**2).sum())
    return 10 * math.log10(max(float((wide**2).sum()), 1e-300) / total) if total > 0 else math.inf


def has_odd_weights(model: Any) -> bool:
    """Return whether weights are inputs too, so that callers may override them, or all are Constant nodes."""
    overridable = any(value.is_initializer() for value in model.graph.inputs)
    return overridable or not any(graph.initializers for graph in model.graphs())


def measure(
    path: Path, key: str, feeds: Any, expected: dict[bool, list[Any]], folder: Path
) -> dict[str, Any]:
    """Run one pipeline over one model."""
    out = folder / "out.onnx"
    model, needed = graphopt.load(path), OPSETS.get(key, 0)
    before = ["canonicalize{freeze_initializers=true}"] if has_odd_weights(model) else []
    before += [f"upgrade-opset{{to={needed}}}"] if model.opset < needed else []
    if before:
        prepared = folder / "prepared.onnx"
        graphopt.run(path, ",".join(before), out=prepared, validate=False)
        path = prepared
    start = time.perf_counter()
    result = graphopt.run(path, PIPELINES[key], out=out, validate=False)
    seconds = time.perf_counter() - start
    step = result.report.steps[-1]
    changed = step.status == "committed"
    row: dict[str, Any] = {"seconds": round(seconds, 2), "changed": changed}
    if not changed:
        reasons = list(dict.fromkeys(skip.reason for each in result.report.steps for skip in each.skipped))
        row["reason"] = "; ".join(reasons[:4]) or "no reason given"
        return row
    row["bytes_ratio"] = round(out.stat().st_size / path.stat().st_size, 4)
    for optimised in (False, True):
        pairs = list(zip(expected[optimised], flat(outputs(out, feeds, optimised=optimised)), strict=True))
        found = [sqnr_db(one, two) for one, two in pairs if not is_constant(one)]
        least = min(found, default=math.inf)
        if math.isinf(least) and least < 0:
            raise ValueError("another shape or type, or values that are not finite")
        row["sqnr_db" if optimised else "sqnr_db_unoptimised"] = (
            None if math.isinf(least) else round(least, 1)
        )
    row["constant_outputs"] = sum(is_constant(one) for one, _ in pairs)
    return row


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write what was found so far, one line a run: a second start goes on from there."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def main() -> int:
    """Go over all models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="*")
    parser.add_argument("--pipelines", nargs="*")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    assets = Path(os.environ["GRAPHOPT_ASSETS"])
    tasks = asset_tasks(assets)
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())
    done = {(row["model"], row.get("pipeline")) for row in rows}
    failed = sum(bool(row["bad"]) for row in rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, path in models(assets, arguments.models):
            wanted = arguments.pipelines or (SHORT if path.parent == folder else PIPELINES)
            wanted = [key for key in wanted if (model, key) not in done]
            if not wanted or (model, None) in done:
                continue
            try:
                feeds = feed_of(model, path, tasks)
                expected = {way: flat(outputs(path, feeds, optimised=way)) for way in (False, True)}
            except Exception as error:  # noqa: BLE001 - the original does not run on made-up inputs
                print(f"{model:40s} the original does not run: {str(error)[:90]}", flush=True)
                rows.append(
                    {"model": model, "error": f"the original does not run: {error}"[:300], "bad": True}
                )
                failed += 1
                continue
            for key in wanted:
                row: dict[str, Any] = {"model": model, "pipeline": key}
                try:
                    row |= measure(path, key, feeds, expected, folder)
                    bad = row.get("reason") == "no reason given"
                    for field in ("sqnr_db", "sqnr_db_unoptimised") if key in EXACT else ():
                        bad |= row.get(field) is not None and row[field] < 100
                except Exception as error:  # noqa: BLE001 - reported, counted
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
                    bad = True
                row["bad"] = bad
                failed += bad
                rows.append(row)
                facts = ", ".join(f"{k}={v}" for k, v in row.items() if k not in {"model", "pipeline", "bad"})
                print(f"{model:40s} {key:16s} {'BAD ' if bad else ''}{facts}", flush=True)
                if arguments.json:
                    write(rows, arguments.json)
    print(f"{len(rows)} runs, {failed} bad")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
