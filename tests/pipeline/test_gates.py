"""The built-in gates, judged by what the models really compute and weigh."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.errors import DataError, GateFailed, InvalidModelError, OptionError, PathError
from graphopt.ir.emit import emit, save
from graphopt.ir.tensors import from_array
from graphopt.pipeline.manager import Manager
from graphopt.pipeline.plan import make_gates
from graphopt.pipeline.text import parse
from graphopt.targets import load_target
from tests.pipeline.kit import WEIGHT, node_called, plan_of, registry, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.api import Context, GateResult
    from graphopt.ir import Model


def context(candidate: Model, **dims: int) -> Context:
    made = Manager(registry(), target=load_target("ort-cpu"), dims=dims).context()
    made.bind(candidate)
    return made


def judge(text: str, candidate: Model, original: Model | None = None) -> tuple[GateResult, ...]:
    (gate,) = make_gates(parse(text), registry())
    return gate.check(original or tiny(), candidate, context(candidate, batch=3))


def with_weight(weight: Any) -> Model:
    model = tiny()
    model.graph.initializers["w"].const_value = from_array(weight.astype(np.float32), "w")
    return model


def test_equal_models_pass_and_have_no_finite_sqnr() -> None:
    (result,) = judge("numeric", tiny())
    assert (result.name, result.value, result.limit, result.passed) == ("min_sqnr_db", None, 30.0, True)


def reference(model: Model, x: Any) -> Any:
    outputs: Any = ReferenceEvaluator(emit(model)).run(None, {"x": x})
    return outputs[0]


@pytest.mark.parametrize(("error", "passed"), [(1e-3, True), (0.2, False)])
def test_the_measured_sqnr_is_the_closed_form(tmp_path: Path, error: float, passed: bool) -> None:
    rng = np.random.default_rng(3)
    candidate = with_weight(WEIGHT * (1 + error * rng.standard_normal(WEIGHT.shape)))
    data = rng.standard_normal((5, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=data)
    before, after = (reference(model, data) for model in (tiny(), candidate))
    expected = 10 * math.log10(np.sum(before.astype(np.float64) ** 2) / np.sum((before - after) ** 2.0))
    (gate,) = make_gates(parse(f'numeric{{data="{tmp_path / "data.npz"}",feeds=5}}'), registry())
    (result,) = gate.check(tiny(), candidate, context(candidate))
    assert result.value == pytest.approx(expected, abs=0.05)
    assert result.passed is passed


def test_max_abs_replaces_the_sqnr() -> None:
    (result,) = judge("numeric{max_abs=0.5}", with_weight(WEIGHT + 1e-4))
    assert (result.name, result.passed) == ("max_abs", True)
    assert result.value is not None
    assert 0 < result.value < 0.5
    both = judge("numeric{max_abs=0,min_sqnr_db=20}", with_weight(WEIGHT + 1e-4))
    assert [(each.name, each.passed) for each in both] == [("min_sqnr_db", True), ("max_abs", False)]


def test_nan_is_refused_whatever_the_limits() -> None:
    weight = WEIGHT.copy()
    weight[0, 0] = np.nan
    results = judge("numeric{min_sqnr_db=-100}", with_weight(weight))
    assert not all(result.passed for result in results)
    assert any("NaN" in result.note for result in results)


def test_a_changed_signature_is_refused() -> None:
    candidate = tiny()
    node_called(candidate, "copy").outputs[0].name = "z"
    results = judge("numeric", candidate)
    assert [result.name for result in results if not result.passed] == ["problems"]
    assert "'y'" in results[-1].note


@pytest.mark.parametrize("gate", ["numeric", "latency"])
def test_what_the_runtime_refuses_is_refused(gate: str) -> None:
    candidate = with_weight(WEIGHT[:3])  # the verifier reads no shapes; the runtime does
    with pytest.raises(GateFailed, match="the original runs, the result does not"):
        judge(gate, candidate)


@pytest.mark.parametrize("gate", ["numeric", "latency"])
def test_an_original_that_does_not_run_is_no_fault_of_the_step(gate: str) -> None:
    original = with_weight(WEIGHT[:3])
    with pytest.raises(InvalidModelError):
        judge(gate, tiny(), original)


def test_size_counts_all_files(tmp_path: Path) -> None:
    half = with_weight(WEIGHT[:, :64])
    half.graph.initializers["w"].const_value = from_array(WEIGHT.astype(np.float16), "w")
    (result,) = judge("size{max_ratio=0.6}", half)
    sizes = []
    for name, model in (("a", tiny()), ("b", half)):
        onnx.save(emit(model), tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    assert result.value == pytest.approx(sizes[1] / sizes[0], abs=0.01)
    assert result.passed
    (result,) = judge("size{max_ratio=0.5}", half)
    assert not result.passed
    assert judge("size", tiny())[0].value == 1.0


def test_size_counts_external_data(tmp_path: Path) -> None:
    from graphopt.ir.emit import ExternalData
    from graphopt.ir.lower import load

    save(tiny(), tmp_path / "m.onnx", external=ExternalData("one-file", 1024))
    assert (tmp_path / "m.onnx").stat().st_size < 2048
    (result,) = judge("size", load(tmp_path / "m.onnx"))
    assert result.value == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_latency_is_judged_by_its_ratio() -> None:
    (good,) = judge("latency{max_ratio=1000}", tiny())
    assert good.passed
    assert good.value is not None
    assert good.value > 0
    assert "two sessions of the original" in good.note
    (bad,) = judge("latency{max_ratio=0.000001}", tiny())
    assert not bad.passed


def test_a_gate_in_a_run_rolls_back_what_computes_something_else() -> None:
    known = registry()
    gates = make_gates(parse("size,numeric{min_sqnr_db=40}"), known)
    manager = Manager(known, target=load_target("ort-cpu"))
    result = manager.run(tiny(), plan_of("drop-dead,flip,rename", known), gates=gates, on_error="rollback")
    assert [record.status for record in result.steps] == ["committed", "rolled_back", "committed"]
    assert isinstance(result.error, GateFailed)
    assert "gate 'numeric' refused it: min_sqnr_db is" in result.error.message
    assert [gate.name for gate in result.steps[1].gates] == ["max_size_ratio", "min_sqnr_db"]
    assert result.model is not None
    assert node_called(result.model, "relu").op_type == "Relu"


def test_data_that_does_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 5), np.float32))
    with pytest.raises(DataError):
        judge(f'numeric{{data="{tmp_path / "data.npz"}"}}', tiny())
    with pytest.raises(PathError):
        judge("numeric{data=nowhere.npz}", tiny())


def test_limits_are_checked_before_anything_runs() -> None:
    for text in ("size{max_ratio=0}", "latency{max_ratio=-1}", "numeric{feeds=0}", "numeric{max_abs=-1}"):
        with pytest.raises(OptionError, match="out of range"):
            make_gates(parse(text), registry())
