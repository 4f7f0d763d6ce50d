"""Activations of many samples, kept in a file: memory stays bounded however many there are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]


class Spool:
    """Values of one place in a model, sample after sample, in a file that is written once and read often.

    Args:
        path: The file.
        names: Names of the values of each sample.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._path = path
        self._file = path.open("wb")
        self._index: list[tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]] = []

    def append(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add the values of one sample.

        Raises:
            WriteError: The disk is full or failed.
        """
        arrays = [np.asarray(values[name], order="C") for name in self.names]  # keeps scalars, unlike its kin
        try:
            for array in arrays:
                self._file.write(array.tobytes())
        except OSError as error:
            raise WriteError(
                f"activations could not be kept: {error.strerror}",
                where=str(self._path.parent),
                hint="Give fewer samples, or a larger temporary folder with TMPDIR.",
            ) from error
        self._index.append(tuple((array.dtype, array.shape) for array in arrays))

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[Arrays]:
        self._file.flush()
        with self._path.open("rb") as file:
            for entry in self._index:
                values: Arrays = {}
                for name, (dtype, shape) in zip(self.names, entry, strict=True):
                    size = math.prod(shape) * dtype.itemsize
                    values[name] = np.frombuffer(file.read(size), dtype).reshape(shape)
                yield values

    def remove(self) -> None:
        """Close and delete the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
