"""Validation as a step of a run: feeds found, both models executed, the outcome as a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, OptionError
from graphopt.record import (
    FallbackRecord,
    LatencyRecord,
    LeftoverRecord,
    OutputRecord,
    StructureRecord,
    ValidationRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike

    from graphopt.ir import Model
    from graphopt.pipeline.plugins import Registry
    from graphopt.runtime.session import Feeds
    from graphopt.runtime.validate import JudgedOutput, Validation
    from graphopt.targets import Target

DEFAULT_DATA = "random:4"
"""Feeds of a validation for which no data was given."""

Data = str | Path | Sequence[Mapping[str, Any]]
"""A text as ``--data`` takes it, or feeds: one mapping of input names to arrays each."""


def open_feeds(
    model: Model,
    data: Data | None,
    *,
    samples: int | None = None,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    registry: Registry | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> tuple[Iterable[Feeds], tuple[str, ...]]:
    """Return the feeds that *data* names, checked against the inputs of *model*, and warnings about them.

    Open dims of random feeds are 1, or where the model does not run with that or all its outputs are one
    number, a size with which it does better.

    Raises:
        PathError: The data does not exist.
        DataError: It cannot be read or does not fit.
        OptionError: The number of samples is not positive.
    """
    from graphopt.calibrate.sources import SourceRequest, is_random, open_source
    from graphopt.runtime.feeds import bind_dims, check_dims, check_feeds, input_specs

    specs = input_specs(model)
    dims = dict(dims or {})
    check_dims(specs, dims)
    if data is None or isinstance(data, str | Path):
        text = DEFAULT_DATA if data is None else str(data)
        sizes = _random_sizes(model, dims, seed) if is_random(text) else {}
        request = SourceRequest(
            text=text, specs=specs, samples=samples, seed=seed, dims={**sizes, **dims}, preprocess=preprocess
        )
        extra = () if registry is None else tuple(registry.data_sources.values())
        source = open_source(request, extra)
        return source, (*source.warnings, *_of_sizes(sizes))
    if samples is not None and samples < 1:
        raise OptionError(f"expected at least 1 sample, got {samples}", where="samples")
    feeds = list(data[:samples])
    bound = bind_dims(specs, dims)
    for index, feed in enumerate(feeds):
        check_feeds(feed, bound, where=f"feed {index}")
    return feeds, ()


def _random_sizes(model: Model, dims: Mapping[str, int], seed: int) -> dict[str, int]:
    """Return the sizes that open dims of random feeds need so that *model* runs; none where 1 is as good."""
    from graphopt.runtime.opening import fits_in_memory, fitting_dims

    if not fits_in_memory(model):  # opening it for nothing else than this takes too long
        return {}
    try:
        return {name: size for name, size in fitting_dims(model, dims, seed).items() if size != 1}
    except GraphoptError:
        return {}  # whoever runs it says what is wrong with it


def _of_sizes(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the warning that tells sizes which were made up."""
    if not sizes:
        return ()
    listed = ", ".join(f"{name}={size}" for name, size in sizes.items())
    return (
        f"random inputs are of {listed}, with which the model runs and its outputs vary; --dim sets others",
    )


def choose_providers(names: Sequence[str], target: Target | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the providers to run on by graphopt's names, and warnings about the choice.

    Without *names* it is the target's provider, or the CPU where that is not installed.

    Raises:
        ProviderError: A named provider is not installed.
        OptionError: A name is unknown.
    """
    from graphopt.runtime.providers import available, resolve

    if names:
        return tuple(dict.fromkeys(resolve(name).name for name in names)), ()
    wanted = "cpu" if target is None else target.provider
    if wanted in available():
        return (wanted,), ()
    assert target is not None
    warning = (
        f"the provider {wanted!r} of the target {target.name!r} is not installed here; the result is run on"
        " the CPU provider instead, which says nothing about the target's speed"
    )
    return ("cpu",), (warning,)


def validate(
    original: str | PathLike[str],
    optimized: str | PathLike[str],
    *,
    data: Data | None = None,
    samples: int | None = None,
    provider: str = "cpu",
    min_sqnr_db: float | None = None,
    max_abs: float | None = None,
    max_latency_ratio: float | None = None,
    measure_latency: bool = True,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> ValidationRecord:
    """Run two models on the same feeds and compare them; the verdict is ``passed`` of the result.

    Args:
        original: Path of the model to hold the other against.
        optimized: Path of the model to judge.
        data: Feeds, or where they come from; seeded random ones by default.
        samples: Take the first so many feeds.
        provider: What to run on.
        min_sqnr_db: Lowest SQNR of every output, in dB; 30 where neither this nor *max_abs* is given.
        max_abs: Largest absolute difference of every output.
        max_latency_ratio: Largest time after / time before.
        measure_latency: Whether to measure times.
        dims: Sizes bound to symbolic dims.
        seed: Seed of random feeds.

    Raises:
        PathError: A file is missing.
        InvalidModelError: A file is no valid model.
        DataError: The data does not fit the original.
        ProviderError: The provider is missing or refuses a model.
        WorkerError: The runtime crashed or ran out of time.
    """
    from graphopt.ir import load
    from graphopt.runtime.providers import resolve

    name = resolve(provider).name
    model = load(original)
    feeds, _ = open_feeds(model, data, samples=samples, seed=seed, dims=dims)
    return compare_files(
        Path(original),
        Path(optimized),
        feeds,
        provider=name,
        dims=dims or {},
        min_sqnr_db=min_sqnr_db,
        max_abs=max_abs,
        max_latency_ratio=max_latency_ratio,
        measure_latency=measure_latency,
    )[0]


def compare_files(
    original: Path,
    optimized: Path,
    feeds: Iterable[Feeds],
    *,
    provider: str,
    dims: Mapping[str, int],
    min_sqnr_db: float | None = None,
    max_abs: float | None = None,
    max_latency_ratio: float | None = None,
    measure_latency: bool = True,
    structure: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> tuple[ValidationRecord, tuple[str, ...]]:
    """Return the comparison of two files as a record, and its warnings; arguments as :func:`validate`.

    With *structure*, the record says what the runtime makes of *optimized* where that is quantised.
    """
    from graphopt.runtime.validate import validate_models

    validation = validate_models(
        original,
        optimized,
        feeds,
        provider=provider,
        min_sqnr_db=min_sqnr_db,
        max_abs=max_abs,
        max_latency_ratio=max_latency_ratio,
        measure_latency=measure_latency,
        dims=dims,
        on_progress=on_progress,
        on_stage=on_stage,
    )
    record = _as_record(validation)
    if structure and validation.levels:
        record.structure = structure_record(optimized, provider)
    return record, validation.warnings


def structure_record(model: Path, provider: str) -> StructureRecord | None:
    """Return what the runtime makes of *model* as a record, or None where nothing in it is quantised.

    Raises:
        GraphoptError: As :func:`graphopt.runtime.structure.structure_of`.
    """
    from graphopt.runtime.structure import structure_of

    found = structure_of(model, provider=provider)
    if found is None:
        return None
    return StructureRecord(
        **{key: value for key, value in asdict(found).items() if key not in {"leftovers", "fallen"}},
        integer_kernels=found.integer_kernels,
        dequantize_before_compute=found.dequantize_before_compute,
        fallback=found.fallback,
        leftovers=[LeftoverRecord(**asdict(each)) for each in found.leftovers],
        fallen=[FallbackRecord(**asdict(each)) for each in found.fallen],
    )


def why_not_executable(
    original: Path, feeds: Iterable[Feeds], *, provider: str, dims: Mapping[str, int]
) -> GraphoptError | None:
    """Return why *original* cannot be run here, or None where it can: then the other model is to blame."""
    try:
        compare_files(
            original, original, feeds, provider=provider, dims=dims, measure_latency=False, structure=False
        )
    except GraphoptError as error:
        return error
    return None


def _as_record(validation: Validation) -> ValidationRecord:
    latency = validation.latency
    return ValidationRecord(
        outputs=[_output(judged) for judged in validation.outputs] if validation.levels else [],
        levels={
            level: [_output(judged) for judged in outputs] for level, outputs in validation.levels.items()
        },
        latency=None
        if latency is None
        else LatencyRecord(
            before_s=latency.before_s,
            after_s=latency.after_s,
            ratio=latency.ratio,
            noise_ratio=latency.noise_ratio,
        ),
        placement=dict(validation.placement),
        provider=validation.provider,
        feeds=validation.feeds,
        passed=validation.passed,
        problems=list(validation.problems),
    )


def _output(judged: JudgedOutput) -> OutputRecord:
    numbers = asdict(judged.comparison)
    sqnr = numbers["sqnr_db"]
    return OutputRecord(
        name=numbers["name"],
        max_abs=numbers["max_abs"],
        sqnr_db=None if numbers["exact"] else sqnr,
        cosine=numbers["cosine"],
        max_rel=numbers["max_rel"],
        top1_agreement=numbers["top1_agreement"],
        exact=numbers["exact"],
        passed=judged.passed,
        evidence=numbers["evidence"],
        note=judged.note,
    )
