"""equalize-ranges, judged by onnxruntime: the same bits before and behind, and what codes make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.emit import emit
from graphopt.passes.equalize import rescale
from graphopt.passes.equalize_ranges import EqualizeRanges
from graphopt.passes.insert_qdq import InsertQdq
from tests.passes.harness import (
    apply,
    assert_golden,
    assert_same_function,
    op_types,
    parse,
    random_feeds,
    run_feeds,
    session_for,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    shape: Sequence[int | str],
    outputs: dict[str, int] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model of input x and of outputs with the ranks of *outputs*, by default y of rank 2."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
        for name, rank in (outputs or {"y": 2}).items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        values,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    return model


def spread(count: int, seed: int, octaves: float = 6.0) -> Array:
    """Return factors of channels that differ by up to 2**octaves."""
    return np.exp2(np.random.default_rng(seed).uniform(-octaves / 2, octaves / 2, count)).astype(np.float32)


def network(*, clip: bool = False, uneven: bool = True) -> onnx.ModelProto:
    """All that a scale passes: depthwise and grouped convolutions, sums, Concat, PRelu, pools, a head."""
    node = helper.make_node

    def act(a: str, b: str) -> onnx.NodeProto:
        return node("Clip", [a, "zero", "six"], [b]) if clip else node("Relu", [a], [b])

    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "stem", pads=[1, 1, 1, 1]),
        act("c1", "r1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        act("c2", "r2"),
        node("Conv", ["r2", "w3"], ["c3"], "project"),
        node("LeakyRelu", ["c3"], ["l3"], alpha=0.1),
        node("Add", ["l3", "r1"], ["s"], "residual"),
        node("Resize", ["s", "", "factors"], ["s2"], mode="linear"),
        node("Conv", ["s2", "w4", "b4"], ["c4"], "grouped", group=2, strides=[5, 5]),
        node("PRelu", ["c4", "slope"], ["p4"]),
        node("Concat", ["p4", "p4"], ["cat"], axis=1),
        node("ConvTranspose", ["cat", "w5", "b5"], ["t5"], "up", group=2, strides=[2, 2]),
        node("Add", ["t5", "shift"], ["t6"]),
        node("Relu", ["t6"], ["r6"]),
        node("MaxPool", ["r6"], ["m6"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["m6"], ["f"]),
        node("Gemm", ["f", "w7", "b7"], ["g7"], "hidden", transB=1, alpha=0.5),
        node("Relu", ["g7"], ["r7"]),
        node("Dropout", ["r7"], ["d7"]),
        node("MatMul", ["d7", "w8"], ["m8"], "head"),
        node("Add", ["m8", "b8"], ["y"]),
    ]
    weights = {
        "w1": normal(8, 3, 3, 3), "b1": normal(8, seed=1),
        "w2": normal(8, 1, 3, 3, seed=2), "b2": normal(8, seed=3),
        "w3": normal(8, 8, 1, 1, seed=4),
        "w4": normal(6, 4, 3, 3, seed=5, scale=0.3), "b4": normal(6, seed=6),
        "factors": np.array([1, 1, 2, 2], np.float32),
        "slope": np.abs(normal(6, 1, 1, seed=7)),
        "w5": normal(12, 2, 2, 2, seed=8), "b5": normal(4, seed=9), "shift": normal(4, 1, 1, seed=10),
        "w7": normal(5, 4 * 9, seed=11, scale=0.2), "b7": normal(5, seed=12),
        "w8": normal(5, 3, seed=13), "b8": normal(3, seed=14),
        "zero": np.array(0, np.float32), "six": np.array(6, np.float32),
    }  # fmt: skip
    if uneven:
        for index, name in enumerate(("w1", "w2", "w3", "w4", "w7")):
            factor = spread(len(weights[name]), 20 + index)
            weights[name] = weights[name] * factor.reshape(-1, *[1] * (weights[name].ndim - 1))
    if not clip:
        del weights["zero"], weights["six"]
    return model_of(nodes, weights, [2, 3, 8, 8])


@pytest.mark.parametrize("clip", [False, True])
def test_no_bit_of_the_function_changes(clip: bool) -> None:
    before = network(clip=clip)
    after, report = apply(EqualizeRanges(), before, clip="per-channel")
    assert report.changed
    assert report.counts["weights"] >= 6
    assert report.counts.get("bounds", 0) == 2 * clip
    flat: Any = report.extra["weights"]
    gained = [each["flatness_after"] - each["flatness_before"] for each in flat]
    assert np.mean(gained) > 0.05
    assert_same_function(before, after, *(random_feeds(before, seed=seed) for seed in range(3)))


def test_scales_of_any_size_leave_rounding_errors_only() -> None:
    before = network()
    after, _ = apply(EqualizeRanges(), before, scales="any")
    assert_same_function(before, after, rtol=1e-5)


def test_a_second_run_finds_nothing_left_to_do() -> None:
    once, first = apply(EqualizeRanges(), network())
    twice, second = apply(EqualizeRanges(), once)
    assert first.changed
    assert not second.changed
    assert_same_function(once, twice)


@pytest.mark.parametrize("seed", range(6))
def test_random_scales_compute_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever scales are chosen, they are undone: the flow is right, not only what it is used for."""

    def random_scales(run: Any, _ranges: Any, groups: Any, **_: Any) -> Array:
        logs = np.zeros(len(run.roots))
        generator = np.random.default_rng(seed)
        for group in groups:
            logs[group.atoms] = generator.integers(-4, 5, len(group.atoms))
        found: Array = logs[run.roots]
        return found

    monkeypatch.setattr(rescale.Rescaling, "_settled", random_scales)
    before = network(clip=bool(seed % 2), uneven=False)
    after, report = apply(EqualizeRanges(), before, clip="per-channel")
    assert report.counts["channels"] > 12
    assert_same_function(before, after, random_feeds(before, seed=seed))


def test_a_pair_gets_the_ranges_that_are_best_for_it() -> None:
    """Closed form (Nagel et al. 2019, eq. 11): both sides end at the geometric mean of their ranges."""
    w1 = np.diag(np.array([1.0, 0.25, 4.0], np.float32))
    w2 = np.diag(np.array([1.0, 16.0, 1.0], np.float32))
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["y"]),
    ]
    after, _ = apply(EqualizeRanges(), model_of(nodes, {"w1": w1, "w2": w2}, [2, 3]), scales="any")
    arrays = {value.name: numpy_helper.to_array(value) for value in emit(after).graph.initializer}
    one, two = (np.diag(arrays[name]) / np.abs(arrays[name]).max() for name in ("w1", "w2"))
    np.testing.assert_allclose(one, two, rtol=2e-2)
    np.testing.assert_allclose(np.diag(arrays["w1"]) * np.diag(arrays["w2"]), [1.0, 4.0, 4.0], rtol=1e-6)


def quantised_sqnr(model: Any, **options: Any) -> float:
    feeds = [random_feeds(model, seed=seed) for seed in range(8)]
    proto = model if isinstance(model, onnx.ModelProto) else emit(model)
    after, report = apply(InsertQdq(), proto, data=feeds, measure="off", **options)
    assert report.changed
    one, two = session_for(proto), session_for(after)
    pairs = [(run_feeds(one, feed)["y"], run_feeds(two, feed)["y"]) for feed in feeds]
    noise = sum(float(np.sum((a - b) ** 2)) for a, b in pairs)
    return 10 * float(np.log10(sum(float(np.sum(a * a)) for a, _ in pairs) / noise))


def chain(octaves: float) -> onnx.ModelProto:
    """Return three convolutions with channels as uneven as asked for, which compute the same in any case."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3", "b3"], ["y"], "third"),
    ]
    one, two = spread(16, 1, octaves), spread(16, 2, octaves)
    weights = {
        "w1": normal(16, 3, 3, 3) * one.reshape(-1, 1, 1, 1), "b1": normal(16, seed=1) * one,
        "w2": normal(16, 16, 3, 3, seed=2) * two.reshape(-1, 1, 1, 1) / one.reshape(1, -1, 1, 1),
        "b2": normal(16, seed=3) * two,
        "w3": normal(4, 16, 1, 1, seed=4) / two.reshape(1, -1, 1, 1), "b3": normal(4, seed=5),
    }  # fmt: skip
    return model_of(nodes, weights, [1, 3, 8, 8], {"y": 4})


def test_one_scale_a_weight_is_as_good_as_it_was_before_channels_were_uneven() -> None:
    even, uneven = chain(0.0), chain(8.0)
    equalized, _ = apply(EqualizeRanges(), uneven)
    even_db, uneven_db, after_db = (
        quantised_sqnr(model, per_channel=False) for model in (even, uneven, equalized)
    )
    assert uneven_db < even_db - 10
    assert after_db > even_db - 3


def pair(middle: list[onnx.NodeProto], last: str = "b", **more: Any) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], "one"),
        *middle,
        node("Conv", [last, "w2"], ["y"], "two"),
    ]
    weights = {
        "w1": normal(4, 3, 1, 1) * spread(4, 3).reshape(-1, 1, 1, 1),
        "b1": normal(4, seed=1),
        "w2": normal(4, 4, 1, 1, seed=2),
        **more.pop("weights", {}),
    }
    return model_of(nodes, weights, [1, 3, 4, 4], more.pop("outputs", {"y": 4}))


NODE = helper.make_node
STOPPED = {
    "sigmoid": pair([NODE("Sigmoid", ["a"], ["b"])]),
    "an output": pair([NODE("Relu", ["a"], ["b"])], outputs={"y": 4, "b": 4}),
    "a bound": pair(
        [NODE("Clip", ["a", "zero", "six"], ["b"])],
        weights={"zero": np.array(0, np.float32), "six": np.array(6, np.float32)},
    ),
    "a product with itself": pair([NODE("Mul", ["a", "a"], ["b"])]),
    "a sum with what has no label": pair([NODE("Sigmoid", ["a"], ["s"]), NODE("Add", ["a", "s"], ["b"])]),
    "a transpose of channels into space": pair([NODE("Transpose", ["a"], ["b"], perm=[0, 3, 2, 1])]),
    "padding with another number": pair(
        [NODE("Pad", ["a", "pads", "one"], ["b"])],
        weights={"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.array(1, np.float32)},
    ),
    "a mean over channels": pair(
        [NODE("ReduceMean", ["a"], ["m"], axes=[1]), NODE("Mul", ["a", "m"], ["b"])]
    ),
    "NaN": pair([NODE("Relu", ["a"], ["b"])], weights={"b1": np.full(4, np.nan, np.float32)}),
}


@pytest.mark.parametrize("case", STOPPED)
def test_what_is_not_homogeneous_stops_a_scale(case: str) -> None:
    before = STOPPED[case]
    after, report = apply(EqualizeRanges(), before)
    assert not report.changed
    assert not report.counts
    assert_same_function(before, after)


def test_a_body_that_reads_a_channel_stops_it() -> None:
    body = helper.make_graph(
        [NODE("Identity", ["b"], ["t"])],
        "t",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [NODE("Neg", ["b"], ["e"])], "e", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    before = pair(
        [NODE("Relu", ["a"], ["b"]), NODE("If", ["yes"], ["c"], then_branch=body, else_branch=other)],
        weights={"yes": np.ones((), np.bool_)},
        outputs={"y": 4, "c": 4},
    )
    _, report = apply(EqualizeRanges(), before, check=False)
    assert not report.changed


def test_weights_with_other_readers_and_those_of_excluded_nodes_stay() -> None:
    relu = NODE("Relu", ["a"], ["b"])
    more = NODE("Conv", ["x", "w1"], ["z"], "again")
    _, report = apply(EqualizeRanges(), pair([relu, more], outputs={"y": 4, "z": 4}))
    assert not report.changed
    assert ("Conv 'one'", "its weight has other readers") in report.skipped
    _, report = apply(EqualizeRanges(), pair([relu]), exclude=["tw*"])
    assert report.skipped == (("Conv 'two'", "exclude names it"),)


def test_weights_that_callers_may_override_and_codes_are_named() -> None:
    before = pair([NODE("Relu", ["a"], ["b"])])
    before.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [4, 4, 1, 1]))
    _, report = apply(EqualizeRanges(), before)
    assert not report.changed
    assert [where for where, reason in report.skipped if "override" in reason] == ["Conv 'two'"]
    codes, _ = apply(
        InsertQdq(), pair([NODE("Relu", ["a"], ["b"])]), data=[{"x": normal(1, 3, 4, 4)}], measure="off"
    )
    _, report = apply(EqualizeRanges(), codes)
    assert not report.changed
    assert {reason for _, reason in report.skipped} == {"its weight is stored as codes"}


def test_a_bias_that_two_operators_share_is_written_twice() -> None:
    middle = [
        NODE("Relu", ["a"], ["r"]),
        NODE("Conv", ["r", "w3", "b1"], ["c"], "three"),
        NODE("Relu", ["c"], ["b"]),
    ]
    before = pair(middle, weights={"w3": normal(4, 4, 1, 1, seed=9)})
    after, report = apply(EqualizeRanges(), before)
    assert report.changed
    assert_same_function(before, after)
    assert len({node.input[2] for node in emit(after).graph.node if len(node.input) > 2}) == 2


def products(kind: Any, w1: np.ndarray, w2: np.ndarray) -> onnx.ModelProto:
    nodes = [
        NODE("MatMul", ["x", "w1"], ["h"]),
        NODE("Relu", ["h"], ["r"]),
        NODE("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", element, [1, 2])],
        [helper.make_tensor_value_info("y", element, [1, 2])],
        [numpy_helper.from_array(w1.astype(kind), "w1"), numpy_helper.from_array(w2.astype(kind), "w2")],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_float16_stays_and_says_why() -> None:
    """Divided by 2**-8 or more, the second value would be infinite, and 0 the other way round."""
    before = products(np.float16, np.diag([1.0, 2.0**-10]), np.diag([2.0**-10, 1.0]))
    after, report = apply(EqualizeRanges(), before)
    assert not report.changed
    assert [where for where, reason in report.skipped if "float16" in reason] == [
        "MatMul 'h'", "MatMul 'second'",
    ]  # fmt: skip
    assert_same_function(before, after)


def test_numbers_below_the_normal_ones_lose_no_bit() -> None:
    """The subnormal weight has bits that any division would push out; the large one wants a division."""
    small = np.float32(3e-45) * 5
    before = products(np.float32, np.array([[1.0, 1e6], [0.1, small]]), np.array([[1.0, 1.0], [1.0, 1.0]]))
    after, _ = apply(EqualizeRanges(), before)
    (weight,) = [each for each in emit(after).graph.initializer if each.name.startswith("w1")]
    assert numpy_helper.to_array(weight)[1, 1] == small


def test_what_leaves_nothing_to_do_is_said() -> None:
    even = products(np.float32, np.ones((2, 2)), np.ones((2, 2)))
    assert apply(EqualizeRanges(), even)[1].skipped == (
        ("model", "its channels are as alike as scales can make them"),
    )
    even.graph.node[1].op_type = "Sigmoid"
    assert apply(EqualizeRanges(), even)[1].skipped == (
        ("model", "no channel lies between two weights that scales may pass"),
    )


def test_dead_channels_keep_their_scale() -> None:
    w1 = normal(4, 3, 1, 1)
    w1[1] = 0
    before = pair([NODE("Relu", ["a"], ["b"])], weights={"w1": w1})
    after, report = apply(EqualizeRanges(), before)
    assert report.counts["channels"] <= 3
    assert_same_function(before, after)


def test_golden() -> None:
    before = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1, 2] x) => (float[1, 2] y)
        <float[2, 2] w1 = {1, 0, 0, 8}, float[2] b1 = {1, 1}, float[2, 2] w2 = {1, 0, 0, 1}>
        {
            h = Gemm(x, w1, b1)
            r = Clip(h, low, high)
            y = MatMul(r, w2)
        }
        """.replace("float[2, 2] w2", "float low = {0}, float high = {6}, float[2, 2] w2")
    )
    after, report = apply(EqualizeRanges(), before, clip="per-channel")
    assert op_types(after) == ["Gemm", "Relu", "Min", "MatMul"]
    assert_same_function(before, after)
    assert_golden("equalize-ranges", "clip", before, after, report)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pools_over_channels_stop_scales(kind: str) -> None:
    """Behind MatMul channels are the last axis, which pooling runs over."""
    pads: dict[str, Any] = {"kernel_shape": [3], "strides": [1], "pads": [1, 1]}
    nodes = [
        NODE("MatMul", ["x", "w1"], ["a"]),
        helper.make_node(kind, ["a"], ["p"], **pads),
        NODE("MatMul", ["p", "w2"], ["y"]),
    ]
    weights = {"w1": normal(8, 8) * np.exp2(np.arange(8, dtype=np.float32)), "w2": normal(8, 4, seed=1)}
    before = model_of(nodes, weights, [2, 5, 8], {"y": 3})
    after, report = apply(EqualizeRanges(), before)
    assert not report.changed
    assert_same_function(before, after)


def test_bounds_have_the_type_that_is_computed_in() -> None:
    """No type of a value is written in the model, and a Clip stands behind another one."""
    dtype = np.float64
    wide = np.exp2(np.arange(4)).astype(dtype)
    weights = {
        "w1": np.ones((4, 4), dtype) * wide,
        "w2": np.ones((4, 4), dtype),
        "low": np.array(-1, dtype),
        "high": np.array(6, dtype),
        "half": np.array(3, dtype),
    }
    nodes = [
        NODE("MatMul", ["x", "w1"], ["a"]),
        NODE("Clip", ["a", "low", "high"], ["b"]),
        NODE("Clip", ["b", "low", "half"], ["c"]),
        NODE("MatMul", ["c", "w2"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [2, 4])
        for name in ("x", "y")
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    before = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    after, report = apply(EqualizeRanges(), before, clip="per-channel")
    assert report.counts["bounds"] == 2
    feeds = {"x": normal(2, 4, scale=3.0).astype(dtype)}
    one, two = (run_feeds(session_for(each), feeds)["y"] for each in (before, after))
    np.testing.assert_array_equal(one, two)


def test_no_bound_a_channel_where_min_does_not_broadcast() -> None:
    clip = helper.make_node("Clip", ["a"], ["b"], min=0.0, max=6.0)
    weights = {"w1": normal(4, 4) * np.exp2(np.arange(4, dtype=np.float32)), "w2": normal(4, 4, seed=1)}
    nodes = [NODE("MatMul", ["x", "w1"], ["a"]), clip, NODE("MatMul", ["b", "w2"], ["y"])]
    _, report = apply(EqualizeRanges(), model_of(nodes, weights, [2, 4], opset=7), clip="per-channel")
    assert not report.changed
