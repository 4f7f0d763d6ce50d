"""Recipes: TOML that says the same as the pipeline text."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import PathError, PlanError
from graphopt.pipeline.recipe import Recipe, parse_recipe, read_recipe, recipe_text, write_recipe
from graphopt.pipeline.text import Step, parse, to_text
from tests.pipeline.test_text import STEPS

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
# a comment
[[pass]]
name = "fold-constants"

[[pass]]
name = "prune"
[pass.options]
macs_ratio = 0.5
axes = [0, -1]
keep = true
note = "p, q"
limit = "none"

[[gate]]
name = "numeric"
[gate.options]
min_sqnr_db = 40
"""


def test_says_the_same_as_the_text() -> None:
    recipe = parse_recipe(RECIPE)
    text = 'fold-constants,prune{macs_ratio=0.5,axes=[0,-1],keep=true,note="p, q",limit=none}'
    assert recipe.steps == parse(text)
    assert to_text(recipe.steps) == text
    assert recipe.gates == (Step("numeric", {"min_sqnr_db": "40"}),)


def test_is_written_in_plain_toml() -> None:
    written = recipe_text(parse_recipe(RECIPE))
    assert written == RECIPE.replace("# a comment\n", "")
    assert tomllib.loads(written) == tomllib.loads(RECIPE)


def test_inline_tables_mean_the_same() -> None:
    assert parse_recipe('pass = [{name = "a", options = {x = 1}}]').steps == (Step("a", {"x": "1"}),)
    assert parse_recipe("") == Recipe()


@given(st.lists(STEPS, max_size=3), st.lists(STEPS, max_size=2))
def test_writing_and_reading_is_the_identity(steps: list[Step], gates: list[Step]) -> None:
    recipe = Recipe(tuple(steps), tuple(gates))
    assert parse_recipe(recipe_text(recipe)) == recipe


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,5}", fullmatch=True),
        st.one_of(
            st.integers(-(2**70), 2**70).map(str),
            st.floats().map(repr),
            st.sampled_from(
                ["true", "false", "none", "01", "1.0", "1e5", "-0", "+1", "1_0", "0x10", "inf", "1979-05-27"]
            ),
        ),
    )
)
def test_numbers_keep_their_spelling(options: dict[str, str]) -> None:
    recipe = Recipe((Step("a", options),))
    assert parse_recipe(recipe_text(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[pass]\n", "not TOML.*line 1"),
        ("[[passes]]\nname='a'", "unknown key 'passes'.*Did you mean 'pass'"),
        ("x = 1", "line 1: unknown key 'x'"),
        ("[pass]\nname='a'", r"not a list of tables.*Write \[\[pass\]\]"),
        ("pass = [1]", "expected a table, got 1"),
        ("[[pass]]\n", r"\[\[pass\]\] 1, line 1: expected name"),
        ("[[pass]]\nname=1", "expected name = .*got 1"),
        (
            "[[pass]]\nname='a'\n\n[[pass]]\nname='b'\nratio=1",
            r"\[\[pass\]\] 2, line 4: unknown key 'ratio'.*\[pass.options\]",
        ),
        ("[[pass]]\nname='a'\noption={}", "Did you mean 'options'"),
        ("[[pass]]\nname='a'\noptions=3", "options is 3"),
        ("[[pass]]\nname='a b'", "'a b' is not a name"),
        ("[[pass]]\nname='a'\n[pass.options]\nx={y=1}", "Options are flat"),
        ("[[pass]]\nname='a'\n[pass.options]\nx=[[1]]", "Options are flat"),
        ("[[pass]]\nname='a'\n[pass.options]\nx=1979-05-27", "'x' holds datetime"),
        ("[[pass]]\nname='a'\n[pass.options]\nx=nan", "finite"),
        ("[[pass]]\nname='a'\n[pass.options]\n'x y'=1", "not the name of an option"),
        ("[[gate]]\nname='a'\nlimit=1", r"\[\[gate\]\] 1, line 1: unknown key 'limit'"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)
def test_refuses_and_gives_the_place(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_recipe(text)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    recipe = Recipe((Step("a", {"x": "größe"}),), (Step("size", {"max_ratio": "1.0"}),))
    write_recipe(recipe, path)
    assert read_recipe(path) == recipe
    with pytest.raises(PathError, match=r"nowhere\.toml.*No such file"):
        read_recipe(tmp_path / "nowhere.toml")
    with pytest.raises(PathError, match="got a directory"):
        read_recipe(tmp_path)
    with pytest.raises(PathError, match="cannot be written"):
        write_recipe(recipe, tmp_path / "no" / "recipe.toml")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="not UTF-8 text, byte 0 is 0xff"):
        read_recipe(path)
