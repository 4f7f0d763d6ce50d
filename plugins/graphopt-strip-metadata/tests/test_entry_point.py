"""The plugin as a stranger meets it: installed, found by its entry point, run in a pipeline."""

from __future__ import annotations

from importlib.metadata import distribution, entry_points

import onnx
import onnx.helper as oh
import pytest

from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.pipeline.manager import Manager
from graphopt.pipeline.plan import make_gates, make_plan
from graphopt.pipeline.plugins import load_plugins
from graphopt.pipeline.text import parse
from graphopt.targets import load_target

NAME = "strip-metadata"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHOPT_DISABLE_PLUGINS", raising=False)
    monkeypatch.setenv("GRAPHOPT_STRICT_PLUGINS", "1")


def test_the_entry_point_is_installed() -> None:
    (point,) = entry_points(group="graphopt", name=NAME)
    assert point.value == "graphopt_strip_metadata"


def test_it_is_found_listed_and_resolved() -> None:
    registry = load_plugins()
    info = next(plugin for plugin in registry.plugins if plugin.name == NAME)
    assert info.status == "active"
    assert info.origin == "graphopt-strip-metadata"
    assert info.version == distribution("graphopt-strip-metadata").version
    assert info.registers == {"passes": (NAME,), "gates": ("no-source-paths",)}
    assert registry.passes[NAME].info.name == NAME
    assert registry.gates["no-source-paths"].summary


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_DISABLE_PLUGINS", NAME)
    assert NAME not in load_plugins().passes


def test_it_runs_in_a_pipeline_under_its_gate() -> None:
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    nodes = [oh.make_node("Relu", ["x"], ["y"], name="relu", doc_string="/home/me/net.py(3): forward")]
    graph = oh.make_graph(nodes, "g", [x], [y], doc_string="keep out")
    model = lower(oh.make_model(graph, ir_version=9, opset_imports=[oh.make_opsetid("", 17)]))
    registry = load_plugins()
    manager = Manager(registry, target=load_target("ort-cpu"))
    gates = make_gates(parse("no-source-paths"), registry)
    result = manager.run(model, make_plan(parse("strip-metadata{only_traces=true}"), registry), gates=gates)
    assert result.error is None
    assert result.model is not None
    proto = emit(result.model)
    assert proto.graph.node[0].doc_string == ""
    assert proto.graph.doc_string == "keep out"
    assert [gate.passed for gate in result.steps[0].gates] == [True]
