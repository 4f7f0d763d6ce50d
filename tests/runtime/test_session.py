"""Sessions against real models of every type, and what each refusal says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from graphopt.errors import (
    DataError,
    GraphoptError,
    InvalidModelError,
    PathError,
    ProviderError,
    UnsupportedModelError,
)
from graphopt.runtime import providers, refusals, session
from graphopt.runtime.session import open_session
from tests.runtime.models import FLOAT, Declared, model, unary, write

if TYPE_CHECKING:
    from pathlib import Path

X = np.array([[1.5, 0.0, -2.0]], np.float32)


def run(proto: onnx.ModelProto, **feeds: object) -> dict[str, object]:
    return dict(open_session(proto.SerializeToString()).run(feeds))  # type: ignore[arg-type]  # odd feeds on purpose


def test_runs_a_file_and_bytes(tmp_path: Path) -> None:
    np.testing.assert_array_equal(run(unary(), x=X)["y"], np.maximum(X, 0))
    file = open_session(write(unary(), tmp_path / "m.onnx"))
    assert file.inputs == (session.IoInfo("x", "tensor", "float32", (1, 3)),)
    np.testing.assert_array_equal(file.run({"x": X})["y"], np.maximum(X, 0))


def test_external_data_is_found_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, [1, 3])],
        [("y", FLOAT, None)],
        {"w": w},
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(tmp_path.parent)
    np.testing.assert_array_equal(open_session(tmp_path / "m.onnx").run({"x": X})["y"], X @ w)


@pytest.mark.parametrize("optimization", ["none", "all"])
@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TensorProto.DOUBLE, np.float64),
        (TensorProto.INT8, np.int8),
        (TensorProto.UINT64, np.uint64),
        (TensorProto.BOOL, np.bool_),
    ],
)
def test_element_types_pass_through_unchanged(number: int, dtype: type, optimization: str) -> None:
    value: np.ndarray = np.array([[1, 0, 3]]).astype(dtype)
    opened = open_session(unary("Identity", number).SerializeToString(), optimization=optimization)  # type: ignore[arg-type]  # both
    result = opened.run({"x": value})["y"]
    assert isinstance(result, np.ndarray)
    assert result.dtype == value.dtype
    np.testing.assert_array_equal(result.astype(np.float32), value.astype(np.float32))


@pytest.mark.parametrize(
    ("number", "dtype", "values"),
    [
        (TensorProto.INT4, ml_dtypes.int4, [-8, 7, 0, -1, 5]),
        (TensorProto.UINT4, ml_dtypes.uint4, [15, 0, 8, 1, 7]),
    ],
)
@pytest.mark.parametrize("length", [0, 1, 4, 5])
def test_packed_types_go_in_and_out(number: int, dtype: type, values: list[int], length: int) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one"], ["f"]),
        helper.make_node("QuantizeLinear", ["f", "one"], ["y"], output_dtype=number),
    ]
    outputs: list[Declared] = [("f", FLOAT, [length]), ("y", number, [length])]
    proto = model(nodes, [("x", number, [length])], outputs, {"one": np.array(1, np.float32)})
    result = run(proto, x=np.array(values[:length]).astype(dtype))
    np.testing.assert_array_equal(result["f"], values[:length])
    np.testing.assert_array_equal(result["y"].astype(int), values[:length])  # type: ignore[attr-defined]  # an array


def test_strings_sequences_and_optionals() -> None:
    words = np.array([["a", "ü", ""]], object)
    assert run(unary("Identity", TensorProto.STRING), x=words)["y"].tolist() == words.tolist()  # type: ignore[attr-defined]  # an array
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, None)
    nodes = [
        helper.make_node("SequenceInsert", ["s", "x"], ["t"]),
        helper.make_node("SequenceLength", ["t"], ["n"]),
    ]
    out = helper.make_tensor_sequence_value_info("t", FLOAT, None)
    proto = model(nodes, [sequence, ("x", FLOAT, [1, 3])], [out, ("n", TensorProto.INT64, [])])
    result = run(proto, s=[X[:, :1], X[:, :2]], x=X)
    assert [array.shape for array in result["t"]] == [(1, 1), (1, 2), (1, 3)]  # type: ignore[attr-defined]  # a list
    assert result["n"] == 3
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    nodes = [helper.make_node("OptionalHasElement", ["o"], ["b"])]
    proto = model(nodes, [helper.make_value_info("o", optional)], [("b", TensorProto.BOOL, [])])
    assert run(proto, o=None)["b"] == np.False_
    assert run(proto, o=np.zeros(2, np.float32))["b"] == np.True_


def test_an_overridable_initializer_may_be_fed_or_not() -> None:
    w = np.array([2.0], np.float32)
    proto = model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [("x", FLOAT, [1, 3]), ("w", FLOAT, [1])],
        [("y", FLOAT, [1, 3])],
        {"w": w},
    )
    np.testing.assert_array_equal(run(proto, x=X)["y"], 2 * X)
    np.testing.assert_array_equal(run(proto, x=X, w=w + 1)["y"], 3 * X)


def test_bfloat16_beside_a_sequence_says_why_not() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, None)
    nodes = [helper.make_node("SequenceLength", ["s"], ["n"]), helper.make_node("Identity", ["x"], ["y"])]
    proto = model(
        nodes,
        [sequence, ("x", TensorProto.BFLOAT16, [1])],
        [("n", TensorProto.INT64, []), ("y", TensorProto.BFLOAT16, [1])],
    )
    with pytest.raises(DataError, match="is a sequence, which onnxruntime's Python API cannot pass"):
        run(proto, s=[X], x=np.zeros(1, ml_dtypes.bfloat16))


def bad_shapes() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")]
    return model(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, None)], {"w": np.zeros((4, 4), np.float32)})


VERSION = onnxruntime.__version__


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (unary(ir_version=99), ProviderError, f"has IR version 99, onnxruntime {VERSION} loads at most "),
        (
            unary(opset=99),
            ProviderError,
            f"imports opset 99 of ai.onnx, onnxruntime {VERSION} loads at most ",
        ),
        (
            unary("Foo", domain="my.own"),
            ProviderError,
            f"onnxruntime {VERSION} has no operator Foo of domain 'my.own'",
        ),
        (unary("Rellu"), ProviderError, "knows no operator Rellu in opset 21"),
        (
            unary(dtype=TensorProto.BFLOAT16),
            ProviderError,
            "has no kernel of Relu (version 14) for the provider 'cpu'",
        ),
        (unary("Identity", TensorProto.COMPLEX64), UnsupportedModelError, "complex64"),
        (bad_shapes(), InvalidModelError, "Incompatible dimensions for matrix multiplication"),
        (b"no protobuf", InvalidModelError, "protobuf parsing failed"),
        (b"", InvalidModelError, "No graph was found"),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
def test_refusals_are_one_sentence_of_the_right_class(
    content: onnx.ModelProto | bytes,
    error: type[GraphoptError],
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    raw = content if isinstance(content, bytes) else content.SerializeToString()
    with pytest.raises(error) as caught:
        open_session(raw, where="m.onnx")
    assert words in str(caught.value)
    assert str(caught.value).startswith("m.onnx: ")
    for noise in ("ONNXRuntimeError", "onnxruntime_src", "\n", "::"):
        assert noise not in str(caught.value)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="does not exist"):
        open_session(tmp_path / "none.onnx")
    with pytest.raises(PathError, match="got a directory"):
        open_session(tmp_path)


def test_a_name_that_the_runtime_cannot_take(tmp_path: Path) -> None:
    path = tmp_path / "m\udcff.onnx"
    path.write_bytes(b"")
    with pytest.raises(ProviderError, match="not UTF-8"):
        open_session(path)


def test_missing_external_data_is_an_invalid_model(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, [1, 3])],
        [("y", FLOAT, None)],
        {"w": np.ones((3, 400), np.float32)},
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    with pytest.raises(InvalidModelError, match=r"m\.data"):
        open_session(tmp_path / "m.onnx")


# Messages of releases that are not installed here, as they were seen.
OLD_IR = (
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Failed to load model with error: "
    "/onnxruntime_src/onnxruntime/core/graph/model.cc:179 onnxruntime::Model::Model(onnx::ModelProto&&, "
    "const onnxruntime::PathString&, const onnxruntime::IOnnxRuntimeOpSchemaRegistryList*, const "
    "onnxruntime::logging::Logger&, const onnxruntime::ModelOptions&) Unsupported model IR version: 11, max "
    "supported IR version: 10\n"
)


def test_refusals_of_other_releases() -> None:
    cpu = providers.resolve("cpu")
    error = refusals.load_refusal(RuntimeError(OLD_IR), where="m", provider=cpu, version="1.18.1")
    assert isinstance(error, ProviderError)
    assert "IR version 11, onnxruntime 1.18.1 loads at most 10" in str(error)


def test_the_way_through_nested_graphs_is_short() -> None:
    text = (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running If node. "
        "Name:'If_0' Status Message: Non-zero status code returned while running Pad node. Name:'p' Status "
        "Message: Pad reflect requires axis length >= 2 after slicing. Input shape:{1,1}\n"
    )
    error = refusals.run_refusal(
        RuntimeError(text), where="m", provider=providers.resolve("cpu"), version="9"
    )
    assert error.message == (
        "the model cannot run on this feed: If 'If_0': Pad 'p': Pad reflect requires axis length >= 2 after "
        "slicing. Input shape:{1,1}"
    )


def test_a_location_with_its_signature_is_cut_out() -> None:
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : /a/b/c.cc:12 void ns::f(const std::function<void(int)>&, int) const "
        "something went wrong.\n"
    )
    error = refusals.load_refusal(
        RuntimeError(text), where="m", provider=providers.resolve("cpu"), version="9.9"
    )
    assert error.message == "onnxruntime 9.9 refuses the model: something went wrong"


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "no value for the input 'x'"),
        ({"x": X, "z": X}, "the model has no input 'z'. Its inputs: x."),
        ({"x": X[:, :2]}, "Got: 2 Expected: 3"),
        ({"x": X.astype(np.float64)}, "Actual: (tensor(double)) , expected: (tensor(float))"),
    ],
)
def test_feeds_that_do_not_fit(feeds: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_session(unary().SerializeToString()).run(feeds)
    assert words in str(caught.value)


def test_a_feed_that_the_model_cannot_run_on_asks_for_data(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"], name="pick")]
    proto = model(
        nodes, [("i", TensorProto.INT64, [1])], [("y", FLOAT, None)], {"w": np.zeros((4, 2), np.float32)}
    )
    with pytest.raises(DataError, match=r"cannot run on this feed.*'pick'.*Give real inputs with --data"):
        run(proto, i=np.array([9]))
    assert capfd.readouterr().err == ""


def test_placement_names_every_node() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="n1"),
        helper.make_node("Exp", ["a"], ["y"], name="n2"),
    ]
    proto = model(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])])
    opened = open_session(proto.SerializeToString(), record_placement=True)
    opened.run({"x": X})  # where the runtime cannot record, only nodes that ran are known
    assert {(each.node, each.op_type, each.provider) for each in opened.placement()} == {
        ("n1", "Relu", "cpu"),
        ("n2", "Exp", "cpu"),
    }
    with pytest.raises(ProviderError, match="does not record"):
        open_session(proto.SerializeToString()).placement()


def test_placement_from_a_profile_where_the_runtime_cannot_record(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "get_provider_graph_assignment_info"
    for cls in onnxruntime.InferenceSession.__mro__:
        if name in vars(cls):
            monkeypatch.delattr(cls, name)
    with open_session(unary().SerializeToString(), record_placement=True) as opened:
        opened.run({"x": X})
        assert opened.placement() == (session.Placement("n1", "Relu", "", "cpu"),)


def test_a_bound_run_gives_nothing_away_and_checks_its_feeds() -> None:
    opened = open_session(unary("Identity", TensorProto.BFLOAT16).SerializeToString())
    opened.bind({"x": np.zeros((1, 3), ml_dtypes.bfloat16)})()
    with pytest.raises(DataError):
        opened.bind({})


def test_openvino_is_told_the_number_of_threads() -> None:
    # Its pool is its own: without this, times taken on it would be those of all cores.
    openvino = session._with_options(providers.lookup("openvino"), 1)
    assert openvino == ("OpenVINOExecutionProvider", {"num_of_threads": "1"})
    assert session._with_options(providers.lookup("cpu"), 1) == "CPUExecutionProvider"
