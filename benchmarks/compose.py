"""Do lossy passes work on what other lossy passes leave? All ordered pairs, on small and trained models.

    python benchmarks/compose.py [MODEL ...] [--json compose.json] [--feeds 16]

A pair has to end in one of two ways: the result loads, runs and agrees, or the run refuses with a reason (a
GraphoptError). It agrees where its error on feeds that calibration did not see is at most FACTOR times the
sum of the errors of both passes alone, or where it is below FLOOR. Anything else is a fault: exit status 1.

Without GRAPHOPT_ASSETS only the demo's model runs.
"""

from __future__ import annotations

import argparse
import importlib.resources
import itertools
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import graphopt
from benchmarks.rows import open_quietly, show_all
from graphopt.errors import GraphoptError
from tests.corpora import asset_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

FACTOR = 4.0
"""Errors of two passes that do not know of each other add up; what one leaves may be harder for the other."""

FLOOR = 1e-4

LS = "recover=least-squares"
STEPS = {
    "prune": "prune-channels{params_ratio=0.8,best_effort=true,round_to=4," + LS + "}",
    "blocks": "prune-blocks{count=1," + LS + "}",
    "lowrank": "factorize-lowrank{params_ratio=0.8,round_to=4,min_gain=1}",
    "sparse": "sparsify-weights{sparsity=0.3}",
    "palette": "share-weights{bits=6}",
    "palette-feedback": "share-weights{bits=6,feedback=true}",
    "weights8": "quantize-weights",
    "dynamic": "quantize-dynamic",
    "half": "convert-float16",
    "int8": "insert-qdq{measure=off}",
}
CLEAN = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead,"
ASSETS = ("cifar-resnet20", "stories-llama")


@dataclass
class Row:
    """One pipeline on one model: how it ended."""

    model: str
    first: str
    second: str
    outcome: str
    error: float | None
    alone: float | None
    seconds: float
    reason: str = ""


class Subject:
    """A model with feeds to calibrate on and others to compare on."""

    def __init__(self, name: str, path: Path, feeds: Sequence[dict[str, Any]], count: int) -> None:
        self.name = name
        self.data, self.held = list(feeds[:count]), list(feeds[count : count + 8])
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "clean.onnx"
        graphopt.run(path, CLEAN.rstrip(","), out=self.path, validate=False)
        self.reference = self.outputs(self.path)

    def outputs(self, path: Path) -> list[np.ndarray]:
        """The float outputs on the feeds that calibration does not see."""
        session = open_quietly(path)
        return [session.run(None, feed)[0].astype(np.float64) for feed in self.held]

    def run(self, text: str) -> tuple[str, float | None, str]:
        """Run *text*; return the outcome, the relative error and the reason of a refusal."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.onnx"
            try:
                graphopt.run(self.path, text, out=out, data=self.data, validate=False)
            except GraphoptError as error:
                return "refused", None, str(error).splitlines()[0]
            except Exception as error:  # noqa: BLE001 - what the benchmark is after
                return "crashed", None, f"{type(error).__name__}: {error}"
            if not out.exists():
                return "unchanged", 0.0, ""
            try:
                outputs = self.outputs(out)
            except Exception as error:  # noqa: BLE001 - the runtime's own
                return "does not load", None, str(error).splitlines()[0]
        pairs = list(zip(outputs, self.reference, strict=True))
        noise = sum(float(np.sum((one - two) ** 2)) for one, two in pairs)
        signal = sum(float(np.sum(two**2)) for _, two in pairs)
        return "ran", noise / signal, ""


def subjects(names: Sequence[str], count: int) -> list[Subject]:
    """The models that are asked for: the demo's, and those of the assets."""
    found = []
    if not names or "digits" in names:
        files = importlib.resources.files("graphopt.demo")
        with np.load(str(files / "digits.npz")) as archive:
            images = archive["images"][archive["calibration"]].astype(np.float32)
        feeds = [{"image": image[None, None]} for image in images]
        found.append(Subject("digits", Path(str(files / "digits.onnx")), feeds, count))
    if "GRAPHOPT_ASSETS" in os.environ:
        tasks = asset_tasks(Path(os.environ["GRAPHOPT_ASSETS"]))
        for name in names or ASSETS:
            if name in tasks:
                task = tasks[name]
                found.append(Subject(name, task.model, list(task.calibration(count + 8)), count))
    return found


def judge(subject: Subject, first: str, second: str, alone: dict[str, tuple[str, float | None, str]]) -> Row:
    """Run two passes one behind the other and hold the result against each alone."""
    start = time.perf_counter()
    outcome, error, reason = subject.run(f"{STEPS[first]},{STEPS[second]}")
    errors = [alone[name][1] for name in (first, second)]
    expected = sum(one for one in errors if one is not None)
    if outcome == "ran":
        assert error is not None
        agrees = np.isfinite(error) and error <= max(FACTOR * expected, FLOOR)
        outcome = "agrees" if agrees else "differs"
    return Row(subject.name, first, second, outcome, error, expected, time.perf_counter() - start, reason)


def main() -> int:
    """Run all pairs on the models that are named, or on all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"digits, {', '.join(ASSETS)} or any task")
    parser.add_argument("--feeds", type=int, default=16, help="calibration feeds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for subject in subjects(arguments.models, arguments.feeds):
        alone = {name: subject.run(text) for name, text in STEPS.items()}
        for name, (outcome, error, reason) in alone.items():
            print(f"{subject.name:15} {name:16} {'':16} {outcome:10} {_text(error)} {reason}", flush=True)
        pairs = itertools.permutations(STEPS, 2)
        rows += show_all((judge(subject, first, second, alone) for first, second in pairs), line_of)
    if arguments.json:
        arguments.json.write_text(
            json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8"
        )
    faults = [row for row in rows if row.outcome not in {"agrees", "refused", "unchanged"}]
    print(f"{len(rows)} pairs, {len(faults)} faults")
    return int(bool(faults))


def line_of(row: Row) -> str:
    """What is printed of a pair."""
    return (
        f"{row.model:15} {row.first:16} {row.second:16} {row.outcome:10} {_text(row.error)}"
        f" of {_text(row.alone)} {row.reason}"
    )


def _text(error: float | None) -> str:
    return "       -" if error is None else f"{error:8.2e}"


if __name__ == "__main__":
    sys.exit(main())
