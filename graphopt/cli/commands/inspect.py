"""``graphopt inspect``: what a model is made of."""

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import AsJson, Debug, Dims, parse_dims
from graphopt.cli.session import Session


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    text: Annotated[
        bool, typer.Option("--text", help="Print the graph itself, one node a line, instead of the facts.")
    ] = False,
    dim: Dims = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show sizes, costs, versions, inputs and outputs, and what is quantised already."""
    with Session("inspect", as_json=as_json, debug=debug) as session:
        from graphopt.ir import load, to_text
        from graphopt.pipeline.facts import model_facts, source_files
        from graphopt.report.console import inspection
        from graphopt.report.inspection import inspect_model

        dims = parse_dims(dim)
        path = Path(model)
        loaded = load(path)
        session.record.input = facts = model_facts(loaded, path, source_files(loaded), dims)
        session.record.extra["model"] = details = inspect_model(loaded, dims)
        if text:
            session.record.extra["text"] = to_text(loaded)
            session.show_text(to_text(loaded))
        else:
            session.show(inspection(str(path), facts.bytes, details))
