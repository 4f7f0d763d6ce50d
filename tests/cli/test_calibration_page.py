"""Every command of docs/calibration.md runs as it stands, on the model and data of the demo."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import graphopt.demo as demo_package

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """Return the lines of the page that are commands: indented, beginning with graphopt."""
    page = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    return re.findall(r"^ {4,}(graphopt .+)$", page, re.MULTILINE)


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    graphopt: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(graphopt_demo())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes((place / "digits.onnx").read_bytes())
    with np.load(place / "digits.npz") as stored:
        images = stored["images"][stored["calibration"][:24]].astype(np.float32)[:, None]
    for name, part in (("data", images), ("monday", images[:12]), ("tuesday", images[12:])):
        np.savez(tmp_path / f"{name}.npz", image=part)
    lines = commands()
    assert len(lines) >= 12
    for line in lines:
        outcome = graphopt(*shlex.split(line)[1:])
        assert outcome.code == 0, f"{line}\n{outcome.out}\n{outcome.err}"
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def graphopt_demo() -> str:
    """Return the folder of the demo."""
    found = demo_package.__file__
    assert found is not None
    return str(Path(found).parent)
