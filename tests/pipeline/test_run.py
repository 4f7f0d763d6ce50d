"""What a run makes of odd requests and of a result that cannot be executed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from graphopt.errors import GateFailed, OptionError, WorkerError
from graphopt.ir.emit import emit
from graphopt.pipeline import run as module
from graphopt.pipeline.request import RunRequest
from graphopt.pipeline.run import run
from tests.pipeline.kit import tiny

if TYPE_CHECKING:
    from pathlib import Path

CUT = """
from graphopt.api import Pass, PassInfo, Report
from graphopt.hookspecs import hookimpl
from graphopt.ir.tensors import from_array


class Cut(Pass):
    info = PassInfo(name="cut", summary="make weights that fit no input")

    def run(self, model, options, context):
        weight = model.graph.initializers["w"]
        weight.const_value = from_array(weight.const_value.numpy()[:3], "w")
        weight.shape = weight.const_value.shape
        return Report(changed=True)


@hookimpl
def graphopt_register_passes():
    return {"cut": Cut}
"""


def test_a_result_that_the_runtime_finds_invalid_fails_the_validation(tmp_path: Path) -> None:
    plugin = tmp_path / "cut.py"
    plugin.write_text(CUT, encoding="utf-8")
    with pytest.raises(GateFailed, match="the original runs, the result does not") as caught:
        run(tiny(), "cut", out=tmp_path / "o.onnx", local_plugins=plugin)
    assert caught.value.where == "validation on cpu"
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("lossy", [False, True])
def test_a_lossy_step_is_reported_but_held_to_no_limit(tmp_path: Path, lossy: bool) -> None:
    plugin = tmp_path / "bend.py"
    plugin.write_text(
        CUT.replace("numpy()[:3]", "numpy() * 3.0 - 1.0")
        .replace('"cut"', '"bend"')
        .replace("summary=", f"lossy={lossy}, summary="),
        encoding="utf-8",
    )
    if not lossy:
        with pytest.raises(GateFailed, match="differs from the original"):
            run(tiny(), "bend", out=tmp_path / "o.onnx", local_plugins=plugin)
        return
    record = run(tiny(), "bend", out=tmp_path / "o.onnx", local_plugins=plugin).report
    assert record.validation is not None
    assert any(output.sqnr_db is not None and output.sqnr_db < 30 for output in record.validation.outputs)
    assert any("bend changed on purpose" in warning for warning in record.warnings)


def test_a_crash_while_validating_is_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def crash(*_: object, **__: object) -> NoReturn:
        raise WorkerError("the child process crashed (signal SIGSEGV)", hint="Try again")

    monkeypatch.setattr(module, "compare_files", crash)
    request = RunRequest(
        model=tiny(),
        pipeline="canonicalize",
        out=tmp_path / "o.onnx",
        validate=True,
        reproducer=tmp_path / "repro",
    )
    error = module.execute(request).error
    assert isinstance(error, WorkerError)
    assert error.hint == f"Try again. `graphopt replay {tmp_path / 'repro'}` repeats it."
    assert [path.name for path in tmp_path.iterdir()] == ["repro"]


@pytest.mark.parametrize("pipeline", ["", "deduplicate", "canonicalize,eliminate-dead"])
def test_the_result_is_never_the_input_itself(pipeline: str) -> None:
    model = tiny()
    before = emit(model)
    result = run(model, pipeline)
    result.model.graph.doc_string = "mine"
    assert result.model is not model
    assert emit(model) == before


@pytest.mark.parametrize("settings", [{"seed": -1}, {"on_error": "ignore"}])
def test_settings_that_mean_nothing(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(OptionError) as caught:
        run(tiny(), "canonicalize", **settings)
    assert caught.value.where == name
