"""Random small graphs: every clean-up pass keeps their outputs to the bit and finds nothing left to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.deduplicate import Deduplicate
from graphopt.passes.eliminate_dead import EliminateDead
from tests.examples import examples
from tests.passes.harness import apply, assert_same_function, session_for

if TYPE_CHECKING:
    from graphopt.api import Pass
    from graphopt.ir import Model

PASSES: tuple[type[Pass], ...] = (Canonicalize, EliminateDead, Deduplicate)
SHAPE = [2, 3]
# Exact in every order, so that nothing but a wrong rewrite can change a bit.
NUMBERS = [0.0, 1.0, -1.0, 2.0, 0.5]


@dataclass
class Builder:
    """Grows one graph: nodes, initializers, and the float values of shape [2, 3] that a node may read."""

    draw: st.DrawFn
    prefix: str
    visible: list[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def fresh(self) -> str:
        return f"{self.prefix}{len(self.nodes)}_{len(self.initializers)}"

    def source(self) -> str:
        return self.draw(st.sampled_from(self.visible))

    def node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{self.fresh()}_{op_type.lower()}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def keep(self, value: str) -> None:
        self.visible.append(value)
        self.made.append(value)

    def constant(self, array: np.ndarray) -> str:
        name = f"{self.fresh()}_c"
        if self.draw(st.booleans()):
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            self.nodes.append(
                helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, f"{name}_t"))
            )
        return name

    def step(self, depth: int) -> None:
        kind = self.draw(st.sampled_from(STEPS if depth else STEPS[:-1]))
        getattr(self, f"add_{kind}")(depth)

    def add_unary(self, _depth: int) -> None:
        op_type = self.draw(st.sampled_from(["Identity", "Neg", "Relu", "Abs", "Floor", "Sign"]))
        self.keep(self.node(op_type, [self.source()]))

    def add_binary(self, _depth: int) -> None:
        op_type = self.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"]))
        self.keep(self.node(op_type, [self.source(), self.source()]))

    def add_neutral(self, _depth: int) -> None:
        op_type = self.draw(st.sampled_from(["Add", "Mul", "Sub", "Div"]))
        shape = self.draw(st.sampled_from([(), (1,), (3,), (2, 3), (1, 1)]))
        number = self.draw(st.sampled_from(NUMBERS[1:] if op_type == "Div" else NUMBERS))
        inputs = [self.source(), self.constant(np.full(shape, number, np.float32))]
        if op_type != "Div" and self.draw(st.booleans()):
            inputs.reverse()
        self.keep(self.node(op_type, inputs))

    def add_casts(self, _depth: int) -> None:
        types = [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16]
        value = self.source()
        for _ in range(self.draw(st.integers(1, 2))):
            value = self.node("Cast", [value], to=self.draw(st.sampled_from(types)))
        self.keep(self.node("Cast", [value], to=TensorProto.FLOAT))

    def add_transposes(self, _depth: int) -> None:
        value = self.node("Transpose", [self.source()], perm=[1, 0])
        if self.draw(st.booleans()):
            value = self.node("Identity", [value])
        self.keep(self.node("Transpose", [value], perm=[1, 0]))

    def add_reshapes(self, _depth: int) -> None:
        middle = self.draw(st.sampled_from([[6], [-1], [0, 3], [3, 2], [1, 2, 3], [0, 1, -1]]))
        value = self.node("Reshape", [self.source(), self.constant(np.array(middle, np.int64))])
        last = self.draw(st.sampled_from([[2, 3], [2, -1], [-1, 3]]))
        self.keep(self.node("Reshape", [value, self.constant(np.array(last, np.int64))]))

    def add_axes(self, _depth: int) -> None:
        axis = self.draw(st.integers(0, 2))
        value = self.node("Unsqueeze", [self.source(), self.constant(np.array([axis], np.int64))])
        self.keep(self.node("Squeeze", [value, self.constant(np.array([axis], np.int64))]))

    def add_pick(self, _depth: int) -> None:
        part = self.draw(st.booleans())
        ends = self.constant(np.array([2 if part else 2**31 - 1], np.int64))
        starts, axes = self.constant(np.array([0], np.int64)), self.constant(np.array([1], np.int64))
        value = self.node("Slice", [self.source(), starts, ends, axes])
        pads = self.constant(np.array([0, 0, 0, 1 if part else 0], np.int64))
        self.keep(self.node("Pad", [value, pads]))

    def add_concat(self, _depth: int) -> None:
        count = self.draw(st.integers(1, 2))
        value = self.node("Concat", [self.source() for _ in range(count)], axis=0)
        starts, ends = self.constant(np.array([0], np.int64)), self.constant(np.array([2], np.int64))
        self.keep(self.node("Slice", [value, starts, ends]))

    def add_branch(self, depth: int) -> None:
        output = f"{self.fresh()}_if"
        extra = self.draw(st.booleans())
        branches = {}
        for name in ("then", "else"):
            inner = Builder(self.draw, f"{output}_{name}_", list(self.visible))
            for _ in range(self.draw(st.integers(1, 3))):
                inner.step(depth - 1)
            results = [self.draw(st.sampled_from(inner.made)) for _ in range(2 if extra else 1)]
            # An output of a graph appears once, and is made in it.
            outputs = [inner.node("Identity", [result]) for result in results]
            branches[f"{name}_branch"] = helper.make_graph(
                inner.nodes,
                f"{output}_{name}",
                [],
                [helper.make_tensor_value_info(value, TensorProto.FLOAT, SHAPE) for value in outputs],
                inner.initializers,
            )
        outputs = [output, f"{output}_2"] if extra else [output]
        self.nodes.append(helper.make_node("If", ["condition"], outputs, name=f"{output}_node", **branches))
        for value in outputs:
            self.keep(value)


STEPS = (
    "unary",
    "binary",
    "neutral",
    "casts",
    "transposes",
    "reshapes",
    "axes",
    "pick",
    "concat",
    "branch",
)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    builder = Builder(draw, "v", ["x", "z", "default"])
    for _ in range(draw(st.integers(1, 8))):
        builder.step(depth=2)
    count = draw(st.integers(1, min(3, len(builder.made))))
    outputs = draw(st.permutations(builder.made))[:count]
    graph = helper.make_graph(
        builder.nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, SHAPE),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            # An initializer that the caller may override: no pass may take it for a constant.
            helper.make_tensor_value_info("default", TensorProto.FLOAT, SHAPE),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in outputs],
        [*builder.initializers, numpy_helper.from_array(np.zeros(SHAPE, np.float32), "default")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    choices = np.array([0.0, 1.0, -1.5, 2.0, 3.0, -0.25], np.float32)
    return [
        {name: rng.choice(choices, size=SHAPE) for name in ("x", "z", "default")}
        | {"condition": np.array(condition)}
        for condition in (False, True)
    ]


SETTINGS = settings(
    max_examples=examples(50),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def runs(model: onnx.ModelProto) -> bool:
    """Return whether onnxruntime can run *model*.

    At every level it merges Casts in a row, also where a subgraph reads the one between; the branch then
    finds no value (1.31).
    """
    session = session_for(model)
    try:
        for feed in feeds():
            session.run(None, feed)
    except Fail:
        return False
    return True


def check(model: onnx.ModelProto, passes: tuple[type[Pass], ...]) -> None:
    onnx.checker.check_model(model)
    assume(runs(model))
    after: onnx.ModelProto | Model = model
    for pass_type in passes:
        after, _ = apply(pass_type(), after)
        _, again = apply(pass_type(), after)
        assert not again.changed, f"{pass_type.info.name}: {dict(again.counts)}"
    assert_same_function(model, after, *feeds())


@pytest.mark.parametrize("pass_type", PASSES, ids=lambda pass_type: pass_type.info.name)
@SETTINGS
@given(model=models())
def test_pass_keeps_the_function(pass_type: type[Pass], model: onnx.ModelProto) -> None:
    check(model, (pass_type,))


@SETTINGS
@given(model=models())
def test_all_in_a_row(model: onnx.ModelProto) -> None:
    check(model, (*PASSES, Canonicalize))
