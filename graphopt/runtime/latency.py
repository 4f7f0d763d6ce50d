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
    from collections.abc import Callable, Iterator, Sequence
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
        noise_ratio: The same for two sessions of the model before, 1 but for noise: that of the worst trial.
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
        provider: What to run on. The time is that of the calling thread for "cpu", that of the process for
            "openvino", whose one thread is another, and else the wall clock's.
        rounds: Samples of each model in a trial.
        trials: How often to begin anew with fresh sessions.
        budget_s: Seconds of inference to spend at most; a slow model gets one trial and fewer rounds.
        timeout_s: Seconds after which the child is ended.

    Raises:
        GraphoptError: As :func:`graphopt.runtime.session.open_session` and ``Session.run``.
        WorkerError: The child crashed or ran out of time.
    """
    (result,) = measure_each(
        before, [after], feeds, provider, rounds, trials, budget_s=budget_s, timeout_s=timeout_s
    )
    return result


def measure_each(
    before: Path,
    after: Sequence[Path],
    feeds: Feeds,
    provider: str = "cpu",
    rounds: int = ROUNDS,
    trials: int = TRIALS,
    *,
    budget_s: float = BUDGET_S,
    clear: float | None = None,
    timeout_s: float | None = None,
) -> list[Latency]:
    """Compare several models with one, in one child process and with one A/A pair a trial for all of them.

    Args:
        before: The model to compare with.
        after: The models to judge.
        feeds: One feed.
        provider: As :func:`measure_latency`.
        rounds: The same.
        trials: The same.
        budget_s: The same, for each model of *after*.
        clear: Distance of a ratio from 1 that needs no further trial, where it is also more than three times
            the noise: a comparison ends with the trial that shows it. None: all trials are run.
        timeout_s: Seconds after which the child is ended.

    Raises:
        GraphoptError: As :func:`measure_latency`.
    """
    result: list[Latency] = run_in_child(
        "graphopt.runtime.latency:measure_each_here",
        before,
        list(after),
        dict(feeds),
        provider,
        rounds,
        trials,
        budget_s,
        clear,
        timeout_s=timeout_s,
        where=", ".join(map(str, after)),
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
    return measure_each_here(before, [after], feeds, provider, rounds, trials, budget_s)[0]


def measure_each_here(
    before: Path,
    after: Sequence[Path],
    feeds: Feeds,
    provider: str = "cpu",
    rounds: int = ROUNDS,
    trials: int = TRIALS,
    budget_s: float = BUDGET_S,
    clear: float | None = None,
) -> list[Latency]:
    """Do what :func:`measure_each` does in this process."""
    clock = _clock(provider)
    judged = [_Comparison(path, trials, rounds) for path in after]
    noise: list[Samples] = []
    for trial in range(trials):
        still = [each for each in judged if trial < each.trials and not each.is_clear(noise, clear)]
        if not still:
            break
        worker.stage(f"timing trial {trial + 1} of {trials}")
        first = _Subject(before, feeds, provider, clock)
        for each in still:
            other = _Subject(each.path, feeds, provider, clock)
            if not trial:
                each.limit(3 * first.sample_s + other.sample_s, budget_s)
            each.pairs.append(_pair(first, other, each.rounds, clock))
            del other  # its memory, before another session is made
        again = _Subject(before, feeds, provider, clock)
        noise.append(_pair(first, again, max(each.rounds for each in still), clock))
        del first, again
        worker.progress(trial + 1, trials)
    return [each.result(noise) for each in judged]


Samples = tuple[list[float], list[float]]


class _Comparison:
    """One model against the common one, trial by trial.

    Attributes:
        path: The model to judge.
        trials: Trials to run at most.
        rounds: Rounds of a trial.
        pairs: The samples of the trials so far.
    """

    def __init__(self, path: Path, trials: int, rounds: int) -> None:
        self.path = path
        self.trials = trials
        self.rounds = rounds
        self.pairs: list[Samples] = []
        self._full = True

    def limit(self, round_s: float, budget_s: float) -> None:
        """Cut the protocol down to what the budget pays for."""
        self.trials, self.rounds, self._full = _affordable(self.trials, self.rounds, round_s, budget_s)

    def is_clear(self, noise: list[Samples], clear: float | None) -> bool:
        """Return whether every trial so far shows the same, far beyond the noise."""
        if clear is None or not self.pairs:
            return False
        floor = max(abs(1.0 - ratio) for ratio in _ratios(noise))
        ratios = _ratios(self.pairs)
        margin = max(clear, 3.0 * floor)
        return max(ratios) < 1.0 - margin or min(ratios) > 1.0 + margin

    def result(self, noise: list[Samples]) -> Latency:
        """Return what the trials say."""
        noise = noise[: len(self.pairs)]
        ratios, noise_ratios = _ratios(self.pairs), _ratios(noise)
        return Latency(
            before_s=statistics.median(sample for pair in self.pairs for sample in pair[0]),
            after_s=statistics.median(sample for pair in self.pairs for sample in pair[1]),
            ratio=statistics.median(ratios),
            noise_ratio=max(noise_ratios, key=lambda ratio: abs(1.0 - ratio)),
            ratios=ratios,
            noise_ratios=noise_ratios,
            rounds=self.rounds,
            full=self._full,
        )


def _ratios(pairs: list[Samples]) -> tuple[float, ...]:
    return tuple(_quotient(statistics.median(b), statistics.median(a)) for a, b in pairs)


def _clock(provider: str) -> Callable[[], float]:
    if provider == "cpu":
        return time.thread_time
    return time.process_time if provider == "openvino" else time.perf_counter


def _ready(path: Path, feeds: Feeds, provider: str) -> Callable[[], object]:
    run: Callable[[], object] = open_session(path, provider=provider).bind(feeds)
    return run


class _Subject:
    """A fresh session that runs one feed, and how often to run it for one sample.

    Attributes:
        sample_s: What one sample takes, about.
    """

    def __init__(self, path: Path, feeds: Feeds, provider: str, clock: Callable[[], float]) -> None:
        self._run = _ready(path, feeds, provider)
        self._count, seconds = _repeats(self._run, clock)
        self.sample_s = self._count * seconds

    def sample(self, clock: Callable[[], float]) -> float:
        """Return the seconds of one inference."""
        start = clock()
        for _ in range(self._count):
            self._run()
        return (clock() - start) / self._count


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


def _pair(first: _Subject, second: _Subject, rounds: int, clock: Callable[[], float]) -> Samples:
    """Return the samples of two subjects, whose order is reversed each round.

    Two and not three: reversing gives each of two the same share of samples behind itself, with warm caches,
    while the middle one of three would always follow another (1.7 % on CIFAR ResNets; measured with
    benchmarks/latency_noise.py).
    """
    samples: Samples = ([], [])
    order = [(first, samples[0]), (second, samples[1])]
    with _no_collection():
        for _ in range(rounds):
            for subject, taken in order:
                taken.append(subject.sample(clock))
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
