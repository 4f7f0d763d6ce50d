"""Evaluation of small models in this process."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ProviderError
from graphopt.runtime.evaluate import evaluate, evaluate_reference


def _model(
    nodes: list[onnx.NodeProto], outputs: list[str], *, opset: int = 21, **inputs: tuple[int, list[Any]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


def test_every_output_by_name() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Mul", ["s", "b"], ["p"])]
    model = _model(nodes, ["s", "p"], a=(TensorProto.FLOAT, [2]), b=(TensorProto.FLOAT, [2]))
    a, b = np.array([1.5, -2], np.float32), np.array([0.25, 4], np.float32)
    for form in (model, model.SerializeToString(), oir.from_proto(model)):
        outputs = evaluate(form, {"a": a, "b": b})
        assert list(outputs) == ["s", "p"]
        assert (outputs["s"] == a + b).all()
        assert (outputs["p"] == (a + b) * b).all()


def test_low_precision_in_and_out() -> None:
    model = _model(
        [helper.make_node("Cast", ["a"], ["y"], to=TensorProto.BFLOAT16)], ["y"], a=(TensorProto.FLOAT, [3])
    )
    a = np.array([1.0, 3.14159, -0.1], np.float32)
    got = evaluate(model, {"a": a})["y"]
    assert got.dtype == ml_dtypes.bfloat16
    assert (got == a.astype(ml_dtypes.bfloat16)).all()


def test_strings() -> None:
    model = _model(
        [helper.make_node("Concat", ["a", "a"], ["y"], axis=0)], ["y"], a=(TensorProto.STRING, [2])
    )
    got = evaluate(model, {"a": np.array(["x", "yz"], object)})["y"]
    assert got.tolist() == ["x", "yz", "x", "yz"]


def test_nothing_is_optimised_away() -> None:
    # At DISABLE_ALL (a + b) - b is computed as written, with the rounding that it has.
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Sub", ["s", "b"], ["y"])]
    model = _model(nodes, ["y"], a=(TensorProto.FLOAT, []), b=(TensorProto.FLOAT, []))
    got = evaluate(model, {"a": np.array(1, np.float32), "b": np.array(2**25, np.float32)})["y"]
    assert got == 0


@pytest.mark.parametrize("case", ["bad shapes", "unknown operator", "no model"])
def test_refusals_are_provider_errors(case: str) -> None:
    add = _model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        ["y"],
        a=(TensorProto.FLOAT, ["n"]),
        b=(TensorProto.FLOAT, ["m"]),
    )
    feeds = {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}
    if case == "unknown operator":
        add.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ProviderError):
        evaluate(b"not a model" if case == "no model" else add, feeds)


def test_reference_agrees_with_numpy() -> None:
    model = _model([helper.make_node("Exp", ["a"], ["y"])], ["y"], a=(TensorProto.DOUBLE, [4]))
    a = np.linspace(-2, 2, 4)
    assert np.allclose(evaluate_reference(model, {"a": a})["y"], np.exp(a), rtol=1e-15)


def test_reference_refuses_in_one_sentence() -> None:
    model = _model([helper.make_node("Reshape", ["a", "b"], ["y"])], ["y"], a=(1, [2]), b=(7, [1]))
    with pytest.raises(ProviderError, match="reference implementation"):
        evaluate_reference(model, {"a": np.zeros(2, np.float32), "b": np.array([3])})


def test_external_constants_are_not_needed() -> None:
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.int64), "c")
    model = _model([helper.make_node("Add", ["c", "a"], ["y"])], ["y"], a=(TensorProto.INT64, [4]))
    model.graph.initializer.append(tensor)
    assert evaluate(model, {"a": np.ones(4, np.int64)})["y"].tolist() == [1, 2, 3, 4]
