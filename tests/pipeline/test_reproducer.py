"""Every failure leaves a folder that replays it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report
from graphopt.errors import DataError, GateFailed, GraphoptError, PassFailed, PathError, VerifyError
from graphopt.ir.emit import ExternalData, emit, save
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import load
from graphopt.pipeline.manager import Manager, ManagerResult, OnError
from graphopt.pipeline.plan import make_gates, make_plan
from graphopt.pipeline.plugins import Registry, load_plugins
from graphopt.pipeline.reproducer import read_reproducer, write_reproducer
from graphopt.pipeline.text import Step, parse
from graphopt.targets import load_target
from tests.pipeline.kit import LOCAL_PLUGIN, WEIGHT, plan_of, registry, tiny

if TYPE_CHECKING:
    from graphopt.ir import Model

TARGET = load_target("ort-cpu")


def fail(folder: Path, text: str, known: Registry | None = None, **options: Any) -> ManagerResult:
    known = known or registry()
    manager = Manager(known, target=TARGET, dims={"batch": 2}, seed=5)
    result = manager.run(tiny(), plan_of(text, known), reproducer=folder, **options)
    assert result.error is not None
    return result


def replay(folder: Path, known: Registry | None = None) -> ManagerResult:
    """Do what `graphopt replay` does."""
    known = known or registry()
    found = read_reproducer(folder)
    model = load(found.model)
    manager = Manager(known, target=load_target(found.target), dims=found.dims, seed=found.seed)
    plan = make_plan(found.steps, known, model.opset)
    return manager.run(model, plan, gates=make_gates(found.gates, known))


def reload_original() -> Model:
    return tiny()


@pytest.mark.parametrize("on_error", ["raise", "stop", "rollback"])
@pytest.mark.parametrize("keep_input", [True, False])
@pytest.mark.parametrize("failing", ["crash", "break-ssa", "says-unchanged", "crash{how=option}"])
def test_the_failure_comes_again(tmp_path: Path, on_error: OnError, keep_input: bool, failing: str) -> None:
    folder = tmp_path / "out.reproducer"
    result = fail(
        folder,
        f"drop-dead,rename{{to=z}},{failing}",
        on_error=on_error,
        keep_input=keep_input,
        reload=reload_original,
    )
    assert result.reproducer == folder
    assert len(result.warnings) == (on_error == "rollback")
    found = read_reproducer(folder)
    assert found.steps == parse(failing)
    assert (found.target, found.dims, found.seed, found.on_error) == ("ort-cpu", {"batch": 2}, 5, on_error)
    before = load(found.model)
    assert before.graph.name == "z"
    assert fingerprint(before) == result.steps[2].fingerprint_before
    onnx.checker.check_model(str(found.model))
    again = replay(folder)
    assert type(again.error) is type(result.error)
    assert again.error is not None
    assert result.error is not None
    assert again.error.message == result.error.message
    assert result.error.message in found.error


def test_a_hint_of_the_error_and_the_way_to_repeat_it_are_both_told(tmp_path: Path) -> None:
    error = fail(tmp_path / "r", "says-unchanged").error
    assert error is not None
    assert "Report.changed must tell" in error.hint
    assert error.hint.endswith(f"`graphopt replay {tmp_path / 'r'}` repeats it.")


def test_what_the_folder_holds(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "repro"
    error = fail(folder, "drop-dead,crash").error
    names = "README.txt error.txt model.onnx pipeline.txt recipe.toml settings.json versions.json"
    assert sorted(path.name for path in folder.iterdir()) == names.split()
    assert (folder / "pipeline.txt").read_text() == "crash\n"
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["onnx"] == onnx.__version__
    text = (folder / "error.txt").read_text()
    assert "PassFailed" in text
    assert "Traceback" in text
    assert "ValueError" in text
    assert "graphopt replay repro" in (folder / "README.txt").read_text()
    assert error is not None
    assert f"graphopt replay {folder}" in error.hint
    assert [path.name for path in folder.parent.iterdir()] == ["repro"]  # no draft is left


def test_gates_are_replayed(tmp_path: Path) -> None:
    gates = make_gates([Step("node-limit", {"at_least": "4"})], registry())
    result = fail(tmp_path / "r", "rename,drop-dead", gates=gates)
    assert isinstance(result.error, GateFailed)
    found = read_reproducer(tmp_path / "r")
    assert found.gates == (Step("node-limit"),)  # four is the default, which needs no saying
    assert isinstance(replay(tmp_path / "r").error, GateFailed)


def test_only_the_first_failure_is_kept(tmp_path: Path) -> None:
    fail(tmp_path / "r", "crash,drop-dead,says-changed", on_error="rollback")
    assert read_reproducer(tmp_path / "r").steps == (Step("crash"),)


def test_without_any_copy_there_is_a_warning_and_the_error_stays(tmp_path: Path) -> None:
    result = fail(tmp_path / "r", "drop-dead,crash", keep_input=False)
    assert result.reproducer is None
    assert isinstance(result.error, PassFailed)
    assert any("no reproducer could be written" in text for text in result.warnings)
    assert list(tmp_path.iterdir()) == []


def test_where_the_earlier_steps_cannot_be_repeated_all_of_them_are_written(tmp_path: Path) -> None:
    class OnlyOnce(Pass):
        info = PassInfo(name="only-once", summary="Work once in a process.")
        runs = 0

        def run(self, model: Model, options: PassOptions, context: Context) -> Report:
            OnlyOnce.runs += 1
            if OnlyOnce.runs > 1:
                raise RuntimeError("a second time")
            model.graph.name = "once"
            return Report(changed=True)

    result = fail(tmp_path / "r", "drop-dead,only-once,crash", registry(extra=OnlyOnce))
    assert result.reproducer == tmp_path / "r"
    assert any("a replay failed" in text for text in result.warnings)
    found = read_reproducer(tmp_path / "r")
    assert found.steps == parse("drop-dead,only-once,crash")
    assert emit(load(found.model)) == emit(tiny())


def test_an_unwritable_place_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = fail(tmp_path / "file" / "r", "break-ssa")
    assert isinstance(result.error, VerifyError)
    assert result.reproducer is None
    assert any("no reproducer could be written" in text for text in result.warnings)


def test_an_error_that_names_a_path_in_another_encoding(tmp_path: Path) -> None:
    error = PassFailed("it failed", where="m\udcff.onnx")
    settings = {"target": "ort-cpu", "dims": {}, "seed": 0, "on_error": "raise", "isolate": False}
    folder = write_reproducer(tmp_path / "r", model=tiny(), steps=(), error=error, settings=settings)
    assert "m\\udcff.onnx" in read_reproducer(folder).error


def test_a_former_reproducer_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    fail(tmp_path / "r", "crash")
    (tmp_path / "r" / "stale").write_text("")
    assert fail(tmp_path / "r", "says-changed").reproducer == tmp_path / "r"
    assert not (tmp_path / "r" / "stale").exists()
    assert read_reproducer(tmp_path / "r").steps == (Step("says-changed"),)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert fail(tmp_path / "mine", "crash").reproducer == tmp_path / "mine-2"
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"
    assert fail(tmp_path / "mine", "crash").reproducer == tmp_path / "mine-2"

    (tmp_path / "link").symlink_to(tmp_path / "r")
    assert fail(tmp_path / "link", "crash").reproducer == tmp_path / "link-2"
    assert read_reproducer(tmp_path / "r").steps == (Step("says-changed"),)


class RunScript(Pass):
    info = PassInfo(name="run-script", summary="Fail with the text of a file.")

    class Options(PassOptions):
        path: Path = Field(description="a file")

    def run(self, model: Model, options: Options, context: Context) -> Report:
        raise ValueError(options.path.read_text())


def test_files_that_options_name_are_taken_along(tmp_path: Path) -> None:
    script = tmp_path / "my script.txt"
    script.write_text("the text")
    known = registry(extra=RunScript)
    fail(tmp_path / "r", f'run-script{{path="{script}"}}', known)
    script.unlink()
    moved = shutil.move(tmp_path / "r", tmp_path / "elsewhere")
    again = replay(Path(moved), known).error
    assert again is not None
    assert "ValueError: the text" in again.message
    assert str(tmp_path) not in (Path(moved) / "recipe.toml").read_text()


def test_a_local_plugin_is_taken_along(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(LOCAL_PLUGIN)
    fail(tmp_path / "r", "drop-dead,crash", load_plugins(plugin))
    plugin.unlink()
    found = read_reproducer(tmp_path / "r")
    assert found.local_plugins == tmp_path / "r" / "files" / "mine.py"
    assert isinstance(replay(tmp_path / "r", load_plugins(found.local_plugins)).error, PassFailed)


def spoil(folder: Path, how: str) -> None:
    match how:
        case "no settings":
            (folder / "settings.json").unlink()
        case "settings":
            (folder / "settings.json").write_text("{")
        case "schema":
            (folder / "settings.json").write_text('{"schema": 99}')
        case "seed":
            settings = json.loads((folder / "settings.json").read_text())
            (folder / "settings.json").write_text(json.dumps({**settings, "seed": "five"}))
        case "dims":
            settings = json.loads((folder / "settings.json").read_text())
            (folder / "settings.json").write_text(json.dumps({**settings, "dims": {"batch": "x"}}))
        case "files":
            settings = json.loads((folder / "settings.json").read_text())
            (folder / "settings.json").write_text(json.dumps({**settings, "files": [["pass", "0"]]}))
        case "model":
            (folder / "model.onnx").unlink()
        case "recipe":
            (folder / "recipe.toml").write_text("[[pass]\n")
        case "no recipe":
            (folder / "recipe.toml").unlink()
        case "gone":
            shutil.rmtree(folder)
        case "file":
            shutil.rmtree(folder)
            folder.write_text("")


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("no settings", DataError, "not a reproducer"),
        ("settings", DataError, "cannot be read"),
        ("schema", DataError, "expected schema 1"),
        ("seed", DataError, "'seed' is 'five', expected int"),
        ("dims", DataError, "whole numbers by name"),
        ("files", DataError, "'files' holds"),
        ("model", DataError, r"no model\.onnx"),
        ("recipe", DataError, "recipe of the reproducer is broken"),
        ("no recipe", DataError, "recipe of the reproducer is broken"),
        ("gone", PathError, "no such folder"),
        ("file", PathError, "got a file"),
    ],
)
def test_a_spoilt_folder_is_refused(tmp_path: Path, how: str, error: type[GraphoptError], words: str) -> None:
    fail(tmp_path / "r", "crash")
    spoil(tmp_path / "r", how)
    with pytest.raises(error, match=words):
        read_reproducer(tmp_path / "r")


def test_external_data_is_taken_along(tmp_path: Path) -> None:
    save(tiny(), tmp_path / "m.onnx", external=ExternalData("one-file", 1024))
    known = registry()
    manager = Manager(known, target=TARGET)
    manager.run(load(tmp_path / "m.onnx"), plan_of("crash", known), reproducer=tmp_path / "r")
    for path in tmp_path.glob("m.onnx*"):
        path.unlink()
    assert sorted(path.name for path in (tmp_path / "r").glob("model*")) == ["model.onnx", "model.onnx.data"]
    proto = onnx.load(tmp_path / "r" / "model.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(proto.graph.initializer[0]), WEIGHT)
    assert isinstance(replay(tmp_path / "r").error, PassFailed)
