"""A target on a terminal: its rules, table by table, each with where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from graphopt.report.console import fields, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from graphopt.targets import Target

_ABOUT = frozenset({"name", "summary", "provider", "sources", "unmeasured", "runtime_limits"})


def target_page(target: Target, *, here: bool) -> RenderableType:
    """Return what ``graphopt targets NAME`` shows.

    Args:
        target: The target.
        here: Whether its provider is installed.
    """
    place = (
        "is installed here" if here else "is not installed here; models can be compiled for it all the same"
    )
    parts: list[RenderableType] = [
        Text(f"{target.name}: {target.summary}", style="bold"),
        Text(f"runs on the provider {target.provider!r}, which {place}"),
    ]
    document = target.model_dump(mode="json", exclude_unset=True)
    for name, content in document.items():
        if name not in _ABOUT and content:
            parts += [Text(), _heading(target, name), *_rules(content)]
            parts += _source(target, name)
    limits = [
        (row.release, str(row.max_ir_version), str(row.max_opset), str(row.max_ml_opset))
        for row in target.runtime_limits
    ]
    parts += [Text(), _heading(target, "runtime_limits")]
    parts.append(table(("runtime", "IR up to", "opset up to", "ai.onnx.ml up to"), limits, right=(1, 2, 3)))
    parts += _source(target, "runtime_limits")
    return Group(*parts)


def _heading(target: Target, name: str) -> Text:
    measured = "not measured here" if name in target.unmeasured else "measured"
    return Text.assemble(
        (name, "bold"), (f" ({measured})", "yellow" if name in target.unmeasured else "green")
    )


def _source(target: Target, name: str) -> Iterator[Text]:
    if name in target.sources:
        yield Text(f"source: {target.sources[name]}", style="dim")


def _rules(content: Any) -> Iterator[RenderableType]:  # noqa: ANN401 - whatever a table of a target holds
    """Yield the rules of one table: rows of a list as a table, everything else as names and values."""
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        heads = list(dict.fromkeys(key for row in content for key in row))
        yield table(heads, [[_shown(row.get(head)) for head in heads] for row in content])
        return
    if not isinstance(content, dict):
        yield Text(_shown(content))
        return
    yield fields((key.replace("_", " "), text) for key, text in _flat(content))
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            yield Text(key.replace("_", " "))
            yield from _rules(value)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif not (isinstance(value, list) and value and all(isinstance(row, dict) for row in value)):
            yield name, _shown(value)


def _shown(value: Any) -> str:  # noqa: ANN401 - a JSON value
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
