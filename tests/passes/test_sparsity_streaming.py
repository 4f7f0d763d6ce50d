"""Masks found block by block are those of the whole weight; memory does not grow with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.ir import stream
from graphopt.ir.emit import save
from graphopt.ir.lower import load, lower
from graphopt.ir.stream import LazyTensor
from graphopt.ir.tensors import to_array
from graphopt.passes.palettes.candidates import find_candidates
from graphopt.passes.sparsify_weights import SparsifyWeights
from graphopt.passes.sparsity.masks import mask_of, rows_of
from graphopt.passes.sparsity.streaming import Pattern, Sheet
from tests.passes.harness import apply

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

RNG = np.random.default_rng


def model_of(op_type: str, weight: Array, **attributes: Any) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"], name="n", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", kind, None)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


WEIGHTS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "product": ("MatMul", (48, 24), {}),
    "turned": ("Gemm", (24, 48), {"transB": 1}),
    "stack": ("MatMul", (2, 16, 24), {}),
    "convolution": ("Conv", (16, 8, 3, 3), {}),
    "transposed convolution": ("ConvTranspose", (8, 16, 3, 3), {}),
}

PATTERNS = {
    "elements": Pattern("unstructured", 0.6, (2, 4), (4, 4), "tensor"),
    "elements of rows": Pattern("unstructured", 0.6, (2, 4), (4, 4), "row"),
    "two of four": Pattern("n:m", 0.6, (2, 4), (4, 4), "tensor"),
    "three of eight": Pattern("n:m", 0.6, (3, 8), (4, 4), "tensor"),
    "blocks": Pattern("block", 0.6, (2, 4), (8, 4), "tensor"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("scaled", [False, True])
def test_as_on_the_whole_weight(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str, dtype: Any, scaled: bool
) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1024)  # several blocks, most of several rows
    monkeypatch.setattr(stream, "COLUMN_BLOCK_BYTES", 2048)
    monkeypatch.setattr("graphopt.passes.sparsity.streaming._COLLECTED", 100)
    op_type, dims, attributes = WEIGHTS[kind]
    weight = RNG(3).standard_normal(dims).astype(dtype)
    (candidate,), _ = find_candidates(
        lower(model_of(op_type, weight, **attributes)), min_elements=1, keep=(), annotated=frozenset()
    )
    pattern = PATTERNS[name]
    whole = rows_of(np.abs(weight), candidate.axis, candidate.input_axis).astype(np.float64)
    scale = np.asarray(RNG(4).uniform(0.1, 3, whole.shape[1])) if scaled else None
    sheet = Sheet(candidate, pattern, scale)
    assert (sheet.rows, sheet.row_length) == whole.shape
    rule = sheet.rule()
    masked = to_array(sheet.masked(rule, "w"))
    found = rows_of(masked, candidate.axis, candidate.input_axis)
    expected = mask_of(
        whole if scale is None else whole * scale,
        pattern.sparsity,
        pattern=pattern.kind,
        nm=pattern.nm,
        block=pattern.block,
        scope=pattern.scope,
        positions=9 if "convolution" in kind else 1,
    )
    original = rows_of(weight, candidate.axis, candidate.input_axis)
    if dtype == np.float16 and not scaled:  # many equal magnitudes, of which others may stay
        assert np.array_equal(np.sort(np.abs(found[found != 0])), np.sort(np.abs(original[expected])))
    else:
        assert np.array_equal(found, np.where(expected, original, 0))
    outcome = sheet.outcome(rule)
    assert outcome.zeros == (found == 0).sum()
    assert outcome.changed == ((found == 0) & (original != 0)).sum()


@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.99, 0.9999])
def test_of_equal_scores_the_first_stay(monkeypatch: pytest.MonkeyPatch, scope: Any, sparsity: float) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", 512)
    weight = RNG(0).choice([-1.0, 0.5, 2.0], (96, 32)).astype(np.float32)
    (candidate,), _ = find_candidates(
        lower(model_of("MatMul", weight)), min_elements=1, keep=(), annotated=frozenset()
    )
    pattern = replace(PATTERNS["elements"], sparsity=sparsity, scope=scope)
    sheet = Sheet(candidate, pattern)
    masked = to_array(sheet.masked(sheet.rule(), "w"))
    scores = np.abs(weight).T if scope == "row" else np.abs(weight).reshape(1, -1)
    expected = np.zeros(scores.shape, bool)
    order = np.argsort(-scores, axis=1, kind="stable")
    kept = scores.shape[1] - round(scores.shape[1] * sparsity)
    np.put_along_axis(expected, order[:, :kept], values=True, axis=1)
    mask = expected.T if scope == "row" else expected.reshape(weight.shape)
    assert np.array_equal(masked, np.where(mask, weight, 0))


@pytest.mark.parametrize("options", [{}, {"pattern": "n:m"}, {"pattern": "block"}, {"scope": "row"}])
def test_external_weights_stay_in_their_file(tmp_path: Path, options: dict[str, Any]) -> None:
    weight = RNG(1).standard_normal((1024, 640)).astype(np.float32)
    path = tmp_path / "m.onnx"
    onnx.save(
        model_of("MatMul", weight), path, save_as_external_data=True, location="m.bin", size_threshold=0
    )
    lazy, report = apply(SparsifyWeights(), load(path), check=False, **options)
    eager, other = apply(SparsifyWeights(), model_of("MatMul", weight), check=False, **options)
    assert report.counts == other.counts
    assert isinstance(lazy.graph.initializers["w"].const_value, LazyTensor)
    save(lazy, tmp_path / "out.onnx")
    written, held = (
        each.graph.initializers["w"].const_value for each in (load(tmp_path / "out.onnx"), eager)
    )
    assert written is not None
    assert held is not None
    assert np.array_equal(to_array(written), to_array(held))
