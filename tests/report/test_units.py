"""Numbers as people read them, at the edges of their units."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.record import Skip
from graphopt.report.units import (
    format_bytes,
    format_change,
    format_count,
    format_number,
    format_seconds,
    format_tally,
    grouped_skips,
    shortened,
)

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@given(st.integers(0, 2**52))
def test_bytes_read_back_within_a_half_per_cent(size: int) -> None:
    number, unit = format_bytes(size).split(" ")
    assert float(number) * UNITS[unit] == pytest.approx(size, rel=5e-3)
    assert len(number) <= 4 or unit == "B"


@given(st.integers(0, 10**15))
def test_counts_never_show_a_thousand_of_a_unit_that_has_a_larger_one(count: int) -> None:
    text = format_count(count)
    assert re.fullmatch(r"\d{1,3}(\.\d{1,2})?( [kMGT])?|\d{4} T", text), text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (9.99e-7, "0.999 us"),
        (1e-3, "1 ms"),
        (0.9994, "999 ms"),
        (59.9, "59.9 s"),
        (60, "1 min 0 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (10, 5, "-50 %"),
        (10, 0, "-100 %"),
        (0, 7, "new"),
        (1, 12, "x12"),
        (None, 3, ""),
        (3, None, ""),
        (1000, 1000, "="),
        (1000, 1001, "+0.1 %"),
    ],
)
def test_changes(before: int | None, after: int | None, text: str) -> None:
    assert format_change(before, after) == text


def test_an_unknown_number_is_a_dash() -> None:
    assert (format_count(None), format_number(None)) == ("-", "-")


def test_a_reason_is_said_once_with_its_first_place() -> None:
    skips = [
        Skip(where=where, reason=reason) for where, reason in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "x"))
    ]
    assert grouped_skips(skips) == [("a and 2 more", "x", 3), ("b", "y", 1)]


def test_the_middle_of_a_long_name_goes() -> None:
    name = "model/block_1/" * 20 + "Conv_17"
    assert shortened("Conv_17") == "Conv_17"
    assert len(shortened(name)) == 64
    assert shortened(name).startswith("model/block_1/")
    assert shortened(name).endswith("/Conv_17")


def test_tallies_in_bytes_are_read_as_bytes() -> None:
    assert format_tally("added_bytes", 56_811) == "55.5 KiB added"
    assert format_tally("kept_fused", 2) == "2 kept fused"
