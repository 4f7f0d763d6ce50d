"""Loading, cloning, and random small graphs there and back."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir import meta
from graphopt.ir.emit import emit
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import load, lower
from graphopt.ir.tensors import SparseTensor
from graphopt.ir.verify import problems
from tests import corpora
from tests.canonical import same_model
from tests.examples import examples
from tests.families import FAMILIES, info, model, weight

if TYPE_CHECKING:
    from pathlib import Path


def written(made: Any) -> bytes:
    data: bytes = emit(made).SerializeToString(deterministic=True)
    return data


def test_the_message_is_neither_changed_nor_kept() -> None:
    for build in FAMILIES.values():
        proto = build()
        before = proto.SerializeToString(deterministic=True)
        made = lower(proto)
        first = written(made)
        for value in made.graph.initializers.copy().values():
            value.name = f"renamed {value.name}"
        assert proto.SerializeToString(deterministic=True) == before
        proto.Clear()
        assert lower(build()).graph is not made.graph
        assert first == written(lower(build()))


def test_source(tmp_path: Path) -> None:
    for path in corpora.feature_models(tmp_path).values():
        source = load(path).source
        assert source is not None
        assert source.path == path
        names = [file.name for file in source.external_files]
        assert names == (["w.bin", "p.bin"] if path.parent.name == "external" else [])
        assert load(str(path)).clone().source == source


def test_values_know_what_the_file_says() -> None:
    made = lower(FAMILIES["symbolic_shapes"]())
    x = made.graph.inputs[0]
    assert x.shape is not None
    assert [dim if isinstance(dim, int) else dim.value for dim in x.shape] == ["batch", None, "seq*2+1", 4]
    assert x.shape.get_denotation(1) == "DATA_CHANNEL"
    assert x.type is not None
    assert x.type.denotation == "IMAGE"
    unknown = made.graph.inputs[2]
    assert unknown.shape is None
    assert unknown.dtype == oir.DataType.FLOAT
    edges = lower(FAMILIES["graph_edges"]())
    w = edges.graph.initializers["w"]
    assert w.is_graph_input()
    assert w.is_graph_output()
    assert edges.graph.inputs[0] is edges.graph.outputs[1]


def test_initializers_have_type_and_shape_without_value_info() -> None:
    made = lower(FAMILIES["low_precision"]())
    for value in made.graph.initializers.values():
        assert value.const_value is not None
        assert value.dtype == value.const_value.dtype
        assert value.shape == [3, 3]
    assert not emit(made).graph.value_info


def test_captured_values_are_the_outer_ones() -> None:
    made = lower(FAMILIES["loops"]())
    factor = made.graph.initializers["factor"]
    (user,) = factor.consumers()
    assert user.op_type == "Mul"
    assert user.graph is not made.graph
    clone = made.clone()
    (cloned,) = clone.graph.initializers["factor"].consumers()
    assert cloned is not user
    assert cloned.graph in set(clone.graphs())


def test_sparse_initializers_stay_sparse_until_they_are_replaced() -> None:
    made = lower(FAMILIES["sparse"]())
    value = made.graph.initializers["w"]
    assert isinstance(value.const_value, SparseTensor)
    assert np.flatnonzero(value.const_value.numpy()).tolist() == [0, 5, 10]
    from graphopt.ir.tensors import from_array

    value.const_value = from_array(np.array(value.const_value.numpy()))
    message = emit(made)
    assert [tensor.name for tensor in message.graph.initializer] == ["w"]
    assert [tensor.values.name for tensor in message.graph.sparse_initializer] == ["v"]
    onnx.checker.check_model(message)


def test_leftovers_yield_to_new_values() -> None:
    made = lower(FAMILIES["graph_edges"]())
    assert "ghost" in [entry.name for entry in emit(made).graph.value_info]
    value = next(iter(made.graph)).outputs[0]
    value.name = "ghost"
    entries = [entry for entry in emit(made).graph.value_info if entry.name == "ghost"]
    assert len(entries) == 1
    assert not entries[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_exact_entries_yield_to_new_types() -> None:
    made = lower(FAMILIES["symbolic_shapes"]())
    value = next(value for node in made.graph for value in node.outputs if value.name == "p")
    assert meta.EXACT in value.meta
    value.type, value.shape = oir.TensorType(oir.DataType.FLOAT), oir.Shape(["batch"])
    entry = next(entry for entry in emit(made).graph.value_info if entry.name == "p")
    assert entry == info("p", shape=["batch"])


def test_declared_info_of_a_new_type_of_initializer() -> None:
    proto = model(
        helper.make_graph(
            [],
            "g",
            [],
            [info("y", shape=[4])],
            initializer=[weight("w", 4), weight("y", 4)],
            value_info=[info("w", shape=[4])],
        )
    )
    assert not same_model(proto, emit(lower(proto)))


def test_subgraph_value_may_shadow_an_input_of_a_body() -> None:
    # Allowed by the checker: the input of a body has the name of an outer value.
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_out"]), helper.make_node("Neg", ["x"], ["x_out"])],
        "body",
        [info("step", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("x")],
        [info("go_out", TensorProto.BOOL, []), info("x_out")],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    proto = model(helper.make_graph([loop], "g", [info("n", TensorProto.INT64, []), info("x")], [info("y")]))
    onnx.checker.check_model(proto)
    made = lower(proto)
    assert not problems(made)
    assert not same_model(proto, emit(made.clone()))


@pytest.mark.slow
def test_what_the_checker_accepts_loads(tmp_path: Path) -> None:
    accepted = 0
    for path in corpora.node_models():
        onnx.checker.check_model(str(path))
        accepted += 1
        load(path)
    assert accepted == 1282


def test_a_rename_in_a_clone_stays_there() -> None:
    original = lower(FAMILIES["docs_and_metadata"]())
    before = written(original)
    clone = original.clone()
    constant = next(node for node in clone.graph if node.op_type == "Constant")
    # What canonicalize does: the tensor of the attribute becomes that of a value, and the value is renamed.
    constant.outputs[0].const_value = constant.attributes["value"].as_tensor()
    constant.outputs[0].name = "other"
    clone.graph.initializers["w"].name = "weights"
    assert written(original) == before
    assert written(clone) != before


def test_arrays_of_a_clone_are_frozen() -> None:
    original = lower(FAMILIES["branches"]())
    array = np.ones(4, np.float32)
    original.graph.initializers["scale"].const_value = oir.Tensor(array)
    original.clone()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    for value in original.clone().graph.initializers.values():
        assert value.const_value is not None
        with pytest.raises(ValueError, match="read-only"):
            value.const_value.numpy()[0] = 1


def test_meta_of_a_clone_is_its_own() -> None:
    original = lower(FAMILIES["quantization_annotations"]())
    before = written(original)
    original.graph.meta["note"] = [1]
    original.graph.meta.invalidate("note")
    clone = original.clone()
    assert not clone.graph.meta.is_valid("note")
    clone.graph.meta["note"].append(2)
    clone.graph.inputs[0].meta[meta.QUANTIZATION]["SCALE_TENSOR"] = "other"
    assert original.graph.meta["note"] == [1]
    assert written(original) == before


def test_collector_state_is_restored() -> None:
    assert gc.isenabled()
    lower(FAMILIES["branches"]()).clone()
    assert gc.isenabled()
    gc.disable()
    try:
        lower(FAMILIES["branches"]()).clone()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_deep_nesting() -> None:
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y0"])], "g0", [], [info("y0")])
    for depth in range(1, 20):
        other = helper.make_graph(
            [helper.make_node("Abs", ["x"], [f"e{depth}"])], "e", [], [info(f"e{depth}")]
        )
        node = helper.make_node("If", ["flag"], [f"y{depth}"], then_branch=graph, else_branch=other)
        graph = helper.make_graph([node], f"g{depth}", [], [info(f"y{depth}")])
    graph.input.extend([info("x"), info("flag", TensorProto.BOOL, [])])
    proto = model(graph)
    made = lower(proto)
    assert len(list(made.graphs())) == 39
    assert not same_model(proto, emit(made.clone()))


# Random graphs

TEXTS = st.text(max_size=4)
PROPS = st.dictionaries(TEXTS, TEXTS, max_size=2)
DIMS = st.lists(st.one_of(st.none(), st.integers(0, 5), st.sampled_from(["N", "M", "N*2"])), max_size=3)
DTYPES = st.sampled_from(
    [TensorProto.FLOAT, TensorProto.INT64, TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.STRING]
)


def put_props(message: Any, props: dict[str, str]) -> None:
    for key, value in props.items():
        message.metadata_props.add(key=key, value=value)


@st.composite
def values(draw: st.DrawFn, name: str) -> onnx.ValueInfoProto:
    value = info(name, draw(DTYPES), draw(st.one_of(st.none(), DIMS)))
    value.doc_string = draw(TEXTS)
    put_props(value, draw(PROPS))
    return value


@st.composite
def attributes(draw: st.DrawFn, name: str) -> onnx.AttributeProto:
    content = draw(
        st.one_of(
            st.integers(-(2**63), 2**63 - 1),
            st.floats(width=32),
            TEXTS,
            st.binary(max_size=3),
            st.lists(st.integers(-9, 9), min_size=1, max_size=3),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3),
            st.lists(TEXTS, min_size=1, max_size=3),
        )
    )
    made = helper.make_attribute(name, content)
    made.doc_string = draw(TEXTS)
    return made


@st.composite
def graphs(draw: st.DrawFn, prefix: str, outer: tuple[str, ...], depth: int) -> onnx.GraphProto:
    graph = onnx.GraphProto(name=draw(TEXTS), doc_string=draw(TEXTS))
    put_props(graph, draw(PROPS))
    known = list(outer)
    for k in range(draw(st.integers(0, 2))):
        graph.input.append(draw(values(f"{prefix}i{k}")))
        known.append(f"{prefix}i{k}")
    for k in range(draw(st.integers(0, 2))):
        overridable = bool(graph.input) and k == 0 and draw(st.booleans())
        name = graph.input[0].name if overridable else f"{prefix}w{k}"
        array = np.arange(draw(st.integers(0, 4)), dtype=draw(st.sampled_from([np.float32, np.int8])))
        graph.initializer.append(numpy_helper.from_array(array, name))
        put_props(graph.initializer[-1], draw(PROPS))
        if not overridable:
            known.append(name)
        else:
            graph.input[0].type.tensor_type.elem_type = graph.initializer[-1].data_type
            graph.input[0].type.tensor_type.ClearField("shape")
    made = []
    for k in range(draw(st.integers(1, 4))):
        inputs = draw(st.lists(st.sampled_from(["", *known]), max_size=3))
        outputs = [f"{prefix}v{k}_{i}" for i in range(draw(st.integers(1, 2)))]
        node = graph.node.add(op_type="Op", domain="d", name=draw(TEXTS), doc_string=draw(TEXTS))
        node.input.extend(inputs)
        node.output.extend(outputs)
        put_props(node, draw(PROPS))
        for i in range(draw(st.integers(0, 2))):
            node.attribute.append(draw(attributes(f"a{i}")))
        if depth and draw(st.booleans()):
            inner = draw(graphs(f"{prefix}g{k}_", tuple(known), depth - 1))
            node.attribute.append(helper.make_attribute("body", inner))
        known += outputs
        made += outputs
    for name in made:
        if draw(st.booleans()):
            graph.value_info.append(draw(values(name)))
    listed = draw(st.lists(st.sampled_from(made), unique=True, max_size=2))
    graph.output.extend(draw(values(name)) for name in listed)
    for name in draw(st.lists(st.sampled_from(known), unique=True, max_size=2)):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        for key, content in draw(PROPS).items():
            annotation.quant_parameter_tensor_names.add(key=key, value=content)
    return graph


@settings(deadline=None, max_examples=examples(60))
@given(graphs("", (), 2), PROPS)
def test_random_graphs_come_back(graph: onnx.GraphProto, props: dict[str, str]) -> None:
    proto = model(graph, domains=(("d", 1),))
    put_props(proto, props)
    made = lower(proto)
    assert not same_model(proto, emit(made))
    assert not problems(made)
    clone = made.clone()
    assert written(clone) == written(made)
    assert fingerprint(clone) == fingerprint(made)
    assert fingerprint(lower(proto)) == fingerprint(made)
