"""One run from file to file: load, plan, transform, write, validate, and a record of all of it.

The record is filled in as the run goes, so that it tells what happened wherever the run ended. The result
takes its place only after it was validated; until then nothing that was there is touched.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from graphopt.errors import (
    DataError,
    GateFailed,
    GraphoptError,
    InvalidModelError,
    OptionError,
    ProviderError,
)
from graphopt.pipeline import facts, ledger
from graphopt.pipeline.contract import add_hint
from graphopt.pipeline.known import make_calibration, make_measurements, note
from graphopt.pipeline.manager import OnError
from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.request import Outcome, Pipeline, Result, RunRequest
from graphopt.pipeline.text import Step, parse, to_text
from graphopt.pipeline.validation import (
    Data,
    choose_providers,
    compare_files,
    open_feeds,
    why_not_executable,
)
from graphopt.record import ErrorRecord, ModelFacts, RunRecord, RunStatus, ValidationRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.api import Gate, Instrument
    from graphopt.calibrate.calibration import Calibration
    from graphopt.ir import ExternalData, Model
    from graphopt.pipeline.manager import Manager, ManagerResult
    from graphopt.pipeline.plan import Plan
    from graphopt.pipeline.plugins import Registry
    from graphopt.runtime.measurements import Measurements
    from graphopt.runtime.session import Feeds
    from graphopt.targets import Target


def run(
    model: Model | str | os.PathLike[str],
    pipeline: Pipeline,
    *,
    out: str | os.PathLike[str] | None = None,
    data: Data | None = None,
    samples: int | None = None,
    target: str = "ort-cpu",
    providers: Sequence[str] = (),
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    on_error: OnError = "raise",
    gates: Sequence[Gate] = (),
    external: ExternalData | None = None,
    validate: bool | None = None,
    isolate: bool = False,
    local_plugins: str | os.PathLike[str] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    measurements: str | os.PathLike[str] | None = None,
    instruments: Sequence[Instrument] = (),
) -> Result:
    """Transform *model* by *pipeline*; see :class:`RunRequest` for the arguments.

    *model* is never changed. With ``on_error`` of ``rollback`` or ``stop`` a failed step is in the report
    (``report.error``) and the result holds what was committed; all other failures are raised.

    Raises:
        GraphoptError: Whatever ended the run; nothing was written.
    """
    outcome = execute(
        RunRequest(
            model=Path(model) if isinstance(model, str | os.PathLike) else model,
            pipeline=pipeline,
            out=None if out is None else Path(out),
            data=data,
            samples=samples,
            target=target,
            providers=tuple(providers),
            dims=dict(dims or {}),
            seed=seed,
            on_error=on_error,
            gates=tuple(gates),
            external=external,
            validate=validate,
            isolate=isolate,
            local_plugins=None if local_plugins is None else Path(local_plugins),
            statistics=None if statistics is None else Path(statistics),
            measurements=None if measurements is None else Path(measurements),
            instruments=tuple(instruments),
        )
    )
    if outcome.model is None:
        assert outcome.error is not None
        raise outcome.error
    return Result(outcome.model, outcome.record, outcome.files)


def execute(request: RunRequest, outcome: Outcome | None = None) -> Outcome:
    """Carry out *request*; a failure is in the outcome, not raised. An interrupt is raised.

    Args:
        request: What to do.
        outcome: Filled in as the run goes and returned; pass one to keep what is known after an interrupt.
    """
    outcome = Outcome(RunRecord()) if outcome is None else outcome
    record = outcome.record
    record.command, record.versions = request.command, facts.versions()
    record.target, record.seed = request.target, request.seed
    try:
        with contextlib.ExitStack() as stack:
            run = _Run(request, outcome, stack)
            stack.callback(run.close)
            run.execute()
    except GraphoptError as error:
        if outcome.error is None:
            outcome.error = error
        # A failure behind the steps takes the result with it, whatever failed first.
        outcome.model, outcome.files, outcome.record.output = None, (), None
    settle(outcome.record, outcome.error)
    return outcome


def settle(record: RunRecord, error: GraphoptError | None) -> None:
    """Write status, exit code and error into *record*; without an error the status stays."""
    if error is None:
        return
    status: RunStatus = "gate_failed" if error.exit_code == GateFailed.exit_code else "failed"
    record.status = status
    record.exit_code = error.exit_code
    record.error = ErrorRecord(
        type=type(error).__name__, where=error.where, message=error.message, hint=error.hint
    )


class _Run:
    """The state of one run; each method is one part of the arrow."""

    def __init__(self, request: RunRequest, outcome: Outcome, stack: contextlib.ExitStack) -> None:
        self.request = request
        self.outcome = outcome
        self.record = outcome.record
        self.stack = stack
        self.watch = request.watch
        self.scratch: Path | None = None

    def close(self) -> None:
        """Remove the scratch folder of isolated steps, now or with the model that may point into it."""
        if self.scratch is None:
            return
        if self.outcome.model is None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        else:
            weakref.finalize(self.outcome.model, shutil.rmtree, self.scratch, ignore_errors=True)

    def execute(self) -> None:
        from graphopt.pipeline.plan import make_gates, make_plan
        from graphopt.runtime.feeds import check_dims, input_specs
        from graphopt.targets import load_target

        request, record = self.request, self.record
        _check_settings(request)
        steps, gate_steps = _steps_of(request.pipeline)
        record.pipeline = to_text(steps)
        registry = self._plugins()
        target = load_target(request.target, dict(registry.targets))
        if request.out is not None:
            self._check_out(request.out)
        make_plan(steps, registry, given=request.evidence)  # judged before a large file is read
        gates = (*request.gates, *make_gates(gate_steps, registry))
        self.watch.stage("reading the model")
        model = self._load()
        check_dims(input_specs(model), request.dims)
        plan = make_plan(steps, registry, model.opset)
        record.pipeline = plan.text
        names, warnings = choose_providers(request.providers, target)
        record.providers = list(names)
        record.warnings += warnings
        feeds = self._given_feeds(model, registry)
        record.input = self._input_facts(model)
        book = ledger.Book(model, record.input.bytes)
        result = self._transform(model, plan, gates, registry, target, feeds)
        record.steps = result.steps
        record.warnings += result.warnings
        self.outcome.error = result.error
        self.outcome.reproducer = result.reproducer
        if result.model is None:
            return
        if result.model is request.model:  # no step was committed; editing the result must not edit the input
            result.model = result.model.clone()
        self.outcome.model = result.model
        book.check(result.model)
        self._finish(result, plan, gates, feeds, registry, target)
        book.close(result.model, record)

    def _plugins(self) -> Registry:
        from graphopt.pipeline.plugins import load_plugins

        registry = self.request.registry or load_plugins(self.request.local_plugins)
        self.record.warnings += registry.warnings
        return registry

    def _check_out(self, out: Path) -> None:
        from graphopt.ir.files import check_target

        model = self.request.model
        source = [model] if isinstance(model, Path) else list(facts.source_files(model))
        check_target(out, iter(source))

    def _load(self) -> Model:
        from graphopt.ir import load

        model = self.request.model
        return load(model) if isinstance(model, Path) else model

    def _reload(self) -> Model:
        from graphopt.ir import load

        model = self.request.model
        return load(model) if isinstance(model, Path) else model.clone()

    def _input_facts(self, model: Model) -> ModelFacts:
        request = self.request
        if isinstance(request.model, Path):
            return facts.model_facts(model, request.model, facts.source_files(model), request.dims)
        return facts.facts_in_memory(model, request.dims)

    def _given_feeds(self, model: Model, registry: Registry) -> Iterable[Feeds] | None:
        """Open the data that was given, so that bad data ends the run before anything runs."""
        request = self.request
        if request.data is None:
            if request.samples is not None:
                self.record.warnings.append("--samples has no effect without --data")
            return None
        feeds, warnings = self._open_feeds(model, registry)
        self.record.warnings += warnings
        return feeds

    def _open_feeds(self, model: Model, registry: Registry) -> tuple[Iterable[Feeds], tuple[str, ...]]:
        request = self.request
        return open_feeds(
            model,
            request.data,
            samples=request.samples if request.data is not None else None,
            seed=request.seed,
            dims=request.dims,
            registry=registry,
            preprocess=getattr(request.pipeline, "preprocess", None),
        )

    def _transform(
        self,
        model: Model,
        plan: Plan,
        gates: Sequence[Gate],
        registry: Registry,
        target: Target,
        feeds: Iterable[Feeds] | None,
    ) -> ManagerResult:
        request = self.request
        calibration = make_calibration(request, model, feeds)
        measurements = make_measurements(request, target, feeds)
        self.stack.callback(measurements.close)
        manager = self._manager(registry, target, calibration, measurements)
        try:
            return manager.run(
                model,
                plan,
                gates=gates,
                on_error=request.on_error,
                keep_input=not isinstance(request.model, Path),
                verified=isinstance(request.model, Path),  # load has just verified what it read
                reload=self._reload,
                reproducer=request.reproducer,
            )
        finally:
            note(self.record, calibration, measurements)

    def _manager(
        self, registry: Registry, target: Target, calibration: Calibration, measurements: Measurements
    ) -> Manager:
        from graphopt.pipeline.isolate import Isolation
        from graphopt.pipeline.manager import Manager

        request = self.request
        isolation = None
        if request.isolate:
            self.scratch = Path(tempfile.mkdtemp(prefix="graphopt-isolated-"))
            isolation = Isolation(self.scratch)
        return Manager(
            registry,
            target=target,
            dims=request.dims,
            seed=request.seed,
            instruments=(self.watch, *request.instruments),
            progress=self.watch.progress,
            isolation=isolation,
            calibration=calibration,
            measurements=measurements,
        )

    def _finish(
        self,
        result: ManagerResult,
        plan: Plan,
        gates: Sequence[Gate],
        feeds: Iterable[Feeds] | None,
        registry: Registry,
        target: Target,
    ) -> None:
        """Write and validate; the result replaces what was there only if it holds."""
        from graphopt.ir.emit import DEFAULT_EXTERNAL, save

        request, record, model = self.request, self.record, result.model
        assert model is not None
        if not result.changed:
            record.status = "unchanged"
        wanted = request.validate
        if wanted is None:
            # What no step changed is written as it was read: there is nothing to compare.
            wanted = result.changed and request.out is not None

        lossy = _lossy_steps(result, plan)
        if wanted and lossy:
            record.warnings.append(
                f"{', '.join(lossy)} changed on purpose what the model computes: the SQNR is reported,"
                " not judged; a gate holds it to a limit"
            )

        def check(written: Path) -> None:
            if wanted:
                self._validate(written, feeds, plan, gates, registry, target, lossy=bool(lossy))

        if request.out is None:
            if wanted:
                with tempfile.TemporaryDirectory() as scratch:
                    written = Path(scratch) / "model.onnx"
                    save(model, written)
                    check(written)
            record.output = facts.facts_in_memory(model, request.dims)
            return
        self.watch.stage("writing the model")
        external = request.external or DEFAULT_EXTERNAL
        self.outcome.files = save(model, request.out, external=external, check=check)
        record.output = facts.model_facts(model, request.out, self.outcome.files, request.dims)

    def _validate(
        self,
        written: Path,
        feeds: Iterable[Feeds] | None,
        plan: Plan,
        gates: Sequence[Gate],
        registry: Registry,
        target: Target,
        *,
        lossy: bool,
    ) -> None:
        original = self._original_file()
        is_random = feeds is None
        if feeds is None:
            feeds, warnings = self._open_feeds(self._reload(), registry)
            self.record.warnings += warnings
        records: list[ValidationRecord] = []
        try:
            for provider in self.record.providers:
                validation = self._compare(original, written, feeds, provider, lossy=lossy)
                if validation is None:
                    continue
                records.append(validation)
                if not validation.passed:
                    raise GateFailed(
                        f"the result differs from the original: {'; '.join(validation.problems)}",
                        where=f"validation on {provider}",
                        hint="Nothing was written. Narrow the pipeline down, or give real inputs with --data."
                        if is_random
                        else "Nothing was written. Narrow the pipeline down, step by step.",
                    )
        except GraphoptError as error:
            self._leave_reproducer(error, plan, gates, target)
            if self.outcome.reproducer is not None:
                add_hint(error, f"`graphopt replay {self.outcome.reproducer}` repeats it.")
            raise
        finally:
            if records:
                self.record.validation = next((each for each in records if not each.passed), records[0])
            if len(records) > 1:
                self.record.extra["validations"] = {each.provider: each.model_dump() for each in records}

    def _compare(
        self, original: Path, written: Path, feeds: Iterable[Feeds], provider: str, *, lossy: bool
    ) -> ValidationRecord | None:
        """Compare on one provider; None, with a warning, where the original itself cannot be run.

        Behind a lossy step the numbers are held to no limit, but the outputs must still be sound.
        A child that crashes or runs out of time is an error of its own, whichever model it was at.
        """
        self.watch.stage(f"validating on {provider}")
        try:
            record, warnings = compare_files(
                original,
                written,
                feeds,
                provider=provider,
                dims=self.request.dims,
                min_sqnr_db=-math.inf if lossy else None,
                max_abs=math.inf if lossy else None,
                on_progress=self.watch.progress,
            )
        except (ProviderError, DataError, InvalidModelError) as error:
            blame = why_not_executable(original, feeds, provider=provider, dims=self.request.dims)
            if blame is None:
                raise GateFailed(
                    f"the original runs, the result does not: {error.message}",
                    where=f"validation on {provider}",
                    hint=error.hint,
                ) from error
            if isinstance(blame, DataError) and self.request.data is not None:
                raise blame from error
            self.record.warnings.append(
                f"the result is not validated on {provider}, because the original cannot be run: {blame}"
            )
            return None
        self.record.warnings += (each for each in warnings if each not in self.record.warnings)
        return record

    def _original_file(self) -> Path:
        from graphopt.ir.emit import save

        model = self.request.model
        if isinstance(model, Path):
            return model
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        save(model, folder / "original.onnx")
        return folder / "original.onnx"

    def _leave_reproducer(
        self, error: GraphoptError, plan: Plan, gates: Sequence[Gate], target: Target
    ) -> None:
        from graphopt.pipeline.reproducer import write_reproducer

        request = self.request
        if request.reproducer is None or self.outcome.reproducer is not None:
            return
        try:
            self.outcome.reproducer = write_reproducer(
                request.reproducer,
                model=self._reload(),
                steps=plan.steps,
                gates=gates,
                error=error,
                settings={
                    "target": target.name,
                    "dims": dict(request.dims),
                    "seed": request.seed,
                    "on_error": request.on_error,
                    "isolate": request.isolate,
                },
                local_plugins=request.local_plugins,
            )
        except (GraphoptError, OSError) as problem:
            self.record.warnings.append(f"no reproducer could be written: {problem}")


def _lossy_steps(result: ManagerResult, plan: Plan) -> tuple[str, ...]:
    """Return the names of passes that changed the function of the model on purpose, each once."""
    committed = {record.index for record in result.steps if record.status == "committed"}
    names = [step.name for step in plan.steps if step.index in committed and step.pass_.info.lossy]
    return tuple(dict.fromkeys(names))


def _check_settings(request: RunRequest) -> None:
    """Refuse what the command line refuses before there is a request."""
    if request.on_error not in get_args(OnError):
        raise OptionError(
            f"expected one of {', '.join(get_args(OnError))}, got {request.on_error!r}", where="on_error"
        )
    if request.seed < 0:
        raise OptionError(f"expected a number from 0, got {request.seed}", where="seed")


def _steps_of(pipeline: Pipeline) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    if isinstance(pipeline, str):
        return parse(pipeline), ()
    if isinstance(pipeline, Recipe):
        return pipeline.steps, pipeline.gates
    return tuple(pipeline), ()
