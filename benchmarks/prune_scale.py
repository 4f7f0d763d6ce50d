"""Prune large generated graphs: CPU time of the analysis, the rewrite and the whole pass, and peak memory.

    python benchmarks/prune_scale.py [NAME ...] [--output FILE]

The nets: ``residual`` (10,000 nodes of Conv, Relu and Add), ``dense`` (10,000 nodes, blocks that
concatenate all that came before), ``transformer`` (10,000 nodes of narrow attention and MLP blocks),
``vit-b16`` (ViT-B/16 at 224 x 224, 86 million parameters) and ``vgg`` (one wide convolution net, for
memory). Each runs in a child process of its own. "analysis" finds the families, "rewrite" cuts half of
each, "pass" is prune-channels{macs_ratio=0.5} with its oracle, session creation by onnxruntime included;
"sessions" is the part of it that onnxruntime takes to load the two models, measured apart. Memory is the
growth of the peak over what the process held with the model loaded, in multiples of the bytes of the
weights, of analysis and rewrite.

Limits of analysis and rewrite: 20 s for the graphs of 10,000 nodes, 1 s for ViT-B/16, growth under 2 for
the nets whose weights are more than the graph. The pass has a limit of 60 s, so that nothing in it grows
with the square of the graph unseen. The exit status is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "prune_scale.json"
PIPELINE = "prune-channels{macs_ratio=0.5,best_effort=true}"


class Net:
    """A graph in the making: nodes and seeded weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        """Add a random weight of *shape*, *gain* over the root of its fan-in, and return its name."""
        name = f"w{len(self.weights)}"
        scale = gain / max(float(np.prod(shape[1:])), 1.0) ** 0.5
        array = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *items: int) -> str:
        """Add an int64 vector and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(items, np.int64), name))
        return name

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        number = len(self.nodes)
        names = [f"v{number}"] if outputs == 1 else [f"v{number}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=f"n{number}", **attributes))
        return names[0]

    def conv(self, value: str, ins: int, outs: int, kernel: int = 3, *, gain: float = 1.0) -> str:
        """Add a convolution with a bias and padding that keeps the map's size."""
        pads = [kernel // 2] * 4
        weight = self.weight(outs, ins, kernel, kernel, gain=gain)
        return self.op("Conv", value, weight, self.weight(outs, gain=gain), pads=pads)

    def linear(self, value: str, ins: int, outs: int) -> str:
        """Add a MatMul and an Add."""
        return self.op("Add", self.op("MatMul", value, self.weight(ins, outs)), self.weight(outs))

    def model(self, shape: list[int], last: str) -> onnx.ModelProto:
        """Return the model of one input of *shape* whose output is *last*."""
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self.weights,
        )
        assert last
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def head(net: Net, value: str, width: int, shape: list[int]) -> onnx.ModelProto:
    """Add pooling and a classifier."""
    flat = net.op("Flatten", net.op("GlobalAveragePool", value))
    return net.model(shape, net.op("Gemm", flat, net.weight(10, width), net.weight(10), transB=1))


def residual(nodes: int = 10_000, width: int = 16) -> onnx.ModelProto:
    """Return a residual convolution net of about *nodes* nodes."""
    net = Net()
    value = net.conv("x", 3, width)
    while len(net.nodes) < nodes - 3:
        inner = net.op("Relu", net.conv(value, width, width))
        # A small gain: what a thousand blocks add stays finite.
        value = net.op("Relu", net.op("Add", net.conv(inner, width, width, gain=0.05), value))
    return head(net, value, width, [1, 3, 8, 8])


def dense(nodes: int = 10_000, growth: int = 8, layers: int = 24) -> onnx.ModelProto:
    """Return blocks of *layers* layers, each of which reads all that its block made so far."""
    net = Net()
    value, width = net.conv("x", 3, 16), 16
    while len(net.nodes) < nodes - 3:
        parts = [value]
        for _ in range(layers):
            value = net.op("Concat", *parts, axis=1) if len(parts) > 1 else value
            parts.append(net.op("Relu", net.conv(value, width, growth)))
            width += growth
        value = net.conv(net.op("Concat", *parts, axis=1), width, 16, 1)
        width = 16
    return head(net, value, width, [1, 3, 8, 8])


def attention(net: Net, value: str, tokens: int, width: int, heads: int) -> str:
    """Add multi-head self-attention as exporters write it."""
    split = net.ints(1, tokens, heads, width // heads)
    query, key, content = (
        net.op("Transpose", net.op("Reshape", net.linear(value, width, width), split), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", query, key), axis=-1), content)
    joined = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(1, tokens, width))
    return net.linear(joined, width, width)


def encoder(net: Net, value: str, tokens: int, width: int, heads: int, hidden: int) -> str:
    """Add one block: attention and MLP, each behind a norm and a residual."""

    def norm(inside: str) -> str:
        return net.op("LayerNormalization", inside, net.weight(width), net.weight(width), axis=-1)

    value = net.op("Add", value, attention(net, norm(value), tokens, width, heads))
    inner = net.op("Relu", net.linear(norm(value), width, hidden))
    return net.op("Add", value, net.linear(inner, hidden, width))


def transformer(nodes: int = 10_000, width: int = 32) -> onnx.ModelProto:
    """Return narrow encoder blocks, about *nodes* nodes."""
    net = Net()
    value = net.op("Relu", "x")
    while len(net.nodes) < nodes:
        value = encoder(net, value, 8, width, 4, 64)
    return net.model([1, 8, width], net.linear(value, width, 10))


def vit_b16() -> onnx.ModelProto:
    """Return ViT-B/16: patches of 16 x 16, 12 blocks of width 768 and 12 heads, 197 tokens."""
    net = Net()
    patches = net.op("Conv", "x", net.weight(768, 3, 16, 16), net.weight(768), strides=[16, 16])
    tokens = net.op("Transpose", net.op("Reshape", patches, net.ints(1, 768, 196)), perm=[0, 2, 1])
    value = net.op("Add", net.op("Concat", net.weight(1, 1, 768), tokens, axis=1), net.weight(1, 197, 768))
    for _ in range(12):
        value = encoder(net, value, 197, 768, 12, 3072)
    first = net.op("Gather", value, net.ints(0), axis=1)
    return net.model([1, 3, 224, 224], net.linear(net.op("Flatten", first), 768, 1000))


def vgg() -> onnx.ModelProto:
    """Return a wide plain net of 75 million parameters in convolutions."""
    net = Net()
    value, ins = "x", 3
    for width in (256, 512, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024):
        value = net.op("Relu", net.conv(value, ins, width))
        ins = width
    return head(net, value, ins, [1, 3, 4, 4])


NETS: dict[str, tuple[Callable[[], onnx.ModelProto], float, float | None]] = {
    # seconds of analysis and rewrite, growth of the memory over the bytes of the weights
    "residual": (residual, 20.0, None),
    "dense": (dense, 20.0, None),
    "transformer": (transformer, 20.0, None),
    "vit-b16": (vit_b16, 1.0, 2.0),
    "vgg": (vgg, 1.0, 2.0),
}
PASS_LIMIT_S = 60.0


def forget_peak() -> None:
    """Make the peak of the resident memory what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the peak of the resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(path: Path) -> dict[str, Any]:
    """Analyse, cut and run the pass on one file; times are CPU seconds of this process."""
    import onnxruntime as ort

    import graphopt
    from graphopt.ir import load
    from graphopt.passes.pruning.anatomy import examine

    model = load(path)
    forget_peak()
    loaded = peak_bytes()
    start = time.process_time()
    anatomy = examine(model, dims={})
    analysed = time.process_time()
    clone = model.clone()
    anatomy.cut(clone, {family.name: np.arange(max(1, family.size // 2)) for family in anatomy.families})
    cut = time.process_time()
    grown = peak_bytes() - loaded
    del clone
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session = time.process_time() - cut
    start_of_pass = time.process_time()
    result = graphopt.run(path, PIPELINE, validate=False)
    whole = time.process_time() - start_of_pass
    (step,) = result.report.steps
    return {
        "nodes": sum(1 for _ in model.nodes()),
        "families": len(anatomy.families),
        "analysis_s": round(analysed - start, 3),
        "rewrite_s": round(cut - analysed, 3),
        "pass_s": round(whole, 2),
        "session_s": round(session, 2),
        "growth": round(grown / path.stat().st_size, 2),
        "macs_ratio": round(step.extra["macs_ratio"], 4),
        "cut": len(step.extra["families"]),
    }


def missed(name: str, found: dict[str, Any]) -> list[str]:
    """Return the limits that *found* is over."""
    _, seconds, growth = NETS[name]
    wrong = []
    both = found["analysis_s"] + found["rewrite_s"]
    if both > seconds:
        wrong.append(f"analysis and rewrite took {both:.2f} s, limit {seconds}")
    if found["pass_s"] > PASS_LIMIT_S:
        wrong.append(f"the pass took {found['pass_s']} s, limit {PASS_LIMIT_S}")
    if growth is not None and found["growth"] > growth:
        wrong.append(f"memory grew by {found['growth']} times the weights, limit {growth}")
    return wrong


def main() -> int:
    """Measure the nets that were asked for, one child each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(NETS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(measure(given.child)))
        return 0
    results: dict[str, Any] = {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names or NETS:
            path = Path(folder) / f"{name}.onnx"
            onnx.save(NETS[name][0](), path)
            command = [sys.executable, __file__, "--child", str(path)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            path.unlink()
            wrong = missed(name, found)
            failed |= bool(wrong)
            results[name] = found
            print(name, json.dumps(found), *wrong, flush=True)
    if not given.names:
        given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
