"""quantize-weights{feedback=true}: the codes are those of the feedback, and they serve the outputs better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import DataError
from graphopt.ir.emit import emit
from graphopt.ir.lower import load
from graphopt.passes.quantize_weights import QuantizeWeights
from tests.passes.harness import apply, run_feeds, session_for

if TYPE_CHECKING:
    from pathlib import Path

PASS = QuantizeWeights()


def product(kind: str, rows: int = 96, columns: int = 40) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    if kind == "gemm":
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
        weight = weight.T.copy()
    else:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def feeds(rows: int = 96, count: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(rows, rows)) * 0.93 ** np.arange(rows)
    return [{"x": (generator.normal(size=(32, rows)) @ mixing.T).astype(np.float32)} for _ in range(count)]


def error(before: Any, after: Any) -> float:
    one, two = session_for(before), session_for(after)
    pairs = [(run_feeds(one, feed)["y"], run_feeds(two, feed)["y"]) for feed in feeds(seed=2)]
    return sum(float(np.sum((a - b) ** 2)) for a, b in pairs) / sum(float(np.sum(a * a)) for a, _ in pairs)


@pytest.mark.parametrize("kind", ["matmul", "gemm"])
@pytest.mark.parametrize(("bits", "block"), [(4, None), (4, 32), (8, None), (4, 16)])
def test_the_outputs_gain_as_the_report_says(kind: str, bits: int, block: int | None) -> None:
    model = product(kind)
    options: dict[str, Any] = {"bits": bits, "block_size": block, "form": "dequantize"}
    plain, _ = apply(PASS, model, **options)
    after, report = apply(PASS, model, data=feeds(), feedback=True, **options)
    assert report.counts["fed_back"] == 1
    (note,) = report.extra["weights"]  # type: ignore[misc]
    assert note["output_error"] < 0.7 * note["output_error_nearest"]  # type: ignore[has-type]
    # What is stored is what the feedback found: the model has the error that the solve promised.
    assert error(model, after) == pytest.approx(note["output_error"], rel=0.15)  # type: ignore[has-type]
    assert error(model, plain) == pytest.approx(note["output_error_nearest"], rel=0.15)  # type: ignore[has-type]


def test_it_needs_data() -> None:
    with pytest.raises(DataError):
        apply(PASS, product("matmul"), feedback=True, bits=4, form="dequantize")


def test_poor_data_never_fail() -> None:
    for poor in ([{"x": np.zeros((2, 96), np.float32)}], [{"x": np.ones((2, 96), np.float32)}]):
        after, _ = apply(PASS, product("matmul"), data=poor, feedback=True, bits=4, form="dequantize")
        assert np.isfinite(run_feeds(session_for(after), feeds()[0])["y"]).all()


def test_a_weight_in_a_file_is_fed_back_all_the_same(tmp_path: Path) -> None:
    """With --isolate all weights lie in files: the result must not depend on that."""
    model = product("matmul")
    after, _ = apply(PASS, model, data=feeds(count=4), feedback=True, bits=4, form="dequantize")
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "data")
    onnx.save(model, tmp_path / "model.onnx")
    stored = load(tmp_path / "model.onnx")
    found, report = apply(PASS, stored, data=feeds(count=4), feedback=True, bits=4, form="dequantize")
    assert report.counts["fed_back"] == 1
    assert emit(found).SerializeToString() == emit(after).SerializeToString()
