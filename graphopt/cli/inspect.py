"""``graphopt inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt.cli.options import DebugOption, DimOption, JsonOption, ModelArgument, parse_dims
from graphopt.cli.output import Output


def register(app: typer.Typer) -> None:
    """Add the command of this module to *app*."""
    app.command("inspect")(inspect)


def inspect(
    model: ModelArgument,
    *,
    dim: DimOption = None,
    text: Annotated[
        bool, typer.Option("--text", help="Print the whole graph in its stable text form instead.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show what MODEL is made of: parameters, MACs, bytes, versions, free dims, quantised parts."""
    from graphopt.ir import load, to_text
    from graphopt.pipeline import facts
    from graphopt.report.console import inspection
    from graphopt.report.inspection import inspect_model

    del debug
    output = Output(json=json)
    dims = parse_dims(dim)
    loaded = load(model)
    found = inspect_model(loaded, dims)
    file = facts.model_facts(loaded, model, facts.source_files(loaded), dims)
    if output.json:
        document = {
            "schema": 1,
            "command": "inspect",
            "path": file.path,
            "sha256": file.sha256,
            "bytes": file.bytes,
        }
        output.document({**document, **found, **({"text": to_text(loaded)} if text else {})})
    elif text:
        output.show(to_text(loaded).rstrip("\n"))
    else:
        output.show(inspection(file.path, file.bytes, found))
    return 0
