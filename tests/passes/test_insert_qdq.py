"""insert-qdq, judged by onnxruntime: its outputs, and the kernels it makes of the result."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.calibrate import collect
from graphopt.errors import DataError, GraphoptError, OptionError
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.quantize.grid import activation_grid, bias_codes, linear_step, weight_codes
from graphopt.pipeline.calibrating import everything
from graphopt.runtime.measurements import Measured
from tests.passes.harness import apply, assert_golden, parse

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.ir import Model

SEED = np.random.default_rng(7)


def graph_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray[Any, Any]],
    shape: list[Any],
    out: list[Any],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    return model


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def residual(group: int = 1) -> onnx.ModelProto:
    """Conv, Relu, Conv, Add, Relu, pooling, Gemm: a small ResNet."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], group=group),
        node("Add", ["c2", "r1"], ["a"], "add"),
        node("Relu", ["a"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "w3", "b3"], ["y"], "gemm", transB=1),
    ]
    weights = {
        "w1": normal(16, 3, 3, 3, scale=0.3), "b1": normal(16, seed=1),
        "w2": normal(16, 16 // group, 3, 3, scale=0.1, seed=2), "b2": normal(16, seed=3),
        "w3": normal(10, 16, seed=4), "b3": normal(10, seed=5),
    }  # fmt: skip
    return graph_of(nodes, weights, [1, 3, 8, 8], [1, 10])


def feeds(shape: tuple[int, ...], count: int = 16, seed: int = 11) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def session(model: onnx.ModelProto | Model, path: Path | None = None) -> ort.InferenceSession:
    proto = model if isinstance(model, onnx.ModelProto) else emit(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if path is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(path)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kernels(model: Model, folder: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime runs."""
    session(model, folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def sqnr_db(before: onnx.ModelProto, after: Model, data: list[dict[str, Any]]) -> float:
    one, two = session(before), session(after)
    expected = np.concatenate([one.run(None, feed)[0].reshape(-1) for feed in data]).astype(np.float64)
    got = np.concatenate([two.run(None, feed)[0].reshape(-1) for feed in data]).astype(np.float64)
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


def test_everything_of_a_residual_net_runs_on_codes(tmp_path: Path) -> None:
    model, data = residual(), feeds((1, 3, 8, 8))
    result, report = apply(InsertQdq(), model, data=data, measure="off")
    found = kernels(result, tmp_path)
    assert found["QLinearConv"] == 2
    assert found["QLinearAdd"] == 1
    assert found["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu", "DequantizeLinear"} & found.keys()
    assert report.counts["quantised_conv"] == 2
    assert sqnr_db(model, result, data) > 30


def test_a_grouped_convolution_stays_float_and_says_so(tmp_path: Path) -> None:
    result, report = apply(InsertQdq(), residual(group=4), data=feeds((1, 3, 8, 8)), measure="off")
    assert any("conv2" in where and "groups" in reason for where, reason in report.skipped)
    assert kernels(result, tmp_path)["QLinearConv"] == 1


def test_relu_gets_the_lowest_code_and_clip_stays_within_its_bounds() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], "conv1"), node("Clip", ["c1", "zero", "six"], ["r1"], "relu6"),
        node("Conv", ["r1", "w2"], ["y"], "conv2"),
    ]  # fmt: skip
    weights = {
        "w1": normal(8, 3, 1, 1, scale=4), "w2": normal(8, 8, 1, 1),
        "zero": np.array(0, np.float32), "six": np.array(6, np.float32),
    }  # fmt: skip
    result, _ = apply(InsertQdq(), graph_of(nodes, weights, [1, 3, 8, 8], [1, 8, 8, 8]),
                      data=feeds((1, 3, 8, 8)), measure="off", calibrator="minmax")  # fmt: skip
    quantizer: Any
    (quantizer,) = [user for value in result.graph.all_nodes() if value.op_type == "Clip"
                    for user in value.outputs[0].consumers()]  # fmt: skip
    scale, zero_point = (each.const_value.numpy() for each in quantizer.inputs[1:])
    assert scale.shape == zero_point.shape == ()
    assert zero_point == 0
    assert np.float32(255) * scale <= np.float32(6)
    assert np.float32(255) * scale > np.float32(5.99)


def transformer(dims: list[Any]) -> onnx.ModelProto:
    """Two projections with biases, Gelu between, a residual and a LayerNormalization."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["m1"], "up"), node("Add", ["m1", "b1"], ["a1"], "up_bias"),
        node("Tanh", ["a1"], ["t"], "tanh"),
        node("MatMul", ["t", "w2"], ["m2"], "down"), node("Add", ["b2", "m2"], ["a2"], "down_bias"),
        node("Add", ["a2", "x"], ["r"], "residual"),
        node("LayerNormalization", ["r", "g"], ["y"], "norm"),
    ]  # fmt: skip
    weights = {
        "w1": normal(32, 64, scale=0.2), "b1": normal(64, seed=1), "w2": normal(64, 32, scale=0.2, seed=2),
        "b2": normal(32, seed=3), "g": np.ones(32, np.float32),
    }  # fmt: skip
    return graph_of(nodes, weights, [*dims, 32], [*dims, 32])


@pytest.mark.parametrize("dims", [[1, 16], ["batch", 16], ["batch", "sequence"], [4]])
def test_a_matmul_with_bias_becomes_a_gemm_on_codes(dims: list[Any], tmp_path: Path) -> None:
    model = transformer(dims)
    sizes = tuple({"batch": 2, "sequence": 7}.get(dim, dim) for dim in dims)
    data = feeds((*sizes, 32))
    result, report = apply(InsertQdq(), model, data=data, measure="off")
    assert report.counts["matmul_to_gemm"] == 2
    found = kernels(result, tmp_path)
    assert found["QGemm"] == 2
    assert not {"Gemm", "MatMul", "FusedMatMul"} & found.keys()
    assert sqnr_db(model, result, data) > 30
    if "batch" in dims:  # free dims stay free
        other = {"x": normal(3, *(5 if dim == "sequence" else dim for dim in dims[1:]), 32)}
        assert session(result).run(None, other)[0].shape == other["x"].shape


def test_a_mask_on_the_way_to_softmax_sets_no_scale() -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["scores"], "scores"), node("Add", ["scores", "mask"], ["masked"], "mask"),
        node("Softmax", ["masked"], ["p"], "softmax"), node("MatMul", ["p", "v"], ["y"], "values"),
    ]  # fmt: skip
    mask = np.triu(np.full((8, 8), -1e9, np.float32), 1)
    weights = {"w": normal(4, 8), "mask": mask, "v": normal(8, 4)}
    model, data = graph_of(nodes, weights, [8, 4], [8, 4]), feeds((8, 4))
    result, _ = apply(InsertQdq(), model, data=data, measure="off")
    quantizers: list[Any] = [node for node in result.graph if node.op_type == "QuantizeLinear"]
    scales = [float(node.inputs[1].const_value.numpy()) for node in quantizers]
    assert max(scales) < 1
    assert sqnr_db(model, result, data) > 30


def test_shared_biases_and_names_that_are_taken() -> None:
    """Scenario A7: one bias for two convolutions, and other values named as ours would be."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b"], ["b_quantized"], "conv1"),
        node("Relu", ["b_quantized"], ["b0"], "relu"),
        node("Conv", ["b0", "w2", "b"], ["b_scale"], "conv2"),
        node("Conv", ["b0", "w2", "b"], ["quantize_scale"], "conv3"),
        node("Sub", ["b_scale", "quantize_scale"], ["z"], "sub"),
        node("Add", ["z", "b_scale"], ["y"], "add"),
    ]
    weights = {"w1": normal(8, 3, 1, 1), "w2": normal(8, 8, 1, 1, seed=1), "b": normal(8, seed=2)}
    model, data = graph_of(nodes, weights, [1, 3, 8, 8], [1, 8, 8, 8]), feeds((1, 3, 8, 8))
    result, _ = apply(InsertQdq(), model, data=data, measure="off")
    assert sqnr_db(model, result, data) > 30
    stored = [name for name in result.graph.initializers if name.startswith("w2_quantized")]
    assert len(stored) == 1  # one weight, one set of codes


def test_a_bias_that_overflows_raises_the_scale_of_its_weight() -> None:
    weights = {"w": np.full((2, 3, 1, 1), 1e-7, np.float32), "b": np.array([5, -4.5], np.float32)}
    model = graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv")], weights, [1, 3, 4, 4], [1, 2, 4, 4]
    )
    result, report = apply(InsertQdq(), model, data=feeds((1, 3, 4, 4)), measure="off")
    assert report.extra["scales_raised_for_bias"] == ["conv"]
    assert not report.skipped
    assert sqnr_db(model, result, feeds((1, 3, 4, 4))) > 30


def test_weights_behind_a_dequantizelinear_keep_their_codes() -> None:
    node = helper.make_node
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["wf"], "unpack", axis=0),
        node("Conv", ["x", "wf"], ["y"], "conv"),
    ]
    codes = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1)).astype(np.int8)
    model = graph_of(nodes, {"w": codes, "s": np.full(4, 0.01, np.float32)}, [1, 3, 4, 4], [1, 4, 4, 4])
    result, _ = apply(InsertQdq(), model, data=feeds((1, 3, 4, 4)), measure="off")
    stored = [value.const_value.numpy() for value in result.graph.initializers.values()
              if value.const_value is not None and value.const_value.numpy().dtype == np.int8]  # fmt: skip
    assert any(array.shape == codes.shape and np.array_equal(array, codes) for array in stored)
    assert "w" not in result.graph.initializers


def test_bodies_of_if_are_quantised() -> None:
    proto = parse("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4, 8] x, bool flag) => (float[4, 8] y)
        <float[8, 8] w = {1,0,0,0,0,0,0,0, 0,1,0,0,0,0,0,0, 0,0,1,0,0,0,0,0, 0,0,0,1,0,0,0,0,
                          0,0,0,0,1,0,0,0, 0,0,0,0,0,1,0,0, 0,0,0,0,0,0,1,0, 0,0,0,0,0,0,0,1}> {
          y = If (flag) <
            then_branch = t () => (float[4, 8] a) { a = MatMul(x, w) },
            else_branch = e () => (float[4, 8] b) { b = Neg(x) } >
        }
    """)
    data = [{"x": normal(4, 8, seed=k), "flag": np.ones((), bool)} for k in range(4)]
    result, report = apply(InsertQdq(), proto, data=data, measure="off")
    assert report.counts["quantised_matmul"] == 1
    assert sqnr_db(proto, result, data) > 30


def test_what_is_quantised_already_is_left() -> None:
    model, data = residual(), feeds((1, 3, 8, 8))
    once, _ = apply(InsertQdq(), model, data=data, measure="off")
    _, report = apply(InsertQdq(), once, data=data, measure="off")
    assert not report.changed
    assert {reason for _, reason in report.skipped} >= {"it is quantised already"}


def measured(label: str, ratio: float) -> tuple[tuple[str, str], Measured]:
    return ("", label), Measured(label, "", "cpu", 1.0, ratio, ratio, 1.0, 0.02)


def test_what_is_not_faster_stays_float() -> None:
    labels = ["all against float", "all without chains against float", "convolutions alone against float",
              "matrix products alone against float"]  # fmt: skip
    slow = dict(measured(label, 1.3) for label in labels)
    result, report = apply(InsertQdq(), residual(), data=feeds((1, 3, 8, 8)), measure="on", measurements=slow)
    assert not report.changed
    assert report.skipped[-1][1].startswith(
        "nothing is faster on codes on this provider, as measured; quantize-"
    )
    assert Counter(node.op_type for node in result.graph)["QuantizeLinear"] == 0
    fast = {**slow, **dict([measured("matrix products alone against float", 0.8)])}
    _, report = apply(InsertQdq(), residual(), data=feeds((1, 3, 8, 8)), measure="on", measurements=fast)
    assert report.extra["quantised"] == ["Gemm 'gemm'"] or len(report.extra["quantised"]) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("confirmed", "kept"), [(0.8, ["gemm"]), (0.99, ["conv1", "conv2", "gemm"])])
def test_a_block_stays_float_where_that_is_faster_by_more_than_noise(
    confirmed: float, kept: list[str]
) -> None:
    known = [
        measured("all against float", 0.5),
        measured("all without chains against float", 0.5),
        measured("conv1 to conv2 float, once", 0.8),
        measured("conv1 float, once", 1.0),
        measured("gemm float, once", 1.2),
        measured("conv1 to conv2 float", confirmed),
    ]
    _, report = apply(
        InsertQdq(), residual(), data=feeds((1, 3, 8, 8)), measure="on", measurements=dict(known)
    )
    assert report.extra["quantised"] == kept
    assert [each["what"] for each in report.extra["measured"]] == [  # type: ignore[attr-defined]
        "all against float",
        "all without chains against float",
        "conv1 to conv2 float",
    ]


def test_the_first_node_stays_float_where_that_alone_is_faster() -> None:
    known = [
        measured("all against float", 0.5),
        measured("all without chains against float", 0.5),
        measured("conv1 to conv2 float, once", 1.1),
        measured("conv1 float, once", 0.9),
        measured("gemm float, once", 1.2),
        measured("conv1 float", 0.9),
    ]
    _, report = apply(
        InsertQdq(), residual(), data=feeds((1, 3, 8, 8)), measure="on", measurements=dict(known)
    )
    assert report.extra["quantised"] == ["conv2", "gemm"]


def test_patterns_and_plans_keep_nodes_float(tmp_path: Path) -> None:
    data = feeds((1, 3, 8, 8))
    plan = tmp_path / "plan.toml"
    plan.write_text('schema = 1\npass = "insert-qdq"\n[[item]]\nnode = "conv2"\nquantise = false\n')
    for options in ({"exclude": ("conv2",)}, {"include": ("conv1", "gemm")}, {"keep_float": ("conv2",)},
                    {"plan": plan}):  # fmt: skip
        result, _ = apply(InsertQdq(), residual(), data=data, measure="off", **options)
        conv2: Any
        (conv2,) = [node for node in result.graph if node.name == "conv2"]
        assert conv2.inputs[1].name == "w2"
    with pytest.raises(OptionError, match="no node 'conv9'"):
        apply(InsertQdq(), residual(), data=data, keep_float=("conv9",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"opset": 11}, "opset 13"),
        ({"weight": np.nan}, "NaN or infinity"),
        ({"data": None}, "--data"),
    ],
)
def test_bad_input_says_what_to_do(change: dict[str, Any], words: str) -> None:
    weight = normal(4, 3, 1, 1)
    if "weight" in change:
        weight[0, 0, 0, 0] = change["weight"]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    model = graph_of(nodes, {"w": weight}, [1, 3, 4, 4], [1, 4, 4, 4], opset=change.get("opset", 17))
    data = None if "data" in change else feeds((1, 3, 4, 4))
    if "weight" in change:
        _, report = apply(InsertQdq(), model, data=data)
        assert any(words in reason for _, reason in report.skipped)
        return
    with pytest.raises((OptionError, DataError), match=words):
        apply(InsertQdq(), model, data=data)


def test_what_was_not_measured_is_said() -> None:
    model = lower(residual())
    statistics = collect(model, feeds((1, 3, 8, 8)), everything(model).needs)
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({}, "there is no data here to measure with: float may be faster"),
        ({"target": "tensorrt"}, "there is no provider 'tensorrt' here to measure with: float may be faster"),
        ({"measure": "off"}, None),
    ]
    for options, reason in cases:
        _, report = apply(InsertQdq(), residual(), statistics=statistics, **options)
        assert report.changed
        assert dict(report.skipped).get("measure=auto") == reason


def test_behind_a_weight_that_is_not_finite_values_are_said_to_hold_nan() -> None:
    weight = normal(4, 3, 1, 1)
    weight[:] = np.nan
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Conv", ["c", "v"], ["y"], "behind"),
    ]
    model = graph_of(nodes, {"w": weight, "v": normal(4, 4, 1, 1)}, [1, 3, 4, 4], [1, 4, 4, 4])
    _, report = apply(InsertQdq(), model, data=feeds((1, 3, 4, 4)), measure="off")
    reasons = dict(report.skipped)
    assert "its weight holds NaN" in reasons["conv"]
    assert "'c': it held NaN or infinity in" in reasons["behind"]


def old(opset: int = 11) -> onnx.ModelProto:
    """Conv and a Softmax over all that follows, as it was before opset 13."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Softmax", ["c"], ["y"], "softmax", axis=1),
    ]
    return graph_of(nodes, {"w": normal(4, 3, 1, 1)}, [1, 3, 4, 4], [1, 4, 4, 4], opset=opset)


@pytest.mark.parametrize(
    ("asked", "start", "reached", "options"),
    [
        ("auto", 11, 13, {}),
        ("auto", 11, 11, {"per_channel": False}),
        ("auto", 17, 21, {"activation_dtype": "uint16"}),
        ("keep", 17, 17, {}),
        (19, 11, 19, {}),
        (17, 17, 17, {}),
    ],
)
def test_the_opset_is_reached(asked: int | str, start: int, reached: int, options: dict[str, Any]) -> None:
    data, model = feeds((1, 3, 4, 4)), old(start)
    result, report = apply(InsertQdq(), model, data=data, measure="off", opset=asked, **options)
    assert report.changed
    assert result.opset == reached
    assert "QuantizeLinear" in Counter(node.op_type for node in result.nodes())
    (want,), (found,) = (session(each).run(None, data[0]) for each in (model, result))
    assert np.abs(want - found).max() < 0.02


@pytest.mark.parametrize(
    ("asked", "options", "words"),
    [
        ("keep", {}, "opset=auto"),
        (12, {}, "one scale a channel needs opset 13"),
        (20, {"activation_dtype": "int16"}, "a code of 16 bits needs opset 21"),
        (10, {"per_channel": False}, "never lowered"),
        (99, {}, "loads at most opset"),
    ],
)
def test_an_opset_that_cannot_be_is_refused(asked: int | str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        apply(InsertQdq(), old(), data=feeds((1, 3, 4, 4)), opset=asked, **options)


def test_where_nothing_is_quantised_the_opset_stays() -> None:
    result, report = apply(InsertQdq(), old(), data=feeds((1, 3, 4, 4)), opset="auto", exclude=("*",))
    assert not report.changed
    assert result.opset == 11


def test_channels_of_zeros_make_finite_scales() -> None:
    weight = normal(4, 3, 1, 1)
    weight[1] = 0
    weight[2] = 1e-40
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")], {"w": weight}, [1, 3, 4, 4], [1, 4, 4, 4]
    )
    data = feeds((1, 3, 4, 4))
    result, report = apply(InsertQdq(), model, data=data, measure="off")
    assert report.counts["quantised_nodes"] == 1
    assert sqnr_db(model, result, data) > 30


@pytest.mark.parametrize("constant", [0.0, 2.5, -1e-41])
def test_a_value_that_never_varies_in_the_data_stays_float(constant: float) -> None:
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        {"w": normal(4, 3, 1, 1)},
        [1, 3, 4, 4],
        [1, 4, 4, 4],
    )
    data = [{"x": np.full((1, 3, 4, 4), constant, np.float32)}]
    _, report = apply(InsertQdq(), model, data=data, measure="off")
    assert not report.changed
    assert ("conv", f"value 'x': it is {np.float32(constant):g} throughout the data") in report.skipped


def test_patterns_that_fit_no_node_and_weights_that_callers_may_override_are_named() -> None:
    data = feeds((1, 3, 8, 8))
    _, report = apply(InsertQdq(), residual(), data=data, measure="off", exclude=("layer9*", "conv2"))
    assert [where for where, _ in report.skipped] == ["exclude 'layer9*'", "conv2"]
    model = residual()
    model.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [16, 16, 3, 3]))
    _, report = apply(InsertQdq(), model, data=data, measure="off")
    ((where, reason),) = report.skipped
    assert where == "conv2"
    assert "freeze_initializers" in reason


def test_the_arithmetic_of_grids() -> None:
    grid = activation_grid(-1.0, 3.0, "uint8")
    assert grid.zero_point == 64
    assert grid.low == pytest.approx(-1.0, abs=grid.scale)
    assert activation_grid(0.5, 3.0, "uint8").zero_point == 0
    assert activation_grid(-1.0, 3.0, "int8", symmetric=True).zero_point == 0
    weight = normal(4, 6)
    codes = weight_codes(weight, 0, "int8")
    assert (np.abs(codes.dequantised() - weight) < codes.scales[:, None] * 0.51).all()
    bias, scales = bias_codes(np.ones(4, np.float32), 0.1, codes)
    np.testing.assert_allclose(bias * scales, 1.0, rtol=1e-3)
    on_grid = np.random.default_rng(0).integers(-100, 100, (4, 50)) * np.float32(0.037)
    assert linear_step(on_grid.astype(np.float64)) == pytest.approx(0.037, rel=1e-6)
    assert linear_step(normal(4, 50).astype(np.float64)) == 0.0
    np.testing.assert_allclose(weight_codes(on_grid, 0, "int8").dequantised(), on_grid, rtol=1e-6)


def test_golden() -> None:
    node = helper.make_node
    nodes = [node("Gemm", ["x", "w", "b"], ["h"], "up"), node("Relu", ["h"], ["r"], "relu"),
             node("Gemm", ["r", "v"], ["y"], "down", transB=1)]  # fmt: skip
    weights = {"w": np.array([[1, -2], [3, 4]], np.float32), "b": np.array([0.5, -0.5], np.float32),
               "v": np.array([[1, 0], [0, 1]], np.float32)}  # fmt: skip
    model = graph_of(nodes, weights, ["n", 2], ["n", 2])
    data = [{"x": np.array([[1, 2], [-1, 0.5]], np.float32)}]
    result, report = apply(InsertQdq(), model, data=data, measure="off", calibrator="minmax")
    assert_golden("insert-qdq", "two-gemms", model, result, report)


def test_no_target_rules_is_an_error() -> None:
    with pytest.raises(GraphoptError, match="no rule"):
        apply(InsertQdq(), residual(), data=feeds((1, 3, 8, 8)), op_types=("LSTM",))
