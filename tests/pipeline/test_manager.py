"""The manager: holds passes to their word, rolls back, reports, and leaves the caller's model alone."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from graphopt.api import Instrument, Report, StepView
from graphopt.errors import (
    DataError,
    GateFailed,
    GraphoptError,
    InvalidModelError,
    OptionError,
    PassFailed,
    VerifyError,
)
from graphopt.ir.emit import emit
from graphopt.ir.fingerprint import fingerprint
from graphopt.pipeline.manager import Manager, ManagerResult, OnError
from graphopt.pipeline.plan import make_gates
from graphopt.pipeline.text import Step
from graphopt.targets import load_target
from tests.pipeline.kit import NodeLimit, Returns, count_nodes, node_called, op_types, plan_of, registry, tiny

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir import Model

TARGET = load_target("ort-cpu")
ALL: tuple[OnError, ...] = ("raise", "rollback", "stop")


def run(text: str, *, model: Model | None = None, instruments: Any = (), **options: Any) -> ManagerResult:
    known = registry()
    manager = Manager(known, target=TARGET, instruments=instruments)
    return manager.run(tiny() if model is None else model, plan_of(text, known), **options)


def statuses(result: ManagerResult) -> list[str]:
    return [record.status for record in result.steps]


def bytes_of(model: Model) -> bytes:
    return bytes(emit(model).SerializeToString(deterministic=True))


@pytest.mark.parametrize("on_error", ALL)
@pytest.mark.parametrize("keep_input", [True, False])
def test_runs_in_order_and_records(on_error: OnError, keep_input: bool) -> None:
    result = run("drop-dead,rename{to=z,also=[1]},rename{to=z}", on_error=on_error, keep_input=keep_input)
    assert result.error is None
    assert result.warnings == []
    assert result.changed
    assert result.model is not None
    assert op_types(result.model) == ["MatMul", "Relu", "Identity"]
    assert result.model.graph.name == "z"
    assert statuses(result) == ["committed", "committed", "unchanged"]
    first, second, third = result.steps
    assert (first.index, first.name, first.changed, first.counts) == (0, "drop-dead", True, {"removed": 1})
    assert second.options == {"to": "z", "also": [1]}
    assert second.extra == {"to": "z"}
    assert first.fingerprint_before == fingerprint(tiny())
    assert first.fingerprint_after == second.fingerprint_before != first.fingerprint_before
    assert second.fingerprint_after == third.fingerprint_before == third.fingerprint_after
    assert third.fingerprint_after == fingerprint(result.model)
    assert all(record.times_s.run > 0 for record in result.steps)


@pytest.mark.parametrize("on_error", ALL)
def test_the_input_stays_as_it_was_unless_given_away(on_error: OnError) -> None:
    model = tiny()
    before = bytes_of(model)
    result = run("drop-dead,rename,crash", model=model, on_error=on_error)
    assert bytes_of(model) == before
    assert result.model is not model
    given = tiny()
    assert run("drop-dead", model=given, on_error="raise", keep_input=False).model is given


def test_an_empty_plan_returns_the_model_itself() -> None:
    model = tiny()
    result = run("", model=model)
    assert result.model is model
    assert not result.changed
    assert result.steps == []


def clones_made(monkeypatch: pytest.MonkeyPatch, text: str, **options: Any) -> int:
    from graphopt.ir.model import Model

    made = []
    clone = Model.clone

    def counted(model: Model) -> Model:
        made.append(model)
        return clone(model)

    monkeypatch.setattr(Model, "clone", counted)
    run(text, **options)
    monkeypatch.setattr(Model, "clone", clone)
    return len(made)


@pytest.mark.parametrize(
    ("text", "options", "clones"),
    [
        ("drop-dead,rename,rename{to=z}", {"keep_input": False}, 0),
        ("drop-dead,rename,rename{to=z}", {"keep_input": True}, 1),
        (
            "drop-dead,rename,rename{to=z}",
            {"keep_input": False, "gates": [NodeLimit(NodeLimit.Options(at_least=1))]},
            1,
        ),
        ("drop-dead,rename,rename{to=z}", {"on_error": "rollback"}, 3),
        ("drop-dead,rename,rename{to=z}", {"on_error": "stop", "keep_input": False}, 3),
        # An unchanged step leaves its copy to the next one.
        ("rename{to=tiny},rename{to=tiny},rename{to=tiny}", {"on_error": "rollback"}, 1),
        ("drop-dead,drop-dead,drop-dead,rename", {"on_error": "stop"}, 2),
    ],
)
def test_copies_only_where_a_roll_back_is_possible(
    monkeypatch: pytest.MonkeyPatch, text: str, options: dict[str, Any], clones: int
) -> None:
    assert clones_made(monkeypatch, text, **options) == clones


FAILURES = [
    ("says-unchanged", PassFailed, "reports the model as unchanged, but its fingerprint differs"),
    ("says-changed", PassFailed, "reports the model as changed, but its fingerprint is the same"),
    ("break-ssa", VerifyError, "'a'"),
    ("crash", PassFailed, r"raised ValueError: no such thing \(line \d+ of run\(\)\)"),
    ("crash{how=exit}", PassFailed, "raised SystemExit: 3"),
    ("crash{how=memory}", PassFailed, "raised MemoryError"),
    ("crash{how=option}", OptionError, "node 'relu': option 'how' does not fit this model"),
    ("crash{how=data}", DataError, "the data does not fit"),
    ("crash{how=short}", GateFailed, "only in part"),
]


@pytest.mark.parametrize(("text", "error", "words"), FAILURES)
def test_raise_commits_nothing(text: str, error: type[GraphoptError], words: str) -> None:
    result = run(f"drop-dead,{text},rename")
    assert result.model is None
    assert statuses(result) == ["committed", "failed"]
    assert type(result.error) is error
    with pytest.raises(error, match=words):
        raise result.error
    name = text.split("{", maxsplit=1)[0]
    assert result.error.where.startswith(f"step 2 ({name})")


@pytest.mark.parametrize(("text", "error", "words"), FAILURES)
def test_stop_keeps_what_was_committed(text: str, error: type[GraphoptError], words: str) -> None:
    result = run(f"drop-dead,{text},rename", on_error="stop")
    alone = run("drop-dead")
    assert result.model is not None
    assert alone.model is not None
    assert bytes_of(result.model) == bytes_of(alone.model)
    assert statuses(result) == ["committed", "failed"]
    assert type(result.error) is error


@pytest.mark.parametrize(("text", "error", "words"), FAILURES)
def test_rollback_undoes_the_step_and_goes_on(text: str, error: type[GraphoptError], words: str) -> None:
    result = run(f"drop-dead,{text},rename,crash", on_error="rollback")
    alone = run("drop-dead,rename")
    assert result.model is not None
    assert alone.model is not None
    assert bytes_of(result.model) == bytes_of(alone.model)
    assert statuses(result) == ["committed", "rolled_back", "committed", "rolled_back"]
    assert type(result.error) is error  # the first one decides
    assert len(result.warnings) == 2
    failed = result.steps[1]
    assert failed.fingerprint_after == failed.fingerprint_before == result.steps[2].fingerprint_before


def test_a_failure_at_the_first_step_leaves_the_very_beginning() -> None:
    model = tiny()
    before = bytes_of(model)
    for on_error in ("stop", "rollback"):
        result = run("crash", model=model, on_error=on_error)
        assert result.model is not None
        assert bytes_of(result.model) == before
        assert not result.changed
    result = run("crash,rename", model=model, on_error="rollback")
    assert result.model is not model
    assert bytes_of(model) == before


def test_the_cause_is_kept() -> None:
    error = run("crash").error
    assert error is not None
    assert isinstance(error.__cause__, ValueError)
    assert error.exit_code == 4


@pytest.mark.parametrize("on_error", ALL)
def test_an_interrupt_goes_through(on_error: OnError) -> None:
    model = tiny()
    before = bytes_of(model)
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run("drop-dead,crash{how=interrupt}", model=model, on_error=on_error, instruments=[Watcher("w", log)])
    assert bytes_of(model) == before
    assert log[-1] == "w failed crash KeyboardInterrupt"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "returned NoneType, expected a Report"),
        (True, "returned bool"),
        (Report(changed=1), "Report.changed is 1"),  # type: ignore[arg-type]  # what is tested
        (Report(changed=True, counts={"a": -1}), "'a': -1"),
        (Report(changed=True, counts={"a": True}), "'a': True"),
        (Report(changed=True, counts={"a": 1.5}), "'a': 1.5"),  # type: ignore[dict-item]  # what is tested
        (Report(changed=True, counts=[1]), "Report.counts is"),  # type: ignore[arg-type]  # what is tested
        (Report(changed=True, skipped=(("a",),)), "Report.skipped holds"),  # type: ignore[arg-type]  # what is tested
        (Report(changed=True, warnings="ab"), "Report.warnings is 'ab'"),  # type: ignore[arg-type]  # what is tested
        (Report(changed=True, warnings=(1,)), "Report.warnings is"),  # type: ignore[arg-type]  # what is tested
        (Report(changed=True, skipped="ab"), "Report.skipped is"),  # type: ignore[arg-type]  # what is tested
        (Report(changed=True, extra={"a": object()}), "not ready for JSON"),
    ],
)
def test_reports_are_checked(monkeypatch: pytest.MonkeyPatch, answer: object, words: str) -> None:
    monkeypatch.setattr(Returns, "answer", answer)
    error = run("returns").error
    assert isinstance(error, PassFailed)
    assert words in str(error)


def test_a_good_report_of_that_pass_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Returns, "answer", Report(changed=True, skipped=(("node 'a'", "too large"),)))
    result = run("returns")
    assert result.error is None
    assert [(skip.where, skip.reason) for skip in result.steps[0].skipped] == [("node 'a'", "too large")]


@pytest.mark.parametrize("count", [2, 5, 6, 40])
def test_warnings_of_a_pass_are_those_of_the_run_and_many_are_cut_short(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    sentences = tuple(f"node {index}: too few samples" for index in range(count))
    monkeypatch.setattr(Returns, "answer", Report(changed=True, warnings=sentences))
    warnings = run("returns").warnings
    shown = sentences if count <= 5 else sentences[:4]
    assert warnings[: len(shown)] == [f"returns: {sentence}" for sentence in shown]
    rest = [f"returns: {count - 4} more like these; the step's extra in report.json has all"]
    assert warnings[len(shown) :] == ([] if count <= 5 else rest)


def test_gates_compare_with_the_model_that_the_run_began_with() -> None:
    seen = []

    class Spy(NodeLimit):
        def check(self, original: Model, candidate: Model, context: Any) -> Any:
            seen.append((op_types(original), op_types(candidate), context.analysis("nodes")))
            return super().check(original, candidate, context)

    result = run("rename,drop-dead,drop-dead", gates=[Spy(Spy.Options(at_least=1))], keep_input=False)
    full = ["MatMul", "Relu", "Neg", "Identity"]
    assert result.error is None
    assert seen == [(full, full, 4), (full, ["MatMul", "Relu", "Identity"], 3)]
    assert [[gate.passed for gate in record.gates] for record in result.steps] == [[True], [True], []]
    assert [gate.value for gate in result.steps[1].gates] == [3.0]


@pytest.mark.parametrize(
    ("on_error", "expected", "name"),
    [
        ("rollback", ["rolled_back", "committed"], "renamed"),
        ("stop", ["failed"], "tiny"),
        ("raise", ["failed"], None),
    ],
)
def test_a_gate_that_refuses_rolls_back(on_error: OnError, expected: list[str], name: str | None) -> None:
    gates = make_gates([Step("node-limit", {"at_least": "4"})], registry())
    result = run("drop-dead,rename", gates=gates, on_error=on_error)
    assert isinstance(result.error, GateFailed)
    assert result.error.exit_code == 1
    assert "gate 'node-limit' refused it: nodes is 3, the limit is 4" in str(result.error)
    assert statuses(result) == expected
    assert result.steps[0].gates[0].model_dump() == {
        "name": "nodes", "value": 3.0, "limit": 4.0, "passed": False, "note": "",
    }  # fmt: skip
    assert (
        (result.model is None)
        if name is None
        else (result.model is not None and result.model.graph.name == name)
    )


@pytest.mark.parametrize("how", ["raise", "error", "answer"])
def test_a_gate_that_fails_is_named(how: str) -> None:
    class Broken(NodeLimit):
        def check(self, original: Model, candidate: Model, context: Any) -> Any:
            if how == "raise":
                raise ZeroDivisionError("oh")
            if how == "error":
                raise DataError("no such data", where="x.npz")
            return [True]

    error = run("drop-dead", gates=[Broken()], on_error="stop").error
    assert error is not None
    assert error.where.startswith("step 1 (drop-dead), gate 'node-limit'")
    assert type(error) is (DataError if how == "error" else PassFailed)


def test_a_broken_input_is_not_blamed_on_a_pass() -> None:
    model = tiny()
    node_called(model, "relu").outputs[0].name = "a"
    with pytest.raises(InvalidModelError):
        run("drop-dead", model=model)


def test_analyses_are_forgotten_after_a_change_unless_preserved() -> None:
    calls = []
    known = registry()

    def count(model: Model, dims: Mapping[str, int]) -> int:
        calls.append(dims)
        return count_nodes(model, dims)

    known.analyses._entries.pop("nodes")
    known.analyses.add("nodes", count, "'kit' (tests)")
    manager = Manager(known, target=TARGET, dims={"batch": 3})
    result = manager.run(tiny(), plan_of("count,count,count{name=n},count,drop-dead,count", known))
    assert result.error is None
    # Computed once for the first four (unchanged twice, then preserved), and anew after drop-dead.
    assert calls == [{"batch": 3}, {"batch": 3}]
    assert [record.extra.get("nodes") for record in result.steps] == [4, 4, 4, 4, None, 3]


def test_an_analysis_never_speaks_of_a_model_that_was_rolled_back() -> None:
    result = run("count,crash,drop-dead,count,crash,count", on_error="rollback")
    assert [record.extra.get("nodes") for record in result.steps] == [4, None, None, 3, None, 3]


def test_a_pass_that_asks_for_an_unknown_analysis_fails() -> None:
    known = registry()
    known.analyses._entries.pop("nodes")
    known.analyses.add("nodez", count_nodes, "'kit' (tests)")
    error = Manager(known, target=TARGET).run(tiny(), plan_of("count", known)).error
    assert isinstance(error, PassFailed)
    assert "no analysis is called 'nodes'. Did you mean 'nodez'?" in str(error)


class Watcher(Instrument):
    """Writes down what it sees; fails on the event that it is told to."""

    def __init__(self, name: str, log: list[str], fail: str = "") -> None:
        self.name, self.log, self.fail = name, log, fail

    def note(self, event: str, text: str) -> None:
        self.log.append(f"{self.name} {event} {text}")
        if event == self.fail:
            raise RuntimeError(f"{event} went wrong")

    def before(self, step: StepView, model: Model) -> None:
        self.note("before", step.text)

    def after(self, step: StepView, model: Model, report: Report) -> None:
        self.note("after", f"{step.name} {len(op_types(model))}")

    def failed(self, step: StepView, error: BaseException) -> None:
        self.note("failed", f"{step.name} {type(error).__name__}")


def test_instruments_nest() -> None:
    log: list[str] = []
    result = run("drop-dead,rename{to=z},crash", instruments=[Watcher("a", log), Watcher("b", log)])
    assert result.warnings == []
    assert log == [
        "a before drop-dead", "b before drop-dead", "b after drop-dead 3", "a after drop-dead 3",
        "a before rename{to=z}", "b before rename{to=z}", "b after rename 3", "a after rename 3",
        "a before crash", "b before crash", "b failed crash PassFailed", "a failed crash PassFailed",
    ]  # fmt: skip


@pytest.mark.parametrize("fail", ["before", "after", "failed"])
def test_an_instrument_that_fails_is_dropped_and_named(fail: str) -> None:
    log: list[str] = []
    result = run(
        "drop-dead,crash,rename",
        instruments=[Watcher("a", log, fail), Watcher("b", log)],
        on_error="rollback",
    )
    assert statuses(result) == ["committed", "rolled_back", "committed"]
    warnings = [text for text in result.warnings if "instrument" in text]
    assert warnings == [
        f"instrument Watcher failed in {fail}() and is no longer called: RuntimeError: {fail} went wrong"
    ]
    assert sum(line.startswith("b before") for line in log) == 3
    last = next(index for index, line in enumerate(log) if line.startswith(f"a {fail}"))
    assert not any(line.startswith("a") for line in log[last + 1 :])


def test_registered_instruments_watch_too() -> None:
    log: list[str] = []
    known = registry()
    known.instruments.add("watcher", lambda: Watcher("r", log), "'kit' (tests)")
    known.instruments.add("broken", lambda: 1 / 0, "'kit' (tests)")
    known.instruments.add("odd", lambda: 3, "'kit' (tests)")
    result = Manager(known, target=TARGET).run(tiny(), plan_of("drop-dead", known))
    assert log == ["r before drop-dead", "r after drop-dead 3"]
    assert len(result.warnings) == 2
    assert "'broken' cannot be made: ZeroDivisionError" in result.warnings[0]
    assert "'odd' is 3" in result.warnings[1]


def test_nothing_of_a_run_is_kept_alive() -> None:
    """A snapshot that outlives its step would double the memory of every pipeline."""
    import onnx_ir as oir

    gc.collect()
    result = run("drop-dead,rename,rename{to=z}", on_error="stop", keep_input=False)
    gc.collect()
    alive = [each for each in gc.get_objects() if isinstance(each, oir.Model)]
    assert result.model is not None
    assert [each for each in alive if each.graph.name in {"tiny", "renamed"}] == []
