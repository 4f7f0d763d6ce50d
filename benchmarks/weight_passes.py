"""Every pass over stored weights on every model of GRAPHOPT_ASSETS: does it load, run and agree?

For each model of ``models/`` and of the zoo and each pipeline: run it, open the result in onnxruntime, and
report the smallest SQNR of the outputs on seeded feeds, the bytes over those before, or why nothing changed.
Exit status 1 where a result does not load or run. Lossy pipelines on random weights have no limit of SQNR.

    python benchmarks/weight_passes.py [--models PATTERN] [--pipelines NAME ...] [--json weight_passes.json]
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
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

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPELINES = {
    "synthesize": "synthesize-constants",
    "share-4": "share-weights{bits=4}",
    "share-8": "synthesize-constants,share-weights{bits=8}",
    "float16": "convert-float16",
    "float16-storage": "convert-float16{form=storage}",
    "sparse": "sparsify-weights{sparsity=0.3,storage=sparse}",
    "two-of-four": 'sparsify-weights{pattern="n:m"}',
}  # fmt: skip

EXACT = frozenset({"synthesize"})


def models(assets: Path, folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every model; those of the zoo are filled in one by one."""
    for path in sorted((assets / "models").glob("*.onnx")):
        if fnmatch.fnmatchcase(path.stem, pattern):
            yield path.stem, path
    spec = importlib.util.spec_from_file_location("materialize", assets / "zoo" / "materialize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path in sorted((assets / "zoo").glob("*.onnx")):
        if fnmatch.fnmatchcase(path.stem, pattern):
            filled = folder / "filled.onnx"
            filled.write_bytes(module.materialize(path).SerializeToString())
            yield path.stem, filled


def outputs(path: Path, feeds: Any) -> list[Any]:
    """What onnxruntime computes at its default level."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, feeds)
    return results


def sqnr_db(one: Any, two: Any) -> float:
    """Signal to error in dB; inf where they are equal, -inf where they cannot be compared."""
    one, two = np.asarray(one), np.asarray(two)
    if one.shape != two.shape or one.dtype != two.dtype:
        return -math.inf
    if one.dtype.kind not in "fiub" or np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
        return math.inf
    wide, error = one.astype(np.float64), one.astype(np.float64) - two.astype(np.float64)
    finite = np.isfinite(wide)
    total = float((error[finite] ** 2).sum())
    return 10 * math.log10(max(float((wide[finite] ** 2).sum()), 1e-300) / total) if total > 0 else math.inf


def measure(path: Path, pipeline: str, feeds: Any, expected: list[Any], folder: Path) -> dict[str, Any]:
    """Run one pipeline over one model."""
    out = folder / "out.onnx"
    start = time.perf_counter()
    result = graphopt.run(path, pipeline, out=out, validate=False)
    seconds = time.perf_counter() - start
    step = result.report.steps[-1]
    changed = any(each.status == "committed" for each in result.report.steps)
    row: dict[str, Any] = {"seconds": round(seconds, 2), "changed": changed, "counts": dict(step.counts)}
    if not changed:
        row["reason"] = step.skipped[0].reason if step.skipped else "nothing to do"
        return row
    row["bytes_ratio"] = round(out.stat().st_size / path.stat().st_size, 4)
    found = outputs(out, feeds)
    pairs = zip(expected, found, strict=True)
    least = min((sqnr_db(a, b) for a, b in pairs if isinstance(a, np.ndarray)), default=math.inf)
    row["sqnr_db"] = None if math.isinf(least) and least > 0 else round(least, 1)
    return row


def main() -> int:
    """Go over all models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="*")
    parser.add_argument("--pipelines", nargs="*", default=list(PIPELINES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from graphopt.runtime.feeds import random_feeds

    rows: list[dict[str, Any]] = []
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, path in models(Path(os.environ["GRAPHOPT_ASSETS"]), folder, arguments.models):
            try:
                feeds = random_feeds(graphopt.load(path), 1)[0]
                expected = outputs(path, feeds)
            except Exception as error:  # noqa: BLE001 - the original does not run on made-up inputs
                print(f"{model:40s} the original does not run: {str(error)[:90]}", flush=True)
                continue
            for key in arguments.pipelines:
                row: dict[str, Any] = {"model": model, "pipeline": key}
                try:
                    row |= measure(path, PIPELINES[key], feeds, expected, folder)
                    bad = key in EXACT and row.get("sqnr_db") is not None and row["sqnr_db"] < 100
                except Exception as error:  # noqa: BLE001 - reported, counted
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
                    bad = True
                failed += bad
                rows.append(row)
                facts = ", ".join(
                    f"{k}={v}" for k, v in row.items() if k not in {"model", "pipeline", "counts"}
                )
                print(f"{model:40s} {key:16s} {'BAD ' if bad else ''}{facts}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} runs, {failed} bad")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
