"""What a factorised operator saves on onnxruntime's CPU provider: the numbers behind [low_rank] of ort-cpu.

    python benchmarks/lowrank.py

One operator alone against its thin form at several ranks, with the protocol of graphopt.runtime.latency (one
thread, thread CPU time, interleaved, ratio of medians). Printed beside the factor of MACs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.runtime.latency import measure_here

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
    nodes, weights, source, macs = [], [], "x", 0
    for index, (outputs, inputs, kernel) in enumerate(sizes):
        content = generator.standard_normal((outputs, inputs, *kernel)).astype(np.float32) / WIDTH
        macs += content.size * positions
        if kind == "conv":
            attributes = {"pads": [kernel[0] // 2] * 4}
            nodes.append(helper.make_node("Conv", [source, f"w{index}"], [f"y{index}"], **attributes))
        else:
            content = content.T.copy()
            nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [f"y{index}"]))
        weights.append(numpy_helper.from_array(content, f"w{index}"))
        source = f"y{index}"
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), macs


def main() -> None:
    """Measure, print a table and keep the numbers."""
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
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
