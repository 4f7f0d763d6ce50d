"""deduplicate: equal things become one, things that only look equal do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.emit import emit
from graphopt.ir.lower import load, lower
from graphopt.passes.deduplicate import Deduplicate
from tests.passes.harness import apply, assert_golden, assert_same_function, op_types, parse

if TYPE_CHECKING:
    from pathlib import Path

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'

# name -> (model, op types that must be left, in order, initializers that must be left in the main graph)
CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "initializers": (
        (
            "g (float[2] x) => (float[2] y)"
            " <float[2] a = {1.0, 2.0}, float[2] b = {1.0, 2.0}, float[2] c = {1.0, 3.0}>"
            "{ p = Add (x, a) q = Mul (p, b) y = Sub (q, c) }"
        ),
        ["Add", "Mul", "Sub"],
        ["a", "c"],
    ),
    "initializers-differ-in-type-or-shape": (
        (
            "g (int64[2] x) => (int64[2] y) <int64[2] a = {1, 1}, int64[1,2] b = {1, 1}, int32[2] c = {1, 1}>"
            "{ p = Add (x, a) r = Squeeze (b) q = Add (p, r) s = Cast <to = 7> (c) y = Sub (q, s) }"
        ),
        ["Add", "Squeeze", "Add", "Cast", "Sub"],
        ["a", "b", "c"],
    ),
    "zeros-of-either-sign": (
        (
            "g (float[1] x) => (float[1] y, float[1] z) <float[1] a = {0.0}, float[1] b = {-0.0}>"
            "{ y = Div (x, a) z = Div (x, b) }"
        ),
        ["Div", "Div"],
        ["a", "b"],
    ),
    "expressions": (
        (
            "g (float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}, float[2] b = {1.0, 2.0}>"
            "{ p = Add (x, a) q = Add (b, x) r = Relu (p) s = Relu (q) y = Mul (r, s) }"
        ),
        ["Add", "Relu", "Mul"],
        ["a"],
    ),
    "operands-in-order": (
        "g (float[2] x, float[2] w) => (float[2] y) { p = Sub (x, w) q = Sub (w, x) y = Mul (p, q) }",
        ["Sub", "Sub", "Mul"],
        [],
    ),
    "attributes-differ": (
        (
            "g (float[2,2] x) => (float[2,2] y)"
            "{ p = Softmax <axis = 0> (x) q = Softmax <axis = 1> (x) y = Mul (p, q) }"
        ),
        ["Softmax", "Softmax", "Mul"],
        [],
    ),
    "output-keeps-its-name": (
        "g (float[2] x) => (float[2] y, float[2] z) { a = Relu (x) y = Relu (x) z = Exp (a) }",
        ["Relu", "Exp"],
        [],
    ),
    "two-outputs": (
        "g (float[2] x) => (float[2] y, float[2] z, float[2] w) { y = Relu (x) z = Relu (x) w = Exp (z) }",
        ["Relu", "Relu", "Exp"],
        [],
    ),
    "several-outputs": (
        (
            "g (float[4] x) => (float[2] y) { a, b = Split <axis = 0, num_outputs = 2> (x)"
            " c, d = Split <axis = 0, num_outputs = 2> (x) e = Add (a, d) f = Add (c, b) y = Mul (e, f) }"
        ),
        ["Split", "Add", "Mul"],
        [],
    ),
    "branches": (
        (
            "g (float[2] x, bool c) => (float[2] y, float[2] h) { h = Abs (x) y = If (c) <"
            "then_branch = t () => (float[2] p) { k = Abs (x) l = Exp (k) m = Exp (k) p = Add (l, m) },"
            "else_branch = e () => (float[2] q) { q = Abs (x) }> }"
        ),
        # The branch that returns the same value must still make it itself.
        ["Abs", "If", "Exp", "Add", "Abs"],
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    text, expected, initializers = CASES[case]
    before = parse(f"{HEADER}\n{text}")
    after, report = apply(Deduplicate(), before)
    assert sorted(op_types(after)) == sorted(expected)
    assert list(after.graph.initializers) == initializers
    for seed in range(3):
        assert_same_function(before, after, seed=seed)
    _, again = apply(Deduplicate(), after)
    assert not again.changed, dict(again.counts)
    assert_golden("deduplicate", case, before, after, report)


def test_random_operators_are_not_merged() -> None:
    before = parse(
        f"{HEADER} g (float[2] x) => (float[64] y)"
        "{ a = RandomNormal <shape = [64]> () b = RandomNormal <shape = [64]> () y = Sub (a, b) }"
    )
    after, report = apply(Deduplicate(), before)
    assert not report.changed
    assert op_types(after) == ["RandomNormal", "RandomNormal", "Sub"]


def test_training_dropout_is_not_merged() -> None:
    before = parse(
        f"{HEADER} g (float[2] x, bool t) => (float[2] y) <float r = {{0.5}}>"
        "{ a = Dropout (x, r, t) b = Dropout (x, r, t) c = Dropout (x) d = Dropout (x) e = Sub (a, b)"
        " f = Sub (c, d) y = Add (e, f) }"
    )
    after, _ = apply(Deduplicate(), before)
    assert list(op_types(after)).count("Dropout") == 3


def test_calls_of_functions_are_merged_where_the_body_is_deterministic() -> None:
    before = parse(
        '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'
        "g (float[2] x) => (float[2] y)"
        "{ a = local.pure (x) b = local.pure (x) c = local.noisy (x) d = local.noisy (x) e = Add (a, b)"
        " f = Add (c, d) y = Mul (e, f) }"
        '<domain: "local", opset_import: ["" : 21]> pure (a) => (b)'
        "{ c = Exp (a) d = Exp (a) b = Add (c, d) }"
        '<domain: "local", opset_import: ["" : 21]> noisy (a) => (b)'
        "{ r = RandomNormalLike (a) b = Add (a, r) }"
    )
    after, report = apply(Deduplicate(), before)
    names = list(op_types(after))
    assert (names.count("pure"), names.count("noisy"), names.count("Exp")) == (1, 2, 1)
    assert report.counts["expressions_merged"] == 2


def test_overridable_initializers_and_outputs_keep_their_own() -> None:
    arrays = {name: np.ones(3, np.float32) for name in ("default", "output", "plain", "spare")}
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", "default", "plain", "spare"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "default")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("y", "output")],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    before = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    after, report = apply(Deduplicate(), before)
    assert list(after.graph.initializers) == ["default", "output"]
    assert report.counts == {"bytes_saved": 24, "initializers_merged": 2}
    feeds = {"x": np.arange(3, dtype=np.float32), "default": np.full(3, 5.0, np.float32)}
    assert_same_function(before, after, feeds)


def branch_model(size: int) -> onnx.ModelProto:
    array = np.arange(size, dtype=np.float32)
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op_type, ["x", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [size])],
            [numpy_helper.from_array(array, f"{name}_w")],
        )
        for name, op_type in (("then", "Add"), ("else", "Mul"))
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], **branches), helper.make_node("Sub", ["z", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [size]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])],
        [numpy_helper.from_array(array, "w")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.parametrize(("size", "left"), [(512, 0), (16, 2)])
def test_large_initializers_of_branches_become_captures(size: int, left: int) -> None:
    before = branch_model(size)
    after, _ = apply(Deduplicate(), before)
    inner = [name for graph in list(after.graphs())[1:] for name in graph.initializers]
    assert len(inner) == left
    for seed in range(4):
        assert_same_function(before, after, seed=seed)


def test_options() -> None:
    text = CASES["expressions"][0]
    before = parse(f"{HEADER}\n{text}")
    _, report = apply(Deduplicate(), before, initializers=False)
    assert report.counts == {}
    _, report = apply(Deduplicate(), before, expressions=False)
    assert report.counts == {"bytes_saved": 8, "initializers_merged": 1}
    _, report = apply(Deduplicate(), before, min_bytes=9)
    assert not report.changed


def test_external_initializers_are_compared_in_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal(700_000).astype(np.float32)  # 2.8 MB: several pieces
    other = array.copy()
    other[-1] += 1
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", "a", "b", "c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [array.size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [array.size])],
        [numpy_helper.from_array(data, name) for name, data in (("a", array), ("b", array), ("c", other))],
    )
    before = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path / "model.onnx"
    onnx.save(before, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = load(path)
    report = Deduplicate().run(model, Deduplicate.Options(), context=None)  # type: ignore[arg-type]  # it asks for nothing
    assert report.counts == {"bytes_saved": array.nbytes, "initializers_merged": 1}
    assert list(model.graph.initializers) == ["a", "c"]


@pytest.mark.parametrize("kind", ["strings", "int4", "bfloat16", "empty"])
def test_types(kind: str) -> None:
    if kind == "strings":
        tensors = [
            numpy_helper.from_array(np.array(texts, object), name)
            for name, texts in (("a", ["ab", "c"]), ("b", ["ab", "c"]), ("c", ["a", "bc"]))
        ]
    elif kind == "empty":
        tensors = [helper.make_tensor(name, TensorProto.FLOAT, [0], []) for name in "ab"]
        tensors.append(helper.make_tensor("c", TensorProto.FLOAT, [0, 1], []))
    else:
        dtype = {"int4": TensorProto.INT4, "bfloat16": TensorProto.BFLOAT16}[kind]
        tensors = [
            helper.make_tensor(name, dtype, [3], numbers)
            for name, numbers in (("a", [1, 2, 3]), ("b", [1, 2, 3]), ("c", [1, 2, 4]))
        ]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in "abc"]
    outputs = [
        helper.make_tensor_value_info(f"{tensor.name}_out", tensor.data_type, list(tensor.dims))
        for tensor in tensors
    ]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    before = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    after, report = apply(Deduplicate(), before)
    assert list(after.graph.initializers) == ["a", "c"]
    assert report.counts["initializers_merged"] == 1


def test_result_does_not_depend_on_hash_order() -> None:
    before = parse(f"{HEADER}\n{CASES['expressions'][0]}")
    texts = set()
    for _ in range(3):
        model = lower(before)
        Deduplicate().run(model, Deduplicate.Options(), context=None)  # type: ignore[arg-type]  # it asks for nothing
        texts.add(emit(model).SerializeToString(deterministic=True))
    assert len(texts) == 1


def test_a_body_that_hides_what_it_could_share() -> None:
    """The state ``n`` of the loop is not the outer ``n``, although both are read in the body afterwards."""
    before = parse("""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x) => (float[2] y)
    <int64 trips = {3}>
    {
        n = Neg (x)
        y = Loop <body = b (int64 i, bool go, float[2] n) => (bool more, float[2] o) {
            more = Identity (go)
            m = Neg (x)
            o = Sub (n, m)
        }> (trips, , n)
    }
    """)
    after, _ = apply(Deduplicate(), before)
    assert op_types(after).count("Neg") == 1
    assert_same_function(before, after)
