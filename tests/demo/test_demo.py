"""The demo: its data is what it says, and its figures are those that onnxruntime alone finds."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.cli.demo import own_model_command
from graphopt.demo import PIPELINE, DemoResult, run_demo

PACKAGE = Path(str(importlib.resources.files("graphopt.demo")))
MODEL, DATA = PACKAGE / "digits.onnx", PACKAGE / "digits.npz"


def accuracy_of(model: Path) -> float:
    with np.load(DATA) as arrays:
        part = arrays["evaluation"]
        images, labels = arrays["images"][part], arrays["labels"][part]
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found = [
        int(np.argmax(session.run(["logits"], {"image": image[None, None].astype(np.float32)})[0]))
        for image in images
    ]
    return float(np.mean(np.array(found) == labels))


def test_the_parts_are_disjoint_and_complete() -> None:
    with np.load(DATA) as arrays:
        parts = [arrays[name] for name in ("train", "calibration", "evaluation")]
        assert arrays["images"].shape == (1797, 8, 8)
        assert arrays["images"].dtype == np.uint8
        assert arrays["images"].max() == 16
        counts = np.bincount(arrays["labels"], minlength=10)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1797))
    assert min(counts.tolist()) > 170  # scikit-learn's set has 174 to 183 images a digit


def test_the_model_is_small_and_left_as_exported() -> None:
    assert MODEL.stat().st_size <= 1_000_000
    assert DATA.stat().st_size <= 100_000
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert {"BatchNormalization", "Identity", "Constant", "Shape", "Reshape"} <= set(operators)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    widths = {shapes[node.input[1]][0] for node in convolutions}
    assert widths == {64, 96}
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_value


def test_the_command_for_the_reader_has_what_its_passes_need() -> None:
    command = own_model_command(PIPELINE)
    assert "--data" in command  # insert-qdq and recover refuse to run without
    assert "measure=off" not in command  # what is not faster on codes stays float
    assert command.endswith('prune-channels{macs_ratio=0.5,recover=least-squares},insert-qdq"')


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(out=folder / "out.onnx", workdir=folder)


@pytest.mark.slow
def test_the_figures_are_true(result: DemoResult) -> None:
    out = result.files[0]
    assert result.before.accuracy == accuracy_of(MODEL)
    assert result.after.accuracy == accuracy_of(out)
    assert result.before.accuracy >= 0.98
    assert result.after.accuracy >= result.before.accuracy - 0.01
    assert (result.before.bytes, result.after.bytes) == (MODEL.stat().st_size, out.stat().st_size)
    assert result.after.nodes == len(onnx.load(out).graph.node)
    assert 0 < result.after.latency_s < 1
    assert result.evaluation_images == 500


@pytest.mark.slow
def test_the_pipeline_pays(result: DemoResult) -> None:
    out = onnx.load(result.files[0])
    operators = {node.op_type for node in out.graph.node}
    assert not operators & {"BatchNormalization", "Identity", "Constant"}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert result.after.bytes < result.before.bytes / 4
    sides = (result.report.input, result.report.output)
    cost = [facts.macs for facts in sides if facts is not None and facts.macs is not None]
    assert cost[1] <= 0.5 * cost[0]
    assert result.report.validation is not None
    assert all(output.passed for output in result.report.validation.outputs)
