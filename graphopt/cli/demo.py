"""``graphopt demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli.options import DebugOption, JsonOption
from graphopt.cli.output import Output

if TYPE_CHECKING:
    from graphopt.demo import DemoResult


def register(app: typer.Typer) -> None:
    """Add the command of this module to *app*."""
    app.command("demo")(demo)


def demo(
    *,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="Keep the resulting model there."),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Run the main job on the embedded model: accuracy, size and latency before and after."""
    from graphopt.demo import run_demo

    del debug
    output = Output(json=json)
    with output.watching() as watch:
        result = run_demo(out=out, watch=watch)
    for warning in result.report.warnings:
        output.warning(warning)
    _show(result, output)
    if output.json:
        output.document(result.report)
    return 0


def _show(result: DemoResult, output: Output) -> None:
    from rich.text import Text

    from graphopt.report.console import steps_summary, table, validation_summary
    from graphopt.report.units import format_bytes, format_change, format_seconds

    before, after = result.before, result.after
    output.show(Text(f"{result.title}\n", style="bold"))
    output.show(
        table(
            ("", "before", "after", "change"),
            [
                (
                    f"accuracy on {result.evaluation_images} images",
                    f"{before.accuracy:.2%}",
                    f"{after.accuracy:.2%}",
                    f"{100 * (after.accuracy - before.accuracy):+.2f} points",
                ),
                (
                    "size",
                    format_bytes(before.bytes),
                    format_bytes(after.bytes),
                    format_change(before.bytes, after.bytes),
                ),
                (
                    "latency",
                    format_seconds(before.latency_s),
                    format_seconds(after.latency_s),
                    f"{1 / result.latency_ratio:.2f}x speed (noise {abs(result.noise_ratio - 1):.1%})",
                ),
                ("nodes", str(before.nodes), str(after.nodes), format_change(before.nodes, after.nodes)),
            ],
            right=(1, 2),
        )
    )
    output.show(Text(f"\npipeline: {result.report.pipeline}\n", style="dim"))
    output.show(steps_summary(result.report.steps))
    if result.report.validation is not None:
        output.show(Text())
        output.show(validation_summary(result.report.validation))
    if result.files:
        output.show(f"\nwritten: {', '.join(str(file) for file in result.files)}")
    output.show(f"\nYour own model: {own_model_command(result.report.pipeline)}")


def own_model_command(pipeline: str) -> str:
    """What does to a model of the reader's what the demo did: with data, and measured before it is kept."""
    pipeline = pipeline.replace("{measure=off}", "")
    return f'graphopt run model.onnx -o out.onnx --data feeds.npz --pipeline "{pipeline}"'
