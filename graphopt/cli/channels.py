"""``graphopt channels``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli.inputs import open_registry
from graphopt.cli.options import (
    DebugOption,
    DimOption,
    JsonOption,
    LocalPluginsOption,
    ModelArgument,
    parse_dims,
)
from graphopt.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir import Model


def register(app: typer.Typer) -> None:
    """Add the command of this module to *app*."""
    app.command("channels")(channels)


def channels(
    model: ModelArgument,
    *,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Write a plan.toml that keeps everything, to edit."),
    ] = None,
    dot: Annotated[
        Path | None, typer.Option("--dot", metavar="FILE", help="Write the graph of families for Graphviz.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write the graph of families as a picture.")
    ] = None,
    dim: DimOption = None,
    local_plugins: LocalPluginsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show which channels, heads and hidden units of MODEL can go, what they cost, and what is locked."""
    from graphopt.ir import load
    from graphopt.ir.textfiles import write_whole
    from graphopt.report.channels import channel_graph, channels_page, to_dot, to_svg

    del debug
    output = Output(json=json)
    registry = open_registry(local_plugins, output)
    loaded = load(model)
    found = _listed(loaded, parse_dims(dim), registry.channel_rules)
    document = {"schema": 1, "command": "channels", "path": str(model), **found}
    if out is not None:
        from graphopt.passes.pruning.plans import write_plan

        write_plan(out, loaded, found["families"])
    if dot is not None:
        write_whole(dot, to_dot(channel_graph(document)))
    if svg is not None:
        write_whole(svg, to_svg(channel_graph(document)))
    if output.json:
        output.document(document)
    else:
        output.show(channels_page(document))
        if written := [str(each) for each in (out, dot, svg) if each is not None]:
            output.show(f"\nwritten: {', '.join(written)}")
    return 0


def _listed(model: Model, dims: Mapping[str, int], rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return families and locks ready for JSON."""
    from graphopt.ir.cost import measure_cost
    from graphopt.passes.pruning.anatomy import examine
    from graphopt.runtime.feeds import check_dims, input_specs

    check_dims(input_specs(model), dims)
    cost = measure_cost(model, dims)
    anatomy = examine(model, dims=dims, rules=rules)
    return {
        "macs": cost.known_macs,
        "parameters": cost.parameters,
        "families": anatomy.listing(cost.known_macs, cost.parameters),
        "locks": [
            {
                "where": lock.where,
                "reason": lock.reason,
                "members": [
                    {"initializer": name, "axis": axis, "indices": count}
                    for name, axis, count in lock.members
                ],
            }
            for lock in anatomy.locks
        ],
    }
