"""Facts about models and versions, as they stand in a report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.record import ModelFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir import Model

_BLOCK_BYTES = 1 << 20
_PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of all that a result depends on, without importing any of it."""
    from graphopt import __version__

    found = {"graphopt": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def model_facts(model: Model, path: Path, files: tuple[Path, ...], dims: Mapping[str, int]) -> ModelFacts:
    """Return the facts of *model* as it stands in *files*, the first of which is *path*.

    Args:
        model: The model.
        path: Its ONNX file; ``sha256`` is of this file alone.
        files: All its files, whose sizes add up to ``bytes``.
        dims: Sizes bound to symbolic dims; MACs count unbound ones as 1.
    """
    from graphopt.ir import measure_cost

    cost = measure_cost(model, dims)
    return ModelFacts(
        path=str(path),
        sha256=_sha256(path),
        bytes=sum(file.stat().st_size for file in dict.fromkeys(files)),
        nodes=sum(1 for _ in model.nodes()),
        parameters=cost.parameters,
        macs=cost.macs,
    )


def facts_in_memory(model: Model, dims: Mapping[str, int]) -> ModelFacts:
    """Return the facts of a model that was made in memory: no path, and the bytes of its weights alone."""
    from graphopt.ir import measure_cost

    cost = measure_cost(model, dims)
    return ModelFacts(
        path="",
        sha256="",
        bytes=cost.weight_bytes,
        nodes=sum(1 for _ in model.nodes()),
        parameters=cost.parameters,
        macs=cost.macs,
    )


def source_files(model: Model) -> tuple[Path, ...]:
    """Return the files that *model* was read from, its ONNX file first; none for one made in memory."""
    if model.source is None:
        return ()
    return (model.source.path, *model.source.external_files)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
