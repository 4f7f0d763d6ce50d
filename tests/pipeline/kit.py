"""A small model and passes of every temper, for tests of the manager and what stands around it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.helper as oh
from onnx import numpy_helper
from pydantic import Field

from graphopt.api import Context, Gate, GateResult, Pass, PassInfo, PassOptions, Report
from graphopt.errors import DataError, GateFailed, OptionError
from graphopt.ir.lower import lower
from graphopt.ir.rewrite import remove_node
from graphopt.pipeline.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir import Model
    from graphopt.pipeline.plan import Plan

OPSET = 17
WEIGHT = np.random.default_rng(7).standard_normal((64, 64)).astype(np.float32)


def tiny_proto() -> onnx.ModelProto:
    """Return x -> MatMul(w) -> Relu -> Identity -> y, and a node that nobody uses."""
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 64]) for name in "xy")
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        oh.make_node("Relu", ["a"], ["b"], name="relu"),
        oh.make_node("Neg", ["a"], ["unused"], name="dead"),
        oh.make_node("Identity", ["b"], ["y"], name="copy"),
    ]
    graph = oh.make_graph(nodes, "tiny", [x], [y], [numpy_helper.from_array(WEIGHT, "w")])
    return oh.make_model(graph, ir_version=9, opset_imports=[oh.make_opsetid("", OPSET)], producer_name="kit")


def tiny() -> Model:
    return lower(tiny_proto())


def op_types(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes()]


def node_called(model: Model, name: str) -> Any:
    return next(node for node in model.nodes() if node.name == name)


class DropDead(Pass):
    """An honest pass: removes the unused node, once."""

    info = PassInfo(name="drop-dead", summary="Remove the unused node.")

    def run(self, model: Model, options: PassOptions, context: Context) -> Report:
        for node in model.nodes():
            if node.name == "dead":
                remove_node(node)
                return Report(changed=True, counts={"removed": 1})
        return Report(changed=False, skipped=(("graph", "no dead node"),))


class Rename(Pass):
    """An honest pass with options: renames the graph."""

    info = PassInfo(name="rename", summary="Rename the graph.")

    class Options(PassOptions):
        to: str = Field(default="renamed", description="the new name")
        also: list[int] = Field(default_factory=list, description="ignored numbers")

    def run(self, model: Model, options: Options, context: Context) -> Report:
        if model.graph.name == options.to:
            return Report(changed=False)
        model.graph.name = options.to
        return Report(changed=True, counts={"renamed": 1}, extra={"to": options.to})


class Crash(Pass):
    """Changes the model, then fails as told."""

    info = PassInfo(name="crash", summary="Fail.")

    class Options(PassOptions):
        how: str = Field(default="value", description="what to raise")

    def run(self, model: Model, options: Options, context: Context) -> Report:
        model.graph.name = "half done"
        match options.how:
            case "value":
                raise ValueError("no  such\nthing")
            case "option":
                raise OptionError("option 'how' does not fit this model", where="node 'relu'")
            case "data":
                raise DataError("the data does not fit")
            case "short":
                raise GateFailed("macs_ratio=0.1 can be reached only in part")
            case "exit":
                raise SystemExit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "memory":
                raise MemoryError
            case "native":
                os.abort()
        raise AssertionError(options.how)


class SaysUnchanged(Pass):
    """Changes the model and denies it."""

    info = PassInfo(name="says-unchanged", summary="Lie.")

    def run(self, model: Model, options: PassOptions, context: Context) -> Report:
        model.graph.name = "touched"
        return Report(changed=False)


class SaysChanged(Pass):
    """Leaves the model alone and claims a change."""

    info = PassInfo(name="says-changed", summary="Lie.")

    def run(self, model: Model, options: PassOptions, context: Context) -> Report:
        return Report(changed=True)


class BreakSsa(Pass):
    """Leaves a model in which two nodes define one value."""

    info = PassInfo(name="break-ssa", summary="Break the model.")

    def run(self, model: Model, options: PassOptions, context: Context) -> Report:
        node_called(model, "relu").outputs[0].name = "a"
        return Report(changed=True)


class Returns(Pass):
    """Returns what the test puts into ``answer``."""

    info = PassInfo(name="returns", summary="Return something.")
    answer: Any = None

    def run(self, model: Model, options: PassOptions, context: Context) -> Report:
        model.graph.name = "changed"
        return self.answer  # type: ignore[no-any-return]  # what this pass is for


class Flip(Pass):
    """An honest pass that changes what the model computes: Relu becomes Neg."""

    info = PassInfo(name="flip", summary="Change the function.")

    def run(self, model: Model, options: PassOptions, context: Context) -> Report:
        node_called(model, "relu").op_type = "Neg"
        return Report(changed=True)


class Count(Pass):
    """Asks for the analysis ``nodes`` and reports it; changes the graph's name if told to."""

    info = PassInfo(name="count", summary="Ask for an analysis.", preserves=frozenset({"nodes"}))

    class Options(PassOptions):
        name: str = Field(default="", description="the new name of the graph, or empty")

    def run(self, model: Model, options: Options, context: Context) -> Report:
        found = context.analysis("nodes")
        if options.name:
            model.graph.name = options.name
        return Report(changed=bool(options.name), extra={"nodes": found})


class NodeLimit(Gate):
    """A gate: at least so many nodes must stay."""

    name = "node-limit"
    summary = "refuse a step that leaves too few nodes"

    class Options(PassOptions):
        at_least: int = Field(default=4, description="nodes")

    options: Options

    def check(self, original: Model, candidate: Model, context: Context) -> tuple[GateResult, ...]:
        count, least = len(op_types(candidate)), self.options.at_least
        return (GateResult("nodes", float(count), float(least), passed=count >= least),)


PASSES: list[type[Pass]] = [
    DropDead,
    Rename,
    Crash,
    SaysUnchanged,
    SaysChanged,
    BreakSsa,
    Returns,
    Flip,
    Count,
]


def registry(**extra: type[Pass]) -> Registry:
    """Return a registry of the built-in passes and those of this file."""
    result = load_plugins()
    for each in [*PASSES, *extra.values()]:
        result.passes.add(each.info.name, each, "'kit' (tests)")
    result.gates.add(NodeLimit.name, NodeLimit, "'kit' (tests)")
    result.analyses.add("nodes", count_nodes, "'kit' (tests)")
    return result


def count_nodes(model: Model, dims: Mapping[str, int]) -> int:
    return len(op_types(model))


def plan_of(text: str, of: Registry, opset: int | None = OPSET) -> Plan:
    from graphopt.pipeline.plan import make_plan
    from graphopt.pipeline.text import parse

    return make_plan(parse(text), of, opset)


LOCAL_PLUGIN = """\
from graphopt.hookspecs import hookimpl
from tests.pipeline import kit


@hookimpl
def graphopt_register_passes():
    return {each.info.name: each for each in kit.PASSES}


@hookimpl
def graphopt_register_gates():
    return {kit.NodeLimit.name: kit.NodeLimit}


@hookimpl
def graphopt_register_analyses():
    return {"nodes": kit.count_nodes}
"""
