"""Tables for a terminal: nothing is lost on a narrow one, nothing in a name is taken for markup."""

from __future__ import annotations

import re

import pytest
from rich.console import Console, RenderableType

from graphopt.record import RunRecord
from graphopt.report.console import (
    latency_line,
    run_summary,
    validation_summary,
)
from tests.report.records import full_record


def _shown(part: RenderableType, width: int) -> str:
    console = Console(width=width, markup=False, highlight=False, emoji=False, force_terminal=False)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


@pytest.mark.parametrize("width", [24, 40, 80, 160])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    record = full_record()
    assert record.validation is not None
    for part in (run_summary(record), validation_summary(record.validation, levels=True)):
        assert max(len(line) for line in _shown(part, width).splitlines()) <= width


def test_names_are_folded_and_never_cut() -> None:
    record = full_record()
    for step in record.steps:
        step.name = "a-pass-with-a-name-of-forty-characters-" + step.name
    text = _shown(run_summary(record), 60)
    assert "…" not in text
    assert "canonicalize" in re.sub(r"\s", "", text)


def test_a_name_with_brackets_is_shown_as_it_is() -> None:
    assert "[bold]z|" in _shown(run_summary(full_record()), 160)


def test_what_failed_stands_first() -> None:
    record = full_record()
    assert record.validation is not None
    text = _shown(validation_summary(record.validation), 160)
    assert text.index("[bold]z|") < text.index("exact")
    assert "output z is not finite" in text


def test_both_levels_are_told_apart() -> None:
    record = full_record()
    assert record.validation is not None
    text = _shown(validation_summary(record.validation, levels=True), 160)
    assert "with the runtime's optimizer" in text
    assert "without it" in text


def test_lines_about_time_and_place() -> None:
    record = full_record()
    assert record.validation is not None
    latency = latency_line(record.validation)
    assert latency is not None
    assert latency.plain == "latency 2 ms before, 1 ms after: 0.50x time (noise 1.0%)"
    assert "nodes as placed: 6 on cpu" in _shown(validation_summary(record.validation), 80)
    record.validation.latency = None
    assert latency_line(record.validation) is None


def test_an_empty_record_shows_nothing() -> None:
    assert _shown(run_summary(RunRecord()), 80).strip() == ""


def test_what_was_left_alone_is_shown_and_an_empty_column_is_not() -> None:
    record = full_record()
    text = _shown(run_summary(record), 160)
    assert "canonicalize left alone node 0 and 24 more: because | of `this`" in text
    assert "for other reasons" not in text
    assert "3 identities" in text
    for step in record.steps:
        step.counts = {}
    assert "what" not in _shown(run_summary(record), 160)
