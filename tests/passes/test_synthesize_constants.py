"""synthesize-constants: what onnxruntime computes from the nodes has the bits of the constant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.cost import measure_cost
from graphopt.ir.emit import emit
from graphopt.ir.lower import load
from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.deduplicate import Deduplicate
from graphopt.passes.eliminate_dead import EliminateDead
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.synthesize_constants import SynthesizeConstants
from tests.passes.harness import apply, apply_all, assert_golden, assert_same_function, op_types

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def holding(array: Array, opset: int = 17) -> onnx.ModelProto:
    """y = the constant, behind a Transpose there and back, so that it is no output itself."""
    axes = list(range(array.ndim))[::-1]
    nodes = [
        helper.make_node("Transpose", ["c"], ["t"], perm=axes),
        helper.make_node("Transpose", ["t"], ["y"], perm=axes),
    ]
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [helper.make_tensor_value_info("y", dtype, array.shape)],
        [numpy_helper.from_array(array, "c")],
    )
    proto: onnx.ModelProto = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)]
    )
    return proto


def computed(model: onnx.ModelProto) -> list[Array]:
    results = []
    for level in LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {})[0])
    return results


def nan(payload: int) -> Array:
    return np.array([0x7FC00000 | payload], np.uint32).view(np.float32)


N = 96
MASK = np.where(np.arange(N)[None] > np.arange(N)[:, None], np.float32(-1e9), np.float32(0))
STRUCTURES: dict[str, tuple[Array, str]] = {
    "causal": (MASK, "Trilu"),
    "causal-infinite": (np.where(MASK < 0, np.float32(-np.inf), np.float32(0)), "Trilu"),
    "causal-four-dims": (MASK.reshape(1, 1, N, N), "Trilu"),
    "lower": (np.tril(np.full((N, N), 2.5, np.float32), -3), "Trilu"),
    "negative-zero-below": (np.where(MASK < 0, np.float32(1), np.float32(-0.0)), "Greater"),
    "two-numbers": (np.where(MASK < 0, np.int8(3), np.int8(-5)), "Greater"),
    "bool-triangle": (np.tri(N, dtype=bool), "Greater"),
    "rectangular": (np.tri(N, 40, -50, dtype=np.int64), "Trilu"),
    "fill": (np.full((7, 300), -0.0, np.float32), "ConstantOfShape"),
    "fill-nan": (np.tile(nan(0x1234), (40, 40)), "ConstantOfShape"),
    "fill-half": (np.full(4096, 0.1, np.float16), "ConstantOfShape"),
    "range": (np.arange(5, 2005, 2, dtype=np.int64), "Range"),
    "range-float": (np.arange(1000, 0, -1).astype(np.float32), "Range"),
    "positions": (np.arange(1024, dtype=np.int32).reshape(1, 1024), "Range"),
    "distances": ((np.arange(N)[None] - np.arange(N)[:, None]), "Add"),
    "identity": (np.eye(N, dtype=np.float32), "Equal"),
    "exchange": (np.ascontiguousarray(np.eye(N, dtype=np.float64)[::-1]), "Equal"),
    "one-hot": (np.eye(N, dtype=np.float32)[np.random.default_rng(0).permutation(N)], "Equal"),
    "band": (np.abs(np.arange(N)[None] - np.arange(N)[:, None]).astype(np.float32) ** 0.5, "Gather"),
    "blocks": (np.tile(np.random.default_rng(1).random((8, 6), np.float32), (16, 8)), "Tile"),
    "stretched": (np.repeat(np.random.default_rng(2).random((8, 6), np.float32), 16, 1), "Expand"),
    "broadcast": (
        np.random.default_rng(3).random((1, 6, 1), np.float32) * np.ones((9, 6, 40), np.float32),
        "Expand",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_bits(name: str) -> None:
    array, operator = STRUCTURES[name]
    after, report = apply(SynthesizeConstants(), holding(array))
    assert report.counts["synthesized"] == 1
    assert operator in op_types(after)
    cost = measure_cost(after)
    assert cost.weight_bytes * 2 < array.nbytes
    assert not cost.dead
    for result in computed(emit(after)):
        assert result.dtype == array.dtype
        assert result.tobytes() == array.tobytes()


@pytest.mark.parametrize("opset", [9, 11, 13, 23])
@pytest.mark.parametrize("name", STRUCTURES)
def test_bits_at_other_opsets(name: str, opset: int) -> None:
    array, _ = STRUCTURES[name]
    after, _ = apply(SynthesizeConstants(), holding(array, opset))
    assert computed(emit(after))[1].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(4).random((40, 40), np.float32),
        np.where(np.random.default_rng(5).random((40, 40)) < 0.5, nan(1), nan(2)),
        np.concatenate([np.arange(600, dtype=np.float32), [np.float32(599.5)]]),
        np.arange(2**24, 2**24 + 900, dtype=np.int64).astype(np.float32),
        np.zeros((0, 4), np.float32),
        np.full(4, 1, np.float32),
    ],
)
def test_what_has_no_structure_stays(array: Array) -> None:
    _, report = apply(SynthesizeConstants(), holding(array))
    assert not report.changed


def random_structure(rng: np.random.Generator) -> Array:
    """Any of the structures with random sizes, and one element changed now and then."""
    rows, columns = (int(size) for size in rng.integers(1, 70, 2))
    dtype = rng.choice(["float32", "int64", "bool", "float16", "uint8"])
    offset = np.arange(columns)[None] - np.arange(rows)[:, None]
    pick = rng.integers(0, 6)
    base: Array
    if pick == 0:
        base = (offset >= rng.integers(-rows, columns + 1)) * 3 - 1
    elif pick == 1:
        base = offset * rng.integers(-3, 4)
    elif pick == 2:
        base = np.abs(offset) % 7
    elif pick == 3:
        base = offset == rng.integers(-3, 4)
    elif pick == 4:
        base = np.tile(rng.integers(0, 5, (rows, 1)), (2, columns))
    else:
        base = np.repeat(rng.integers(0, 5, (rows, 2)), columns, 1)
    array = np.ascontiguousarray(base).astype(dtype)
    if rng.random() < 0.3:
        array.reshape(-1)[rng.integers(array.size)] = 1
    return np.ascontiguousarray(np.broadcast_to(array, (int(rng.integers(1, 4)), *array.shape)))


def test_bits_of_random_structures() -> None:
    rng = np.random.default_rng(11)
    changed = 0
    for _ in range(80):
        array = random_structure(rng)
        after, report = apply(SynthesizeConstants(), holding(array), min_bytes=1)
        changed += report.changed
        assert computed(emit(after))[1].tobytes() == array.tobytes()
    assert changed > 20


def tied(turned: bool) -> onnx.ModelProto:
    table = np.random.default_rng(6).standard_normal((50, 16)).astype(np.float32)
    head = np.ascontiguousarray(table.T) if turned else table.reshape(50, 16, 1, 1)
    nodes = [helper.make_node("Gather", ["table", "x"], ["h"])]
    if turned:
        nodes.append(helper.make_node("MatMul", ["h", "head"], ["y"]))
        shape = [3, 50]
    else:
        nodes += [
            helper.make_node("Reshape", ["h", "s"], ["i"]),
            helper.make_node("Conv", ["i", "head"], ["y"]),
        ]
        shape = [3, 50, 1, 1]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.array([3, 16, 1, 1], np.int64), "s"),
        ],
    )
    proto: onnx.ModelProto = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    return proto


@pytest.mark.parametrize("turned", [True, False])
def test_tied_weights_are_stored_once(turned: bool) -> None:
    proto = tied(turned)
    after, report = apply(SynthesizeConstants(), proto)
    assert report.counts == {"tied": 1, "bytes_saved": 3200}
    assert_golden("synthesize-constants", "tied" if turned else "tied-reshaped", proto, after, report)
    assert_same_function(proto, after)
    untouched, report = apply(SynthesizeConstants(), proto, ties=False)
    assert not report.changed
    assert_same_function(proto, untouched)


def test_equal_weights_alone_are_no_reason_to_say_that_nothing_was_found() -> None:
    proto = tied(turned=True)
    weight = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(numpy_helper.from_array(weight, name) for name in ("table", "head"))
    _, report = apply(SynthesizeConstants(), proto)
    assert report.counts == {"initializers_merged": 1, "bytes_saved": 1600}
    assert report.skipped == ()


@pytest.mark.parametrize("name", ["causal", "one-hot", "blocks"])
def test_golden(name: str) -> None:
    proto = holding(STRUCTURES[name][0])
    after, report = apply(SynthesizeConstants(), proto)
    assert_golden("synthesize-constants", name, proto, after, report)


def cleaned(model: Any) -> Any:
    steps: Sequence[Any] = (Canonicalize(), FoldConstants(), Deduplicate(), EliminateDead())
    return apply_all(steps, model)


@pytest.mark.parametrize("name", STRUCTURES)
def test_clean_up_leaves_them_computed(name: str) -> None:
    array, operator = STRUCTURES[name]
    proto = holding(array)
    # A weight beside it, so that the allowance of fold-constants would take the constant in.
    ballast = np.random.default_rng(8).random((1000, 1000), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))
    proto.graph.node.append(helper.make_node("ReduceSum", ["ballast"], ["z"], keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    after, _ = apply(SynthesizeConstants(), proto)
    model = after
    for step in (Canonicalize(), FoldConstants(), Deduplicate(), EliminateDead()):
        model, _ = apply(step, model)
    assert operator in op_types(model)
    assert measure_cost(model).weight_bytes < ballast.nbytes + array.nbytes / 2


def test_what_must_stay_is_named() -> None:
    proto = holding(np.zeros((40, 40), np.float32), opset=8)
    _, report = apply(SynthesizeConstants(), proto)
    assert report.skipped == (
        ("constant 'c'", "opset 8 has no ConstantOfShape; upgrade-opset{to=9} would help"),
    )
    proto = holding(np.zeros((40, 40), np.float32))
    proto.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [40, 40]))
    _, report = apply(SynthesizeConstants(), proto)
    assert report.skipped == (("constant 'c'", "it is an output of the graph"),)


@pytest.mark.slow
@pytest.mark.parametrize("export", ["ts", "dynamo"])
def test_the_mask_and_the_head_of_the_llama(assets: Path, export: str) -> None:
    path = assets / "models" / f"stories260k_llama_{export}.onnx"
    model = load(path)
    after, report = apply(SynthesizeConstants(), model)
    assert report.counts["bytes_saved"] >= (1 << 20) + (1 << 17)
    assert "Trilu" in op_types(after)
    assert len(emit(after).SerializeToString()) < 0.6 * path.stat().st_size
    assert_same_function(path, after)
