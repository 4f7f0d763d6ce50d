"""Files that are no models, or break a rule: one sentence of the right class that names the place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError, InvalidModelError, PathError, UnsupportedModelError
from graphopt.ir.emit import emit
from graphopt.ir.lower import load, lower
from tests.families import FAMILIES, info, model, weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def relu_chain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["m"], name="first"),
        helper.make_node("Relu", ["m"], ["y"], name="second"),
    ]
    graph = helper.make_graph(nodes, "chain", [info("x")], [info("y")], initializer=[weight("w", 4)])
    return model(graph)


def refused(path: Path, kind: type[GraphoptError], *words: str) -> None:
    with pytest.raises(GraphoptError) as caught:
        load(path)
    assert type(caught.value) is kind, caught.value
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    for word in words:
        assert word in text


# Not a model


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", PathError, "does not exist")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "below.onnx", PathError, "does not exist")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, PathError, "directory")


def test_special_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", PathError, "not a regular file")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    refused(path, InvalidModelError, "empty")


@pytest.mark.parametrize(
    "text", ["hello world\n", "<html><body>404</body></html>", "version https://git-lfs\noid 1\n"]
)
def test_text_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text.onnx"
    path.write_text(text)
    refused(path, InvalidModelError)


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = FAMILIES["docs_and_metadata"]().SerializeToString()
    path = tmp_path / "cut.onnx"
    loaded = 0
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        try:
            load(path)
            loaded += 1
        except GraphoptError as error:
            assert error.exit_code == 3  # noqa: PT017 - which lengths still parse is protobuf's business
    # Only a cut between two trailing fields of the model itself leaves a model.
    assert loaded < 5


def test_random_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.onnx"
    for size in (1, 2, 3, 10, 100, 1000) * 20:
        path.write_bytes(rng.bytes(size))
        refused(path, InvalidModelError)


def test_over_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    refused(path, InvalidModelError, str(2**31), "external data")


def test_other_message(tmp_path: Path) -> None:
    path = tmp_path / "tensor.onnx"
    path.write_bytes(weight("w", 3, 3).SerializeToString())
    refused(path, InvalidModelError)


def test_field_from_the_future(tmp_path: Path) -> None:
    proto = relu_chain()
    path = tmp_path / "future.onnx"
    path.write_bytes(proto.SerializeToString() + b"\xf8\x3f\x01")
    refused(path, UnsupportedModelError, "field 1023 of model", onnx.__version__)


# The model as a whole


def test_header(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def refused_with(
        change: Callable[[onnx.ModelProto], object], kind: type[GraphoptError], *words: str
    ) -> None:
        proto = relu_chain()
        change(proto)
        path.write_bytes(proto.SerializeToString())
        refused(path, kind, *words)

    refused_with(lambda m: m.ClearField("graph"), InvalidModelError, "no graph")
    refused_with(lambda m: m.ClearField("ir_version"), InvalidModelError, "no IR version")
    refused_with(lambda m: m.ClearField("opset_import"), InvalidModelError, "opset_import")
    refused_with(lambda m: m.opset_import.add(domain="", version=9), InvalidModelError, "21 and 9")
    refused_with(
        lambda m: setattr(m.opset_import[0], "version", 0), InvalidModelError, "version 0", "ai.onnx"
    )
    refused_with(lambda m: m.training_info.add(), UnsupportedModelError, "training_info")
    for version in (1, 2):

        def age(proto: onnx.ModelProto, version: int = version) -> None:
            proto.ir_version = version
            del proto.opset_import[:]

        refused_with(age, UnsupportedModelError, f"IR version {version} ")


def graph_without(**fields: Any) -> onnx.ModelProto:
    """A model whose graph has just these fields."""
    return model(onnx.GraphProto(name="g", **fields))


def invalid(proto: onnx.ModelProto, *words: str, kind: type[GraphoptError] = InvalidModelError) -> None:
    with pytest.raises(GraphoptError) as caught:
        lower(proto)
    assert type(caught.value) is kind, caught.value
    for word in words:
        assert word in str(caught.value)


def test_zero_nodes() -> None:
    invalid(graph_without(), "neither nodes nor outputs")
    through = lower(graph_without(input=[info("x")], output=[info("x")]))
    assert [value.name for value in through.graph.outputs] == ["x"]
    constant = lower(graph_without(initializer=[weight("w", 4)], output=[info("w", shape=[4])]))
    assert len(constant.graph.initializers) == 1


# Names and order


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, **attributes)


def test_names() -> None:
    x, y = info("x"), info("y")
    relu = node("Relu", ["x"], ["y"], name="relu")
    invalid(graph_without(node=[relu], input=[x, x], output=[y]), "'x'", "two inputs")
    invalid(
        graph_without(node=[relu], input=[x], output=[y], initializer=[weight("w", 1)] * 2),
        "'w'",
        "two initializers",
    )
    invalid(
        graph_without(node=[relu], input=[x], output=[y], initializer=[weight("", 1)]),
        "initializer without a name",
    )
    invalid(graph_without(node=[relu], input=[x, info("")], output=[y]), "input without a name")
    invalid(graph_without(node=[relu], input=[x], output=[info("")]), "output without a name")
    invalid(graph_without(node=[relu], input=[x], output=[info("z")]), "'z'", "nothing in it produces")
    invalid(graph_without(node=[relu, relu], input=[x], output=[y]), "'relu'", "name of another value")
    invalid(graph_without(node=[node("Relu", ["x"], ["x"], name="loop")], input=[x], output=[x]), "'loop'")
    twice = node("Split", ["x"], ["y", "y"], name="split")
    invalid(graph_without(node=[twice], input=[x], output=[y]), "'split'", "name of another value")
    invalid(graph_without(node=[node("Relu", ["gone"], ["y"], name="n")], output=[y]), "'n'", "'gone'")
    invalid(graph_without(node=[node("", ["x"], ["y"], name="n")], input=[x], output=[y]), "op_type")
    invalid(graph_without(node=[relu], input=[x], output=[y, info("y", shape=[1])]), "'y'", "twice")
    invalid(
        graph_without(node=[relu], input=[x], output=[y], value_info=[info("q"), info("q", shape=[1])]), "'q'"
    )


def test_cycle_and_order() -> None:
    x, y = info("x"), info("y")
    cycle = [
        node("Add", ["x", "b"], ["a"], name="one"),
        node("Relu", ["a"], ["b"]),
        node("Relu", ["b"], ["y"]),
    ]
    invalid(graph_without(node=cycle, input=[x], output=[y]), "'one'", "cycle")
    unsorted = [node("Relu", ["a"], ["y"], name="late"), node("Relu", ["x"], ["a"])]
    invalid(graph_without(node=unsorted, input=[x], output=[y]), "'late'", "topological order")


def branch(name: str, *nodes: onnx.NodeProto, output: str) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [info(output)])


def test_scopes_of_subgraphs() -> None:
    flag, x, y = info("flag", TensorProto.BOOL, []), info("x"), info("y")
    fine = branch("fine", node("Relu", ["x"], ["e"]), output="e")

    def with_branch(bad: onnx.GraphProto, *before: onnx.NodeProto) -> onnx.ModelProto:
        choose = node("If", ["flag"], ["y"], name="choose", then_branch=bad, else_branch=fine)
        return graph_without(node=[*before, choose], input=[flag, x], output=[y])

    first = node("Neg", ["x"], ["m"])
    invalid(
        with_branch(branch("b", node("Relu", ["x"], ["m"], name="again"), output="m"), first),
        "'again'",
        "'m'",
    )
    invalid(
        with_branch(branch("b", node("Relu", ["nowhere"], ["t"], name="n"), output="t")), "'n'", "'nowhere'"
    )
    invalid(with_branch(branch("b", output="x")), "'x'", "Identity")
    late = with_branch(branch("b", node("Relu", ["later"], ["t"], name="early"), output="t"))
    late.graph.node.append(node("Relu", ["y"], ["later"]))
    invalid(late, "'early'", "'later'")
    # The same name in both branches is no clash.
    lower(with_branch(branch("b", node("Neg", ["x"], ["e"]), output="e")))


def test_domains() -> None:
    custom = node("Op", ["x"], ["y"], name="custom", domain="acme")
    invalid(graph_without(node=[custom], input=[info("x")], output=[info("y")]), "'custom'", "'acme'")
    proto = graph_without(node=[custom], input=[info("x")], output=[info("y")])
    proto.opset_import.add(domain="acme", version=1)
    assert [item.domain for item in lower(proto).nodes()] == ["acme"]
    del proto.opset_import[0]
    proto.graph.node[0].domain = ""
    invalid(proto, "'ai.onnx'")


# Types and tensors


def with_tensor(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return graph_without(initializer=[tensor], output=[info("t", shape=None)])


def test_tensors() -> None:
    floats = TensorProto.FLOAT
    invalid(
        with_tensor(TensorProto(name="t", data_type=floats, dims=[3], raw_data=b"1234")),
        "'t'",
        "12 bytes",
        "has 4",
    )
    invalid(
        with_tensor(TensorProto(name="t", data_type=floats, dims=[1], raw_data=b"12345678")), "'t'", "has 8"
    )
    invalid(
        with_tensor(TensorProto(name="t", data_type=floats, dims=[2], float_data=[1])), "'t'", "float_data"
    )
    invalid(with_tensor(TensorProto(name="t", data_type=floats, dims=[1], int32_data=[1])), "'t'")
    invalid(
        with_tensor(TensorProto(name="t", data_type=floats, dims=[1], float_data=[1], raw_data=b"1234")),
        "both",
    )
    invalid(with_tensor(TensorProto(name="t", data_type=floats, dims=[-1])), "'t'", "negative dim")
    invalid(with_tensor(TensorProto(name="t", dims=[0])), "'t'", "no element type")
    invalid(with_tensor(TensorProto(name="t", data_type=99)), "99", kind=UnsupportedModelError)
    invalid(
        with_tensor(TensorProto(name="t", data_type=TensorProto.STRING, dims=[2], string_data=[b"a"])),
        "strings",
    )
    invalid(
        with_tensor(TensorProto(name="t", data_type=TensorProto.INT4, dims=[3], raw_data=b"1")), "2 bytes"
    )
    cut = TensorProto(name="t", data_type=floats, dims=[1], float_data=[1])
    cut.segment.begin = 0
    invalid(with_tensor(cut), "'t'", "segments", kind=UnsupportedModelError)


def test_initializer_that_contradicts_its_declaration() -> None:
    tensor = weight("w", 4)
    for declared, word in (
        (info("w", TensorProto.INT8, [4]), "INT8"),
        (info("w", shape=[5]), "[5]"),
        (info("w", shape=[]), "[]"),
    ):
        invalid(graph_without(initializer=[tensor], input=[declared], output=[info("w")]), "'w'")
        invalid(
            graph_without(initializer=[tensor], value_info=[declared], output=[weightless("w")]), "'w'", word
        )
    lower(graph_without(initializer=[tensor], input=[info("w", shape=["N"])], output=[weightless("w")]))


def weightless(name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name)


def test_sparse_tensors() -> None:
    def sparse(values: int, indices: list[int], dims: list[int]) -> onnx.ModelProto:
        proto = graph_without(output=[info("s", shape=None)])
        proto.graph.sparse_initializer.append(
            onnx.SparseTensorProto(
                values=weight("s", values),
                indices=numpy_helper.from_array(np.zeros(indices, np.int64)),
                dims=dims,
            )
        )
        return proto

    lower(sparse(2, [2], [4, 4]))
    lower(sparse(2, [2, 2], [4, 4]))
    invalid(sparse(2, [3], [4, 4]), "'s'", "do not fit")
    invalid(sparse(2, [2, 3], [4, 4]), "'s'", "do not fit")


def test_types() -> None:
    def with_input(value: onnx.ValueInfoProto) -> onnx.ModelProto:
        return graph_without(input=[value], output=[value])

    mapping = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    invalid(
        with_input(helper.make_value_info("m", mapping)), "input 'm'", "map type", kind=UnsupportedModelError
    )
    nested = helper.make_sequence_type_proto(mapping)
    invalid(
        with_input(helper.make_value_info("m", nested)), "input 'm'", "map type", kind=UnsupportedModelError
    )
    opaque = onnx.ValueInfoProto(name="o")
    opaque.type.opaque_type.name = "thing"
    invalid(with_input(opaque), "input 'o'", "opaque type", kind=UnsupportedModelError)
    invalid(with_input(info("x", shape=[-3])), "input 'x'", "-3")
    invalid(with_input(info("x", 77)), "input 'x'", "77", kind=UnsupportedModelError)
    typed = node("Op", ["x"], ["y"], name="n", domain="d")
    typed.attribute.add(name="t", type=AttributeProto.TYPE_PROTO).tp.CopyFrom(mapping)
    proto = graph_without(node=[typed], input=[info("x")], output=[info("y")])
    proto.opset_import.add(domain="d", version=1)
    invalid(proto, "attribute 't'", "'n'", kind=UnsupportedModelError)


def test_attributes() -> None:
    def with_attribute(*attributes: onnx.AttributeProto) -> onnx.ModelProto:
        relu = node("Relu", ["x"], ["y"], name="relu")
        relu.attribute.extend(attributes)
        return graph_without(node=[relu], input=[info("x")], output=[info("y")])

    invalid(with_attribute(AttributeProto(name="a")), "'a'", "'relu'", "no type")
    invalid(with_attribute(AttributeProto(name="a", type=AttributeProto.INT, i=1, f=1.0)), "'a'", "'f'")
    invalid(with_attribute(AttributeProto(name="a", type=AttributeProto.TENSOR)), "'a'", "none")
    invalid(with_attribute(AttributeProto(name="a", type=AttributeProto.GRAPH)), "'a'", "none")
    one = AttributeProto(name="a", type=AttributeProto.INT, i=1)
    invalid(with_attribute(one, one), "'relu'", "same name")


def test_metadata_key_twice() -> None:
    proto = relu_chain()
    for value in ("1", "2"):
        proto.graph.node[0].metadata_props.add(key="k", value=value)
    invalid(proto, "'first'", "'k'", "twice")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for good, bad in (
        (b"first", b"f\xffrst"),
        (b"chain", b"c\xfe\xfdin"),
        (b"Relu", b"R\xfflu"),
        (b"families", b"\xff" * 8),
    ):
        path.write_bytes(relu_chain().SerializeToString().replace(good, bad))
        refused(path, InvalidModelError, "UTF-8")


def test_damaged_files_give_our_errors_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.onnx"
    whole = [build().SerializeToString() for build in FAMILIES.values()]
    survived = 0
    for _ in range(600):
        data = bytearray(whole[rng.integers(len(whole))])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            damaged = load(path)
        except GraphoptError as error:
            assert error.exit_code in {2, 3}  # noqa: PT017 - most damage is refused, some is a changed letter
            continue
        survived += 1
        emit(damaged.clone())
    assert 0 < survived < 400


# Functions


def with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    call = node("F", ["x"], ["y"], name="call", domain="f")
    proto = graph_without(node=[call], input=[info("x")], output=[info("y")])
    proto.opset_import.add(domain="f", version=1)
    proto.functions.extend(functions)
    return proto


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["A"], ["B"], list(nodes), imports)


def test_functions() -> None:
    relu = node("Relu", ["A"], ["B"])
    lower(with_functions(function("F", relu)))
    invalid(with_functions(function("F", relu), function("F", relu)), "f::F", "twice")
    invalid(
        with_functions(function("F", node("F", ["A"], ["B"], domain="f"))), "f::F -> f::F", "calls itself"
    )
    ring = [
        function("F", node("G", ["A"], ["B"], domain="f")),
        function("G", node("F", ["A"], ["B"], domain="f")),
    ]
    invalid(with_functions(*ring), "f::F -> f::G -> f::F")
    invalid(with_functions(function("F", node("Relu", ["x"], ["B"], name="n"))), "'n'", "'x'")
    invalid(with_functions(function("F", node("Relu", ["A"], ["C"]))), "f::F", "'B'")
    stray = node("LeakyRelu", ["A"], ["B"], name="leak")
    stray.attribute.add(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope")
    invalid(with_functions(function("F", stray)), "'alpha'", "'leak'", "'slope'")
    other = function("F", node("Other", ["A"], ["B"], name="n", domain="g"))
    invalid(with_functions(other), "'n'", "'g'")
