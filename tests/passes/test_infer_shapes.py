from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.passes.infer_shapes import InferShapes
from tests import corpora
from tests.passes.harness import apply, assert_golden, assert_same_function, parse

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.ir import Model

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[batch, 3, H, W] x, float[8, 3, 3, 3] k, bool c) => (float[a, b, p, q] y)
{
    h = Conv <strides = [2, 2]> (x, k)
    r = Relu(h)
    y = If (c) <
        then_branch = g1 () => (float[d, e, f, g] t) { n = Neg(r) t = Identity(n) },
        else_branch = g2 () => (float[l, m, n2, o] e1) { e1 = Abs(r) }
    >
}
"""


def infos(model: Model) -> dict[str, tuple[int, list[Any]]]:
    """Type and dims of every value_info and output, subgraphs included, by name."""
    found = {}

    def visit(graph: onnx.GraphProto) -> None:
        for info in (*graph.value_info, *graph.output):
            tensor = info.type.tensor_type
            dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
            found[info.name] = (tensor.elem_type, dims)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(emit(model).graph)
    return found


def test_values_of_all_graphs_are_described() -> None:
    proto = parse(MODEL)
    model, report = apply(InferShapes(), proto)
    found = infos(model)
    spatial = ["floor((H-3)/2)+1", "floor((W-3)/2)+1"]
    assert found["h"] == found["r"] == found["n"] == (TensorProto.FLOAT, ["batch", 8, *spatial])
    assert found["y"] == (TensorProto.FLOAT, ["a", "b", "p", "q"]), "names that callers see are kept"
    assert report.counts["types_added"] == 3
    assert not report.skipped
    assert_same_function(proto, model, dims={"batch": 2, "H": 8, "W": 9})


def test_running_it_again_changes_nothing() -> None:
    model, _ = apply(InferShapes(), parse(MODEL))
    _, report = apply(InferShapes(), model)
    assert not report.changed


def test_inputs_stay_and_bound_dims_are_not_written() -> None:
    proto = parse(MODEL)
    model, _ = apply(InferShapes(), proto, dims={"batch": 2})
    assert infos(model)["h"][1][0] == "batch"
    assert list(emit(model).graph.input) == list(proto.graph.input)


CLAIMS = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, 4] x) => (float[N, 9] y)
{
    a = Relu(x)
    b = Neg(a)
    d = Abs(b)
    y = Neg(d)
}
"""


def test_golden() -> None:
    proto = parse(MODEL)
    model, report = apply(InferShapes(), proto)
    assert_golden("infer-shapes", "conv_and_branches", proto, model, report)


def claims() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(CLAIMS)
    proto.graph.value_info.extend(
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["rows", None]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 7]),
            helper.make_tensor_value_info("d", TensorProto.INT64, ["N", 4, 1]),
        ]
    )
    return proto


def test_wrong_declarations_are_named_and_kept() -> None:
    model, report = apply(InferShapes(), claims())
    found = infos(model)
    assert found["a"] == (TensorProto.FLOAT, ["rows", 4]), "the name of a dim is kept, its size filled in"
    assert found["b"] == (TensorProto.FLOAT, [1, 7])
    assert [where for where, _ in report.skipped] == ["value 'b'", "value 'd'", "value 'd'", "value 'y'"]
    assert "declared as [1,7], inferred as [N,4]" in report.skipped[0][1]


def test_wrong_declarations_are_replaced_on_request_but_never_those_of_outputs() -> None:
    model, report = apply(InferShapes(), claims(), overwrite=True)
    found = infos(model)
    assert found["b"] == found["d"] == (TensorProto.FLOAT, ["N", 4])
    assert found["y"] == (TensorProto.FLOAT, ["N", 9])
    assert [where for where, _ in report.skipped] == ["value 'y'"]
    assert report.counts["overwritten"] == 3


def test_an_output_without_shape_is_refined() -> None:
    proto = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[N, 4] x) => (float y) { y = Relu(x) }
    """)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model, report = apply(InferShapes(), proto)
    assert infos(model)["y"] == (TensorProto.FLOAT, ["N", 4])
    assert report.changed


def test_what_stays_unknown_is_said_once_with_its_reason() -> None:
    proto = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17, "strange" : 1]>
    agraph (float[N, 4] x) => (float[A, B] y) { a = strange.Thing(x) b = Relu(a) c = Neg(b) y = Abs(c) }
    """)
    _, report = apply(InferShapes(), proto)
    assert [where for where, _ in report.skipped] == ["value 'a'"]
    assert "strange.Thing" in report.skipped[0][1]


def test_bodies_of_functions_are_left_alone() -> None:
    proto = parse("""
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    agraph (float[N, 4] x) => (float[N, 4] y) { a = local.f(x) y = Neg(a) }
    <domain: "local", opset_import: ["" : 17]>
    f (p) => (q) { h = Relu(p) q = Neg(h) }
    """)
    model, _ = apply(InferShapes(), proto)
    emitted = emit(model)
    assert list(emitted.functions) == list(emit(lower(proto)).functions)
    assert [info.name for info in emitted.graph.value_info] == ["a"]


@pytest.mark.slow
def test_corpora_stay_valid(tmp_path: Path) -> None:
    for path in [*corpora.feature_models(tmp_path).values(), *corpora.onnx_wheel_models()]:
        proto = onnx.load(path)
        try:
            onnx.checker.check_model(proto)
        except onnx.checker.ValidationError:
            continue
        model, _ = apply(InferShapes(), lower(proto, base_dir=path.parent))
        _, again = apply(InferShapes(), model)
        assert not again.changed, path.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "resnet50_d", "bert"])
def test_zoo(assets: Path, name: str) -> None:
    proto = onnx.load(corpora.zoo_model(assets, name))
    del proto.graph.value_info[:]
    model, report = apply(InferShapes(), proto, check=False)
    onnx.checker.check_model(emit(model), full_check=True)
    assert not report.skipped
    assert report.counts["types_added"] > 60
    assert_same_function(proto, model)


def test_what_a_loop_collects_stays_as_declared() -> None:
    """Without an iteration the runtime takes the shape of the collection from what the body declares."""
    before = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x, int64 trips) => (float[2] y, float[n, m] z)
    {
        y, z = Loop <body = b (int64 i, bool go, float[2] s) => (bool more, float[2] t, float[k] u) {
            more = Identity (go)
            t = Add (s, s)
            u = Neg (s)
        }> (trips, , x)
    }
    """)
    after, _ = apply(InferShapes(), before)
    body = next(after.graph.subgraphs())
    assert str(body.outputs[2].shape) == "[k]"
    for trips in (0, 2):
        feeds = {"x": np.ones(2, np.float32), "trips": np.array(trips)}
        assert_same_function(before, after, feeds)
