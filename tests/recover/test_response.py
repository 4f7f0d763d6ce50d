"""Response: for a linear tail the metric is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import DataError
from graphopt.ir.lower import lower
from graphopt.ir.shapes import infer_shapes
from graphopt.recover.linear import Linear, linear_of
from graphopt.recover.lowrank import Weighed, decompose, energies
from graphopt.recover.response import Response

WHERE = {"where": "here", "hint": "there"}


def test_behind_a_linear_tail_the_metric_is_the_gram_of_its_weight() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(6, 4)), generator.normal(size=(4, 3))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    weights = {"a": first.astype(np.float32), "b": second.astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = lower(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    shapes = infer_shapes(model)
    # Three rows a sample: their errors are independent, and add up.
    feeds = [{"x": generator.normal(size=(3, 6)).astype(np.float32)} for _ in range(10)]
    response = Response(model, shapes, feeds, macs=36, seed=0, **WHERE)
    linear = linear_of(model.graph[0], shapes)
    assert isinstance(linear, Linear)
    outputs = np.concatenate([feed["x"] for feed in feeds]) @ first @ second
    scale = np.sum((outputs - outputs.mean(axis=0)) ** 2)
    expected = 30 * second @ second.T / scale
    np.testing.assert_allclose(response.metric(linear), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(DataError, match="no output varies"):
        Response(model, shapes, [{"x": np.zeros((1, 6), np.float32)}] * 3, macs=36, seed=0, **WHERE)


def test_a_cut_in_a_metric_is_the_best_there_is() -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(8, 12))
    root = generator.normal(size=(5, 8)) * 1.3 ** -np.arange(8)
    metric, rows = root.T @ root, generator.normal(size=(4000, 12)) * np.linspace(0.2, 2, 12)
    covariance = rows.T @ rows / len(rows)
    spectrum = decompose(weight, covariance, metric=metric, count=len(rows), ridge=1e-12)
    told = energies(Weighed(weight, covariance, metric=metric, count=len(rows), ridge=1e-12).gram())

    def loss(rank: int, **how: object) -> float:
        outer, inner = decompose(weight, covariance, count=len(rows), ridge=1e-12, **how).cut(rank)  # type: ignore[arg-type]
        change = weight - outer @ inner
        return float(np.trace(metric @ change @ covariance @ change.T))

    for rank in (1, 2, 4):
        own = loss(rank, metric=metric)
        assert own == pytest.approx(told.loss(rank) * told.total, rel=1e-2)
        assert own < loss(rank)
    # The metric sees five directions: five are enough, and at full rank the weight comes back.
    assert loss(5, metric=metric) < 1e-3 * loss(4, metric=metric)
    outer, inner = spectrum.cut(8)
    np.testing.assert_allclose(outer @ inner, weight, atol=1e-8)


def test_in_a_metric_of_nothing_the_cut_is_the_plain_one_and_nothing_is_lost() -> None:
    weight = np.random.default_rng(2).normal(size=(4, 5))
    spectrum = decompose(weight, metric=np.zeros((4, 4)))
    assert energies(Weighed(weight, metric=np.zeros((4, 4))).gram()).total < 1e-20
    outer, inner = spectrum.cut(2)
    plain_outer, plain_inner = decompose(weight).cut(2)
    np.testing.assert_allclose(outer @ inner, plain_outer @ plain_inner, atol=1e-12)
