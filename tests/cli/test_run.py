"""``graphopt run`` and ``replay``: what is written, what is said, and what never happens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from tests.cli.conftest import CommandLine

CLEAN_UP = "canonicalize,fold-constants,eliminate-dead,deduplicate"
REPORT_KEYS = [
    "schema", "tool", "versions", "command", "status", "exit_code", "input", "output", "pipeline", "target",
    "providers", "seed", "steps", "validation", "warnings", "error",
]  # fmt: skip
STEP_KEYS = {
    "index", "name", "options", "status", "changed", "counts", "skipped", "times_s", "fingerprint_before",
    "fingerprint_after", "gates", "extra",
}  # fmt: skip


def _run(path: Path, feed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": feed})[0]
    return result


def test_a_model_gets_smaller_and_computes_the_same(
    graphopt: CommandLine, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    answer = graphopt("run", model, "-o", out, "--pipeline", CLEAN_UP, "--dim", "batch=2")
    assert answer.code == 0
    assert "written" in answer.out
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv", "Relu"]
    feed = np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(_run(out, feed), _run(model, feed))


def test_the_report_has_every_key_of_the_interface(
    graphopt: CommandLine, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    document = graphopt("run", model, "-o", out, "--pipeline", CLEAN_UP, "--json").document
    assert [key for key in document if key != "extra"] == REPORT_KEYS
    assert (document["schema"], document["status"], document["exit_code"]) == (1, "ok", 0)
    assert document["pipeline"] == CLEAN_UP
    assert document["input"] == {
        "path": str(model),
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "bytes": model.stat().st_size,
        "nodes": 4,
        "parameters": 4 * 3 * 9,
        "macs": 4 * 3 * 9 * 64,
    }
    assert document["output"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert document["output"]["nodes"] == 2
    assert all(set(step) == STEP_KEYS for step in document["steps"])
    assert [step["status"] for step in document["steps"]] == ["committed"] + ["unchanged"] * 3
    assert document["steps"][0]["fingerprint_after"] == document["steps"][1]["fingerprint_before"]
    validation = document["validation"]
    assert set(validation) >= {"outputs", "latency", "placement"}
    assert validation["outputs"][0]["name"] == "y"
    plain = validation["levels"]["none"][0]  # the runtime's optimizer is off in both models
    assert (plain["sqnr_db"], plain["exact"]) == (None, True)
    assert set(validation["latency"]) == {"before_s", "after_s", "ratio", "noise_ratio"}
    assert document["error"] is None


def test_the_empty_pipeline_loads_and_saves(graphopt: CommandLine, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    document = graphopt("run", model, "-o", out, "--pipeline", "", "--json").document
    assert (document["status"], document["steps"], document["exit_code"]) == ("unchanged", [], 0)
    assert onnx.load(out) == onnx.load(model)


def test_data_are_used_and_checked(graphopt: CommandLine, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "good.npz", x=rng.standard_normal((6, 3, 8, 8)).astype(np.float32))
    np.savez(tmp_path / "bad.npz", x=rng.standard_normal((6, 3, 9, 8)).astype(np.float32))
    command = ("run", model, "-o", tmp_path / "out.onnx", "--pipeline", "canonicalize", "--json")
    good = graphopt(*command, "--data", tmp_path / "good.npz", "--samples", "5").document
    assert good["validation"]["feeds"] == 5
    assert good["warnings"] == []
    (tmp_path / "out.onnx").unlink()
    bad = graphopt(*command, "--data", tmp_path / "bad.npz")
    assert (bad.code, bad.document["error"]["type"]) == (3, "DataError")
    assert not (tmp_path / "out.onnx").exists()


def test_a_recipe_says_the_same_as_the_text(graphopt: CommandLine, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[pass]]\nname = "canonicalize"\n\n[[gate]]\nname = "size"\n[gate.options]\nmax_ratio = 2.0\n'
    )
    document = graphopt("run", model, "-o", tmp_path / "a.onnx", "--recipe", recipe, "--json").document
    assert [gate["passed"] for gate in document["steps"][0]["gates"]] == [True]
    assert graphopt("run", model, "-o", tmp_path / "b.onnx", "--pipeline", "canonicalize").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_result_that_computes_something_else_is_never_written(
    graphopt: CommandLine, model: Path, plugin: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"what was there before")
    answer = graphopt("run", model, "-o", out, "--pipeline", "wrong", "--local-plugins", plugin, "--json")
    assert (answer.code, answer.document["status"]) == (1, "gate_failed")
    assert answer.document["validation"]["outputs"][0]["passed"] is False
    assert answer.document["output"] is None
    assert out.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "misbehaving.py", "out.onnx", "out.onnx.reproducer", "small.onnx",
    ]  # fmt: skip


def test_a_failing_pass_leaves_a_reproducer_that_repeats_it(
    graphopt: CommandLine, model: Path, plugin: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    command = ("run", model, "-o", out, "--pipeline", "canonicalize,raises", "--local-plugins", plugin)
    answer = graphopt(*command, "--report", tmp_path / "report")
    assert answer.code == 4
    assert "out of luck" in answer.err
    assert "Traceback" not in answer.err
    assert not out.exists()
    folder = tmp_path / "report" / "reproducer"
    assert [node.op_type for node in onnx.load(folder / "model.onnx").graph.node] == ["Conv", "Relu"]
    assert (folder / "pipeline.txt").read_text().strip() == "raises"
    again = graphopt("replay", folder, "--json")
    assert again.code == 4
    assert "out of luck" in again.document["error"]["message"]
    assert "Traceback" in graphopt(*command, "--debug").err


@pytest.mark.parametrize(
    ("mode", "statuses", "written"),
    [
        ("raise", ["committed", "failed"], False),
        ("stop", ["committed", "failed"], True),
        ("rollback", ["committed", "rolled_back", "unchanged"], True),
    ],
)
def test_on_error(
    graphopt: CommandLine,
    model: Path,
    plugin: Path,
    tmp_path: Path,
    mode: str,
    statuses: list[str],
    *,
    written: bool,
) -> None:
    out = tmp_path / "out.onnx"
    answer = graphopt(
        "run", model, "-o", out, "--pipeline", "canonicalize,raises,deduplicate", "--local-plugins", plugin,
        "--on-error", mode, "--json",
    )  # fmt: skip
    assert answer.code == 4
    assert [step["status"] for step in answer.document["steps"]] == statuses
    assert out.exists() is written
    if written:
        assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv", "Relu"]


def test_a_native_crash_of_a_pass_is_an_error_where_it_is_isolated(
    graphopt: CommandLine, model: Path, plugin: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    answer = graphopt(
        "run", model, "-o", out, "--pipeline", "aborts", "--local-plugins", plugin, "--isolate", "--json"
    )
    assert answer.code == 4
    assert answer.document["steps"][0]["status"] == "failed"
    assert not out.exists()


def test_isolated_passes_give_the_same_bytes(graphopt: CommandLine, model: Path, tmp_path: Path) -> None:
    for name, extra in (("here", ()), ("isolated", ("--isolate",))):
        code = graphopt("run", model, "-o", tmp_path / f"{name}.onnx", "--pipeline", CLEAN_UP, *extra).code
        assert code == 0
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "isolated.onnx").read_bytes()


def test_an_interrupt_leaves_nothing(
    graphopt: CommandLine, model: Path, plugin: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    answer = graphopt(
        "run", model, "-o", tmp_path / "out.onnx", "--pipeline", "interrupts", "--local-plugins", plugin,
        "--json",
    )  # fmt: skip
    assert (answer.code, answer.document["exit_code"]) == (130, 130)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_above_the_runtime_is_transformed_but_cannot_be_validated(
    graphopt: CommandLine, model: Path, tmp_path: Path
) -> None:
    proto = onnx.load(model)
    proto.ir_version = onnx.IR_VERSION + 50
    newer, out = tmp_path / "newer.onnx", tmp_path / "out.onnx"
    newer.write_bytes(proto.SerializeToString())
    document = graphopt("run", newer, "-o", out, "--pipeline", CLEAN_UP, "--json").document
    assert (document["exit_code"], document["validation"]) == (0, None)
    assert any("not validated" in warning for warning in document["warnings"])
    assert onnx.load(out).ir_version == proto.ir_version
    answer = graphopt("validate", newer, out, "--json")
    assert (answer.code, answer.document["error"]["type"]) == (5, "ProviderError")
    assert str(proto.ir_version) in answer.document["error"]["message"]


def test_a_model_with_operators_that_nobody_knows_stays_opaque(graphopt: CommandLine, tmp_path: Path) -> None:
    info = [helper.make_tensor_value_info(name, 1, [2]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Magic", ["i"], ["y"], domain="acme", power=3),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 2)]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", info[:1], info[1:]), ir_version=8, opset_imports=opsets
    )
    path, out = tmp_path / "magic.onnx", tmp_path / "out.onnx"
    onnx.save(proto, path)
    document = graphopt("run", path, "-o", out, "--pipeline", CLEAN_UP, "--json").document
    assert document["exit_code"] == 0
    assert document["validation"] is None
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Magic"]
