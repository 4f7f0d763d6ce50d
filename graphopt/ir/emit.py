"""From a model to protobuf messages and files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx
import onnx_ir as oir

from graphopt.ir.collector import collector_paused

if TYPE_CHECKING:
    from os import PathLike

    from graphopt.ir.model import Model


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where the bytes of large tensors go.

    Attributes:
        mode: ``auto`` keeps inline what was inline and external what was external, ``one-file`` moves every
            tensor of at least the threshold to OUT.data, ``inline`` puts everything into the protobuf.
        size_threshold_bytes: Tensors smaller than this stay inline in mode ``one-file``.
    """

    mode: Literal["auto", "one-file", "inline"] = "auto"
    size_threshold_bytes: int = 1024


def emit(model: Model) -> onnx.ModelProto:
    """Return *model* as a message; external tensors stay references into their files."""
    with collector_paused():
        return oir.serde.serialize_model(model.store)


def save(model: Model, path: str | PathLike[str], *, external: ExternalData = ExternalData()) -> tuple[Path, ...]:
    """Write *model* to *path* and return the files written."""
    del external
    out = Path(path)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_bytes(emit(model).SerializeToString(deterministic=True))
    os.replace(temporary, out)
    return (out,)


def emit_for_runtime(model: Model, folder: Path) -> Path:
    """Save *model* into the scratch *folder* for a session and return the path of the ONNX file."""
    path = folder / "model.onnx"
    save(model, path)
    return path
