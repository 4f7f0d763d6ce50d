"""The weight family: streaming, weight-only and dynamic quantisation, each against what it must reach.

    python benchmarks/weights.py [--part stream,others,decoder,encoder,lstm,gru,llama,rules,softmax] [--gib 4]

``stream`` generates a model of matrix products with external weights, quantises it in a child process and
compares time with raw input and output, and takes the child's peak memory. Raw is one thread that reads the
same file once, from a warm page cache through a buffer of 16 MiB, writes as many bytes as the quantised model
has, and makes them durable with fsync as graphopt does. The time of the child is that of graphopt.run, its
own fsync included; a run on a model of one small matrix goes before, so that imports stand apart, in start_s
(CPU). Raw and child alternate; time_ratio is that of the medians of wall time, cpu_ratio that of the medians
of CPU time: of one thread here, of two there. ``others`` does the same with other passes over weights.

The other parts generate models with random weights and compare thread CPU time on one thread, interleaved
with fp32, in fresh sessions (graphopt.runtime.latency). ``llama`` needs GRAPHOPT_ASSETS. ``rules`` and
``softmax`` measure what the tables of ort-cpu say. One line of JSON a measurement; the exit status is 1 where
a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 4096
BLOCK_BYTES = 16 << 20
STREAM_TIME_LIMIT = 2.0
STREAM_PEAK_LIMIT_GB = 0.5
STREAMED = ("quantize-weights", "quantize-weights{bits=4}")
OTHERS = (
    "convert-float16",
    "convert-float16{form=storage}",
    "sparsify-weights",
    "sparsify-weights{scope=row}",
    'sparsify-weights{pattern="n:m"}',
    "sparsify-weights{pattern=block}",
)
"""Passes whose memory has the limit of the stream, and whose time has none."""


def report(results: list[dict[str, Any]], **line: Any) -> None:
    """Print one measurement and keep it."""
    results.append(line)
    print(json.dumps(line), flush=True)


# Streaming


def make_large(folder: Path, total_bytes: int, side: int = SIDE) -> Path:
    """Write a chain of square products with *total_bytes* of external weights and return its path."""
    from onnx import TensorProto, helper

    count = max(1, total_bytes // (side * side * 4))
    base = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32) * 0.02
    nodes, tensors = [], []
    with (folder / "weights.bin").open("wb") as file:
        for k in range(count):
            file.write(np.roll(base, 97 * k).data)
            tensor = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[side, side])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "weights.bin"),
                ("offset", k * base.nbytes),
                ("length", base.nbytes),
            ):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"], name=f"product{k}"))
    infos = [helper.make_tensor_value_info(name, 1, [1, side]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run_child(model: Path, out: Path, pipeline: str) -> None:
    """Run a pipeline in this process; prints seconds and peak resident bytes."""
    import graphopt

    with tempfile.TemporaryDirectory() as name:
        small = make_large(Path(name), 0, side=512)
        cpu = time.process_time()
        graphopt.run(small, pipeline, out=small.with_name("out.onnx"), validate=False)
        start_s = time.process_time() - cpu
    start, cpu = time.perf_counter(), time.process_time()
    graphopt.run(model, pipeline, out=out, validate=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    (line,) = [
        text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM")
    ]
    found = {
        "seconds": seconds,
        "cpu_s": cpu,
        "start_s": start_s,
        "peak_gb": int(line.split()[1]) * 1024 / 1e9,
    }
    print(json.dumps(found))


def raw_seconds(source: Path, target: Path, write_bytes: int) -> tuple[float, float]:
    """Read all of *source* and write *write_bytes*, durably; return seconds, of the clock and of the CPU."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    total = source.stat().st_size
    start, cpu = time.perf_counter(), time.process_time()
    done = written = 0
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as out:
        while count := file.readinto(buffer):
            done += count
            due = write_bytes * done // total - written
            written += out.write(buffer[:due])
        os.fsync(out.fileno())
    return time.perf_counter() - start, time.process_time() - cpu


def stream(
    results: list[dict[str, Any]],
    folder: Path,
    gib: float,
    trials: int,
    pipelines: tuple[str, ...] = STREAMED,
    limit: float = STREAM_TIME_LIMIT,
) -> bool:
    """Run *pipelines* over a large model, each in a process of its own."""
    model = make_large(folder, int(gib * 2**30))
    os.sync()  # what was just made must not be written while the clock runs
    source, passed = folder / "weights.bin", True
    for pipeline in pipelines:
        ours, cpu, begun, raw, raw_cpu, peak, size = [], [], [], [], [], 0.0, 0
        for _ in range(trials):
            out = folder / "out.onnx"
            command = [sys.executable, __file__, "--child", str(model), str(out), pipeline]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = (folder / "out.onnx.data").stat().st_size
            (folder / "out.onnx.data").unlink()
            one, two = raw_seconds(source, folder / "copy.bin", size)
            raw.append(one)
            raw_cpu.append(two)
            (folder / "copy.bin").unlink()
            ours.append(found["seconds"])
            cpu.append(found["cpu_s"])
            begun.append(found["start_s"])
            peak = max(peak, found["peak_gb"])
        ratio = statistics.median(ours) / statistics.median(raw)
        good = ratio <= limit and peak < STREAM_PEAK_LIMIT_GB
        passed &= good
        report(
            results,
            part="stream",
            pipeline=pipeline,
            gib=gib,
            seconds=round(statistics.median(ours), 2),
            cpu_s=round(statistics.median(cpu), 2),
            start_s=round(statistics.median(begun), 2),
            raw_s=round(statistics.median(raw), 2),
            raw_cpu_s=round(statistics.median(raw_cpu), 2),
            time_ratio=round(ratio, 2),
            cpu_ratio=round(statistics.median(cpu) / statistics.median(raw_cpu), 2),
            time_limit=limit if math.isfinite(limit) else None,
            peak_gb=round(peak, 3),
            peak_limit_gb=STREAM_PEAK_LIMIT_GB,
            output_gb=round(size / 1e9, 2),
            passed=good,
        )
    return passed


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
    import onnxruntime as ort

    import graphopt
    from graphopt.runtime.latency import measure_latency

    sys.path.insert(0, os.environ["GRAPHOPT_ASSETS"])
    from tasks import TASKS  # type: ignore[import-not-found]  # stands with the assets

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    passed = True
    for name in ("stories-llama", "stories-llama-dynamo"):
        task, out = TASKS[name], folder / "llama.onnx"
        graphopt.run(task.model, LLAMA, out=out, validate=False)
        perplexity = []
        for path in (task.model, out):
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            perplexity.append(task.evaluate(lambda feeds, session=session: session.run(None, feeds)))
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


def rules(results: list[dict[str, Any]], folder: Path) -> None:
    """Measure from which width on codes pay, for the tables [weight_only] and [dynamic] of ort-cpu."""
    pipelines = {
        "weights 8 bit": "quantize-weights{form=dequantize,min_elements=1}",
        "weights 8 bit in blocks": "quantize-weights{form=dequantize,min_elements=1,block_size=64}",
        "weights 4 bit": "quantize-weights{form=dequantize,min_elements=1,bits=4,block_size=64}",
        "dynamic": "quantize-dynamic{min_elements=1}",
    }
    for width in (64, 128, 192, 256, 512, 768):
        for rows in (1, 16, 128):
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
    parser.add_argument("--part", default="stream,decoder,encoder,lstm,gru,llama")
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        run_child(Path(options.child[0]), Path(options.child[1]), options.child[2])
        return 0
    parts = options.part.split(",")
    results: list[dict[str, Any]] = []
    passed = True
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if "stream" in parts:
            passed &= stream(results, folder, options.gib, options.trials)
        if "others" in parts:
            passed &= stream(results, folder, options.gib, options.trials, OTHERS, math.inf)
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
            rules(results, folder)
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
