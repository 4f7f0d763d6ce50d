"""What is looked at where a model is held against another: numbers, not what is made of them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir import Model
from graphopt.ir.lower import lower
from graphopt.recover.outputs import Outputs

WEIGHT = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def labels(scale: float) -> Model:
    """x [n, 3] -> MatMul -> ArgMax -> label [n]: all that a caller sees is an index."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"]),
         helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
        [numpy_helper.from_array(WEIGHT * np.float32(scale), "w")],
    )  # fmt: skip
    return lower(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


def test_behind_an_index_the_scores_are_compared() -> None:
    feeds = [{"x": np.random.default_rng(k).standard_normal((5, 3)).astype(np.float32)} for k in range(4)]
    outputs = Outputs(labels(1.0), feeds, where="here", hint="")
    assert outputs.names == ["scores"]
    scores = np.concatenate([feed["x"] @ WEIGHT for feed in feeds]).astype(np.float64)
    share = np.sum((0.1 * scores) ** 2) / np.sum((scores - scores.mean(axis=0)) ** 2)
    assert outputs.error(labels(0.9)) == pytest.approx(share, rel=1e-4)


def test_another_shape_is_no_agreement() -> None:
    """x [n] -> Mul -> NonZero -> Gather: how many numbers come out depends on the weight."""

    def positive(scale: float) -> Model:
        graph = helper.make_graph(
            [
                helper.make_node("Mul", ["x", "scale"], ["scaled"]),
                helper.make_node("Relu", ["scaled"], ["bent"]),
                helper.make_node("NonZero", ["bent"], ["places"]),
                helper.make_node("Gather", ["bent", "places"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "k"])],
            [numpy_helper.from_array(np.array(scale, np.float32), "scale")],
        )
        return lower(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))

    feeds = [{"x": np.array(values, np.float32)} for values in ([1, 2, -3], [2, 4, -1])]
    outputs = Outputs(positive(1.0), feeds, where="here", hint="")
    energy, variance = 1 + 4 + 4 + 16, 2 * 0.5**2 + 2 * 1.0**2
    assert outputs.error(positive(0.9)) == pytest.approx(0.1**2 * energy / variance, rel=1e-4)
    assert outputs.error(positive(-1.0)) == pytest.approx(energy / variance)


def test_what_overflows_is_worse_than_what_is_wrong() -> None:
    feeds = [{"x": np.random.default_rng(k).standard_normal((5, 3)).astype(np.float32)} for k in range(4)]
    outputs = Outputs(labels(1.0), feeds, where="here", hint="")
    assert outputs.error(labels(1e38)) > outputs.error(labels(-100.0)) > 1e3
    assert np.isfinite(outputs.error(labels(1e38)))
