"""Saving: where bytes go, what is replaced, and what is left after a failure."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GateFailed, InvalidModelError, OptionError, PathError, VerifyError, WriteError
from graphopt.ir import emit as emit_module
from graphopt.ir.emit import ExternalData, emit, emit_for_runtime, save
from graphopt.ir.lower import load, lower
from graphopt.ir.tensors import from_array
from tests.canonical import canonical, difference
from tests.families import FAMILIES, info, model, weight, write_external_family


def matmul_model(*, side: int = 64) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "g",
        [info("x", shape=["N", side])],
        [info("y", shape=["N", side])],
        initializer=[weight("w", side, side), weight("b", 1)],
    )
    return model(graph)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]  # type: ignore[no-any-return]  # onnxruntime has no types


# Where the bytes go


def test_inline_stays_inline(tmp_path: Path) -> None:
    source = write(matmul_model(), tmp_path / "in.onnx")
    assert save(load(source), tmp_path / "out.onnx") == (tmp_path / "out.onnx",)
    assert not (tmp_path / "out.onnx.data").exists()


@pytest.mark.parametrize("mode", ["auto", "one-file", "inline"])
def test_modes_compute_the_same(tmp_path: Path, mode: Literal["auto", "one-file", "inline"]) -> None:
    (tmp_path / "in").mkdir()
    proto = matmul_model()
    onnx.save(
        proto, tmp_path / "in" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100
    )
    out = tmp_path / "out.onnx"
    files = save(load(tmp_path / "in" / "m.onnx"), out, external=ExternalData(mode))
    assert len(files) == (1 if mode == "inline" else 2)
    onnx.checker.check_model(str(out), full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    np.testing.assert_array_equal(run(out, x), run(write(matmul_model(), tmp_path / "inline.onnx"), x))


def test_threshold_and_alignment(tmp_path: Path) -> None:
    sizes = {"tiny": 3, "small": 300, "other": 301, "large": 20_000, "larger": 20_001}
    graph = helper.make_graph(
        [],
        "g",
        [],
        [info(n, shape=[s]) for n, s in sizes.items()],
        initializer=[weight(n, s) for n, s in sizes.items()],
    )
    source = write(model(graph), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    save(load(source), out, external=ExternalData("one-file", 1000))
    entries = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(out, load_external_data=False).graph.initializer
    }
    assert entries["tiny"] == {}
    end = 0
    for name in ("small", "other", "large", "larger"):
        offset, length = int(entries[name]["offset"]), int(entries[name]["length"])
        assert entries[name]["location"] == "out.onnx.data"
        assert length == 4 * sizes[name]
        assert offset >= end
        assert offset % (4096 if name.startswith("large") else 16) == 0
        end = offset + length
    assert (tmp_path / "out.onnx.data").stat().st_size == end
    assert not difference(canonical(onnx.load(source)), canonical(onnx.load(out), tmp_path))


def test_external_family_in_every_mode(tmp_path: Path) -> None:
    source = write_external_family(tmp_path / "in")
    original = canonical(onnx.load(source, load_external_data=False), source.parent)
    for mode, expected in (("auto", True), ("one-file", True), ("inline", False)):
        out = tmp_path / f"{mode}.onnx"
        save(load(source), out, external=ExternalData(mode, 1))  # type: ignore[arg-type]  # literals in a tuple
        written = onnx.load(out, load_external_data=False)
        assert not difference(original, canonical(written, tmp_path))
        assert out.with_name(f"{out.name}.data").exists() == expected


def test_new_weights_of_an_external_model_are_external(tmp_path: Path) -> None:
    source = write_external_family(tmp_path / "in")
    loaded = load(source)
    value = loaded.graph.initializers["w"]
    value.const_value = from_array(np.ones((4, 16), np.float32) * 2)
    loaded.graph.initializers.add(
        oir.Value(name="new", const_value=from_array(np.arange(1000, dtype=np.float32)))
    )
    out = tmp_path / "out.onnx"
    save(loaded, out)
    written = {tensor.name: tensor for tensor in onnx.load(out, load_external_data=False).graph.initializer}
    assert written["new"].data_location == TensorProto.EXTERNAL
    assert written["w"].data_location == TensorProto.DEFAULT
    np.testing.assert_array_equal(numpy_helper.to_array(written["new"], str(tmp_path)), np.arange(1000))


def test_shared_bytes_are_written_once(tmp_path: Path) -> None:
    tensors = []
    for name in ("a", "b"):
        tensor = TensorProto(name=name, data_type=1, dims=[5000], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        tensors.append(tensor)
    (tmp_path / "w.bin").write_bytes(np.arange(5000, dtype=np.float32).tobytes())
    graph = helper.make_graph([], "g", [], [info(n, shape=[5000]) for n in "ab"], initializer=tensors)
    save(load(write(model(graph), tmp_path / "in.onnx")), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == 20_000


def test_past_two_gigabytes_weights_go_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(matmul_model(), tmp_path / "in.onnx")
    monkeypatch.setattr(emit_module, "PROTOBUF_LIMIT_BYTES", 12_000)
    monkeypatch.setattr(emit_module, "_HEADROOM_BYTES", 2_000)
    assert len(save(load(source), tmp_path / "out.onnx")) == 2
    with pytest.raises(OptionError, match="one-file"):
        save(load(source), tmp_path / "inline.onnx", external=ExternalData("inline"))
    monkeypatch.setattr(emit_module, "PROTOBUF_LIMIT_BYTES", 10)
    with pytest.raises(WriteError, match="threshold"):
        save(load(source), tmp_path / "none.onnx")
    assert sorted(snapshot(tmp_path)) == ["in.onnx", "out.onnx", "out.onnx.data"]


def test_emit_keeps_references(tmp_path: Path) -> None:
    source = write_external_family(tmp_path)
    original = onnx.load(source, load_external_data=False)
    assert emit(load(source)).graph.initializer == original.graph.initializer


def test_emit_for_runtime(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    path = emit_for_runtime(load(write(matmul_model(), tmp_path / "m.onnx")), tmp_path / "scratch")
    assert run(path, np.ones((1, 64), np.float32)).shape == (1, 64)


# What may be written


def test_output_is_a_source(tmp_path: Path) -> None:
    source = write_external_family(tmp_path / "in")
    loaded = load(source)
    before = snapshot(tmp_path / "in")
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    (tmp_path / "data-link").symlink_to(tmp_path / "in" / "w.bin")
    for out in (
        source,
        tmp_path / "in" / "." / "model.onnx",
        tmp_path / "link.onnx",
        tmp_path / "hard.onnx",
        tmp_path / "in" / "w.bin",
        tmp_path / "data-link",
    ):
        with pytest.raises(PathError, match="same file"):
            save(loaded, out)
        with pytest.raises(PathError, match="same file"):
            save(loaded.clone(), out)
    assert snapshot(tmp_path / "in") == before


def test_data_file_is_a_source(tmp_path: Path) -> None:
    onnx.save(
        matmul_model(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="out.onnx.data",
        size_threshold=0,
    )
    loaded = load(tmp_path / "m.onnx")
    with pytest.raises(PathError, match="external data would replace"):
        save(loaded, tmp_path / "out.onnx")
    assert sorted(snapshot(tmp_path)) == ["m.onnx", "out.onnx.data"]
    # Nothing external is written inline, and the source is no stale file.
    save(loaded, tmp_path / "out.onnx", external=ExternalData("inline"))
    save(loaded, tmp_path / "out.onnx", external=ExternalData("inline"))
    assert sorted(snapshot(tmp_path)) == ["m.onnx", "out.onnx", "out.onnx.data"]


def test_output_places_that_cannot_be(tmp_path: Path) -> None:
    loaded = lower(matmul_model())
    with pytest.raises(PathError, match="directory"):
        save(loaded, tmp_path)
    with pytest.raises(PathError, match="does not exist"):
        save(loaded, tmp_path / "absent" / "out.onnx")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PathError, match="regular file"):
        save(loaded, tmp_path / "pipe")
    (tmp_path / "out.onnx.data").mkdir()
    with pytest.raises(PathError, match="directory"):
        save(loaded, tmp_path / "out.onnx", external=ExternalData("one-file", 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx.data", "pipe"]


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions mean nothing to root, who may run the tests; so the answer of the system is played.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PathError, match="not writable"):
        save(lower(matmul_model()), tmp_path / "out.onnx")
    monkeypatch.undo()

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", deny)
    with pytest.raises(PathError, match="Permission denied"):
        save(lower(matmul_model()), tmp_path / "out.onnx")


@pytest.mark.parametrize("name", ["a" * 300, "loop", "o\udcff.onnx"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(PathError) as caught:
        save(lower(matmul_model()), tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    target = write(matmul_model(side=8), tmp_path / "target.onnx")
    before = target.read_bytes()
    out = tmp_path / "out.onnx"
    out.symlink_to(target)
    save(lower(matmul_model()), out)
    assert not out.is_symlink()
    assert target.read_bytes() == before


def test_mode_of_new_files_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save(lower(matmul_model()), tmp_path / "out.onnx", external=ExternalData("one-file"))
    finally:
        os.umask(old)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


# Replacing


def test_stale_data_goes_with_the_model_that_used_it(tmp_path: Path) -> None:
    loaded = lower(matmul_model())
    out, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    save(loaded, out, external=ExternalData("one-file"))
    assert data.exists()
    save(loaded, out)
    assert not data.exists()
    data.write_bytes(b"somebody else's")
    save(loaded, out)
    assert data.read_bytes() == b"somebody else's"
    out.write_bytes(b"not a model")
    save(loaded, out)
    assert data.read_bytes() == b"somebody else's"


def break_after(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: int, error: BaseException
) -> None:
    """Let *name* of *module* fail once, after so many *calls* that work."""
    real = getattr(module, name)
    count = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls + 1:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapper)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_failure_at_every_step_leaves_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, *, existing: bool
) -> None:
    out = tmp_path / "out.onnx"
    options = ExternalData("one-file", 1)
    if existing:
        save(lower(matmul_model(side=16)), out, external=options)
    before = snapshot(tmp_path)
    expected: type[BaseException] = WriteError if isinstance(error, OSError) else KeyboardInterrupt
    broken = 0
    places: list[tuple[Any, str]] = [(os, "pwrite"), (os, "fsync"), (Path, "replace"), (Path, "hardlink_to")]
    for module, name in places:
        for calls in range(3):
            with monkeypatch.context() as patch:
                break_after(patch, module, name, calls, error)
                try:
                    save(lower(matmul_model()), out, external=options)
                except expected:
                    broken += 1
                    # The folder is synced last, when both files are in place.
                    if not (name == "fsync" and calls == 2):
                        assert snapshot(tmp_path) == before, (name, calls)
            if not existing:
                for path in tmp_path.iterdir():
                    path.unlink()
            else:
                save(lower(matmul_model(side=16)), out, external=options)
    assert broken >= 6
    assert snapshot(tmp_path) == before


def test_interrupt_right_after_the_last_rename_keeps_the_new_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.onnx"
    options = ExternalData("one-file", 1)
    save(lower(matmul_model(side=16)), out, external=options)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        result = real(self, target)
        if target == out:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save(lower(matmul_model()), out, external=options)
    assert sorted(snapshot(tmp_path)) == ["out.onnx", "out.onnx.data"]
    assert run(out, np.ones((1, 64), np.float32)).shape == (1, 64)


def test_source_that_vanishes_while_saving(tmp_path: Path) -> None:
    loaded = load(write_external_family(tmp_path / "in"))
    (tmp_path / "in" / "w.bin").write_bytes(b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidModelError, match="shorter"):
        save(loaded, tmp_path / "out" / "out.onnx")
    (tmp_path / "in" / "w.bin").unlink()
    with pytest.raises(InvalidModelError, match="cannot be read"):
        save(loaded, tmp_path / "out" / "out.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_a_refused_check_leaves_everything(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    save(lower(matmul_model(side=16)), out, external=ExternalData("one-file", 1))
    before = snapshot(tmp_path)
    tried = []

    def refuse(staged: Path) -> None:
        tried.append(run(staged, np.ones((1, 64), np.float32)).shape)
        raise GateFailed("no")

    with pytest.raises(GateFailed):
        save(lower(matmul_model()), out, external=ExternalData("one-file", 1), check=refuse)
    assert tried == [(1, 64)]
    assert snapshot(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


# What cannot be written


def test_nonsense_is_named(tmp_path: Path) -> None:
    loaded = lower(FAMILIES["branches"]())
    node = next(iter(loaded.graph))
    node.attributes.add(oir.Attr("bad", oir.AttributeType.INT, 2**70))
    with pytest.raises(VerifyError, match="node 'choose'"):
        save(loaded, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_rename_does_not_need_the_tensor(tmp_path: Path) -> None:
    loaded = lower(matmul_model())
    loaded.graph.initializers["w"].name = "renamed"
    message = emit(loaded)
    assert [tensor.name for tensor in message.graph.initializer] == ["b", "renamed"]
    assert message.graph.node[0].input == ["x", "renamed"]
