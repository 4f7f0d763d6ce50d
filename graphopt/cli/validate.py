"""``graphopt validate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli.options import (
    DataOption,
    DebugOption,
    DimOption,
    ImagesOption,
    JsonOption,
    LocalPluginsOption,
    ProviderOption,
    SamplesOption,
    SeedOption,
    parse_dims,
    parse_limit,
    preprocess_of,
)
from graphopt.cli.output import Output
from graphopt.errors import GateFailed, GraphoptError, ProviderError
from graphopt.pipeline import facts
from graphopt.pipeline.run import settle
from graphopt.record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.record import ValidationRecord


def register(app: typer.Typer) -> None:
    """Add the command of this module to *app*."""
    app.command("validate")(validate)


def validate(
    original: Annotated[
        Path,
        typer.Argument(metavar="ORIGINAL", show_default=False, help="The model to hold the other against."),
    ],
    optimized: Annotated[
        Path, typer.Argument(metavar="OPTIMIZED", show_default=False, help="The model to judge.")
    ],
    *,
    data: DataOption = None,
    samples: SamplesOption = None,
    recipe: ImagesOption = None,
    ep: ProviderOption = None,
    dim: DimOption = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            "--min-sqnr", metavar="DB", help="Lowest signal-to-noise ratio of an output, in dB (else 30)."
        ),
    ] = None,
    max_abs: Annotated[
        float | None,
        typer.Option("--max-abs", metavar="X", min=0, help="Largest absolute difference of an output."),
    ] = None,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option("--max-latency-ratio", metavar="R", help="Largest time after / time before."),
    ] = None,
    seed: SeedOption = 0,
    local_plugins: LocalPluginsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Run ORIGINAL and OPTIMIZED on the same inputs and compare what they return."""
    from graphopt.runtime.providers import installation_warnings

    output = Output(json=json)
    record = RunRecord(command="validate", versions=facts.versions(), seed=seed)
    problem: GraphoptError | None = None
    try:
        records = _validate(
            record, output, original, optimized, data, samples, tuple(ep or ()), parse_dims(dim),
            _limits(min_sqnr, max_abs, max_latency_ratio), local_plugins, preprocess_of(recipe),
        )  # fmt: skip
        problem = _verdict(records)
    except GraphoptError as error:
        problem = error
    if isinstance(problem, ProviderError):
        record.warnings += installation_warnings()
    settle(record, problem)
    for warning in record.warnings:
        output.warning(warning)
    if output.json:
        output.document(record)
    if problem is not None:
        output.error(problem, traceback=debug)
    return record.exit_code


def _validate(
    record: RunRecord,
    output: Output,
    original: Path,
    optimized: Path,
    data: str | None,
    samples: int | None,
    providers: tuple[str, ...],
    dims: dict[str, int],
    limits: tuple[float | None, float | None, float | None],
    local_plugins: Path | None,
    preprocess: Mapping[str, Any] | None,
) -> list[ValidationRecord]:
    from graphopt.ir import load
    from graphopt.pipeline.plugins import load_plugins
    from graphopt.pipeline.validation import choose_providers, compare_files, open_feeds
    from graphopt.report.console import latency_line, validation_summary

    registry = load_plugins(local_plugins)
    record.warnings += registry.warnings
    names, _ = choose_providers(providers, None)
    record.providers = list(names)
    before, after = load(original), load(optimized)
    record.input = facts.model_facts(before, original, facts.source_files(before), dims)
    record.output = facts.model_facts(after, optimized, facts.source_files(after), dims)
    feeds, warnings = open_feeds(
        before, data, samples=samples, seed=record.seed, dims=dims, registry=registry, preprocess=preprocess
    )
    record.warnings += warnings
    records = []
    with output.watching() as watch:
        for name in names:
            watch.stage(f"comparing on {name}")
            validation, remarks = compare_files(
                original, optimized, feeds, provider=name, dims=dims, min_sqnr_db=limits[0],
                max_abs=limits[1], max_latency_ratio=limits[2], on_progress=watch.progress,
            )  # fmt: skip
            record.warnings += (each for each in remarks if each not in record.warnings)
            records.append(validation)
    record.validation = next((each for each in records if not each.passed), records[0])
    if len(records) > 1:
        record.extra["validations"] = {each.provider: each.model_dump() for each in records}
    for validation in records:
        output.show(validation_summary(validation, levels=True))
        if (line := latency_line(validation)) is not None:
            output.show(line)
    return records


def _limits(
    min_sqnr: float | None, max_abs: float | None, max_latency_ratio: float | None
) -> tuple[float | None, float | None, float | None]:
    return (
        parse_limit("--min-sqnr", min_sqnr),
        parse_limit("--max-abs", max_abs),
        parse_limit("--max-latency-ratio", max_latency_ratio),
    )


def _verdict(records: list[ValidationRecord]) -> GateFailed | None:
    for validation in records:
        if not validation.passed:
            return GateFailed(
                f"the models differ: {'; '.join(validation.problems)}",
                where=f"validation on {validation.provider}",
            )
    return None
