"""The instruments that come with graphopt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest

from graphopt.errors import PathError
from graphopt.pipeline.instruments import DumpAfterChange, Progress, Timing
from graphopt.pipeline.manager import Manager, ManagerResult
from graphopt.targets import load_target
from tests.pipeline.kit import plan_of, registry, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.api import Instrument

PIPELINE = "drop-dead,drop-dead,rename,crash"


def watched_by(instrument: Instrument) -> ManagerResult:
    known = registry()
    manager = Manager(known, target=load_target("ort-cpu"), instruments=[instrument])
    result = manager.run(tiny(), plan_of(PIPELINE, known))
    assert result.warnings == []
    return result


def test_timing_counts_every_step_once() -> None:
    ticks = iter(range(100))
    timing = Timing(clock=lambda: float(next(ticks)))
    watched_by(timing)
    assert timing.seconds == [("drop-dead", 1.0), ("drop-dead", 1.0), ("rename", 1.0), ("crash", 1.0)]


def test_progress_tells_place_and_name() -> None:
    seen: list[tuple[int, int, str]] = []
    watched_by(Progress(lambda *what: seen.append(what), total=4))
    assert seen == [(0, 4, "drop-dead"), (1, 4, "drop-dead"), (2, 4, "rename"), (3, 4, "crash")]


def test_dump_writes_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dumps"
    watched_by(DumpAfterChange(folder, "onnx"))
    assert sorted(path.name for path in folder.iterdir()) == ["01-drop-dead.onnx", "03-rename.onnx"]
    first, second = (onnx.load(folder / name) for name in ("01-drop-dead.onnx", "03-rename.onnx"))
    assert [node.name for node in first.graph.node] == ["product", "relu", "copy"]
    assert (first.graph.name, second.graph.name) == ("tiny", "renamed")
    onnx.checker.check_model(second)


def test_dump_as_text(tmp_path: Path) -> None:
    watched_by(DumpAfterChange(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-drop-dead.txt", "03-rename.txt"]
    text = (tmp_path / "01-drop-dead.txt").read_text(encoding="utf-8")
    assert "Relu" in text
    assert "Neg" not in text


def test_dump_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="cannot be made"):
        DumpAfterChange(tmp_path / "file" / "dumps")
