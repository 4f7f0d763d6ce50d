"""Where the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIPED_WIDTH = 160
"""Columns where nobody looks: wide enough that tools which read lines get whole ones."""


class PatientConsole(Console):
    """A console that keeps quiet once its reader is gone; the command ends with its own exit code."""

    def on_broken_pipe(self) -> None:
        """Called by rich when the reader has closed the pipe (``graphopt inspect m.onnx | head``)."""
        self.quiet = True
        silence_stdout()


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that takes text as it is: no markup, no guessed colours, plain when piped."""
    console = PatientConsole(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


def write_stdout(text: str) -> None:
    """Write *text* to stdout; a reader that went away is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()


def silence_stdout() -> None:
    """Send what is still to come on stdout nowhere, so that the interpreter's own last flush is quiet."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextlib.contextmanager
def reserved_stdout() -> Iterator[None]:
    """Send to stderr whatever is written to stdout inside the block, by Python, C or child processes.

    Passes and plugins may print; the JSON document must stand alone.
    """
    with contextlib.redirect_stdout(sys.stderr), _reserved_descriptor(sys.__stdout__, sys.__stderr__):
        yield


@contextlib.contextmanager
def _reserved_descriptor(stdout: TextIO | None, stderr: TextIO | None) -> Iterator[None]:
    try:
        assert stdout is not None
        assert stderr is not None
        stdout.flush()
        out, err = stdout.fileno(), stderr.fileno()
        saved = os.dup(out)
    except (AssertionError, OSError, ValueError):  # closed or replaced streams have no descriptor to guard
        yield
        return
    try:
        os.dup2(err, out)
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            stdout.flush()
        os.dup2(saved, out)
        os.close(saved)
