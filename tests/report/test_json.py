"""report.json: the keys that others rely on, and JSON that every parser reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from graphopt.errors import PathError
from graphopt.record import RunRecord
from graphopt.report.json import to_text, write
from tests.report.records import full_record

# Written down from interfaces.md by hand: the code must not vouch for itself.
TOP = {
    "schema", "tool", "versions", "command", "status", "exit_code", "input", "output", "pipeline", "target",
    "providers", "seed", "steps", "validation", "warnings", "error",
}  # fmt: skip
FACTS = {"path", "sha256", "bytes", "nodes", "parameters", "macs"}
STEP = {
    "index", "name", "options", "status", "changed", "counts", "skipped", "times_s", "fingerprint_before",
    "fingerprint_after", "gates", "extra",
}  # fmt: skip


def _document(record: RunRecord) -> dict[str, Any]:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(to_text(record), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def test_every_key_of_the_interface_is_there() -> None:
    document = _document(full_record())
    assert document.keys() >= TOP
    assert document["schema"] == 1
    assert document["input"].keys() == document["output"].keys() == FACTS
    for step in document["steps"]:
        assert step.keys() == STEP
        assert step["times_s"].keys() == {"clone", "run", "verify", "gate"}
    assert document["steps"][0]["skipped"][0].keys() == {"where", "reason"}
    assert document["steps"][1]["gates"][0].keys() >= {"name", "value", "limit", "passed"}
    assert document["validation"].keys() >= {"outputs", "latency", "placement"}
    assert document["validation"]["outputs"][0].keys() >= {"name", "max_abs", "sqnr_db", "cosine", "exact"}
    assert document["validation"]["latency"].keys() == {"before_s", "after_s", "ratio", "noise_ratio"}
    assert document["error"].keys() == {"type", "where", "message", "hint"}


def test_an_empty_record_has_the_same_keys_and_nulls() -> None:
    document = _document(RunRecord())
    assert document.keys() >= TOP
    assert [document[key] for key in ("input", "output", "validation", "error")] == [None] * 4


def test_what_is_not_finite_is_null_at_every_depth() -> None:
    document = _document(full_record())
    assert document["validation"]["outputs"][1]["sqnr_db"] is None
    assert document["steps"][0]["extra"]["ratio"] is None
    assert document["extra"]["anything"]["limit"] is None
    exact = document["validation"]["outputs"][0]
    assert (exact["sqnr_db"], exact["exact"]) == (None, True)


def test_what_passes_leave_in_extra_is_made_plain() -> None:
    record = RunRecord(
        extra={
            "numpy": np.int64(3),
            "float": np.float32(0.5),
            "nan": np.float32("nan"),
            "path": Path("a") / "b",
            "set": frozenset({"y", "x"}),
        }
    )
    found = _document(record)["extra"]
    assert found == {"numpy": 3, "float": 0.5, "nan": None, "path": os.path.join("a", "b"), "set": ["x", "y"]}  # noqa: PTH118 - the text of a path


def test_a_path_that_is_no_unicode_does_not_stop_the_report(tmp_path: Path) -> None:
    record = RunRecord(command="run", warnings=[os.fsdecode(b"caf\xe9.onnx")])
    write(record, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text(encoding="ascii"))
    assert found["warnings"] == ["caf\udce9.onnx"]


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("old")
    write(full_record(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["seed"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PathError, match=r"report\.json"):
        write(RunRecord(), tmp_path / "nowhere")
