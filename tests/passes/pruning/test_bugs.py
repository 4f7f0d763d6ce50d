"""Bugs that a prototype and other pruners have: each stays a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.ir import Model
from graphopt.ir.lower import lower
from graphopt.ir.tensors import from_array
from graphopt.passes.prune_channels import PruneChannels
from graphopt.passes.pruning.anatomy import examine
from graphopt.passes.pruning.masked import randomise_constants
from tests.passes.harness import apply, assert_same_function, random_feeds, run_feeds, session_for
from tests.passes.pruning.scenarios import array, captured_free, conv, info, model_of, relu


def prune(proto: onnx.ModelProto, **options: Any) -> tuple[Model, dict[str, int]]:
    """Prune, whose oracle must have passed at 1e-5, and return the model and what its families keep."""
    model, report = apply(PruneChannels(), proto, **options)
    oracle: Any = report.extra["oracle"]
    verdicts = [verdict for each in oracle.values() for verdict in each]
    assert verdicts
    assert all(verdict["relative_error"] <= 1e-5 for verdict in verdicts)
    families: Any = report.extra["families"]
    return model, {each["name"]: each["kept"] for each in families}


def test_kernel_dims_are_no_channels() -> None:
    anatomy = examine(lower(captured_free()), dims={})
    axes = {
        member.axis for family in anatomy.families for member in family.members if member.name in {"w1", "w2"}
    }
    assert axes == {0, 1}


def test_equal_initializers_that_an_exporter_merged_do_not_couple_layers() -> None:
    proto = model_of(
        [
            conv("x", "w1", "c1", "zero"),
            relu("c1", "r1"),
            conv("r1", "w2", "c2", "zero"),
            relu("c2", "r2"),
            conv("r2", "w3", "y"),
        ],
        [info("x", [1, 3, 6, 6])],
        [info("y", [1, 4, 6, 6])],
        {
            "w1": array(16, 3, 3, 3),
            "w2": array(16, 16, 3, 3, seed=1),
            "w3": array(4, 16, 3, 3, seed=2),
            "zero": np.zeros(16, np.float32),
        },
    )
    _, kept = prune(proto, macs_ratio=0.45, round_to=1)
    assert set(kept) == {"w1[0]", "w2[0]"}
    model, kept = prune(proto, macs_ratio=0.9, protect=["w3"], round_to=1, best_effort=True)
    assert list(kept) == ["w1[0]"]
    held = [value.const_value for name, value in model.graph.initializers.items() if "zero" in name]
    sizes = sorted(tensor.size for tensor in held if tensor is not None)
    assert sizes == sorted([16, kept["w1[0]"]])


@pytest.mark.parametrize("groups", [2, 4])
def test_group_norm_written_as_reshape_and_instance_norm(groups: int) -> None:
    proto = model_of(
        [
            conv("x", "w1", "c1"),
            helper.make_node("Reshape", ["c1", "split"], ["g"]),
            helper.make_node("InstanceNormalization", ["g", "ones", "zeros"], ["n"]),
            helper.make_node("Reshape", ["n", "back"], ["m"]),
            helper.make_node("Mul", ["m", "scale"], ["s"]),
            conv("s", "w2", "y"),
        ],
        [info("x", [1, 3, 6, 6])],
        [info("y", [1, 4, 6, 6])],
        {
            "w1": array(16, 3, 3, 3),
            "w2": array(4, 16, 3, 3, seed=1),
            "split": np.array([0, groups, -1], np.int64),
            "back": np.array([1, 16, 6, 6], np.int64),
            "ones": np.ones(groups, np.float32),
            "zeros": np.zeros(groups, np.float32),
            "scale": array(16, 1, 1, seed=2, fan_in=1),
        },
    )
    model, kept = prune(proto, macs_ratio=0.55, allow_approximate=True)
    assert kept
    run_feeds(session_for(model), random_feeds(model))


def test_resize_sizes_hold_the_channels() -> None:
    proto = model_of(
        [
            conv("x", "w1", "c1"),
            helper.make_node("Resize", ["c1", "", "", "sizes"], ["u"], mode="nearest"),
            conv("u", "w2", "y"),
        ],
        [info("x", [1, 3, 4, 4])],
        [info("y", [1, 4, 8, 8])],
        {
            "w1": array(16, 3, 3, 3),
            "w2": array(4, 16, 3, 3, seed=1),
            "sizes": np.array([1, 16, 8, 8], np.int64),
        },
    )
    _, kept = prune(proto, macs_ratio=0.55)
    assert kept == {"w1[0]": 8}


def test_a_depthwise_multiplier_of_two_is_never_halved() -> None:
    proto = model_of(
        [
            helper.make_node("Conv", ["x", "w1"], ["c1"], group=3, pads=[1] * 4),
            relu("c1", "r1"),
            conv("r1", "w2", "c2"),
            relu("c2", "r2"),
            conv("r2", "w3", "y"),
        ],
        [info("x", [1, 3, 6, 6])],
        [info("y", [1, 4, 6, 6])],
        {"w1": array(6, 1, 3, 3), "w2": array(16, 6, 3, 3, seed=1), "w3": array(4, 16, 3, 3, seed=2)},
    )
    model, kept = prune(proto, macs_ratio=0.3, best_effort=True, round_to=1)
    assert "w1[0]" not in kept
    assert tuple(model.graph.initializers["w1"].shape.numpy()) == (6, 1, 3, 3)  # type: ignore[union-attr]  # it has a shape


def test_a_constant_weight_whose_deviation_is_not_zero_is_found() -> None:
    constant = np.full((5, 32, 3, 3), 0.1, np.float32)
    assert constant.std() != 0
    proto = captured_free()
    model = lower(proto)
    value = model.graph.initializers["w2"]
    value.const_value = from_array(constant, "w2")
    assert randomise_constants(model, 0) == ("w2",)
    content = model.graph.initializers["w2"].const_value
    assert content is not None
    assert content.numpy().std() > 0.01


def test_dead_channels_can_go_without_a_trace() -> None:
    weight, bias = array(16, 3, 3, 3), array(16, seed=3, fan_in=1)
    weight[[1, 5, 6, 9]] = 0
    bias[[1, 5, 6, 9]] = 0
    proto = model_of(
        [conv("x", "w1", "c1", "b1"), relu("c1", "r1"), conv("r1", "w2", "y")],
        [info("x", [1, 3, 6, 6])],
        [info("y", [1, 4, 6, 6])],
        {"w1": weight, "b1": bias, "w2": array(4, 16, 3, 3, seed=1)},
    )
    model, kept = prune(proto, macs_ratio=0.75, round_to=4)
    assert kept == {"w1[0]": 12}
    assert_same_function(proto, model, rtol=1e-5)


def test_an_open_batch_stays_open() -> None:
    proto = captured_free()
    model, _ = prune(proto, macs_ratio=0.5)
    assert next(str(dim) for dim in model.graph.inputs[0].shape or ()) == "batch"
    session = session_for(model)
    for batch in (1, 3):
        (got,) = session.run(None, {"x": np.zeros((batch, 3, 8, 8), np.float32)})
        assert got.shape == (batch, 10, 8, 8)


def test_a_function_is_pruned_through() -> None:
    inner = helper.make_function(
        "local",
        "Block",
        ["a", "w"],
        ["b"],
        [
            helper.make_node("Conv", ["a", "w"], ["c"], pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    proto = model_of(
        [conv("x", "w1", "c1"), relu("c1", "r1"), conv("r1", "w2", "y")],
        [info("x", [1, 3, 6, 6])],
        [info("y", [1, 4, 6, 6])],
        {"w1": array(16, 3, 3, 3), "w2": array(4, 16, 3, 3, seed=1)},
    )
    del proto.graph.node[:2]
    proto.graph.node.insert(0, helper.make_node("Block", ["x", "w1"], ["r1"], domain="local", name="block"))
    proto.functions.append(inner)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    onnx.checker.check_model(proto)
    assert proto.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    _, kept = prune(proto, macs_ratio=0.55)
    assert list(kept.values()) == [8]


def test_an_lstm_of_which_only_the_last_state_is_read() -> None:
    hidden = 8
    proto = model_of(
        [
            helper.make_node("MatMul", ["x", "w1"], ["m"]),
            relu("m", "r"),
            helper.make_node("LSTM", ["r", "w", "u", "b"], ["", "last"], hidden_size=hidden),
            helper.make_node("MatMul", ["last", "w2"], ["y"]),
        ],
        [info("x", [5, 2, 6])],
        [info("y", [1, 2, 3])],
        {
            "w1": array(6, 16),
            "w": array(1, 4 * hidden, 16, seed=1),
            "u": array(1, 4 * hidden, hidden, seed=2),
            "b": array(1, 8 * hidden, seed=3),
            "w2": array(hidden, 3, seed=4),
        },
    )
    _, kept = prune(proto, params_ratio=0.7, round_to=1, protect=["u"])
    assert kept["w1[1]"] < 16
