"""What passes warn of reaches whoever runs them: on stderr, in report.json and in report.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from tests.passes.pruning.test_recovery import images, mlp, residual, vectors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import CommandLine

FITTED = "round_to=1,recover=least-squares"


@pytest.mark.parametrize(
    ("make", "step", "stage"),
    [
        (residual, f"prune-channels{{macs_ratio=0.6,{FITTED},criterion=l1}}", r"Conv '\w+'"),
        (residual, "prune-channels{macs_ratio=0.6,round_to=1,criterion=obs}", r"Conv '\w+'"),
        (residual, "prune-blocks{blocks=[add1],recover=least-squares}", r"Conv '\w+'"),
        (residual, f"factorize-lowrank{{macs_ratio=0.8,min_gain=1.0,{FITTED}}}", r"Conv '\w+'"),
        (residual, "share-weights{feedback=true,bits=2}", r"Conv '\w+'"),
        (residual, "insert-qdq{feedback=true,measure=off}", r"conv_\w+"),
        (mlp, "quantize-weights{feedback=true,min_elements=16}", r"weight 'w\d'"),
    ],
)
def test_too_few_samples_for_a_solve(
    graphopt: CommandLine, tmp_path: Path, make: object, step: str, stage: str
) -> None:
    assert callable(make)
    onnx.save(make(), tmp_path / "model.onnx")
    feeds = images(1) if make is residual else vectors(2)
    np.savez(tmp_path / "few.npz", x=np.concatenate([feed["x"] for feed in feeds]))
    answer = graphopt(
        "run", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", "--data", tmp_path / "few.npz",
        "--pipeline", step, "--report", tmp_path / "report",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    name = step.partition("{")[0]
    sentence = rf"{name}: {stage}: \d+ rows for \d+ unknowns; the ridge rises from [\d.]+ to [\d.]+"
    assert re.search(rf"^warning: {sentence}$", answer.err, re.MULTILINE), answer.err
    assert re.search(rf"^- {sentence}$", (tmp_path / "report" / "report.md").read_text(), re.MULTILINE)


def test_they_come_out_of_a_child_process_too(graphopt: CommandLine, tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "model.onnx")
    np.savez(tmp_path / "few.npz", x=np.concatenate([feed["x"] for feed in vectors(2)]))
    answer = graphopt(
        "run", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", "--data", tmp_path / "few.npz",
        "--pipeline", "factorize-lowrank{rank=2,round_to=1,min_gain=1.0}", "--isolate", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    told = answer.document["steps"][0]["extra"]["warnings"]
    assert told
    assert [f"factorize-lowrank: {each}" for each in told] == answer.document["warnings"][: len(told)]
