"""Tensors: packing, freezing, sparse, constants."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as oir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import InvalidModelError
from graphopt.ir import tensors
from graphopt.ir.lower import lower
from graphopt.ir.tensors import (
    RawTensor,
    SparseTensor,
    constant_of,
    from_array,
    is_overridable,
    is_small,
    nbytes,
    pack,
    same_bytes,
    to_array,
    to_buffer,
    unpack,
)
from tests.families import FAMILIES, LOW_PRECISION, info, model

PACKED = [kind for kind in LOW_PRECISION if kind in {"INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1"}]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@settings(deadline=None)
@given(st.sampled_from([2, 4]), st.data())
def test_unpack_undoes_pack(bits: int, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 2**bits - 1)))
    packed = pack(array, bits)
    assert packed.size == -(-array.size * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, array.size), array.reshape(-1))


@settings(deadline=None)
@given(st.sampled_from([2, 4]), st.data())
def test_pack_ignores_the_upper_bits(bits: int, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(np.uint8, SHAPES))
    packed = pack(array & np.uint8(2**bits - 1), bits)
    np.testing.assert_array_equal(pack(array, bits), packed)
    work = np.full(2 * packed.size * 8 // bits, 255, np.uint8)
    np.testing.assert_array_equal(pack(array, bits, work=work, out=np.full_like(packed, 255)), packed)


@settings(deadline=None)
@given(st.sampled_from(PACKED), st.data())
def test_packed_types_agree_with_onnx(kind: str, data: st.DataObject) -> None:
    dtype = getattr(TensorProto, kind)
    bits = 2 if kind.endswith("2") else 4
    codes = data.draw(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 2**bits - 1)))
    array = (
        unpack(pack(codes, bits), bits, codes.size)
        .view(helper.tensor_dtype_to_np_dtype(dtype))
        .reshape(codes.shape)
    )
    reference = numpy_helper.from_array(array, "t")
    tensor = from_array(array)
    assert tensor.dtype == dtype
    assert tensor.tobytes() == reference.raw_data == bytes(to_buffer(tensor))
    raw = RawTensor(reference.raw_data, oir.DataType(dtype), codes.shape)
    assert raw.numpy().dtype == array.dtype
    np.testing.assert_array_equal(
        raw.numpy().view(np.uint8) & (2**bits - 1),
        numpy_helper.to_array(reference).view(np.uint8) & (2**bits - 1),
    )
    assert nbytes(raw) == nbytes(tensor) == len(reference.raw_data)


@settings(deadline=None)
@given(
    st.sampled_from([np.float32, np.float64, np.int8, np.uint16, np.int64, np.bool_, np.complex64]), st.data()
)
def test_arrays_come_back(dtype: Any, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(dtype, SHAPES))
    tensor = from_array(array, "name")
    assert tensor.name == "name"
    back = to_array(tensor)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes() == bytes(to_buffer(tensor))
    raw = RawTensor(array.tobytes(), tensor.dtype, array.shape)
    assert same_bytes(raw, tensor)
    assert same_bytes(tensor, raw)
    assert raw.numpy().tobytes() == array.tobytes()


def test_layouts_that_are_not_contiguous() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    tensor = from_array(array)
    np.testing.assert_array_equal(to_array(tensor), array)
    assert bytes(to_buffer(tensor)) == np.ascontiguousarray(array).tobytes()
    assert bytes(to_buffer(oir.Tensor(array))) == np.ascontiguousarray(array).tobytes()


@settings(deadline=None)
@given(hnp.arrays(object, SHAPES, elements=st.binary(max_size=4)))
def test_strings_keep_every_byte(array: Any) -> None:
    tensor = from_array(array)
    assert to_array(tensor).tolist() == array.tolist()
    assert to_array(tensor).shape == array.shape
    assert same_bytes(tensor, from_array(array.copy()))


def test_text_becomes_utf8() -> None:
    assert to_array(from_array(np.array(["a", "é"]))).tolist() == [b"a", "é".encode()]


@pytest.mark.parametrize("kind", LOW_PRECISION)
def test_typed_and_raw_storage_are_one(kind: str) -> None:
    loaded = lower(FAMILIES["low_precision"]())
    raw, typed = (loaded.graph.initializers[f"{storage}_{kind}"].const_value for storage in ("raw", "typed"))
    assert raw is not None
    assert typed is not None
    assert same_bytes(raw, typed)
    expected = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], np.float32).astype(to_array(raw).dtype)
    np.testing.assert_array_equal(to_array(typed).view(np.uint8), expected.view(np.uint8))


def test_nothing_can_be_edited_in_place() -> None:
    source = np.arange(4, dtype=np.float32)
    made = [
        from_array(source),
        from_array(np.array([b"a"], dtype=object)),
        from_array(np.array([1, 2, 3], ml_dtypes.int4)),
        RawTensor(source.tobytes(), oir.DataType.FLOAT, (4,)),
        RawTensor(b"\x21\x03", oir.DataType.INT4, (3,)),
        SparseTensor(from_array(source[:1]), from_array(np.array([0], np.int64)), (2,)),
    ]
    for tensor in made:
        for array in (tensor.numpy(), to_array(tensor)):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = array[0]
    source[0] = 7  # the caller's own array stays the caller's


def test_sparse_values() -> None:
    values, dense = np.array([1, 2, 3], np.float32), np.zeros((2, 3, 4), np.float32)
    places = [(0, 0, 1), (0, 2, 3), (1, 1, 0)]
    for place, value in zip(places, values, strict=True):
        dense[place] = value
    linear = np.array([np.ravel_multi_index(place, dense.shape) for place in places], np.int64)
    for indices in (linear, np.array(places, np.int64)):
        tensor = SparseTensor(from_array(values), from_array(indices), dense.shape, name="s")
        np.testing.assert_array_equal(tensor.numpy(), dense)
        assert tensor.tobytes() == dense.tobytes()
        assert nbytes(tensor) == dense.nbytes
    empty = SparseTensor(from_array(values[:0]), from_array(linear[:0]), (3,))
    np.testing.assert_array_equal(empty.numpy(), np.zeros(3))
    scalar = SparseTensor(from_array(values[:1]), from_array(np.zeros((1, 0), np.int64)), ())
    assert scalar.numpy().tolist() == 1


@pytest.mark.parametrize("indices", [[-1], [24], [[0, 3, 0]], [[0, 0, -1]]])
def test_sparse_index_outside(indices: list[Any]) -> None:
    tensor = SparseTensor(
        from_array(np.ones(1, np.float32)), from_array(np.array(indices, np.int64)), (2, 3, 4), name="s"
    )
    with pytest.raises(InvalidModelError, match="'s'"):
        tensor.numpy()


def test_constants() -> None:
    nodes = [
        helper.make_node(
            "Constant", [], ["tensor"], value=numpy_helper.from_array(np.array([1.0], np.float32))
        ),
        helper.make_node("Constant", [], ["float"], value_float=0.5),
        helper.make_node("Constant", [], ["floats"], value_floats=[0.5, 1.5]),
        helper.make_node("Constant", [], ["int"], value_int=7),
        helper.make_node("Constant", [], ["ints"], value_ints=[7, 8]),
        helper.make_node("Constant", [], ["string"], value_string="s"),
        helper.make_node("Constant", [], ["strings"], value_strings=["s", "t"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x"), info("w", shape=[1])],
        [info("y")],
        initializer=[numpy_helper.from_array(np.array([2.0], np.float32), n) for n in ("w", "c")],
    )
    loaded = lower(model(graph))
    values = {value.name: value for node in loaded.graph for value in node.outputs}
    expected: dict[str, Any] = {
        "tensor": np.array([1.0], np.float32),
        "float": np.float32(0.5),
        "floats": np.array([0.5, 1.5], np.float32),
        "int": np.int64(7),
        "ints": np.array([7, 8]),
        "string": np.array(b"s", dtype=object),
        "strings": np.array([b"s", b"t"], dtype=object),
    }
    for name, array in expected.items():
        found = constant_of(values[name])
        assert found is not None
        assert to_array(found).dtype == array.dtype
        np.testing.assert_array_equal(to_array(found), array)
    assert constant_of(None) is None
    assert constant_of(values["y"]) is None
    assert constant_of(loaded.graph.inputs[0]) is None
    assert constant_of(loaded.graph.initializers["w"]) is None
    assert is_overridable(loaded.graph.initializers["w"])
    constant = constant_of(loaded.graph.initializers["c"])
    assert constant is not None
    assert is_small(constant, 4)
    assert not is_small(constant, 3)


def test_references_and_sparse_constants() -> None:
    function = next(f for f in lower(FAMILIES["functions"]()).functions.values() if f.name == "ScaleLeak")
    assert constant_of(next(iter(function)).outputs[0]) is None
    sparse = next(iter(lower(FAMILIES["sparse"]()).graph)).outputs[0]
    found = constant_of(sparse)
    assert isinstance(found, SparseTensor)
    assert to_array(found).tolist() == [0, 1, 0, 2]


def test_described_tensors_share_data() -> None:
    for family in ("docs_and_metadata", "graph_edges", "low_precision"):
        for value in lower(FAMILIES[family]()).graph.initializers.values():
            assert value.const_value is not None
            copy = tensors.describe(value.const_value, {"k": "v"}, "doc")
            assert (copy.doc_string, dict(copy.metadata_props)) == ("doc", {"k": "v"})
            assert same_bytes(copy, value.const_value)
            assert value.const_value.doc_string != "doc"


def test_same_bytes_sees_every_bit() -> None:
    def tensor(array: Any) -> oir.TensorProtocol:
        return from_array(np.asarray(array))

    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert not same_bytes(tensor(nan[:1]), tensor(nan[1:]))
    assert same_bytes(tensor(nan), tensor(nan.copy()))
    assert not same_bytes(tensor(np.array([0.0])), tensor(np.array([-0.0])))
    assert not same_bytes(tensor(np.zeros(2, np.int32)), tensor(np.zeros(2, np.float32)))
    assert not same_bytes(tensor(np.zeros((1, 2), np.int32)), tensor(np.zeros((2, 1), np.int32)))
    assert same_bytes(tensor(np.zeros((0, 2), np.int32)), tensor(np.zeros((0, 2), np.int32)))
