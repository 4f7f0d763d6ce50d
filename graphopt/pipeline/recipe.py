"""Recipes: a pipeline, and the gates that hold it, as TOML.

::

    [[pass]]
    name = "prune-channels"
    [pass.options]
    macs_ratio = 0.5

    [[gate]]
    name = "numeric"
    [gate.options]
    min_sqnr_db = 40

    [preprocess]              # for --data FOLDER of images
    resize = 256
    crop = 224
    scale = 0.00392156862745098
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]

A recipe says the same as the pipeline text: each value stands for its printed form (``true``, ``0.5``), and
None, which TOML lacks, is the string ``"none"``.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import PathError, PlanError, nearest
from graphopt.pipeline.options import printed
from graphopt.pipeline.text import Raw, Step, is_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

_STEPS = ("pass", "gate")
_PREPROCESS = "preprocess"
_TABLES = (*_STEPS, _PREPROCESS)
_KEYS = ("name", "options")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        steps: The passes, in order.
        gates: The gates that every step that changed something must pass, in order.
        preprocess: How images become inputs (graphopt.calibrate.images.Preprocess); None where not said.
    """

    steps: tuple[Step, ...] = ()
    gates: tuple[Step, ...] = ()
    preprocess: Mapping[str, Any] | None = None


def read_recipe(path: str | PathLike[str]) -> Recipe:
    """Return the recipe in the file at *path*.

    Raises:
        PathError: The file is missing, a directory or unreadable.
        PlanError: It is not TOML, or holds a key or a value that a recipe does not have.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise PathError("expected a recipe file, got a directory", where=str(path)) from None
    except OSError as error:
        raise PathError(f"the recipe cannot be read: {error.strerror}", where=str(path)) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(
            f"the recipe is not UTF-8 text, byte {error.start} is 0x{data[error.start]:02x}", where=str(path)
        ) from error
    return parse_recipe(text, where=str(path))


def parse_recipe(text: str, *, where: str = "recipe") -> Recipe:
    """Return the recipe that *text* spells; *where* names it in messages.

    Raises:
        PlanError: As :func:`read_recipe`.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"the recipe is not TOML: {error}", where=where) from error
    for key in document:
        if key not in _TABLES:
            line = _line_of(text, rf"\s*(\[\[?\s*)?[\"']?{re.escape(key)}\b", 1)
            raise PlanError(
                f"unknown key {key!r}",
                where=f"{where}{line}",
                hint=nearest(key, _TABLES, what="tables")
                + " A recipe has [[pass]] and [[gate]] tables, and [preprocess].",
            )
    found = {kind: _steps(document.get(kind, []), kind, text, where) for kind in _STEPS}
    preprocess = document.get(_PREPROCESS)
    if preprocess is not None and not isinstance(preprocess, dict):
        raise PlanError("'preprocess' is not a table", where=where, hint="Write [preprocess].")
    return Recipe(found["pass"], found["gate"], preprocess)


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as TOML; ``parse_recipe`` of it gives an equal recipe."""
    blocks = [_block("pass", step) for step in recipe.steps] + [_block("gate", step) for step in recipe.gates]
    if recipe.preprocess:
        lines = (f"{key} = {_any_toml(value)}" for key, value in recipe.preprocess.items())
        blocks.append("\n".join(["[preprocess]", *lines]) + "\n")
    return "\n".join(blocks)


def write_recipe(recipe: Recipe, path: str | PathLike[str]) -> None:
    """Write the recipe to *path*.

    Raises:
        PathError: The file cannot be written.
    """
    try:
        Path(path).write_text(recipe_text(recipe), encoding="utf-8")
    except OSError as error:
        raise PathError(f"the recipe cannot be written: {error.strerror}", where=str(path)) from error


def _steps(tables: object, kind: str, text: str, where: str) -> tuple[Step, ...]:
    if not isinstance(tables, list):
        raise PlanError(
            f"{kind!r} is not a list of tables", where=where, hint=f"Write [[{kind}]], not [{kind}]."
        )
    return tuple(_step(table, kind, number, text, where) for number, table in enumerate(tables, start=1))


def _step(table: object, kind: str, number: int, text: str, where: str) -> Step:
    line = _line_of(text, rf"\s*\[\[\s*{kind}\s*\]\]", number)
    place = f"{where}, [[{kind}]] {number}{line}"
    if not isinstance(table, dict):
        raise PlanError(f"expected a table, got {table!r}", where=place, hint=f"Write [[{kind}]].")
    for key in table:
        if key not in _KEYS:
            raise PlanError(
                f"unknown key {key!r}",
                where=place,
                hint=f"{nearest(key, _KEYS, what='keys')} Options stand under [{kind}.options].",
            )
    name = table.get("name")
    if not isinstance(name, str):
        got = "nothing" if name is None else repr(name)
        raise PlanError(f'expected name = "...", got {got}', where=place, hint=f"Name the {kind}.")
    if not is_word(name):
        raise PlanError(
            f"{name!r} is not a name", where=place, hint='A name has no spaces and none of , { } [ ] = ".'
        )
    options = table.get("options", {})
    if not isinstance(options, dict):
        raise PlanError(
            f"options is {options!r}, expected a table", where=place, hint=f"Write [{kind}.options]."
        )
    return Step(name, {key: _raw(key, value, place) for key, value in options.items()})


def _raw(key: str, value: Any, place: str) -> Raw:  # noqa: ANN401 - any TOML value
    if not is_word(key):
        raise PlanError(f"{key!r} is not the name of an option", where=place)
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, bool | int | float | str):
            raise PlanError(
                f"option {key!r} holds {item!r}, expected text, a number, true or false, or a list of those",
                where=place,
                hint="Options are flat.",
            )
        if isinstance(item, float) and not math.isfinite(item):
            raise PlanError(f"option {key!r} is {item}, expected a finite number", where=place)
    return printed(value)


def _line_of(text: str, pattern: str, number: int) -> str:
    """Return ``, line N`` of the *number*-th line that starts with *pattern*; TOML readers do not keep it."""
    hits = [index for index, line in enumerate(text.splitlines(), start=1) if re.match(pattern, line)]
    return f", line {hits[number - 1]}" if len(hits) >= number else ""


def _block(kind: str, step: Step) -> str:
    lines = [f"[[{kind}]]", f"name = {_string(step.name)}"]
    if step.options:
        lines.append(f"[{kind}.options]")
        lines.extend(_assignments(step.options))
    return "\n".join(lines) + "\n"


def _assignments(options: Mapping[str, Raw]) -> Iterable[str]:
    for key, value in options.items():
        name = key if _BARE_KEY.fullmatch(key) else _string(key)
        yield f"{name} = {_toml(value)}" if isinstance(value, str) else f"{name} = [{_items(value)}]"


def _items(values: Iterable[str]) -> str:
    return ", ".join(_toml(value) for value in values)


def _toml(text: str) -> str:
    """Return *text* as the plainest TOML value with that printed form."""
    if text in {"true", "false"} or _INTEGER.fullmatch(text):
        return text
    try:
        number = float(text)
    except ValueError:
        return _string(text)
    same = math.isfinite(number) and repr(number) == text
    return text if same else _string(text)


def _any_toml(value: Any) -> str:  # noqa: ANN401 - a value that TOML gave
    if isinstance(value, list | tuple):
        return f"[{', '.join(_any_toml(item) for item in value)}]"
    return _string(value) if isinstance(value, str) else _toml(str(printed(value)))


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    # Unlike JSON, TOML has no surrogate pairs in escapes: only control characters are escaped.
    return '"' + "".join(f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else c for c in escaped) + '"'
