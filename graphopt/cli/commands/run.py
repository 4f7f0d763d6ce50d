"""``graphopt run``: from file to file, validated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli.options import (
    AsJson,
    Data,
    Debug,
    Dims,
    LocalPlugins,
    OnError,
    Providers,
    ReportFolder,
    Samples,
    Seed,
    Target,
    parse_dims,
)
from graphopt.cli.session import Session
from graphopt.errors import OptionError

if TYPE_CHECKING:
    from graphopt.pipeline.run import Pipeline, RunRequest


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX file to start from.")],
    out: Annotated[
        str,
        typer.Option("-o", "--out", metavar="OUT", help="Where to write; replaced whole or not touched."),
    ],
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            metavar="TEXT",
            help='Passes in order: "fold-constants,upgrade-opset{to=21}". "" loads and saves.',
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE", help="A TOML file with passes and gates, instead of TEXT."),
    ] = None,
    data: Data = None,
    samples: Samples = None,
    target: Target = "ort-cpu",
    ep: Providers = None,
    dim: Dims = None,
    seed: Seed = 0,
    report: ReportFolder = None,
    on_error: Annotated[
        OnError,
        typer.Option(
            "--on-error",
            help="When a step fails: raise writes nothing; rollback goes on without the step; "
            "stop keeps what came before it.",
        ),
    ] = OnError.RAISE,
    local_plugins: LocalPlugins = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Run each pass in a child process, so that a crash is an error.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Transform MODEL by a pipeline, prove that it still computes the same, and write it to OUT."""
    with Session("run", as_json=as_json, debug=debug, report=report) as session:
        from graphopt.pipeline.plugins import load_plugins
        from graphopt.pipeline.run import RunRequest

        session.record.target, session.record.seed = target, seed
        plugins = None if local_plugins is None else Path(local_plugins)
        what = _pipeline(pipeline, recipe)
        dims = parse_dims(dim)
        session.registry = load_plugins(plugins)
        folder = Path(out).with_name(f"{Path(out).name}.reproducer") if session.report is None else None
        carry_out(
            session,
            RunRequest(
                model=Path(model),
                pipeline=what,
                out=Path(out),
                data=data,
                samples=samples,
                target=target,
                providers=tuple(ep or ()),
                dims=dims,
                seed=seed,
                on_error=on_error.value,
                local_plugins=plugins,
                registry=session.registry,
                isolate=isolate,
                reproducer=folder or (session.report or Path()) / "reproducer",
            ),
        )


def carry_out(session: Session, request: "RunRequest") -> None:
    """Carry out *request* and show how it went; the session's record becomes the run's."""
    from dataclasses import replace

    from graphopt.cli.progress import watching
    from graphopt.pipeline.run import Outcome, execute
    from graphopt.report.console import run_headline, run_summary

    outcome = Outcome(session.record)
    with watching(session.err) as watch:
        execute(replace(request, watch=watch), outcome)
    record = outcome.record
    if outcome.reproducer is not None:
        record.extra["reproducer"] = str(outcome.reproducer)
        if record.error is not None:
            again = f"graphopt replay {outcome.reproducer}"
            record.error.hint = f"{record.error.hint} '{again}' repeats it.".strip()
    if outcome.error is not None:
        session.fail(outcome.error)
    if record.input is not None:
        session.show(run_headline(record, request.out), run_summary(record))


def _pipeline(text: str | None, recipe: str | None) -> "Pipeline":
    if text is not None and recipe is not None:
        raise OptionError("--pipeline and --recipe were both given, expected one of them")
    if recipe is not None:
        from graphopt.pipeline.recipe import read_recipe

        return read_recipe(recipe)
    if text is None:
        raise OptionError(
            "expected --pipeline TEXT or --recipe FILE",
            hint="'graphopt passes' lists the passes; --pipeline \"\" loads and saves.",
        )
    return text
