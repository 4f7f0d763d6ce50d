"""--report leaves what a pass has chosen as a plan, which repeats the run, edited or not."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from tests.passes.pruning.test_recovery import images, residual

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Answer, CommandLine

OBS = "criterion=obs,recover=least-squares,round_to=1"
PRUNE, LOWRANK = "plan-1-prune-channels.toml", "plan-1-factorize-lowrank.toml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(residual(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.concatenate([feed["x"] for feed in images(12)]))
    return tmp_path


def run(graphopt: CommandLine, folder: Path, name: str, step: str) -> Answer:
    return graphopt(
        "run", folder / "model.onnx", "-o", folder / f"{name}.onnx", "--data", folder / "data.npz",
        "--pipeline", step, "--report", folder / name,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "again", "plan"),
    [
        (f"prune-channels{{macs_ratio=0.6,{OBS}}}", f"prune-channels{{plan=PLAN,{OBS}}}", PRUNE),
        (
            "prune-channels{macs_ratio=0.6,recover=bias,criterion=l1}",
            "prune-channels{plan=PLAN,recover=bias}",
            PRUNE,
        ),
        (
            "factorize-lowrank{macs_ratio=0.7,min_gain=1.0,round_to=1}",
            "factorize-lowrank{plan=PLAN,round_to=1}",
            LOWRANK,
        ),
        (
            "factorize-lowrank{rank=3,round_to=1,recover=none}",
            "factorize-lowrank{plan=PLAN,recover=none}",
            LOWRANK,
        ),
    ],
)
def test_the_plan_repeats_the_run_to_the_same_bytes(
    graphopt: CommandLine, folder: Path, step: str, again: str, plan: str
) -> None:
    first = run(graphopt, folder, "first", step)
    assert first.code == 0, first.err
    second = run(graphopt, folder, "second", again.replace("PLAN", str(folder / "first" / plan)))
    assert second.code == 0, second.err
    assert (folder / "first.onnx").read_bytes() == (folder / "second.onnx").read_bytes()
    assert (folder / "first" / plan).read_bytes() == (folder / "second" / plan).read_bytes()
    assert f"{{plan={plan}}}` repeats the choice" in (folder / "first" / "report.md").read_text()


def test_an_edited_plan_does_what_it_says(graphopt: CommandLine, folder: Path) -> None:
    assert run(graphopt, folder, "first", f"prune-channels{{macs_ratio=0.6,{OBS}}}").code == 0
    path = folder / "first" / PRUNE
    items = tomllib.loads(path.read_text())["item"]
    (cut,) = (each for each in items if each["family"] == "wa1[0]")
    head, tail = path.read_text().split('family = "wa1[0]"')
    edited = tail.replace(f"keep_units = {cut['keep_units']}", "keep = 3", 1)
    path.write_text(f'{head}family = "wa1[0]"{edited}')
    expected = {each["family"]: len(each.get("keep_units", range(each["units"]))) for each in items}
    expected["wa1[0]"] = 3
    assert run(graphopt, folder, "second", f"prune-channels{{plan={path},{OBS}}}").code == 0
    shapes = {each.name: list(each.dims) for each in onnx.load(folder / "second.onnx").graph.initializer}
    assert {f"{name}[0]": shapes[name][0] for name in ("wa0", "wa1", "wa2")} == {
        name: expected[name] for name in ("wa0[0]", "wa1[0]", "wa2[0]")
    }


def test_the_plan_of_several_rounds_names_units_of_the_first_model(
    graphopt: CommandLine, folder: Path
) -> None:
    step = "prune-channels{macs_ratio=0.5,round_to=1,criterion=l1,max_rounds=3}"
    assert run(graphopt, folder, "first", step).code == 0
    assert run(graphopt, folder, "second", f"prune-channels{{plan={folder / 'first' / PRUNE}}}").code == 0
    one, two = (
        {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(folder / name).graph.initializer}
        for name in ("first.onnx", "second.onnx")
    )
    assert one.keys() == two.keys()
    for name, content in one.items():
        np.testing.assert_array_equal(content, two[name])


def test_nothing_chosen_leaves_no_plan(graphopt: CommandLine, folder: Path) -> None:
    assert run(graphopt, folder, "first", "canonicalize,prune-channels{macs_ratio=1.0}").code == 0
    assert {path.name for path in (folder / "first").iterdir()} == {"report.json", "report.md"}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("ranks = [2]", 'expected node = "NAME"'),
        ('node = "conv_pp0"\nranks = [2]', "Did you mean 'conv_p0'"),
        ('node = "conv_p0"\nranks = [2]\nrank = 2', "no key 'rank'"),
        ('node = "conv_p0"\nranks = [2]\n[[item]]\nnode = "conv_p0"\nranks = [3]', "listed twice"),
        ('node = "conv_p0"\nform = "thick"\nranks = [2]', "thin, spatial, tucker, got 'thick'"),
        ('node = "conv_p0"\nranks = [13]', "ranks = [1 to 12] for the form 'thin', got [13]"),
        ('node = "conv_p0"\nform = "tucker"\nranks = [2]', "ranks = [1 to 8, 1 to 12]"),
        ('node = "conv_p0"\nranks = [true]', "got [True]"),
        ('node = "conv_p0"', "got None"),
    ],
)
def test_a_plan_of_ranks_that_cannot_be_followed_names_the_item(
    graphopt: CommandLine, folder: Path, item: str, words: str
) -> None:
    path = folder / "plan.toml"
    path.write_text(f'schema = 1\npass = "factorize-lowrank"\n[[item]]\n{item}\n')
    answer = run(graphopt, folder, "out", f"factorize-lowrank{{plan={path}}}")
    assert answer.code == 2, answer.err
    assert words in answer.err
    assert "plan.toml, item" in answer.err
