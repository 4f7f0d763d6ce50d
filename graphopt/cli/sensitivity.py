"""``graphopt sensitivity``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli.inputs import open_inputs
from graphopt.cli.options import (
    DebugOption,
    DimOption,
    ImagesOption,
    JsonOption,
    LocalPluginsOption,
    ModelArgument,
    SamplesOption,
    SeedOption,
    preprocess_of,
    statistics_cache,
)
from graphopt.cli.output import Output


def register(app: typer.Typer) -> None:
    """Add the command of this module to *app*."""
    app.command("sensitivity")(sensitivity)


def sensitivity(
    model: ModelArgument,
    *,
    data: Annotated[str, typer.Option("--data", metavar="SRC", help="Inputs, as run takes them.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where to write the plan.toml.")],
    samples: SamplesOption = None,
    recipe: ImagesOption = None,
    target: Annotated[str, typer.Option("--target", metavar="NAME", help="What to compile for.")] = "ort-cpu",
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Whether to measure what each node saves.")
    ] = True,
    dim: DimOption = None,
    seed: SeedOption = 0,
    local_plugins: LocalPluginsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Rank MODEL's nodes by the error and time that quantising each means, as a plan for insert-qdq."""
    from graphopt.calibrate.calibration import Calibration
    from graphopt.passes.insert_qdq import InsertQdq
    from graphopt.pipeline import sensitivity as ranking
    from graphopt.pipeline.manager import Manager
    from graphopt.runtime.measurements import Measurements

    del debug
    output = Output(json=json)
    opened = open_inputs(
        output,
        model,
        data,
        target=target,
        dim=dim,
        samples=samples,
        seed=seed,
        local_plugins=local_plugins,
        preprocess=preprocess_of(recipe),
    )
    loaded, feeds, dims = opened.model, opened.feeds, opened.dims
    measurements = Measurements(opened.target.provider, feeds=feeds, dims=dims, seed=seed)
    with output.watching() as watch:
        watch.stage("quantising node by node")
        manager = Manager(
            opened.registry,
            target=opened.target,
            dims=dims,
            seed=seed,
            calibration=Calibration(feeds, cache=statistics_cache(), seed=seed),
            measurements=measurements,
        )
        context = manager.context()
        context.bind(loaded)
        try:
            rows, skipped = ranking.rank(
                loaded, InsertQdq.Options(), context, feeds, timed=timed, progress=watch.progress
            )
        finally:
            measurements.close()
    ranking.write_plan(out, loaded, rows)
    if output.json:
        output.document(
            {
                "schema": 1,
                "command": "sensitivity",
                "path": str(out),
                "nodes": [_row(row) for row in rows],
                "skipped": [{"where": where, "reason": reason} for where, reason in skipped],
            }
        )
        return 0
    output.show(f"{'SQNR alone':>10}  {'time without':>12}  node")
    for row in rows:
        error = "exact" if math.isinf(row.sqnr_db) else f"{row.sqnr_db:.1f} dB"
        ratio = "-" if row.time_ratio is None else f"{row.time_ratio:.2f}x"
        output.show(f"{error:>10}  {ratio:>12}  {row.node}{'' if row.quantise else '  (planned float)'}")
    output.show(f"\nwritten: {out}; {len(skipped)} nodes stay float anyway")
    return 0


def _row(row: Any) -> dict[str, Any]:  # noqa: ANN401 - a NodeSensitivity
    return {
        "node": row.node,
        "sqnr_db": None if math.isinf(row.sqnr_db) else row.sqnr_db,
        "time_ratio": row.time_ratio,
        "noise": row.noise,
        "quantise": row.quantise,
    }
