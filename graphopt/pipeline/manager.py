"""The manager: runs a plan step by step and lets no step through that breaks its word.

For each step: keep a copy where a roll-back is still possible, run, compare ``changed`` with the
fingerprint, verify, gate, then commit or roll back. Passes work on one live model object, and the copy is
what is rolled back to; so analyses that a pass preserves stay valid from step to step.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from graphopt.api import Context, Gate, Instrument, Reference, Report, StepView
from graphopt.calibrate.needs import Needs
from graphopt.errors import (
    GateFailed,
    GraphoptError,
    InvalidModelError,
    PassFailed,
    VerifyError,
)
from graphopt.pipeline.contract import (
    add_hint,
    as_failure,
    check_honest,
    checked_results,
    described,
    join,
    report_problem,
    verdict,
)
from graphopt.pipeline.derive import derive
from graphopt.pipeline.instruments import InstrumentStack
from graphopt.record import GateRecord, Skip, StepRecord, StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from graphopt.calibrate.calibration import Calibration
    from graphopt.ir import Model
    from graphopt.pipeline.isolate import Isolation
    from graphopt.pipeline.plan import Plan, PlannedStep
    from graphopt.pipeline.plugins import Registry
    from graphopt.runtime.measurements import Measurements
    from graphopt.targets import Target

OnError = Literal["raise", "rollback", "stop"]
_MOST_WARNINGS = 5  # of one step


@dataclass
class ManagerResult:
    """What became of a run.

    Attributes:
        model: The model after all committed steps; None where a step failed under ``raise``.
        steps: One record for each step that was begun.
        error: The first failure, or None.
        warnings: Sentences that belong into the report.
        reproducer: The folder that replays the first failure, where one was written.
    """

    model: Model | None
    steps: list[StepRecord] = field(default_factory=list)
    error: GraphoptError | None = None
    warnings: list[str] = field(default_factory=list)
    reproducer: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether any step was committed."""
        return any(record.status == "committed" for record in self.steps)


class Manager:
    """Runs plans; holds what is the same for all of them.

    Args:
        registry: Where analyses are looked up.
        target: What is compiled for.
        dims: Sizes bound to symbolic dims.
        seed: Seed for everything random.
        instruments: Watchers besides those that plugins registered.
        progress: Told how much of a step is done.
        isolation: Run each pass in a child process, so that a native crash is an error and not the end.
        calibration: Where passes get statistics from; by default there is no data.
        measurements: Where passes get latencies from; by default nothing is measured.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        target: Target,
        dims: Mapping[str, int] | None = None,
        seed: int = 0,
        instruments: Sequence[Instrument] = (),
        progress: Callable[[int, int], None] | None = None,
        isolation: Isolation | None = None,
        calibration: Calibration | None = None,
        measurements: Measurements | None = None,
    ) -> None:
        self.registry = registry
        self.target = target
        self.dims = dict(dims or {})
        self.seed = seed
        self.instruments = tuple(instruments)
        self.progress = progress
        self.isolation = isolation
        self.calibration = calibration
        self.measurements = measurements

    def run(
        self,
        model: Model,
        plan: Plan,
        *,
        gates: Sequence[Gate] = (),
        on_error: OnError = "raise",
        keep_input: bool = True,
        verified: bool = False,
        reload: Callable[[], Model] | None = None,
        reproducer: Path | None = None,
    ) -> ManagerResult:
        """Run *plan* on *model*; a failure of a step is in the result, not raised.

        Args:
            model: The model to transform.
            plan: The checked plan.
            gates: Judges of every step that changed something.
            on_error: ``raise``: a failure ends the run and nothing is committed. ``stop``: it ends the run
                and what was committed stays. ``rollback``: the step is undone and the next one runs.
            keep_input: Whether the caller still needs *model* as it is. Without it, and without gates,
                ``raise`` copies nothing at all.
            verified: Whether *model* was verified just now.
            reload: Makes the original model anew; lets a reproducer be written where no copy was kept.
            reproducer: Folder to write on the first failure.

        Raises:
            InvalidModelError: *model* breaks a structural rule before the first step.
        """
        return _Run(self, model, plan, gates, on_error, keep_input, reload, reproducer).execute(
            verified=verified
        )

    def context(self) -> Context:
        """Return a fresh context with all registered analyses."""
        return Context(
            target=self.target,
            analyses=self.registry.analyses,
            dims=self.dims,
            seed=self.seed,
            criteria=self.registry.criteria,
            channel_rules=self.registry.channel_rules,
            progress=self.progress,
            calibration=self.calibration,
            measurements=self.measurements,
            derive=partial(derive, self),
        )

    def perform(self, planned: PlannedStep, model: Model, context: Context) -> Report:
        """Run one pass on *model* in place, here or in a child, and check the form of its report.

        Raises:
            GraphoptError: As :meth:`run` keeps it: PassFailed, or an error that keeps its class.
        """
        if self.calibration is not None:
            self.calibration.where = planned.title
        if self.measurements is not None:
            self.measurements.scope = f"{planned.index + 1} {planned.name}"
        try:
            if self.isolation is None:
                model.forget_names()
                report: object = planned.pass_.run(model, planned.options, context)
            else:
                from graphopt.pipeline.isolate import run_step_isolated

                report = run_step_isolated(model, planned, self, self.isolation, context)
        except (Exception, SystemExit) as error:
            raise as_failure(planned, error) from error
        if problem := report_problem(report):
            raise PassFailed(
                f"the pass broke its contract: {problem}",
                where=planned.title,
                hint="run() must return a graphopt.api.Report.",
            )
        assert isinstance(report, Report)
        return report


class _Run:
    """The state of one run."""

    def __init__(
        self,
        manager: Manager,
        model: Model,
        plan: Plan,
        gates: Sequence[Gate],
        on_error: OnError,
        keep_input: bool,
        reload: Callable[[], Model] | None,
        reproducer: Path | None,
    ) -> None:
        self.manager = manager
        self.plan = plan
        self.gates = gates
        self.on_error = on_error
        self.reload = reload
        self.reproducer = reproducer
        # Gates compare with the model that the run began with, so with gates it is kept for them.
        self.original = model if keep_input or gates else None
        self.model = model
        self.snapshot: Model | None = None
        self.fingerprint = ""
        self.context = manager.context()
        self.result = ManagerResult(model=None)
        instruments = [*manager.instruments, *self.registered_instruments()]
        self.watch = InstrumentStack(instruments, self.result.warnings.append)

    def registered_instruments(self) -> Iterator[Instrument]:
        """Yield the instruments of plugins; one that cannot be made is a warning."""
        registry = self.manager.registry.instruments
        for name in registry:
            try:
                instrument: object = registry[name]()
            except Exception as error:  # noqa: BLE001 - strangers' code
                self.result.warnings.append(f"instrument {name!r} cannot be made: {described(error)}")
                continue
            if isinstance(instrument, Instrument):
                yield instrument
            else:
                self.result.warnings.append(f"instrument {name!r} is {instrument!r}, expected an Instrument")

    def execute(self, *, verified: bool) -> ManagerResult:
        from graphopt.ir.fingerprint import fingerprint

        if self.plan.steps and not verified:
            _verify_input(self.model)
        if self.plan.steps:
            self.fingerprint = fingerprint(self.model)
        for planned in self.plan.steps:
            if not self.step(planned) and self.on_error != "rollback":
                break
        if self.result.error is None or self.on_error != "raise":
            self.result.model = self.model
        return self.result

    def step(self, planned: PlannedStep) -> bool:
        """Run one step to its end, good or bad, and return whether it was good."""
        record = StepRecord(
            index=planned.index,
            name=planned.name,
            options=planned.options.model_dump(mode="json"),
            status="failed",
            fingerprint_before=self.fingerprint,
            fingerprint_after=self.fingerprint,
        )
        self.result.steps.append(record)
        view = StepView(planned.index, planned.name, planned.text)
        with _timed(record.times_s, "clone"):
            self.protect()
        self.watch.before(view, self.model)
        try:
            report = self.attempt(planned, record)
        except GraphoptError as error:
            self.undo(planned, record, error)
            self.watch.failed(view, error)
            return False
        except BaseException as interruption:
            self.watch.failed(view, interruption)
            raise
        self.watch.after(view, self.model, report)
        return True

    def protect(self) -> None:
        """Make the live model one that the step may change, and keep what a roll-back needs."""
        if self.model is self.original:
            # The first step, or a roll-back to the very beginning: the original is the snapshot.
            self.snapshot = self.original
            self.model = self.original.clone()
            self.context.invalidate(frozenset({"statistics"}))  # a copy: values hold what they held
        elif self.on_error != "raise" and self.snapshot is None:
            self.snapshot = self.model.clone()
        self.context.bind(self.model)

    def attempt(self, planned: PlannedStep, record: StepRecord) -> Report:
        with _timed(record.times_s, "run"):
            self.look_ahead(planned)
            reference = self.reference_for(planned)
            report = self.manager.perform(planned, self.model, self.context)
        record.changed = report.changed
        record.counts = dict(report.counts)
        record.skipped = [Skip(where=where, reason=reason) for where, reason in report.skipped]
        record.extra = dict(report.extra)
        self.warn(planned, report.warnings)
        with _timed(record.times_s, "verify"):
            after = self.examine(planned, report)
        if not report.changed:
            record.status = "unchanged"
            return report
        # A child hands back new objects, which no analysis of the old ones speaks of.
        preserved = planned.pass_.info.preserves
        if self.manager.isolation is not None:
            preserved = preserved & {"statistics"}
        self.context.invalidate(frozenset(preserved))
        with _timed(record.times_s, "gate"):
            self.judge(planned, record)
        self.context.reference = self.context.reference or reference
        record.status = "committed"
        record.fingerprint_after = after
        self.fingerprint = after
        self.snapshot = None
        return report

    def reference_for(self, planned: PlannedStep) -> Reference | None:
        """Return the model as it is, where this may be the first lossy step and one behind it will ask."""
        ahead = self.plan.steps[planned.index + 1 :]
        if self.context.reference is not None or not planned.pass_.info.lossy:
            return None
        if not any(step.pass_.info.reads_reference for step in ahead):
            return None
        return self.context.as_reference(self.model.clone(), self.context.held_statistics)

    def look_ahead(self, planned: PlannedStep) -> None:
        """Tell calibration what this step and those behind it want, as long as values keep their meaning."""
        calibration = self.manager.calibration
        if calibration is None or calibration.data is None:
            return
        ahead = Needs()
        for step in self.plan.steps[planned.index :]:
            try:
                ahead |= step.pass_.needs(self.model, step.options, self.context)
            except Exception:  # noqa: BLE001 - whatever is wrong, its own run says it in its own place
                break
            if "statistics" not in step.pass_.info.preserves:
                break
        calibration.planned = ahead

    def warn(self, planned: PlannedStep, warnings: Sequence[str]) -> None:
        """Take down what a pass warns of; of many sentences a few are enough to read."""
        shown = warnings if len(warnings) <= _MOST_WARNINGS else warnings[: _MOST_WARNINGS - 1]
        self.result.warnings += [f"{planned.name}: {warning}" for warning in shown]
        if rest := len(warnings) - len(shown):
            self.result.warnings.append(
                f"{planned.name}: {rest} more like these; the step's extra in report.json has all"
            )

    def examine(self, planned: PlannedStep, report: Report) -> str:
        """Return the fingerprint after the step, having held the pass to its word and verified the model."""
        from graphopt.ir.fingerprint import fingerprint
        from graphopt.ir.verify import verify

        if self.manager.isolation is not None and not report.changed:
            return self.fingerprint  # the child has compared; this model was never touched
        try:
            after = fingerprint(self.model)
            check_honest(planned, report, self.fingerprint, after)
            if report.changed:
                verify(self.model)
        except GraphoptError as error:
            error.where = error.where if isinstance(error, PassFailed) else join(planned.title, error.where)
            raise
        except Exception as error:
            raise PassFailed(
                f"the pass left a model that cannot be examined: {described(error)}", where=planned.title
            ) from error
        return after

    def judge(self, planned: PlannedStep, record: StepRecord) -> None:
        """Hold the changed model against all gates; the first one that refuses ends the step."""
        for gate in self.gates:
            assert self.original is not None
            try:
                results = checked_results(gate.check(self.original, self.model, self.context))
            except GraphoptError as error:
                error.where = join(planned.title, f"gate {gate.name!r}", error.where)
                raise
            except Exception as error:
                raise PassFailed(
                    f"the gate raised {described(error)}", where=join(planned.title, f"gate {gate.name!r}")
                ) from error
            record.gates.extend(GateRecord(**vars(result)) for result in results)
            if refused := [result for result in results if not result.passed]:
                raise GateFailed(
                    f"gate {gate.name!r} refused it: {'; '.join(map(verdict, refused))}",
                    where=planned.title,
                    hint="Loosen the limit, change the options of the step, or run with --on-error rollback.",
                )

    def undo(self, planned: PlannedStep, record: StepRecord, error: GraphoptError) -> None:
        """Go back to the model before the step, and leave what replays the first failure."""
        first = self.result.error is None
        if first:
            self.result.error = error
        if self.on_error == "rollback":
            record.status = "rolled_back"
        if self.snapshot is not None:
            self.model, self.snapshot = self.snapshot, None
            self.context.invalidate()
            self.context.bind(self.model)
            before: Model | None = self.model
        else:
            before = None
        if first and self.reproducer is not None:
            self.leave_reproducer(planned, error, before)
        if self.on_error == "rollback":
            self.result.warnings.append(f"rolled back: {error}")

    def leave_reproducer(self, planned: PlannedStep, error: GraphoptError, before: Model | None) -> None:
        from graphopt.pipeline.reproducer import write_reproducer

        assert self.reproducer is not None
        try:
            model, steps = self.model_before(planned) if before is None else (before, (planned,))
            self.result.reproducer = write_reproducer(
                self.reproducer,
                model=model,
                steps=steps,
                gates=self.gates,
                error=error,
                settings={
                    "target": self.manager.target.name,
                    "dims": self.manager.dims,
                    "seed": self.manager.seed,
                    "on_error": self.on_error,
                    "isolate": self.manager.isolation is not None,
                },
                local_plugins=self.manager.registry.local,
                reference=self.reference_of(steps),
                statistics=None if self.manager.calibration is None else self.manager.calibration.held,
                measurements=() if self.manager.measurements is None else self.manager.measurements.records,
            )
        except Exception as problem:  # noqa: BLE001 - the failure itself must reach the user whatever happens here
            self.result.warnings.append(f"no reproducer could be written: {described(problem)}")
            return
        add_hint(error, f"`graphopt replay {self.result.reproducer}` repeats it.")

    def reference_of(self, steps: Sequence[PlannedStep]) -> Model | None:
        """Return the reference that *steps* need and do not make themselves."""
        if len(steps) > 1 or not steps[0].pass_.info.reads_reference or self.context.reference is None:
            return None
        return self.context.reference.model

    def model_before(self, planned: PlannedStep) -> tuple[Model, tuple[PlannedStep, ...]]:
        """Return the model before *planned* and that step, or the original and all steps up to it."""
        earlier = self.plan.steps[: planned.index]
        committed = {record.index for record in self.result.steps if record.status == "committed"}
        try:
            model = self.fresh_original()
            context = self.manager.context()
            for step in earlier:
                if step.index in committed:
                    context.bind(model)
                    context.invalidate()
                    self.manager.perform(step, model, context)
        except GraphoptError as error:
            self.result.warnings.append(
                f"the reproducer starts from the original model, for a replay failed: {error}"
            )
            return self.fresh_original(), (*earlier, planned)
        return model, (planned,)

    def fresh_original(self) -> Model:
        if self.original is not None:
            return self.original.clone()
        if self.reload is not None:
            return self.reload()
        raise PassFailed("the model was given away and nothing can load it again")


def _verify_input(model: Model) -> None:
    from graphopt.ir.verify import verify

    try:
        verify(model)
    except VerifyError as error:
        raise InvalidModelError(error.message, where=error.where, hint=error.hint) from error


@contextmanager
def _timed(times: StepTimes, part: Literal["clone", "run", "verify", "gate"]) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        setattr(times, part, time.perf_counter() - start)
