"""What an analysis says and how a cut behaves: names, locks, shared weights, requests, unknown operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.errors import OptionError, PassFailed
from graphopt.ir.channels import ChannelRule, analyse
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from tests.ir.channels import controlled, convolutional
from tests.ir.channels.support import Net, check_cut, draw, half, probe, weights
from tests.passes.harness import run_feeds, session_for

IMAGE = {"x": draw(1, 3, 8, 8)}


def _two_convolutions() -> Net:
    net = Net()
    net.conv(net.add("Relu", net.conv(net.input("x", (1, 3, 8, 8)), 8, 3)), 4, 8)
    return net


def test_members_say_what_a_unit_takes_along() -> None:
    net = Net()
    value = net.conv(net.input("x", (1, 3, 4, 4)), 8, 3)
    value = net.add("Gemm", net.add("Flatten", value), net.weight(128, 5))
    (family,) = analyse(lower(net.model(value))).families
    assert (family.name, family.kind, family.size, family.exact) == ("c0[0]", "channels", 8, True)
    roles = {(member.name, member.axis): member.role for member in family.members}
    assert roles == {("c0", 0): "producer", ("c2", 0): "consumer", ("c1", 0): "follower"}
    rows = next(member.units for member in family.members if member.name == "c2")
    assert np.array_equal(rows, np.repeat(np.arange(8), 16))
    assert family.touched == 1 + 16 + 1


def test_layouts_masks_and_consumers_agree() -> None:
    net = _two_convolutions()
    channels = analyse(lower(net.model("v2_0")))
    kept = {"c0[0]": [0, 2, 3]}
    (consumer,) = channels.consumers("c0[0]")
    assert (consumer.value, consumer.axis, consumer.weight, consumer.weight_axis) == ("v1_0", 1, "c2", 1)
    (mask,) = channels.masks(kept)
    assert (mask.value, mask.axis) == ("v1_0", 1)
    assert np.flatnonzero(mask.keep).tolist() == [0, 2, 3]
    assert channels.kept_counts(kept)["c2"] == (None, 3, None, None)
    (empty, ((name, units),), *_) = channels.layout("v1_0")
    assert empty == ()
    assert name == "c0[0]"
    assert units.tolist() == list(range(8))


def test_locks_name_who_and_why() -> None:
    net = Net()
    value = net.linear(net.input("x", (4, 6)), 8, 6)
    value = net.add("Softmax", value)
    channels = analyse(lower(net.model(net.linear(value, 3, 8))))
    assert not channels.families
    found = {(lock.where, lock.reason): {name for name, *_ in lock.members} for lock in channels.locks}
    assert found["Softmax 'n2'", "normalises over it"] == {"c0", "c1"}
    assert found["graph input 'x'", "a caller gives it in full"] == {"c0"}
    assert found["graph output 'v4_0'", "a caller reads it in full"] == {"c2", "c3"}


def test_an_overridable_initializer_is_locked_by_name() -> None:
    net = _two_convolutions()
    net.input("c0", (8, 3, 3, 3))
    channels = analyse(lower(net.model("v2_0")))
    assert not channels.families
    lock = next(lock for lock in channels.locks if "overridable" in lock.where)
    assert lock.where == "overridable initializer 'c0'"
    assert ("c0", 0, 8) in lock.members


def test_before_ir_version_4_initializers_are_constants_though_inputs() -> None:
    net = Net(8)
    net.conv(net.add("Relu", net.conv(net.input("x", (1, 3, 8, 8)), 8, 3)), 4, 8)
    for tensor in list(net.initializers):
        net.input(tensor.name, tuple(tensor.dims))
    proto = net.model("v2_0")
    proto.ir_version = 3
    model = lower(proto)
    channels = analyse(model)
    assert [family.size for family in channels.families] == [8]
    channels.cut(model, half(channels))
    onnx.shape_inference.infer_shapes(emit(model), strict_mode=True)
    assert run_feeds(session_for(model), IMAGE)["v2_0"].shape == (1, 4, 8, 8)


def test_two_convolutions_that_share_a_weight_lose_the_same_channels() -> None:
    """A1: the peers slice one use and leave the other with a weight that does not fit."""
    proto, feeds, _ = convolutional.shared()
    cut, channels = check_cut(proto, feeds)
    (family,) = channels.families
    assert sum(member.name == "w1" for member in family.members) == 1
    assert sum(name == "w1" for name in cut.graph.initializers) == 1
    assert weights(cut) <= 0.51 * weights(lower(proto))


@pytest.mark.parametrize("flag", [True, False])
def test_a_value_captured_by_both_branches_of_an_if_is_cut_in_both(flag: bool) -> None:
    """A2: the weights inside the branches are sliced, and both branches run."""
    proto, feeds, _ = controlled.if_capture()
    _, channels = check_cut(proto, {**feeds, "flag": np.array(flag)})
    captured = next(family for family in channels.families if family.size == 16)
    assert {member.name for member in captured.members} >= {"tw", "ew"}


def test_equal_biases_written_once_do_not_couple_layers() -> None:
    net = Net()
    zeros = net.constant(np.zeros(8, np.float32), "zeros")
    value = net.input("x", (1, 3, 8, 8))
    for read in (3, 8, 8):
        value = net.add("Relu", net.add("Conv", value, net.weight(8, read, 3, 3), zeros, pads=[1] * 4))
    proto = net.model(net.conv(value, 4, 8))
    cut, channels = check_cut(proto, IMAGE)
    assert [family.size for family in channels.families] == [8, 8, 8]
    # As many are left of each, so that one vector of zeros serves all of them again.
    shared = [name for name in cut.graph.initializers if name.startswith("zeros")]
    assert shared == ["zeros"]


def test_a_cut_leaves_the_model_that_was_analysed_alone() -> None:
    proto, *_ = convolutional.resnext()
    model = lower(proto)
    channels = analyse(model)
    before = emit(model).SerializeToString()
    channels.cut(model.clone(), half(channels))
    assert emit(model).SerializeToString() == before


def test_everything_kept_changes_nothing() -> None:
    proto, *_ = convolutional.resnext()
    model = lower(proto)
    channels = analyse(model)
    before = emit(model).SerializeToString()
    counts = channels.cut(model, {family.name: range(family.size) for family in channels.families})
    assert counts == {"tensors": 0, "nodes": 0}
    assert emit(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"c0[0]": []}, "at least one"),
        ({"c0[0]": [8]}, "0 to 7"),
        ({"c0[1]": [0]}, "no such family"),
    ],
)
def test_bad_requests_are_refused(kept: dict[str, list[int]], message: str) -> None:
    model = lower(_two_convolutions().model("v2_0"))
    channels = analyse(model)
    with pytest.raises(OptionError, match=message):
        channels.cut(model, kept)


def test_another_model_is_refused() -> None:
    channels = analyse(lower(_two_convolutions().model("v2_0")))
    other, *_ = convolutional.resnext()
    with pytest.raises(PassFailed, match="not the one that was analysed"):
        channels.cut(lower(other), half(channels))


def _with_unknown_operator(domain: str, op_type: str) -> onnx.ModelProto:
    net = Net()
    value = net.conv(net.input("x", (1, 3, 8, 8)), 8, 3)
    value = net.add(op_type, value, domain=domain)
    proto = net.model(net.conv(value, 4, 8))
    proto.graph.value_info.append(helper.make_tensor_value_info("v1_0", TensorProto.FLOAT, (1, 8, 8, 8)))
    proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


def test_an_unknown_operator_locks_what_it_touches_and_is_named() -> None:
    channels = analyse(lower(_with_unknown_operator("acme", "Swizzle")))
    assert not channels.families
    (lock,) = [lock for lock in channels.locks if lock.unknown_op]
    assert (lock.where, lock.unknown_op) == ("Swizzle 'n1'", "acme.Swizzle")
    assert {name for name, *_ in lock.members} == {"c0", "c1"}


def test_a_plugin_rule_frees_it() -> None:
    rule = ChannelRule("Swizzle", lambda view: view.emit(view.axes(0)), None, "acme")
    channels = analyse(lower(_with_unknown_operator("acme", "Swizzle")), rules=[rule])
    assert [family.size for family in channels.families] == [8]


def test_the_probe_frees_it() -> None:
    """LpPool's neighbour without a rule: the runtime knows it, and deletion shows that channels pass."""
    net = Net()
    value = net.conv(net.input("x", (1, 3, 8, 8)), 8, 3)
    value = net.add("Identity", value)
    value = net.add("GroupNorm", value, net.weight(8), domain="nowhere")
    blind = lower(_with_unknown_operator("com.microsoft", "Inverse"))
    assert not analyse(blind).families
    seen = analyse(lower(_with_unknown_operator("com.microsoft", "Inverse")), probe=probe)
    assert [family.size for family in seen.families] == [8]
    check_cut(_with_unknown_operator("com.microsoft", "Inverse"), IMAGE, strict=False, probe=probe)


@pytest.mark.parametrize(("op_type", "free"), [("Relu", True), ("Softmax", False)])
def test_a_function_of_another_opset_is_followed_where_it_means_the_same(op_type: str, free: bool) -> None:
    """Softmax of opset 12 is another operator than that of opset 17; Relu is the same."""
    body = helper.make_function(
        "loc",
        "Block",
        ["X"],
        ["Y"],
        [helper.make_node(op_type, ["X"], ["Y"])],
        [helper.make_opsetid("", 14 if free else 12)],
    )
    net = Net(17)
    value = net.add("Block", net.linear(net.input("x", (2, 8)), 6, 8), domain="loc")
    proto = net.model(net.linear(value, 3, 6), functions=[body])
    channels = analyse(lower(proto))
    assert [family.size for family in channels.families] == ([6] if free else [])
    assert [lock.unknown_op for lock in channels.locks if lock.unknown_op] == ([] if free else ["loc.Block"])
    if free:
        check_cut(proto, {"x": draw(2, 8)}, channels=channels)


def test_a_size_read_as_a_number_stays_what_it_was() -> None:
    """The scale 1 / sqrt(d) of an attention that takes d from a shape must not change with d."""
    net = Net()
    value = net.linear(net.input("x", (4, 6)), 8, 6)
    size = net.add("Gather", net.add("Shape", value), net.constant(np.int64(1)), axis=0)
    value = net.add("Div", value, net.add("Sqrt", net.add("Cast", size, to=TensorProto.FLOAT)))
    check_cut(net.model(net.linear(value, 3, 8)), {"x": draw(4, 6)})
