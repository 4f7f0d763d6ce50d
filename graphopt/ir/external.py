"""External tensor data: which files are allowed, tensors that live in them, and copying without mapping.

A location in a model is text from a stranger. It must stay inside the folder of the model, links followed,
and name a regular file that holds the bytes it promises; all of that is checked once, when the model is read.
Bytes are copied by the kernel or through one small buffer: pages of a mapped file count as memory of the
process, and a gigabyte of weights would look like a gigabyte of use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import onnx_ir as oir

from graphopt.errors import InvalidModelError
from graphopt.ir.tensors import byte_size, decode, freeze

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_BUFFER_BYTES = 1 << 20
# Enough for a disk to be busy with, little beside what a system keeps back.
_EARLY_BYTES = 16 << 20
# The most that one copy_file_range call is asked for; the kernel stops at 2 GiB anyway.
_KERNEL_COPY_BYTES = 1 << 30
# What copy_file_range says where it cannot work: other file system, old kernel, special file.
_NO_KERNEL_COPY = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.EBADF, errno.ETXTBSY}
)


class ExternalTensor(oir.ExternalTensor):
    """A tensor whose bytes stay in a file; numpy sees them through a read-only map.

    onnx-ir's own class refuses files with several hard links when they are read. Package managers make such
    files; what matters is that the path stays in the model's folder, which :class:`DataFolder` has checked.
    """

    def numpy(self) -> npt.NDArray[Any]:
        """Return the values, read-only; plain types as a view of the mapped file.

        Raises:
            InvalidModelError: The file is gone or shorter than it was when the model was read.
        """
        dims = self.shape.numpy()
        size = byte_size(self.dtype, dims)
        if size == 0:
            return freeze(np.zeros(dims, self.dtype.numpy()))
        try:
            mapped = np.memmap(self.path, np.uint8, mode="r", offset=self.offset or 0, shape=(size,))
        except (OSError, ValueError) as error:
            raise _unreadable(self, error) from error
        return decode(mapped.view(np.ndarray), self.dtype, dims)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self.numpy(), dtype=dtype, copy=copy)

    def tobytes(self) -> bytes:
        """Return the bytes, read from the file.

        Raises:
            InvalidModelError: As :meth:`numpy`.
        """
        size = byte_size(self.dtype, self.shape.numpy())
        try:
            with Path(self.path).open("rb") as file:
                file.seek(self.offset or 0)
                data = file.read(size)
        except OSError as error:
            raise _unreadable(self, error) from error
        if len(data) != size:
            raise _unreadable(self, f"expected {size} bytes, got {len(data)}")
        return data

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes to *file* without reading them whole.

        Raises:
            InvalidModelError: As :meth:`numpy`.
        """
        left = byte_size(self.dtype, self.shape.numpy())
        try:
            source = Path(self.path).open("rb")  # noqa: SIM115 - only opening may be blamed on the source
        except OSError as error:
            raise _unreadable(self, error) from error
        with source:
            source.seek(self.offset or 0)
            while left:
                part = source.read(min(left, _BUFFER_BYTES))
                if not part:
                    raise _unreadable(self, "it is shorter than it was")
                file.write(part)
                left -= len(part)


def copy_tensor(tensor: oir.ExternalTensor, target: int, offset: int) -> None:
    """Copy the bytes of *tensor* into the open file *target* at *offset*.

    Raises:
        InvalidModelError: Its file is gone or shorter than it was when the model was read.
        OSError: Writing failed, a full disk included.
    """
    size = byte_size(tensor.dtype, tensor.shape.numpy())
    try:
        source = os.open(tensor.path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(tensor, error) from error
    try:
        if copy_range(source, tensor.offset or 0, target, offset, size) != size:
            raise _unreadable(tensor, "it is shorter than it was")
    finally:
        os.close(source)


def _unreadable(tensor: oir.ExternalTensor, reason: object) -> InvalidModelError:
    return InvalidModelError(
        f"the external data cannot be read ({reason})",
        where=f"tensor {tensor.name!r} in {tensor.path}",
        hint="The file must not change while graphopt works with the model.",
    )


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size: int


class DataFolder:
    """The folder of a model, as the root that external data must not leave.

    Args:
        folder: The folder of the ``.onnx`` file.
        model: What to call the model in errors.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self._real = Path(os.path.realpath(folder))
        self._model = model
        self._files: dict[str, _File] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that have been named so far, links resolved, in order of first use."""
        return tuple(dict.fromkeys(file.path for file in self._files.values()))

    def tensor(
        self,
        entries: dict[str, str],
        dtype: oir.DataType,
        dims: Sequence[int],
        name: str,
        **about: Any,  # noqa: ANN401 - for the tensor
    ) -> ExternalTensor:
        """Return the tensor that the external data *entries* of a TensorProto describe.

        Raises:
            InvalidModelError: The location is missing, leaves the folder or is no regular file, or the
                tensor's bytes do not lie inside the file.
        """
        where = f"tensor {name!r} in {self._model}"
        location = entries.get("location", "")
        file = self._files.get(location)
        if file is None:
            file = self._files[location] = self._find(location, where)
        size = byte_size(dtype, dims)
        offset, length = (_number(entries, key, where) for key in ("offset", "length"))
        if length is not None and length != size:
            raise InvalidModelError(
                f"its external data has length {length},"
                f" but type {dtype.name} and shape {list(dims)} need {size}",
                where=where,
            )
        end = (offset or 0) + size
        if end > file.size:
            raise InvalidModelError(
                f"its external data ends at byte {end} of {location!r}, which has only {file.size} bytes",
                where=where,
            )
        return ExternalTensor(
            location,
            offset,
            length,
            dtype,
            shape=oir.Shape(dims),
            name=name,
            base_dir=os.fspath(self.folder),
            **about,
        )

    def _find(self, location: str, where: str) -> _File:
        def refuse(reason: str, hint: str = "") -> InvalidModelError:
            return InvalidModelError(f"its external data {location!r} {reason}", where=where, hint=hint)

        if not location or "\0" in location:
            raise refuse("is no path")
        if os.path.isabs(location) or PureWindowsPath(location).is_absolute():  # noqa: PTH117 - text, not a path yet
            raise refuse("is an absolute path; expected one relative to the model's folder")
        if ".." in PureWindowsPath(location).parts:
            raise refuse("leaves the model's folder by '..'")
        path = Path(os.path.realpath(self.folder / location))
        if not path.is_relative_to(self._real):
            raise refuse(
                f"leaves the model's folder through a link to {str(path)!r}",
                "Copy the data beside the model.",
            )
        try:
            status = path.stat()
        except OSError as error:
            reason = (
                "does not exist"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read ({error.strerror})"
            )
            raise refuse(reason, "Put the data file beside the model.") from error
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is not a regular file")
        return _File(path, status.st_size)


def _number(entries: dict[str, str], key: str, where: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InvalidModelError(
            f"the {key} of its external data is {text!r}; expected a number that is not negative", where=where
        )
    return int(text)


def copy_range(source: int, source_offset: int, target: int, target_offset: int, count: int) -> int:
    """Copy *count* bytes between two open files and return how many there were.

    Args:
        source: File descriptor to read from; its position is left alone.
        source_offset: Where to start reading, in bytes.
        target: File descriptor to write to; its position is left alone.
        target_offset: Where to start writing, in bytes.
        count: How many bytes.

    Raises:
        OSError: Reading or writing failed, a full disk included.
    """
    done = _copy_in_kernel(source, source_offset, target, target_offset, count)
    if done == count:
        return done
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, count - done)))
    while done < count:
        part = buffer[: min(len(buffer), count - done)]
        got = os.preadv(source, [part], source_offset + done)
        if got == 0:
            break
        write_at(target, part[:got], target_offset + done)
        done += got
    return done


def _copy_in_kernel(source: int, source_offset: int, target: int, target_offset: int, count: int) -> int:
    if not hasattr(os, "copy_file_range"):
        return 0
    done = 0
    while done < count:
        step = min(_KERNEL_COPY_BYTES, count - done)
        try:
            copied = os.copy_file_range(source, target, step, source_offset + done, target_offset + done)
        except OSError as error:
            if error.errno in _NO_KERNEL_COPY:
                return done
            raise
        if copied == 0:
            break
        done += copied
    return done


class EarlyWriter:
    """Writes into an open file from several threads, and has the system store it while they go on.

    Else everything waits in memory until the file is made durable at the end, and nothing else happens then.

    Args:
        target: File descriptor.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int]] = []
        self._waiting_bytes = 0

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of *data* at *offset*.

        Raises:
            OSError: Writing failed, a full disk included.
        """
        write_at(self._target, data, offset)
        with self._lock:
            self._waiting.append((offset, offset + len(data)))
            self._waiting_bytes += len(data)
            if self._waiting_bytes < _EARLY_BYTES:
                return
            ranges, self._waiting, self._waiting_bytes = sorted(self._waiting), [], 0
        start, end = ranges[0]
        for first, last in ranges[1:]:
            if first != end:
                _store(self._target, start, end)
                start = first
            end = last
        _store(self._target, start, end)


def _store(target: int, start: int, end: int) -> None:
    # On Linux this starts writing dirty pages, and drops clean ones: these are none of them. It is advice;
    # where it cannot be given, fsync has more to do.
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(target, start, end - start, os.POSIX_FADV_DONTNEED)


def write_at(target: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of *data* at *offset* of an open file.

    Raises:
        OSError: Writing failed, a full disk included.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        offset += written
        view = view[written:]
