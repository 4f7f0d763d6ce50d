from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.ir import semantics
from graphopt.ir.lower import lower
from graphopt.ir.semantics import WeightRole
from tests.passes.harness import parse

DROPOUT = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2] x, bool m) => (float[2] y)
<float r = {0.5}, bool yes = {1}, bool no = {0}>
{
    y = Dropout(x, r, %s)
}
"""

NESTED = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
agraph (float[2] x, bool c) => (float[2] y)
{
    y = If (c) <
        then_branch = g1 () => (float[2] t) { t = Neg(x) },
        else_branch = g2 () => (float[2] e) { e = %s(x) }
    >
}
<domain: "local", opset_import: ["" : 17]>
pure (a) => (b) { b = Neg(a) }
<domain: "local", opset_import: ["" : 17]>
noisy (a) => (b) { b = RandomUniformLike(a) }
"""


def node(op_type: str, domain: str = "", inputs: int = 2) -> oir.Node:
    return oir.Node(domain, op_type, [oir.Value(name=f"i{k}") for k in range(inputs)])


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniformLike", "Bernoulli", "Multinomial"])
def test_random_operators(op_type: str) -> None:
    assert not semantics.is_deterministic(node(op_type))
    assert semantics.is_pure(node(op_type))


def test_both_names_of_the_default_domain() -> None:
    for domain in ("", "ai.onnx"):
        assert semantics.is_deterministic(node("Add", domain))
        assert semantics.is_commutative(node("Add", domain))
        assert semantics.weight_roles(node("Conv", domain))[1] is WeightRole.WEIGHT


def test_unknown_operators_may_do_anything() -> None:
    for stranger in (node("Thing", "my.domain"), node("NoSuchOperator")):
        assert not semantics.is_deterministic(stranger)
        assert not semantics.is_pure(stranger)
        assert not semantics.is_standard(stranger)
    assert semantics.is_pure(node("FusedConv", "com.microsoft"))


@pytest.mark.parametrize(("mode", "expected"), [("", True), ("no", True), ("yes", False), ("m", False)])
def test_dropout_is_judged_by_its_training_mode(mode: str, expected: bool) -> None:
    model = lower(parse(DROPOUT % mode))
    assert semantics.is_deterministic(model.graph[0]) is expected


@pytest.mark.parametrize(
    ("inner", "expected"),
    [("Abs", True), ("RandomNormalLike", False), ("local.pure", True), ("local.noisy", False)],
)
def test_bodies_and_functions_are_judged_by_what_is_in_them(inner: str, expected: bool) -> None:
    model = lower(parse(NESTED % inner))
    chooser = model.graph[0]
    assert semantics.is_deterministic(chooser, model.functions) is expected
    assert semantics.is_pure(chooser, model.functions)
    assert semantics.has_bodies(chooser)


def test_a_function_is_unknown_without_its_body() -> None:
    model = lower(parse(NESTED % "local.pure"))
    assert not semantics.is_deterministic(model.graph[0])


def test_commutative_with_at_most_two_inputs() -> None:
    assert semantics.is_commutative(node("Max"))
    assert not semantics.is_commutative(node("Max", inputs=3))
    assert not semantics.is_commutative(node("Sub"))


def test_the_table_names_only_operators_and_inputs_that_exist() -> None:
    for (domain, op_type), roles in semantics._WEIGHTS.items():
        if domain:
            continue
        schema = onnx.defs.get_schema(op_type)
        assert max(roles) < schema.max_input, op_type
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    for table in (
        semantics._COMMUTATIVE,
        semantics._DATA_MOVEMENT,
        semantics._RANDOM,
        semantics._CONTROL_FLOW,
    ):
        assert table <= known


def test_every_commutative_operator_is() -> None:
    rng = np.random.default_rng(0)
    for op_type in sorted(semantics._COMMUTATIVE):
        kind = {"And": bool, "Or": bool, "Xor": bool}.get(
            op_type, np.int64 if "Bitwise" in op_type else np.float32
        )
        a, b = (rng.integers(0, 2, 8).astype(kind) for _ in range(2))
        dtype = onnx.helper.np_dtype_to_tensor_dtype(a.dtype)
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node(op_type, ["a", "b"], ["y"]),
                onnx.helper.make_node(op_type, ["b", "a"], ["z"]),
            ],
            "g",
            [onnx.helper.make_tensor_value_info(name, dtype, [8]) for name in "ab"],
            [onnx.helper.make_empty_tensor_value_info(name) for name in "yz"],
        )
        model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)])
        y, z = ReferenceEvaluator(model).run(None, {"a": a, "b": b})
        np.testing.assert_array_equal(y, z)
