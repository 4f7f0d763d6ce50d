"""External data: what may be named, where its bytes must lie, and copying them."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import InvalidModelError
from graphopt.ir.external import copy_range, write_at
from graphopt.ir.lower import load
from graphopt.ir.tensors import to_array
from tests.families import info, model, write_external_family

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def write_model(
    folder: Path, *, dtype: int = TensorProto.FLOAT, dims: tuple[int, ...] = (2, 3), **entries: str
) -> Path:
    """A model with one external initializer 'w' described by *entries*."""
    tensor = TensorProto(name="w", data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph([], "g", [], [info("w", dtype, dims)], initializer=[tensor])
    path = folder / "m.onnx"
    path.write_bytes(model(graph, opset=25, ir_version=13).SerializeToString())
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        load(path)
    text = str(caught.value)
    for word in ("tensor 'w'", str(path), *words):
        assert word in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for models, with a data file inside and one outside."""
    inside = tmp_path / "models"
    inside.mkdir()
    (inside / "w.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "outside.bin").write_bytes(WEIGHTS.tobytes())
    return inside


def test_read(folder: Path) -> None:
    loaded = load(write_model(folder, location="w.bin"))
    tensor = loaded.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(to_array(tensor), WEIGHTS)
    assert tensor.tobytes() == WEIGHTS.tobytes()
    assert loaded.source is not None
    assert loaded.source.external_files == (folder / "w.bin",)
    buffer = io.BytesIO()
    tensor.tofile(buffer)  # type: ignore[attr-defined]  # the protocol lacks it
    assert buffer.getvalue() == WEIGHTS.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(tensor.numpy())[0, 0] = 1


def test_paths_that_leave_the_folder(folder: Path) -> None:
    refused(write_model(folder, location="../outside.bin"), "'../outside.bin'", "'..'")
    refused(write_model(folder, location="a/../../outside.bin"), "'..'")
    refused(write_model(folder, location=str(folder / "w.bin")), "absolute")
    refused(write_model(folder, location="C:\\w.bin"), "absolute")
    refused(write_model(folder, location="..\\outside.bin"), "'..'")
    refused(write_model(folder, location=""), "no path")
    refused(write_model(folder), "no path")
    refused(write_model(folder, location="w\0.bin"), "no path")
    (folder / "link.bin").symlink_to("../outside.bin")
    refused(write_model(folder, location="link.bin"), "link", "outside.bin")
    (folder / "sub").symlink_to("..")
    refused(write_model(folder, location="sub/outside.bin"), "link")


def test_links_inside_the_folder(folder: Path) -> None:
    (folder / "link.bin").symlink_to("w.bin")
    (folder / "hard.bin").hardlink_to(folder / "w.bin")
    for name in ("link.bin", "hard.bin", "./w.bin"):
        tensor = load(write_model(folder, location=name)).graph.initializers["w"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(to_array(tensor), WEIGHTS)


def test_model_behind_a_link(folder: Path, tmp_path: Path) -> None:
    write_model(folder, location="w.bin")
    (tmp_path / "alias").symlink_to(folder)
    tensor = load(tmp_path / "alias" / "m.onnx").graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(to_array(tensor), WEIGHTS)


def test_files_that_are_not_there(folder: Path) -> None:
    refused(write_model(folder, location="absent.bin"), "'absent.bin'", "does not exist")
    (folder / "directory").mkdir()
    refused(write_model(folder, location="directory"), "not a regular file")
    os.mkfifo(folder / "pipe")
    refused(write_model(folder, location="pipe"), "not a regular file")


def test_offsets_and_lengths(folder: Path) -> None:
    load(write_model(folder, location="w.bin", offset="0", length="24"))
    load(write_model(folder, dims=(5,), location="w.bin", offset="4"))
    refused(write_model(folder, location="w.bin", offset="4"), "byte 28", "24 bytes")
    refused(write_model(folder, location="w.bin", offset="1000000000000000000000"), "24 bytes")
    refused(write_model(folder, location="w.bin", offset="-4"), "'-4'")
    refused(write_model(folder, location="w.bin", offset="0x4"), "'0x4'")
    refused(write_model(folder, location="w.bin", length="20"), "length 20", "need 24")
    refused(write_model(folder, location="w.bin", length="28"), "length 28", "need 24")
    refused(write_model(folder, dims=(7,), location="w.bin"), "byte 28")
    refused(write_model(folder, dtype=TensorProto.STRING, location="w.bin"), "strings")


@pytest.mark.parametrize(
    ("kind", "count", "size"),
    [
        ("INT4", 5, 3),
        ("UINT4", 6, 3),
        ("INT2", 5, 2),
        ("UINT2", 8, 2),
        ("FLOAT4E2M1", 1, 1),
        ("BFLOAT16", 3, 6),
        ("FLOAT8E4M3FN", 3, 3),
        ("COMPLEX128", 1, 16),
        ("BOOL", 3, 3),
    ],
)
def test_lengths_of_types(folder: Path, kind: str, count: int, size: int) -> None:
    if not hasattr(TensorProto, kind):
        pytest.skip(f"onnx {onnx.__version__} has no {kind}")
    dtype = getattr(TensorProto, kind)
    path = write_model(folder, dtype=dtype, dims=(count,), location="w.bin", length=str(size))
    tensor = load(path).graph.initializers["w"].const_value
    assert tensor is not None
    proto = TensorProto(data_type=dtype, dims=[count], raw_data=WEIGHTS.tobytes()[:size])
    np.testing.assert_array_equal(to_array(tensor), numpy_helper.to_array(proto))
    refused(
        write_model(folder, dtype=dtype, dims=(count,), location="w.bin", length=str(size + 1)),
        f"need {size}",
    )


def test_empty_tensor_needs_no_bytes(folder: Path) -> None:
    (folder / "empty.bin").touch()
    tensor = (
        load(write_model(folder, dims=(0, 3), location="empty.bin", length="0"))
        .graph.initializers["w"]
        .const_value
    )
    assert tensor is not None
    assert to_array(tensor).shape == (0, 3)


def test_file_that_shrinks_after_loading(folder: Path) -> None:
    tensor = load(write_model(folder, location="w.bin")).graph.initializers["w"].const_value
    assert tensor is not None
    (folder / "w.bin").write_bytes(b"short")
    for read in (tensor.numpy, tensor.tobytes):
        with pytest.raises(InvalidModelError, match="cannot be read"):
            read()
    (folder / "w.bin").unlink()
    for read in (tensor.numpy, tensor.tobytes):
        with pytest.raises(InvalidModelError, match="cannot be read"):
            read()


def test_family_reads_as_onnx_reads_it(tmp_path: Path) -> None:
    path = write_external_family(tmp_path)
    loaded = load(path)
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    for name, value in loaded.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(to_array(value.const_value), expected[name])
    assert expected["p"].dtype == ml_dtypes.uint4


@pytest.mark.parametrize("kernel", [True, False])
def test_copy_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kernel: bool) -> None:
    data = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "a").write_bytes(data)
    if not kernel:

        def unable(*_: object) -> int:
            raise OSError(errno.EXDEV, "cross-device")

        monkeypatch.setattr(os, "copy_file_range", unable, raising=False)
    source, target = os.open(tmp_path / "a", os.O_RDONLY), os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    try:
        assert copy_range(source, 5, target, 7, 2_500_000) == 2_500_000
        assert copy_range(source, 3_000_000, target, 0, 10) == 1
        write_at(target, memoryview(b"abc"), 1)
    finally:
        os.close(source)
        os.close(target)
    written = (tmp_path / "b").read_bytes()
    assert written[:7] == data[3_000_000:] + b"abc" + b"\0\0\0"
    assert written[7:] == data[5:2_500_005]


def test_copy_stops_at_a_real_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"data")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with (
        (tmp_path / "a").open("rb") as source,
        (tmp_path / "b").open("wb") as target,
        pytest.raises(OSError, match="space"),
    ):
        copy_range(source.fileno(), 0, target.fileno(), 0, 4)
