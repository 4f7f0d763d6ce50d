"""``graphopt demo``: the whole way on a model and data that come with the package."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from graphopt.cli.options import AsJson, Debug
from graphopt.cli.session import Session
from graphopt.report.units import format_bytes, format_change, format_seconds

if TYPE_CHECKING:
    from graphopt.demo import DemoResult


def demo(
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="Keep the resulting model there.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the best pipeline over a digit classifier: accuracy, size and latency before and after."""
    with Session("demo", as_json=as_json, debug=debug) as session:
        from dataclasses import asdict

        from graphopt.cli.progress import watching
        from graphopt.demo import run_demo

        with watching(session.err) as watch:
            result = run_demo(out=None if out is None else Path(out), watch=watch)
        session.record = result.report
        session.record.extra["demo"] = {
            "before": asdict(result.before),
            "after": asdict(result.after),
            "evaluation_images": result.evaluation_images,
            "latency_ratio": result.latency_ratio,
            "noise_ratio": result.noise_ratio,
        }
        _show(session, result)


def _show(session: Session, result: "DemoResult") -> None:
    from graphopt.report.console import table

    before, after = result.before, result.after
    correct = [round(row.accuracy * result.evaluation_images) for row in (before, after)]
    rows = [
        (
            "accuracy",
            f"{before.accuracy:.2%}",
            f"{after.accuracy:.2%}",
            "=" if correct[0] == correct[1] else f"{100 * (after.accuracy - before.accuracy):+.2f} points",
        ),
        (
            "size",
            format_bytes(before.bytes),
            format_bytes(after.bytes),
            format_change(before.bytes, after.bytes),
        ),
        ("nodes", str(before.nodes), str(after.nodes), format_change(before.nodes, after.nodes)),
        (
            "latency",
            format_seconds(before.latency_s),
            format_seconds(after.latency_s),
            f"{result.latency_ratio:.2f}x time (noise {abs(result.noise_ratio - 1):.1%})",
        ),
    ]
    session.show(Text(result.title, style="bold"), Text(f"pipeline  {result.pipeline}"), Text())
    session.show(table(("", "before", "after", "change"), rows, right=(1, 2)))
    session.show(
        Text(),
        Text(
            f"Accuracy on {result.evaluation_images} images that neither training nor passes have seen;"
            " latency of one image, one thread.",
            style="dim",
        ),
    )
