"""Streams over weights: blocks cover a tensor, lazy tensors hold what the recipe says, memory is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import InvalidModelError, PathError
from graphopt.ir import stream
from graphopt.ir.emit import ExternalData, emit_for_runtime, save
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import load
from graphopt.ir.model import Model
from graphopt.ir.rewrite import add_initializer
from graphopt.ir.stream import Block, LazyTensor, Matrix, Part, Recipe, produce, scan
from graphopt.ir.tensors import describe, from_array, pack, to_array
from graphopt.ir.verify import verify
from tests.work import peak_kib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir.tensors import Array

ROWS, COLUMNS, UNIT = 3000, 256, 32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of the weight below."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1 << 20)


def weight() -> Array:
    return np.random.default_rng(5).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def external_model(folder: Path, array: Array | None = None) -> Path:
    """x [1, rows] @ w, with w in an external file."""
    content = weight() if array is None else array
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(b"pad!" + content.tobytes())
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=content.shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "w.bin"), ("offset", 4), ("length", content.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, content.shape[0]])],
        [helper.make_tensor_value_info("y", 1, [1, content.shape[1]])],
        initializer=[tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def halves(tensor: oir.TensorProtocol, multiple: int = UNIT) -> Recipe:
    """Twice the weight as 4-bit codes of its sign, and the sums of groups of *multiple* rows."""

    def transform(block: Block) -> Sequence[Array]:
        data = block.as_float32()
        groups = -(-data.shape[0] // multiple)
        sums = np.stack([data[k * multiple : (k + 1) * multiple].sum(axis=0) for k in range(groups)])
        return pack((data > 0).astype(np.uint8), 4), sums

    parts = (
        Part(oir.DataType.UINT4, (ROWS, COLUMNS), multiple * COLUMNS // 2),
        Part(oir.DataType.FLOAT, (-(-ROWS // multiple), COLUMNS), COLUMNS * 4),
    )
    return Recipe(Matrix(tensor, ROWS, COLUMNS, multiple=multiple), parts, transform)


def expected(multiple: int = UNIT) -> tuple[Array, Array]:
    data = weight()
    groups = [data[k : k + multiple].sum(axis=0) for k in range(0, ROWS, multiple)]
    return (data > 0).astype(np.uint8), np.stack(groups)


def quantised(path: Path) -> Model:
    """The model at *path* with the two parts of :func:`halves` as further initializers."""
    model = load(path)
    source = model.graph.initializers["w"].const_value
    assert source is not None
    codes, sums = produce(halves(source), ("codes", "sums"))
    add_initializer(model, model.graph, "codes", codes)
    add_initializer(model, model.graph, "sums", sums)
    return model


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("external", [True, False])
def test_blocks_cover_the_matrix_once(tmp_path: Path, axis: int, external: bool) -> None:
    model = load(external_model(tmp_path / "in"))
    held = model.graph.initializers["w"].const_value
    tensor = held if external else from_array(weight())
    assert tensor is not None
    matrix = Matrix(tensor, ROWS, COLUMNS, axis=axis, multiple=24)
    parts = scan(matrix, lambda block: (block.start, np.array(block.data)))
    assert [start % 24 for start, _ in parts] == [0] * len(parts)
    joined = np.concatenate([part for _, part in parts], axis=axis)
    assert np.array_equal(joined, weight())
    assert axis == 1 or len(parts) > 2


def test_lazy_where_the_source_is_in_a_file_else_at_once(tmp_path: Path) -> None:
    model = quantised(external_model(tmp_path / "in"))
    codes, sums = (model.graph.initializers[name].const_value for name in ("codes", "sums"))
    assert isinstance(codes, LazyTensor)
    assert isinstance(sums, LazyTensor)
    made = produce(halves(from_array(weight())), ("codes", "sums"))
    assert not any(isinstance(tensor, LazyTensor) for tensor in made)
    want = expected()
    for tensor, array in zip((codes, sums, *made), (*want, *want), strict=True):
        assert np.array_equal(to_array(tensor).astype(array.dtype), array)
        assert tensor.nbytes == len(tensor.tobytes())


def test_saved_block_by_block_and_read_back(tmp_path: Path) -> None:
    model = quantised(external_model(tmp_path / "in"))
    verify(model)
    assert fingerprint(model.clone()) == fingerprint(model)
    files = save(model.clone(), tmp_path / "out.onnx")
    assert [file.name for file in files] == ["out.onnx", "out.onnx.data"]
    again = onnx.load(tmp_path / "out.onnx")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in again.graph.initializer}
    codes, sums = expected()
    assert np.array_equal(held["w"], weight())
    assert np.array_equal(held["codes"].astype(np.uint8), codes)
    assert np.array_equal(held["sums"], sums)
    assert emit_for_runtime(model, tmp_path / "in").read_bytes()
    inline = save(model, tmp_path / "inline.onnx", external=ExternalData("inline"))
    assert len(inline) == 1
    assert onnx.load(inline[0]).graph.initializer[1].raw_data == pack(codes, 4).tobytes()


def test_same_bytes_on_one_thread_and_on_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantised(external_model(tmp_path / "in"))
    contents = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(stream, "THREADS", threads)
        save(model, tmp_path / "out.onnx")
        contents.append((tmp_path / "out.onnx.data").read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_output_must_not_replace_a_file_that_a_lazy_tensor_reads(tmp_path: Path) -> None:
    path = external_model(tmp_path / "in")
    model = quantised(path)
    loose = Model(model.store)  # a model that does not remember its source
    del loose.graph.initializers["w"]
    (tmp_path / "in" / "other.onnx.data").hardlink_to(tmp_path / "in" / "w.bin")
    with pytest.raises(PathError, match="would replace a file"):
        save(model, tmp_path / "in" / "other.onnx")


def test_a_source_that_shrank_is_an_error(tmp_path: Path) -> None:
    path = external_model(tmp_path / "in")
    model = quantised(path)
    (tmp_path / "in" / "w.bin").write_bytes(b"pad!1234")
    del model.graph.initializers["codes"]
    with pytest.raises(InvalidModelError, match="shorter than it was"):
        to_array(model.graph.initializers["sums"].const_value)  # type: ignore[arg-type]  # it has one
    assert not (tmp_path / "out.onnx").exists()


def test_a_recipe_that_breaks_its_word_is_an_error() -> None:
    def transform(block: Block) -> Sequence[Array]:
        return (block.data[:1],)

    part = Part(oir.DataType.FLOAT, (ROWS, COLUMNS), COLUMNS * 4)
    with pytest.raises(InvalidModelError, match="expected"):
        produce(Recipe(Matrix(from_array(weight()), ROWS, COLUMNS), (part,), transform), ("p",))


def test_a_failure_in_any_block_is_raised() -> None:
    def visit(block: Block) -> int:
        if block.start > 1000:
            raise ZeroDivisionError
        return 0

    with pytest.raises(ZeroDivisionError):
        scan(Matrix(from_array(weight()), ROWS, COLUMNS), visit)


def test_recipe_of_a_recipe_and_of_columns(tmp_path: Path) -> None:
    model = quantised(external_model(tmp_path / "in"))
    sums = model.graph.initializers["sums"].const_value
    assert sums is not None
    groups = sums.shape.numpy()[0]

    def transpose(block: Block) -> Sequence[Array]:
        return (np.ascontiguousarray(block.data.T),)

    part = Part(oir.DataType.FLOAT, (COLUMNS, groups), groups * 4)
    (turned,) = produce(Recipe(Matrix(sums, groups, COLUMNS, axis=1), (part,), transpose), ("turned",))
    assert isinstance(turned, LazyTensor)
    assert np.array_equal(to_array(turned), expected()[1].T)
    other = describe(turned, {"note": "kept"}, "doc")
    assert other.doc_string == "doc"
    assert np.array_equal(to_array(other), to_array(turned))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_is_finite(bad: float) -> None:
    array = weight()
    assert stream.is_finite(from_array(array))
    assert stream.is_finite(from_array(array[:0]))
    array[ROWS - 1, 3] = bad
    assert not stream.is_finite(from_array(array))


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Peak memory over 16 and over 160 MB of weights, in a process each."""
    code = """
        import sys
        import numpy as np, onnx_ir as oir
        from graphopt.ir.emit import save
        from graphopt.ir.lower import load
        from graphopt.ir.stream import Matrix, Part, Recipe, produce
        from graphopt.ir.rewrite import add_initializer
        model = load(sys.argv[1])
        held = model.graph.initializers["w"].const_value
        rows, columns = held.shape.numpy()
        part = Part(oir.DataType.INT8, (rows, columns), columns)
        recipe = Recipe(Matrix(held, rows, columns), (part,), lambda block: (block.data.astype(np.int8),))
        add_initializer(model, model.graph, "q", produce(recipe, ("q",))[0])
        save(model, sys.argv[2])
    """
    peaks = []
    for rows in (4_000, 40_000):
        folder = tmp_path / str(rows)
        path = external_model(folder, np.ones((rows, 1000), np.float32))
        peaks.append(peak_kib(code, str(path), str(folder / "out.onnx")))
    assert peaks[1] - peaks[0] < 24 << 10, f"{peaks} KiB"
