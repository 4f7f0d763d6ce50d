"""Sizes of open dims are those with which onnxruntime runs the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx
import onnx.parser
import pytest

import graphopt
from graphopt.errors import DataError
from graphopt.ir.lower import lower
from graphopt.pipeline.gates import NumericGate
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.measurements import Measurements
from graphopt.runtime.opening import fitting_dims, fitting_feeds, open_model

if TYPE_CHECKING:
    from pathlib import Path


def detector(dims: str) -> onnx.ModelProto:
    """Halves an image and joins two scales, as the neck of a detector does: not all sides fit."""
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        neck (float[{dims}] x) => (float[n, c, h2, w2] y)
        <float[4] twice = {{1, 1, 4, 4}}>
        {{
            same = Identity(x)
            half = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(same)
            quarter = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(half)
            eighth = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(quarter)
            wide = Resize<mode = "nearest">(eighth, , twice)
            y = Concat<axis = 1>(wide, half)
        }}
    """)


def test_a_size_is_found_where_one_pixel_does_not_run() -> None:
    model = lower(detector("batch, 3, height, width"))
    found = fitting_dims(model, {})
    assert found == {"batch": 1, "height": 64, "width": 64}
    feeds = fitting_feeds(model, 2, 0, {})
    assert [feed["x"].shape for feed in feeds] == [(1, 3, 64, 64)] * 2  # type: ignore[union-attr]
    assert open_model(model, "it").run(feeds[0])["y"].shape == (1, 6, 32, 32)  # type: ignore[union-attr]


def test_dims_without_a_name_and_bound_ones() -> None:
    nameless = detector("1, 3, h, w")
    for dim in nameless.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    assert fitting_dims(lower(nameless), {}) == {"x[2]": 64, "x[3]": 64}
    assert fitting_dims(lower(detector("b, 3, h, w")), {"h": 48}) == {"b": 1, "w": 64}


def test_sizes_are_tried_in_order_and_ones_first() -> None:
    model = lower(detector("b, 3, h, w"))
    assert fitting_dims(model, {}, sizes=(12, 24, 16)) == {"b": 1, "h": 24, "w": 24}
    relu = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[b, t] x) => (float[b, t] y) { y = Relu(x) }
    """)
    assert fitting_dims(lower(relu), {}) == {"b": 1, "t": 1}


def test_a_size_with_which_outputs_are_one_number_is_not_the_first_choice() -> None:
    peaks = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[b, t] x) => (float[b, t] y) { y = Softmax<axis = 1>(x) }
    """)
    assert fitting_dims(lower(peaks), {}) == {"b": 1, "t": 64}  # of a single element it is 1
    constant = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[b, t] x) => (float[b, t] y) { y = Sub(x, x) }
    """)
    assert fitting_dims(lower(constant), {}) == {"b": 1, "t": 1}


def test_nothing_but_nan_is_one_number_too() -> None:
    deviation = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[b, t] x) => (float[b, one] y) <int64[1] last = {1}, float[1] unit = {1}>
        {
            mean = ReduceMean(x, last)
            away = Sub(x, mean)
            squares = ReduceSumSquare(away, last)
            shape = Shape<start = 1>(x)
            count = Cast<to = 1>(shape)
            free = Sub(count, unit)
            y = Div(squares, free)
        }
    """)
    assert fitting_dims(lower(deviation), {}) == {"b": 1, "t": 64}  # of a single element it is 0 / 0


def test_a_model_that_no_size_suits_says_so() -> None:
    with pytest.raises(DataError, match="no size of its open dims") as caught:
        fitting_dims(lower(detector("b, 3, h, w")), {"h": 12})
    assert "--dim" in caught.value.hint


def test_inputs_that_take_gigabytes_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four dims of an image are open, and the second one has to be 3, which is no size that is tried."""
    tried: list[int] = []

    def counted(specs: Any, count: int, seed: int, dims: Any) -> list[Any]:
        tried.append(math.prod(dims.values()))
        return random_feeds(specs, count, seed, dims)

    monkeypatch.setattr("graphopt.runtime.opening.random_feeds", counted)
    image = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, c, h, w] x) => (float[n, m, a, b] y)
        <float[2, 3, 1, 1] k = {1, 2, 3, 4, 5, 6}> { y = Conv(x, k) }
    """)
    with pytest.raises(DataError, match="no size of its open dims"):
        fitting_dims(lower(image), {}, sizes=(1, 32, 64, 640))
    assert max(tried) == 32**4
    tried.clear()
    assert fitting_dims(lower(image), {"c": 3}, sizes=(64, 640)) == {"n": 1, "h": 64, "w": 64}
    large = {"c": 3, "n": 1, "h": 1 << 22}  # what was asked for is tried, whatever it takes
    assert fitting_dims(lower(image), large, sizes=(4, 1)) == {"w": 1}


def test_without_open_dims_nothing_is_run() -> None:
    assert fitting_dims(lower(detector("1, 3, 9, 9")), {}) == {}


def test_a_run_without_data_validates_a_detector(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(detector("batch, 3, height, width"), path)
    record = graphopt.run(path, "canonicalize,eliminate-dead", out=out).report
    assert record.validation is not None
    assert record.validation.passed
    assert any("height=64, width=64" in warning for warning in record.warnings)


def test_what_is_measured_and_gated_without_data_has_such_sizes(tmp_path: Path) -> None:
    model = lower(detector("batch, 3, height, width"))
    assert Measurements().can_measure(model)
    onnx.save(detector("batch, 3, height, width"), tmp_path / "m.onnx")
    gate = NumericGate(NumericGate.Options())
    result = graphopt.run(tmp_path / "m.onnx", "canonicalize", out=tmp_path / "o.onnx", gates=[gate])
    assert result.report.status == "ok"
