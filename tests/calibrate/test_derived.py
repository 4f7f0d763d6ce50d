"""Ranges that follow from another value are those that the value itself shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.calibrate import Needs, collect
from graphopt.calibrate.derived import Derivation, derivations
from graphopt.calibrate.sketch import RangeSketch
from graphopt.ir.lower import lower

RNG = np.random.default_rng

NODES: list[tuple[str, list[str], dict[str, Any]]] = [
    ("Mul", ["x", "two"], {}),
    ("Relu", ["v0"], {}),
    ("Transpose", ["v1"], {"perm": [1, 0]}),
    ("Clip", ["v2", "low", "high"], {}),
    ("Clip", ["v0", "", "high"], {}),
    ("Clip", ["v0", "negative", "low"], {}),
    ("Relu", ["v5"], {}),
    ("Flatten", ["v0"], {}),
    ("Add", ["v4", "v5"], {}),
    ("Relu", ["x"], {}),
]
DERIVED = {
    "v1": Derivation("v0", 0.0),
    "v2": Derivation("v0", 0.0),
    "v3": Derivation("v0", 0.25, 1.5),
    "v4": Derivation("v0", -float(np.finfo(np.float32).max), 1.5),
    "v5": Derivation("v0", -2.0, 0.25),
    "v6": Derivation("v0", 0.0, 0.25),
    "v7": Derivation("v0"),
    "v9": Derivation("x", 0.0),
}


def model() -> onnx.ModelProto:
    constants = {"two": 2.0, "low": 0.25, "high": 1.5, "negative": -2.0}
    nodes = [
        helper.make_node(op_type, inputs, [f"v{index}"], name=f"n{index}", **attributes)
        for index, (op_type, inputs, attributes) in enumerate(NODES)
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])],
        [helper.make_tensor_value_info(f"v{len(NODES) - 1}", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(each, np.float32), name) for name, each in constants.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def feeds(*, finite: bool) -> list[dict[str, Any]]:
    arrays = [RNG(k).standard_normal((3 + k, 50)).astype(np.float32) for k in range(4)]
    arrays.append(np.zeros((0, 4), np.float32))
    if not finite:
        arrays[1][0, :3] = np.nan, np.inf, -np.inf
        arrays[3][...] = -np.inf
    return [{"x": array} for array in arrays]


@pytest.mark.parametrize("finite", [True, False])
def test_as_the_value_shows_itself(finite: bool) -> None:
    graph = lower(model())
    names = frozenset({"x", *(f"v{index}" for index in range(len(NODES)))})
    assert derivations(graph, names) == DERIVED
    together = collect(graph, feeds(finite=finite), Needs(ranges=names))
    assert not together.skipped
    assert list(together.ranges) == sorted(names)
    for name in names:
        alone = collect(graph, feeds(finite=finite), Needs(ranges=frozenset({name}))).ranges[name]
        found = together.ranges[name]
        assert (found.count, found.nonfinite, found.batches) == (alone.count, alone.nonfinite, alone.batches)
        assert (found.minimum, found.maximum) == (alone.minimum, alone.maximum)
        assert np.allclose([found.minimum_sum, found.maximum_sum], [alone.minimum_sum, alone.maximum_sum])
        assert np.array_equal(found.codes, alone.codes)
        assert np.array_equal(found.counts, alone.counts)


def test_what_has_a_collector_of_its_own_is_seen() -> None:
    graph = lower(model())
    needs = Needs(ranges=frozenset({"v0", "v1"}), channels=frozenset({("v1", 1)}))
    found = collect(graph, feeds(finite=True)[:1], needs)
    values = np.maximum(feeds(finite=True)[0]["x"] * 2, 0)
    assert np.allclose(found.channels["v1", 1].mean, values.mean(0))
    assert found.ranges["v1"].maximum == values.max()


def test_other_values_are_looked_at() -> None:
    graph = lower(model())
    assert derivations(graph, {"v1", "v3"}) == {}  # what they follow from is not asked for
    assert derivations(graph, {"two", "v0", "v8"}) == {}


@pytest.mark.parametrize("low", [-3.0, -0.3, 0.0, 0.3])
@pytest.mark.parametrize("high", [0.4, 6.0, np.inf])
def test_clamped_sketch(low: float, high: float) -> None:
    array = RNG(1).standard_normal(5000).astype(np.float32)
    found = RangeSketch.of(array).clamped(low, high)
    expected = RangeSketch.of(np.clip(array, np.float32(low), np.float32(high)))
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.counts, expected.counts)
    assert np.allclose([found.minimum, found.maximum], [expected.minimum, expected.maximum])
