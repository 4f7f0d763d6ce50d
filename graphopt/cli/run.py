"""``graphopt run`` and ``graphopt replay``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graphopt.cli.options import (
    DataOption,
    DebugOption,
    DimOption,
    JsonOption,
    LocalPluginsOption,
    ModelArgument,
    OutText,
    ProviderOption,
    SamplesOption,
    SeedOption,
    parse_dims,
    parse_out,
    statistics_cache,
)
from graphopt.cli.output import Output, Told
from graphopt.errors import GraphoptError, OptionError, PathError, ProviderError
from graphopt.pipeline.facts import versions
from graphopt.pipeline.request import Outcome, RunRequest
from graphopt.pipeline.run import execute, settle
from graphopt.record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.pipeline.plugins import Registry
    from graphopt.pipeline.recipe import Recipe

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("run")(run)
    app.command("replay")(replay)


def run(
    model: ModelArgument,
    out: Annotated[str, typer.Option("-o", "--out", metavar="OUT", help="Where to write the result.")],
    *,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            metavar="TEXT",
            help='Passes, for example "canonicalize,fold-constants". "" for none.',
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe (TOML) instead of --pipeline.")
    ] = None,
    data: DataOption = None,
    samples: SamplesOption = None,
    statistics: Annotated[
        Path | None,
        typer.Option("--statistics", metavar="FILE", help="Statistics of MODEL, as calibrate writes them."),
    ] = None,
    measurements: Annotated[
        Path | None,
        typer.Option("--measurements", metavar="FILE", help="Take latencies from this report.json."),
    ] = None,
    target: Annotated[str, typer.Option("--target", metavar="NAME", help="What to compile for.")] = "ort-cpu",
    ep: ProviderOption = None,
    dim: DimOption = None,
    seed: SeedOption = 0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write report.json and report.md there.")
    ] = None,
    on_error: Annotated[
        Literal["raise", "rollback", "stop"],
        typer.Option(
            "--on-error",
            help="When a step fails: raise writes nothing, stop keeps the steps before, rollback skips it.",
        ),
    ] = "raise",
    local_plugins: LocalPluginsOption = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Run each pass in a child process, safe from native crashes.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Transform MODEL, validate the result on an execution provider, and write it to OUT."""
    output = Output(json=json)
    folder = _report_folder(report)

    def request() -> RunRequest:
        return RunRequest(
            model=model,
            pipeline=_pipeline(pipeline, recipe),
            out=parse_out(out),
            data=data,
            samples=samples,
            target=target,
            providers=tuple(ep or ()),
            dims=parse_dims(dim),
            seed=seed,
            on_error=on_error,
            isolate=isolate,
            local_plugins=local_plugins,
            statistics=statistics,
            measurements=measurements,
            cache=statistics_cache(),
            reproducer=_reproducer_folder(parse_out(out), folder),
        )

    outcome = Outcome(RunRecord(command="run", versions=versions(), target=target, seed=seed))
    return carry_out(request, outcome, output, folder, debug=debug)


def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A reproducer folder.")],
    *,
    out: OutText = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Repeat the failure that a reproducer folder holds."""
    from graphopt.pipeline.recipe import Recipe
    from graphopt.pipeline.reproducer import read_reproducer

    found = read_reproducer(folder)
    request = RunRequest(
        model=found.model,
        pipeline=Recipe(found.steps, found.gates),
        out=None if out is None else parse_out(out),
        target=found.target,
        dims=found.dims,
        seed=found.seed,
        on_error=_on_error(found.on_error),
        isolate=found.isolate,
        local_plugins=found.local_plugins,
        statistics=found.statistics,
        measurements=found.measurements,
        validate=True,
        command="replay",
    )
    outcome = Outcome(RunRecord(command="replay", versions=versions()))
    return carry_out(lambda: request, outcome, Output(json=json), None, debug=debug)


def carry_out(
    make_request: Callable[[], RunRequest],
    outcome: Outcome,
    output: Output,
    report: Path | None,
    *,
    debug: bool,
) -> int:
    """Execute the request, print and report what happened, and return the exit code.

    Options are judged when the request is made, so that a bad one is in the report like any failure.
    """
    from graphopt.pipeline.plugins import load_plugins
    from graphopt.runtime.providers import installation_warnings

    record = outcome.record
    registry: Registry | None = None
    try:
        request = make_request()
        registry = load_plugins(request.local_plugins)
        with output.watching() as watch:
            execute(replace(request, registry=registry, watch=watch), outcome)
    except GraphoptError as error:
        outcome.error = error
        settle(record, error)
    except KeyboardInterrupt:
        outcome.error = GraphoptError("interrupted; nothing partial is left")
        settle(record, outcome.error)
        record.exit_code = INTERRUPTED
        assert record.error is not None
        record.error.type = "Interrupted"
    if isinstance(outcome.error, ProviderError):
        record.warnings += installation_warnings()
    if report is not None:
        _write_report(outcome, report, registry)
    for warning in record.warnings:
        output.warning(warning)
    if output.json:
        output.document(record)
    else:
        _show(outcome, output, report)
    if outcome.error is not None:
        output.error(outcome.error, traceback=debug and record.exit_code != INTERRUPTED)
    return Told(record.exit_code)


def _show(outcome: Outcome, output: Output, report: Path | None) -> None:
    from graphopt.report.console import run_summary

    if outcome.record.steps or outcome.error is None:
        output.show(run_summary(outcome.record))
    if outcome.files:
        unchanged = " (no pass changed anything)" if outcome.record.status == "unchanged" else ""
        output.show(f"\nwritten: {', '.join(str(file) for file in outcome.files)}{unchanged}")
    elif outcome.error is None:
        output.show("\nit works; nothing was written, for -o was not given")
    if report is not None:
        output.show(f"report: {report}")


def _pipeline(text: str | None, recipe: Path | None) -> str | Recipe:
    from graphopt.pipeline.recipe import read_recipe

    if (text is None) == (recipe is None):
        what = "neither --pipeline nor --recipe" if text is None else "both --pipeline and --recipe"
        raise OptionError(
            f"expected one of --pipeline and --recipe, got {what}",
            hint='--pipeline "" is the empty pipeline: load and save.',
        )
    if recipe is not None:
        return read_recipe(recipe)
    assert text is not None
    return text


def _report_folder(folder: Path | None) -> Path | None:
    """Make the folder of the report before anything runs."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathError(
            f"the folder for the report cannot be made ({error.strerror})", where=str(folder)
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PathError("the folder for the report is not writable", where=str(folder))
    return folder


def _reproducer_folder(out: Path, report: Path | None) -> Path:
    return report / "reproducer" if report is not None else out.parent / f"{out.name}.reproducer"


def _write_report(outcome: Outcome, folder: Path, registry: Registry | None) -> None:
    """Write all reports; a reporter of a plugin that fails is a warning."""
    from graphopt.report import json, markdown, plans

    record: RunRecord = outcome.record
    reporters = {} if registry is None else registry.reporters
    for name in reporters:
        try:
            reporters[name](record, folder)
        except Exception as error:  # noqa: BLE001 - strangers' code
            record.warnings.append(f"reporter {name!r} failed: {type(error).__name__}: {error}")
    try:
        json.write(record, folder)
        markdown.write(record, folder)
        plans.write(record, folder)
    except GraphoptError as error:
        if outcome.error is None:
            outcome.error = error
            settle(record, error)


def _on_error(text: str) -> Literal["raise", "rollback", "stop"]:
    if text == "rollback":
        return "rollback"
    return "stop" if text == "stop" else "raise"
