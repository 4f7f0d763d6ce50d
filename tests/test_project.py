"""The project around the package: what CI runs, what the wheel holds, which versions are the lowest."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEST_LINE = "python3 -m pip install tox && python3 -m tox"
INSTALL_LINE = "python3 -m pip install . && graphopt demo"


def lines_of(name: str) -> list[str]:
    return [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]


def test_the_readme_has_one_line_to_try_and_one_to_test() -> None:
    lines = lines_of("README.md")
    assert lines.count(INSTALL_LINE) == 1
    assert lines.count(TEST_LINE) == 1
    assert sum("tox" in line for line in lines) == 1


def test_ci_runs_exactly_the_line_of_the_readme() -> None:
    commands = [line for line in lines_of(".ci/run") if "tox" in line and not line.startswith("#")]
    assert commands[0] == TEST_LINE
    assert "set -euo pipefail" in lines_of(".ci/run")


def test_the_lowest_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["test"]]
    lowest = dict(line.split("==") for line in lines_of("tests/lowest.txt") if line and line[0] != "#")
    bounds: dict[str, str] = {}
    for requirement in declared:
        match = re.fullmatch(r"([a-z-]+)>=([0-9.]+)(,<[0-9.]+)?", requirement)
        assert match is not None, requirement
        bounds[match[1]] = match[2]

    def numbers(version: str) -> list[int]:
        found = [int(part) for part in version.split(".")]
        while found[-1] == 0:
            found.pop()
        return found

    assert {name: numbers(version) for name, version in lowest.items()} == {
        name: numbers(version) for name, version in bounds.items()
    }


def test_the_environment_of_openvino_has_all_but_onnxruntime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {*project["project"]["dependencies"], *project["dependency-groups"]["test"]}
    installed = {line for line in lines_of("tests/openvino.txt") if line and line[0] != "#"}

    def without_runtime(requirements: set[str]) -> set[str]:
        return {each for each in requirements if not each.startswith("onnxruntime")}

    assert without_runtime(installed) == without_runtime(declared)
    assert [each for each in installed if each.startswith("onnxruntime")] == ["onnxruntime-openvino>=1.24"]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--quiet",
            "--wheel-dir",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "graphopt"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert tracked
    assert set(tracked) <= names
    assert {"graphopt/py.typed", "graphopt/demo/digits.onnx", "graphopt/targets/ort-cpu.toml"} <= names
    assert not [name for name in names if not name.startswith(("graphopt/", "graphopt-"))]
