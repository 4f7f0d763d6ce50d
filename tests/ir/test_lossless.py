"""Scenario A10: with no passes, what comes out is what went in, over every corpus there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from graphopt.ir.emit import emit, save
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import load
from graphopt.ir.verify import problems
from tests import corpora
from tests.canonical import canonical, difference, same_model
from tests.families import FAMILIES

ROOT = Path(__file__).parents[2]


def check(path: Path, folder: Path, *, write: bool = True) -> None:
    """Emit, clone and save the model at *path* and compare each with the file."""
    original = onnx.ModelProto.FromString(path.read_bytes())
    model = load(path)
    assert not problems(model)
    message = emit(model)
    assert not same_model(original, message), path
    clone = model.clone()
    assert emit(clone).SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    assert fingerprint(clone) == fingerprint(model)
    assert not problems(clone)
    if write:
        out = folder / "out.onnx"
        save(model, out)
        written = onnx.ModelProto.FromString(out.read_bytes())
        assert not difference(canonical(original, path.parent), canonical(written, folder)), path


def test_wheel_models(tmp_path: Path) -> None:
    paths = corpora.onnx_wheel_models()
    assert len(paths) >= 149
    for path in paths:
        check(path, tmp_path)


@pytest.mark.parametrize("family", [*FAMILIES, "external"])
def test_feature_families(family: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    check(corpora.feature_models(tmp_path / "in")[family], tmp_path / "out")


@pytest.mark.parametrize("family", [*FAMILIES, "external"])
def test_second_trip_changes_nothing(family: str, tmp_path: Path) -> None:
    path = corpora.feature_models(tmp_path)[family]
    files = []
    for k in ("1", "2"):
        (tmp_path / k).mkdir()
        files.append(save(load(path), tmp_path / k / "model.onnx"))
        path = files[-1][0]
    assert len(files[0]) == len(files[1]) == (2 if family == "external" else 1)
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_asset_models(assets: Path, tmp_path: Path) -> None:
    paths = corpora.asset_models(assets)
    assert len(paths) >= 19
    for path in paths:
        check(path, tmp_path)


@pytest.mark.slow
def test_zoo(assets: Path, tmp_path: Path) -> None:
    names = corpora.small_zoo_names(assets)
    assert len(names) >= 20
    for name in names:
        check(corpora.zoo_model(assets, name), tmp_path, write=False)


@pytest.mark.slow
def test_node_models(tmp_path: Path) -> None:
    paths = corpora.node_models()
    assert len(paths) == 1282
    for path in paths:
        check(path, tmp_path, write=False)


def test_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    corpora.feature_models(source)
    script = (
        "import hashlib, sys\n"
        "from pathlib import Path\n"
        "from graphopt.ir.emit import ExternalData, save\n"
        "from graphopt.ir.fingerprint import fingerprint\n"
        "from graphopt.ir.lower import load\n"
        "for path in sorted(Path(sys.argv[1]).rglob('*.onnx')):\n"
        "    out = Path(sys.argv[2]) / path.name\n"
        "    model = load(path)\n"
        "    for file in save(model.clone(), out, external=ExternalData('one-file', 8)):\n"
        "        print(path.name, hashlib.sha256(file.read_bytes()).hexdigest(), fingerprint(model))\n"
    )
    printed = []
    for seed in ("0", "4242"):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        result = subprocess.run(
            [sys.executable, "-c", script, str(source), str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        printed.append(result.stdout)
    assert printed[0].count("\n") > len(FAMILIES)
    assert printed[0] == printed[1]
