"""What a GraphSurgeon script costs on a model with 1 GiB of external weights.

    python benchmarks/graphsurgeon_bridge.py [--mib 1024]

Each case runs in a child process of its own: seconds of the bridge alone, and the peak of its memory above
that before it. ``untouched`` changes nothing, ``one of 16`` doubles one weight; ``onnx-graphsurgeon`` loads,
imports, exports and saves the same model without graphopt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

LAYERS = 16

CHILD = """
import json, resource, sys, time
from pathlib import Path
case, path = sys.argv[1:3]
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
if case == "onnx-graphsurgeon":
    import onnx, onnx_graphsurgeon as gs
    before, start = peak(), time.perf_counter()
    graph = gs.import_onnx(onnx.load(path))
    proto = gs.export_onnx(graph)
    onnx.save(proto, path + ".out", save_as_external_data=True, location="out.data")
    same = 0
else:
    import onnx_graphsurgeon
    from graphopt.ir.graphsurgeon import run_graphsurgeon
    import graphopt.ir.graphsurgeon_writer
    from graphopt.ir.lower import load
    model = load(path)
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    def script(graph):
        if case == "one of 16":
            constant = graph.tensors()["w3"]
            constant.values = constant.values * 2
    before, start = peak(), time.perf_counter()
    run_graphsurgeon(model, script)
    same = sum(model.graph.initializers[name].const_value is tensor for name, tensor in tensors.items())
print(json.dumps({"seconds": time.perf_counter() - start, "mib": peak() - before, "same": same}))
"""


def build(folder: Path, mib: int) -> Path:
    """Write a chain of MatMuls whose weights, *mib* MiB in all, are external."""
    side = int((mib * 2**20 / LAYERS / 4) ** 0.5)
    data = folder / "weights.data"
    rng = np.random.default_rng(0)
    tensors = []
    with data.open("wb") as file:
        for index in range(LAYERS):
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[side, side])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", side * side * 4)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(rng.random((side, side), np.float32).tobytes())
            tensors.append(tensor)
    nodes = [helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"]) for k in range(LAYERS)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in ("x0", f"x{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "large", values[:1], values[1:], tensors)
    path = folder / "large.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def main() -> None:
    """Measure and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder), options.mib)
        for case in ("untouched", "one of 16", "onnx-graphsurgeon"):
            child = [sys.executable, "-c", CHILD, case, str(path)]
            root = Path(__file__).parents[1]
            output = subprocess.run(child, check=True, capture_output=True, text=True, cwd=root).stdout
            found = json.loads(output.splitlines()[-1])
            print(
                f"{case:18} {found['seconds'] * 1e3:8.1f} ms  +{found['mib']:7.1f} MiB"
                f"  {found['same']}/{LAYERS} tensors are the same objects"
            )
            if case == "untouched" and (
                found["seconds"] >= 1 or found["same"] < LAYERS or found["mib"] >= 64
            ):
                sys.exit("missed: under 1 s, no copy, every tensor the same object")


if __name__ == "__main__":
    main()
