"""The verifier: what it accepts, and each rule broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir
import pytest
from onnx import helper

from graphopt.errors import VerifyError
from graphopt.ir.lower import load, lower
from graphopt.ir.tensors import RawTensor, SparseTensor, from_array
from graphopt.ir.verify import CHECKS, problems, verify
from tests.corpora import asset_models
from tests.families import FAMILIES, info, model, weight
from tests.work import growth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from graphopt.ir.model import Model


def sample() -> Model:
    """Relu -> If -> Add with an initializer; the branches capture the outer 'm'."""
    branch = helper.make_graph([helper.make_node("Neg", ["m"], ["t"], name="neg")], "then", [], [info("t")])
    other = helper.make_graph([helper.make_node("Abs", ["m"], ["e"], name="abs")], "else", [], [info("e")])
    nodes = [
        helper.make_node("Relu", ["x"], ["m"], name="relu"),
        helper.make_node("If", ["flag"], ["b"], name="if", then_branch=branch, else_branch=other),
        helper.make_node("Add", ["b", "w"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x"), info("flag", 9, [])], [info("y")], initializer=[weight("w", 4)]
    )
    return lower(model(graph))


def node(of: Model, name: str) -> oir.Node:
    return next(item for item in of.nodes() if item.name == name)


def test_good_models() -> None:
    for build in FAMILIES.values():
        made = lower(build())
        assert problems(made) == []
        verify(made)
        verify(made.clone())


Edit = tuple[str, "Callable[[Model], object]", tuple[str, ...]]


def swap_order(m: Model) -> None:
    relu = node(m, "relu")
    m.graph.remove(relu)
    m.graph.append(relu)


def remove_used(m: Model) -> None:
    m.graph.remove(node(m, "relu"))


def drop_initializer(m: Model) -> None:
    m.graph.initializers.pop("w")


def name_twice(m: Model) -> None:
    node(m, "add").outputs[0].name = "m"


def name_clash_in_branch(m: Model) -> None:
    node(m, "neg").outputs[0].name = "m"


def capture_from_sibling(m: Model) -> None:
    node(m, "abs").replace_input_with(0, node(m, "neg").outputs[0])


def impostor(m: Model) -> None:
    node(m, "add").replace_input_with(0, oir.Value(name="m"))


def unnamed_use(m: Model) -> None:
    node(m, "relu").outputs[0].name = ""


def output_from_nowhere(m: Model) -> None:
    m.graph.outputs.append(oir.Value(name="ghost"))


def unnamed_input(m: Model) -> None:
    m.graph.inputs.append(oir.Value(name=""))


def two_inputs(m: Model) -> None:
    m.graph.inputs.append(oir.Value(name="x"))


def input_beside_initializer(m: Model) -> None:
    m.graph.inputs.append(oir.Value(name="w"))


def unknown_domain(m: Model) -> None:
    node(m, "relu").domain = "acme"


def no_imports(m: Model) -> None:
    m.opset_imports.clear()


def version_zero(m: Model) -> None:
    m.opset_imports[""] = 0


def ir_version_two(m: Model) -> None:
    m.store.ir_version = 2


def no_operator(m: Model) -> None:
    node(m, "neg").op_type = ""


def no_tensor(m: Model) -> None:
    m.graph.initializers["w"].const_value = None


def other_type(m: Model) -> None:
    m.graph.initializers["w"].const_value = from_array(np.zeros(4, np.int8))


def other_shape(m: Model) -> None:
    m.graph.initializers["w"].const_value = from_array(np.zeros(5, np.float32))


def stray_reference(m: Model) -> None:
    node(m, "relu").attributes.add(oir.RefAttr("alpha", "alpha", oir.AttributeType.FLOAT))


def untyped_attribute(m: Model) -> None:
    node(m, "relu").attributes.add(oir.Attr("a", oir.AttributeType.UNDEFINED, None))


def renamed_attribute(m: Model) -> None:
    node(m, "if").attributes["then_branch"].name = "other"


def sparse_as_dense(m: Model) -> None:
    sparse = SparseTensor(from_array(np.ones(1, np.float32)), from_array(np.zeros(1, np.int64)), (2,))
    node(m, "relu").attributes.add(oir.Attr("a", oir.AttributeType.TENSOR, sparse))


def negative_dim(m: Model) -> None:
    node(m, "neg").outputs[0].shape = oir.Shape([-1, 4])


EDITS: list[Edit] = [
    ("names_resolve", swap_order, ("'m'", "'relu'", "does not come before")),
    ("names_resolve", remove_used, ("'m'", "'relu'", "in no graph any more")),
    ("names_resolve", drop_initializer, ("node 'add'", "nothing produces its input 'w'")),
    ("names_resolve", name_twice, ("node 'add'", "'m'", "another value")),
    ("names_resolve", name_clash_in_branch, ("node 'neg'", "'m'", "another value")),
    ("names_resolve", capture_from_sibling, ("node 'abs'", "'t'", "does not come before")),
    ("names_resolve", impostor, ("node 'add'", "'m'", "another value")),
    ("names_resolve", unnamed_use, ("node 'relu'", "output 0", "no name")),
    ("names_resolve", output_from_nowhere, ("main graph", "'ghost'")),
    ("names_resolve", unnamed_input, ("main graph", "input without a name")),
    ("names_resolve", two_inputs, ("main graph", "'x'")),
    ("names_resolve", input_beside_initializer, ("main graph", "'w'")),
    ("operators_are_known", unknown_domain, ("'relu'", "'acme'")),
    ("operators_are_known", no_imports, ("'relu'", "'ai.onnx'")),
    ("operators_are_known", no_operator, ("'neg'", "op_type")),
    ("versions_are_declared", version_zero, ("version 0", "'ai.onnx'")),
    ("versions_are_declared", ir_version_two, ("IR version is 2",)),
    ("initializers_hold_tensors", no_tensor, ("'w'", "no tensor")),
    ("initializers_hold_tensors", other_type, ("'w'", "FLOAT", "INT8")),
    ("initializers_hold_tensors", other_shape, ("'w'", "[4]", "[5]")),
    ("attributes_are_complete", stray_reference, ("'relu'", "'alpha'")),
    ("attributes_are_complete", untyped_attribute, ("'relu'", "'a'")),
    ("attributes_are_complete", renamed_attribute, ("'if'", "'other'")),
    ("attributes_are_complete", sparse_as_dense, ("'relu'", "'a'", "sparse")),
    ("shapes_are_possible", negative_dim, ("'t'", "[-1,4]")),
]


@pytest.mark.parametrize(("check", "edit", "words"), EDITS, ids=[edit[1].__name__ for edit in EDITS])
def test_each_broken_rule_is_named(
    check: str, edit: Callable[[Model], object], words: tuple[str, ...]
) -> None:
    broken = sample()
    edit(broken)
    found = [problem for problem in problems(broken) if problem.check == check]
    assert found
    assert all(word in str(found[0]) for word in words), str(found[0])
    with pytest.raises(VerifyError, match=check):
        verify(broken)


def functions_model() -> Model:
    return lower(FAMILIES["functions"]())


def test_functions() -> None:
    def broken(edit: Callable[[Model], object]) -> list[str]:
        made = functions_model()
        edit(made)
        return [problem.check for problem in problems(made)]

    inner, outer = ("acme.ops", "ScaleLeak", "v2"), ("acme.ops", "Twice", "")

    def recur(m: Model) -> None:
        first = next(iter(m.functions[inner]))
        first.domain, first.op_type = "acme.ops", "Twice"
        m.functions[inner].opset_imports["acme.ops"] = 1

    def add_initializer(m: Model) -> None:
        m.functions[outer].graph.initializers.add(oir.Value(name="i", const_value=from_array(np.ones(1))))

    def forget_attribute(m: Model) -> None:
        del m.functions[inner].attributes["alpha"]

    def rename(m: Model) -> None:
        m.functions[inner].name = "Other"

    def age(m: Model) -> None:
        m.store.ir_version = 7

    assert broken(lambda m: m) == []
    assert "functions_do_not_recur" in broken(recur)
    assert "initializers_hold_tensors" in broken(add_initializer)
    assert "attributes_are_complete" in broken(forget_attribute)
    assert "versions_are_declared" in broken(rename)
    assert "versions_are_declared" in broken(age)


def test_every_check_is_broken_by_some_test() -> None:
    tested = {edit[0] for edit in EDITS} | {"functions_do_not_recur"}
    assert tested == {check.__name__ for check in CHECKS}


def test_the_message_lists_a_few() -> None:
    broken = sample()
    for item in broken.nodes():
        item.domain = "acme"
    with pytest.raises(VerifyError) as caught:
        verify(broken)
    assert str(caught.value).count("[operators_are_known]") == 5
    for item in broken.graph:
        item.op_type = ""
    with pytest.raises(VerifyError, match="and more"):
        verify(broken)


def test_weights_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sample()

    def explode(*_: object) -> None:
        raise AssertionError("a weight was read")

    for name in ("numpy", "tobytes", "__array__"):
        monkeypatch.setattr(RawTensor, name, explode)
    verify(made)


def test_assets(assets: Path) -> None:
    for path in asset_models(assets):
        verify(load(path))


def chain(count: int) -> Model:
    nodes = [helper.make_node("Relu", [f"v{k}"], [f"v{k + 1}"], name=f"n{k}") for k in range(count)]
    infos = [info(f"v{k}") for k in range(1, count)]
    graph = helper.make_graph(nodes, "chain", [info("v0")], [info(f"v{count}")], value_info=infos)
    return lower(model(graph))


def checking(count: int) -> Callable[[], object]:
    made = chain(count)
    return lambda: verify(made)


def test_the_work_is_linear_in_the_nodes() -> None:
    assert growth(checking, 200, 2000) < 1.2
