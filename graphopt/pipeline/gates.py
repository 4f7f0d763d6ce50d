"""The built-in gates: numbers, file size and latency, each against the model that the run began with.

Everything that executes a model does so in a child process (graphopt.runtime).
"""

from __future__ import annotations

import math
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from graphopt.api import Gate, GateResult, PassOptions
from graphopt.errors import DataError, GateFailed, InvalidModelError, ProviderError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.runtime.session import Feeds
    from graphopt.runtime.validate import Validation

# What validation asks for where no threshold is given (interfaces.md, command line).
_DEFAULT_SQNR_DB = 30.0


class NumericGate(Gate):
    """Outputs must stay close to the original's, with and without the runtime's own optimizer."""

    name: ClassVar[str] = "numeric"
    summary: ClassVar[str] = "refuse a step whose outputs differ too much from the original's"

    class Options(PassOptions):
        """Without a limit, the SQNR must reach 30 dB."""

        min_sqnr_db: float | None = Field(
            default=None, description="lowest signal-to-noise ratio of any output, in dB"
        )
        max_abs: float | None = Field(
            default=None, ge=0, description="largest absolute difference of any output"
        )
        feeds: int = Field(
            default=4, ge=1, description="number of feeds: random ones, or the first of the data"
        )
        data: str | None = Field(
            default=None, description="where feeds come from, as --data takes it; none for random"
        )

    options: Options

    def check(self, original: Model, candidate: Model, context: Context) -> tuple[GateResult, ...]:
        """Return the worst number over all outputs, feeds and levels of the runtime's optimizer.

        Raises:
            GateFailed: The runtime takes the original and refuses the other.
            DataError: The data cannot be read or does not fit.
            ProviderError: The runtime refuses the original.
            WorkerError: The runtime crashed.
        """
        from graphopt.runtime.validate import validate_models

        options = self.options
        feeds = _feeds(original, context, options.feeds, options.data)
        with (
            _as_files(original, candidate) as (before, after),
            _blamed(before, feeds, context),
        ):
            validation = validate_models(
                before,
                after,
                feeds,
                provider=provider_of(context),
                min_sqnr_db=options.min_sqnr_db,
                max_abs=options.max_abs,
                measure_latency=False,
                dims=context.dims,
            )
        return _numeric_results(validation, options.min_sqnr_db, options.max_abs)


class SizeGate(Gate):
    """The model's files must not grow beyond a ratio."""

    name: ClassVar[str] = "size"
    summary: ClassVar[str] = "refuse a step that makes the files too large"

    class Options(PassOptions):
        """One limit."""

        max_ratio: float = Field(
            default=1.0, gt=0, description="bytes of model and external data, after / before"
        )

    options: Options

    def check(self, original: Model, candidate: Model, context: Context) -> tuple[GateResult, ...]:
        """Return the ratio of the bytes that the two models take as files, external data included."""
        del context
        with _as_files(original, candidate) as (before, after):
            sizes = [sum(file.stat().st_size for file in path.parent.iterdir()) for path in (before, after)]
        ratio, limit = sizes[1] / sizes[0], self.options.max_ratio
        note = f"{sizes[0]} bytes became {sizes[1]}"
        return (GateResult("max_size_ratio", ratio, limit, passed=ratio <= limit, note=note),)


class LatencyGate(Gate):
    """One inference must not take longer than a ratio of the original's time."""

    name: ClassVar[str] = "latency"
    summary: ClassVar[str] = "refuse a step that makes the model too slow"

    class Options(PassOptions):
        """One limit."""

        max_ratio: float = Field(default=1.0, gt=0, description="time of one inference, after / before")
        data: str | None = Field(
            default=None, description="where the feed comes from, as --data takes it; none for random"
        )

    options: Options

    def check(self, original: Model, candidate: Model, context: Context) -> tuple[GateResult, ...]:
        """Return the measured ratio; an A/A pair beside it tells in the note how far it can be trusted.

        Raises:
            GateFailed: The runtime takes the original and refuses the other.
            DataError: The data cannot be read or does not fit.
            ProviderError: The runtime refuses the original.
            WorkerError: The runtime crashed.
        """
        from graphopt.runtime.latency import measure_latency

        feed = next(iter(_feeds(original, context, 1, self.options.data)))
        with (
            _as_files(original, candidate) as (before, after),
            _blamed(before, [feed], context),
        ):
            latency = measure_latency(before, after, feed, provider_of(context))
        limit = self.options.max_ratio
        note = f"two sessions of the original differ at worst by a ratio of {latency.noise_ratio:.3f}"
        return (
            GateResult("max_latency_ratio", latency.ratio, limit, passed=latency.ratio <= limit, note=note),
        )


@contextmanager
def _as_files(original: Model, candidate: Model) -> Iterator[tuple[Path, Path]]:
    """Save both models, each into a folder of its own, for as long as the block runs."""
    from graphopt.ir.emit import emit_for_runtime

    with tempfile.TemporaryDirectory(prefix="graphopt-gate-") as name:
        paths = []
        for model, part in ((original, "before"), (candidate, "after")):
            folder = Path(name) / part
            folder.mkdir()
            paths.append(emit_for_runtime(model, folder))
        yield paths[0], paths[1]


@contextmanager
def _blamed(original: Path, feeds: Iterable[Feeds], context: Context) -> Iterator[None]:
    """Make a refusal of what cannot be executed although *original* can."""
    from graphopt.pipeline.validation import why_not_executable

    try:
        yield
    except (ProviderError, DataError, InvalidModelError) as error:
        if why_not_executable(original, feeds, provider=provider_of(context), dims=context.dims) is not None:
            raise
        raise GateFailed(
            f"the original runs, the result does not: {error.message}", hint=error.hint
        ) from error


def provider_of(context: Context) -> str:
    """Return the target's provider where it is installed, else the CPU's."""
    from graphopt.runtime.providers import available

    return context.target.provider if context.target.provider in available() else "cpu"


def _feeds(original: Model, context: Context, count: int, data: str | None) -> Iterable[Feeds]:
    from graphopt.calibrate.sources import SourceRequest, open_source
    from graphopt.runtime.feeds import input_specs
    from graphopt.runtime.opening import fitting_feeds

    if data is None:
        return fitting_feeds(original, count, context.seed, context.dims)

    request = SourceRequest(
        text=data,
        specs=input_specs(original),
        samples=count,
        seed=context.seed,
        dims=context.dims,
        base_dir=Path.cwd(),
    )
    source = open_source(request)
    if not len(source):
        raise DataError("the data holds no feed", where=data)
    return source


def _numeric_results(
    validation: Validation, min_sqnr_db: float | None, max_abs: float | None
) -> tuple[GateResult, ...]:
    compared = [each.comparison for outputs in validation.levels.values() for each in outputs]
    if min_sqnr_db is None and max_abs is None:
        min_sqnr_db = _DEFAULT_SQNR_DB
    results = []
    if min_sqnr_db is not None:
        worst = min((c.sqnr_db for c in compared if c.sqnr_db is not None), default=math.inf)
        results.append(_result("min_sqnr_db", worst, min_sqnr_db, passed=worst >= min_sqnr_db))
    if max_abs is not None:
        largest = max((c.max_abs for c in compared if c.max_abs is not None), default=0.0)
        results.append(_result("max_abs", largest, max_abs, passed=largest <= max_abs))
    if not validation.passed:
        results = _with_problems(results, validation.problems)
    return tuple(results)


def _result(name: str, value: float, limit: float, *, passed: bool) -> GateResult:
    return GateResult(name, value if math.isfinite(value) else None, limit, passed=passed)


def _with_problems(results: Sequence[GateResult], problems: Sequence[str]) -> list[GateResult]:
    """Add what no single number says: NaN, a changed signature, an output that became constant."""
    if any(not result.passed for result in results):
        return [
            result
            if result.passed
            else GateResult(result.name, result.value, result.limit, passed=False, note=problems[0])
            for result in results
        ]
    return [*results, GateResult("problems", float(len(problems)), 0.0, passed=False, note=problems[0])]
