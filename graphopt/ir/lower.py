"""From files and protobuf messages to :class:`graphopt.ir.Model`, without loss or with a clear refusal.

onnx-ir is the store, but not the reader: its deserializer drops sparse initializers, repeated opsets, exact
entries of values that are inputs and outputs at once and unknown external-data keys, logs where a model is
invalid, and keeps the whole message alive behind its tensors. What it has no room for goes to ``meta`` (see
meta.py) and comes back in emit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import InvalidModelError
from graphopt.ir.clone import clone_store
from graphopt.ir.collector import collector_paused
from graphopt.ir.external import DataFolder
from graphopt.ir.files import read_message
from graphopt.ir.model import Model, Source
from graphopt.ir.read_model import ModelReader
from graphopt.ir.read_tensors import TensorReader

if TYPE_CHECKING:
    from os import PathLike

    import onnx
    import onnx_ir as oir

__all__ = ["clone_store", "load", "lower"]


def load(path: str | PathLike[str]) -> Model:
    """Read the ONNX file at *path*; external data is checked and left where it is.

    Raises:
        PathError: The path is missing or a directory.
        InvalidModelError: The file is no ONNX model, or breaks a rule of ONNX.
        UnsupportedModelError: The model has something that graphopt cannot keep.
    """
    file = Path(path)
    proto = read_message(file)
    folder = DataFolder(file.parent.absolute(), str(file))
    store = _lower(proto, folder, str(file))
    return Model(store, source=Source(path=file.absolute(), external_files=folder.files))


def lower(proto: onnx.ModelProto, *, base_dir: Path | None = None, source: Source | None = None) -> Model:
    """Turn a message into a model; the message is not changed and not kept.

    Args:
        proto: The message.
        base_dir: The folder that locations of external data are relative to; the current one by default.
        source: Where the message was read from, if it was.

    Raises:
        InvalidModelError: The message breaks a rule of ONNX.
        UnsupportedModelError: It has something that graphopt cannot keep.
    """
    name = str(source.path) if source is not None else "the model"
    folder = DataFolder(base_dir if base_dir is not None else Path.cwd(), name)
    return Model(_lower(proto, folder, name), source=source)


def _lower(proto: onnx.ModelProto, folder: DataFolder, name: str) -> oir.Model:
    try:
        with collector_paused():
            return ModelReader(TensorReader(folder, name), name).model(proto)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        # What no check foresaw, from damaged files mostly: still one sentence, the cause behind --debug.
        raise InvalidModelError(f"the model cannot be represented ({error})", where=name) from error
