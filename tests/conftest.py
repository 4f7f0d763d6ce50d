"""Fixtures that every test may use."""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from graphopt.runtime import child, codec

# Statistics of one test must not answer another, nor be left in the home of who runs the tests.
os.environ["GRAPHOPT_CACHE"] = "off"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and data named by GRAPHOPT_ASSETS; without it the test is skipped."""
    folder = os.environ.get("GRAPHOPT_ASSETS", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"GRAPHOPT_ASSETS does not name a folder (it is {folder!r})"
    if os.environ.get("GRAPHOPT_REQUIRE_ASSETS") == "1":
        pytest.fail(f"{reason} although GRAPHOPT_REQUIRE_ASSETS=1")
    pytest.skip(reason)


RUN_IN_CHILD = tuple(
    f"graphopt.runtime.{module}.run_in_child" for module in ("latency", "structure", "validate")
)


@pytest.fixture(autouse=True)
def _models_run_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run models in this process and time them briefly, but for tests marked `child` or `slow`.

    A child takes a quarter of a second to start and half a second to time two models, which is most of the
    time of a test of anything else.
    """
    if any(request.node.get_closest_marker(name) for name in ("child", "slow")):
        return
    for name in RUN_IN_CHILD:
        monkeypatch.setattr(name, run_here)
    monkeypatch.setattr("graphopt.runtime.latency._SAMPLE_S", 1e-4)


def run_here(function: str, *arguments: object, **_more: object) -> Any:
    """Do what :func:`graphopt.runtime.child.run_in_child` does, without the child.

    Arguments and result pass through files as they would between two processes.
    """
    module, _, name = function.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        job: list[Any] = [
            child._stored(each, place, index) if isinstance(each, child.FeedStream) else each
            for index, each in enumerate(arguments)
        ]
        codec.save(job, place, "job")
        result = getattr(importlib.import_module(module), name)(*codec.load(place, "job"))
        codec.save(result, place, "result")
        return codec.load(place, "result")
