from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from graphopt.errors import PassFailed
from graphopt.ir import Model, rewrite
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.ir.verify import verify
from tests.passes.harness import assert_same_function, parse
from tests.work import growth

if TYPE_CHECKING:
    import numpy.typing as npt

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2] x) => (float[2] y)
{
    a = Relu(x)
    b = Identity(a)
    y = Neg(b)
}
"""

CAPTURE = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2] x, bool c) => (float[2] y)
{
    a = Relu(x)
    b = Identity(a)
    y = If (c) <
        then_branch = g1 () => (float[2] t) { t = Neg(b) },
        else_branch = g2 () => (float[2] e) {
            e = If (c) <
                then_branch = g3 () => (float[2] p) { p = Abs(b) },
                else_branch = g4 () => (float[2] q) { q = Identity(b) }
            >
        }
    >
}
"""


def f32(values: Any) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def values(model: Model) -> dict[str, oir.Value]:
    found = {}
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            found[value.name or ""] = value
        for node in graph:
            found.update({value.name or "": value for value in node.outputs})
    return found


def node_of(model: Model, op_type: str) -> oir.Node:
    return next(node for node in model.nodes() if node.op_type == op_type)


def outputs(model: Model) -> list[str | None]:
    return [value.name for value in model.graph.outputs]


def finish(proto: onnx.ModelProto, model: Model) -> None:
    verify(model)
    onnx.checker.check_model(emit(model))
    assert_same_function(proto, model)


def test_a_value_in_the_middle_is_replaced_and_its_node_removed() -> None:
    proto = parse(CHAIN)
    model = lower(proto)
    found = values(model)
    assert rewrite.replace_value(model, found["b"], found["a"])
    rewrite.remove_node(node_of(model, "Identity"))
    assert [node.op_type for node in model.nodes()] == ["Relu", "Neg"]
    finish(proto, model)


def test_captured_values_are_replaced_at_every_depth() -> None:
    proto = parse(CAPTURE)
    model = lower(proto)
    found = values(model)
    assert {node.op_type for node in rewrite.uses_outside_graph(found["b"])} == {"Neg", "Abs", "Identity"}
    assert rewrite.sole_user(found["b"]) is None
    assert rewrite.replace_value(model, found["b"], found["a"])
    outer = next(node for node in model.graph if node.op_type == "Identity")
    rewrite.remove_node(outer)
    assert rewrite.is_unused(outer.outputs[0])
    finish(proto, model)


def test_a_removed_node_lets_go_of_what_its_bodies_captured() -> None:
    model = lower(parse(CAPTURE))
    found = values(model)
    chooser = next(node for node in model.graph if node.op_type == "If")
    assert set(rewrite.captured_values(chooser)) == {found["b"], found["c"]}
    assert rewrite.replace_value(model, found["y"], found["x"])
    rewrite.remove_node(chooser)
    assert rewrite.is_unused(found["b"])
    verify(model)


def test_an_output_keeps_its_name_when_another_node_produces_it() -> None:
    proto = parse(CHAIN)
    proto.graph.output[0].doc_string = "the result"
    model = lower(proto)
    y = values(model)["y"]
    node = rewrite.make_node(model, "Mul", [values(model)["b"], values(model)["b"]])
    model.graph.append(node)
    assert rewrite.replace_value(model, y, node.outputs[0])
    rewrite.remove_node(node_of(model, "Neg"))
    assert outputs(model) == ["y"]
    emitted = emit(model)
    assert emitted.graph.output[0] == proto.graph.output[0]
    verify(model)


@pytest.mark.parametrize("replacement", ["x", "w", "k"])
def test_an_output_becomes_an_identity_of_what_cannot_be_renamed(replacement: str) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2] x, float[2] k = {3, 4}) => (float[2] y, float[2] z)
    <float[2] w = {1, 2}>
    {
        y = Neg(x)
        z = Abs(y)
    }
    """
    model = lower(parse(text))
    found = values(model)
    assert rewrite.replace_value(model, found["y"], found[replacement])
    rewrite.remove_node(node_of(model, "Neg"))
    assert outputs(model) == ["y", "z"]
    assert node_of(model, "Identity").inputs[0] is found[replacement]
    assert node_of(model, "Abs").inputs[0] is found[replacement]
    verify(model)
    onnx.checker.check_model(emit(model))


def test_an_identity_that_names_an_output_stays() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2] x) => (float[2] y, float[2] z)
    {
        y = Identity(x)
        z = Neg(y)
    }
    """
    proto = parse(text)
    model = lower(proto)
    found = values(model)
    assert not rewrite.replace_value(model, found["y"], found["x"])
    assert node_of(model, "Neg").inputs[0] is found["x"]
    assert len(model.graph) == 2
    finish(proto, model)


def test_an_input_that_is_an_output_cannot_be_freed() -> None:
    proto = parse("""
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2] x) => (float[2] x, float[2] z)
    {
        a = Relu(x)
        z = Neg(x)
    }
    """)
    model = lower(proto)
    found = values(model)
    assert not rewrite.replace_value(model, found["x"], found["a"])
    assert outputs(model) == ["x", "z"]


def test_the_same_value_listed_twice_as_output() -> None:
    model = lower(parse(CHAIN))
    found = values(model)
    model.graph.outputs.append(found["y"])
    node = rewrite.make_node(model, "Abs", [found["b"]])
    model.graph.append(node)
    assert rewrite.replace_value(model, found["y"], node.outputs[0])
    assert outputs(model) == ["y", "y"]
    assert all(value is node.outputs[0] for value in model.graph.outputs)
    assert rewrite.is_unused(found["y"])


def test_one_output_cannot_take_the_name_of_another() -> None:
    proto = parse("""
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2] x) => (float[2] y, float[2] z)
    {
        y = Neg(x)
        z = Neg(x)
    }
    """)
    model = lower(proto)
    found = values(model)
    assert rewrite.replace_value(model, found["z"], found["y"])
    rewrite.remove_node([node for node in model.graph if node.op_type == "Neg"][1])
    assert outputs(model) == ["y", "z"]
    finish(proto, model)


def test_a_used_node_is_not_removed() -> None:
    model = lower(parse(CHAIN))
    with pytest.raises(PassFailed, match="still read by Identity"):
        rewrite.remove_node(node_of(model, "Relu"))
    with pytest.raises(PassFailed, match="graph output"):
        rewrite.remove_node(node_of(model, "Neg"))
    assert len(model.graph) == 3


def test_nodes_that_read_each_other_go_together() -> None:
    model = lower(parse(CAPTURE))
    found = values(model)
    node = rewrite.make_node(model, "Abs", [found["x"]])
    model.graph.append(node)
    rewrite.replace_value(model, found["y"], node.outputs[0])
    rewrite.remove_nodes([n for n in model.graph if n is not node])
    assert [n.op_type for n in model.nodes()] == ["Abs"]
    assert [usage.node for usage in found["x"].uses()] == [node]
    verify(model)


def test_replacing_a_node_keeps_names_and_metadata() -> None:
    proto = parse(CHAIN)
    model = lower(proto)
    old = node_of(model, "Neg")
    old.metadata_props["origin"] = "layer 3"
    new = rewrite.make_node(
        model, "Mul", [old.inputs[0], rewrite.add_initializer(model, model.graph, "m", f32([-1, -1]))],
        replaces=[old],
    )  # fmt: skip
    rewrite.replace_node(model, old, new)
    assert outputs(model) == ["y"]
    assert new.metadata_props == {"origin": "layer 3"}
    finish(proto, model)


def test_the_first_of_several_replaced_nodes_wins() -> None:
    model = lower(parse(CHAIN))
    first, second = node_of(model, "Relu"), node_of(model, "Neg")
    first.metadata_props.update(a="1", b="1")
    second.metadata_props.update(b="2", c="2")
    node = rewrite.make_node(model, "Abs", [None], replaces=[first, second])
    assert node.metadata_props == {"a": "1", "b": "1", "c": "2"}


def test_a_function_body_gets_a_constant_node() -> None:
    proto = parse("""
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    agraph (float[2] x) => (float[2] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["" : 17]>
    twice (a) => (b) { b = Add(a, a) }
    """)
    model = lower(proto)
    body = next(iter(model.functions.values())).graph
    value = rewrite.add_initializer(model, body, "two", f32([2, 2]))
    add = body[1]
    new = rewrite.make_node(model, "Mul", [add.inputs[0], value], replaces=[add])
    rewrite.replace_node(model, add, new)
    assert [node.op_type for node in body] == ["Constant", "Mul"]
    np.testing.assert_array_equal(rewrite.constant_array(value), [2, 2])
    finish(proto, model)


def test_constants_and_their_limits() -> None:
    model = lower(
        parse("""
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2] x, float[2] k = {3, 4}) => (float[2] y)
    <float[2] w = {1, 2}>
    {
        a = Add(x, k)
        y = Mul(a, w)
    }
    """)
    )
    found = values(model)
    assert rewrite.constant_array(found["k"]) is None
    assert rewrite.is_overridable(found["k"])
    assert not rewrite.is_overridable(found["w"])
    assert rewrite.constant_array(found["w"], limit_bytes=4) is None
    array: Any = rewrite.constant_array(found["w"])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 7
    assert rewrite.constant_array(None) is None


def test_a_value_is_not_replaced_by_itself() -> None:
    model = lower(parse(CHAIN))
    value = values(model)["a"]
    with pytest.raises(PassFailed, match="by itself"):
        rewrite.replace_value(model, value, value)


def removal(count: int) -> Callable[[], object]:
    value = oir.Value(name="x", type=oir.TensorType(oir.DataType.FLOAT), shape=oir.Shape([1]))
    graph = oir.Graph([value], [], nodes=[], opset_imports={"": 17})
    nodes = []
    for _ in range(count):
        node = oir.Node("", "Relu", [value])
        graph.append(node)
        nodes.append(node)
        value = node.outputs[0]
    return lambda: rewrite.remove_nodes(nodes)


def test_removing_many_nodes_is_linear() -> None:
    assert growth(removal, 100, 1000) < 1.2


def naming(count: int) -> Callable[[], object]:
    model = lower(parse(CHAIN))
    return lambda: [model.fresh_name("same") for _ in range(count)]


def test_naming_many_nodes_alike_is_linear() -> None:
    model = lower(parse(CHAIN))
    assert len({model.fresh_name("same") for _ in range(1000)}) == 1000
    assert growth(naming, 100, 1000) < 1.2
