"""The networkx views say what the protobuf says."""

from __future__ import annotations

import networkx as nx
import onnx
from onnx import TensorProto, helper

from graphopt.ir.lower import lower
from graphopt.ir.views import call_graph, longest_chain, operator_graph


def _info(name: str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [2])


def _model(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [_info("x"), _info("c", TensorProto.BOOL)], [_info("y")])
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("f", 1)],
        ir_version=9,
        functions=functions or [],
    )


def test_a_diamond_is_a_diamond() -> None:
    model = lower(
        _model(
            [
                helper.make_node("Relu", ["x"], ["r"], name="top"),
                helper.make_node("Neg", ["r"], ["a"], name="left"),
                helper.make_node("Abs", ["r"], ["b"], name="right"),
                helper.make_node("Add", ["a", "b"], ["y"], name="join"),
            ]
        )
    )
    view = operator_graph(model)
    assert set(view.edges) == {(0, 1), (0, 2), (1, 3), (2, 3)}
    assert view.edges[0, 1]["values"] == ["r"]
    assert [view.nodes[n]["op_type"] for n in view] == ["Relu", "Neg", "Abs", "Add"]
    assert len(longest_chain(view)) == 3


def test_what_a_body_captures_flows_into_its_node() -> None:
    then = helper.make_graph([helper.make_node("Neg", ["r"], ["t"])], "then", [], [_info("t")])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "else", [], [_info("e")])
    model = lower(
        _model(
            [
                helper.make_node("Relu", ["x"], ["r"]),
                helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
            ]
        )
    )
    assert set(operator_graph(model).edges) == {(0, 1)}


def test_the_call_graph_follows_calls_between_functions() -> None:
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    inner = helper.make_function("f", "Inner", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opset)
    outer = helper.make_function(
        "f", "Outer", ["a"], ["b"], [helper.make_node("Inner", ["a"], ["b"], domain="f")], opset
    )
    view = call_graph(lower(_model([helper.make_node("Outer", ["x"], ["y"], domain="f")], [inner, outer])))
    assert list(nx.topological_sort(view)) == ["main", ("f", "Outer", ""), ("f", "Inner", "")]
