"""insert-qdq{feedback=true}: its codes against those rounded to nearest, by what onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.ir.emit import emit
from graphopt.passes.insert_qdq import InsertQdq
from tests.passes.harness import apply
from tests.passes.test_insert_qdq import graph_of, normal, session

CHANNELS = 8


def linear(kind: str) -> onnx.ModelProto:
    """One operator with a weight, behind and in front of nothing."""
    node = helper.make_node
    image, flat = [1, CHANNELS, 12, 12], [64, 24]
    match kind:
        case "conv":
            made = [node("Conv", ["x", "w"], ["y"], "linear", pads=[1, 1, 1, 1])]
            return graph_of(made, {"w": normal(16, CHANNELS, 3, 3)}, image, [1, 16, 12, 12])
        case "grouped":
            made = [node("Conv", ["x", "w"], ["y"], "linear", pads=[1, 1, 1, 1], group=2)]
            return graph_of(made, {"w": normal(16, CHANNELS // 2, 3, 3)}, image, [1, 16, 12, 12])
        case "depthwise":
            made = [node("Conv", ["x", "w"], ["y"], "linear", pads=[1, 1, 1, 1], group=CHANNELS)]
            return graph_of(made, {"w": normal(CHANNELS, 1, 3, 3)}, image, [1, CHANNELS, 12, 12])
        case "gemm":
            made = [node("Gemm", ["x", "w", "b"], ["y"], "linear", transB=1)]
            return graph_of(made, {"w": normal(16, 24), "b": normal(16)}, flat, [64, 16])
        case _:
            made = [node("MatMul", ["x", "w"], ["m"], "linear"), node("Add", ["m", "b"], ["y"], "add")]
            return graph_of(made, {"w": normal(24, 16), "b": normal(16)}, flat, [64, 16])


def smooth(shape: list[int], count: int, seed: int) -> list[dict[str, Any]]:
    """Inputs whose channels and neighbours go together, as those of trained nets do."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(1).normal(size=(shape[1], 3))
    found = []
    for _ in range(count):
        if len(shape) == 4:
            base = rng.normal(size=(3, shape[2] // 4, shape[3] // 4)).repeat(4, axis=1).repeat(4, axis=2)
            array = np.einsum("cd,dhw->chw", mix, base)[None]
        else:
            array = rng.normal(size=(shape[0], 3)) @ mix.T
        found.append({"x": (array + 0.1 * rng.normal(size=array.shape)).astype(np.float32)})
    return found


def codes_of(model: onnx.ModelProto, data: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Quantise and return codes, scales and zero points of the weight, and the float model with them."""
    result, report = apply(InsertQdq(), model, data=data, measure="off", **options)
    arrays = {each.name: numpy_helper.to_array(each) for each in emit(result).graph.initializer}
    codes, scales, zeros = (arrays[f"w_{what}"] for what in ("quantized", "scale", "zero_point"))
    axis = 1 if any(node.op_type == "MatMul" for node in model.graph.node) else 0
    spread = [1] * codes.ndim
    spread[axis] = -1
    stored = (codes.astype(np.float32) - zeros.reshape(spread).astype(np.float32)) * scales.reshape(spread)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (weight,) = (each for each in copy.graph.initializer if each.name == "w")
    weight.CopyFrom(numpy_helper.from_array(stored.astype(np.float32), "w"))
    return {"codes": codes, "scales": scales, "zeros": zeros, "model": copy, "report": report}


def loss(before: onnx.ModelProto, after: onnx.ModelProto, data: list[dict[str, Any]]) -> float:
    one, two = session(before), session(after)
    return float(np.mean([np.mean((one.run(None, x)[0] - two.run(None, x)[0]) ** 2) for x in data]))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in ("conv", "depthwise", "gemm", "matmul")),
        ("grouped", {"target": "openvino"}),
        ("conv", {"per_channel": False}),
        ("matmul", {"symmetric_weights": False}),
    ],
)
def test_outputs_lose_less_on_other_data(kind: str, options: dict[str, Any]) -> None:
    model = linear(kind)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    data, other = smooth(shape, 12, 3), smooth(shape, 4, 4)
    nearest, fed = codes_of(model, data, **options), codes_of(model, data, feedback=True, **options)
    assert np.array_equal(nearest["scales"], fed["scales"])
    assert np.array_equal(nearest["zeros"], fed["zeros"])
    assert fed["codes"].min() >= (-127 if options.get("symmetric_weights", True) else -128)
    losses = [loss(model, each["model"], other) for each in (nearest, fed)]
    assert losses[1] < 0.7 * losses[0]
    assert fed["report"].counts["fed_back"] == 1
    (told,) = fed["report"].extra["feedback"]
    assert told["output_error"] < 0.7 * told["output_error_nearest"]


def test_the_whole_range_is_left_out_where_products_saturate() -> None:
    data = smooth([1, CHANNELS, 12, 12], 4, 3)
    fed = codes_of(linear("conv"), data, feedback=True, reduce_range="on")
    assert np.abs(fed["codes"]).max() == 63


def test_a_weight_that_two_read_is_rounded_to_nearest_and_named() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], "one", pads=[1, 1, 1, 1]),
        node("Conv", ["a", "w"], ["y"], "two", pads=[1, 1, 1, 1]),
    ]
    model = graph_of(
        nodes, {"w": normal(CHANNELS, CHANNELS, 3, 3)}, [1, CHANNELS, 12, 12], [1, CHANNELS, 12, 12]
    )
    found = codes_of(model, smooth([1, CHANNELS, 12, 12], 4, 3), feedback=True)
    reasons = dict(found["report"].skipped)
    assert set(reasons) == {"one", "two"}
    assert all("something else reads its weight too" in reason for reason in reasons.values())
    assert found["report"].counts["fed_back"] == 0


def test_moments_that_would_not_fit_are_not_collected() -> None:
    channels = 230  # times nine: 2,070 elements a row, of which a depthwise convolution reads nine at a time
    made = [helper.make_node("Conv", ["x", "w"], ["y"], "wide", pads=[1, 1, 1, 1], group=channels)]
    model = graph_of(made, {"w": normal(channels, 1, 3, 3)}, [1, channels, 4, 4], [1, channels, 4, 4])
    found = codes_of(model, smooth([1, channels, 4, 4], 2, 3), feedback=True)
    assert dict(found["report"].skipped)["wide"].endswith("second moments of rows of 2070 would take 32 MiB")
