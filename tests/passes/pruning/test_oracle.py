"""The oracle finds every kind of wrong cut, also where weights would hide it, and passes the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import PassFailed
from graphopt.ir import Model
from graphopt.ir.lower import lower
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.tensors import from_array
from graphopt.passes.pruning.masked import shuffle_weights, values_by_name
from graphopt.passes.pruning.oracle import TOLERANCE, Claim, judge

KEPT = np.array([0, 2, 3, 7])
FEEDS = [{"x": np.random.default_rng(5).standard_normal((2, 6), dtype=np.float32)}]


def model_of(norm: str = "", *, head: float | None = None, dead: Sequence[int] = ()) -> Model:
    """x [2, 6] -> Gemm to 8 -> Sigmoid or Relu, or a norm over the 8 -> Gemm to 5."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((8, 6)).astype(np.float32)
    two = rng.standard_normal((5, 8)).astype(np.float32)
    bias = rng.standard_normal(8).astype(np.float32)
    if head is not None:
        two[:] = head
    two[:, list(dead)] = 0
    weights = {"w1": one, "b1": bias, "w2": two, "s": rng.uniform(1, 2, 8).astype(np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1)]
    if norm == "LayerNormalization":
        nodes.append(helper.make_node(norm, ["h", "s"], ["a"], axis=-1))
    elif norm == "ReduceMean":
        nodes.append(helper.make_node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=1))
        nodes.append(helper.make_node("Mul", ["h", "m"], ["a"]))
    else:
        nodes.append(helper.make_node(norm or "Sigmoid", ["h"], ["a"]))
    nodes.append(helper.make_node("Gemm", ["a", "w2"], ["y"], transB=1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(proto)
    return lower(proto)


def cutter(first: Any = KEPT, second: Any = KEPT) -> Callable[[Model], None]:
    """Return a cut that keeps *first* of what makes the hidden units and *second* of what reads them."""

    def cut(model: Model) -> None:
        values = values_by_name(model)
        for name, axis, kept in (("w1", 0, first), ("b1", 0, first), ("s", 0, first), ("w2", 1, second)):
            if name in values:
                value = values[name]
                assert value.const_value is not None
                array = np.take(value.const_value.numpy(), kept, axis)
                value.const_value = from_array(array, name)
                value.shape = value.const_value.shape  # type: ignore[assignment]  # a shape

    return cut


def claim_for(model: Model, cut: Callable[[Model], None], compressed: Sequence[str] = ()) -> Claim:
    shapes, values = infer_shapes(model), values_by_name(model)
    stays = np.isin(np.arange(8), KEPT)

    def describe(name: str) -> tuple[int, Any]:
        rank, dtype = shapes.rank(values[name]), shapes.dtype(values[name])
        assert rank is not None
        assert dtype is not None
        return rank, dtype

    operands = {
        "a": {0: {1: stays}, 1: {0: stays}, -1: {1: stays}},  # LayerNormalization(h, s) -> a
        "m": {0: {1: stays}},  # ReduceMean(h) -> m
    }
    return Claim(cut, [("a", 1, stays)], {name: operands[name] for name in compressed}, describe)


@pytest.mark.parametrize("norm", ["", "LayerNormalization", "ReduceMean"])
def test_the_right_cut_passes(norm: str) -> None:
    model = model_of(norm)
    compressed = {"": (), "LayerNormalization": ("a",), "ReduceMean": ("m",)}[norm]
    verdict = judge(model, claim_for(model, cutter(), compressed), FEEDS, seed=0)
    assert verdict.passed
    assert verdict.error <= 1e-6
    assert verdict.difference > 0.01
    assert not verdict.shuffled


def test_a_norm_that_is_only_masked_does_not_agree() -> None:
    model = model_of("LayerNormalization")
    assert not judge(model, claim_for(model, cutter()), FEEDS, seed=0).passed


@pytest.mark.parametrize("second", [[0, 2, 3, 6], [2, 0, 3, 7]])
@pytest.mark.parametrize("head", [None, 0.0, 1e-6])
def test_a_wrong_cut_is_found_whatever_the_head_holds(second: list[int], head: float | None) -> None:
    model = model_of(head=head)
    verdict = judge(model, claim_for(model, cutter(second=second)), FEEDS, seed=0)
    assert not verdict.passed
    assert verdict.error > 100 * TOLERANCE
    assert verdict.randomised == (0 if head is None else 1)


def test_a_cut_that_does_not_run_is_a_failure() -> None:
    model = model_of()
    with pytest.raises(PassFailed, match="does not run"):
        judge(model, claim_for(model, cutter(second=KEPT[:3])), FEEDS, seed=0)


def test_dead_channels_are_proven_with_shuffled_weights() -> None:
    model = model_of(dead=[1, 4, 5, 6])
    verdict = judge(model, claim_for(model, cutter()), FEEDS, seed=0)
    assert verdict.passed
    assert verdict.shuffled
    assert verdict.difference > 0.01
    wrong = judge(model, claim_for(model, cutter(second=[0, 2, 7, 3])), FEEDS, seed=0)
    assert not wrong.passed


def test_an_order_of_the_weights_in_which_the_net_is_dead_is_not_the_last_one_tried() -> None:
    model = model_of(dead=[1, 4, 5, 6])
    tried: list[int] = []

    def shuffle(copy: Model, seed: int, *, signs: bool) -> tuple[str, ...]:
        tried.append(seed)
        names = shuffle_weights(copy, seed, signs=signs)
        if len(tried) == 1:  # as where the last Relu sees nothing above zero
            values_by_name(copy)["w2"].const_value = from_array(np.zeros((5, 8), np.float32), "w2")
        return names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphopt.passes.pruning.oracle.shuffle_weights", shuffle)
        verdict = judge(model, claim_for(model, cutter()), FEEDS, seed=0)
        assert not judge(model, claim_for(model, cutter(second=[0, 2, 7, 3])), FEEDS, seed=0).passed
    assert verdict.passed
    assert verdict.shuffled
    assert not verdict.unused
    assert verdict.difference > 0.01
    assert tried[:2] == [0, 1]


def test_a_net_that_is_dead_in_any_order_of_its_weights_lives_with_other_signs() -> None:
    model = model_of("Relu")
    for name in ("w1", "b1"):  # never above zero on inputs that are
        value = values_by_name(model)[name]
        assert value.const_value is not None
        value.const_value = from_array(-np.abs(value.const_value.numpy()), name)
    positive = [{name: np.abs(array) for name, array in feed.items()} for feed in FEEDS]
    verdict = judge(model, claim_for(model, cutter()), positive, seed=0)
    assert verdict.passed
    assert verdict.shuffled
    assert not verdict.unused
    assert not judge(model, claim_for(model, cutter(second=[0, 2, 7, 3])), positive, seed=0).passed


def test_a_cut_of_what_no_output_depends_on_is_told_apart() -> None:
    model = model_of()
    everything = Claim(lambda _: None, [], {}, claim_for(model, cutter()).describe)
    assert judge(model, everything, FEEDS, seed=0).unused


def test_the_model_itself_stays_as_it_is() -> None:
    model = model_of(head=0.0)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    judge(model, claim_for(model, cutter()), FEEDS, seed=0)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before


def test_an_effect_too_small_to_be_told_from_a_wrong_cut_proves_nothing() -> None:
    model = model_of()
    tiny = np.full((5, 8), 1e-5, np.float32)
    tiny[:, [0, 2, 3]] = 1
    tiny[:, 7] = 2e-5
    value = values_by_name(model)["w2"]
    value.const_value = from_array(tiny, "w2")
    wrong = claim_for(model, cutter(second=[0, 2, 3, 6]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphopt.passes.pruning.oracle.shuffle_weights", lambda *_, **__: ())
        with pytest.raises(PassFailed, match="proves nothing"):
            judge(model, wrong, FEEDS, seed=0)
        patch.undo()
    assert not judge(model, wrong, FEEDS, seed=0).passed  # with shuffled weights it is found
