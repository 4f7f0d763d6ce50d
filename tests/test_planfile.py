"""plan.toml is written and read back, and refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import OptionError, PathError
from graphopt.planfile import PlanFile, read_plan, write_plan

ITEMS: tuple[dict[str, Any], ...] = (
    {"family": 'odd "name" \\ with \t and ü', "keep": 3, "ratio": 0.25, "exact": True},
    {"node": "conv", "keep_units": [1, 2], "names": ["a", "b"]},
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan = PlanFile("some-pass", ITEMS, "abc", "first line\nsecond line")
    write_plan(path, plan)
    assert read_plan(path, "some-pass") == PlanFile("some-pass", ITEMS, "abc")
    assert path.read_text(encoding="utf-8").startswith("# first line\n# second line\nschema = 1\n")
    assert [each.name for each in tmp_path.iterdir()] == ["plan.toml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema = 2", "expected schema = 1, got 2"),
        ("schema = 1\npass = 'other'", "for the pass 'other'"),
        ("schema = 1\npass = 'some-pass'\nitem = 3", r"expected \[\[item\]\]"),
        ("schema = 1\npass = 'some-pass'\nitems = 3", "no key 'items'"),
        ("schema = ", "not TOML"),
        ("\udcff", "not TOML"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OptionError, match=words) as caught:
        read_plan(path, "some-pass")
    assert caught.value.where == str(path)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PathError):
        read_plan(tmp_path / "plan.toml", "some-pass")
    with pytest.raises(PathError, match="directory"):
        read_plan(tmp_path, "some-pass")
    with pytest.raises(PathError):
        write_plan(tmp_path / "missing" / "plan.toml", PlanFile("some-pass", ()))
    (tmp_path / "file").touch()
    with pytest.raises(PathError, match="cannot write the file"):
        write_plan(tmp_path / "file" / "plan.toml", PlanFile("some-pass", ()))
    (tmp_path / "folder").mkdir()
    with pytest.raises(PathError, match="cannot write the file"):
        write_plan(tmp_path / "folder", PlanFile("some-pass", ()))
    assert {each.name for each in tmp_path.iterdir()} <= {"file", "folder", "plan.toml"}
