"""Clean a chain of 50,000 nodes: CPU time and peak memory beside onnxruntime's own optimiser and onnxsim.

    python benchmarks/chain.py [--nodes 50000] [--growth 10000,200000] [--onnxsim-python PATH] [--output FILE]

Each tool works on the same file in a child process of its own, in turn, several times; CPU time (user and
system) and peak resident memory are those that the operating system kept of the child, interpreter and
imports included, and the median over the rounds counts. graphopt: load, the pipeline
``canonicalize,fold-constants,eliminate-dead,deduplicate`` through the manager, save. onnxruntime: a session
at ORT_ENABLE_BASIC with ``optimized_model_filepath``. onnxsim: ``simplify`` in the environment whose
interpreter ``--onnxsim-python`` names.

The chain repeats six nodes: Identity, an Add of two constants, an Add of that to the chain, a Cast to the
type at hand, MatMul, Relu. Limits: 3 times onnxruntime's CPU time, 2.5 times its memory; growth from the
smaller to the larger ``--growth`` linear within 20 %. One line of JSON per measurement, then a table; the
exit status is 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PIPELINE = "canonicalize,fold-constants,eliminate-dead,deduplicate"
TIME_LIMIT_RATIO = 3.0
MEMORY_LIMIT_RATIO = 2.5
GROWTH_LIMIT_RATIO = 1.2
WIDTH = 16
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measurement:
    """One child: which tool, how many nodes went in and came out, what it took."""

    tool: str
    nodes_before: int
    nodes_after: int
    cpu_s: float
    peak_rss_bytes: int


def write_chain(nodes: str, path: str) -> int:
    """Write a chain of about *nodes* nodes to *path* and return how many it has."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5,
        "left": rng.standard_normal(WIDTH),
        "right": rng.standard_normal(WIDTH),
    }
    chain, value = [], "x"
    for k in range(max(1, int(nodes) // 6)):
        chain += [
            helper.make_node("Identity", [value], [f"same_{k}"], name=f"identity_{k}"),
            helper.make_node("Add", ["left", "right"], [f"constant_{k}"], name=f"foldable_{k}"),
            helper.make_node("Add", [f"same_{k}", f"constant_{k}"], [f"sum_{k}"], name=f"add_{k}"),
            helper.make_node("Cast", [f"sum_{k}"], [f"cast_{k}"], name=f"cast_{k}", to=TensorProto.FLOAT),
            helper.make_node("MatMul", [f"cast_{k}", "weight"], [f"product_{k}"], name=f"matmul_{k}"),
            helper.make_node("Relu", [f"product_{k}"], [f"relu_{k}"], name=f"relu_{k}"),
        ]
        value = f"relu_{k}"
    graph = helper.make_graph(
        chain,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, path)
    return len(chain)


def run_graphopt(source: str, target: str) -> None:
    """Child: load, clean through the manager, save."""
    from graphopt.ir.emit import save
    from graphopt.ir.lower import load
    from graphopt.pipeline.manager import Manager
    from graphopt.pipeline.plan import make_plan
    from graphopt.pipeline.plugins import load_plugins
    from graphopt.pipeline.text import parse
    from graphopt.targets import load_target

    registry = load_plugins()
    plan = make_plan(parse(PIPELINE), registry)
    result = Manager(registry, target=load_target("ort-cpu")).run(load(source), plan, keep_input=False)
    if result.error is not None or result.model is None:
        raise SystemExit(str(result.error))
    save(result.model, target)
    gc.freeze()  # as the command line does: the process ends, and its objects need not be taken apart


def run_onnxruntime(source: str, target: str) -> None:
    """Child: let a session optimise and write."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = target
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


# Runs in another environment, which has onnxsim but not graphopt.
ONNXSIM = "import sys, onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(sys.argv[1]))[0], sys.argv[2])"

CHILDREN = {"graphopt": run_graphopt, "onnxruntime": run_onnxruntime}


def in_child(function: str, *arguments: object) -> int:
    """Return what *function* of this file prints in a child of its own.

    This process must stay small: a child begins with the peak memory of its parent.
    """
    code = f"import chain, sys; print(chain.{function}(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ).stdout
    return int(output)


def count_nodes(path: str) -> int:
    """Return how many nodes the main graph in *path* has."""
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def measure(tool: str, source: Path, nodes: int, target: Path, onnxsim_python: str | None) -> Measurement:
    """Run *tool* on *source* in a child and return what it took.

    Raises:
        SystemExit: The child failed.
    """
    own = [sys.executable, __file__, "--child", tool]
    command = [onnxsim_python or "", "-c", ONNXSIM] if tool == "onnxsim" else own
    target.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    child = os.posix_spawn(command[0], [*command, str(source), str(target)], environment)
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{tool} failed on {source.name} with status {os.waitstatus_to_exitcode(status)}")
    after = in_child("count_nodes", target)
    measured = Measurement(tool, nodes, after, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
    print(json.dumps(asdict(measured)), flush=True)
    return measured


def median(measurements: list[Measurement], tool: str) -> Measurement:
    """Return the medians of what *tool* took."""
    own = [measured for measured in measurements if measured.tool == tool]
    return Measurement(
        tool,
        own[0].nodes_before,
        own[0].nodes_after,
        statistics.median(measured.cpu_s for measured in own),
        int(statistics.median(measured.peak_rss_bytes for measured in own)),
    )


def compare(folder: Path, nodes: int, rounds: int, onnxsim_python: str | None) -> list[dict[str, Any]]:
    """Measure all tools on one chain, turn by turn, and return one row a tool with its ratios."""
    source = folder / "chain.onnx"
    count = in_child("write_chain", nodes, source)
    tools = ["onnxruntime", "graphopt", *(["onnxsim"] if onnxsim_python else [])]
    # The order turns round each time, so that no tool always runs on a machine that another has warmed up.
    schedule = [tool for turn in range(rounds) for tool in (tools if turn % 2 == 0 else reversed(tools))]
    measured = [measure(tool, source, count, folder / "out.onnx", onnxsim_python) for tool in schedule]
    base = median(measured, "onnxruntime")
    return [
        {
            **asdict(own),
            "cpu_ratio": own.cpu_s / base.cpu_s,
            "memory_ratio": own.peak_rss_bytes / base.peak_rss_bytes,
        }
        for own in (median(measured, tool) for tool in tools)
    ]


def growth(folder: Path, sizes: list[int], rounds: int) -> dict[str, float]:
    """Return how much more a further node costs in long chains than in short ones.

    That is what a node adds between the middle size and the larger one, over what it adds between the
    smaller and the middle. Start-up drops out of both: it is half of what a short chain takes, varies more
    than the chain itself, and leaves freed memory behind that short chains use first. All sizes run in every
    round, so that a busy machine slows down all of them, and the median over the rounds counts. A ratio per
    node with start-up left in stands beside it (``cpu_with_start_ratio``).
    """
    low, high = min(sizes), max(sizes)
    sources = {size: folder / f"chain_{size}.onnx" for size in (low, round((low * high) ** 0.5), high)}
    counts = {size: in_child("write_chain", size, source) for size, source in sources.items()}
    ratios: dict[str, list[float]] = {"cpu_s": [], "peak_rss_bytes": []}
    whole: list[float] = []
    for _ in range(rounds):
        small, middle, large = (
            measure("graphopt", source, counts[size], folder / "out.onnx", None)
            for size, source in sources.items()
        )
        for name, found in ratios.items():
            added = [
                (getattr(after, name) - getattr(before, name)) / (after.nodes_before - before.nodes_before)
                for before, after in ((small, middle), (middle, large))
            ]
            found.append(added[1] / added[0])
        whole.append(large.cpu_s / large.nodes_before * small.nodes_before / small.cpu_s)
    return {
        "cpu_with_start_ratio": statistics.median(whole),
        "cpu_ratio": statistics.median(ratios["cpu_s"]),
        "memory_ratio": statistics.median(ratios["peak_rss_bytes"]),
    }


def main() -> int:
    """Parse, measure, print, judge."""
    import compileall

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=50_000, help="nodes of the compared chain")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool runs")
    parser.add_argument(
        "--growth", default="", help="two sizes, SMALL,LARGE: check that time and memory grow linearly"
    )
    parser.add_argument("--onnxsim-python", help="interpreter of an environment with onnxsim")
    parser.add_argument("--output", type=Path, help="also write the results there as JSON")
    parser.add_argument("--child", nargs=3, metavar=("TOOL", "IN", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        tool, source, target = arguments.child
        CHILDREN[tool](source, target)
        return 0
    results: dict[str, Any] = {}
    passed = True
    compileall.compile_dir(REPOSITORY / "graphopt", quiet=1)  # as installing a package does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = results["comparison"] = compare(
            folder, arguments.nodes, arguments.rounds, arguments.onnxsim_python
        )
        if arguments.growth:
            sizes = [int(size) for size in arguments.growth.split(",")]
            results["growth"] = growth(folder, sizes, arguments.rounds)
    print(f"\n{'tool':12} {'nodes':>7} {'left':>7} {'CPU s':>8} {'x':>6} {'MiB':>8} {'x':>6}")
    for row in rows:
        print(
            f"{row['tool']:12} {row['nodes_before']:7} {row['nodes_after']:7} {row['cpu_s']:8.2f}"
            f" {row['cpu_ratio']:6.2f} {row['peak_rss_bytes'] / 2**20:8.1f} {row['memory_ratio']:6.2f}"
        )
        if row["tool"] == "graphopt":
            passed &= row["cpu_ratio"] <= TIME_LIMIT_RATIO and row["memory_ratio"] <= MEMORY_LIMIT_RATIO
    if "growth" in results:
        grown = results["growth"]
        print(
            f"per node, {arguments.growth.split(',')[1]} against {arguments.growth.split(',')[0]} nodes:"
            f" CPU x{grown['cpu_ratio']:.2f}, memory x{grown['memory_ratio']:.2f};"
            f" CPU with start-up x{grown['cpu_with_start_ratio']:.2f}"
        )
        passed &= all(ratio <= GROWTH_LIMIT_RATIO for ratio in grown.values())
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("within the limits" if passed else "OVER A LIMIT")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
