"""Prune every architecture of the zoo to half its MACs, prove it, time it, and print the table of the README.

    python benchmarks/zoo/prune.py ASSETS [NAME ...] [--ratio 0.5] [--approximate] [--no-latency] [--markdown]

ASSETS is the folder that holds zoo/. A net whose free families cannot reach the ratio goes as far as they
allow. Times are those of the calling thread: "analysis" is what it takes to find the families, "rewrite" to
cut them. The latency ratio is after / before with the protocol of graphopt.runtime.latency.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import graphopt
from graphopt.ir import Model, load
from graphopt.passes.pruning.anatomy import examine
from graphopt.passes.pruning.inputs import oracle_feeds
from graphopt.runtime.latency import measure_here

RESULTS = Path(__file__).parents[1] / "results" / "zoo_prune.json"
HEADS = ("net", "families", "units", "analysis", "rewrite", "MACs", "parameters", "oracle error", "latency")


def materialized(assets: Path, name: str, folder: Path) -> Path:
    """Write one net with its weights filled in and return its path."""
    spec = importlib.util.spec_from_file_location("materialize", assets / "zoo" / "materialize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = folder / f"{name}.onnx"
    path.write_bytes(module.materialize(assets / "zoo" / f"{name}.onnx").SerializeToString())
    return path


def timed(work: Any) -> tuple[Any, float]:
    """Return what *work* returns and the CPU seconds that it took."""
    start = time.thread_time()
    found = work()
    return found, time.thread_time() - start


def prune(path: Path, ratio: float, *, approximate: bool, latency: bool) -> dict[str, Any]:
    """Return everything that the table shows about one net."""
    model: Model = load(path)
    anatomy, analysis_s = timed(lambda: examine(model, dims={}))
    kept = {family.name: np.arange(max(1, family.size // 2)) for family in anatomy.families}
    clone = model.clone()
    _, rewrite_s = timed(lambda: anatomy.cut(clone, kept))
    start = time.perf_counter()
    result = graphopt.run(path, pipeline(ratio, approximate=approximate), validate=False)
    (step,) = result.report.steps
    if not step.changed and not approximate:  # all that it has are units that norms run over
        approximate = True
        result = graphopt.run(path, pipeline(ratio, approximate=True), validate=False)
        (step,) = result.report.steps
    found: dict[str, Any] = {
        "families": len(anatomy.families),
        "units": sum(family.size for family in anatomy.families),
        "unknown_ops": sorted({lock.unknown_op for lock in anatomy.locks if lock.unknown_op}),
        "analysis_s": round(analysis_s, 3),
        "rewrite_s": round(rewrite_s, 3),
        "pass_s": round(time.perf_counter() - start, 3),
        "changed": step.changed,
        "approximate": approximate,
        **{key: step.extra[key] for key in ("macs_ratio", "params_ratio", "oracle")},
        "notes": step.extra.get("notes", []),
    }
    if latency and step.changed:
        out = path.with_suffix(".pruned.onnx")
        graphopt.save(result.model, out)
        (feed,) = oracle_feeds(model, {}, 0, 1)
        measured = measure_here(path, out, feed)
        found |= {"latency_ratio": round(measured.ratio, 4), "noise_ratio": round(measured.noise_ratio, 4)}
        out.unlink()
    return found


def pipeline(ratio: float, *, approximate: bool) -> str:
    """Return the text of the pipeline that is measured."""
    options = f"macs_ratio={ratio},best_effort=true,allow_approximate={str(approximate).lower()}"
    return f"prune-channels{{{options}}}"


def error_of(found: dict[str, Any]) -> str:
    """Return the largest relative error that the oracle saw."""
    errors = [each["relative_error"] for verdicts in found["oracle"].values() for each in verdicts]
    return f"{max(errors):.1e}" if errors else "-"


def row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one net."""
    return (
        f"{name} (approximate)" if found["approximate"] else name,
        str(found["families"]),
        str(found["units"]),
        f"{found['analysis_s']:.2f} s",
        f"{found['rewrite_s']:.2f} s",
        f"{found['macs_ratio']:.3f}",
        f"{found['params_ratio']:.3f}",
        error_of(found),
        f"{found['latency_ratio']:.2f}" if "latency_ratio" in found else "-",
    )


def main() -> None:
    """Run the nets that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("assets", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--approximate", action="store_true")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    names = given.names or sorted(path.stem for path in (given.assets / "zoo").glob("*.onnx"))
    results: dict[str, Any] = {}
    if given.markdown:
        print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = materialized(given.assets, name, Path(folder))
            try:
                found = prune(path, given.ratio, approximate=given.approximate, latency=not given.no_latency)
            except graphopt.GraphoptError as error:
                results[name] = {"error": str(error)}
                print(f"{name}: {error}", flush=True)
                continue
            finally:
                path.unlink()
            results[name] = found
            cells = row(name, found)
            if given.markdown:
                print(f"| {' | '.join(cells)} |", flush=True)
            else:
                print(" ".join(f"{cell:>12}" for cell in cells), found["unknown_ops"] or "", flush=True)
    if not given.names:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
