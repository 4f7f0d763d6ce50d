"""Model files on disk: reading one message, and replacing a model and its data file as one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from typing import TYPE_CHECKING, Self

import onnx
from google.protobuf.message import DecodeError

from graphopt.errors import InvalidModelError, PathError, UnsupportedModelError, WriteError
from graphopt.ir.encoding import is_utf8
from graphopt.ir.external import write_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROTOBUF_LIMIT_BYTES = (1 << 31) - 1
"""The largest message that protobuf can read or write."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def read_message(path: Path) -> onnx.ModelProto:
    """Parse the file at *path*.

    Raises:
        PathError: It is missing, a directory or no regular file, or may not be read.
        InvalidModelError: It is empty, too large for protobuf, or no ONNX model.
        UnsupportedModelError: It has fields that the installed onnx does not know.
    """
    where = str(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise PathError("expected an ONNX file, got a directory", where=where)
        if not stat.S_ISREG(status.st_mode):
            raise PathError("expected an ONNX file, got something that is not a regular file", where=where)
        if status.st_size > PROTOBUF_LIMIT_BYTES:
            raise InvalidModelError(
                f"the file has {status.st_size} bytes, but an ONNX file has at most {PROTOBUF_LIMIT_BYTES}",
                where=where,
                hint="Save the model with external data.",
            )
        data = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "the file does not exist" if missing else f"the file cannot be read ({error.strerror})"
        raise PathError(reason, where=where) from error
    if not data:
        raise InvalidModelError("the file is empty", where=where)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        kind = "a text file" if _looks_like_text(data) else "truncated, or not an ONNX model"
        raise InvalidModelError(f"the file is {kind}", where=where) from error
    _refuse_unknown_fields(proto, data, where)
    return proto


def _looks_like_text(data: bytes) -> bool:
    head = data[:512]
    with contextlib.suppress(UnicodeDecodeError):
        return all(char.isprintable() or char.isspace() for char in head.decode())
    return False


def _refuse_unknown_fields(proto: onnx.ModelProto, data: bytes, where: str) -> None:
    size = proto.ByteSize()
    proto.DiscardUnknownFields()
    if proto.ByteSize() == size:
        return
    if not proto.HasField("graph"):
        # Any bytes may happen to parse as fields that nobody knows.
        raise InvalidModelError("the file is not an ONNX model", where=where)
    place = _find_unknown_field(onnx.ModelProto.FromString(data), "model")
    raise UnsupportedModelError(
        f"it has fields that onnx {onnx.__version__} does not know ({place})",
        where=where,
        hint="Install the version of onnx that the model was made with.",
    )


def _find_unknown_field(message: object, path: str) -> str:
    from google.protobuf.unknown_fields import UnknownFieldSet

    waiting = [(message, path)]
    while waiting:
        item, path = waiting.pop()
        for field in UnknownFieldSet(item):
            return f"field {field.field_number} of {path}"
        for descriptor, content in item.ListFields():  # type: ignore[attr-defined]  # messages have no common stub
            if descriptor.message_type is not None:
                inner = [content] if hasattr(content, "ListFields") else content
                waiting += [(entry, f"{path}.{descriptor.name}") for entry in inner]
    return path


def check_target(out: Path, sources: Iterator[Path]) -> None:
    """Refuse to write to *out* where that is a directory, cannot be created, or is one of the *sources*.

    Raises:
        PathError: One of these is the case.
    """
    where = str(out)
    try:
        kind = out.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        kind = 0
    except OSError as error:  # a name that is too long, a loop of links, a folder that may not be entered
        raise _explain(error, out) from error
    if stat.S_ISDIR(kind):
        raise PathError("expected an output file, got a directory", where=where)
    if kind and not stat.S_ISREG(kind):
        raise PathError("expected an output file, got something that is not a regular file", where=where)
    if not out.parent.is_dir():
        raise PathError("the folder of the output does not exist", where=where)
    if not is_utf8(where):
        raise PathError(
            "the name of the output is not UTF-8, and neither ONNX nor onnxruntime can take it",
            where=where,
            hint="Name another file.",
        )
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PathError("the folder of the output is not writable", where=where)
    for source in sources:
        if source == out or (source.exists() and out.exists() and source.samefile(out)):
            raise PathError(
                f"the output is the same file as the input {str(source)!r}",
                where=where,
                hint="Name another file.",
            )


class FilePair:
    """Writes a model and perhaps its data file beside their final places, then renames both or neither.

    Use as a context manager; an exception inside it, or an interrupt, leaves the old files as they were.

    Args:
        out: The final path of the model; its data file is ``data_path(out)``.

    Raises:
        WriteError: The disk is full or failed.
        PathError: The folder does not take new files.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._data = data_path(out)
        # A folder on the same file system, in which both files already have their final names: so the model
        # finds its data, and can be tried out, before it takes its place.
        self._stage = out.with_name(f".graphopt-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._new_model = self._stage / self._out.name
        self._new_data = self._stage / self._data.name
        self._old_data = self._stage / f"{self._data.name}.old"
        self._has_data = False
        self._keep_old = False

    @property
    def staged(self) -> Path:
        """The new model before :meth:`commit`."""
        return self._new_model

    def __enter__(self) -> Self:
        try:
            self._stage.mkdir()
        except OSError as error:
            raise _explain(error, self._out) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self._keep_old:
            shutil.rmtree(self._stage, ignore_errors=True)
        if isinstance(error, OSError):
            raise _explain(error, self._out) from error

    def write_data(self, write: Callable[[int], None]) -> None:
        """Create the new data file and let *write* fill its descriptor."""
        self._has_data = True
        self._write(self._new_data, write)

    def write_model(self, data: bytes) -> None:
        """Create the new model file."""
        self._write(self._new_model, lambda target: write_at(target, data, 0))

    @staticmethod
    def _write(path: Path, write: Callable[[int], None]) -> None:
        # Mode 0o666 less the umask, as any program that creates a file; mkstemp would make it private.
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write(target)
            os.fsync(target)
        finally:
            os.close(target)

    def commit(self, *, remove_data: bool = False) -> None:
        """Put the new files in place, data first; *remove_data* drops the data file of the replaced model."""
        replaces_data = self._has_data and self._data.exists()
        try:
            if replaces_data:
                _link_or_move(self._data, self._old_data)
            if self._has_data:
                self._new_data.replace(self._data)
            self._new_model.replace(self._out)
        except BaseException:
            # Whether a rename happened is read off the disk: an interrupt can come between it and any flag.
            if self._new_model.exists():
                if self._old_data.exists():
                    # Should even this fail, the old data is still there under its temporary name.
                    self._keep_old = True
                    self._old_data.replace(self._data)
                    self._keep_old = False
                elif self._has_data and not replaces_data and not self._new_data.exists():
                    self._data.unlink(missing_ok=True)
            raise
        if remove_data:
            self._data.unlink(missing_ok=True)
        _sync_folder(self._out.parent)


def data_path(out: Path) -> Path:
    """Return where the external data of the model at *out* goes."""
    return out.with_name(f"{out.name}.data")


def refers_to(model: Path, data: Path) -> bool:
    """Return whether the model file at *model* has tensors in *data* beside it; False for other files."""
    try:
        proto = read_message(model)
    except (InvalidModelError, UnsupportedModelError, PathError):
        return False
    return any(
        entry.key == "location" and entry.value == data.name
        for tensor in _tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
    )


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        else:
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                graphs += (attribute.g, *attribute.graphs)


def _link_or_move(old: Path, new: Path) -> None:
    try:
        new.hardlink_to(old)
    except OSError:
        old.rename(new)


def _sync_folder(folder: Path) -> None:
    # Some file systems cannot sync a folder; the files themselves are safe by then.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explain(error: OSError, out: Path) -> PathError | WriteError:
    if error.errno in _FULL:
        return WriteError(
            f"the output could not be written whole ({error.strerror})",
            where=str(out),
            hint="Free some space; nothing partial is left.",
        )
    return PathError(f"the output cannot be written ({error.strerror})", where=str(out))
