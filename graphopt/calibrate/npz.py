"""Arrays in .npz files: looked at without reading them, and read sample by sample in bounded memory."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from graphopt.errors import DataError
from graphopt.runtime import dtypes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from graphopt.runtime.dtypes import ElementType
    from graphopt.runtime.session import Tensor

_BLOCK_BYTES = 1 << 22
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError)


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array of an .npz file; only its header has been read.

    Attributes:
        path: The file.
        name: The array's name, without ".npy".
        shape: Its shape.
        dtype: As stored; arrays of ml_dtypes are stored as raw bytes (V1, V2).
        fortran_order: Whether the first axis varies fastest, so that samples are not contiguous.
        offset: Where the data begins inside the member.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    offset: int

    @property
    def where(self) -> str:
        """The array as errors name it."""
        return f"array {self.name!r} in {self.path}"

    def type_name(self, wanted: ElementType) -> str:
        """Return the name of the element type: *wanted* where the stored bytes can only be read as that.

        Raises:
            DataError: The array holds Python objects, or a type that ONNX has not.
        """
        if self.dtype.hasobject:
            raise DataError(
                "the array holds Python objects, which are never unpickled",
                where=self.where,
                hint="Save strings as a string array, and ragged samples as a folder with one .npz a feed",
            )
        if self.dtype.kind == "V" and not wanted.native and self.dtype.itemsize == max(wanted.bits, 8) // 8:
            return wanted.name
        if self.dtype.kind in "US":
            return "string"
        try:
            return dtypes.by_name(self.dtype.name).name
        except DataError as error:
            raise DataError(error.message, where=self.where, hint=error.hint) from error

    def rows(self, count: int, element: ElementType) -> Iterator[Tensor]:
        """Yield ``array[0]`` to ``array[count - 1]`` one after the other.

        Raises:
            DataError: The file is damaged.
        """
        if self.fortran_order:
            yield from self.whole(element)[:count]
            return
        shape = self.shape[1:]
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        with self._data() as stream:
            for _ in range(count):
                yield self._convert(self._take(stream, size), shape, element)

    def whole(self, element: ElementType) -> Tensor:
        """Return the whole array.

        Raises:
            DataError: The file is damaged.
        """
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        with self._data() as stream:
            raw = self._take(stream, size)
        if self.fortran_order:
            return np.ascontiguousarray(self._convert(raw, self.shape[::-1], element).T)
        return self._convert(raw, self.shape, element)

    def blocks(self, element: ElementType, elements: int) -> Iterator[Tensor]:
        """Yield the first *elements* elements in storage order, flat, a few MiB at a time.

        Raises:
            DataError: The file is damaged.
        """
        left = elements * self.dtype.itemsize
        block = max(_BLOCK_BYTES // self.dtype.itemsize, 1) * self.dtype.itemsize
        with self._data() as stream:
            while left > 0:
                size = min(block, left)
                yield self._convert(self._take(stream, size), (size // self.dtype.itemsize,), element)
                left -= size

    @contextmanager
    def _data(self) -> Iterator[IO[bytes]]:
        with (
            _damage_named(self.where),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as stream,
        ):
            stream.read(self.offset)
            yield stream

    def _take(self, stream: IO[bytes], size: int) -> bytes:
        with _damage_named(self.where):
            raw = stream.read(size)
        if len(raw) != size:
            raise DataError("the array is cut short", where=self.where)
        return raw

    def _convert(self, raw: bytes, shape: tuple[int, ...], element: ElementType) -> Tensor:
        array = np.frombuffer(bytearray(raw), self.dtype).reshape(shape)
        if element.name == "string":
            return array.astype(str).astype(object)
        return (
            array.view(element.numpy()) if not element.native else array.astype(element.numpy(), copy=False)
        )


def read_headers(path: Path) -> dict[str, StoredArray]:
    """Return the arrays of the .npz file *path* by name, without their contents.

    Raises:
        DataError: The file is no .npz file, or damaged.
    """
    arrays = {}
    with (
        _damage_named(str(path), "the file is not an .npz file, or damaged"),
        zipfile.ZipFile(path) as archive,
    ):
        for member in archive.namelist():
            if not member.endswith(".npy"):
                continue
            with archive.open(member) as stream:
                version = npy.read_magic(stream)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran, dtype = read(stream)
                name = member.removesuffix(".npy")
                # A one-dimensional array is both; rows can then be read one by one.
                fortran = fortran and len(shape) > 1
                arrays[name] = StoredArray(path, name, shape, dtype, fortran, stream.tell())
    return arrays


@contextmanager
def _damage_named(where: str, message: str = "the array cannot be read") -> Iterator[None]:
    """Turn what the archive and numpy raise on damaged files into one error that names the place."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{message} ({error})", where=where) from error
