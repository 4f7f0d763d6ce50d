"""``graphopt calibrate``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.inputs import open_inputs
from graphopt.cli.options import (
    DebugOption,
    DimOption,
    JsonOption,
    LocalPluginsOption,
    ModelArgument,
    SamplesOption,
    SeedOption,
)
from graphopt.cli.output import Output
from graphopt.errors import OptionError


def register(app: typer.Typer) -> None:
    """Add the command of this module to *app*."""
    app.command("calibrate")(calibrate)


def calibrate(
    model: ModelArgument,
    *,
    data: Annotated[str, typer.Option("--data", metavar="SRC", help="Inputs, as run takes them.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where to write the statistics.")],
    samples: SamplesOption = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline", metavar="TEXT", help="Collect what its passes want; else the ranges of all values."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", help="A recipe (TOML) instead of --pipeline; prepares images too."
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", metavar="FILE", help="Add the statistics of another shard. Repeatable."),
    ] = None,
    target: Annotated[str, typer.Option("--target", metavar="NAME", help="What to compile for.")] = "ort-cpu",
    dim: DimOption = None,
    seed: SeedOption = 0,
    local_plugins: LocalPluginsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Collect statistics of MODEL's values on data, in one pass and little memory, and write them to FILE."""
    from graphopt.pipeline import calibrating
    from graphopt.pipeline.recipe import read_recipe

    del debug
    output = Output(json=json)
    if pipeline is not None and recipe is not None:
        raise OptionError("expected one of --pipeline and --recipe, got both")
    said = None if recipe is None else read_recipe(recipe)
    opened = open_inputs(
        output,
        model,
        data,
        target=target,
        dim=dim,
        samples=samples,
        seed=seed,
        local_plugins=local_plugins,
        preprocess=None if said is None else said.preprocess,
    )
    loaded = opened.model
    steps = pipeline if said is None else said.steps or None
    if steps is None:
        wanted = calibrating.everything(loaded)
    else:
        wanted = calibrating.for_pipeline(
            loaded, steps, opened.registry, opened.target, dims=opened.dims, seed=seed
        )
    if wanted.absent:
        output.warning(
            f"{len(wanted.absent)} values that the pipeline wants only exist behind its steps, for example "
            f"{wanted.absent[0]!r}: calibrate the model as it is there"
        )
    start = time.perf_counter()
    with output.watching() as watch:
        watch.stage("running the data")
        found = calibrating.calibrate(
            loaded, opened.feeds, wanted, out, merge=tuple(merge or ()), seed=seed, progress=watch.progress
        )
    seconds = time.perf_counter() - start
    skipped = sorted(found.skipped.items())
    if output.json:
        output.document(
            {
                "schema": 1,
                "command": "calibrate",
                "path": str(out),
                "bytes": out.stat().st_size,
                "model": found.model,
                "data": found.data,
                "feeds": found.feeds,
                "ranges": len(found.ranges),
                "channels": len(found.channels),
                "grams": len(found.grams),
                "skipped": [{"where": name, "reason": reason} for name, reason in skipped],
                "seconds": seconds,
                "warnings": list(opened.warnings),
            }
        )
        return 0
    output.show(
        f"{found.held.described()} over {found.feeds} feeds in {seconds:.1f} s"
        f"\nwritten: {out} ({out.stat().st_size / 1024:.0f} KiB)"
    )
    for name, reason in skipped[:10]:
        output.show(f"skipped {name}: {reason}")
    if len(skipped) > 10:
        output.show(f"and {len(skipped) - 10} more")
    return 0
