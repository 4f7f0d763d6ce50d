"""Random feeds of every kind, sizes of free dims, integers that the graph can take, and checks of feeds."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.errors import DataError, OptionError
from graphopt.ir.lower import load, lower
from graphopt.runtime import dtypes
from graphopt.runtime.feeds import (
    Feed,
    InputSpec,
    bind_dims,
    check_dims,
    check_feeds,
    free_dims,
    input_specs,
    output_specs,
    random_feeds,
)
from graphopt.runtime.hints import IntegerHint
from graphopt.runtime.session import open_session
from tests.examples import examples
from tests.runtime.models import FLOAT, INT64, Declared, model, unary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def spec(name: str = "x", dtype: str = "float32", shape: Any = (1,), **more: Any) -> InputSpec:
    return InputSpec(name, dtype, shape, **more)


def hint_of(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str] = (4,), **more: Any
) -> IntegerHint | None:
    inputs: list[Declared] = [("i", INT64, list(shape))]
    proto = model(nodes, [*inputs, *more.pop("inputs", [])], [("y", more.pop("dtype", FLOAT), None)], **more)
    return input_specs(lower(proto))[0].hint


# --- specs


def test_specs_of_every_kind_of_input() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.INT64, ["n"])
    tensor = helper.make_tensor_type_proto(FLOAT, [2])
    optional = helper.make_value_info("o", helper.make_optional_type_proto(tensor))
    listed = helper.make_sequence_type_proto(tensor)
    both = helper.make_value_info("b", helper.make_optional_type_proto(listed))
    proto = model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [
            ("x", FLOAT, ["n", None, 3]),
            ("w", FLOAT, [1]),
            ("u", TensorProto.BFLOAT16, None),
            sequence,
            optional,
            both,
        ],
        [("y", FLOAT, None)],
        {"w": np.ones(1, np.float32)},
    )
    x, w, u, s, o, b = input_specs(lower(proto))
    assert x == InputSpec("x", "float32", ("n", None, 3))
    assert w.has_default
    assert u == InputSpec("u", "bfloat16", None)
    assert (s.kind, s.dtype, s.shape) == ("sequence", "int64", ("n",))
    assert (o.kind, o.dtype, o.shape) == ("optional", "float32", (2,))
    assert (b.kind, b.dtype) == ("optional sequence", "float32")
    assert str(x) == "float32[n,?,3]"
    assert str(s) == "sequence of int64[n]"
    assert output_specs(lower(proto)) == (InputSpec("y", "float32", None),)


def test_names_and_numbers_of_element_types_are_onnxs_own() -> None:
    numbers = {each.number for each in dtypes.ELEMENT_TYPES}
    for each in dtypes.ELEMENT_TYPES:
        if each.name == "string":
            continue
        # ml_dtypes' name for the type is numpy's name for what onnx makes of the number.
        assert helper.tensor_dtype_to_np_dtype(each.number) == each.numpy()
    assert set(range(1, 25)) <= numbers


# --- dims


def test_bound_dims_and_expressions() -> None:
    shape = (
        "batch",
        "seq*2",
        "past + 1",
        "(a-b)//2",
        "ceiling(seq/2)",
        "floor(seq/2)",
        "Max(1, seq)",
        None,
        7,
    )
    sizes = {"batch": 2, "seq": 5, "past": 0, "a": 9, "b": 2}
    assert bind_dims([spec(shape=shape)], sizes)[0].shape == (2, 10, 1, 3, 3, 2, 5, None, 7)


def test_what_is_not_bound_stays_and_odd_names_are_names() -> None:
    shape = ("batch", "seq*2", "a b", "unk__12", "x.1", "f(1)", "__import__('os')", "2**9")
    assert bind_dims([spec(shape=shape)], {"other": 3})[0].shape == shape
    assert bind_dims([spec(shape=shape)], {"a b": 3, "x.1": 0})[0].shape == (
        *shape[:2],
        3,
        shape[3],
        0,
        *shape[5:],
    )


def test_an_expression_may_be_bound_whole_and_a_nameless_dim_by_its_place() -> None:
    shapes = [spec("a", shape=("seq*2", None)), spec("b", shape=(None,))]
    bound = bind_dims(shapes, {"seq*2": 6, "a[1]": 4})
    assert [each.shape for each in bound] == [(6, 4), (None,)]


def test_a_negative_size_is_an_error() -> None:
    with pytest.raises(DataError, match="the dim 'n-2' comes out as -1"):
        bind_dims([spec(shape=("n-2",))], {"n": 1})


def test_free_dims_have_names() -> None:
    specs = [spec("a", shape=("seq*2", None, 3)), spec("b", shape=("seq", "batch"))]
    assert free_dims(specs) == ("seq", "a[1]", "batch")
    check_dims(specs, {"seq": 0, "a[1]": 3, "seq*2": 2})
    with pytest.raises(OptionError, match=r"no input has a free dim called 'bach'. Did you mean 'batch'\?"):
        check_dims(specs, {"bach": 1})
    with pytest.raises(OptionError, match="at least 0, got -1"):
        check_dims(specs, {"seq": -1})


def test_free_dims_are_one_and_equal_symbols_agree() -> None:
    specs = [spec("a", shape=("n", "n*3", None)), spec("b", shape=("m", 0)), spec("c", shape=None)]
    feed = random_feeds(specs, 1)[0]
    assert [feed[name].shape for name in "abc"] == [(1, 3, 1), (1, 0), (1,)]  # type: ignore[union-attr]  # arrays
    feed = random_feeds(specs, 1, dims={"n": 4, "m": 0})[0]
    assert [feed[name].shape for name in "abc"] == [(4, 12, 1), (0, 0), (1,)]  # type: ignore[union-attr]  # arrays


# --- random values


@pytest.mark.parametrize("name", [each.name for each in dtypes.ELEMENT_TYPES if "complex" not in each.name])
def test_random_values_have_the_type_and_pass_the_check(name: str) -> None:
    specs = [spec("x", name, (2, 300)), spec("scalar", name, ()), spec("s", name, (3,), kind="sequence")]
    for feed in random_feeds(specs, 2, seed=3):
        check_feeds(feed, specs)
        assert len(feed["s"]) == 2  # type: ignore[arg-type]  # a list
        assert dtypes.of_array(feed["x"]).name == name  # type: ignore[arg-type]  # an array
    values = random_feeds(specs, 1)[0]["x"]
    assert len(set(values.reshape(-1).tolist())) > 1  # type: ignore[union-attr]  # an array


def test_bytes_cover_their_range() -> None:
    feed = random_feeds(
        [spec("u", "uint8", (4000,)), spec("i", "int8", (4000,)), spec("f", shape=(4000,))], 1
    )[0]
    assert (feed["u"].min(), feed["u"].max()) == (0, 255)  # type: ignore[union-attr]  # an array
    assert (feed["i"].min(), feed["i"].max()) == (-128, 127)  # type: ignore[union-attr]  # an array
    assert abs(float(feed["f"].mean())) < 0.1  # type: ignore[union-attr]  # an array
    assert abs(float(feed["f"].std()) - 1) < 0.1  # type: ignore[union-attr]  # an array


def test_seeds_feeds_and_inputs_have_streams_of_their_own() -> None:
    one, two = random_feeds([spec("a", shape=(9,))], 2, seed=5)
    again, _ = random_feeds([spec("b", shape=(9,)), spec("a", shape=(9,))], 2, seed=5)
    other = random_feeds([spec("a", shape=(9,))], 1, seed=6)[0]
    np.testing.assert_array_equal(one["a"], again["a"])
    for different in (two["a"], again["b"], other["a"]):
        assert not np.array_equal(one["a"], different)


@pytest.mark.parametrize("size", [1 << 41, 1 << 62, 1 << 80])
def test_what_does_not_fit_into_memory_is_an_error_of_the_data(size: int) -> None:
    with pytest.raises(DataError, match="do not fit into memory"):
        random_feeds([spec(shape=("n", 3))], 1, dims={"n": size})


def test_inputs_with_a_default_are_left_out_and_complex_is_refused() -> None:
    assert random_feeds([spec("w", has_default=True)], 1) == [{}]
    with pytest.raises(DataError, match="'x' is complex64, for which graphopt makes up no values"):
        random_feeds([spec(dtype="complex64")], 1)


# --- integers that the graph can take


def gather(indices: str, axis: int = 0) -> onnx.NodeProto:
    return helper.make_node("Gather", ["w", indices], ["y"], axis=axis)


TABLE = {"w": np.zeros((50, 7), np.float32)}


@pytest.mark.parametrize(("axis", "size"), [(0, 50), (1, 7), (-1, 7)])
def test_indices_stay_inside_their_axis(axis: int, size: int) -> None:
    assert hint_of([gather("i", axis)], weights=TABLE) == IntegerHint("index", 0, size)


def test_indices_are_followed_through_what_only_moves_them() -> None:
    nodes = [
        helper.make_node("Cast", ["i"], ["a"], to=TensorProto.INT32),
        helper.make_node("Unsqueeze", ["a", "axes"], ["b"]),
        helper.make_node("Concat", ["b", "b"], ["c"], axis=0),
        helper.make_node("Transpose", ["c"], ["d"]),
        helper.make_node("Identity", ["d"], ["e"]),
        gather("e"),
    ]
    assert hint_of(nodes, weights={**TABLE, "axes": np.array([0])}) == IntegerHint("index", 0, 50)


def test_a_constant_added_on_the_way_shifts_the_range() -> None:
    nodes = [helper.make_node("Add", ["i", "two"], ["a"]), gather("a")]
    assert hint_of(nodes, weights={**TABLE, "two": np.array(2)}) == IntegerHint("index", -2, 48)
    nodes = [helper.make_node("Sub", ["i", "two"], ["a"]), gather("a")]
    assert hint_of(nodes, weights={**TABLE, "two": np.array([2])}) == IntegerHint("index", 2, 52)


def test_the_wrapping_of_negative_indices_does_not_move_the_range() -> None:
    nodes = [
        helper.make_node("Less", ["i", "zero"], ["negative"]),
        helper.make_node("Add", ["i", "size"], ["wrapped"]),
        helper.make_node("Where", ["negative", "wrapped", "i"], ["a"]),
        gather("a"),
    ]
    weights = {**TABLE, "zero": np.array(0), "size": np.array(50)}
    assert hint_of(nodes, weights=weights) == IntegerHint("index", 0, 50)


def test_two_tables_leave_the_smaller() -> None:
    nodes = [gather("i"), helper.make_node("Gather", ["v", "i"], ["z"])]
    assert hint_of(nodes, weights={**TABLE, "v": np.zeros((9, 2), np.float32)}) == IntegerHint("index", 0, 9)


def test_a_table_of_unknown_size_has_a_first_row() -> None:
    assert hint_of([gather("i")], inputs=[("w", FLOAT, ["rows", 2])]) == IntegerHint("index", 0, 1)


def test_indices_are_followed_into_branches_and_functions() -> None:
    branches = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("Gather", ["w", "i"], [f"{side}_y"])],
            side,
            [],
            [helper.make_tensor_value_info(f"{side}_y", FLOAT, None)],
        )
        for side in ("then", "else")
    }
    nodes = [helper.make_node("If", ["c"], ["y"], **branches)]
    assert hint_of(nodes, weights=TABLE, inputs=[("c", TensorProto.BOOL, [])]) == IntegerHint("index", 0, 50)
    opsets = [helper.make_opsetid("", 21)]
    body = [helper.make_node("Gather", ["t", "k"], ["o"])]
    function = helper.make_function("my", "Pick", ["t", "k"], ["o"], body, opsets)
    nodes = [helper.make_node("Pick", ["w", "i"], ["y"], domain="my")]
    # The size of the table is not known inside the body.
    assert hint_of(nodes, weights=TABLE, domains=["my"], functions=[function]) == IntegerHint("index", 0, 1)


def test_a_compared_constant_is_the_choice_for_a_scalar() -> None:
    nodes = [helper.make_node("Equal", ["i", "rate"], ["y"])]
    specs = input_specs(
        lower(model(nodes, [("i", INT64, [])], [("y", TensorProto.BOOL, [])], {"rate": np.array(16000)}))
    )
    assert specs[0].hint == IntegerHint("choice", 16000, 16001)
    assert random_feeds(specs, 1)[0]["i"] == 16000


def test_masks_keep_their_first_element() -> None:
    nodes = [
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Sub", ["one", "f"], ["y"]),
    ]
    proto = model(nodes, [("i", INT64, [64, 5])], [("y", FLOAT, None)], {"one": np.array(1, np.float32)})
    mask = random_feeds(lower(proto), 1)[0]["i"]
    assert isinstance(mask, np.ndarray)
    assert set(mask[:, 0]) == {1}
    assert set(mask[:, 1:].reshape(-1)) == {0, 1}


@pytest.mark.parametrize(
    ("node", "meaning"),
    [
        (helper.make_node("Reshape", ["w", "i"], ["y"]), "count"),
        (helper.make_node("Expand", ["w", "i"], ["y"]), "count"),
        (helper.make_node("Unsqueeze", ["w", "i"], ["y"]), "axis"),
        (helper.make_node("ReduceSum", ["w", "i"], ["y"]), "axis"),
    ],
)
def test_shapes_and_axes(node: onnx.NodeProto, meaning: str) -> None:
    hint = hint_of([node], shape=[1], weights=TABLE)
    assert hint is not None
    assert hint.meaning == meaning


def test_integers_without_a_meaning_are_small() -> None:
    proto = model([helper.make_node("Abs", ["i"], ["y"])], [("i", INT64, [500])], [("y", INT64, [500])])
    values = random_feeds(lower(proto), 1)[0]["i"]
    assert isinstance(values, np.ndarray)
    assert set(values) == set(range(8))


# --- checks


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "no value for the input 'x' (float32[n,3]), got none"),
        ({"x": np.zeros((1, 3), np.float32), "xx": 1}, "the model has no input 'xx'. Did you mean 'x'?"),
        ({"x": [np.zeros(3)]}, "expected float32[n,3], got list"),
        ({"x": np.zeros((1, 3))}, "expected float32, got float64. Convert it with: array.astype('float32')"),
        ({"x": np.zeros((1, 3), ml_dtypes.bfloat16)}, "expected float32, got bfloat16"),
        ({"x": np.zeros(3, np.float32)}, "expected rank 2 (float32[n,3]), got rank 1 [3]"),
        ({"x": np.zeros((1, 4), np.float32)}, "expected 3 in dim 1 (float32[n,3]), got 4 [1,4]"),
        ({"x": np.full((1, 3), math.nan, np.float32)}, "the values hold NaN or infinity"),
    ],
)
def test_feeds_that_do_not_fit(feeds: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        check_feeds(feeds, [spec(shape=("n", 3))], where="feed 7")
    assert words in str(caught.value)
    assert str(caught.value).startswith("feed 7")


def test_feeds_that_fit() -> None:
    check_feeds({"x": np.full((1, 3), math.inf, np.float32)}, [spec(shape=("n", 3))], finite=False)
    check_feeds({}, [spec(has_default=True)])
    check_feeds({"o": None}, [spec("o", kind="optional")])
    check_feeds({"s": []}, [spec("s", kind="sequence")])
    with pytest.raises(DataError, match="got one array"):
        check_feeds({"s": np.zeros(1, np.float32)}, [spec("s", kind="sequence")])
    with pytest.raises(DataError, match="NaN or infinity"):
        check_feeds({"b": np.full(1, math.nan).astype(ml_dtypes.bfloat16)}, [spec("b", "bfloat16")])


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(
        st.sampled_from(["float32", "int64", "uint8", "bool", "float16", "string"]), min_size=1, max_size=4
    ),
    st.lists(st.sampled_from([0, 1, 3, "n", "m", "n*2", None]), max_size=4),
    st.dictionaries(st.sampled_from(["n", "m"]), st.integers(0, 4)),
    st.integers(0, 2**31),
)
def test_random_feeds_always_pass_their_own_check(
    kinds: list[str], shape: list[int | str | None], dims: dict[str, int], seed: int
) -> None:
    specs = [spec(f"x{k}", kind, tuple(shape)) for k, kind in enumerate(kinds)]
    for feed in random_feeds(specs, 2, seed, dims):
        check_feeds(feed, bind_dims(specs, dims))


# --- real models

NEED_DIMS = {
    "silero_vad.onnx": {"input[1]": 576},
    "silero_vad_16k_op15.onnx": {"sequence": 576},
    "yunet_n_dynamic.onnx": {"height": 64, "width": 64},
}


def test_random_feeds_run_every_model_of_the_assets(assets: Path) -> None:
    files = sorted((assets / "models").glob("*.onnx"))
    assert len(files) >= 19
    for file in files:
        feeds = random_feeds(load(file), 2, dims=NEED_DIMS.get(file.name, {}))
        opened = open_session(file)
        results = [opened.run(feed) for feed in feeds]
        for name, value in results[0].items():
            assert np.isfinite(value).all(), (file.name, name)
        moved = [name for name in results[0] if not np.array_equal(results[0][name], results[1][name])]
        assert moved, file.name


@pytest.mark.slow
def test_random_feeds_run_every_model_of_the_zoo(assets: Path) -> None:
    found = importlib.util.spec_from_file_location("materialize", assets / "zoo" / "materialize.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    files = sorted((assets / "zoo").glob("*.onnx"))
    assert len(files) >= 30
    for file in files:
        proto = module.materialize(file)
        result = open_session(proto.SerializeToString()).run(random_feeds(lower(proto), 1)[0])
        assert all(np.isfinite(value).all() for value in result.values()), file.name


def test_silero_takes_the_branch_of_its_sample_rate(assets: Path) -> None:
    feed = random_feeds(load(assets / "models" / "silero_vad.onnx"), 1)[0]
    assert feed["sr"] == 16000


def test_a_model_that_refuses_a_random_feed_asks_for_data(assets: Path) -> None:
    path = assets / "models" / "silero_vad.onnx"
    with pytest.raises(DataError, match=r"cannot run on this feed.*Give real inputs with --data"):
        open_session(path).run(random_feeds(load(path), 1)[0])


def test_a_unary_model_from_end_to_end() -> None:
    proto = unary("Identity")
    feed = random_feeds(lower(proto), 1)[0]
    np.testing.assert_array_equal(open_session(proto.SerializeToString()).run(feed)["y"], feed["x"])


def test_several_axes_differ() -> None:
    proto = model(
        [helper.make_node("ReduceSum", ["w", "i"], ["y"])], [("i", INT64, [2])], [("y", FLOAT, None)], TABLE
    )
    feed = random_feeds(lower(proto), 1)[0]
    np.testing.assert_array_equal(open_session(proto.SerializeToString()).run(feed)["y"], np.zeros((1, 1)))


def test_optional_sequences_run_and_may_be_empty() -> None:
    listed = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    declared = helper.make_value_info("o", helper.make_optional_type_proto(listed))
    nodes = [helper.make_node("OptionalHasElement", ["o"], ["b"])]
    proto = model(nodes, [declared], [("b", TensorProto.BOOL, [])])
    specs = input_specs(lower(proto))
    opened = open_session(proto.SerializeToString())
    absent: Feed = {"o": None}
    for feed in [*random_feeds(specs, 1), absent]:
        check_feeds(feed, specs)
        assert opened.run(feed)["b"] == np.bool_(feed["o"] is not None)
