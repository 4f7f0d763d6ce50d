"""rewrite-masked-softmax: onnxruntime's outputs, numbers that stay normal, and what is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.lower import lower
from graphopt.passes.rewrite_masked_softmax import RewriteMaskedSoftmax
from tests.passes import harness
from tests.passes.harness import apply, assert_golden, op_types, parse, run_feeds, session_for

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.ir import Model

PASS = RewriteMaskedSoftmax()
ROWS = 8
CAUSAL = np.triu(np.full((ROWS, ROWS), -1e9, np.float32), 1)


def attention(
    mask: np.ndarray[Any, Any] | None,
    nodes: list[onnx.NodeProto] | None = None,
    *,
    opset: int = 18,
    axis: int = -1,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return Softmax(x + mask) of [2, 8, 8], as text would be too long for masks."""
    made = nodes if nodes is not None else [helper.make_node("Add", ["x", "mask"], ["masked"])]
    made = [*made, helper.make_node("Softmax", ["masked"], ["y"], name="attend", axis=axis)]
    dims = [2, ROWS, ROWS]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", dtype, dims)],
        [helper.make_tensor_value_info("y", dtype, dims)],
        [] if mask is None else [numpy_helper.from_array(mask, "mask")],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model, full_check=True)
    return model


def computed(model: onnx.ModelProto | Model, feeds: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(run_feeds(session_for(model), feeds)["y"])


def scores(spread: float = 3.0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).standard_normal((2, ROWS, ROWS)) * spread).astype(np.float32)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("low", [-1e9, -np.inf, np.finfo(np.float32).min])
def test_causal_attention(opset: int, low: float) -> None:
    model = attention(np.where(CAUSAL < 0, np.float32(low), np.float32(0)), opset=opset)
    after, report = apply(PASS, model)
    assert report.counts == {"softmaxes": 1}
    # Wide scores: what is masked may be far above what is not.
    for spread in (1.0, 30.0, 1000.0):
        x = scores(spread)
        one, two = (computed(each, {"x": x}) for each in (model, after))
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-25)
        assert (two >= np.finfo(np.float32).tiny).all()


def test_twice_is_once_and_golden() -> None:
    model = attention(CAUSAL)
    after, report = apply(PASS, model)
    assert_golden("rewrite-masked-softmax", "causal", lower(model), after, report)
    again = PASS.run(after, PASS.Options(), harness.context_for(after))
    assert not again.changed
    assert "has a floor already" in dict(again.skipped)["attend"]


def test_axes_as_an_attribute() -> None:
    model = attention(CAUSAL.T.copy(), opset=17, axis=1)
    after, report = apply(PASS, model)
    assert_golden("rewrite-masked-softmax", "opset-17", lower(model), after, report)


FORMS = {
    "a part of the mask": (
        np.triu(np.full((ROWS + 4, ROWS + 4), -1e9, np.float32), 1),
        [
            helper.make_node("Constant", [], ["zero"], value_ints=[0, 0]),
            helper.make_node("Constant", [], ["end"], value_ints=[ROWS, ROWS]),
            helper.make_node("Slice", ["mask", "zero", "end"], ["part"]),
            helper.make_node("Add", ["part", "x"], ["masked"]),
        ],
    ),
    "chosen by a condition": (
        CAUSAL < 0,
        [
            helper.make_node("Constant", [], ["low"], value_float=-1e9),
            helper.make_node("Where", ["mask", "low", "x"], ["masked"]),
        ],
    ),
    "kept by a condition": (
        CAUSAL >= 0,
        [
            helper.make_node("Constant", [], ["low"], value_float=-1e9),
            helper.make_node("Where", ["mask", "x", "low"], ["masked"]),
        ],
    ),
    "synthesized": (
        np.array([ROWS, ROWS], np.int64),
        [
            helper.make_node(
                "ConstantOfShape", ["mask"], ["full"], value=helper.make_tensor("v", 1, [1], [-1e9])
            ),
            helper.make_node("Constant", [], ["one"], value_int=1),
            helper.make_node("Trilu", ["full", "one"], ["triangle"], upper=1),
            helper.make_node("Add", ["x", "triangle"], ["masked"]),
        ],
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_forms_of_masks(form: str) -> None:
    model = attention(*FORMS[form])
    after, report = apply(PASS, model)
    assert report.counts == {"softmaxes": 1}, report.skipped
    one, two = (computed(each, {"x": scores()}) for each in (model, after))
    np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-25)


FEW = np.zeros((ROWS, ROWS), np.float32)
FEW[0, 1] = -1e9
RUN_TIME = [
    helper.make_node("Constant", [], ["low"], value_float=-1e9),
    helper.make_node("Constant", [], ["zero"], value_float=0.0),
    helper.make_node("Less", ["x", "zero"], ["off"]),
    helper.make_node("Where", ["off", "low", "x"], ["masked"]),
]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (attention(FEW), "1.6% of it is masked; it pays from 10% on"),
        (attention(None, RUN_TIME), "decided at run time"),
        (attention(CAUSAL, opset=12, axis=1), "upgrade-opset{to=13}"),
        (attention(np.full((ROWS, ROWS), -50, np.float32)), "no Softmax reads"),
        (attention(CAUSAL.astype(np.float64), dtype=TensorProto.DOUBLE), "not known to compute in float32"),
    ],
    ids=["few", "at run time", "several axes", "no mask", "double"],
)
def test_left_alone(model: onnx.ModelProto, reason: str) -> None:
    after, report = apply(PASS, model)
    assert not report.changed
    ((_, found),) = report.skipped
    assert reason in found
    assert op_types(after) == op_types(lower(model))


def test_force() -> None:
    for model in (attention(FEW), attention(None, RUN_TIME)):
        after, report = apply(PASS, model, force=True)
        assert report.counts == {"softmaxes": 1}
        one, two = (computed(each, {"x": scores()}) for each in (model, after))
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-25)


def test_rows_without_an_element_stay_as_they_were() -> None:
    """All masked with -1e9: a distribution over the masked; with -inf: NaN."""
    for low in (-1e9, -np.inf):
        model = attention(np.full((ROWS, ROWS), low, np.float32))
        after, report = apply(PASS, model)
        assert report.changed
        one, two = (computed(each, {"x": scores()}) for each in (model, after))
        np.testing.assert_allclose(two, one, rtol=1e-6)


BODY = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4,4] x, bool c) => (float[2,4,4] y)
<float[4,4] mask = {0,-1e9,-1e9,-1e9, 0,0,-1e9,-1e9, 0,0,0,-1e9, 0,0,0,0}>
{
  y = If (c) <
    then_branch = t () => (float[2,4,4] a) { m = Add(x, mask)  a = Softmax<axis = -1>(m) },
    else_branch = e () => (float[2,4,4] b) { n = Add(x, mask)  b = Softmax<axis = -1>(n) }
  >
}
"""


def test_branches() -> None:
    model = parse(BODY)
    after, report = apply(PASS, model)
    assert report.counts == {"softmaxes": 2}
    x = np.random.default_rng(1).standard_normal((2, 4, 4)).astype(np.float32)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        one, two = (computed(each, feeds) for each in (model, after))
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-25)


def test_a_target_that_does_not_gain_is_left_alone() -> None:
    model = lower(attention(CAUSAL))
    context = harness.context_for(model)
    context.target = context.target.model_copy(update={"softmax": None})
    report = PASS.run(model, PASS.Options(), context)
    assert "force=true" in dict(report.skipped)["model"]
    assert PASS.run(model, PASS.Options(force=True), context).changed


@pytest.mark.parametrize("export", ["ts", "dynamo"])
def test_the_llama(assets: Path, export: str) -> None:
    path = assets / "models" / f"stories260k_llama_{export}.onnx"
    model = onnx.load(path)
    after, report = apply(PASS, model, check=False)
    assert report.counts == {"softmaxes": 5}
    tokens = np.random.default_rng(0).integers(0, 512, (1, 32))
    outputs = [
        np.asarray(next(iter(run_feeds(session_for(each), {"tokens": tokens}).values())))
        for each in (model, after)
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


def test_a_floor_serves_one_axis() -> None:
    """Softmax over rows and over columns of the same scores: the floor of a row is none of a column."""
    model = attention(CAUSAL)
    model.graph.node.append(helper.make_node("Softmax", ["masked"], ["z"], name="columns", axis=1))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, ROWS, ROWS]))
    after, report = apply(PASS, model)
    assert report.counts == {"softmaxes": 2}
    x = scores()
    x[:, 5, 5] -= 100.0
    x[:, 6:, 5] -= 150.0
    one, two = (run_feeds(session_for(each), {"x": x}) for each in (model, after))
    for name in ("y", "z"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-25)


@pytest.mark.parametrize(
    ("chain", "teller"),
    [
        ([helper.make_node("Log", ["y"], ["z"])], "Log"),
        (
            [
                helper.make_node("Cast", ["y"], ["wide"], to=TensorProto.DOUBLE),
                helper.make_node("Transpose", ["wide"], ["turned"], perm=[0, 2, 1]),
                helper.make_node("Log", ["turned"], ["z"]),
            ],
            "Log",
        ),
        ([helper.make_node("Cast", ["y"], ["z"], to=TensorProto.BOOL)], "Cast"),
        ([helper.make_node("Div", ["x", "y"], ["z"])], "Div"),
        ([helper.make_node("Div", ["y", "x"], ["z"])], ""),
        ([helper.make_node("Mul", ["y", "x"], ["xy"]), helper.make_node("Log", ["xy"], ["z"])], "Log"),
        ([helper.make_node("Cast", ["y"], ["wide"], to=TensorProto.DOUBLE),
          helper.make_node("Neg", ["wide"], ["z"])], ""),
    ],
    ids=["at once", "behind a Cast and a Transpose", "as a condition", "divided by", "divided", "behind Mul",
         "nobody tells"],
)  # fmt: skip
def test_what_tells_nothing_from_almost_nothing(chain: list[onnx.NodeProto], teller: str) -> None:
    model = attention(CAUSAL)
    model.graph.node.extend(chain)
    element = {"Cast": TensorProto.BOOL, "Neg": TensorProto.DOUBLE}.get(chain[-1].op_type)
    if len(chain) > 2:
        element = TensorProto.DOUBLE
    model.graph.output.append(
        helper.make_tensor_value_info("z", element or TensorProto.FLOAT, [2, ROWS, ROWS])
    )
    after, report = apply(PASS, model)
    assert report.changed == (not teller)
    if teller:
        assert f"{teller} reads it" in dict(report.skipped)["attend"]
    else:
        one, two = (run_feeds(session_for(each), {"x": scores()}) for each in (model, after))
        np.testing.assert_allclose(two["z"], one["z"], rtol=1e-6, atol=1e-25)
