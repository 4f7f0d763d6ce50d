"""calibrate, sensitivity, and run with what they write."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from PIL import Image

from graphopt.calibrate import Statistics
from tests.passes.test_insert_qdq import residual

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import CommandLine

STEP = "insert-qdq{measure=off}"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(residual().SerializeToString())
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "feeds.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32))
    return path


def test_statistics_serve_a_run_and_give_the_same_bytes(
    graphopt: CommandLine, net: Path, data: Path, tmp_path: Path
) -> None:
    stats, one, two = tmp_path / "stats", tmp_path / "1.onnx", tmp_path / "2.onnx"
    answer = graphopt("calibrate", net, "--data", data, "-o", stats, "--json")
    assert answer.code == 0
    assert answer.document["feeds"] == 12
    assert graphopt("run", net, "-o", one, "--data", data, "--pipeline", STEP).code == 0
    assert graphopt("run", net, "-o", two, "--statistics", stats, "--pipeline", STEP).code == 0
    assert one.read_bytes() == two.read_bytes()
    isolated = tmp_path / "3.onnx"
    answer = graphopt("run", net, "-o", isolated, "--data", data, "--pipeline", STEP, "--isolate")
    assert answer.code == 0
    assert isolated.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("criterion", ["obs", "energy", "entropy"])
@pytest.mark.parametrize("planned", [False, True])
def test_a_criterion_is_served_by_statistics_as_by_data(
    graphopt: CommandLine, net: Path, data: Path, tmp_path: Path, criterion: str, planned: bool
) -> None:
    goal = "macs_ratio=0.7"
    if planned:
        assert graphopt("channels", net, "-o", tmp_path / "plan.toml").code == 0
        plan = (tmp_path / "plan.toml").read_text()
        items = tomllib.loads(plan)["item"]
        name, units = next((each["family"], each["units"]) for each in items if each["units"] > 4)
        head, tail = plan.split(f'family = "{name}"')
        edited = tail.replace(f"keep = {units}", "keep = 3", 1)
        (tmp_path / "plan.toml").write_text(f'{head}family = "{name}"{edited}')
        goal = f"plan={tmp_path / 'plan.toml'}"
    stats, one, two = tmp_path / "stats", tmp_path / "1.onnx", tmp_path / "2.onnx"
    step = f"canonicalize,prune-channels{{{goal},round_to=1,criterion={criterion}}}"
    answer = graphopt("calibrate", net, "--data", data, "-o", stats, "--pipeline", step, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["grams" if criterion == "obs" else "channels"] > 0
    assert graphopt("run", net, "-o", one, "--data", data, "--pipeline", step).code == 0
    answer = graphopt("run", net, "-o", two, "--statistics", stats, "--pipeline", step)
    assert answer.code == 0, answer.err
    assert one.read_bytes() == two.read_bytes()
    assert onnx.load(one).graph != onnx.load(net).graph


def test_shards_merge_on_the_command_line(
    graphopt: CommandLine, net: Path, data: Path, tmp_path: Path
) -> None:
    whole, first, both = (tmp_path / name for name in ("whole", "first", "both"))
    other = tmp_path / "rest.npz"
    array = np.load(data)["x"]
    np.savez(other, x=array[5:])
    assert graphopt("calibrate", net, "--data", data, "-o", whole, "--pipeline", STEP).code == 0
    assert (
        graphopt("calibrate", net, "--data", data, "--samples", "5", "-o", first, "--pipeline", STEP).code
        == 0
    )
    answer = graphopt("calibrate", net, "--data", other, "-o", both, "--merge", first, "--pipeline", STEP)
    assert answer.code == 0
    one, two = Statistics.load(whole), Statistics.load(both)
    for name, sketch in one.ranges.items():
        np.testing.assert_array_equal(sketch.counts, two.range(name).counts)


def test_statistics_of_another_model_are_refused(
    graphopt: CommandLine, net: Path, data: Path, tmp_path: Path
) -> None:
    stats = tmp_path / "stats"
    graphopt("calibrate", net, "--data", data, "-o", stats)
    other = onnx.load(net)
    array = onnx.numpy_helper.to_array(other.graph.initializer[0]) * 2
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, other.graph.initializer[0].name))
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(other.SerializeToString())
    answer = graphopt("run", changed, "-o", tmp_path / "out.onnx", "--statistics", stats, "--pipeline", STEP)
    assert answer.code == 3
    assert "content hash differs" in answer.err


def test_without_data_the_plan_says_what_to_give(graphopt: CommandLine, net: Path, tmp_path: Path) -> None:
    answer = graphopt("run", net, "-o", tmp_path / "out.onnx", "--pipeline", STEP)
    assert answer.code == 2
    assert "--data, or statistics with --statistics" in answer.err
    assert "step 1 (insert-qdq)" in answer.err


def test_sensitivity_writes_a_plan_that_insert_qdq_follows(
    graphopt: CommandLine, net: Path, data: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    answer = graphopt("sensitivity", net, "--data", data, "-o", plan, "--no-time", "--json")
    assert answer.code == 0
    errors = [row["sqnr_db"] for row in answer.document["nodes"]]
    assert errors == sorted(errors)
    assert {row["node"] for row in answer.document["nodes"]} == {"conv1", "conv2", "gemm"}
    assert [item["node"] for item in tomllib.loads(plan.read_text())["item"]] == [
        row["node"] for row in answer.document["nodes"]
    ]
    plan.write_text(plan.read_text().replace("quantise = true", "quantise = false", 1))
    out = tmp_path / "out.onnx"
    step = f'insert-qdq{{plan="{plan}",measure=off}}'
    assert graphopt("run", net, "-o", out, "--data", data, "--pipeline", step).code == 0
    kept = answer.document["nodes"][0]["node"]
    (node,) = [each for each in onnx.load(out).graph.node if each.name == kept]
    stored = {each.name for each in onnx.load(out).graph.initializer}
    assert node.input[1] in stored  # its weight is still the float one


def test_a_folder_of_images_serves_every_command(graphopt: CommandLine, net: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    folder, recipe, array = tmp_path / "images", tmp_path / "recipe.toml", tmp_path / "array.npz"
    folder.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    np.savez(array, x=pixels.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(0.5))
    one, two = tmp_path / "one", tmp_path / "two"
    assert "[preprocess]" in graphopt("calibrate", net, "--data", folder, "-o", one).err
    recipe.write_text("[preprocess]\nscale = 0.5\n")
    images = ("--data", folder, "--recipe", recipe)
    assert graphopt("calibrate", net, *images, "-o", one).code == 0
    assert graphopt("calibrate", net, "--data", array, "-o", two).code == 0
    for name, sketch in Statistics.load(one).ranges.items():
        np.testing.assert_array_equal(sketch.counts, Statistics.load(two).range(name).counts)
    assert graphopt("validate", net, net, *images).code == 0
    plan = tmp_path / "plan.toml"
    assert graphopt("sensitivity", net, *images, "-o", plan, "--no-time", "--samples", "1").code == 0


def test_a_recipe_says_what_to_collect(graphopt: CommandLine, net: Path, data: Path, tmp_path: Path) -> None:
    recipe, one, two = tmp_path / "recipe.toml", tmp_path / "one", tmp_path / "two"
    recipe.write_text('[[pass]]\nname = "insert-qdq"\noptions = { measure = "off" }\n')
    assert graphopt("calibrate", net, "--data", data, "--recipe", recipe, "-o", one).code == 0
    assert graphopt("calibrate", net, "--data", data, "--pipeline", STEP, "-o", two).code == 0
    assert Statistics.load(one).ranges.keys() == Statistics.load(two).ranges.keys()
    both = ("--recipe", recipe, "--pipeline", STEP)
    assert "got both" in graphopt("calibrate", net, "--data", data, *both, "-o", one).err
