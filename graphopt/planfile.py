"""plan.toml: what a pass is to do with each node or family, written by commands and read by ``{plan=FILE}``.

    schema = 1
    pass = "prune-channels"
    fingerprint = "..."          # of the model that it was made for

    [[item]]
    family = "conv1.weight[0]"
    keep = 32

Items are flat tables; what their keys mean is the business of the pass.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import OptionError, PathError
from graphopt.ir.textfiles import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = 1

Entry = str | int | float | bool | list[int] | list[str]


@dataclass(frozen=True)
class PlanFile:
    """The content of a plan.toml.

    Attributes:
        pass_name: The pass that it is for.
        fingerprint: Fingerprint of the model that it was made for; "" where a person left it out.
        items: One table a decision, in the order of the file.
        comment: Lines to put on top, for people; not read back.
    """

    pass_name: str
    items: tuple[Mapping[str, Entry], ...]
    fingerprint: str = ""
    comment: str = ""


def write_plan(path: Path, plan: PlanFile) -> None:
    """Write *plan* to *path*, whole or not at all.

    Raises:
        PathError: The folder cannot be written to.
        WriteError: The device failed or is full.
    """
    write_whole(path, to_toml(plan))


def to_toml(plan: PlanFile) -> str:
    """Return the text of a plan.toml."""
    lines = [f"# {line}".rstrip() for line in plan.comment.splitlines()]
    lines += [f"schema = {SCHEMA}", f"pass = {_toml(plan.pass_name)}"]
    if plan.fingerprint:
        lines.append(f"fingerprint = {_toml(plan.fingerprint)}")
    for item in plan.items:
        lines += ["", "[[item]]", *(f"{key} = {_toml(value)}" for key, value in item.items())]
    return "\n".join(lines) + "\n"


def read_plan(path: Path, pass_name: str) -> PlanFile:
    """Return the plan in *path*.

    Args:
        path: A plan.toml.
        pass_name: The pass that is to follow it.

    Raises:
        PathError: There is no such file.
        OptionError: It is not TOML, of another schema or for another pass, or its form is wrong.
    """
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise PathError("expected a plan.toml, got a directory", where=where) from None
    except OSError as error:
        raise PathError(f"the plan cannot be read ({error.strerror})", where=where) from error
    except UnicodeDecodeError as error:
        raise OptionError(f"the plan is not TOML ({error})", where=where) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"the plan is not TOML ({error})", where=where) from error
    if table.get("schema") != SCHEMA:
        raise OptionError(f"expected schema = {SCHEMA}, got {table.get('schema')!r}", where=where)
    if table.get("pass") != pass_name:
        raise OptionError(
            f"the plan is for the pass {table.get('pass')!r}, not for {pass_name!r}", where=where
        )
    unknown = sorted(table.keys() - {"schema", "pass", "fingerprint", "item"})
    if unknown:
        raise OptionError(f"there is no key {unknown[0]!r} in a plan", where=where)
    items = table.get("item", [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise OptionError("expected [[item]] tables", where=where)
    return PlanFile(pass_name, tuple(items), str(table.get("fingerprint", "")))


def _toml(value: Entry) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string without its escape for the slash and surrogates is a TOML basic string.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    return str(value)
