"""sparsify-weights: patterns, criteria against brute force, sparse storage read back by onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from graphopt.errors import DataError
from graphopt.ir.emit import emit
from graphopt.passes.sparsify_weights import SparsifyWeights
from tests.passes.harness import apply, assert_golden

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(weight: Array, ir_version: int = 8) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto: onnx.ModelProto = helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 17 if ir_version > 7 else 9)]
    )
    return proto


def convolution(weight: Array) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1], 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weight.shape[0], 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto: onnx.ModelProto = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    return proto


def weight_in(model: Any) -> Array:
    tensor = model.graph.initializers["w"].const_value
    return np.asarray(tensor.numpy())


def test_the_smallest_elements_go() -> None:
    weight = normal(64, 32)
    after, report = apply(SparsifyWeights(), product(weight), sparsity=0.75)
    found = weight_in(after)
    limit = np.sort(np.abs(weight).reshape(-1))[1536]
    np.testing.assert_array_equal(found, np.where(np.abs(weight) >= limit, weight, 0))
    assert report.extra["gain"] == "size only on this target"
    assert report.skipped == (("target 'ort-cpu'", "size only on this target: zeros cost what numbers cost"),)


def test_within_each_row() -> None:
    weight = normal(64, 32) * np.linspace(1, 9, 32, dtype=np.float32)
    after, _ = apply(SparsifyWeights(), product(weight), scope="row")
    assert ((weight_in(after) != 0).sum(0) == 32).all()


@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_row_of_a_convolution_is_all_that_makes_a_channel(group: int) -> None:
    # Of a depthwise convolution each position of the kernel has one input: it alone is nothing to compare.
    weight = normal(8, 8 // group, 3, 3) * np.geomspace(1, 100, 8, dtype=np.float32)[:, None, None, None]
    proto = convolution(weight)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8
    proto.graph.node[0].attribute.append(helper.make_attribute("group", group))
    after, report = apply(SparsifyWeights(), proto, scope="row", sparsity=2 / 3, min_elements=1)
    assert report.changed
    for found, original in zip(weight_in(after).reshape(8, -1), weight.reshape(8, -1), strict=True):
        kept = original.size // 3
        assert (found != 0).sum() == kept
        assert np.abs(found[found != 0]).min() >= np.sort(np.abs(original))[-kept]


@pytest.mark.parametrize("kind", ["product", "convolution"])
def test_two_of_four_along_the_inputs(kind: str) -> None:
    weight = normal(32, 24) if kind == "product" else normal(8, 16, 3, 3)
    proto = product(weight) if kind == "product" else convolution(weight)
    after, report = apply(SparsifyWeights(), proto, pattern="n:m", target="tensorrt")
    inputs = weight_in(after) if kind == "product" else weight_in(after).transpose(1, 0, 2, 3)
    original = weight if kind == "product" else weight.transpose(1, 0, 2, 3)
    groups = inputs.reshape(-1, 4, *inputs.shape[1:])
    assert ((groups != 0).sum(1) == 2).all()
    magnitudes = np.abs(original.reshape(groups.shape))
    assert (
        np.where(groups != 0, magnitudes, np.inf).min(1) > np.where(groups == 0, magnitudes, 0).max(1)
    ).all()
    assert report.extra["gain"] == "the target computes 2:4 faster"


def test_blocks() -> None:
    weight = normal(32, 24)
    after, _ = apply(SparsifyWeights(), product(weight), pattern="block", block_rows=8, block_columns=4)
    # An output channel is a column of the weight of MatMul.
    blocks = weight_in(after).reshape(8, 4, 3, 8)
    empty = (blocks == 0).all((1, 3))
    full = (blocks != 0).all((1, 3))
    assert (empty ^ full).all()
    assert empty.sum() == 12
    norms = (weight.reshape(8, 4, 3, 8) ** 2).sum((1, 3))
    assert norms[full].min() > norms[empty].max()


def test_wanda_keeps_what_the_inputs_ask_for() -> None:
    weight = normal(64, 32)
    loud = np.where(np.arange(64) % 8 == 0, 10.0, 0.2).astype(np.float32)
    feeds = [{"x": normal(16, 64, seed=k) * loud} for k in range(3)]
    x = np.concatenate([feed["x"] for feed in feeds])
    errors = {}
    for criterion in ("magnitude", "wanda", "entropy"):
        after, _ = apply(
            SparsifyWeights(), product(weight), data=feeds, criterion=criterion, sparsity=0.7, scope="row"
        )
        found = weight_in(after)
        errors[criterion] = float(((x @ (found - weight)) ** 2).mean())
        if criterion == "wanda":
            scores = np.abs(weight) * np.sqrt((x.astype(np.float64) ** 2).mean(0))[:, None]
            order = np.argsort(-scores, 0)
            expected = np.zeros(weight.shape, bool)
            np.put_along_axis(expected, order[:19], values=True, axis=0)
            np.testing.assert_array_equal(found != 0, expected)
    assert errors["wanda"] < 0.3 * errors["magnitude"]
    assert errors["entropy"] < 0.5 * errors["magnitude"]


def test_a_criterion_that_needs_data_says_so() -> None:
    with pytest.raises(DataError, match="data"):
        apply(SparsifyWeights(), product(normal(64, 32)), criterion="wanda")


def test_sparse_storage_is_smaller_and_read_by_the_runtime() -> None:
    weight = normal(64, 64)
    dense, _ = apply(SparsifyWeights(), product(weight), sparsity=0.9)
    after, report = apply(SparsifyWeights(), product(weight), sparsity=0.9, storage="sparse")
    assert report.extra["weights"][0]["stored"] == "sparse"  # type: ignore[index]
    proto = emit(after)
    assert len(proto.graph.sparse_initializer) == 1
    assert len(proto.SerializeToString()) < 0.45 * len(emit(dense).SerializeToString())
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.eye(64, dtype=np.float32)})[0], weight_in(dense))


@pytest.mark.parametrize(
    ("options", "weight", "reason"),
    [
        ({"pattern": "n:m"}, normal(30, 32), "its 30 input channels are no multiple of 4"),
        ({"pattern": "block", "block_rows": 5}, normal(32, 32), "blocks of 5 x 4 do not divide its 32"),
        ({}, np.full((32, 32), np.inf, np.float32), "it holds NaN or infinities"),
        ({"sparsity": 0.5}, np.zeros((32, 32), np.float32), "it has these zeros already"),
        ({}, normal(4, 4), "it has 16 elements, fewer than 512"),
        ({"scope": "row", "sparsity": 0.9}, normal(1, 600), "with sparsity=0.9 nothing of it would stay"),
        ({"sparsity": 0.9999}, normal(32, 32), "with sparsity=0.9999 nothing of it would stay"),
    ],
)  # fmt: skip
def test_what_is_left_alone_is_named(options: dict[str, Any], weight: Array, reason: str) -> None:
    _, report = apply(SparsifyWeights(), product(weight), **options)
    assert not report.changed
    ((where, found),) = report.skipped
    assert where == "weight 'w'"
    assert found.startswith(reason)


def test_dense_where_sparse_does_not_pay_or_is_not_there() -> None:
    _, report = apply(SparsifyWeights(), product(normal(64, 64)), storage="sparse")
    assert "stored sparse it would take 24576 bytes instead of 16384" in report.skipped[0][1]
    _, report = apply(SparsifyWeights(), product(normal(64, 64), 4), storage="sparse", sparsity=0.9)
    assert report.skipped[0][1] == "IR version 4 has no sparse initializers"


def test_a_pattern_that_keeps_all_is_refused() -> None:
    with pytest.raises(ValidationError, match="n must be less than m, got 4:4"):
        SparsifyWeights.Options(n=4)


def test_golden() -> None:
    proto = product(normal(32, 16))
    after, report = apply(SparsifyWeights(), proto, sparsity=0.9, storage="sparse")
    assert_golden("sparsify-weights", "sparse", proto, after, report)
