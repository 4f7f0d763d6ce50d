"""From files and protobuf messages to :class:`graphopt.ir.Model`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as oir
from google.protobuf.message import DecodeError

from graphopt.errors import InvalidModelError, PathError
from graphopt.ir.collector import collector_paused
from graphopt.ir.model import Model, Source

if TYPE_CHECKING:
    from os import PathLike


def load(path: str | PathLike[str]) -> Model:
    """Read the ONNX file at *path*."""
    file = Path(path)
    if not file.exists():
        raise PathError("the file does not exist", where=str(file))
    if file.is_dir():
        raise PathError("expected an ONNX file, got a directory", where=str(file))
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise InvalidModelError("the file is not an ONNX model", where=str(file)) from error
    return lower(proto, base_dir=file.parent.resolve(), source=Source(path=file.resolve()))


def lower(proto: onnx.ModelProto, *, base_dir: Path | None = None, source: Source | None = None) -> Model:
    """Turn *proto* into a model."""
    with collector_paused():
        store = oir.serde.deserialize_model(proto)
        if base_dir is not None:
            oir.external_data.set_base_dir(store.graph, os.fspath(base_dir))
    return Model(store, source=source)


def clone_store(store: oir.Model) -> oir.Model:
    """Return an independent copy of *store*; tensors are shared."""
    return store.clone()
