"""eliminate-dead: what nothing needs goes, in every graph; what may matter stays and is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.passes.eliminate_dead import EliminateDead
from tests.passes.harness import apply, assert_golden, assert_same_function, op_types, parse

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'

# name -> (model, op types that must be left, in order)
CASES: dict[str, tuple[str, list[str]]] = {
    "chain": (
        "g (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (a) c = Abs (b) y = Exp (x) }",
        ["Exp"],
    ),
    "nothing-dead": ("g (float[2] x) => (float[2] y) { a = Relu (x) y = Exp (a) }", ["Relu", "Exp"]),
    "random": ("g (float[2] x) => (float[2] y) { r = RandomNormal <shape = [3]> () y = Exp (x) }", ["Exp"]),
    "optional-outputs": (
        "g (float[1,1,4,4] x) => (float[1,1,3,3] y) { y, i = MaxPool <kernel_shape = [2, 2]> (x) }",
        ["MaxPool"],
    ),
    "split-keeps-its-parts": (
        "g (float[4] x) => (float[2] y) { y, z = Split <axis = 0, num_outputs = 2> (x) }",
        ["Split"],
    ),
    "unused-initializer": (
        "g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}, float[2] v = {3.0, 2.0}>{ y = Add (x, v) }",
        ["Add"],
    ),
    "inside-branches": (
        (
            "g (float[2] x, bool c) => (float[2] y) { h = Abs (x) d = Sin (x) y = If (c) <"
            "then_branch = t () => (float[2] p) { u = Neg (h) v = Exp (d) p = Relu (x) },"
            "else_branch = e () => (float[2] q) { q = Neg (x) }> }"
        ),
        ["If", "Relu", "Neg"],
    ),
    "branch-output": (
        (
            "g (float[2] x, bool c) => (float[2] y) { h = Abs (x) z, y = If (c) <"
            "then_branch = t () => (float[2] p, float[2] r) { p = Exp (h) r = Relu (x) },"
            "else_branch = e () => (float[2] q, float[2] s) { q = Sin (x) s = Neg (x) }> }"
        ),
        ["If", "Relu", "Neg"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    text, expected = CASES[case]
    before = parse(f"{HEADER}\n{text}")
    after, report = apply(EliminateDead(), before)
    assert op_types(after) == expected
    for seed in range(3):
        assert_same_function(before, after, seed=seed)
    _, again = apply(EliminateDead(), after)
    assert not again.changed, dict(again.counts)
    assert_golden("eliminate-dead", case, before, after, report)


def test_unused_initializers_that_are_inputs_stay() -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "w", "unused")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )
    before = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    after, report = apply(EliminateDead(), before)
    assert not report.changed
    assert report.skipped == (("initializer 'w'", "nothing reads it, but it is an input of the model"),)
    assert [value.name for value in after.graph.inputs] == ["x", "w", "unused"]


def test_initializers_that_are_outputs_or_annotated_stay() -> None:
    before = parse(
        f"{HEADER} g (float[2] x) => (float[2] y, float[2] w)"
        " <float[2] w = {1.0, 2.0}, float s = {0.5}, uint8 z = {3}, float dead = {1.0}> { y = Neg (x) }"
    )
    annotation = before.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="z")
    after, report = apply(EliminateDead(), before)
    assert list(after.graph.initializers) == ["w", "s", "z"]
    assert report.counts == {"initializers_removed": 1}
    assert emit(after).graph.quantization_annotation == before.graph.quantization_annotation


def test_operators_of_unknown_domains_stay_and_are_named() -> None:
    before = parse(
        '<ir_version: 10, opset_import: ["" : 21, "strange" : 1]>'
        "g (float[2] x) => (float[2] y) { a = Abs (x) b = strange.Print (a) y = Neg (x) }"
    )
    after, report = apply(EliminateDead(), before)
    assert op_types(after) == ["Abs", "Print", "Neg"]
    assert [reason for _, reason in report.skipped] == ["nothing reads it, but it may have side effects"]


def test_functions() -> None:
    """Unread calls go, then functions that nothing calls, directly or through others."""
    before = parse(
        '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'
        "g (float[2] x) => (float[2] y) { a = local.unread (x) y = local.outer (x) }"
        '<domain: "local", opset_import: ["" : 21, "local" : 1]>'
        "outer (a) => (b) { c = local.inner (a) d = Sin (c) b = Neg (c) }"
        '<domain: "local", opset_import: ["" : 21]> inner (a) => (b) { b = Relu (a) }'
        '<domain: "local", opset_import: ["" : 21, "local" : 1]> unread (a) => (b) { b = local.deep (a) }'
        '<domain: "local", opset_import: ["" : 21]> deep (a) => (b) { b = Exp (a) }'
    )
    after, report = apply(EliminateDead(), before)
    assert [name for _, name, _ in after.functions] == ["outer", "inner"]
    assert op_types(after) == ["outer", "inner", "Neg", "Relu"]
    assert report.counts == {"functions_removed": 2, "nodes_removed": 2}
    assert_same_function(before, after)


def loop_model() -> onnx.ModelProto:
    """A loop with five states: read; needed by the read one; feeding itself only; two feeding each other."""
    return parse(
        f"{HEADER} g (int64 n, bool c, float[2] x) => (float[2] y, float[N,2] s)"
        "{ f0, f1, f2, f3, f4, s0, s = Loop (n, c, x, x, x, x, x) <body = b (int64 i, bool ci, float[2] a0,"
        " float[2] a1, float[2] a2, float[2] a3, float[2] a4) => (bool co, float[2] b0, float[2] b1,"
        " float[2] b2, float[2] b3, float[2] b4, float[2] t0, float[2] t1) {"
        " co = Identity (ci) b0 = Add (a0, a1) b1 = Neg (a1) b2 = Exp (a2) b3 = Sin (a4) b4 = Cos (a3)"
        " t0 = Tanh (a2) t1 = Abs (a0) }> y = Identity (f0) }"
    )


def test_loop_states_and_scans() -> None:
    before = loop_model()
    after, report = apply(EliminateDead(), before)
    loop = next(node for node in after.nodes() if node.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    assert [value.name for value in body.inputs] == ["i", "ci", "a0", "a1"]
    assert [value.name for value in body.outputs] == ["co", "b0", "b1", "t1"]
    assert [value.name for value in loop.outputs] == ["f0", "f1", "s"]
    assert report.counts == {"nodes_removed": 4, "outputs_removed": 4}
    for count in (0, 1, 3):
        feeds = {"n": np.array(count), "c": np.array(1, np.bool_), "x": np.array([0.5, -1.0], np.float32)}
        assert_same_function(before, after, feeds)
    _, again = apply(EliminateDead(), after)
    assert not again.changed


def test_scan_outputs_take_their_axes_along() -> None:
    before = parse(
        f"{HEADER} g (float[2] x, float[3,2] z) => (float[2] y, float[2,3] s)"
        "{ f0, f1, s0, s = Scan <num_scan_inputs = 1, scan_output_axes = [0, 1],"
        " scan_output_directions = [0, 1], body = b (float[2] a0, float[2] a1, float[2] e)"
        " => (float[2] b0, float[2] b1, float[2] t0, float[2] t1)"
        " { b0 = Add (a0, e) b1 = Mul (a1, e) t0 = Neg (a1) t1 = Abs (a0) }> (x, x, z) y = Identity (f0) }"
    )
    after, report = apply(EliminateDead(), before)
    scan = next(node for node in after.nodes() if node.op_type == "Scan")
    assert list(scan.attributes["scan_output_axes"].as_ints()) == [1]
    assert list(scan.attributes["scan_output_directions"].as_ints()) == [1]
    assert len(scan.inputs) == 2
    assert report.counts == {"nodes_removed": 2, "outputs_removed": 2}
    assert_same_function(before, after)


def test_captured_values_are_released_from_the_inside_out() -> None:
    """A value read only by a dead node of a nested branch is dead too."""
    before = parse(
        f"{HEADER} g (float[2] x, bool c) => (float[2] y) {{ h = Abs (x) y = If (c) <"
        " then_branch = t () => (float[2] p) { p = If (c) <"
        "  then_branch = tt () => (float[2] pp) { k = Sin (h) pp = Neg (x) },"
        "  else_branch = te () => (float[2] pe) { pe = Exp (x) }> },"
        " else_branch = e () => (float[2] q) { q = Relu (x) }> }"
    )
    after, _ = apply(EliminateDead(), before)
    assert sorted(op_types(after)) == ["Exp", "If", "If", "Neg", "Relu"]
    for seed in range(3):
        assert_same_function(before, after, seed=seed)


def test_traces_of_exporters_go_where_that_is_asked_for() -> None:
    model = parse(f"{HEADER} g (float[2] x) => (float[2] y) {{ a = Relu (x) y = Exp (a) }}")
    traces = {"pkg.torch.onnx.stack_trace": "File model.py", "namespace": ": Net/fc: Linear"}
    for thing in (model.graph.node[0], model.graph.node[1], model.graph.input[0], model.graph):
        for key, text in {**traces, "author": "me"}.items():
            thing.metadata_props.add(key=key, value=text)
    kept, report = apply(EliminateDead(), model)
    assert not report.changed
    assert len(emit(kept).graph.node[0].metadata_props) == 3
    bare, report = apply(EliminateDead(), model, traces=True)
    assert report.counts == {"traces_removed": 8}
    proto = emit(bare)
    for thing in (*proto.graph.node, proto.graph.input[0], proto.graph):
        assert [(each.key, each.value) for each in thing.metadata_props] == [("author", "me")]


def test_traces_go_from_tensors_and_from_entries_of_names_that_exist_nowhere() -> None:
    """The data stay as they are, and so does the model that shares the tensors."""
    model = parse(
        f"{HEADER} g (float[2] x) => (float[2] y) <float[2] w = {{1, 2}}>"
        "{ a = Add (x, w) c = Constant <value = float[2] {3, 4}> () y = Add (a, c) }"
    )
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([5.0], np.float32), "s"),
        numpy_helper.from_array(np.array([1], np.int64), "s_places"),
        [2],
    )
    model.graph.sparse_initializer.append(sparse)
    model.graph.node[2].output[0] = "b"
    model.graph.node.append(helper.make_node("Add", ["b", "s"], ["y"]))
    nowhere = helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, [2])
    model.graph.value_info.append(nowhere)

    def traced(proto: onnx.ModelProto) -> list[Any]:
        graph = proto.graph
        return [
            graph.initializer[0],
            graph.sparse_initializer[0].values,
            graph.node[1].attribute[0].t,
            next(info for info in graph.value_info if info.name == "nowhere"),
        ]

    for thing in traced(model):
        for key in ("pkg.onnxscript.rewriter.rule_name", "author"):
            thing.metadata_props.add(key=key, value="me")
    before = lower(model)
    bare, report = apply(EliminateDead(), before.clone(), traces=True)
    assert report.counts["traces_removed"] == 4
    proto = emit(bare)
    assert [[each.key for each in thing.metadata_props] for thing in traced(proto)] == [["author"]] * 4
    assert [len(thing.metadata_props) for thing in traced(emit(before))] == [2] * 4
    for thing in traced(proto):
        del thing.metadata_props[:]
    for thing in traced(model):
        del thing.metadata_props[:]
    assert proto.graph == emit(lower(model)).graph
