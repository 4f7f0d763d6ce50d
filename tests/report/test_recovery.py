"""What a step fitted to data, as people see it: whatever form a pass gives it."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.record import StepRecord
from graphopt.report.recovery import recovery_of

STAGE = {"where": "Conv 'a'", "residual_before": 0.25, "residual_after": 0.125}


def step(extra: dict[str, Any]) -> StepRecord:
    return StepRecord(index=0, name="p", options={}, status="committed", extra=extra)


@pytest.mark.parametrize("nested", [True, False])
def test_it_is_found_in_the_extra_and_under_recovery(nested: bool) -> None:
    told = {"stages": [STAGE], "effort": {"samples": 12, "cpu_s": 0.5, "peak_bytes": 0}}
    found = recovery_of(step({"recovery": told} if nested else told))
    assert found is not None
    assert found.line == "12 samples, 500 ms of CPU"
    assert found.head == ("stage", "residual before", "residual after")
    assert found.rows == (("Conv 'a'", "0.25", "0.125"),)


def test_shifts_of_means_have_columns_of_their_own() -> None:
    found = recovery_of(step({"stages": [{"where": "Gemm 'g'", "shift": None, "largest_shift": 2}]}))
    assert found is not None
    assert (found.head, found.rows) == (("stage", "shift", "largest shift"), (("Gemm 'g'", "-", "2"),))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"recovery": 3},
        {"recovery": {"stages": "abc", "agreement": [1], "effort": None}},
        {"stages": [1, {"name": "x"}], "agreement": {"sqnr_db": None, "same_argmax": True}},
    ],
)
def test_what_has_another_form_is_left_out(extra: dict[str, Any]) -> None:
    assert recovery_of(step(extra)) is None
