"""Models that tests and benchmarks share: the onnx wheel, feature families, assets, zoo, backend node models.

Everything is given as paths of ``.onnx`` files. The folders of the assets and of the node models come from
the environment (GRAPHOPT_ASSETS, GRAPHOPT_NODE_MODELS); nothing here knows a place of its own.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def onnx_wheel_models() -> list[Path]:
    """The ``.onnx`` files inside the installed onnx package: 149 in onnx 1.23."""
    return sorted(Path(onnx.__file__).parent.rglob("*.onnx"))


def feature_models(folder: Path) -> dict[str, Path]:
    """Write one tiny model a feature family into *folder* and return their paths by name."""
    from tests.families import FAMILIES, write_external_family

    paths = {}
    for name, build in FAMILIES.items():
        paths[name] = folder / f"{name}.onnx"
        paths[name].write_bytes(build().SerializeToString(deterministic=True))
    paths["external"] = write_external_family(folder / "external")
    return paths


def asset_models(assets: Path) -> list[Path]:
    """The trained models of the assets."""
    return sorted((assets / "models").glob("*.onnx"))


def asset_tasks(assets: Path) -> dict[str, Any]:
    """What tasks.py of the assets describes: models with data and a metric, by name."""
    tasks: dict[str, Any] = _imported(assets / "tasks.py").TASKS
    return tasks


def zoo_names(assets: Path) -> list[str]:
    """Names of the architectures of the zoo."""
    return sorted(path.stem for path in (assets / "zoo").glob("*.onnx"))


def small_zoo_names(assets: Path) -> list[str]:
    """Those of the zoo with less than 64 MiB of weights: of every kind of architecture and both exporters."""
    return [
        name
        for name in zoo_names(assets)
        if sum(
            math.prod(tensor.dims) for tensor in onnx.load(assets / "zoo" / f"{name}.onnx").graph.initializer
        )
        < 16 << 20
    ]


def zoo_model(assets: Path, name: str) -> Path:
    """One architecture of the zoo with its weights filled in; kept until the process ends."""
    path = _zoo_cache() / f"{name}.onnx"
    if not path.exists():
        materialize = _materializer(assets / "zoo" / "materialize.py")
        path.write_bytes(materialize(assets / "zoo" / f"{name}.onnx").SerializeToString())
    return path


def zoo_models(assets: Path) -> Iterator[Path]:
    """All architectures of the zoo, each filled in when it is reached."""
    for name in zoo_names(assets):
        yield zoo_model(assets, name)


@functools.cache
def _zoo_cache() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="graphopt-zoo-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _materializer(script: Path) -> Any:
    return _imported(script).materialize


def _imported(script: Path) -> Any:
    """Import a file of the assets by its path."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class NodeCase:
    """One ONNX backend node test: a model and data with the outputs that its authors expect."""

    name: str
    model: Path

    def data_sets(self) -> list[tuple[dict[str, Any], list[Any]]]:
        """(feeds by input name, expected outputs in order) of each data set.

        Sequences are lists, an empty optional is None.
        """
        proto = onnx.load(self.model)
        sets = []
        for folder in sorted(self.model.parent.glob("test_data_set_*")):
            # Only inputs without a default are fed: those that are initializers too have none in the data.
            feeds = {
                info.name: _read_value(folder / f"input_{k}.pb", info.type)
                for k, info in enumerate(proto.graph.input)
                if (folder / f"input_{k}.pb").exists()
            }
            outputs = [
                _read_value(folder / f"output_{k}.pb", info.type) for k, info in enumerate(proto.graph.output)
            ]
            sets.append((feeds, outputs))
        return sets


def _read_value(path: Path, type_proto: onnx.TypeProto) -> Any:
    from onnx import numpy_helper

    data = path.read_bytes()
    kind = type_proto.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def node_models_folder() -> Path:
    """The folder that tests/fetch_node_models.py filled, or the test is skipped (or fails where required)."""
    folder = os.environ.get("GRAPHOPT_NODE_MODELS", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"GRAPHOPT_NODE_MODELS does not name a folder (it is {folder!r}); see tests/fetch_node_models.py"
    if os.environ.get("GRAPHOPT_REQUIRE_NODE_MODELS") == "1":
        pytest.fail(f"{reason}, although GRAPHOPT_REQUIRE_NODE_MODELS=1")
    pytest.skip(reason)


def node_cases(folder: Path | None = None) -> list[NodeCase]:
    """The 1,282 backend node models of onnx 1.16.2; *folder* defaults to :func:`node_models_folder`."""
    root = folder if folder is not None else node_models_folder()
    return [
        NodeCase(path.parent.name, path)
        for path in sorted(root.glob("onnx/backend/test/data/node/*/model.onnx"))
    ]


def node_models(folder: Path | None = None) -> list[Path]:
    """Paths of the models of :func:`node_cases`."""
    return [case.model for case in node_cases(folder)]
