"""How long one inference takes, before against after, on a machine that does other things too.

The method is the house's: one thread, thread CPU time, order reversed each round, at least seven rounds,
ratio of medians, median of three trials with fresh sessions, and a pair of sessions of the same model
beside them as the noise floor. It stays within 3 % where the wall-clock minimum is off by 0.6 to 1.8
(benchmarks/latency_noise.py).
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.runtime import worker
from graphopt.runtime.child import run_in_child
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from graphopt.runtime.session import Feeds

ROUNDS = 7
TRIALS = 3
BUDGET_S = 20.0
_SAMPLE_S = 0.005  # shorter samples are dominated by the clock and by the call from Python
_FEWEST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one inference, and how far the ratio can be trusted.

    Attributes:
        before_s: Median over all samples of the model before.
        after_s: Median over all samples of the model after.
        ratio: after / before; the median over the trials of the ratio of medians.
        noise_ratio: The same for two sessions of the model before: 1 but for noise.
        ratios: The ratio of each trial.
        noise_ratios: The noise ratio of each trial.
        rounds: Rounds of each trial.
        full: Whether the whole protocol ran; False where a slow model had to be cut down to the budget.
    """

    before_s: float
    after_s: float
    ratio: float
    noise_ratio: float
    ratios: tuple[float, ...]
    noise_ratios: tuple[float, ...]
    rounds: int
    full: bool


def measure_latency(
    before: Path,
    after: Path,
    feeds: Feeds,
    provider: str = "cpu",
    rounds: int = ROUNDS,
    trials: int = TRIALS,
    *,
    budget_s: float = BUDGET_S,
    timeout_s: float | None = None,
) -> Latency:
    """Compare the time of two models on one feed, in a child process.

    Args:
        before: The model to compare with.
        after: The model to judge.
        feeds: One feed.
        provider: What to run on. The time is that of the calling thread for "cpu", else the wall clock's.
        rounds: Samples of each model in a trial.
        trials: How often to begin anew with fresh sessions.
        budget_s: Seconds of inference to spend at most; a slow model gets one trial and fewer rounds.
        timeout_s: Seconds after which the child is ended.

    Raises:
        GraphoptError: As :func:`graphopt.runtime.session.open_session` and ``Session.run``.
        WorkerError: The child crashed or ran out of time.
    """
    result: Latency = run_in_child(
        "graphopt.runtime.latency:measure_here",
        before,
        after,
        dict(feeds),
        provider,
        rounds,
        trials,
        budget_s,
        timeout_s=timeout_s,
        where=str(after),
    )
    return result


def measure_here(
    before: Path,
    after: Path,
    feeds: Feeds,
    provider: str = "cpu",
    rounds: int = ROUNDS,
    trials: int = TRIALS,
    budget_s: float = BUDGET_S,
) -> Latency:
    """Do what :func:`measure_latency` does in this process."""
    clock = time.thread_time if provider == "cpu" else time.perf_counter
    samples: list[tuple[list[float], ...]] = []
    full = True
    trial = 0
    while trial < trials:
        worker.stage(f"timing trial {trial + 1} of {trials}")
        runs = [_ready(path, feeds, provider) for path in (before, after, before)]
        repeats = [_repeats(run, clock) for run in runs]
        if not trial:
            cost = sum(count * seconds for count, seconds in repeats)
            trials, rounds, full = _affordable(trials, rounds, cost, budget_s)
        samples.append(_trial(runs, [count for count, _ in repeats], rounds, clock))
        runs.clear()  # or the sessions of two trials would be in memory at once
        trial += 1
        worker.progress(trial, trials)
    medians = [tuple(map(statistics.median, each)) for each in samples]
    ratios = tuple(_quotient(after_s, before_s) for before_s, after_s, _ in medians)
    noise = tuple(_quotient(again_s, before_s) for before_s, _, again_s in medians)
    return Latency(
        before_s=statistics.median(sample for each in samples for sample in each[0]),
        after_s=statistics.median(sample for each in samples for sample in each[1]),
        ratio=statistics.median(ratios),
        noise_ratio=statistics.median(noise),
        ratios=ratios,
        noise_ratios=noise,
        rounds=rounds,
        full=full,
    )


def _ready(path: Path, feeds: Feeds, provider: str) -> Callable[[], object]:
    run: Callable[[], object] = open_session(path, provider=provider).bind(feeds)
    return run


def _repeats(run: Callable[[], object], clock: Callable[[], float]) -> tuple[int, float]:
    """Return how many inferences make a sample long enough, and the seconds of one."""
    count = 1
    while True:
        start = clock()
        for _ in range(count):
            run()
        elapsed = clock() - start
        if elapsed >= _SAMPLE_S:
            seconds = elapsed / count
            return max(1, math.ceil(_SAMPLE_S / seconds)), seconds
        # Aim a little beyond the goal, but never trust a first guess further than tenfold.
        count = max(count + 1, min(10 * count, math.ceil(1.2 * count * _SAMPLE_S / max(elapsed, 1e-9))))


def _affordable(trials: int, rounds: int, round_s: float, budget_s: float) -> tuple[int, int, bool]:
    """Return trials and rounds that fit the budget, and whether they are what was asked for."""
    if trials * rounds * round_s <= budget_s:
        return trials, rounds, True
    if rounds * round_s <= budget_s:
        return min(trials, max(1, int(budget_s / (rounds * round_s)))), rounds, False
    return 1, min(rounds, max(_FEWEST_ROUNDS, int(budget_s / round_s))), False


def _trial(
    runs: list[Callable[[], object]], repeats: list[int], rounds: int, clock: Callable[[], float]
) -> tuple[list[float], ...]:
    """Return the seconds of one inference by run and round; the order is reversed each round."""
    samples: tuple[list[float], ...] = tuple([] for _ in runs)
    order = list(range(len(runs)))
    with _no_collection():
        for _ in range(rounds):
            for index in order:
                run, count = runs[index], repeats[index]
                start = clock()
                for _ in range(count):
                    run()
                samples[index].append((clock() - start) / count)
            order.reverse()
    return samples


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.inf
