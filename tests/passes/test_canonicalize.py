"""canonicalize: what is dropped, merged or turned, what must stay, and that outputs stay equal to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.passes.canonicalize import Canonicalize
from tests.passes.canonicalize_cases import DROPPED
from tests.passes.harness import apply, assert_golden, assert_same_function, op_types, parse


def model_text(body: str, *, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    return parse(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{body}')


@pytest.mark.parametrize("case", DROPPED)
def test_rule(case: str) -> None:
    text, expected = DROPPED[case]
    before = model_text(text)
    after, report = apply(Canonicalize(), before)
    assert op_types(after) == expected
    for seed in range(2):
        assert_same_function(before, after, seed=seed, dims={"N": 4, "M": 4})
    _, again = apply(Canonicalize(), after)
    assert not again.changed, dict(again.counts)
    assert_golden("canonicalize", case, before, after, report)


CONSTANTS = {
    "value": "Constant <value = float[2] {1.5, -2.0}> ()",
    "value-float": "Constant <value_float = 1.5> ()",
    "value-floats": "Constant <value_floats = [1.5, 2.5]> ()",
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constant_becomes_initializer(case: str) -> None:
    before = model_text(f"g (float[3,2] x) => (float[3,2] y) {{ c = {CONSTANTS[case]} y = Add (x, c) }}")
    after, report = apply(Canonicalize(), before)
    assert op_types(after) == ["Add"]
    assert list(after.graph.initializers) == ["c"]
    assert report.counts == {"constants_to_initializers": 1}
    assert_same_function(before, after)


def test_constant_of_integers_strings_and_sparse_values() -> None:
    nodes = [
        helper.make_node("Constant", [], ["i"], value_int=3),
        helper.make_node("Constant", [], ["is"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["s"], value_string=b"a"),
        helper.make_node("Constant", [], ["ss"], value_strings=[b"a", b"b"]),
        helper.make_node(
            "Constant",
            [],
            ["sp"],
            sparse_value=helper.make_sparse_tensor(
                helper.make_tensor("values", TensorProto.FLOAT, [2], [1.0, 2.0]),
                helper.make_tensor("indices", TensorProto.INT64, [2], [1, 5]),
                [6],
            ),
        ),
        helper.make_node("Add", ["i", "is"], ["n"]),
        helper.make_node("Equal", ["s", "ss"], ["e"]),
        helper.make_node("Neg", ["sp"], ["d"]),
    ]
    outputs = [
        helper.make_tensor_value_info("n", TensorProto.INT64, [2]),
        helper.make_tensor_value_info("e", TensorProto.BOOL, [2]),
        helper.make_tensor_value_info("d", TensorProto.FLOAT, [6]),
    ]
    graph = helper.make_graph(nodes, "g", [], outputs)
    before = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    after, report = apply(Canonicalize(), before)
    assert op_types(after) == ["Add", "Equal", "Neg"]
    assert report.counts["constants_to_initializers"] == 5
    assert_same_function(before, after)


def test_constant_in_a_subgraph_becomes_its_initializer() -> None:
    before = model_text(
        "g (float[2] x, bool c) => (float[2] y) { y = If (c) <"
        " then_branch = t () => (float[2] p)"
        " { k = Constant <value = float[2] {1.0, 2.0}> () p = Mul (x, k) },"
        " else_branch = e () => (float[2] q) { q = Constant <value = float[2] {3.0, 4.0}> () }> }"
    )
    after, _ = apply(Canonicalize(), before)
    # The constant that is a branch's output stays a node.
    assert op_types(after) == ["If", "Mul", "Constant"]
    for choice in (True, False):
        feeds = {"x": np.array([1.0, -1.0], np.float32), "c": np.array(choice)}
        assert_same_function(before, after, feeds)


def function_model(*, second: str) -> onnx.ModelProto:
    return parse(
        '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'
        f"g (float[2] x, {second}[2] z) => (float[2] y, {second}[2] w)"
        " { y = local.scale (x) w = local.scale (z) }"
        '<domain: "local", opset_import: ["" : 21]>'
        "scale (a) => (b) { k = Constant <value = float[2] {2.0, 3.0}> () i = Identity (a)"
        " c = CastLike (k, i) b = Mul (i, c) }"
    )


@pytest.mark.parametrize(
    ("second", "body"), [("double", ["Constant", "CastLike", "Mul"]), ("float", ["Constant", "Mul"])]
)
def test_function_bodies_keep_their_constants(second: str, body: list[str]) -> None:
    """And CastLike goes only where every call has the same type."""
    before = function_model(second=second)
    after, report = apply(Canonicalize(), before)
    assert "constants_to_initializers" not in report.counts
    assert op_types(after) == ["scale", "scale", *body]
    assert_same_function(before, after)


def test_constants_of_old_models_stay_nodes() -> None:
    before = model_text(
        "g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1.5, -2.0}> () y = Add (x, c) }",
        opset=8,
        ir_version=3,
    )
    after, report = apply(Canonicalize(), before)
    assert not report.changed
    assert op_types(after) == ["Constant", "Add"]


def overridable_model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.array([1.0, 1.0], np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "w")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [weight],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def test_overridable_initializers_are_no_constants() -> None:
    before = overridable_model()
    after, report = apply(Canonicalize(), before)
    assert not report.changed
    assert [value.name for value in after.graph.inputs] == ["x", "w"]
    assert "freeze_initializers" in report.skipped[0][1]
    assert_same_function(before, after, {"x": np.ones(2, np.float32), "w": np.full(2, 3.0, np.float32)})


def test_freeze_initializers_on_request() -> None:
    after, report = apply(Canonicalize(), overridable_model(), freeze_initializers=True)
    assert report.counts["initializers_frozen"] == 1
    assert [value.name for value in after.graph.inputs] == ["x"]
    # And then the multiplication by ones goes; the output cannot take the name of an input.
    assert op_types(after) == ["Identity"]


def test_training_dropout_and_read_masks_are_left_with_a_reason() -> None:
    before = model_text(
        "g (float[2] x, bool t) => (float[2] y, bool[2] m, float[2] z)"
        " <float r = {0.5}> { y, m = Dropout (x) z, n = Dropout (x, r, t) }"
    )
    after, report = apply(Canonicalize(), before)
    assert op_types(after) == ["Dropout", "Dropout"]
    assert {reason for _, reason in report.skipped} == {"its mask is read", "it trains, or may"}


@pytest.mark.parametrize("opset", [7, 9, 10, 12, 13, 18, 23])
def test_old_and_new_forms_of_axes(opset: int) -> None:
    """Squeeze, Unsqueeze, Slice, Pad and ReduceSum took attributes before they took inputs."""
    nodes, initializers = [], []

    def listed(name: str, op_type: str, source: str, target: str, since: int, **lists: Any) -> None:
        if opset < since:
            nodes.append(helper.make_node(op_type, [source], [target], **lists))
            return
        inputs = [source]
        for key, numbers in lists.items():
            initializers.append(numpy_helper.from_array(np.array(numbers, np.int64), f"{name}_{key}"))
            inputs.append(f"{name}_{key}")
        nodes.append(helper.make_node(op_type, inputs, [target]))

    listed("u", "Unsqueeze", "x", "a", 13, axes=[1])
    listed("s", "Squeeze", "a", "b", 13, axes=[1])
    listed("l", "Slice", "b", "c", 10, starts=[0], ends=[2**31 - 1], axes=[1])
    listed("p", "Pad", "c", "d", 11, pads=[0, 0, 0, 0])
    listed("r", "ReduceSum", "d", "e", 13, axes=[0])
    nodes.append(helper.make_node("Neg", ["e"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        initializers,
    )
    before = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    after, _ = apply(Canonicalize(), before)
    assert op_types(after) == ["Neg"]
    assert_same_function(before, after)


def test_recurrent_states_of_zeros_are_left_out() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((1, 16, 3)).astype(np.float32),
        "r": rng.standard_normal((1, 16, 4)).astype(np.float32),
        "b": rng.standard_normal((1, 32)).astype(np.float32),
        "h": np.zeros((1, 2, 4), np.float32),
        "c": np.zeros((1, 2, 4), np.float32),
    }
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["y", "yh", "yc"], hidden_size=4)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 1, 2, 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    before = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    after, report = apply(Canonicalize(), before)
    (lstm,) = after.nodes()
    assert len(lstm.inputs) == 4
    assert len(lstm.outputs) == 1
    assert report.counts == {"dropped_default_inputs": 2, "trimmed_outputs": 2}
    assert_same_function(before, after)


def test_bound_dims_do_not_specialise_the_model() -> None:
    """--dim says what to measure with, not what the model may be fed with."""
    before = model_text(
        "g (float[N,3] x) => (float[N,3] y) <int64[2] s = {1, 3}> { a = Expand (x, s) b = Relu (a)"
        " y = Neg (b) }"
    )
    wider = model_text("g (float[N,3] x) => (float[M,3] y) <int64[2] s = {4, 3}> { y = Expand (x, s) }")
    after, _ = apply(Canonicalize(), before, dims={"N": 4})
    assert op_types(after) == ["Relu", "Neg"]
    kept, report = apply(Canonicalize(), wider, dims={"N": 4, "M": 4})
    assert not report.changed
    assert op_types(kept) == ["Expand"]


def test_wrong_declarations_of_inner_values_are_not_believed() -> None:
    """A batch made symbolic by hand, with a stale value_info that still says 1: onnxruntime takes it, too."""
    before = model_text(
        "g (float[N,3] x) => (float[K,3] y) <int64[1] s = {0}, int64[1] e = {1}>"
        " { a = Relu (x) b = Slice (a, s, e) y = Neg (b) }"
    )
    before.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 3]))
    after, report = apply(Canonicalize(), before)
    assert not report.changed
    assert_same_function(before, after, {"x": np.ones((4, 3), np.float32)})


def test_names_metadata_and_declared_types_of_outputs_survive() -> None:
    before = model_text(
        "g (float[N,3] x) => (float[N,3] y) { a = Relu (x) b = Identity (a) y = Identity (b) }"
    )
    before.graph.output[0].doc_string = "the result"
    before.graph.node[0].metadata_props.add(key="from", value="layer1")
    after, _ = apply(Canonicalize(), before)
    (node,) = after.nodes()
    assert node.outputs[0].name == "y"
    assert node.outputs[0].doc_string == "the result"
    assert node.metadata_props == {"from": "layer1"}
    assert str(after.graph.outputs[0].shape) == str(lower(before).graph.outputs[0].shape)


def test_custom_operators_are_left_alone() -> None:
    before = parse(
        '<ir_version: 10, opset_import: ["" : 21, "strange" : 1]>'
        "g (float[2] x) => (float[2] y) { a = strange.Identity (x) b = strange.Cast <to = 1> (a)"
        " y = strange.Relu (b) }"
    )
    _, report = apply(Canonicalize(), before)
    assert not report.changed


def test_constants_keep_their_quantization_annotation() -> None:
    before = model_text("g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> ()"
                        " y = Mul (x, c) }")  # fmt: skip
    before.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "s"))
    annotation = before.graph.quantization_annotation.add(tensor_name="c")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    after, _ = apply(Canonicalize(), before)
    assert op_types(after) == ["Mul"]
    assert emit(after).graph.quantization_annotation == before.graph.quantization_annotation


def test_a_state_called_like_an_outer_value() -> None:
    """The body's ``a`` hides the outer one, which dropping both Neg would make it read."""
    before = model_text("""
    g (float[2] x) => (float[2] y)
    <int64 trips = {3}>
    {
        a = Abs (x)
        t = Neg (a)
        y = Loop <body = b (int64 i, bool go, float[2] a) => (bool more, float[2] o) {
            more = Identity (go)
            u = Neg (t)
            o = Add (u, a)
        }> (trips, , x)
    }
    """)
    after, _ = apply(Canonicalize(), before)
    assert op_types(after) == ["Abs", "Loop", "Identity", "Add"]
    assert_same_function(before, after)
    _, again = apply(Canonicalize(), after)
    assert not again.changed


def test_an_output_that_declares_no_shape_goes_on_declaring_none() -> None:
    before = model_text("g (float[2] x) => (float y) { y = Relu (x) }")
    before.graph.output[0].type.tensor_type.ClearField("shape")
    before.graph.node.append(helper.make_node("Identity", ["y"], ["b"]))
    before.graph.node.append(helper.make_node("Abs", ["b"], ["z"]))
    before.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    before.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]))
    after, _ = apply(Canonicalize(), before, check=False)
    assert op_types(after) == ["Relu", "Abs"]
    assert emit(after).graph.output == before.graph.output


def test_clip_without_bounds_still_clips_infinities() -> None:
    before = model_text("g (float[4] x) => (float[4] y) { a = Clip (x) y = Neg (a) }")
    after, _ = apply(Canonicalize(), before)
    assert_same_function(before, after, {"x": np.array([np.inf, -np.inf, np.nan, 1], np.float32)})
