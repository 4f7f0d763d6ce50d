"""insert-qdq beside onnxruntime.quantization (U8S8, per channel, preprocessed): metric, file, speed.

    GRAPHOPT_ASSETS=... python benchmarks/quantize.py [--json FILE] [NAME...]

Tasks have a metric; nets have random weights, a speed and an SQNR only. Both results are timed against the
cleaned-up float one in the same run, interleaved (graphopt.runtime.latency).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import GraphoptError
from graphopt.runtime.latency import measure_latency
from tests.corpora import zoo_model

CLEAN = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead"
FEEDS = 200
# name: (largest drop in points of the metric, file ratio, speed-up) that the project promises
TASKS = {
    "mobilenetv2": (0.6, 0.29, 1.85),
    "squeezenet": (0.3, 0.28, 2.3),
    "cifar-resnet20": (0.2, 0.31, 1.6),
    "cifar-resnet56": (0.2, 0.31, 1.6),
    "resnet8": (1.0, 0.39, 1.55),
    "anomaly-ae": (0.2, 0.29, 2.05),
    "kws-dscnn": (0.5, None, 1.0),
    "mobilenetv1-025": (0.0, None, 1.0),
    "stories-llama": (None, None, 1.0),
}
NETS = {"resnet50": 3.2, "bert-base-like": 2.7, "efficientnet_b0": 0.98, "mobilenet_v3_small": 0.98}


def bert(layers: int = 4, hidden: int = 768, heads: int = 12, length: int = 128) -> onnx.ModelProto:
    """An encoder of BERT-base's widths on embedded tokens."""
    rng, nodes, weights = np.random.default_rng(0), [], {}

    def weight(name: str, *shape: int) -> str:
        scale = 0.7 / np.sqrt(shape[0]) if len(shape) > 1 else 0.1
        weights[name] = (rng.normal(size=shape) * scale).astype(np.float32)
        return name

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def linear(x: str, name: str, wide: int, out: int) -> str:
        product = node("MatMul", [x, weight(f"{name}_w", wide, out)], f"{name}_m")
        return node("Add", [product, weight(f"{name}_b", out)], name)

    def norm(x: str, name: str) -> str:
        weights[f"{name}_g"], weights[f"{name}_s"] = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)
        return node("LayerNormalization", [x, f"{name}_g", f"{name}_s"], name)

    weights["split"] = np.array([0, 0, heads, hidden // heads], np.int64)
    weights["join"] = np.array([0, 0, hidden], np.int64)
    weights["root"] = np.array(np.sqrt(hidden // heads), np.float32)
    weights["half"], weights["one"], weights["two"] = (
        np.array(v, np.float32) for v in (0.5, 1.0, np.sqrt(2))
    )
    x = "x"
    for k in range(layers):
        parts = []
        for part, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
            shaped = node("Reshape", [linear(x, f"{part}{k}", hidden, hidden), "split"], f"{part}{k}_r")
            parts.append(node("Transpose", [shaped], f"{part}{k}_t", perm=order))
        scores = node("Div", [node("MatMul", parts[:2], f"s{k}"), "root"], f"d{k}")
        mixed = node("MatMul", [node("Softmax", [scores], f"p{k}", axis=-1), parts[2]], f"a{k}")
        joined = node(
            "Reshape", [node("Transpose", [mixed], f"a{k}_t", perm=(0, 2, 1, 3)), "join"], f"a{k}_r"
        )
        x = norm(node("Add", [linear(joined, f"o{k}", hidden, hidden), x], f"r{k}"), f"n{k}")
        up = linear(x, f"u{k}", hidden, 4 * hidden)
        erf = node("Add", [node("Erf", [node("Div", [up, "two"], f"e{k}")], f"f{k}"), "one"], f"h{k}")
        gelu = node("Mul", [node("Mul", [up, erf], f"i{k}"), "half"], f"g{k}")
        x = norm(node("Add", [linear(gelu, f"w{k}", 4 * hidden, hidden), x], f"t{k}"), f"m{k}")
    graph = helper.make_graph(
        nodes,
        "bert",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, length, hidden])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, length, hidden])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def peer(source: Path, out: Path, feeds: list[dict[str, Any]]) -> None:
    """Quantise with onnxruntime.quantization at its best settings."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    ready = out.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(out),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def run(path: Path) -> Any:
    """Return a feeds -> outputs function."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def sqnr_db(before: Path, after: Path, feeds: list[dict[str, Any]]) -> float:
    """Signal to noise over all outputs of *feeds*."""
    one, two = run(before), run(after)
    signal = noise = 0.0
    for feed in feeds:
        for a, b in zip(one(feed), two(feed), strict=True):
            signal += float((a.astype(np.float64) ** 2).sum())
            noise += float(((a.astype(np.float64) - b) ** 2).sum())
    return float(10 * np.log10(signal / max(noise, 1e-300)))


def compare(
    name: str, source: Path, feeds: list[dict[str, Any]], folder: Path, timed: dict[str, Any]
) -> dict[str, Any]:
    """Quantise with both tools and time them."""
    opset = graphopt.load(source).opset
    clean, ours, theirs = (folder / f"{name}-{kind}.onnx" for kind in ("float", "graphopt", "onnxruntime"))
    lead = "" if opset >= 13 else "upgrade-opset{to=13},"
    unpack = "decompress-weights{where=all}," if name == "kws-dscnn" else ""
    graphopt.run(source, f"{lead}{unpack}{CLEAN}", out=clean, validate=False)
    result = graphopt.run(clean, "insert-qdq", out=ours, data=feeds, validate=False)
    row: dict[str, Any] = {"name": name, "status": result.report.status, "bytes": ours.stat().st_size}
    row["file_ratio"] = ours.stat().st_size / source.stat().st_size
    latency = measure_latency(clean, ours, timed)
    row["speed"], row["noise"] = 1 / latency.ratio, latency.noise_ratio
    row["sqnr_db"] = sqnr_db(clean, ours, feeds[:8])
    try:
        peer(clean, theirs, feeds)
        row["peer_speed"] = 1 / measure_latency(clean, theirs, timed).ratio
        row["peer_file_ratio"] = theirs.stat().st_size / source.stat().st_size
        row["peer_sqnr_db"] = sqnr_db(clean, theirs, feeds[:8])
    except (GraphoptError, Exception) as error:  # noqa: BLE001 - the peer may fail in any way
        row["peer_error"] = f"{type(error).__name__}: {error}"[:200]
    row["files"] = {"graphopt": str(ours), "onnxruntime": str(theirs)}
    return row


def main(argv: list[str]) -> int:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    assets = Path(os.environ["GRAPHOPT_ASSETS"])
    spec = importlib.util.spec_from_file_location("tasks", assets / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    sys.modules["tasks"] = tasks
    spec.loader.exec_module(tasks)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in [*NETS, *TASKS]:
            if options.names and name not in options.names:
                continue
            rows.append(_net(name, folder, assets) if name in NETS else _task(tasks.TASKS[name], folder))
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "files"}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


def _net(name: str, folder: Path, assets: Path) -> dict[str, Any]:
    if name == "bert-base-like":
        source = folder / "bert.onnx"
        onnx.save(bert(), source)
    else:
        source = zoo_model(assets, name)
    from graphopt.runtime.feeds import random_feeds

    feeds = random_feeds(graphopt.load(source), 8, 0)
    return {**compare(name, source, feeds, folder, feeds[0]), "bar_speed": NETS[name]}


def _task(task: Any, folder: Path) -> dict[str, Any]:
    feeds = list(task.calibration(min(FEEDS, task.calibration_size)))
    timed = feeds[0]
    if task.name == "anomaly-ae":  # it is evaluated on all windows of a clip at once
        timed = {key: np.repeat(value, 196, 0) for key, value in feeds[0].items()}
    row = compare(task.name, task.model, feeds, folder, timed)
    row["metric"], row["float"] = task.evaluate(run(Path(row["files"]["graphopt"]))), task.baseline
    if "peer_error" not in row:
        row["peer_metric"] = task.evaluate(run(Path(row["files"]["onnxruntime"])))
    row["bar"] = TASKS[task.name]
    return row


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
