"""``graphopt validate``: two models over the same feeds, on real execution providers."""

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.options import AsJson, Data, Debug, Dims, Providers, ReportFolder, Samples, Seed, parse_dims
from graphopt.cli.session import Session
from graphopt.errors import GateFailed

_TARGET = "ort-cpu"


def validate(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model to hold the other against.")],
    optimized: Annotated[str, typer.Argument(metavar="OPTIMIZED", help="The model to judge.")],
    data: Data = None,
    samples: Samples = None,
    ep: Providers = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            "--min-sqnr",
            metavar="DB",
            help="Lowest SQNR of every output in dB; 30 where neither this nor --max-abs is given.",
        ),
    ] = None,
    max_abs: Annotated[
        float | None,
        typer.Option("--max-abs", metavar="X", help="Largest absolute difference of every output."),
    ] = None,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option("--max-latency-ratio", metavar="R", help="Largest time after / time before."),
    ] = None,
    dim: Dims = None,
    seed: Seed = 0,
    report: ReportFolder = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare the outputs and the speed of OPTIMIZED with those of ORIGINAL."""
    with Session("validate", as_json=as_json, debug=debug, report=report) as session:
        from graphopt.cli.progress import watching
        from graphopt.ir import load
        from graphopt.pipeline.facts import model_facts, source_files
        from graphopt.pipeline.plugins import load_plugins
        from graphopt.pipeline.validation import choose_providers, compare_files, open_feeds
        from graphopt.report.console import latency_line, placement_line, validation_summary
        from graphopt.targets import load_target

        record = session.record
        record.target, record.seed = _TARGET, seed
        dims = parse_dims(dim)
        session.registry = registry = load_plugins()
        record.warnings += registry.warnings
        providers, warnings = choose_providers(ep or (), load_target(_TARGET, dict(registry.targets)))
        record.providers = list(providers)
        record.warnings += warnings
        before = Path(original)
        after = Path(optimized)
        with watching(session.err) as watch:
            watch.stage("reading the models")
            model = load(before)
            record.input = model_facts(model, before, source_files(model), dims)
            other = load(after)
            record.output = model_facts(other, after, source_files(other), dims)
            feeds, warnings = open_feeds(
                model, data, samples=samples, seed=seed, dims=dims, registry=registry
            )
            record.warnings += warnings
            done = []
            for provider in providers:
                watch.stage(f"comparing on {provider}")
                comparison, warnings = compare_files(
                    before,
                    after,
                    feeds,
                    provider=provider,
                    dims=dims,
                    min_sqnr_db=min_sqnr,
                    max_abs=max_abs,
                    max_latency_ratio=max_latency_ratio,
                    on_progress=watch.progress,
                    on_stage=watch.stage,
                )
                done.append(comparison)
                record.warnings += (each for each in warnings if each not in record.warnings)
        record.validation = next((each for each in done if not each.passed), done[0])
        if len(done) > 1:
            record.extra["validations"] = {each.provider: each.model_dump() for each in done}
        for each in done:
            session.show(validation_summary(each, levels=True))
            session.show(*filter(None, (placement_line(each), latency_line(each))))
        problems = [
            f"{problem} (on {each.provider})" if len(done) > 1 else problem
            for each in done
            for problem in each.problems
        ]
        if not all(each.passed for each in done):
            raise GateFailed(f"the models differ: {'; '.join(problems)}", where=optimized)
