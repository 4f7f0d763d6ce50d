"""report.md: every table stays a table whatever the names are."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from graphopt.record import RunRecord
from graphopt.report.markdown import to_text, write
from tests.report.records import full_record

if TYPE_CHECKING:
    from pathlib import Path


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def _tables(text: str) -> list[list[str]]:
    groups = itertools.groupby(text.splitlines(), key=lambda line: line.startswith("|"))
    return [list(lines) for is_table, lines in groups if is_table]


def test_every_row_has_as_many_cells_as_its_head() -> None:
    tables = _tables(to_text(full_record()))
    assert len(tables) == 4
    for lines in tables:
        assert len({_cells(line) for line in lines}) == 1, lines


def test_it_says_what_matters() -> None:
    text = to_text(full_record())
    assert text.startswith("# graphopt run: gate failed\n")
    for part in (
        "**GateFailed** `step 2`: refused. Look at z.",
        "| nodes | 12 | 6 | -50 % |",
        "| size | 4.00 KiB | 2.00 KiB | -50 % |",
        "min_sqnr_db - against 30 **failed**",
        "- `node 0 and 24 more`: because",
        "0.500x (noise of an A/A pair at worst 1.010x)",
        "- the data is random",
        "Fitted to data by `fold-constants`: outputs agree to 19.7 dB with those before it, 87.5% of their",
        " largest elements are the same ones, 1 sample, 1.5 s of CPU, 3.00 MiB at most.",
        "| stage | residual before | residual after | ridge | rows |",
        "| `Conv 'c\\|99''` | 0.5 | - | 0.001 | 64 |",
        "And 20 more stages, in report.json.",
        "| `y` | exact | 0 | 1 | passed |",
    ):
        assert part in text, part


def test_names_cannot_leave_their_code_span() -> None:
    lines = [line for line in to_text(full_record()).splitlines() if line.startswith("- `node")]
    assert lines
    assert all(line.count("`") % 2 == 0 for line in lines)


def test_an_empty_record_is_a_document_too(tmp_path: Path) -> None:
    write(RunRecord(command="passes"), tmp_path)
    assert (tmp_path / "report.md").read_text().startswith("# graphopt passes: ok")
