"""Does the optimized model still do what the original does? Run both, compare, time, and say where nodes run.

Everything that executes a model happens in a child process. The optimized model is held against the
original twice: with onnxruntime's own optimizer at work and without, because a rewrite of the runtime can
hide or cause a difference; the report keeps the two apart.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.errors import DataError, GraphoptError, ProviderError
from graphopt.runtime import worker
from graphopt.runtime.child import FeedStream, run_in_child
from graphopt.runtime.compare import Comparator, OutputComparison, judge
from graphopt.runtime.feeds import Dim, InputSpec, bind_dims, free_dims, input_specs, output_specs, symbols
from graphopt.runtime.latency import BUDGET_S, Latency, measure_here
from graphopt.runtime.session import Session, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from graphopt.runtime.session import Feeds, Level, Value

LEVELS: tuple[Level, ...] = ("all", "none")
"""Levels of onnxruntime's optimizer: ORT_ENABLE_ALL, as models are deployed, and ORT_DISABLE_ALL."""

Signature = tuple[tuple[InputSpec, ...], tuple[InputSpec, ...]]
"""What a model declares: its inputs and its outputs."""

TIMEOUT_S = 3600.0
_ROUNDING_DB = 80.0  # float32 rounding in another order leaves more than this
_GAP_DB = 20.0
_KEPT_BYTES = 64 << 20  # of the original's outputs, for the second level
_MOST_NODES = 2000  # nodes listed one by one in a placement; the counts cover all


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a validation holds its numbers against; see :func:`graphopt.runtime.compare.judge`.

    Attributes:
        min_sqnr_db: Lowest SQNR of every output, in dB; 30 where neither this nor *max_abs* is given.
        max_abs: Largest absolute difference of every output.
        max_latency_ratio: Largest time after / time before.
    """

    min_sqnr_db: float | None = None
    max_abs: float | None = None
    max_latency_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class JudgedOutput:
    """One output at one level: its numbers, the verdict, and why."""

    comparison: OutputComparison
    passed: bool
    note: str


@dataclass(frozen=True, slots=True)
class Validation:
    """The original against the optimized model on one provider.

    Attributes:
        provider: graphopt's name of the provider.
        passed: Whether everything held.
        problems: What did not hold, one sentence each, the worst kind first: signatures, outputs, latency.
        levels: The outputs by level of the runtime's optimizer ("all", "none"), in the original's order.
        feeds: Number of feeds.
        latency: Times, where they were measured.
        placement: Of the optimized model at level "all": ``nodes`` {provider: count}, ``ops`` {provider:
            {op_type: count}}, ``assignment`` [{node, op_type, provider}] of the first 2000 nodes.
        warnings: What a reader should know although it is no failure.
    """

    provider: str
    passed: bool
    problems: tuple[str, ...]
    levels: Mapping[str, tuple[JudgedOutput, ...]]
    feeds: int
    latency: Latency | None = None
    placement: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[JudgedOutput, ...]:
        """Each output at its worse level: a failure before a success, then the lower SQNR."""
        by_output = zip(*self.levels.values(), strict=True)
        return tuple(min(each, key=_goodness) for each in by_output)


def validate_models(
    original: Path,
    optimized: Path,
    feeds: Iterable[Feeds],
    *,
    provider: str = "cpu",
    min_sqnr_db: float | None = None,
    max_abs: float | None = None,
    max_latency_ratio: float | None = None,
    measure_latency: bool = True,
    latency_budget_s: float = BUDGET_S,
    dims: Mapping[str, int] | None = None,
    timeout_s: float | None = TIMEOUT_S,
    on_progress: Callable[[int, int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Validation:
    """Compare *optimized* with *original* on *feeds*.

    Without thresholds it fails on NaN and infinity, on changed names, dtypes, ranks or dims, on outputs that
    became constant, and on an SQNR under 30 dB; *min_sqnr_db* and *max_abs* replace the last.

    Args:
        original: The model to hold the other against.
        optimized: The model to judge.
        feeds: At least one feed; they are read once, one at a time.
        provider: What to run both on.
        min_sqnr_db: See :class:`Thresholds`.
        max_abs: See :class:`Thresholds`.
        max_latency_ratio: See :class:`Thresholds`; implies *measure_latency*.
        measure_latency: Whether to measure the time of both models on the first feed.
        latency_budget_s: Seconds of inference to spend on that at most.
        dims: Sizes that the feeds give to free dims; the declared dims are compared under them.
        timeout_s: Seconds after which the child is ended.
        on_progress: Called with (feeds done, feeds).
        on_stage: Called with what is being done.

    Raises:
        DataError: There are no feeds, or the original cannot run on one.
        PathError: A model is missing.
        InvalidModelError: A model breaks a rule of ONNX.
        OptionError: No provider has that name.
        ProviderError: The provider is missing or refuses a model.
        WorkerError: The child crashed or ran out of time; it names the model and the stage.
    """
    # Read here, so that the child need not load what reads graphs: half of its CPU time on a small model.
    stage = on_stage or (lambda _: None)
    signatures = []
    for path in (original, optimized):
        stage(f"reading {path}")
        signatures.append(_signature(path, dims or {}))
    result: Validation = run_in_child(
        "graphopt.runtime.validate:validate_here",
        original,
        optimized,
        *signatures,
        FeedStream(feeds),
        provider,
        Thresholds(min_sqnr_db, max_abs, max_latency_ratio),
        latency_budget_s if measure_latency or max_latency_ratio is not None else None,
        timeout_s=timeout_s,
        where=str(optimized),
        on_progress=on_progress,
        on_stage=on_stage,
    )
    return result


def validate_here(
    original: Path,
    optimized: Path,
    before: Signature,
    after: Signature,
    feeds: Sequence[Feeds],
    provider: str,
    thresholds: Thresholds,
    latency_budget_s: float | None,
) -> Validation:
    """Do what :func:`validate_models` does in this process; *before* and *after* are what the two declare."""
    if not len(feeds):
        raise DataError("there is no feed to compare the models on", hint="Give real inputs with --data")
    problems = _changed(before, after)
    names = [spec.name for spec in before[1]]
    if problems:  # nothing to compare output by output
        return Validation(provider, passed=False, problems=tuple(problems), levels={}, feeds=len(feeds))
    compared = _compare(original, optimized, feeds, provider, names, free_dims(before[0]))
    problems += compared.problems
    levels: dict[str, tuple[JudgedOutput, ...]] = {
        level: tuple(
            JudgedOutput(comparison, verdict.passed, verdict.note)
            for comparison in comparator.result()
            for verdict in [judge(comparison, min_sqnr_db=thresholds.min_sqnr_db, max_abs=thresholds.max_abs)]
        )
        for level, comparator in compared.levels.items()
    }
    problems += _failures(levels)
    latency = None
    if latency_budget_s is not None and not compared.problems:
        first = next(iter(feeds))
        latency = measure_here(original, optimized, first, provider, budget_s=latency_budget_s)
        problems += _too_slow(latency, thresholds.max_latency_ratio)
    return Validation(
        provider,
        passed=not problems,
        problems=tuple(problems),
        levels=levels,
        feeds=len(feeds),
        latency=latency,
        placement=compared.placement,
        warnings=_warnings(levels, latency),
    )


def _signature(path: Path, dims: Mapping[str, int]) -> Signature:
    from graphopt.ir.lower import load

    model = load(path)
    try:
        return bind_dims(input_specs(model, hints=False), dims), bind_dims(output_specs(model), dims)
    except GraphoptError as error:
        error.where = error.where or str(path)
        raise


def _changed(before: Signature, after: Signature) -> list[str]:
    """Name what differs between the declared inputs and outputs of two models.

    Symbols may be renamed, and an output may be declared more precisely than before (a free dim that is no
    dim of an input becomes a number, an unknown type a known one). Inputs with a default may come and go.
    """
    problems = []
    free = {
        name
        for spec in before[0]
        for dim in spec.shape or ()
        if isinstance(dim, str)
        for name in symbols(dim)
    }
    for what, old, new in (("input", before[0], after[0]), ("output", before[1], after[1])):
        needed = [
            [spec for spec in specs if not spec.has_default or what == "output"] for specs in (old, new)
        ]
        old_names, new_names = ([spec.name for spec in specs] for specs in needed)
        found = {spec.name: spec for spec in new}
        missing = [name for name in old_names if name not in found]
        extra = [name for name in new_names if name not in {spec.name for spec in old}]
        if missing:
            problems.append(f"the {what} {missing[0]!r} is missing in the optimized model")
        if extra:
            problems.append(f"the optimized model has an {what} {extra[0]!r} that the original has not")
        if old_names != new_names and set(old_names) == set(new_names):
            problems.append(f"the order of the {what}s changed from {old_names} to {new_names}")
        problems += [
            f"{what} {spec.name!r}: {reason}"
            for spec in old
            if spec.name in found and (reason := _differs(spec, found[spec.name], what, free))
        ]
    return problems


def _differs(old: InputSpec, new: InputSpec, what: str, free: set[str]) -> str:
    if old.dtype and old.kind != new.kind:
        return f"expected a {old.kind}, got a {new.kind}"
    if old.dtype and old.dtype != new.dtype:
        return f"expected dtype {old.dtype}, got {new.dtype or 'an unknown one'}"
    if old.shape is None:
        return "" if what == "output" or new.shape is None else "expected an unknown rank, got a known one"
    if new.shape is None:
        return f"expected rank {len(old.shape)}, got an unknown one"
    if len(old.shape) != len(new.shape):
        return f"expected rank {len(old.shape)}, got rank {len(new.shape)}"
    for axis, (first, second) in enumerate(zip(old.shape, new.shape, strict=True)):
        if not _same_dim(first, second, what, free):
            return f"expected {_dim(first)} in dim {axis}, got {_dim(second)}"
    return ""


def _same_dim(old: Dim, new: Dim, what: str, free: set[str]) -> bool:
    if isinstance(old, int) or isinstance(new, int):
        if isinstance(new, int) and not isinstance(old, int) and what == "output":
            return not (isinstance(old, str) and symbols(old) & free)
        return old == new
    return True


def _dim(dim: Dim) -> str:
    return str(dim) if isinstance(dim, int) else f"a free dim ({dim})" if dim else "a free dim"


@dataclass(slots=True)
class _Compared:
    levels: dict[Level, Comparator]
    problems: list[str]
    placement: dict[str, Any]


def _compare(
    original: Path,
    optimized: Path,
    feeds: Sequence[Feeds],
    provider: str,
    names: Sequence[str],
    free: Sequence[str],
) -> _Compared:
    """Run the original without the runtime's optimizer, the optimized model at every level.

    *free* names the dims that a user could bind where the original refuses a feed.
    """
    worker.stage(f"opening the original {original}")
    reference = _Reference(_open_reference(original, provider), free)
    compared = _Compared({}, [], {})
    total = len(feeds) * len(LEVELS)
    for part, level in enumerate(LEVELS):  # one at a time: every session holds the weights again
        worker.stage(f"opening the optimized {optimized} at level {level!r}")
        compared.levels[level] = comparator = Comparator(names)
        with open_session(
            optimized, provider=provider, optimization=level, record_placement=level == "all"
        ) as candidate:
            for index, feed in enumerate(feeds):
                worker.stage(f"running the original {original} on feed {index}")
                expected = reference.outputs(index, feed)
                worker.stage(f"running the optimized {optimized} at level {level!r} on feed {index}")
                try:
                    got = candidate.run(feed)
                except DataError as error:  # the original took this feed
                    compared.problems.append(
                        f"the optimized model fails on feed {index} at level {level}: {error.message}"
                    )
                    break
                comparator.add([expected[name] for name in names], [got[name] for name in names])
                worker.progress(part * len(feeds) + index + 1, total)
            else:
                if level == "all":
                    compared.placement = _placement(candidate)
        del candidate
    return compared


class _Reference:
    """The original's outputs: kept while they are small, computed again for the next level where not."""

    def __init__(self, session: Session, free: Sequence[str]) -> None:
        self._session = session
        self._free = free
        self._kept: list[Mapping[str, Value]] = []
        self._left = _KEPT_BYTES

    def outputs(self, index: int, feed: Feeds) -> Mapping[str, Value]:
        if index < len(self._kept):
            return self._kept[index]
        values = _run_original(self._session, feed, index, self._free)
        if index == len(self._kept):
            self._left -= sum(map(_nbytes, values.values()))
            if self._left >= 0:
                self._kept.append(values)
        return values


def _nbytes(value: Value) -> int:
    if value is None:
        return 0
    return sum(map(_nbytes, value)) if isinstance(value, list) else value.nbytes


def _open_reference(path: Path, provider: str) -> Session:
    try:
        return open_session(path, provider=provider, optimization="none")
    except ProviderError:
        # Some operators have kernels only after the runtime's own rewrites.
        return open_session(path, provider=provider, optimization="all")


def _run_original(session: Session, feed: Feeds, index: int, free: Sequence[str]) -> Mapping[str, Value]:
    try:
        return session.run(feed)
    except DataError as error:
        bind = f", or bind its free dims with --dim ({', '.join(free)})" if free else ""
        raise DataError(
            error.message.replace("this feed", f"feed {index}"),
            where=error.where,
            hint=f"Give real inputs with --data{bind}",
        ) from error


def _placement(session: Session) -> dict[str, Any]:
    nodes = session.placement()
    by_provider = Counter(node.provider for node in nodes)
    ops: dict[str, Counter[str]] = {name: Counter() for name in sorted(by_provider)}
    for node in nodes:
        ops[node.provider][f"{node.domain}:{node.op_type}" if node.domain else node.op_type] += 1
    return {
        "nodes": dict(sorted(by_provider.items())),
        "ops": {name: dict(sorted(counts.items())) for name, counts in ops.items()},
        "assignment": [
            {"node": node.node, "op_type": node.op_type, "provider": node.provider}
            for node in nodes[:_MOST_NODES]
        ],
    }


def _failures(levels: Mapping[str, Sequence[JudgedOutput]]) -> list[str]:
    """Say which outputs fail, and at which level where it is not all of them."""
    problems: dict[tuple[str, str], list[str]] = {}
    for level, outputs in levels.items():
        for output in outputs:
            if not output.passed:
                problems.setdefault((output.comparison.name, output.note), []).append(level)
    return [
        f"output {name!r}: {note}" + ("" if len(where) == len(levels) else f" (at level {', '.join(where)})")
        for (name, note), where in problems.items()
    ]


def _too_slow(latency: Latency, limit: float | None) -> list[str]:
    if limit is None or latency.ratio <= limit:
        return []
    return [f"the optimized model takes {latency.ratio:.3f} of the original's time, above {limit:g}"]


def _warnings(levels: Mapping[str, Sequence[JudgedOutput]], latency: Latency | None) -> tuple[str, ...]:
    warnings = [
        f"output {output.comparison.name!r}: {output.note}"
        for output in next(iter(levels.values()), ())
        if output.passed and output.note
    ]
    warnings += _level_gaps(levels)
    if latency is not None and not latency.full:
        warnings.append(
            f"the model is slow: latency comes from {len(latency.ratios)} trials of {latency.rounds} rounds"
        )
    return tuple(warnings)


def _level_gaps(levels: Mapping[str, Sequence[JudgedOutput]]) -> list[str]:
    """Name outputs that the runtime's own optimizer changes far more than rounding does."""
    warnings = []
    for outputs in zip(*levels.values(), strict=True):
        sqnr = {
            level: output.comparison.sqnr_db
            for level, output in zip(levels, outputs, strict=True)
            if output.comparison.sqnr_db is not None
        }
        low, high = min(sqnr.values(), default=0.0), max(sqnr.values(), default=0.0)
        if low < _ROUNDING_DB and high - low > _GAP_DB:
            listed = ", ".join(
                f"{'exact' if value == math.inf else f'{value:.1f} dB'} at level {level}"
                for level, value in sqnr.items()
            )
            warnings.append(
                f"output {outputs[0].comparison.name!r} depends on the runtime's optimizer: {listed}"
            )
    return warnings


def _goodness(output: JudgedOutput) -> tuple[bool, float]:
    sqnr = output.comparison.sqnr_db
    return output.passed, float("inf") if sqnr is None else sqnr
