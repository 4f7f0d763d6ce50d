"""fuse-batchnorm, judged by onnxruntime within 1e-5 and by golden texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.ir.emit import emit
from graphopt.passes.fuse_batchnorm import FuseBatchnorm
from tests.passes.harness import apply, assert_golden, assert_same_function, build, op_types, parse

PASS = FuseBatchnorm()
RTOL = 1e-5
RNG = np.random.default_rng(11)
START = RNG.bit_generator.state

Inputs = dict[str, tuple[int, list[int | str]]]


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same numbers, whichever ran before."""
    RNG.bit_generator.state = START


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def statistics(channels: int, prefix: str = "bn", dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {
        f"{prefix}_scale": normal(channels, dtype=dtype),
        f"{prefix}_bias": normal(channels, dtype=dtype),
        f"{prefix}_mean": normal(channels, dtype=dtype),
        f"{prefix}_var": (0.1 + RNG.random(channels)).astype(dtype),
    }


def batchnorm(source: str, target: str, prefix: str = "bn", **attributes: Any) -> onnx.NodeProto:
    names = [f"{prefix}_{part}" for part in ("scale", "bias", "mean", "var")]
    return helper.make_node("BatchNormalization", [source, *names], [target], name=prefix, **attributes)


def conv_model(
    tail: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    output: str = "y",
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """x [2, 4, 9, 9] -> Conv (6 channels, bias) -> c -> tail -> output."""
    group = attributes.get("group", 1)
    own = {"w": normal(6, 4 // group, 3, 3), "b": normal(6)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", **attributes), *tail]
    shape: list[int | str] = ["n", 6, "h", "k"]
    return build(nodes, {"x": (1, [2, 4, 9, 9])}, {output: (1, shape)}, own | constants, opset=opset)


# --- operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 21])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"group": 2},
        {"auto_pad": "SAME_UPPER"},
        {"dilations": [2, 2], "auto_pad": "VALID"},
    ],
)
def test_conv(attributes: dict[str, Any], opset: int) -> None:
    before = conv_model([batchnorm("c", "y", epsilon=0.01)], statistics(6), opset=opset, **attributes)
    after, report = apply(PASS, before)
    assert op_types(after) == ["Conv"]
    assert report.counts == {"batchnorms_fused": 1}
    assert len(after.graph.initializers) == 2
    assert_same_function(before, after, rtol=RTOL)


def test_conv_without_bias_and_default_epsilon() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    constants = {"w": normal(6, 4, 3), **statistics(6)}
    constants["bn_var"] = np.full(6, 1e-5, np.float32)
    before = build(nodes, {"x": (1, ["n", 4, 9])}, {"y": (1, ["n", 6, 7])}, constants)
    after, report = apply(PASS, before)
    assert_golden("fuse-batchnorm", "conv1d-without-bias", before, after, report)
    assert_same_function(before, after, rtol=RTOL)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_transpose(group: int, rank: int) -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], group=group, strides=[2] * rank, name="up"),
        batchnorm("c", "y"),
    ]
    per_group = 3
    constants = {"w": normal(4, per_group, *[2] * rank), **statistics(per_group * group)}
    out: list[int | str] = [2, per_group * group, *[10] * rank]
    before = build(nodes, {"x": (1, [2, 4, *[5] * rank])}, {"y": (1, out)}, constants)
    after, _ = apply(PASS, before)
    assert op_types(after) == ["ConvTranspose"]
    assert_same_function(before, after, rtol=RTOL)


@pytest.mark.parametrize("bias_shape", [None, (), (1,), (5,), (1, 5)])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(bias_shape: tuple[int, ...] | None, trans_b: int) -> None:
    inputs = ["x", "w"] if bias_shape is None else ["x", "w", "b"]
    nodes = [
        helper.make_node("Gemm", inputs, ["c"], alpha=0.5, beta=2.0, transB=trans_b, name="dense"),
        batchnorm("c", "y"),
    ]
    constants = {"w": normal(*((5, 7) if trans_b else (7, 5))), **statistics(5)}
    if bias_shape is not None:
        constants["b"] = normal(*bias_shape)
    before = build(nodes, {"x": (1, [3, 7])}, {"y": (1, [3, 5])}, constants)
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Gemm"]
    assert_same_function(before, after, rtol=RTOL)


def test_gemm_with_a_bias_of_each_row_is_left_alone() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["c"]), batchnorm("c", "y")]
    constants = {"w": normal(7, 5), "b": normal(3, 1), **statistics(5)}
    _, report = apply(PASS, build(nodes, {"x": (1, [3, 7])}, {"y": (1, [3, 5])}, constants))
    assert not report.changed
    assert "not one number a channel" in report.skipped[0][1]


def test_matmul_and_add_behind_it() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["b", "m"], ["c"]),
        batchnorm("c", "y"),
    ]
    constants = {"w": normal(7, 5), "b": normal(5), **statistics(5)}
    before = build(nodes, {"x": (1, [3, 7])}, {"y": (1, [3, 5])}, constants)
    after, _ = apply(PASS, before)
    assert op_types(after) == ["MatMul", "Add"]
    assert_same_function(before, after, rtol=RTOL)


def test_matmul_of_rank_three_normalises_another_axis() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["c"]), batchnorm("c", "y")]
    before = build(nodes, {"x": (1, [2, 5, 7])}, {"y": (1, [2, 5, 5])}, {"w": normal(7, 5), **statistics(5)})
    _, report = apply(PASS, before)
    assert not report.changed
    assert "channel axis" in report.skipped[0][1]


def test_double_precision() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["c"]), batchnorm("c", "y")]
    constants = {"w": normal(7, 5, dtype=np.float64), **statistics(5, dtype=np.float64)}
    before = build(nodes, {"x": (11, [3, 7])}, {"y": (11, [3, 5])}, constants)
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Gemm"]
    assert_same_function(before, after, rtol=1e-14)


def test_half_precision_is_rounded_once() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), batchnorm("c", "y")]
    constants = {"w": normal(6, 4, 1, 1, dtype=np.float16), **statistics(6, dtype=np.float16)}
    before = build(nodes, {"x": (10, [1, 4, 5, 5])}, {"y": (10, [1, 6, 5, 5])}, constants)
    after, _ = apply(PASS, before)
    wide = {name: array.astype(np.float64) for name, array in constants.items()}
    factor = wide["bn_scale"] / np.sqrt(wide["bn_var"] + 1e-5)
    expected = (wide["w"] * factor.reshape(-1, 1, 1, 1)).astype(np.float16)
    weight = after.graph.node(0).inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    assert np.array_equal(weight.const_value.numpy(), expected)


# --- what exporters make of it ----------------------------------------------------------------------------


def per_channel(channels: int = 6) -> np.ndarray:
    return normal(1, channels, 1, 1)


def test_decomposed_by_the_dynamo_exporter() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[N, 2, 5, 5] x) => (float[N, 3, 5, 5] y)
    <float[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[3] mean = {1, -1, 0.5}, float[3] std = {0.5, 2, 1},
     float[3] gamma = {1, -2, 0.25}, float[3] beta = {0, 1, 2}, int64[2] axes = {1, 2},
     int64[4] column = {1, 3, 1, 1}>
    {
        conv = Conv (x, w)
        mean_cast = CastLike (mean, conv)
        mean_column = Unsqueeze (mean_cast, axes)
        centred = Sub (conv, mean_column)
        std_column = Reshape (std, column)
        scaled = Div (centred, std_column)
        gamma_column = Unsqueeze (gamma, axes)
        shape = Shape (scaled)
        gamma_full = Expand (gamma_column, shape)
        gained = Mul (scaled, gamma_full)
        beta_column = Unsqueeze (beta, axes)
        y = Add (beta_column, gained)
    }
    """
    before = parse(text)
    after, report = apply(PASS, before)
    assert_golden("fuse-batchnorm", "dynamo-decomposed", before, after, report)
    assert op_types(after) == ["Conv"]
    for n in (1, 3):
        assert_same_function(before, after, rtol=RTOL, dims={"N": n})


def test_parameters_behind_cast_like_and_expand() -> None:
    # BatchNorm2d(affine=False): scale and bias are a filled one and zero of the channels' length.
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[N, 2, 5, 5] x) => (float[N, 3, 5, 5] y)
    <float[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[3] mean = {1, -1, 0.5}, float[3] var = {0.5, 2, 1},
     float one = {1}, float16 zero = {0}, int64[1] three = {3}>
    {
        conv = Conv (x, w)
        one_like = CastLike (one, conv)
        scale = Expand (one_like, three)
        zero_like = CastLike (zero, conv)
        bias = Expand (zero_like, three)
        mean_like = CastLike (mean, conv)
        normal = BatchNormalization (conv, scale, bias, mean_like, var)
        y = CastLike (normal, x)
    }
    """
    before = parse(text)
    after, report = apply(PASS, before)
    assert_golden("fuse-batchnorm", "cast-like-and-expand", before, after, report)
    assert op_types(after) == ["Conv", "CastLike"]
    assert_same_function(before, after, rtol=RTOL)


@pytest.mark.parametrize("order", ["value first", "constant first"])
def test_arithmetic_chain(order: str) -> None:
    def node(op: str, value: str, constant: str, target: str) -> onnx.NodeProto:
        pair = [value, constant] if order == "value first" else [constant, value]
        return helper.make_node(op, pair, [target])

    tail = [node("Mul", "c", "m", "d"), node("Sub", "d", "s", "e"), node("Add", "e", "a", "y")]
    before = conv_model(tail, {"m": per_channel(), "s": normal(6, 1, 1), "a": normal(1)})
    after, report = apply(PASS, before)
    assert op_types(after) == ["Conv"]
    assert report.counts == {"maps_fused": 3}
    assert_same_function(before, after, rtol=RTOL)
    _, report = apply(PASS, before, arithmetic=False)
    assert not report.changed


@pytest.mark.parametrize("shape", [(9, 9), (7,), (2, 6, 1, 1), (1, 1, 1, 1, 1), (6, 7, 1)])
def test_constants_that_are_not_per_channel(shape: tuple[int, ...]) -> None:
    attributes: dict[str, Any] = {"auto_pad": "SAME_UPPER"} if shape == (9, 9) else {}
    tail = [helper.make_node("Mul", ["c", "m"], ["y"])]
    before = conv_model(tail, {"m": normal(*shape)}, **attributes)
    before.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", 1, [f"d{k}" for k in range(max(4, len(shape)))])
    )
    _, report = apply(PASS, before)
    assert not report.changed


def test_an_operand_that_widens_the_batch_is_no_map() -> None:
    tail = [
        helper.make_node("Expand", ["m", "wide"], ["full"]),
        helper.make_node("Mul", ["c", "full"], ["y"]),
    ]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), *tail]
    constants = {"w": normal(6, 4, 1, 1), "m": per_channel(), "wide": np.array([8, 6, 1, 1], np.int64)}
    before = build(nodes, {"x": (1, [1, 4, 5, 5])}, {"y": (1, [8, 6, 5, 5])}, constants)
    _, report = apply(PASS, before)
    assert not report.changed


def test_two_batchnorms_and_a_scale_in_one() -> None:
    tail = [
        batchnorm("c", "d"),
        helper.make_node("Mul", ["d", "m"], ["e"]),
        batchnorm("e", "y", "second"),
    ]
    before = conv_model(tail, {**statistics(6), **statistics(6, "second"), "m": per_channel()})
    after, report = apply(PASS, before)
    assert op_types(after) == ["Conv"]
    assert report.counts == {"batchnorms_fused": 2, "maps_fused": 1}
    assert_same_function(before, after, rtol=RTOL)


# --- what must stay ---------------------------------------------------------------------------------------


def _reason(before: onnx.ModelProto, **options: Any) -> str:
    after, report = apply(PASS, before, **options)
    assert not report.changed
    assert "BatchNormalization" in op_types(after)
    ((where, reason),) = report.skipped
    assert where == "BatchNormalization 'bn'"
    return reason


def test_training_mode_is_named() -> None:
    node = batchnorm("c", "y", training_mode=1)
    node.output.extend(["running_mean", "running_var"])
    assert "training mode" in _reason(conv_model([node], statistics(6)))


def test_intermediate_with_another_reader_or_as_output() -> None:
    tail = [batchnorm("c", "z"), helper.make_node("Add", ["z", "c"], ["y"])]
    assert "others read" in _reason(conv_model(tail, statistics(6)))
    before = conv_model([batchnorm("c", "y")], statistics(6))
    before.graph.output.append(helper.make_tensor_value_info("c", 1, ["n", 6, "h", "k"]))
    assert "output of the graph" in _reason(before)


@pytest.mark.parametrize("name", ["w", "b", "bn_scale", "bn_var"])
def test_overridable_parameters(name: str) -> None:
    before = conv_model([batchnorm("c", "y")], statistics(6))
    dims = next(tensor.dims for tensor in before.graph.initializer if tensor.name == name)
    before.graph.input.append(helper.make_tensor_value_info(name, 1, list(dims)))
    reason = _reason(before)
    assert "override" in reason or "not constant" in reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_statistics(bad: float) -> None:
    constants = statistics(6)
    constants["bn_var" if bad == -1 else "bn_mean"][2] = bad
    assert "not finite" in _reason(conv_model([batchnorm("c", "y")], constants))


def test_overflow_of_the_weight_type() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), batchnorm("c", "y")]
    constants = {"w": np.full((6, 4, 1, 1), 1e4, np.float16), **statistics(6, dtype=np.float16)}
    constants["bn_scale"][:] = 1e4
    before = build(nodes, {"x": (10, [1, 4, 5, 5])}, {"y": (10, [1, 6, 5, 5])}, constants)
    assert "overflows" in _reason(before)


def test_quantised_weights() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        batchnorm("c", "y"),
    ]
    constants = {
        "q": RNG.integers(-127, 127, (6, 4, 1, 1)).astype(np.int8),
        "s": np.array(0.1, np.float32),
        **statistics(6),
    }
    before = build(nodes, {"x": (1, [1, 4, 5, 5])}, {"y": (1, [1, 6, 5, 5])}, constants)
    assert "quantised" in _reason(before)


def test_batchnorm_behind_something_else() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["c"]), batchnorm("c", "y")]
    before = build(nodes, {"x": (1, [1, 6, 5, 5])}, {"y": (1, [1, 6, 5, 5])}, statistics(6))
    assert "Relu" in _reason(before)
    before = build([batchnorm("x", "y")], {"x": (1, [1, 6, 5, 5])}, {"y": (1, [1, 6, 5, 5])}, statistics(6))
    assert "input of the graph" in _reason(before)


def _shared() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        batchnorm("c", "d"),
        helper.make_node("Conv", ["d", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    constants = {"w": normal(32, 32, 3, 3), **statistics(32)}
    return build(nodes, {"x": (1, [1, 32, 5, 5])}, {"y": (1, [1, 32, 5, 5])}, constants)


def test_shared_weights_are_copied_only_on_request() -> None:
    before = _shared()
    assert "copy_shared_weights" in _reason(before)
    after, _ = apply(PASS, before, copy_shared_weights=True)
    assert op_types(after) == ["Conv", "Conv"]
    assert_same_function(before, after, rtol=RTOL)


def test_the_file_does_not_grow() -> None:
    before = conv_model([batchnorm("c", "y")], statistics(6))
    after, _ = apply(PASS, before)
    assert emit(after).ByteSize() < before.ByteSize()


# --- places -----------------------------------------------------------------------------------------------


def test_in_branches_and_functions() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[1, 1, 3, 3] x, bool flag) => (float[1, 2, 3, 3] y)
    <float[2, 1, 1, 1] w = {1, 2}, float[2] s = {1, 3}, float[2] b = {1, 2}, float[2] m = {3, 4},
     float[2] v = {1, 4}>
    {
        t = local.block (x)
        z = If (flag) <
            then_branch = t_graph () => (float[1, 2, 3, 3] r)
                { c = Conv (x, w)  r = BatchNormalization (c, s, b, m, v) },
            else_branch = e_graph () => (float[1, 2, 3, 3] q)
                { d = Conv (x, w)  q = Neg (d) }
        >
        y = Add (t, z)
    }
    <domain: "local", opset_import: ["" : 21]>
    block (v) => (r)
    {
        k = Constant <value = float[2, 1, 1, 1] {3, 4}> ()
        one = Constant <value = float[2] {1, 2}> ()
        c = Conv (v, k)
        r = BatchNormalization (c, one, one, one, one)
    }
    """
    before = parse(text)
    after, report = apply(PASS, before, copy_shared_weights=True)
    assert "BatchNormalization" not in op_types(after)
    assert report.counts == {"batchnorms_fused": 2}
    for flag in (True, False):
        feeds = {"x": normal(1, 1, 3, 3), "flag": np.array(flag)}
        assert_same_function(before, after, feeds, rtol=RTOL)


@pytest.mark.parametrize("group", [1, 2])
def test_before_conv_on_request(group: int) -> None:
    nodes = [batchnorm("x", "n"), helper.make_node("Conv", ["n", "w", "b"], ["y"], group=group)]
    constants = {"w": normal(6, 4 // group, 3, 3), "b": normal(6), **statistics(4)}
    before = build(nodes, {"x": (1, [2, 4, 9, 9])}, {"y": (1, [2, 6, 7, 7])}, constants)
    _, report = apply(PASS, before)
    assert not report.changed
    after, _ = apply(PASS, before, before_conv=True)
    assert op_types(after) == ["Conv"]
    assert_same_function(before, after, rtol=RTOL)


def test_before_a_conv_that_pads() -> None:
    nodes = [batchnorm("x", "n"), helper.make_node("Conv", ["n", "w"], ["y"], pads=[1, 1, 1, 1])]
    constants = {"w": normal(6, 4, 3, 3), **statistics(4)}
    before = build(nodes, {"x": (1, [2, 4, 9, 9])}, {"y": (1, [2, 6, 9, 9])}, constants)
    assert "pads" in _reason(before, before_conv=True)


def test_output_name_and_metadata_survive() -> None:
    before = conv_model([batchnorm("c", "y")], statistics(6))
    entry = before.graph.node[1].metadata_props.add()
    entry.key, entry.value = "scope", "model/bn1"
    after, _ = apply(PASS, before)
    assert [value.name for value in after.graph.outputs] == ["y"]
    assert after.graph.node(0).metadata_props["scope"] == "model/bn1"
    assert emit(after).graph.node[0].name == "conv"
    assert emit(after).graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("opset", [7, 9])
def test_further_outputs_mean_training_before_opset_14(opset: int) -> None:
    """Read or not: the runtime normalises by the batch then."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    nodes[1].output.extend(["mean", "var", "saved_mean", "saved_var"])
    constants = {"w": normal(6, 4, 3, 3), **statistics(6)}
    before = build(
        nodes, {"x": (1, [2, 4, 5, 5])}, {"y": (1, [2, 6, 3, 3])}, constants, opset=opset, ir_version=6
    )
    after, report = apply(PASS, before)
    assert not report.changed
    assert "training" in report.skipped[0][1]
    assert_same_function(before, after)


def test_maps_that_overflow_together_stay() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Mul", ["m", "huge"], ["h"]),
        helper.make_node("Mul", ["h", "endless"], ["y"]),
    ]
    huge = np.array([0, 1e30], np.float32)
    constants = {"w": normal(3, 2), "huge": huge, "endless": np.array([np.inf, 1], np.float32)}
    before = build(nodes, {"x": (1, [2, 3])}, {"y": (1, [2, 2])}, constants)
    after, _ = apply(PASS, before)
    assert_same_function(before, after, rtol=RTOL)
