"""convert-float16: types that hold, casts only at borders, ranges respected; judged by onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt.errors import OptionError
from graphopt.ir.emit import emit, save
from graphopt.ir.lower import load
from graphopt.ir.stream import LazyTensor
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.runtime.feeds import random_feeds
from tests.passes.harness import apply, assert_golden, op_types, parse

if TYPE_CHECKING:
    from pathlib import Path

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chain": (
        (
            "g (float[2,3] x) => (float[2,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {0.5, 1}>"
            "{ a = MatMul (x, w) c = Add (a, b) y = Relu (c) }"
        ),
        {},
    ),
    "types-change-with-io": (
        (
            "g (float[2,3] x) => (float[2,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}>"
            "{ a = MatMul (x, w) y = Relu (a) }"
        ),
        {"keep_io": False},
    ),
    "a-mask-stays-float": (
        (
            "g (float[2,2] x) => (float[2,2] y)"
            " <float[2,2] mask = {0, -1000000000, 0, 0}, float[2,2] w = {1, 2, 3, 4}>"
            "{ a = MatMul (x, w) b = Add (a, mask) c = Softmax (b) y = MatMul (c, w) }"
        ),
        {},
    ),
    "branches": (
        (
            "g (bool c, float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}>"
            "{ h = MatMul (x, w) z = If (c) <"
            " then_branch = t () => (float[1,2] p) { p = MatMul (h, w) },"
            " else_branch = e () => (float[1,2] r) { r = Neg (h) } > y = Relu (z) }"
        ),
        {},
    ),
    "storage": (
        (
            "g (float[2,3] x) => (float[2,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {0.5, 1}>"
            "{ a = MatMul (x, w) y = Add (a, b) }"
        ),
        {"form": "storage", "min_elements": 4},
    ),
}
CASES["a-node-kept-in-the-middle"] = (
    (
        "g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}, int64 k = {1}>"
        "{ a = Mul (x, w) b = CumSum (a, k) y = Mul (b, w) }"
    ),
    {},
)  # fmt: skip


def outputs(model: Any, feeds: dict[str, Any]) -> list[Any]:
    proto = model if isinstance(model, onnx.ModelProto) else emit(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, feeds)
    return results


def feeds_of(proto: onnx.ModelProto, *, half: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    feeds: dict[str, Any] = {}
    for value in proto.graph.input:
        shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == TensorProto.BOOL:
            feeds[value.name] = np.ones((), bool)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float16 if half else np.float32)
    return feeds


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text, options = CASES[name]
    proto = parse(HEADER + text)
    after, report = apply(ConvertFloat16(), proto, **options)
    assert report.changed
    assert_golden("convert-float16", name, proto, after, report)
    half = options.get("keep_io") is False
    found = outputs(after, feeds_of(proto, half=half))
    expected = outputs(proto, feeds_of(proto))
    assert found[0].dtype == (np.float16 if half else np.float32)
    np.testing.assert_allclose(found[0].astype(np.float32), expected[0], rtol=5e-3, atol=5e-3)
    inferred = onnx.shape_inference.infer_shapes(emit(after), strict_mode=True)
    onnx.checker.check_model(inferred)


def dtypes_of(model: Any) -> set[str]:
    stored = (value.const_value for value in model.graph.initializers.values())
    return {tensor.dtype.name for tensor in stored if tensor is not None}


def test_casts_stand_only_at_the_ends() -> None:
    proto = parse(HEADER + CASES["chain"][0])
    after, report = apply(ConvertFloat16(), proto)
    assert op_types(after).count("Cast") == 2
    assert report.counts == {"casts": 2, "constants_converted": 2, "nodes_converted": 3}
    assert {
        value.const_value.dtype.name for value in after.graph.initializers.values() if value.const_value
    } == {"FLOAT16"}


def test_values_beyond_the_type_stay_float() -> None:
    text = (
        "g (float[2,3] x) => (float[2,3] y)"
        " <float[3] w = {300, 300, 300}, float[3] v = {0.001, 0.001, 0.001}>"
        "{ a = Mul (x, w) b = Mul (a, w) c = Mul (b, v) y = Mul (c, v) }"
    )
    proto = parse(HEADER + text)
    feeds = [{"x": np.full((2, 3), 0.9 + k, np.float32)} for k in range(2)]
    _, report = apply(ConvertFloat16(), proto)
    assert report.counts["nodes_converted"] == 4
    after, report = apply(ConvertFloat16(), proto, data=feeds)
    expected = outputs(proto, feeds[1])[0]
    np.testing.assert_allclose(outputs(after, feeds[1])[0], expected, rtol=5e-3)
    assert any("on the data 'b' reaches" in reason for _, reason in report.skipped)
    after, report = apply(ConvertFloat16(), proto, keep_ops=("Mul",))
    assert not report.changed


def test_a_mask_that_is_computed_stays_float_until_softmax() -> None:
    text = (
        "g (float[2,2] x) => (float[2,2] y) <int64[2] s = {2, 2}, int64 one = {1}>"
        "{ f = ConstantOfShape <value: tensor = float[1] {-1000000000}> (s)"
        " m = Trilu <upper: int = 1> (f, one) b = Add (x, m) c = Softmax (b) y = MatMul (c, c) }"
    )
    proto = parse(HEADER + text)
    after, report = apply(ConvertFloat16(), proto)
    feeds = feeds_of(proto)
    np.testing.assert_allclose(outputs(after, feeds)[0], outputs(proto, feeds)[0], atol=2e-3)
    assert "exceeds the largest float16, 65504" in dict(report.skipped)["Add 'b'"]


@pytest.mark.parametrize(
    "between",
    ["c = Clip (b, low)", "c = Clip (b, low, high)", "c = LogSoftmax (b)"],
    ids=["one bound", "bounds beyond the type", "LogSoftmax"],
)
def test_what_is_not_bounded_stays_float(between: str) -> None:
    text = (
        "g (float[2,3] x) => (float[2,3] y)"
        " <float[1] big = {1000000}, float[1] less = {0.000001},"
        " float low = {-2000000}, float high = {2000000}>"
        f"{{ b = Mul (x, big) {between} d = Mul (c, less) t = Tanh (d) y = Mul (t, t) }}"
    )
    proto = parse(HEADER + text)
    after, report = apply(ConvertFloat16(), proto)
    assert "exceeds" in dict(report.skipped)["Mul 'd'"]
    assert report.counts["nodes_converted"] == 1  # the last one
    if "LogSoftmax" in between:
        return  # which the reference evaluator takes the logarithm of zero for
    # The reference evaluator computes halves as halves; onnxruntime takes casts to them away.
    feeds = feeds_of(proto)
    found: Any = ReferenceEvaluator(emit(after)).run(None, feeds)
    np.testing.assert_allclose(found[0], outputs(proto, feeds)[0], atol=2e-3)


def test_a_clip_within_the_type_bounds_what_follows() -> None:
    text = (
        "g (float[2,3] x) => (float[2,3] y) <float[1] big = {1000000}, float low = {-4}, float high = {6}>"
        "{ b = Mul (x, big) c = Clip (b, low, high) d = Mul (c, c) y = Tanh (d) }"
    )
    _, report = apply(ConvertFloat16(), parse(HEADER + text))
    assert report.counts["nodes_converted"] == 2  # the second Mul, and Tanh


def test_a_weight_that_is_read_as_float_too_is_stored_once() -> None:
    text = (
        "g (float[2,64] x) => (float[2,64] y, float[2,64] z)"
        "{ y = MatMul (x, w) a = MatMul (x, w) z = MatMul (a, w) }"
    )
    proto = onnx.parser.parse_model(HEADER + text)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    proto.graph.node[0].name = "float"
    after, report = apply(ConvertFloat16(), proto, keep=("float",))
    assert report.counts["nodes_converted"] == 2
    assert [each.name for each in after.graph.initializers.values()] == ["w"]
    feeds = feeds_of(proto)
    for one, two in zip(outputs(after, feeds), outputs(proto, feeds), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-2, atol=2e-1)


def test_a_shape_needs_no_cast() -> None:
    text = (
        "g (float[2,3] x) => (float[2,3] y, int64[2] s, int64 n)"
        "{ a = Tanh (x) s = Shape (a) n = Size (a) y = Mul (a, a) }"
    )
    proto = parse(HEADER + text)
    after, report = apply(ConvertFloat16(), proto)
    assert report.counts == {"casts": 2, "nodes_converted": 2}
    found, expected = outputs(after, feeds_of(proto)), outputs(proto, feeds_of(proto))
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2] == expected[2]


def test_weights_that_callers_may_override_are_counted() -> None:
    text = "g (float[2,3] x, float[3,3] w) => (float[2,3] y) { y = MatMul (x, w) }"
    proto = parse(HEADER + text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32), "w"))
    _, report = apply(ConvertFloat16(), proto)
    assert report.counts["casts"] == 3
    ((_, reason),) = report.skipped
    assert reason.startswith("1 initializers that callers may override stay float")


def test_a_model_of_halves_says_that_there_is_nothing_to_do() -> None:
    text = "g (float16[2,3] x) => (float16[2,3] y) { y = Tanh (x) }"
    _, report = apply(ConvertFloat16(), parse(HEADER + text))
    assert report.skipped == (("model", "no node computes in float32"),)


def test_bfloat16_needs_its_opset_and_weights_that_are_stored() -> None:
    old = parse("""
    <ir_version: 7, opset_import: ["" : 11]>
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }
    """)
    with pytest.raises(OptionError, match=r"opset 11, which has no bfloat16.*upgrade-opset\{to=13\}"):
        apply(ConvertFloat16(), old, dtype="bfloat16", form="storage", min_elements=1)
    _, report = apply(ConvertFloat16(), old, form="storage")
    assert "no float32 initializer has 256 elements or more" in dict(report.skipped)["model"]


def test_bfloat16_is_refused_by_name_or_stored() -> None:
    proto = parse(HEADER + CASES["chain"][0])
    with pytest.raises(OptionError, match=r"'ort-cpu' does not compute in bfloat16.*form=storage"):
        apply(ConvertFloat16(), proto, dtype="bfloat16")
    after, report = apply(ConvertFloat16(), proto, dtype="bfloat16", form="storage", min_elements=1)
    assert report.counts["weights_stored"] == 2
    np.testing.assert_allclose(
        outputs(after, feeds_of(proto))[0], outputs(proto, feeds_of(proto))[0], rtol=2e-2, atol=2e-2
    )
    after, report = apply(ConvertFloat16(), proto, dtype="bfloat16", target="tensorrt")
    assert report.counts["nodes_converted"] == 3
    assert {
        value.const_value.dtype.name for value in after.graph.initializers.values() if value.const_value
    } == {"BFLOAT16"}


def test_weights_beyond_the_type_are_not_stored_so() -> None:
    weight = np.full((32, 32), 1e6, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    _, report = apply(ConvertFloat16(), proto, form="storage")
    assert report.skipped == (("weight 'w'", "it holds numbers beyond the largest float16"),)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "cifar10_resnet20_jpeg",
        "mlperf_kws_dscnn",
        "stories260k_llama_dynamo",
        "gtcrn_simple",
        "yunet_n_dynamic",
    ],
)
def test_trained_models(assets: Path, name: str) -> None:
    path = assets / "models" / f"{name}.onnx"
    model = load(path)
    after, report = apply(ConvertFloat16(), model, check=False)
    assert report.changed or report.skipped
    feeds = (
        random_feeds(model, 1)[0]
        if name != "stories260k_llama_dynamo"
        else {"tokens": np.arange(1, 65)[None]}
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for one, two in zip(
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds),
        outputs(after, feeds),
        strict=True,
    ):
        scale = float(np.abs(one).max())
        assert float(np.abs(one - two).max()) <= 0.05 * scale


@pytest.mark.parametrize("form", ["compute", "storage"])
def test_external_weights_stay_in_their_file(tmp_path: Path, form: str) -> None:
    weight = np.random.default_rng(0).standard_normal((700, 600)).astype(np.float32) * 10
    weight[5, 5], weight[600, 3] = np.inf, np.nan  # they are what they are in halves too
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 700])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 600])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    after, report = apply(ConvertFloat16(), load(path), check=False, form=form)
    assert report.changed
    assert any(isinstance(value.const_value, LazyTensor) for value in after.graph.initializers.values())
    save(after, tmp_path / "out.onnx")
    (held,) = (
        value.const_value
        for value in load(tmp_path / "out.onnx").graph.initializers.values()
        if value.const_value is not None
    )
    assert np.array_equal(held.numpy(), weight.astype(np.float16), equal_nan=True)
    weight[699, 599] = -70000
    (tmp_path / "m.bin").write_bytes(weight.tobytes())
    _, report = apply(ConvertFloat16(), load(path), check=False, form=form)
    assert not report.changed


@pytest.mark.parametrize("perm", [[1, 0, 2], [1, 2, 0, 3]])
@pytest.mark.parametrize("before", ["Identity", "Relu"])
def test_what_onnxruntime_crashes_on_stays_float(perm: list[int], before: str, tmp_path: Path) -> None:
    dims = ",".join("4" for _ in perm)
    weight = ",".join(str(number) for number in range(16))
    text = f"""{HEADER} g (float[{dims}] x) => (float[{dims}] y) <float[4,4] w = {{{weight}}}>
        {{ a = {before}(x) t = Transpose<perm = {perm}>(a) y = MatMul(t, w) }}"""
    onnx.save(parse(text), tmp_path / "m.onnx")
    record = graphopt.run(tmp_path / "m.onnx", "convert-float16", out=tmp_path / "o.onnx").report
    assert record.validation is not None
    assert record.validation.passed
    weights = onnx.load(tmp_path / "o.onnx").graph.initializer
    assert [tensor.data_type for tensor in weights] == [TensorProto.FLOAT16]
