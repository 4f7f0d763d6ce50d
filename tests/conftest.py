"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
