"""Every error that graphopt raises on purpose, under one root.

A message says what is wrong, where, what was expected, what was found and what to do next. The parts
are kept apart so that a report can show them apart; ``str(error)`` joins them into one sentence or two.
The class decides the exit code of the command line.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class GraphoptError(Exception):
    """Root of all errors that graphopt raises.

    Args:
        message: What is wrong, one sentence without its full stop.
        where: The file, node, value or option that it is about, as the user knows it.
        hint: What to do next, one sentence.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (--isolate, runtime workers); keyword arguments must survive.
        return _rebuild, (type(self), self.message, self.where, self.hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        end = "" if text.endswith((".", "?", "!")) else "."
        return f"{text}{end} {self.hint}" if self.hint else text


def _rebuild(cls: type[GraphoptError], message: str, where: str, hint: str) -> GraphoptError:
    return cls(message, where=where, hint=hint)


class OptionError(GraphoptError):
    """An option of a pass or of the command line is unknown, malformed or out of range."""

    exit_code = 2


class PathError(OptionError):
    """An input path is missing or a directory; an output path is unwritable or is the input itself."""


class PlanError(GraphoptError):
    """A pipeline is malformed, names an unknown pass, or orders passes in a way that cannot work."""

    exit_code = 2


class PluginError(GraphoptError):
    """A plugin cannot be loaded, clashes with another one, or breaks the hook contract."""

    exit_code = 2


class InvalidModelError(GraphoptError):
    """The file is not an ONNX model, or the model breaks a rule of ONNX."""

    exit_code = 3


class UnsupportedModelError(GraphoptError):
    """The model is valid ONNX that graphopt cannot represent without loss."""

    exit_code = 3


class DataError(GraphoptError):
    """Input data cannot be read or does not fit the inputs of the model."""

    exit_code = 3


class PassFailed(GraphoptError):  # noqa: N818 - it reads as an event in reports; the name is part of the interface
    """A pass raised, or broke its contract with the manager."""


class VerifyError(GraphoptError):
    """The model that a pass left behind breaks a structural rule."""


class WriteError(GraphoptError):
    """An output could not be written whole (disk full, device error); nothing partial is left."""


class WorkerError(GraphoptError):
    """A child process crashed or ran out of time."""


class GateFailed(GraphoptError):  # noqa: N818 - as PassFailed
    """A gate or a validation refused the model, or a request could be met only in part."""

    exit_code = 1


class ProviderError(GraphoptError):
    """An execution provider is missing or refuses the model, or the runtime is too old for the model."""

    exit_code = 5


def nearest(name: str, known: Iterable[str], *, what: str = "known") -> str:
    """Return a hint naming the closest of *known* to *name*, or all of them where none is close.

    >>> nearest("fold-constant", ["fold-constants", "deduplicate"])
    "Did you mean 'fold-constants'?"
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"{what.capitalize()}: {', '.join(options)}." if options else f"There are no {what} names."
