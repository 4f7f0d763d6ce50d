"""Results that wait in a file: what a pass makes from weights in files need not stand in memory either.

A recipe (graphopt.ir.stream) is run again by whoever reads its tensors. Where that would take long, a result
is put aside instead: its bytes go into a temporary file, and a lazy tensor reads them from there, block by
block.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import WriteError
from graphopt.ir.external import ExternalTensor
from graphopt.ir.stream import Matrix, Part, Recipe, is_in_file, produce
from graphopt.ir.tensors import from_array

if TYPE_CHECKING:
    from graphopt.ir.tensors import Array

_FILE = "weights"  # one name always: fingerprints count folders by number, names by letter


class Spill:
    """Where one run of a pass puts results aside.

    The file goes with the last tensor that lies in it, at the latest when the interpreter ends.
    """

    def __init__(self) -> None:
        self._folder: _Folder | None = None
        self._end = 0

    def keep(self, array: Array, source: oir.TensorProtocol, name: str) -> oir.TensorProtocol:
        """Return *array* as a tensor: a lazy one where *source*, that it was made from, is in a file.

        Args:
            array: Content, of a type with whole bytes.
            source: The tensor that it comes from; where that is in memory, so is the result.
            name: Name of the tensor.

        Raises:
            WriteError: The folder for temporary files is full.
        """
        if not is_in_file(source):
            return from_array(array, name)
        if self._folder is None:
            self._folder = _Folder()
        offset, data = self._end, memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        try:
            with (self._folder.path / _FILE).open("ab") as file:
                file.write(data)
        except OSError as error:
            raise WriteError(
                f"results could not be put aside: {error.strerror}",
                where=str(self._folder.path.parent),
                hint="Free some space there, or set TMPDIR to another folder.",
            ) from error
        self._end += len(data)
        dtype = oir.DataType.from_numpy(array.dtype)
        held = _Held(
            _FILE,
            offset,
            len(data),
            dtype,
            shape=oir.Shape(array.shape),
            name=name,
            base_dir=os.fspath(self._folder.path),
        )
        held.folder = self._folder
        part = Part(dtype, array.shape, array.itemsize)
        recipe = Recipe(Matrix(held, array.size, 1), (part,), lambda block: (block.data,))
        (made,) = produce(recipe, (name,))
        return made


class _Folder:
    """A temporary folder that is removed with the last reference to this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="graphopt-weights-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class _Held(ExternalTensor):
    __slots__ = ("folder",)
    folder: Any
