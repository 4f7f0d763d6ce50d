"""Acceptance: scenarios A1 to A3 and bad input, through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.cli.app import invoke
from graphopt.ir import load
from graphopt.ir.cost import measure_cost
from tests.cli.conftest import Answer, CommandLine
from tests.passes.harness import run_feeds, session_for
from tests.passes.pruning import scenarios


@pytest.fixture
def graphopt(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def prune(graphopt: CommandLine, model: onnx.ModelProto, folder: Path, options: str, *more: str) -> Answer:
    path = folder / "model.onnx"
    onnx.save(model, path)
    out = folder / "out.onnx"
    return graphopt("run", path, "-o", out, "--pipeline", f"prune-channels{{{options}}}", "--json", *more)


def oracle_of(answer: Answer) -> dict[str, Any]:
    (step,) = answer.document["steps"]
    found = step["extra"]["oracle"]
    assert isinstance(found, dict)
    return found


def feeds_for(path: Path, **given: Any) -> dict[str, Any]:
    session = session_for(path)
    rng = np.random.default_rng(7)
    shapes = {
        each.name: [dim if isinstance(dim, int) else 2 for dim in each.shape] for each in session.get_inputs()
    }
    return {
        name: given.get(name, rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()
    }


def test_a1_a_weight_of_two_convolutions(graphopt: CommandLine, tmp_path: Path) -> None:
    answer = prune(graphopt, scenarios.shared_weight(), tmp_path, "macs_ratio=0.5")
    assert answer.code == 0, answer.err
    assert all(each["relative_error"] <= 1e-5 for each in oracle_of(answer)["exact"])
    out = tmp_path / "out.onnx"
    run_feeds(session_for(out), feeds_for(out))
    assert measure_cost(load(out)).known_macs <= 0.5 * measure_cost(load(tmp_path / "model.onnx")).known_macs


def test_a2_a_value_that_both_branches_capture(graphopt: CommandLine, tmp_path: Path) -> None:
    answer = prune(graphopt, scenarios.captured_by_branches(), tmp_path, "macs_ratio=0.6")
    assert answer.code == 0, answer.err
    assert all(each["relative_error"] <= 1e-5 for each in oracle_of(answer)["exact"])
    out = tmp_path / "out.onnx"
    outputs = [
        run_feeds(session_for(out), feeds_for(out, flag=np.array(flag)))["y"] for flag in (True, False)
    ]
    assert not np.allclose(outputs[0], outputs[1])


# Each run of the command line validates in a child process, which takes half a second.
HEADS = [
    head if head == "reshape zero" else pytest.param(head, marks=pytest.mark.slow) for head in scenarios.HEADS
]


@pytest.mark.parametrize("head", HEADS)
def test_a3_channels_behind_what_hides_them(graphopt: CommandLine, tmp_path: Path, head: str) -> None:
    answer = prune(graphopt, scenarios.flattened(head), tmp_path, "params_ratio=0.51")
    assert answer.code == 0, answer.err
    assert all(each["relative_error"] <= 1e-5 for each in oracle_of(answer)["exact"])
    before, after = load(tmp_path / "model.onnx"), load(tmp_path / "out.onnx")
    assert measure_cost(after).parameters <= 0.51 * measure_cost(before).parameters


@pytest.mark.parametrize("head", HEADS)
def test_a3_planted_dead_channels_are_what_goes(graphopt: CommandLine, tmp_path: Path, head: str) -> None:
    answer = prune(graphopt, scenarios.flattened(head, dead=True), tmp_path, "params_ratio=0.51")
    assert answer.code == 0, answer.err
    one, two = tmp_path / "model.onnx", tmp_path / "out.onnx"
    feeds = feeds_for(one)
    expected, got = (run_feeds(session_for(path), feeds)["y"] for path in (one, two))
    assert np.abs(expected - got).max() <= 1e-5 * np.abs(expected).max()
    assert all(each["weights_shuffled"] for each in oracle_of(answer)["exact"])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("macs_ratio=0", 2, "out of range"),
        ("macs_ratio=1.5", 2, "out of range"),
        ("macs_ratio=-1", 2, "out of range"),
        ("params_ratio=2", 2, "out of range"),
        ("", 2, "exactly one of macs_ratio, params_ratio, time_ratio and plan"),
        ("macs_ratio=0.5,params_ratio=0.5", 2, "exactly one of"),
        ("macs_ratio=0.5,criterion=l3", 2, "no criterion 'l3'"),
        ("macs_ratio=0.5,round_to=0", 2, "round_to"),
        ("macs_ratio=0.5,units=[rows]", 2, "units"),
        ("macs_ratio=0.0001", 1, "cannot be reached"),
        ("macs_ratio=0.5,round_to=64", 1, "cannot be reached"),
        ("macs_ratio=0.5,protect=[w1]", 1, "no family of channels can be pruned"),
        ("macs_ratio=0.5,units=[heads]", 1, "no family of channels can be pruned"),
    ],
)
def test_bad_options(graphopt: CommandLine, tmp_path: Path, options: str, code: int, words: str) -> None:
    answer = prune(graphopt, scenarios.captured_free(), tmp_path, options)
    assert answer.code == code, answer.err
    assert words in answer.document["error"]["message"], answer.document["error"]
    assert not (tmp_path / "out.onnx").exists()


def test_nothing_to_prune_names_the_locks(graphopt: CommandLine, tmp_path: Path) -> None:
    answer = prune(graphopt, scenarios.locked(), tmp_path, "macs_ratio=0.5")
    assert answer.code == 1
    message = answer.document["error"]["message"]
    assert "no family of channels can be pruned" in message
    assert "output 'y'" in message
    answer = prune(graphopt, scenarios.locked(), tmp_path, "macs_ratio=0.5,best_effort=true")
    assert answer.code == 0
    assert answer.document["status"] == "unchanged"


def test_an_unreachable_ratio_says_how_far_it_got(graphopt: CommandLine, tmp_path: Path) -> None:
    answer = prune(graphopt, scenarios.captured_free(), tmp_path, "macs_ratio=0.01")
    assert answer.code == 1
    assert "0.0625 remains" in answer.document["error"]["message"]
    answer = prune(graphopt, scenarios.captured_free(), tmp_path, "macs_ratio=0.01,best_effort=true")
    assert answer.code == 0
    assert answer.document["steps"][0]["extra"]["macs_ratio"] < 0.6


def test_weights_that_are_not_finite_are_named(graphopt: CommandLine, tmp_path: Path) -> None:
    model = scenarios.captured_free()
    content = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    content[3, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(content, "w1"))
    answer = prune(graphopt, model, tmp_path, "macs_ratio=0.5")
    assert answer.code == 3
    assert "'w1'" in answer.document["error"]["where"]


def test_a_criterion_that_needs_data_says_so(graphopt: CommandLine, tmp_path: Path) -> None:
    answer = prune(graphopt, scenarios.captured_free(), tmp_path, "macs_ratio=0.5,criterion=energy")
    assert answer.code == 3
    assert "--data" in f"{answer.document['error']}"


@pytest.mark.slow
def test_a_criterion_that_looks_at_data(graphopt: CommandLine, tmp_path: Path) -> None:
    model = scenarios.captured_free()
    options = "macs_ratio=0.5,criterion=energy,max_rounds=2,round_to=1"
    answer = prune(graphopt, model, tmp_path, options, "--data", "random:4")
    assert answer.code == 0, answer.err
    assert len(oracle_of(answer)["exact"]) == 2


@pytest.mark.slow
def test_weights_in_a_file_of_their_own_and_a_child_process(graphopt: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(
        scenarios.captured_free(),
        path,
        save_as_external_data=True,
        location="external.bin",
        size_threshold=0,
        all_tensors_to_one_file=True,
    )
    out = tmp_path / "out.onnx"
    answer = graphopt(
        "run", path, "-o", out, "--pipeline", "prune-channels{macs_ratio=0.5}", "--isolate", "--json"
    )
    assert answer.code == 0, answer.err
    assert answer.document["output"]["macs"] <= 0.5 * answer.document["input"]["macs"]


@pytest.mark.slow
def test_quantised_weights_go_with_their_scales(graphopt: CommandLine, tmp_path: Path) -> None:
    answer = prune(graphopt, scenarios.quantised(), tmp_path, "macs_ratio=0.6")
    assert answer.code == 0, answer.err
    initializers = load(tmp_path / "out.onnx").graph.initializers
    sizes = {name: tuple(initializers[name].shape.numpy()) for name in ("w0", "ws0", "wz0", "w1")}  # type: ignore[union-attr]  # they have shapes
    kept = sizes["w0"][0]
    assert kept < 32
    assert sizes["ws0"] == sizes["wz0"] == (kept,)
    assert sizes["w1"][1] == kept


def test_weights_that_a_caller_may_replace_stay_and_are_named(graphopt: CommandLine, tmp_path: Path) -> None:
    answer = prune(graphopt, scenarios.overridable(), tmp_path, "macs_ratio=0.5")
    assert answer.code == 1
    assert "w1" in answer.document["error"]["message"]


def test_a_failed_oracle_rolls_back_and_leaves_a_reproducer(
    graphopt: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.passes.pruning import oracle

    monkeypatch.setattr(oracle, "_relative", lambda *_: (0.5, "y", True))
    answer = prune(graphopt, scenarios.captured_free(), tmp_path, "macs_ratio=0.5")
    assert answer.code == 4
    assert "differs from the masked original" in answer.document["error"]["message"]
    assert not (tmp_path / "out.onnx").exists()
    reproducer = tmp_path / "out.onnx.reproducer"
    assert (reproducer / "model.onnx").exists()
    monkeypatch.undo()
    assert invoke(["replay", str(reproducer)]) == 0
