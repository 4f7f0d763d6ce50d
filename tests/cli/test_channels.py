"""``graphopt channels``: table, JSON, plan, DOT and SVG."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import onnx
import pytest

from tests.cli.conftest import CommandLine
from tests.passes.pruning import scenarios

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.onnx"
    onnx.save(scenarios.captured_free(), path)
    return path


def test_the_table_names_families_and_locks(graphopt: CommandLine, two: Path) -> None:
    answer = graphopt("channels", two)
    assert answer.code == 0
    assert "w1[0]" in answer.out
    assert "1 families, 32 units" in answer.out
    assert "graph output 'y'" in answer.out


def test_json_has_everything(graphopt: CommandLine, two: Path) -> None:
    document = graphopt("channels", two, "--json").document
    assert document["command"] == "channels"
    (family,) = document["families"]
    assert (family["name"], family["kind"], family["units"], family["exact"]) == (
        "w1[0]",
        "channels",
        32,
        True,
    )
    roles = {(each["initializer"], each["axis"]): each["role"] for each in family["members"]}
    assert roles == {("w1", 0): "producer", ("b1", 0): "follower", ("w2", 1): "consumer"}
    # One channel: 27 and 10 * 9 weights and a bias, all of them used at 64 places.
    assert family["parameters_per_unit"] == 27 + 1 + 90
    assert family["macs_per_unit"] == 64 * (27 + 90)
    assert family["macs"] == 32 * family["macs_per_unit"] == document["macs"]


def test_a_plan_is_written_edited_and_followed(graphopt: CommandLine, two: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    assert graphopt("channels", two, "-o", plan).code == 0
    text = plan.read_text(encoding="utf-8")
    assert "keep = 32" in text
    pipeline = f"prune-channels{{plan={plan}}}"
    unchanged = graphopt("run", two, "-o", tmp_path / "same.onnx", "--pipeline", pipeline, "--json")
    assert unchanged.document["status"] == "unchanged"
    plan.write_text(text.replace("keep = 32", "keep = 9"), encoding="utf-8")
    answer = graphopt("run", two, "-o", tmp_path / "out.onnx", "--pipeline", pipeline, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["steps"][0]["extra"]["families"][0]["kept"] == 9
    assert not any("another state" in each["reason"] for each in answer.document["steps"][0]["skipped"])


def test_a_plan_in_a_folder_that_is_not_there(graphopt: CommandLine, two: Path, tmp_path: Path) -> None:
    assert graphopt("channels", two, "-o", tmp_path / "no" / "plan.toml").code == 2


def test_pictures(graphopt: CommandLine, two: Path, tmp_path: Path) -> None:
    dot, svg = tmp_path / "c.dot", tmp_path / "c.svg"
    answer = graphopt("channels", two, "--dot", dot, "--svg", svg)
    assert answer.code == 0
    assert answer.out.endswith(f"\nwritten: {dot}, {svg}\n")
    text = dot.read_text(encoding="utf-8")
    assert '"weight w1" -> "family w1[0]"' in text
    assert '"family w1[0]" -> "weight w2"' in text
    root = ET.fromstring(svg.read_text(encoding="utf-8"))
    groups = root.findall(f"{SVG}g")
    assert [each.get("class") for each in groups] == ["weight", "weight", "family"]
    assert [len(each.findall(f"{SVG}circle")) for each in groups] == [0, 0, 2]
    places = [int(each.get("cx", "0")) for each in groups[2].findall(f"{SVG}circle")]
    assert places == sorted(places)


def test_a_model_that_is_not_there(graphopt: CommandLine, tmp_path: Path) -> None:
    assert graphopt("channels", tmp_path / "no.onnx").code == 2


def test_a_dim_that_no_input_has(graphopt: CommandLine, two: Path) -> None:
    assert graphopt("channels", two, "--dim", "rows=3").code == 2
