"""A gate: the model must not tell where it was made."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from graphopt.api import Gate, GateResult, PassOptions
from graphopt_strip_metadata.paths import machine_paths, source_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.api import Context
    from graphopt.ir import Model

# Fields of prose; elsewhere (names, string attributes) a scope may look like a folder, so that only source
# files count there.
_PROSE = frozenset({"doc_string", "value"})
# Data of tensors: bytes that are no text, and text that the model computes with.
_DATA = frozenset({"raw_data", "string_data"})


class NoSourcePaths(Gate):
    """Refuses a model that names source files or home folders."""

    name: ClassVar[str] = "no-source-paths"
    summary: ClassVar[str] = "refuse a model that still names files of the machine that exported it"

    class Options(PassOptions):
        """Exceptions."""

        allow: list[str] = Field(
            default_factory=list, description="patterns of paths that may stay (* and ?)"
        )

    options: Options

    def check(self, original: Model, candidate: Model, context: Context) -> tuple[GateResult, ...]:
        """Return how many paths the message of *candidate* holds; the first is named."""
        del original, context
        from graphopt.ir.emit import emit

        found = [
            (place, path)
            for place, path in _paths(emit(candidate), "model")
            if not any(fnmatchcase(path, pattern) for pattern in self.options.allow)
        ]
        note = f"{found[0][1]!r} in {found[0][0]}" if found else ""
        return (GateResult("source_paths", float(len(found)), 0.0, passed=not found, note=note),)


def _paths(message: Any, place: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - protobuf has no types
    """Yield (place, path) for every path in a text field of *message* and what it holds."""
    for field, content in message.ListFields():
        if field.name in _DATA:
            continue
        repeated = hasattr(content, "__len__") and not isinstance(content, str | bytes)
        for item in content if repeated else [content]:
            if field.message_type is not None:
                yield from _paths(item, _within(place, item))
            elif isinstance(item, str | bytes):
                text = item if isinstance(item, str) else item.decode(errors="replace")
                search = machine_paths if field.name in _PROSE else source_files
                yield from ((f"the {field.name} of {place}", path) for path in search(text))


def _within(place: str, message: Any) -> str:  # noqa: ANN401 - as _paths
    """Return how to call *message*: by its own name where it has one, else like what holds it."""
    kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
    if kind == "stringstringentry":
        return f"metadata {message.key!r} of {place}"
    name = getattr(message, "name", "")
    return f"{kind} {name!r}" if name else place
