"""Where output goes: results to stdout, everything else to stderr; with ``--json`` one document to stdout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

from graphopt.errors import WriteError
from graphopt.pipeline.request import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from graphopt.errors import GraphoptError
    from graphopt.record import RunRecord

# Tables that no one looks at in a terminal are not folded to the width of one.
_FILE_WIDTH = 160


class Told(int):
    """An exit code whose reason stands on stderr and in the document already."""

    __slots__ = ()


class Output:
    """Prints for one command.

    Args:
        json: Whether stdout is for one JSON document alone.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)

    def show(self, renderable: RenderableType) -> None:
        """Print a result for people; nothing with ``--json``."""
        if self.json:
            return
        try:
            self._out.print(renderable, soft_wrap=isinstance(renderable, str))
        except BrokenPipeError:  # a release of rich that does not ask on_broken_pipe()
            self._out.on_broken_pipe()
        except OSError as error:
            raise _unwritable(error, sys.stdout) from error

    def warning(self, text: str) -> None:
        """Print a warning to stderr."""
        self._err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def error(self, error: GraphoptError, *, traceback: bool = False) -> None:
        """Print an error to stderr, behind its traceback where that is asked for."""
        if traceback:
            sys.stderr.write("".join(format_exception(error)))
        text = str(error).rstrip()
        ended = text if text.endswith((".", "?", "!", "`", "^")) else f"{text}."
        self._err.print(Text.assemble(("error: ", "bold red"), ended), soft_wrap=True)

    def document(self, document: RunRecord | dict[str, Any]) -> None:
        """Write the JSON document."""
        from graphopt.report.json import to_text

        stream = _reserved[-1] if _reserved else sys.stdout
        text = to_text(document) if not isinstance(document, dict) else _dumped(document)
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            silence(stream)
        except OSError as error:
            raise _unwritable(error, stream) from error

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Show how a run is going, on a terminal; elsewhere nothing."""
        if not self._err.is_terminal:
            yield Watch()
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._err, transient=True) as progress:
            yield _Bar(progress)


class _Bar(Watch):
    def __init__(self, progress: Any) -> None:  # noqa: ANN401 - rich.progress is imported only on a terminal
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        self._progress.reset(self._task, description=text, total=None)

    def progress(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


_reserved: list[TextIO] = []
"""The real stdout, while it is reserved for the document."""


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Keep stdout for :meth:`Output.document`: what else is written there inside the block goes to stderr.

    Passes and plugins may print, from Python, from C or from a child process; the document stands alone.
    """
    real = sys.stdout
    with contextlib.ExitStack() as stack:
        stream: TextIO = real
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream in memory has no descriptor
            real.flush()
            out, err = real.fileno(), sys.stderr.fileno()
            copy = os.dup(out)
            stream = stack.enter_context(os.fdopen(copy, "w", encoding=real.encoding))
            os.dup2(err, out)
            stack.callback(_restore, real, stream, out)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        _reserved.append(stream)
        stack.callback(_reserved.pop)
        yield


def _dumped(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def give_streams() -> None:
    """Put a stream that leads nowhere in the place of one that was closed before we started (``>&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - it lives as long as we do
            setattr(sys, name, null)


def _unwritable(error: OSError, stream: Any) -> WriteError:  # noqa: ANN401 - a text stream
    silence(stream)
    return WriteError(f"the output cannot be written ({error.strerror})", where="stdout")


def silence(stream: Any) -> None:  # noqa: ANN401 - a text stream
    """Let *stream* lead nowhere: its reader is gone, and the last flush at exit must not complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _restore(real: TextIO, stream: TextIO, descriptor: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        real.flush()
    os.dup2(stream.fileno(), descriptor)


class _PatientConsole(Console):
    """A console that falls silent when its reader goes away: the command keeps its own exit code."""

    def on_broken_pipe(self) -> None:
        """Called by rich when what it prints finds no reader."""
        self.quiet = True
        silence(self.file)


def _console(stream: Any) -> Console:  # noqa: ANN401 - a text stream
    width = None if stream.isatty() else max(_FILE_WIDTH, shutil.get_terminal_size().columns)
    return _PatientConsole(file=stream, width=width, highlight=False, emoji=False, markup=False)
