"""Steps in a child process: the same results, and a native crash is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from graphopt.errors import DataError, OptionError, PassFailed, WorkerError
from graphopt.ir.emit import ExternalData, emit, save
from graphopt.ir.lower import load
from graphopt.pipeline.isolate import Isolation
from graphopt.pipeline.manager import Manager, ManagerResult
from graphopt.pipeline.plugins import load_plugins
from graphopt.targets import load_target
from tests.pipeline.kit import LOCAL_PLUGIN, op_types, plan_of, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.ir import Model


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(LOCAL_PLUGIN)
    return path


def run(
    text: str, plugin: Path, *, model: Model | None = None, isolated: bool = True, **options: Any
) -> ManagerResult:
    known = load_plugins(plugin)
    assert known.warnings == ()
    scratch = plugin.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    isolation = Isolation(scratch, timeout_s=60) if isolated else None
    manager = Manager(known, target=load_target("ort-cpu"), isolation=isolation, dims={"batch": 2})
    result = manager.run(tiny() if model is None else model, plan_of(text, known), **options)
    assert list(scratch.iterdir()) == []
    return result


def test_same_as_in_this_process(plugin: Path) -> None:
    text = "count,drop-dead,rename{to=z,also=[1]},rename{to=z}"
    inside, outside = (run(text, plugin, isolated=isolated) for isolated in (False, True))
    assert inside.error is outside.error is None
    assert inside.model is not None
    assert outside.model is not None
    assert emit(outside.model) == emit(inside.model)
    for ours, theirs in zip(inside.steps, outside.steps, strict=True):
        hide = {"times_s"}
        assert theirs.model_dump(exclude=hide) == ours.model_dump(exclude=hide)


def test_untouched_weights_come_back_by_identity(plugin: Path) -> None:
    model = tiny()
    weight = model.graph.initializers["w"].const_value
    result = run("drop-dead", plugin, model=model, keep_input=False)
    assert result.model is model
    assert result.changed
    assert model.graph.initializers["w"].const_value is weight


def test_a_native_crash_is_an_error(plugin: Path) -> None:
    model = tiny()
    result = run("drop-dead,crash{how=native},rename", plugin, model=model, on_error="rollback")
    assert [record.status for record in result.steps] == ["committed", "rolled_back", "committed"]
    assert isinstance(result.error, PassFailed)
    assert isinstance(result.error.__cause__, WorkerError)
    assert result.error.where == "step 2 (crash)"
    assert "SIGABRT" in str(result.error)
    assert "running crash" in str(result.error)
    assert str(result.error).count("step 2") == 1


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("crash", PassFailed, "raised ValueError: no such thing"),
        ("crash{how=option}", OptionError, "node 'relu': option 'how' does not fit"),
        ("crash{how=data}", DataError, "does not fit"),
        ("says-unchanged", PassFailed, "its fingerprint differs"),
        ("says-changed", PassFailed, "its fingerprint is the same"),
    ],
)
def test_errors_are_the_same(plugin: Path, text: str, error: type[Exception], words: str) -> None:
    result = run(text, plugin)
    assert type(result.error) is error
    assert words in str(result.error)
    assert str(result.error).count("step 1") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silero_vad.onnx", "stories260k_llama_ts.onnx", "gtcrn_simple.onnx"])
def test_real_models_come_out_the_same(assets: Path, tmp_path: Path, name: str) -> None:
    known = load_plugins()
    text = "canonicalize,fold-constants,eliminate-dead,deduplicate"
    written = []
    for isolation in (None, Isolation(tmp_path)):
        model = load(assets / "models" / name)
        manager = Manager(known, target=load_target("ort-cpu"), isolation=isolation)
        result = manager.run(model, plan_of(text, known, model.opset), keep_input=False)
        assert result.error is None
        assert result.model is not None
        written.append(bytes(emit(result.model).SerializeToString(deterministic=True)))
    assert written[0] == written[1]


def test_external_data_stays_where_it_is(plugin: Path, tmp_path: Path) -> None:
    save(tiny(), tmp_path / "m.onnx", external=ExternalData("one-file", 1024))
    model = load(tmp_path / "m.onnx")
    weight = model.graph.initializers["w"].const_value
    result = run("drop-dead,rename", plugin, model=model, keep_input=False)
    assert result.error is None
    assert model.graph.initializers["w"].const_value is weight
    assert op_types(model) == ["MatMul", "Relu", "Identity"]
