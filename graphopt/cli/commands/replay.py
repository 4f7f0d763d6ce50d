"""``graphopt replay``: repeat a failed step from the folder that it left behind."""

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.commands.run import carry_out
from graphopt.cli.options import AsJson, Debug, ReportFolder
from graphopt.cli.session import Session


def replay(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A reproducer folder.")],
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="Where to write the result, if wanted.")
    ] = None,
    report: ReportFolder = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Repeat the failed step that DIR holds. It runs scripts and plugins found there: trust its sender."""
    with Session("replay", as_json=as_json, debug=debug, report=report) as session:
        from graphopt.pipeline.plugins import load_plugins
        from graphopt.pipeline.recipe import Recipe
        from graphopt.pipeline.reproducer import read_reproducer
        from graphopt.pipeline.run import RunRequest

        found = read_reproducer(Path(folder))
        session.record.target, session.record.seed = found.target, found.seed
        session.registry = load_plugins(found.local_plugins)
        carry_out(
            session,
            RunRequest(
                model=found.model,
                pipeline=Recipe(found.steps, found.gates),
                out=None if out is None else Path(out),
                target=found.target,
                dims=found.dims,
                seed=found.seed,
                on_error="raise",
                validate=None if out is not None else False,
                isolate=found.isolate,
                local_plugins=found.local_plugins,
                registry=session.registry,
                command="replay",
            ),
        )
