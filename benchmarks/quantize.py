"""insert-qdq beside onnxruntime.quantization (U8S8, per channel, preprocessed): metric, file, speed.

    GRAPHOPT_ASSETS=... python benchmarks/quantize.py [--json FILE] [--peer METHOD] [--lock FILE] [NAME...]
    python benchmarks/quantize.py --table FILE

Tasks have a metric; nets have random weights, a speed and an SQNR only. Both results are timed against the
cleaned-up float one in the same run, interleaved (graphopt.runtime.latency). Rows of a run of some names
replace theirs in FILE and leave the others. With --lock FILE, times are only taken while the lock of FILE is
held, for machines on which others measure too.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort

import graphopt
from benchmarks.nets import bert, mobilenet
from graphopt.runtime.latency import measure_each
from tests.corpora import asset_tasks, zoo_model

if TYPE_CHECKING:
    from collections.abc import Iterator

CLEAN = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead"
FEEDS = 200
# name: (largest drop in points of the metric, largest file ratio, least speed-up) that the project promises;
# for stories-llama the drop is in percent of the perplexity.
TASKS: dict[str, tuple[float, float | None, float]] = {
    "mobilenetv2": (0.6, 0.29, 1.85),
    "squeezenet": (0.3, 0.28, 2.3),
    "cifar-resnet20": (0.2, 0.31, 1.6),
    "cifar-resnet56": (0.2, 0.31, 1.6),
    "resnet8": (1.0, 0.39, 1.55),
    "anomaly-ae": (0.2, 0.29, 2.05),
    "kws-dscnn": (0.5, None, 1.0),
    "mobilenetv1-025": (0.0, None, 1.0),
    "stories-llama": (1.0, None, 1.0),
}
# name: (least speed-up, least SQNR in dB)
NETS: dict[str, tuple[float, float | None]] = {
    "resnet50": (3.2, None),
    "bert-base-like": (2.7, 30.0),
    "mobilenetv2-relu6": (1.8, None),
    "mobilenetv2-silu": (0.98, None),
    "mobilenetv2-hardswish": (0.98, None),
    "efficientnet_b0": (0.98, None),
    "mobilenet_v3_small": (0.98, None),
}
NOISE = 0.03  # a model that is left as it is has a speed-up of 1 within this


def peer(source: Path, out: Path, feeds: list[dict[str, Any]], method: str) -> None:
    """Quantise with onnxruntime.quantization at its best settings."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
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
        calibrate_method=CalibrationMethod[method],
    )


def run(path: Path) -> Any:
    """Return a feeds -> outputs function."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


LOCK: list[Path] = []


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the lock, where there is one."""
    with contextlib.ExitStack() as stack:
        for path in LOCK:
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sqnr_db(before: Path, after: Path, feeds: list[dict[str, Any]]) -> float | None:
    """Signal to noise over all outputs of *feeds*; None where nothing differs."""
    one, two = run(before), run(after)
    signal = noise = 0.0
    for feed in feeds:
        for a, b in zip(one(feed), two(feed), strict=True):
            signal += float((a.astype(np.float64) ** 2).sum())
            noise += float(((a.astype(np.float64) - b) ** 2).sum())
    return float(10 * np.log10(signal / noise)) if noise else None


def compare(
    name: str, source: Path, feeds: list[dict[str, Any]], folder: Path, timed: dict[str, Any], method: str
) -> dict[str, Any]:
    """Quantise with both tools and time them."""
    opset = graphopt.load(source).opset
    clean, ours, theirs = (folder / f"{name}-{kind}.onnx" for kind in ("float", "graphopt", "onnxruntime"))
    lead = "" if opset >= 13 else "upgrade-opset{to=13},"
    unpack = "decompress-weights{where=all}," if name == "kws-dscnn" else ""
    graphopt.run(source, f"{lead}{unpack}{CLEAN}", out=clean, validate=False)
    with alone():
        start = time.process_time()
        result = graphopt.run(clean, "insert-qdq", out=ours, data=feeds, validate=False)
    row: dict[str, Any] = {"name": name, "status": result.report.status, "cpu_s": time.process_time() - start}
    step = result.report.steps[-1]
    row["counts"], row["measured"] = step.counts, step.extra.get("measured", [])
    row["left_float"] = sorted({each.reason for each in step.skipped})
    row["file_ratio"] = ours.stat().st_size / source.stat().st_size
    row["sqnr_db"] = sqnr_db(clean, ours, feeds[:8])
    row["peer"] = f"U8S8 per channel, {method}, preprocessed"
    try:
        peer(clean, theirs, feeds, method)
        row["peer_file_ratio"] = theirs.stat().st_size / source.stat().st_size
        row["peer_sqnr_db"] = sqnr_db(clean, theirs, feeds[:8])
    except Exception as error:  # noqa: BLE001 - the peer may fail in any way
        row["peer_error"] = f"{type(error).__name__}: {error}"[:200]
    with alone():
        latencies = measure_each(clean, [ours] if "peer_error" in row else [ours, theirs], timed)
    row["speed"], row["noise"] = (
        1 / latencies[0].ratio,
        max(abs(1 - each) for each in latencies[0].noise_ratios),
    )
    if len(latencies) > 1:
        row["peer_speed"] = 1 / latencies[1].ratio
    row["files"] = {"graphopt": str(ours), "onnxruntime": str(theirs)}
    return row


def main(argv: list[str]) -> int:
    """Print a line a model; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NETS, *TASKS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", default="MinMax", choices=["MinMax", "Percentile", "Entropy"])
    parser.add_argument("--lock", type=Path, metavar="FILE")
    parser.add_argument("--table", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    LOCK.extend([options.lock] if options.lock else [])
    assets = Path(os.environ["GRAPHOPT_ASSETS"])
    tasks = asset_tasks(assets)
    rows = []
    for name in [*NETS, *TASKS]:
        if options.names and name not in options.names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if name in NETS:
                row = _net(name, folder, assets, options.peer)
            else:
                row = _task(tasks[name], folder, options.peer)
        del row["files"]
        row["missed"] = missed(row)
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.json:
            known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else []
            merged = {each["name"]: each for each in known} | {row["name"]: row}
            ordered = [merged[each] for each in [*NETS, *TASKS] if each in merged]
            options.json.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["missed"] for row in rows) else 0


def missed(row: dict[str, Any]) -> list[str]:
    """Return which bars *row* misses, and by how much."""
    found = []
    bar = row["bar"]
    least = bar["speed"] - (NOISE if row["status"] == "unchanged" else 0.0)
    if row["speed"] < least:
        found.append(f"speed-up {row['speed']:.2f}, promised {bar['speed']}")
    if bar.get("sqnr_db") and row["sqnr_db"] < bar["sqnr_db"]:
        found.append(f"SQNR {row['sqnr_db']:.1f} dB, promised {bar['sqnr_db']}")
    if bar.get("file_ratio") and row["file_ratio"] > bar["file_ratio"]:
        found.append(f"file ratio {row['file_ratio']:.3f}, promised {bar['file_ratio']}")
    # Rounding of a float: 0.6 points are 4.8 of 800 images.
    if "drop" in row and row["drop"] > bar["drop"] + 1e-9:
        found.append(f"drop {row['drop']:.2f}, promised {bar['drop']}")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return *rows* as a table in Markdown."""
    lines = [
        "| model | change of the metric | file | speed-up | SQNR | onnxruntime.quantization | bar | missed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar, peer_cell = row["bar"], row.get("peer_error", "")
        if not peer_cell:
            parts = [_change(row.get("peer_drop"), row["name"]), f"{row['peer_file_ratio']:.3f}"]
            parts += [f"{row['peer_speed']:.2f}x", f"{row['peer_sqnr_db']:.1f} dB"]
            peer_cell = ", ".join(part for part in parts if part)
        unit = "% perplexity" if row["name"] == "stories-llama" else "pt"
        promised = [
            f"drop {bar['drop']} {unit}" if bar.get("drop") is not None else "",
            str(bar.get("file_ratio") or ""),
        ]
        promised += [f"{bar['speed']}x", f"{bar['sqnr_db']} dB" if bar.get("sqnr_db") else ""]
        cells = [
            row["name"],
            _change(row.get("drop"), row["name"]) or "-",
            f"{row['file_ratio']:.3f}" + (" (unchanged)" if row["status"] == "unchanged" else ""),
            f"{row['speed']:.2f}x",
            "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB",
            peer_cell,
            ", ".join(part for part in promised if part),
            "; ".join(row["missed"]) or "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _change(drop: float | None, name: str) -> str:
    if drop is None:
        return ""
    return f"{drop:+.2f} % perplexity" if name == "stories-llama" else f"{0.0 - drop:+.2f} pt"


def _net(name: str, folder: Path, assets: Path, method: str) -> dict[str, Any]:
    from graphopt.runtime.feeds import random_feeds

    source = folder / f"{name}.onnx"
    if name == "bert-base-like":
        onnx.save(bert(), source)
    elif name.startswith("mobilenetv2-"):
        onnx.save(mobilenet(name.removeprefix("mobilenetv2-")), source)
    else:
        source = zoo_model(assets, name)
    feeds = random_feeds(graphopt.load(source), 8, 0)
    row = compare(name, source, feeds, folder, feeds[0], method)
    return {**row, "bar": dict(zip(("speed", "sqnr_db"), NETS[name], strict=True))}


def _task(task: Any, folder: Path, method: str) -> dict[str, Any]:
    feeds = list(task.calibration(min(FEEDS, task.calibration_size)))
    if task.name == "anomaly-ae":  # it is run on all 196 windows of a clip at once
        feeds = [{key: np.concatenate([feed[key] for feed in feeds[:196]]) for key in feeds[0]}]
    row = compare(task.name, task.model, feeds, folder, feeds[0], method)
    row["float"] = task.evaluate(run(task.model))
    row["metric"] = task.evaluate(run(Path(row["files"]["graphopt"])))
    row["drop"] = _drop(task, row["float"], row["metric"])
    if "peer_error" not in row:
        row["peer_metric"] = task.evaluate(run(Path(row["files"]["onnxruntime"])))
        row["peer_drop"] = _drop(task, row["float"], row["peer_metric"])
    row["bar"] = dict(zip(("drop", "file_ratio", "speed"), TASKS[task.name], strict=True))
    return row


def _drop(task: Any, before: float, after: float) -> float:
    """Return how much worse *after* is: in points, or in percent of a perplexity."""
    drop = 100 * (after / before - 1) if task.metric == "ppl" else 100 * (before - after)
    return round(drop, 4)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
