"""Node counts after clean-up, next to onnxsim and onnxslim, over the zoo of GRAPHOPT_ASSETS.

For every net of the zoo: materialise its weights, run graphopt's clean-up pipeline, run both peers in their
own environment (``--python``), count nodes (subgraphs and functions included), and compare graphopt's outputs
with the original's on onnxruntime without optimisation. The last lines name every net where graphopt leaves
more nodes than the better peer, and the exit status is 1 if there is one or an output differs.

The peers' environment::

    python -m venv peers && peers/bin/pip install onnxsim==0.8.1 onnxslim==0.1.98 onnxruntime==1.31.1
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

PIPELINE = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead"
"""Folding leaves constants that canonicalize makes no-ops of (a Slice of everything), hence twice."""

TOLERANCE_RATIO = 1e-4
"""Largest |a - b| over the largest |a| of an output: the nets are up to 100 layers deep and in float32."""

_PEERS = """
import json, sys, time
import onnx
def count(graph):
    total = 0
    for node in graph.node:
        total += 1
        for attribute in node.attribute:
            total += count(attribute.g) if attribute.HasField("g") else 0
            total += sum(count(inner) for inner in attribute.graphs)
    return total
def simplify(path):
    import onnxsim
    model, _ = onnxsim.simplify(onnx.load(path))
    return model
def slim(path):
    import onnxslim
    return onnxslim.slim(onnx.load(path))
results = {}
for name, tool in (("onnxsim", simplify), ("onnxslim", slim)):
    start = time.thread_time()
    try:
        model = tool(sys.argv[1])
        nodes = count(model.graph) + sum(len(function.node) for function in model.functions)
        results[name] = {"nodes": nodes, "bytes": model.ByteSize(), "cpu_s": time.thread_time() - start}
    except Exception as error:
        results[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
print("RESULT" + json.dumps(results))
"""


@dataclass
class Row:
    """What was measured of one net."""

    net: str
    nodes_before: int
    nodes: int
    bytes_before: int
    bytes_after: int
    seconds: float
    max_error_ratio: float
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def best_peer(self) -> int | None:
        """Fewest nodes that a peer leaves."""
        counts = [peer["nodes"] for peer in self.peers.values() if "nodes" in peer]
        return min(counts, default=None)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=os.environ.get("GRAPHOPT_ASSETS"))
    parser.add_argument(
        "--python", help="interpreter of the peers' environment; without it only graphopt runs"
    )
    parser.add_argument("--pipeline", default=PIPELINE)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("nets", nargs="*", help="names without .onnx; by default all")
    options = parser.parse_args(arguments)
    if options.assets is None:
        parser.error("set GRAPHOPT_ASSETS or give --assets")
    zoo = Path(options.assets) / "zoo"
    nets = options.nets or sorted(path.stem for path in zoo.glob("*.onnx"))
    materialize = _materializer(zoo)
    rows = []
    heads = ("before", "graphopt", "onnxsim", "onnxslim")
    print(f"{'net':28} " + " ".join(f"{head:>8}" for head in heads) + f" {'bytes':>7} {'error':>8} {'s':>6}")
    with tempfile.TemporaryDirectory(prefix="graphopt-zoo-") as scratch:
        for net in nets:
            path = Path(scratch) / f"{net}.onnx"
            onnx.save(materialize(zoo / path.name), path)
            row = _measure(net, path, options.pipeline, options.python)
            path.unlink()
            rows.append(row)
            print(_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return _verdict(rows)


def _materializer(zoo: Path) -> Any:
    spec = importlib.util.spec_from_file_location("materialize", zoo / "materialize.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018 - one state, two facts
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.materialize


def _measure(net: str, path: Path, pipeline: str, python: str | None) -> Row:
    import graphopt

    out = path.with_name("out.onnx")
    before = graphopt.load(path)
    start = time.perf_counter()
    result = graphopt.run(before, pipeline)
    seconds = time.perf_counter() - start
    written = graphopt.save(result.model, out)
    row = Row(
        net=net,
        nodes_before=sum(1 for _ in before.nodes()),
        nodes=sum(1 for _ in result.model.nodes()),
        bytes_before=path.stat().st_size,
        bytes_after=sum(file.stat().st_size for file in written),
        seconds=seconds,
        max_error_ratio=_max_error_ratio(path, out),
    )
    for file in written:
        file.unlink()
    if python:
        row.peers = _peers(python, path)
    return row


def _max_error_ratio(original: Path, optimized: Path) -> float:
    """Return the largest |a - b| over the largest |a| of any output, on one seeded feed."""
    first, second = _session(original), _session(optimized)
    generator = np.random.default_rng(0)
    feeds = {}
    for spec in first.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        if spec.type == "tensor(float)":
            feeds[spec.name] = generator.standard_normal(shape, dtype=np.float32)
        else:
            feeds[spec.name] = generator.integers(0, 100, shape).astype(np.int64)
    worst = 0.0
    for one, two in zip(first.run(None, feeds), second.run(None, feeds), strict=True):
        if one.shape != two.shape or not np.array_equal(np.isfinite(one), np.isfinite(two)):
            return float("inf")
        scale = float(np.abs(one).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(one - two).max(initial=0.0)) / scale)
    return worst


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _peers(python: str, path: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [python, "-c", _PEERS, str(path)], capture_output=True, text=True, check=False, cwd=path.parent
    )
    for line in done.stdout.splitlines():
        if "RESULT" in line:
            return dict(json.loads(line[line.index("RESULT") + len("RESULT") :]))
    return {"peers": {"error": done.stderr[-200:]}}


def _line(row: Row) -> str:
    def peer(name: str) -> str:
        return str(row.peers.get(name, {}).get("nodes", "-"))

    ratio = row.bytes_after / row.bytes_before
    return (
        f"{row.net:28} {row.nodes_before:8} {row.nodes:8} {peer('onnxsim'):>8} {peer('onnxslim'):>8} "
        f"{ratio:7.4f} {row.max_error_ratio:8.1e} {row.seconds:6.2f}"
    )


def _verdict(rows: list[Row]) -> int:
    higher = [row for row in rows if row.best_peer is not None and row.nodes > row.best_peer]
    fewer = [row for row in rows if row.best_peer is not None and row.nodes < row.best_peer]
    wrong = [row for row in rows if not row.max_error_ratio <= TOLERANCE_RATIO]
    grown = [row for row in rows if row.bytes_after > row.bytes_before]
    print(f"\n{len(rows)} nets; fewer nodes than the better peer on {len(fewer)}, more on {len(higher)}")
    for row in higher:
        print(f"more nodes: {row.net}: {row.nodes} against {row.best_peer}")
    for row in wrong:
        print(f"outputs differ: {row.net}: {row.max_error_ratio:.2e} of the largest value")
    for row in grown:
        print(f"larger file: {row.net}: {row.bytes_after - row.bytes_before} bytes more")
    return 1 if higher or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
