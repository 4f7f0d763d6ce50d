"""How fast onnxruntime's CPU provider computes a layer by its width: what prune-channels rounds to.

    python benchmarks/channel_widths.py

Times one layer of each kind at several widths against the same layer at 128, with the protocol of
graphopt.runtime.latency (one thread, thread CPU time, interleaved, ratio of medians).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from benchmarks.nets import assembled
from graphopt.runtime.latency import measure_here

WIDTHS = (127, 124, 120, 112, 104, 100, 96, 72, 64, 60, 40, 32)
FULL = 128
KINDS = ("conv", "depthwise", "matmul")
RESULTS = Path(__file__).parent / "results" / "channel_widths.json"


def layer(kind: str, width: int) -> onnx.ModelProto:
    """Return three layers of *width* in a row, so that the layout of the data is that of a chain."""
    rng = np.random.default_rng(0)
    nodes, source = [], "x"
    weights: dict[str, np.ndarray] = {}
    shape = [1, width, 28, 28] if kind != "matmul" else [64, width]
    for index in range(3):
        if kind == "matmul":
            array = rng.standard_normal((width, width), dtype=np.float32) / np.sqrt(width)
            nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [f"y{index}"]))
        else:
            group = width if kind == "depthwise" else 1
            array = rng.standard_normal((width, width // group, 3, 3), dtype=np.float32) / np.sqrt(9 * width)
            nodes.append(
                helper.make_node("Conv", [source, f"w{index}"], [f"y{index}"], pads=[1] * 4, group=group)
            )
        weights[f"w{index}"] = array.astype(np.float32)
        source = f"y{index}"
    return assembled(kind, nodes, shape, (source, shape), weights)


def feed(kind: str, width: int) -> dict[str, np.ndarray]:
    """Return an input for :func:`layer`."""
    shape = (1, width, 28, 28) if kind != "matmul" else (64, width)
    return {"x": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}


def main() -> None:
    """Measure, print a table and keep the numbers."""
    found: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            seconds = {}
            for width in (FULL, *WIDTHS):
                path = Path(folder) / f"{kind}{width}.onnx"
                onnx.save(layer(kind, width), path)
                seconds[width] = measure_here(path, path, feed(kind, width)).before_s
            found[kind] = {width: round(seconds[width] / seconds[FULL], 3) for width in WIDTHS}
    print("time over that of width 128")
    print("width", *(f"{kind:>10}" for kind in KINDS))
    for width in WIDTHS:
        print(f"{width:5}", *(f"{found[kind][width]:10.3f}" for kind in KINDS))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
