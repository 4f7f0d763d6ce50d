"""A small convolutional model, a plugin with passes that misbehave, and a way to call the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cli.app import invoke

PLUGIN = """
import os

from graphopt.api import Pass, PassInfo, Report
from graphopt.hookspecs import hookimpl


class Raises(Pass):
    info = PassInfo(name="raises", summary="raises")

    def run(self, model, options, context):
        raise RuntimeError("out of luck")


class Aborts(Pass):
    info = PassInfo(name="aborts", summary="ends the process as a native crash does")

    def run(self, model, options, context):
        os.abort()


class Wrong(Pass):
    info = PassInfo(name="wrong", summary="changes what the model computes")

    def run(self, model, options, context):
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = "Neg"
        return Report(changed=True)


class Interrupts(Pass):
    info = PassInfo(name="interrupts", summary="as if Ctrl-C was pressed")

    def run(self, model, options, context):
        raise KeyboardInterrupt


@hookimpl
def graphopt_register_passes():
    return {"raises": Raises, "aborts": Aborts, "wrong": Wrong, "interrupts": Interrupts}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x [batch, 3, 8, 8] -> Identity -> Conv -> Relu -> y, with a Constant node for the weight."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["i"], name="copy"),
            helper.make_node("Constant", [], ["w"], name="weight", value=numpy_helper.from_array(weight)),
            helper.make_node("Conv", ["i", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], name="act"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 8])],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "misbehaving.py"
    path.write_text(PLUGIN)
    return path


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


class CommandLine:
    """Calls commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Answer:
        self._capsys.readouterr()
        code = invoke([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Answer(code, captured.out, captured.err)


@pytest.fixture
def graphopt(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)
