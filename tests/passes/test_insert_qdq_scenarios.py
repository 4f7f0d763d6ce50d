"""insert-qdq on what goes wrong elsewhere: SiLU nets, bodies, shared scales, 4-bit codes, real models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.emit import save
from graphopt.ir.lower import load
from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.upgrade_opset import UpgradeOpset
from graphopt.runtime.feeds import random_feeds
from tests.passes.harness import apply, parse
from tests.passes.test_insert_qdq import feeds, graph_of, kernels, measured, normal, sqnr_db

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.ir import Model


def silu() -> onnx.ModelProto:
    """Four 3x3 convolutions, each with x * sigmoid(x) behind it, and a Gemm."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Any] = {}
    value = "x"
    for k in range(4):
        weights |= {
            f"w{k}": normal(16, 16 if k else 3, 3, 3, scale=0.15, seed=k),
            f"b{k}": normal(16, seed=k + 9),
        }
        nodes += [
            helper.make_node("Conv", [value, f"w{k}", f"b{k}"], [f"c{k}"], f"conv{k}", pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", [f"c{k}"], [f"s{k}"], f"sigmoid{k}"),
            helper.make_node("Mul", [f"c{k}", f"s{k}"], [f"m{k}"], f"mul{k}"),
        ]
        value = f"m{k}"
    weights |= {"w": normal(16, 10, seed=7, scale=0.3)}
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w"], ["y"], "gemm"),
    ]
    return graph_of(nodes, weights, [1, 3, 8, 8], [1, 10])


def test_a_silu_net_is_never_slower_and_says_what_it_kept(tmp_path: Path) -> None:
    data = feeds((1, 3, 8, 8))
    slow = dict(
        measured(f"{what} against float", ratio)
        for what, ratio in [
            ("all", 1.9),
            ("all without chains", 1.4),
            ("convolutions alone", 1.9),
            ("matrix products alone", 1.01),
        ]
    )
    result, report = apply(InsertQdq(), silu(), data=data, measure="on", measurements=slow)
    assert not report.changed
    assert [where for where, reason in report.skipped if reason.startswith("nothing is faster")] == [
        "conv0", "conv1", "conv2", "conv3", "gemm", "model",
    ]  # fmt: skip
    assert len(report.extra["measured"]) == 4  # type: ignore[arg-type]
    # Where all of it pays but its first half, that half stays float; none of its weights is left in codes.
    mixed = dict(
        measured(label, ratio)
        for label, ratio in [
            ("all against float", 0.7),
            ("all without chains against float", 1.4),
            ("convolutions alone against float", 0.8),
            ("matrix products alone against float", 1.0),
            ("conv0 to conv1 float, once", 0.8),
            ("conv2 to conv3 float, once", 1.2),
            ("conv0 float, once", 1.0),
            ("gemm float, once", 1.0),
            ("conv0 to conv1 float", 0.8),
        ]
    )
    result, report = apply(InsertQdq(), silu(), data=data, measure="on", measurements=mixed)
    assert report.extra["quantised"] == ["conv2", "conv3", "gemm"]
    assert {where for where, _ in report.skipped} == {"conv0", "conv1"}
    made = kernels(result, tmp_path)
    assert made["QLinearConv"] == 2
    assert made["Conv"] + made["FusedConv"] == 2
    assert sqnr_db(silu(), result, data) > 30


def test_a_body_of_a_loop_is_quantised() -> None:
    weight = ", ".join(f"{number:.6f}" for number in normal(8, 8, scale=0.4).reshape(-1))
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4, 8] x) => (float[4, 8] y)
        <int64 n = {3}, bool go = {1}, float[8, 8] w = {WWW}> {
          y = Loop (n, go, x) <body = b (int64 i, bool c, float[4, 8] s) => (bool d, float[4, 8] t) {
            d = Identity(c)
            h = MatMul(s, w)
            t = Tanh(h)
          }>
        }
    """.replace("WWW", weight)
    )
    data = [{"x": normal(4, 8, seed=k)} for k in range(6)]
    result, report = apply(InsertQdq(), model, data=data, measure="off")
    assert report.counts["quantised_matmul"] == 1
    assert sqnr_db(model, result, data) > 30


def concat(scale: float) -> onnx.ModelProto:
    """Two convolutions with a Relu each, the second giving *scale* times as much, joined for a third."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["x", "w2"], ["c2"], "conv2"),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Concat", ["r1", "r2"], ["j"], "join", axis=1),
        helper.make_node("Conv", ["j", "w3"], ["y"], "conv3"),
    ]
    weight = normal(8, 3, 1, 1)
    weights = {"w1": weight, "w2": weight * np.float32(scale), "w3": normal(4, 16, 1, 1, seed=3)}
    return graph_of(nodes, weights, [1, 3, 8, 8], [1, 4, 8, 8])


def grid_of(model: Model, name: str) -> tuple[float, int]:
    (quantizer,) = [node for node in model.graph if node.name == f"{name}_quantize"]
    scale, zero = (value.const_value.numpy() for value in quantizer.inputs[1:] if value and value.const_value)
    return float(scale), int(zero)


@pytest.mark.parametrize(("scale", "shared"), [(0.7, True), (1.5, True), (0.1, False)])
def test_what_is_joined_shares_a_scale_where_that_costs_less_than_a_bit(scale: float, shared: bool) -> None:
    model, data = concat(scale), feeds((1, 3, 8, 8))
    result, _ = apply(InsertQdq(), model, data=data, measure="off")
    one, two, both = (grid_of(result, name) for name in ("r1", "r2", "j"))
    assert (one == two) == shared
    assert both == max(one, two)
    assert one[1] == two[1] == 0  # so that Relu is absorbed
    assert sqnr_db(model, result, data) > 30


@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1)])
def test_constants_of_a_chain_become_codes_whatever_their_rank(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "conv1"),
        helper.make_node("Add", ["c", "b"], ["a"], "add"),
        helper.make_node("Mul", ["a", "f"], ["m"], "mul"),
        helper.make_node("Conv", ["m", "w2"], ["y"], "conv2"),
    ]
    weights = {
        "w1": normal(8, 3, 1, 1), "w2": normal(4, 8, 1, 1, seed=3),
        "b": np.full(shape, 0.75, np.float32), "f": np.full(shape, 1.5, np.float32),
    }  # fmt: skip
    model, data = graph_of(nodes, weights, [1, 3, 8, 8], [1, 4, 8, 8]), feeds((1, 3, 8, 8))
    result, report = apply(InsertQdq(), model, data=data, measure="off")
    assert report.counts["chain_nodes"] == 2
    assert kernels(result, tmp_path)["QLinearMul"] == 1
    assert sqnr_db(model, result, data) > 25  # five roundings of normal numbers


def test_codes_of_4_bits_stay_as_they_are() -> None:
    codes = helper.make_tensor(
        "q", TensorProto.INT4, [64, 48], np.random.default_rng(0).integers(-8, 8, 64 * 48).tolist()
    )
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"], "unpack", axis=0, block_size=32),
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
        ],
        "blocked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 48])],
        [codes, numpy_helper.from_array(np.full((2, 48), 0.1, np.float32), "s")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    _, report = apply(InsertQdq(), model, data=[{"x": normal(4, 64)}], measure="off")
    assert not report.changed
    assert ("product", "its weight is stored in int4 codes, which 8-bit ones would double") in report.skipped


# name: least SQNR in dB on random feeds; a trained net that gets noise loses more than on its data.
MODELS = {
    "mlperf_kws_dscnn": 15.0,
    "mlperf_ic_resnet8": 20.0,
    "ultraface_version-RFB-320_simplified": 15.0,
    "nanodet_m_320": 10.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_trained_models_load_run_and_agree(assets: Path, tmp_path: Path, name: str) -> None:
    path = assets / "models" / f"{name}.onnx"
    model = load(path)
    model, _ = apply(Canonicalize(), model, check=False, freeze_initializers=True)
    if model.opset < 13:
        model, _ = apply(UpgradeOpset(), model, check=False, to=13)
    data: list[dict[str, Any]] = [dict(feed) for feed in random_feeds(model, 2)]
    result, report = apply(InsertQdq(), model, data=data, measure="off", check=False)
    assert report.counts["quantised_nodes"] >= 10
    save(result, tmp_path / "out.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    sessions = [
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for file in (path, tmp_path / "out.onnx")
    ]
    for feed in data:
        for before, after in zip(*(each.run(None, feed) for each in sessions), strict=True):
            noise = float(((before.astype(np.float64) - after) ** 2).sum())
            signal = float((before.astype(np.float64) ** 2).sum())
            assert noise <= signal * 10 ** (-MODELS[name] / 10)


def test_what_is_quantised_before_is_left_and_the_model_comes_back_unchanged(assets: Path) -> None:
    model = load(assets / "models" / "mlperf_ic_resnet8_qdq.onnx")
    data: list[dict[str, Any]] = [dict(feed) for feed in random_feeds(model, 1)]
    _, report = apply(InsertQdq(), model, data=data, measure="off", check=False)
    assert not report.changed
    assert {reason for _, reason in report.skipped} == {"it is quantised already", "no node can run on codes"}
