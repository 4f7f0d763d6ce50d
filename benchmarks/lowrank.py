"""What a factorised operator saves on onnxruntime's CPU provider, and what low rank costs on trained models.

    python benchmarks/lowrank.py [--part operators,anomaly-ae,cifar-resnet20]

``operators``: one operator alone against its thin form at several ranks, with the protocol of
graphopt.runtime.latency (one thread, thread CPU time, interleaved, ratio of medians), beside the factor of
MACs: the numbers behind [low_rank] of ort-cpu. The other parts run factorize-lowrank on a task of
GRAPHOPT_ASSETS and measure its metric; ``anomaly-ae`` also the time, on the 196 windows of a clip at once as
its evaluation feeds them, and on one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from benchmarks.nets import assembled
from graphopt.runtime.latency import measure_here
from tests.corpora import asset_tasks

WIDTH = 128
RANKS = (96, 80, 64, 63, 60, 56, 52, 48, 40, 32, 16)
KINDS = ("conv", "matmul", "row")
RESULTS = Path(__file__).parent / "results" / "lowrank.json"


def layer(kind: str, rank: int | None) -> tuple[onnx.ModelProto, int]:
    """Return a model of one operator, whole or of *rank*, and its MACs."""
    generator = np.random.default_rng(0)
    taps = (3, 3) if kind == "conv" else ()
    shape = [1, WIDTH, 28, 28] if kind == "conv" else [1 if kind == "row" else 64, WIDTH]
    positions = 28 * 28 if kind == "conv" else shape[0]
    sizes = (
        [(WIDTH, WIDTH, taps)]
        if rank is None
        else [(rank, WIDTH, taps), (WIDTH, rank, (1, 1) if taps else ())]
    )
    nodes, source, macs = [], "x", 0
    weights: dict[str, np.ndarray] = {}
    for index, (outputs, inputs, kernel) in enumerate(sizes):
        content = generator.standard_normal((outputs, inputs, *kernel)).astype(np.float32) / WIDTH
        macs += content.size * positions
        if kind == "conv":
            attributes = {"pads": [kernel[0] // 2] * 4}
            nodes.append(helper.make_node("Conv", [source, f"w{index}"], [f"y{index}"], **attributes))
        else:
            content = content.T.copy()
            nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [f"y{index}"]))
        weights[f"w{index}"] = content
        source = f"y{index}"
    return assembled(kind, nodes, shape, (source, shape), weights), macs


def operators() -> dict[str, Any]:
    """Measure and print a table."""
    found: dict[str, dict[int, list[float]]] = {kind: {} for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            whole, macs = layer(kind, None)
            first = Path(folder) / f"{kind}.onnx"
            onnx.save(whole, first)
            shape = [dim.dim_value for dim in whole.graph.input[0].type.tensor_type.shape.dim]
            feed = {"x": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}
            for rank in RANKS:
                thin, thin_macs = layer(kind, rank)
                second = Path(folder) / f"{kind}{rank}.onnx"
                onnx.save(thin, second)
                latency = measure_here(first, second, feed, budget_s=3.0)
                found[kind][rank] = [round(macs / thin_macs, 3), round(1 / latency.ratio, 3)]
    print("rank ", *(f"{kind + ' MACs':>12} {'time':>6}" for kind in KINDS))
    for rank in RANKS:
        print(f"{rank:5}", *("{:12.2f} {:6.2f}".format(*found[kind][rank]) for kind in KINDS))
    return {kind: {str(rank): pair for rank, pair in ranks.items()} for kind, ranks in found.items()}


DENSE = (
    "Identity",
    *(f"functional_1/activation_{k}/Relu;functional_1/dense_{k}/BiasAdd" for k in range(1, 9)),
)
FIRST = "functional_1/activation/Relu;functional_1/dense/BiasAdd"
LIMITS = {"auc_drop": 0.005, "speedup": 1.5}


def ranked(first: int, last: int, more: str = "") -> str:
    """Return the pipeline that gives the first and the last layer of the autoencoder these ranks.

    They hold 62 % of the MACs; those between lose more of the metric for each MAC that they save.
    """
    steps = []
    for name, rank in ((FIRST, first), ("Identity", last)):
        others = ",".join(f'"{each}"' for each in (FIRST, *DENSE) if each != name)
        steps.append(
            f"factorize-lowrank{{rank={rank},round_to=8,min_gain=1,recover=bias,keep=[{others}]{more}}}"
        )
    return ",".join(steps)


HALF = "factorize-lowrank{macs_ratio=0.5,round_to=8,min_gain=1"
ANOMALY = {
    "automatic, macs_ratio=0.5": f"{HALF}}}",
    "automatic, macs_ratio=0.5, biases": f"{HALF},recover=bias}}",
    "ranks 32 and 48": ranked(32, 48),
    "ranks 32 and 48, widened": ranked(32, 48, ",widen=1"),
    "ranks 32 and 48, widened, by the outputs": ranked(32, 48, ",sensitivity=output,widen=1"),
    "ranks 40 and 56": ranked(40, 56),
    "ranks 48 and 56": ranked(48, 56),
}
THIN = "factorize-lowrank{weight_ratio=0.75,round_to=1,min_gain=1,forms=[thin]"
RESNET20 = {
    "plain": f"{THIN},whiten=false,recover=none}}",
    "whitened": f"{THIN},recover=none}}",
    "whitened, biases": f"{THIN},recover=bias}}",
    "whitened, compensated, fitted": f"{THIN},recover=least-squares}}",
}


def factorised(task: Any, pipeline: str, data: list[Any], out: Path) -> dict[str, Any]:
    """Run *pipeline* and return the metric and the MACs that remain."""
    import graphopt
    from benchmarks.rows import evaluate
    from graphopt.ir import load
    from graphopt.ir.cost import measure_cost

    graphopt.run(task.model, pipeline, out=out, data=data, validate=False)
    metric = evaluate(task, out)
    macs = [measure_cost(load(path), {}).known_macs for path in (task.model, out)]
    return {task.metric: round(metric, 4), "macs_ratio": round(macs[1] / macs[0], 3)}


def anomaly() -> list[dict[str, Any]]:
    """Factorise the autoencoder and measure its AUC and its time."""
    task = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))["anomaly-ae"]
    data = list(task.calibration(task.calibration_size))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name, pipeline in ANOMALY.items():
            row: dict[str, Any] = {
                "case": name,
                "pipeline": pipeline,
                **factorised(task, pipeline, data, out),
            }
            row["auc_drop"] = round(task.baseline - row["auc"], 4)
            for count in (196, 1):
                feed = {"input_1": np.concatenate([each["input_1"] for each in data[:count]])}
                latency = measure_here(task.model, out, feed, budget_s=3.0)
                row[f"speedup_{count}_rows"] = round(1 / latency.ratio, 3)
            row["limits"] = LIMITS
            row["passed"] = (
                row["auc_drop"] <= LIMITS["auc_drop"] and row["speedup_196_rows"] >= LIMITS["speedup"]
            )
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def resnet20() -> list[dict[str, Any]]:
    """Factorise every convolution to 0.75 of its MACs: plain SVD beside whitened and fitted forms."""
    task = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))["cifar-resnet20"]
    data = list(task.calibration(256))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, pipeline in RESNET20.items():
            row = {"case": name, "pipeline": pipeline}
            row |= factorised(task, pipeline, data, Path(folder) / "out.onnx")
            row["points_over_plain"] = round(100 * (row["top1"] - (rows[0] if rows else row)["top1"]), 1)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


PARTS: dict[str, Any] = {"operators": operators, "anomaly-ae": anomaly, "cifar-resnet20": resnet20}


def main() -> None:
    """Measure the parts that are asked for, and keep the numbers beside those of the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default=",".join(PARTS))
    for part in parser.parse_args().part.split(","):
        found = PARTS[part]()
        kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**kept, part: found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
