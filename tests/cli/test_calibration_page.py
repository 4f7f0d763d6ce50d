"""Every command of docs/calibration.md runs as it stands, on a small net and random numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.passes.test_insert_qdq import residual

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine

PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"


def commands() -> list[str]:
    """Return the lines of the page that are commands: indented, beginning with graphopt."""
    return re.findall(r"^ {4,}(graphopt .+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    graphopt: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(residual().SerializeToString())
    data = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    for name, part in (("data", data), ("monday", data[:8]), ("tuesday", data[8:])):
        np.savez(tmp_path / f"{name}.npz", x=part)
    lines = commands()
    assert len(lines) >= 12
    for line in lines:
        outcome = graphopt(*shlex.split(line)[1:])
        assert outcome.code == 0, f"{line}\n{outcome.out}\n{outcome.err}"
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
