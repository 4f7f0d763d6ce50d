"""fold-constants in subgraphs and functions, on branches, and on random shape programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.emit import emit, save
from graphopt.ir.lower import load
from graphopt.passes.fold_constants import FoldConstants
from tests.examples import examples
from tests.passes.harness import apply, assert_same_function, op_types, parse, run_feeds, session_for

if TYPE_CHECKING:
    from pathlib import Path

PASS = FoldConstants()

IF = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[2] x, bool flag) => (float[2] y)
<float[2] a = {1, 2}, float[2] b = {3, 4}>
{
    outer = Add (a, b)
    y = If (CONDITION) <
        then_branch = then_graph () => (float[2] t)
            <float[2] c = {5, 6}>
            { inner = Mul (outer, c)  t = Add (x, inner) },
        else_branch = else_graph () => (float[2] e)
            { inner = Sub (outer, b)  e = Sub (x, inner) }
    >
}
"""


def test_branches_fold_with_captured_constants() -> None:
    before = parse(IF.replace("CONDITION", "flag"))
    after, _ = apply(PASS, before)
    assert op_types(after) == ["If", "Add", "Sub"]
    for flag in (True, False):
        assert_same_function(before, after, {"x": np.array([1, -1], np.float32), "flag": np.array(flag)})


@pytest.mark.parametrize("flag", [True, False])
def test_decided_branch_is_inlined(flag: bool) -> None:
    text = IF.replace("CONDITION", "decided").replace("{\n    outer", "{\n    decided = Not (no)\n    outer")
    proto = parse(text.replace("<float[2] a", f"<bool no = {{{int(not flag)}}}, float[2] a"))
    after, report = apply(PASS, proto)
    assert op_types(after) == ["Add" if flag else "Sub"]
    assert report.counts["branches_inlined"] == 1
    assert_same_function(proto, after)
    kept, report = apply(PASS, proto, inline_branches=False)
    assert "If" in op_types(kept)
    assert "branches_inlined" not in report.counts


def test_inlining_renames_what_others_carry_too() -> None:
    nested = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x, bool flag) => (float[2] y, float[2] z)
    <bool yes = {1}>
    {
        one = If (flag) <
            then_branch = t1 () => (float[2] r) { k = Neg (x)  r = Abs (k) },
            else_branch = e1 () => (float[2] r) { r = Relu (x) }
        >
        two = If (yes) <
            then_branch = t2 () => (float[2] r) {
                k = Abs (x)
                r = If (yes) <
                    then_branch = t3 () => (float[2] q) { q = Exp (k) },
                    else_branch = e3 () => (float[2] q) { q = Log (k) }
                >
            },
            else_branch = e2 () => (float[2] r) { r = Sqrt (x) }
        >
        y = Add (one, two)
        z = If (yes) <
            then_branch = t4 () => (float[2] w) { w = Identity (x) },
            else_branch = e4 () => (float[2] w) { w = Neg (x) }
        >
    }
    """
    before = parse(nested)
    after, report = apply(PASS, before)
    assert report.counts["branches_inlined"] == 3
    assert op_types(after).count("If") == 1
    for flag in (True, False):
        assert_same_function(before, after, {"x": np.array([0.5, 2], np.float32), "flag": np.array(flag)})


def test_branch_that_returns_a_captured_value_or_a_constant() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x) => (float[2] y, float[2] z)
    <bool yes = {1}>
    {
        doubled = Add (x, x)
        y, z = If (yes) <
            then_branch = t () => (float[2] r, float[2] s) <float[2] s = {7, 8}> { r = Identity (doubled) },
            else_branch = e () => (float[2] r, float[2] s) { r = Neg (x)  s = Neg (x) }
        >
    }
    """
    before = parse(text)
    after, _ = apply(PASS, before)
    assert "If" not in op_types(after)
    assert_same_function(before, after)


def test_loop_bodies_fold_what_does_not_vary() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x, int64 n) => (float[2] y)
    <bool yes = {1}, float[2] a = {1, 2}>
    {
        y = Loop (n, yes, x) <
            body = b (int64 i, bool c, float[2] s) => (bool c2, float[2] s2)
                <float[2] k = {0.5, 0.25}>
                { c2 = Identity (c)  m = Exp (k)  step = Mul (m, a)  s2 = Add (s, step) }
        >
    }
    """
    before = parse(text)
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Loop", "Identity", "Add"]
    for n in (0, 3):
        assert_same_function(before, after, {"x": np.ones(2, np.float32), "n": np.array(n)})


def test_function_bodies_get_constant_nodes() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[2] x) => (float[2] y)
    { h = local.scaled <gain = 2.0> (x)  y = local.scaled <gain = 3.0> (h) }
    <domain: "local", opset_import: ["" : 21]>
    scaled <gain> (v) => (w)
    {
        two = Constant <value = float {2}> ()
        three = Constant <value = float {3}> ()
        five = Add (two, three)
        k = Constant <value_float: float = @gain> ()
        factor = Mul (five, k)
        w = Mul (v, factor)
    }
    """
    before = parse(text)
    after, _ = apply(PASS, before)
    (function,) = after.functions.values()
    assert sorted(node.op_type for node in function) == ["Constant", "Constant", "Mul", "Mul"]
    assert_same_function(before, after)


def test_weights_of_a_file_stay_in_the_file(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 64])],
        [helper.make_tensor_value_info("y", 1, [1, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    after, _ = apply(PASS, load(tmp_path / "m.onnx"), check=False)
    save(after, tmp_path / "out.onnx")
    # A weight that is constant is packed by the runtime, which sums in another order then.
    assert_same_function(tmp_path / "m.onnx", tmp_path / "out.onnx", rtol=1e-5)
    assert op_types(after) == ["MatMul"]


# --- random shape arithmetic ------------------------------------------------------------------------------


class Program:
    """A graph that computes on the sizes of x: [a, b, 4] and y: [b, 3], and at last reshapes or expands x."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.vectors = [self.node("Shape", ["x"]), self.node("Shape", ["y"])]
        self.lengths = {self.vectors[0]: 3, self.vectors[1]: 2}

    def constant(self, array: np.ndarray) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def add(self, op: str, inputs: list[str], length: int, **attributes: Any) -> None:
        name = self.node(op, inputs, **attributes)
        self.lengths[name] = length
        self.vectors.append(name)

    def step(self) -> None:
        draw = self.draw
        source = draw(st.sampled_from(self.vectors))
        length = self.lengths[source]
        kind = draw(
            st.sampled_from(["gather", "slice", "concat", "arithmetic", "where", "cast", "scalar", "reduce"])
        )
        if kind == "gather":
            indices = draw(st.lists(st.integers(-length, length - 1), min_size=1, max_size=3))
            self.add("Gather", [source, self.constant(np.array(indices, np.int64))], len(indices))
        elif kind == "slice":
            start, end = draw(st.integers(-length - 1, length)), draw(st.integers(-length, length + 9))
            step = draw(st.sampled_from([1, 2, -1]))
            kept = len(range(*slice(start, end, step).indices(length)))
            if kept and not (step < 0 and end < 0):
                parts = [self.constant(np.array([n], np.int64)) for n in (start, end, 0, step)]
                self.add("Slice", [source, *parts], kept)
        elif kind == "concat":
            other = draw(st.sampled_from(self.vectors))
            if length + self.lengths[other] <= 8:
                self.add("Concat", [source, other], length + self.lengths[other], axis=0)
        elif kind == "arithmetic":
            op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod"]))
            number = draw(st.integers(1, 5))
            shape = draw(st.sampled_from([(), (1,), (length,)]))
            self.add(op, [source, self.constant(np.full(shape, number, np.int64))], length)
        elif kind == "where":
            other = self.constant(
                np.array(draw(st.lists(st.integers(-1, 4), min_size=length, max_size=length)))
            )
            mask = self.node(draw(st.sampled_from(["Equal", "Less", "Greater"])), [source, other])
            self.add("Where", [mask, source, self.constant(np.ones(length, np.int64))], length)
        elif kind == "cast":
            narrow = self.node("Cast", [source], to=TensorProto.INT32)
            self.add("Cast", [narrow], length, to=TensorProto.INT64)
        elif kind == "scalar":
            index = self.constant(np.array(draw(st.integers(0, length - 1))))
            scalar = self.node("Gather", [source, index])
            self.add("Unsqueeze", [scalar, self.constant(np.array([0], np.int64))], 1)
        else:
            op = draw(st.sampled_from(["ReduceProd", "ReduceSum", "ReduceMax"]))
            if op != "ReduceProd" or length <= 3:
                self.add(op, [source, self.constant(np.array([0], np.int64))], 1, keepdims=1)

    def model(self) -> onnx.ModelProto:
        shapes: dict[str, list[int | str]] = {"x": ["a", "b", 4], "y": ["b", 3]}
        outputs = self.vectors[-4:]
        self.nodes.append(helper.make_node("Shape", ["x"], ["all"]))
        target = self.draw(st.sampled_from(self.vectors))
        # One known way to use a computed size whatever it is: as a dim of a reshaped fill of that size.
        flat = self.node("ReduceProd", [self.vectors[0]], keepdims=1)
        first = self.node("Slice", ["all", *(self.constant(np.array([n], np.int64)) for n in (0, 1))])
        rest = self.node("Concat", [first, self.constant(np.array([-1], np.int64))], axis=0)
        self.nodes.append(helper.make_node("Reshape", ["x", flat], ["flattened"]))
        self.nodes.append(helper.make_node("Reshape", ["x", rest], ["rows"]))
        self.nodes.append(helper.make_node("Expand", ["x", "all"], ["expanded"]))
        del target
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()],
            [
                *(
                    helper.make_tensor_value_info(name, 7, [self.lengths[name]])
                    for name in dict.fromkeys(outputs)
                ),
                helper.make_tensor_value_info("flattened", 1, ["p"]),
                helper.make_tensor_value_info("rows", 1, ["q", "r"]),
                helper.make_tensor_value_info("expanded", 1, ["a", "b", 4]),
            ],
            [numpy_helper.from_array(array.astype(np.int64), name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


@st.composite
def programs(draw: st.DrawFn) -> onnx.ModelProto:
    program = Program(draw)
    for _ in range(draw(st.integers(1, 12))):
        program.step()
    return program.model()


@given(programs())
@settings(max_examples=examples(60), deadline=None, derandomize=True)
def test_random_shape_programs_keep_their_results(before: onnx.ModelProto) -> None:
    after, _ = apply(PASS, before)
    one, two = session_for(before), session_for(emit(after))
    for a, b in ((2, 3), (1, 1), (5, 2), (3, 7)):
        feeds = {"x": np.ones((a, b, 4), np.float32), "y": np.ones((b, 3), np.float32)}
        expected, got = run_feeds(one, feeds), run_feeds(two, feeds)
        for name, value in expected.items():
            assert np.array_equal(value, got[name]), (name, a, b)


@given(programs())
@settings(max_examples=examples(25), deadline=None, derandomize=True)
def test_random_static_programs_fold_to_numbers(before: onnx.ModelProto) -> None:
    a, b = 3, 5
    for value, shape in zip(before.graph.input, ((a, b, 4), (b, 3)), strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
    after, _ = apply(PASS, before)
    # x expanded to its own shape is an output of the graph, which an input cannot be in its place.
    assert set(op_types(after)) <= {"Identity", "Reshape", "Expand"}
    feeds = {"x": np.ones((a, b, 4), np.float32), "y": np.ones((b, 3), np.float32)}
    expected, got = run_feeds(session_for(before), feeds), run_feeds(session_for(after), feeds)
    for name, value in expected.items():
        assert np.array_equal(value, got[name]), name


@pytest.mark.slow
def test_real_models_keep_their_function(assets: Path) -> None:
    for name in (
        "yunet_n_dynamic",
        "stories260k_llama_ts",
        "ultraface_version-RFB-320",
        "silero_vad_16k_op15",
    ):
        path = assets / "models" / f"{name}.onnx"
        before = load(path)
        after, report = apply(PASS, before, check=False)
        assert report.changed, name
        assert sum(1 for _ in after.nodes()) < sum(1 for _ in before.nodes())
        assert emit(after).ByteSize() <= emit(before).ByteSize()
        for batch in (1, 2):
            dims = {"batch": batch, "height": 64, "width": 96, "sequence": 576, "seq": 6}
            assert_same_function(path, after, dims=dims, rtol=1e-5)


def test_no_iterations_of_a_body_that_declares_nothing() -> None:
    """The runtime cannot know the rank of what such a loop collects, so none may be folded."""
    before = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[a,b] x, int64 trips) => (float z)
    {
        last, all = Loop <body = b (int64 i, bool go, float[a,b] s) => (bool more, float t, float u) {
            more = Identity (go)
            t = Add (s, x)
            u = Neg (s)
        }> (trips, , x)
        wide = Abs (all)
        shape = Shape (wide)
        z = Reshape (wide, shape)
    }
    """)
    for value in (before.graph.output[0], before.graph.node[0].attribute[0].g.input[2]):
        value.type.tensor_type.ClearField("shape")
    after, _ = apply(PASS, before, check=False)
    for trips in (0, 2):
        feeds = {"x": np.ones((2, 3), np.float32), "trips": np.array(trips)}
        assert_same_function(before, after, feeds)


def test_folding_where_a_body_hides_an_outer_name() -> None:
    before = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[N] x) => (float[N] y)
    <int64 trips = {2}>
    {
        s = Shape (x)
        y = Loop <body = b (int64 i, bool go, float[N] x) => (bool more, float[N] o) {
            more = Identity (go)
            one = Expand (x, s)
            o = Add (one, one)
        }> (trips, , x)
    }
    """)
    after, report = apply(PASS, before, check=False)
    assert report.counts["renamed_hiding_values"] == 1
    assert_same_function(before, after)


def test_nonsense_in_a_branch_that_never_runs_stays_arithmetic() -> None:
    # As a constant, the size -3 would make onnxruntime refuse the model at load.
    before = parse("""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x, bool flag) => (float[k] y)
    <int64[1] five = {5}>
    {
        y = If (flag) <
            then_branch = then_graph () => (float[p] t) { t = Neg (x) },
            else_branch = else_graph () => (float[q] e)
                { size = Shape (x)  fewer = Sub (size, five)  e = ConstantOfShape (fewer) }
        >
    }
    """)
    after, report = apply(PASS, before)
    assert "ConstantOfShape" in op_types(after)
    assert any("could not take it as a constant" in reason for _, reason in report.skipped)
    flag = np.ones((), bool)
    assert_same_function(before, after, {"x": np.ones(2, np.float32), "flag": flag})
