"""The protocol on a clock that the test drives, and on real models."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.errors import DataError, OptionError
from graphopt.runtime import latency
from graphopt.runtime.latency import Latency, measure_each_here, measure_here, measure_latency
from tests.runtime.models import linear

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Machine:
    """Runs that cost what they are said to, on a clock that drifts; every run is noted."""

    def __init__(self, costs: dict[str, float], drift: float = 0.0) -> None:
        self.now = 0.0
        self.costs = costs
        self.drift = drift
        self.ran: list[str] = []
        self.opened: list[str] = []

    def open(self, path: Path, feeds: object, provider: str) -> Callable[[], object]:
        name = path.name
        self.opened.append(name)

        def run() -> None:
            self.ran.append(name)
            self.now += self.costs[name] * (1 + self.drift * self.now)

        return run

    def measure(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **more: float) -> Latency:
        monkeypatch.setattr("graphopt.runtime.latency._ready", self.open)
        monkeypatch.setattr("graphopt.runtime.latency.time.thread_time", lambda: self.now)
        return measure_here(tmp_path / "a", tmp_path / "b", {}, **more)  # type: ignore[arg-type]  # numbers


def test_the_ratio_of_known_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine({"a": 0.010, "b": 0.004})
    result = machine.measure(monkeypatch, tmp_path)
    assert result.before_s == pytest.approx(0.010)
    assert result.after_s == pytest.approx(0.004)
    assert result.ratio == pytest.approx(0.4)
    assert result.noise_ratio == pytest.approx(1.0)
    assert (result.rounds, len(result.ratios), result.full) == (7, 3, True)
    assert machine.opened == ["a", "b", "a"] * 3  # fresh sessions in each trial, an A/A pair beside them


def test_the_noise_is_that_of_the_worst_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine({"a": 0.010, "b": 0.005})

    def one_is_slower(path: Path, feeds: object, provider: str) -> Callable[[], object]:
        run, number = machine.open(path, feeds, provider), len(machine.opened)

        def slower() -> None:
            run()
            machine.now += 0.001 * (number == 6)  # the second session of the original in the second trial

        return slower

    monkeypatch.setattr("graphopt.runtime.latency._ready", one_is_slower)
    monkeypatch.setattr("graphopt.runtime.latency.time.thread_time", lambda: machine.now)
    result = measure_here(tmp_path / "a", tmp_path / "b", {})
    assert result.noise_ratios == pytest.approx((1.0, 1.1, 1.0))
    assert result.noise_ratio == pytest.approx(1.1)
    assert result.ratio == pytest.approx(0.5)


@pytest.mark.child
def test_short_inferences_are_repeated_until_a_sample_is_long_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine({"a": 1e-4, "b": 1e-6})
    result = machine.measure(monkeypatch, tmp_path)
    assert result.ratio == pytest.approx(0.01)
    assert machine.ran.count("b") >= 3 * 7 * 5000
    assert machine.now < 3 * (7 + 4) * 4 * 0.0075


def test_a_machine_that_slows_down_steadily_does_not_bend_the_ratio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine({"a": 0.010, "b": 0.010}, drift=0.2)  # 13 % slower over a trial
    result = machine.measure(monkeypatch, tmp_path)
    assert result.ratio == pytest.approx(1.0, abs=0.02)
    assert result.noise_ratio == pytest.approx(1.0, abs=0.02)


def test_the_order_is_reversed_each_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine({"a": 0.010, "b": 0.020})
    machine.measure(monkeypatch, tmp_path, trials=1, rounds=4)
    assert (
        "".join(machine.ran) == "ab" + "abbaabba" + "a" + "aaaaaaaa"
    )  # two pairs; first runs find the repeats


@pytest.mark.parametrize(
    ("cost", "trials", "rounds"), [(0.1, 3, 7), (0.3, 2, 7), (0.7, 1, 7), (0.9, 1, 5), (60.0, 1, 3)]
)
def test_slow_models_are_cut_down_to_the_budget(
    cost: float, trials: int, rounds: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = Machine({"a": cost, "b": cost}).measure(monkeypatch, tmp_path)
    assert (len(result.ratios), result.rounds) == (trials, rounds)
    assert result.full == (cost == 0.1)


@pytest.mark.child
def test_real_models_in_a_child(tmp_path: Path) -> None:
    small, large = linear(tmp_path / "small.onnx", width=64), linear(tmp_path / "large.onnx", width=40_000)
    feed = {"x": np.ones((1, 8), np.float32)}
    result = measure_latency(large, small, feed)
    assert result.ratio < 0.5
    assert 0.5 < result.noise_ratio < 2
    assert result.before_s > result.after_s > 0


@pytest.mark.child
def test_errors_of_the_models_come_through(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    with pytest.raises(DataError, match="no value for the input 'x'"):
        measure_latency(path, path, {})
    with pytest.raises(OptionError, match="unknown provider"):
        measure_latency(path, path, {"x": np.ones((1, 8), np.float32)}, provider="gpux")


def test_each_provider_is_timed_on_the_clock_that_sees_its_threads() -> None:
    assert latency._clock("cpu") is time.thread_time
    assert latency._clock("openvino") is time.process_time
    assert latency._clock("cuda") is time.perf_counter


def test_several_models_share_a_child_and_the_noise_pair(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine({"a": 0.010, "b": 0.004, "c": 0.020})
    monkeypatch.setattr("graphopt.runtime.latency._ready", machine.open)
    monkeypatch.setattr("graphopt.runtime.latency.time.thread_time", lambda: machine.now)
    found = measure_each_here(tmp_path / "a", [tmp_path / "b", tmp_path / "c"], {})
    assert [each.ratio for each in found] == pytest.approx([0.4, 2.0])
    assert machine.opened == ["a", "b", "c", "a"] * 3


def test_what_is_clear_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine({"a": 0.010, "clear": 0.008, "close": 0.0095})
    monkeypatch.setattr("graphopt.runtime.latency._ready", machine.open)
    monkeypatch.setattr("graphopt.runtime.latency.time.thread_time", lambda: machine.now)
    clear, close = measure_each_here(tmp_path / "a", [tmp_path / "clear", tmp_path / "close"], {}, clear=0.1)
    assert (len(clear.ratios), len(close.ratios)) == (1, 3)
    assert len(clear.noise_ratios) == 1
    # 20 % is not clear where two sessions of one model are 10 % apart.
    noisy = Machine({"a": 0.010, "b": 0.008})
    monkeypatch.setattr("graphopt.runtime.latency.time.thread_time", lambda: noisy.now)

    def later_ones_are_slower(path: Path, feeds: object, provider: str) -> Callable[[], object]:
        run, number = noisy.open(path, feeds, provider), len(noisy.opened)

        def slower() -> None:
            run()
            noisy.now += 0.001 * (number % 3 == 0)

        return slower

    monkeypatch.setattr("graphopt.runtime.latency._ready", later_ones_are_slower)
    (found,) = measure_each_here(tmp_path / "a", [tmp_path / "b"], {}, clear=0.1)
    assert len(found.ratios) == 3


def test_a_child_that_only_runs_models_loads_no_onnx_library() -> None:
    code = "import sys, graphopt.runtime.validate\nprint({*sys.modules} & {'onnx', 'onnx_ir'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
