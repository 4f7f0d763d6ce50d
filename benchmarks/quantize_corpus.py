"""insert-qdq over every model of the assets and the zoo: it loads, runs and agrees, or stays and says why.

    GRAPHOPT_ASSETS=... python benchmarks/quantize_corpus.py [NAME...]

Data are random; the point is that nothing breaks, not the accuracy. Nothing is measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import graphopt
from graphopt.errors import GraphoptError
from tests.corpora import asset_models, zoo_model, zoo_names

CLEAN = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead"


def main(names: list[str]) -> int:
    """Print one line a model; 1 where one failed."""
    assets = Path(os.environ["GRAPHOPT_ASSETS"])
    paths = {path.stem: path for path in asset_models(assets)}
    paths |= {name: Path() for name in zoo_names(assets)}
    failed = 0
    for name, path in paths.items():
        if names and name not in names:
            continue
        start = time.perf_counter()
        line = _one(name, path if path.name else zoo_model(assets, name))
        failed += line.startswith("FAILED")
        print(f"{name:45} {time.perf_counter() - start:5.1f} s  {line}", flush=True)
    return 1 if failed else 0


def _one(name: str, path: Path) -> str:
    model = graphopt.load(path)
    opset = "" if model.opset >= 13 else "upgrade-opset{to=13},"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{name}.onnx"
        try:
            result = graphopt.run(
                path, f"{opset}{CLEAN},insert-qdq{{measure=off}}", out=out, data="random:2", validate=True
            )
        except GraphoptError as error:
            return f"FAILED {error}"
        step = result.report.steps[-1]
        if step.status == "unchanged":
            return f"unchanged: {step.skipped[-1].reason if step.skipped else '?'}"
        validation = result.report.validation
        if validation is None:
            return "not validated"
        found = [each.sqnr_db for each in validation.outputs if each.sqnr_db is not None]
        worst = min(found, default=None)
        structure = validation.structure
        kernels = 0 if structure is None else structure.integer_kernels
        left = 0 if structure is None else structure.dequantize_before_compute
        shown = "exact" if worst is None else f"{worst:.1f} dB"
        return (
            f"{shown}, {kernels} integer kernels, {left} DequantizeLinear left, {len(step.skipped)} skipped"
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
