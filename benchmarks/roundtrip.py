"""Load and emit every model of every corpus without a pass: how many come back the same, how fast.

    GRAPHOPT_ASSETS=... GRAPHOPT_NODE_MODELS=... python benchmarks/roundtrip.py

Corpora whose folder is not named are left out. Prints one JSON object a corpus, then the time a node of a
50,000-node chain for each way in and out. "Same" is the canonical form of tests/canonical.py.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt.ir.emit import emit, save
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import load
from graphopt.ir.verify import verify
from tests import corpora
from tests.canonical import same_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CHAIN_NODES = 50_000
TRIALS = 3


def measure_corpus(name: str, paths: Iterable[Path]) -> None:
    """Print how many models of a corpus come back the same."""
    models = same = nodes = 0
    seconds = {"load": 0.0, "emit": 0.0}
    different = []
    for path in paths:
        start = time.process_time()
        model = load(path)
        loaded = time.process_time()
        message = emit(model)
        emitted = time.process_time()
        seconds["load"] += loaded - start
        seconds["emit"] += emitted - loaded
        models += 1
        nodes += sum(1 for _ in model.nodes())
        if same_model(onnx.ModelProto.FromString(path.read_bytes()), message):
            different.append(path.name)
        else:
            same += 1
    times = {f"{key}_s": round(value, 3) for key, value in seconds.items()}
    counts = {"models": models, "same": same, "different": different, "nodes": nodes}
    print(json.dumps({"benchmark": "roundtrip", "corpus": name, **counts, **times}))


def chain() -> onnx.ModelProto:
    """Identity, Add, Cast, MatMul, Relu, over and over, with value_info for every value."""
    nodes, tensors = [], [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    infos = [helper.make_tensor_value_info(f"v{k}", 1, ["N", 4]) for k in range(CHAIN_NODES + 1)]
    for k in range(CHAIN_NODES):
        op_type = ("Identity", "Add", "Cast", "MatMul", "Relu")[k % 5]
        inputs = [f"v{k}"]
        if op_type == "Add":
            tensors.append(numpy_helper.from_array(np.ones(4, np.float32), f"c{k}"))
            inputs.append(f"c{k}")
        elif op_type == "MatMul":
            inputs.append("w")
        node = helper.make_node(op_type, inputs, [f"v{k + 1}"], name=f"n{k}")
        if op_type == "Cast":
            node.attribute.append(helper.make_attribute("to", 1))
        nodes.append(node)
    graph = helper.make_graph(
        nodes, "chain", infos[:1], infos[-1:], initializer=tensors, value_info=infos[1:-1]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def measure_chain(folder: Path) -> None:
    """Print the CPU time a node of each step on the chain."""
    path = folder / "chain.onnx"
    path.write_bytes(chain().SerializeToString())
    model = load(path)
    steps: dict[str, Callable[[], object]] = {
        "load": lambda: load(path),
        "clone": model.clone,
        "verify": lambda: verify(model),
        "fingerprint": lambda: fingerprint(model),
        "emit": lambda: emit(model),
        "save": lambda: save(model, folder / "out.onnx"),
    }
    for name, step in steps.items():
        best = float("inf")
        for _ in range(TRIALS):
            start = time.process_time()
            step()
            best = min(best, time.process_time() - start)
        times = {"seconds": round(best, 3), "us_per_node": round(best / CHAIN_NODES * 1e6, 1)}
        print(json.dumps({"benchmark": "roundtrip", "step": name, "nodes": CHAIN_NODES, **times}))


def main() -> None:
    """Measure all corpora and the chain."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_corpus("onnx wheel", corpora.onnx_wheel_models())
        measure_corpus("feature families", corpora.feature_models(folder).values())
        assets, nodes = os.environ.get("GRAPHOPT_ASSETS"), os.environ.get("GRAPHOPT_NODE_MODELS")
        if assets:
            measure_corpus("assets", corpora.asset_models(Path(assets)))
            measure_corpus("zoo", corpora.zoo_models(Path(assets)))
        if nodes:
            measure_corpus("backend node models", corpora.node_models(Path(nodes)))
        measure_chain(folder)


if __name__ == "__main__":
    main()
