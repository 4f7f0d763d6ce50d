"""The weight family: weight-only and dynamic quantisation, each against what it must reach.

    python benchmarks/weights.py [--part decoder,encoder,lstm,gru,llama,rules,softmax]

The parts generate models with random weights and compare thread CPU time on one thread, interleaved with
fp32, in fresh sessions (graphopt.runtime.latency). ``llama`` needs GRAPHOPT_ASSETS. ``rules`` and ``softmax``
measure what the tables of ort-cpu say. One line of JSON a measurement; the exit status is 1 where a limit is
missed.
streaming.py measures the family over large weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def report(results: list[dict[str, Any]], **line: Any) -> None:
    """Print one measurement and keep it."""
    results.append(line)
    print(json.dumps(line), flush=True)


# Whole models


class Builder:
    """Nodes and random weights of a model, appended one by one."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self._rng = np.random.default_rng(seed)
        self._count = 0

    def weight(self, *dims: int, scale: float | None = None) -> str:
        """Add a random weight and return its name."""
        from onnx import numpy_helper

        self._count += 1
        name = f"w{self._count}"
        spread = scale if scale is not None else 1 / math.sqrt(dims[-2] if len(dims) > 1 else 64)
        array = (self._rng.standard_normal(dims) * spread).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        self._count += 1
        self.tensors.append(numpy_helper.from_array(np.array(value, dtype), f"c{self._count}"))
        return f"c{self._count}"

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        from onnx import helper

        self._count += 1
        name = f"{op_type.lower()}{self._count}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def norm(self, x: str, width: int) -> str:
        """Add a LayerNormalization with constant scale and shift."""
        scale, shift = self.constant(np.ones(width), np.float32), self.weight(width, scale=0.02)
        return self.add("LayerNormalization", x, scale, shift)

    def dense(self, x: str, rows: int, columns: int) -> str:
        """Add a product and its bias."""
        return self.add(
            "Add", self.add("MatMul", x, self.weight(rows, columns)), self.weight(columns, scale=0.02)
        )

    def save(self, path: Path, inputs: dict[str, tuple[int, list[int]]], output: str, rank: int) -> Path:
        """Write the model and return its path."""
        from onnx import helper

        infos = [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()]
        result = helper.make_tensor_value_info(output, 1, [None] * rank)
        graph = helper.make_graph(self.nodes, "g", infos, [result], initializer=self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        path.write_bytes(model.SerializeToString())
        return path


def attention(b: Builder, x: str, width: int, heads: int, *, past: int, layer: int) -> str:
    """Add self-attention; with *past* positions of a cache, which are inputs of the model."""
    split = b.constant([0, 0, heads, width // heads], np.int64)
    joined = b.constant([0, 0, width], np.int64)
    query, key, value = (b.add("Reshape", b.dense(x, width, width), split) for _ in range(3))
    query = b.add("Transpose", query, perm=[0, 2, 1, 3])
    key = b.add("Transpose", key, perm=[0, 2, 1, 3])
    value = b.add("Transpose", value, perm=[0, 2, 1, 3])
    if past:
        key = b.add("Concat", f"key{layer}", key, axis=2)
        value = b.add("Concat", f"value{layer}", value, axis=2)
    scores = b.add("MatMul", query, b.add("Transpose", key, perm=[0, 1, 3, 2]))
    scaled = b.add("Mul", scores, b.constant(1 / math.sqrt(width // heads), np.float32))
    mixed = b.add("MatMul", b.add("Softmax", scaled, axis=-1), value)
    merged = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    return b.dense(merged, width, width)


def decoder(path: Path, *, width: int = 768, layers: int = 4, vocabulary: int = 4096, past: int = 64) -> Path:
    """Write one step of a GPT-like decoder: one token, a cache of *past* positions."""
    b = Builder()
    inputs: dict[str, tuple[int, list[int]]] = {"tokens": (7, [1, 1])}
    x = b.add("Gather", b.weight(vocabulary, width, scale=0.5), "tokens")
    for layer in range(layers):
        for name in ("key", "value"):
            inputs[f"{name}{layer}"] = (1, [1, 12, past, width // 12])
        x = b.add("Add", x, attention(b, b.norm(x, width), width, 12, past=past, layer=layer))
        hidden = b.add("Gelu", b.dense(b.norm(x, width), width, 4 * width))
        x = b.add("Add", x, b.dense(hidden, 4 * width, width))
    logits = b.add("MatMul", b.norm(x, width), b.weight(width, vocabulary))
    return b.save(path, inputs, logits, 3)


def encoder(path: Path, *, width: int = 768, layers: int = 4, tokens: int = 128) -> Path:
    """Write a BERT-base-like encoder of a few layers on *tokens* embedded tokens."""
    b = Builder()
    x = "x"
    for _ in range(layers):
        x = b.norm(b.add("Add", attention(b, x, width, 12, past=0, layer=0), x), width)
        hidden = b.dense(x, width, 4 * width)
        erf = b.add("Erf", b.add("Div", hidden, b.constant(math.sqrt(2), np.float32)))
        gelu = b.add(
            "Mul",
            b.add("Mul", hidden, b.add("Add", erf, b.constant(1, np.float32))),
            b.constant(0.5, np.float32),
        )
        x = b.norm(b.add("Add", b.dense(gelu, 4 * width, width), x), width)
    return b.save(path, {"x": (1, [1, tokens, width])}, x, 3)


def recurrent(
    path: Path, op_type: str = "LSTM", *, width: int = 512, hidden: int = 512, steps: int = 32
) -> Path:
    """Write two LSTM or GRU, one behind the other, on one sequence of *steps*."""
    b = Builder()
    axis = b.constant([1], np.int64)
    gates = {"LSTM": 4, "GRU": 3}[op_type]
    x, inputs = "x", width
    for _ in range(2):
        spread = 1 / math.sqrt(hidden)
        weight, state = (
            b.weight(1, gates * hidden, inputs, scale=spread),
            b.weight(1, gates * hidden, hidden, scale=spread),
        )
        x = b.add("Squeeze", b.add(op_type, x, weight, state, hidden_size=hidden), axis)
        inputs = hidden
    return b.save(path, {"x": (1, [steps, 1, width])}, x, 3)


def feeds_of(path: Path) -> dict[str, Any]:
    """Return one seeded feed."""
    import onnx

    rng, feeds = np.random.default_rng(1), {}
    for info in onnx.load(path).graph.input:
        dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        integer = info.type.tensor_type.elem_type == onnx.TensorProto.INT64
        feeds[info.name] = (
            rng.integers(0, 1000, dims) if integer else rng.standard_normal(dims).astype(np.float32)
        )
    return feeds


def judge(
    results: list[dict[str, Any]],
    part: str,
    model: Path,
    pipeline: str,
    *,
    speed: float,
    sqnr_db: float | None = None,
) -> bool:
    """Run *pipeline* on *model* and compare time and outputs at the runtime's full optimisation."""
    import graphopt
    from graphopt.runtime.latency import measure_latency
    from graphopt.runtime.session import open_session

    out = model.with_name(f"out-{model.name}")
    graphopt.run(model, pipeline, out=out, validate=False)
    feeds = feeds_of(model)
    one, two = (next(iter(open_session(path).run(feeds).values())) for path in (model, out))
    noise = float(np.square(np.asarray(one, np.float64) - np.asarray(two, np.float64)).sum())
    found_db = 10 * math.log10(float(np.square(np.asarray(one, np.float64)).sum()) / max(noise, 1e-300))
    latency = measure_latency(model, out, feeds)
    good = 1 / latency.ratio >= speed and (sqnr_db is None or found_db >= sqnr_db)
    report(
        results,
        part=part,
        pipeline=pipeline,
        speedup=round(1 / latency.ratio, 2),
        speedup_limit=speed,
        noise_ratio=round(latency.noise_ratio, 3),
        before_ms=round(1e3 * latency.before_s, 3),
        sqnr_db=round(found_db, 1),
        sqnr_limit_db=sqnr_db,
        file_ratio=round(out.stat().st_size / model.stat().st_size, 3),
        passed=good,
    )
    return good


def is_left_alone(results: list[dict[str, Any]], part: str, model: Path, pipeline: str) -> bool:
    """Say with which reasons *pipeline* leaves *model* as it is; true where it does and gives one."""
    import graphopt

    out = model.with_name(f"out-{model.name}")
    (step,) = graphopt.run(model, pipeline, out=out, validate=False).report.steps
    reasons = sorted({skip.reason for skip in step.skipped})
    good = step.status == "unchanged" and bool(reasons)
    report(
        results,
        part=part,
        pipeline=pipeline,
        changed=step.status != "unchanged",
        reasons=reasons,
        passed=good,
    )
    return good


LLAMA = (
    "canonicalize,fold-constants,rewrite-masked-softmax,synthesize-constants,quantize-weights,"
    "canonicalize,deduplicate,eliminate-dead"
)
LLAMA_LIMITS = {"file_ratio": 0.30, "perplexity_change": 0.01, "speedup": 1.15}


def llama(results: list[dict[str, Any]], folder: Path) -> bool:
    """Measure the file, the perplexity and the time of the small Llama of the assets, in both exports."""
    import graphopt
    from benchmarks.rows import evaluate
    from graphopt.runtime.latency import measure_latency

    sys.path.insert(0, os.environ["GRAPHOPT_ASSETS"])
    from tasks import TASKS  # type: ignore[import-not-found]  # stands with the assets

    passed = True
    for name in ("stories-llama", "stories-llama-dynamo"):
        task, out = TASKS[name], folder / "llama.onnx"
        graphopt.run(task.model, LLAMA, out=out, validate=False)
        perplexity = [evaluate(task, path) for path in (task.model, out)]
        latency = measure_latency(task.model, out, next(iter(task.calibration(1))))
        found = {
            "file_ratio": out.stat().st_size / task.model.stat().st_size,
            "perplexity_change": perplexity[1] / perplexity[0] - 1,
            "speedup": 1 / latency.ratio,
        }
        sign = {"speedup": -1}  # the others have an upper limit
        good = all(sign.get(key, 1) * (found[key] - limit) <= 0 for key, limit in LLAMA_LIMITS.items())
        passed &= good
        report(
            results,
            part=name,
            pipeline=LLAMA,
            **{key: round(value, 4) for key, value in found.items()},
            limits=LLAMA_LIMITS,
            perplexity=round(perplexity[1], 4),
            noise_ratio=round(latency.noise_ratio, 3),
            before_ms=round(1e3 * latency.before_s, 3),
            passed=good,
        )
    return passed


def softmax(results: list[dict[str, Any]], folder: Path) -> None:
    """Measure from which masked share on a floor pays in front of Softmax, for [softmax] of ort-cpu."""
    for width in (16, 49, 128, 512):
        rows = 262144 // width
        for share in (0.1, 0.2, 0.3, 0.5):
            b = Builder()
            mask = np.zeros((1, width), np.float32)
            mask[:, width - round(share * width) :] = -1e9
            y = b.add("Softmax", b.add("Add", "x", b.constant(mask, np.float32)), axis=-1)
            model = b.save(folder / "softmax.onnx", {"x": (1, [rows, width])}, y, 2)
            pipeline = "rewrite-masked-softmax{force=true}"
            judge(results, f"softmax, {share:.0%} of {width} masked", model, pipeline, speed=0.0)


def rules(results: list[dict[str, Any]], folder: Path, widths: tuple[int, ...]) -> None:
    """Measure from which width on codes pay, for the tables [weight_only] and [dynamic] of ort-cpu."""
    pipelines = {
        "weights 8 bit": "quantize-weights{form=dequantize,min_elements=1}",
        "weights 8 bit in blocks": "quantize-weights{form=dequantize,min_elements=1,block_size=64}",
        "weights 4 bit": "quantize-weights{form=dequantize,min_elements=1,bits=4,block_size=64}",
        "dynamic": "quantize-dynamic{min_elements=1}",
    }
    for width in widths:
        for rows in (1, 4, 16, 128):
            b = Builder()
            x = "x"
            for _ in range(4):
                x = b.dense(x, width, width)
            model = b.save(folder / "rule.onnx", {"x": (1, [1, rows, width])}, x, 3)
            for pipeline in pipelines.values():
                judge(results, f"rules, width {width}, {rows} rows", model, pipeline, speed=0.0)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="decoder,encoder,lstm,gru,llama")
    parser.add_argument("--widths", default="64,128,192,256,512,768", help="of the part rules")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    parts = options.part.split(",")
    results: list[dict[str, Any]] = []
    passed = True
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if "decoder" in parts:
            model = decoder(folder / "decoder.onnx")
            passed &= judge(results, "decoder", model, "quantize-weights{bits=4}", speed=3.0)
            passed &= judge(results, "decoder", model, "quantize-weights", speed=1.8)
        if "encoder" in parts:
            model = encoder(folder / "encoder.onnx")
            both = "quantize-dynamic,rewrite-residual-sum"
            passed &= judge(results, "encoder", model, both, speed=2.9, sqnr_db=32.0)
            judge(results, "encoder", model, "rewrite-residual-sum", speed=0.0)
        if "lstm" in parts:
            # The share of the products in an LSTM grows with its size; the limit is for the larger one.
            for width, limit in ((512, 3.0), (256, 0.0)):
                model = recurrent(folder / "lstm.onnx", width=width)
                part = f"lstm, {width} inputs, 512 hidden, 32 steps"
                passed &= judge(results, part, model, "quantize-dynamic", speed=limit)
        if "gru" in parts:
            model = recurrent(folder / "gru.onnx", "GRU")
            passed &= is_left_alone(results, "gru", model, "quantize-dynamic")
        if "llama" in parts:
            passed &= llama(results, folder)
        if "rules" in parts:
            rules(results, folder, tuple(int(width) for width in options.widths.split(",")))
        if "softmax" in parts:
            softmax(results, folder)
    if options.output:
        # What other parts left there stays, so that long runs can be made one by one.
        measured = {line["part"] for line in results}
        if options.output.exists():
            kept = json.loads(options.output.read_text(encoding="utf-8"))
            results = [line for line in kept if line["part"] not in measured] + results
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
