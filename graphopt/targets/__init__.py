"""What an execution provider runs well and what it can load, as data: one TOML file a target."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from graphopt.errors import OptionError, PluginError, nearest
from graphopt.targets.target import RuntimeLimits, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

__all__ = ["DEFAULT_TARGET", "RuntimeLimits", "Target", "known_targets", "load_target"]

DEFAULT_TARGET = "ort-cpu"


def known_targets(extra: Mapping[str, Path | str] | None = None) -> tuple[str, ...]:
    """Return the names of all targets in alphabetical order.

    Args:
        extra: Targets of plugins by name, as :func:`load_target` takes them.
    """
    return tuple(sorted({*_built_in(), *(extra or {})}))


def load_target(
    name: str, extra: Mapping[str, Path | str] | None = None, *, where: str = "--target"
) -> Target:
    """Read the target called *name*.

    Args:
        name: One of :func:`known_targets`.
        extra: Targets of plugins by name: the path of a TOML file, or ``"package:file.toml"`` for a file
            inside an installed package. They may not take the name of a built-in one.
        where: Where the name stands, for the error.

    Raises:
        OptionError: No target has that name.
        PluginError: The file cannot be read, is not TOML, has an unknown, missing or malformed key, or
            takes the name of a built-in target.
    """
    extra = extra or {}
    built_in = _built_in()
    if clash := sorted(extra.keys() & built_in.keys()):
        raise PluginError(
            f"a plugin registers the target {clash[0]!r}, which is built in",
            where=str(extra[clash[0]]),
            hint="Give the plugin's target another name",
        )
    if name in built_in:
        return _read(name, built_in[name], str(built_in[name]))
    if name in extra:
        place = extra[name]
        return _read(name, _locate(place), str(place))
    raise OptionError(
        f"unknown target {name!r}", where=where, hint=nearest(name, {*built_in, *extra}, what="known")
    )


def _built_in() -> dict[str, Traversable]:
    folder = resources.files("graphopt.targets")
    files = (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return {entry.name.removesuffix(".toml"): entry for entry in files}


def _locate(place: Path | str) -> Traversable:
    """Return the file that a plugin's target stands in; a path with a drive letter is not a package."""
    if isinstance(place, str) and ":" in place and not Path(place).is_absolute():
        package, _, file = place.partition(":")
        try:
            return resources.files(package) / file
        except (ImportError, TypeError, ValueError) as error:
            raise PluginError(
                f"the package {package!r} of a target cannot be imported ({error})", where=place
            ) from error
    return Path(place)


def _read(name: str, file: Traversable, where: str) -> Target:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PluginError(
            f"the target file cannot be read ({error.strerror or error})", where=where
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginError(f"the target file is not TOML ({error})", where=where) from error
    try:
        target = Target.model_validate(table)
    except ValidationError as error:
        raise PluginError(_first_problem(error), where=where) from error
    if target.name != name:
        raise PluginError(f"the key 'name' must be {name!r}, got {target.name!r}", where=where)
    return target


def _first_problem(error: ValidationError) -> str:
    """Say which key is wrong and why; the other problems are counted."""
    details = error.errors(include_url=False)
    key = ".".join(str(part) for part in details[0]["loc"])
    reason = details[0]["msg"].removeprefix("Value error, ")
    reason = f"{reason[:1].lower()}{reason[1:]}"
    more = f" ({len(details) - 1} more)" if len(details) > 1 else ""
    return f"key {key!r}: {reason}{more}" if key else f"{reason}{more}"
