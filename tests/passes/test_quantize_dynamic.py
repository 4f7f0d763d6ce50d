"""quantize-dynamic and rewrite-residual-sum: onnxruntime's outputs and kernels, and what is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.cost import measure_cost
from graphopt.ir.lower import lower
from graphopt.passes.quantize_dynamic import QuantizeDynamic
from graphopt.passes.rewrite_residual_sum import RewriteResidualSum
from tests.passes.harness import apply, assert_golden, assert_same_function, op_types, parse
from tests.passes.test_quantize_weights import (
    feeds_of,
    graph_model,
    optimised,
    product,
    skipped,
    sqnr_db,
)

if TYPE_CHECKING:
    from pathlib import Path

PASS, SUM = QuantizeDynamic(), RewriteResidualSum()
RNG = np.random.default_rng


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "GemmT"])
def test_products(tmp_path: Path, kind: str) -> None:
    model = product(kind, opset=17)
    after, report = apply(PASS, model)
    assert report.counts == {"products": 1}
    assert "DynamicQuantizeMatMul" in optimised(after, tmp_path)
    assert sqnr_db(model, after, feeds_of()) > 34
    assert measure_cost(after).weight_bytes < 0.27 * measure_cost(lower(model)).weight_bytes
    assert not measure_cost(after).dead
    halved, _ = apply(PASS, model, reduce_range=True)
    assert sqnr_db(model, halved, feeds_of()) > 30
    for name, value in halved.graph.initializers.items():
        if name.endswith("_codes"):
            assert value.const_value is not None
            assert np.abs(value.const_value.numpy().astype(int)).max() == 63


def test_products_of_one_activation_share_its_codes() -> None:
    weights = {name: RNG(k).standard_normal((256, 128)).astype(np.float32) for k, name in enumerate("qkv")}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}y"], name=name) for name in weights]
    nodes += [helper.make_node("Sum", ["qy", "ky", "vy"], ["y"])]
    model = graph_model(nodes, weights, [3, 256])
    after, report = apply(PASS, model)
    assert report.counts == {"products": 3}
    assert list(op_types(after)).count("DynamicQuantizeLinear") == 1
    assert sqnr_db(model, after, feeds_of(256)) > 34


def test_the_order_of_the_weights_in_the_file_does_not_matter() -> None:
    # x -> a -> h -> b and c: the file holds the weights in the order c, a, b.
    weights = {name: RNG(k).standard_normal((256, 256)).astype(np.float32) for k, name in enumerate("cab")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["p"], name="left"),
        helper.make_node("MatMul", ["h", "c"], ["q"], name="right"),
        helper.make_node("Sum", ["p", "q"], ["y"]),
    ]
    model = graph_model(nodes, weights, [3, 256])
    after, report = apply(PASS, model)
    assert report.counts == {"products": 3}
    assert list(op_types(after)).count("DynamicQuantizeLinear") == 2
    assert sqnr_db(model, after, feeds_of(256)) > 30


def test_recurrent_weights_of_several_readers_are_stored_once() -> None:
    weights = {
        "w": (RNG(1).standard_normal((1, 256, 64)) * 0.1).astype(np.float32),
        "r": (RNG(2).standard_normal((1, 256, 64)) * 0.1).astype(np.float32),
        "axes": np.array([1]),
    }
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["a"], name="one", hidden_size=64),
        helper.make_node("Squeeze", ["a", "axes"], ["s"]),
        helper.make_node("LSTM", ["s", "w", "r"], ["y"], name="two", hidden_size=64),
    ]
    model = graph_model(nodes, weights, [9, 1, 64], rank=4)
    after, report = apply(PASS, model, check=False)
    assert report.counts == {"lstm": 2}
    feeds = {"x": RNG(3).standard_normal((9, 1, 64)).astype(np.float32)}
    assert sqnr_db(model, after, feeds) > 30
    assert measure_cost(after).weight_bytes < 0.3 * measure_cost(lower(model)).weight_bytes


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_lstm(tmp_path: Path, direction: str) -> None:
    both = 2 if direction == "bidirectional" else 1
    weights = {
        "w": (RNG(1).standard_normal((both, 256, 96)) * 0.1).astype(np.float32),
        "r": (RNG(2).standard_normal((both, 256, 64)) * 0.1).astype(np.float32),
        "b": (RNG(3).standard_normal((both, 512)) * 0.1).astype(np.float32),
    }
    nodes = [
        helper.make_node(
            "LSTM", ["x", "w", "r", "b"], ["y"], name="lstm", hidden_size=64, direction=direction
        )
    ]
    model = graph_model(nodes, weights, [9, 1, 96], rank=4)
    after, report = apply(PASS, model, check=False)
    assert report.counts == {"lstm": 1}
    assert optimised(after, tmp_path) == ["DynamicQuantizeLSTM"]
    feeds = {"x": RNG(3).standard_normal((9, 1, 96)).astype(np.float32)}
    assert sqnr_db(model, after, feeds) > 32
    assert measure_cost(after).weight_bytes < 0.3 * measure_cost(lower(model)).weight_bytes


def test_what_is_left_alone_says_why() -> None:
    weights = {
        "k": RNG(1).standard_normal((16, 8, 3, 3)).astype(np.float32),
        "shape": np.array([1, -1, 64], np.int64),
        "m": RNG(4).standard_normal((64, 48)).astype(np.float32),
        "w": RNG(5).standard_normal((1, 48, 48)).astype(np.float32),
        "r": RNG(6).standard_normal((1, 48, 16)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("Reshape", ["c", "shape"], ["s"]),
        helper.make_node("MatMul", ["s", "m"], ["p"], name="small"),
        helper.make_node("GRU", ["p", "w", "r"], ["y"], name="gru", hidden_size=16),
    ]
    model = graph_model(nodes, weights, [1, 8, 10, 10], rank=4)
    _, report = apply(PASS, model)
    assert not report.changed
    reasons = skipped(report)
    assert "0.2 of fp32's speed" in reasons["k"]
    assert "no faster" in reasons["m"]
    assert "no GRU with codes" in reasons["gru"]
    forced, report = apply(PASS, model, min_elements=1)
    assert report.counts == {"products": 1}
    assert "MatMulInteger" in op_types(forced)
    _, report = apply(PASS, model, min_elements=1, keep=("small", "gru"))
    assert skipped(report)["m"] == "kept on request"


def test_weights_that_are_not_finite_stay() -> None:
    model = product()
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[5, 7] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    _, report = apply(PASS, model)
    assert not report.changed
    assert skipped(report) == {"w": "it holds NaN or infinities"}


def test_tables() -> None:
    weights = {"w": RNG(1).standard_normal((300, 32)).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["w", "x"], ["y"], name="embed")]
    model = graph_model(nodes, weights, [2, 5], kind=TensorProto.INT64, rank=3)
    after, report = apply(PASS, model)
    assert report.counts == {"tables": 1}
    assert sqnr_db(model, after, {"x": np.array([[0, 299, 5, 5, -1], [1, 2, 3, 4, 6]])}) > 40
    _, report = apply(PASS, model, tables=False)
    assert skipped(report) == {"w": "tables=false"}


def test_golden() -> None:
    model = product("GemmT", rows=256, columns=128)
    after, report = apply(PASS, model)
    assert_golden("quantize-dynamic", "gemm", lower(model), after, report)


RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2,3,8] x, float[2,3,8] r) => (float[2,3,8] y, float[2,3,8] z)
<float[8] s = {1,2,3,4,5,6,7,8}, float[8] b = {1,1,1,1,1,1,1,1}>
{
  biased = Add(x, b)
  [first] sum = Add(biased, r)
  n = LayerNormalization(sum, s, b)
  [second] other = Add(n, x)
  mean = ReduceMean<axes = [-1]>(other)
  centred = Sub(other, mean)
  y = Mul(centred, s)
  z = Add(n, r)
}
"""


def test_residuals_become_sums_to_the_bit() -> None:
    model = parse(RESIDUAL)
    after, report = apply(SUM, model)
    assert report.counts == {"additions": 2}
    assert list(op_types(after)).count("Sum") == 2
    assert list(op_types(after)).count("Add") == 2
    assert_same_function(model, after)
    assert_golden("rewrite-residual-sum", "both-forms", lower(model), after, report)
    assert not apply(SUM, after)[1].changed


def test_a_target_that_does_not_gain_is_left_alone() -> None:
    from tests.passes import harness

    model = lower(parse(RESIDUAL))
    context = harness.context_for(model)
    context.target = context.target.model_copy(update={"dynamic": None})
    report = SUM.run(model, RewriteResidualSum.Options(), context)
    assert "force=true" in dict(report.skipped)["model"]
    assert SUM.run(model, RewriteResidualSum.Options(force=True), context).changed


def test_onnxruntime_keeps_the_sum_apart(tmp_path: Path) -> None:
    after, _ = apply(SUM, parse(RESIDUAL))
    found = optimised(after, tmp_path)
    assert "SkipLayerNormalization" not in found
    before = optimised(lower(onnx.parser.parse_model(RESIDUAL)), tmp_path)
    assert "SkipLayerNormalization" in before
