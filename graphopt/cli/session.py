"""What every command has in common: one record, one way to fail, one way to print."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import typer
from rich.text import Text

from graphopt.cli.console import make_console, reserved_stdout, silence_stdout, write_stdout
from graphopt.errors import GraphoptError, PathError, ProviderError
from graphopt.record import ErrorRecord, RunRecord

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

    from graphopt.pipeline.plugins import Registry

INTERRUPTED = 130
_INTERNAL = 4


@dataclass
class _Settings:
    debug: bool = False


settings = _Settings()
"""Options given before the sub-command."""


class Session:
    """One command from start to end, used as a context manager.

    Whatever ends the block is turned into the record's status, one sentence on stderr and the exit code;
    the report and the JSON document are written in every case.

    Args:
        command: Name of the command.
        as_json: Whether stdout is to hold one JSON document and nothing else.
        debug: Whether to show tracebacks.
        report: Folder to write the reports to.

    Attributes:
        record: What the command did.
        registry: Plugins, for their reporters, where the command loaded any.
    """

    def __init__(
        self, command: str, *, as_json: bool = False, debug: bool = False, report: str | None = None
    ) -> None:
        self.as_json = as_json
        self.debug = debug or settings.debug
        self.report = None if report is None else Path(report)
        self.record = RunRecord(command=command)
        self.registry: Registry | None = None
        self.out = make_console()
        self.err = make_console(stderr=True)
        self._stack = contextlib.ExitStack()
        self._shown: list[RenderableType] = []
        self._text = ""
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        if self.as_json:
            self._stack.enter_context(reserved_stdout())
        try:
            from graphopt.pipeline.facts import versions

            self.record.versions = versions()
            if self.report is not None:
                self._make_report_folder(self.report)
        except GraphoptError as error:
            self.report = None
            self._finish(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, typer.Exit | SystemExit | GeneratorExit):
            self._stack.close()
            return False
        self._finish(error or self._error)
        return True

    def show(self, *parts: RenderableType) -> None:
        """Show *parts* on stdout once the command has ended, unless the JSON document stands there."""
        self._shown.extend(parts)

    def show_text(self, text: str) -> None:
        """Show *text* as it is, never wrapped to the terminal, once the command has ended."""
        self._text += text if text.endswith("\n") else text + "\n"

    def fail(self, error: GraphoptError) -> None:
        """Note that the command failed with *error*; it may go on to show what it has."""
        self._error = error

    def _finish(self, error: BaseException | None) -> None:
        """Close the record, write everything, and leave with the exit code."""
        record = self.record
        try:
            if error is not None:
                self._settle(error)
            self._write_reports()
        finally:
            self._stack.close()
        if self.as_json:
            from graphopt.report.json import to_text

            write_stdout(to_text(record))
        else:
            self._print_shown()
        for warning in dict.fromkeys(record.warnings):
            self._say("warning", "yellow", warning)
        self._explain(error)
        raise typer.Exit(record.exit_code)

    def _print_shown(self) -> None:
        try:
            for part in self._shown:
                self.out.print(part)
        except BrokenPipeError:  # releases of rich without on_broken_pipe
            silence_stdout()
        write_stdout(self._text)

    def _settle(self, error: BaseException) -> None:
        from graphopt.pipeline.run import settle

        record = self.record
        if isinstance(error, GraphoptError):
            settle(record, error)
            if isinstance(error, ProviderError):
                from graphopt.runtime.providers import installation_warnings

                record.warnings += [each for each in installation_warnings() if each not in record.warnings]
            return
        record.status = "failed"
        if isinstance(error, KeyboardInterrupt):
            record.exit_code = INTERRUPTED
            record.error = ErrorRecord(type="Interrupted", where="", message="interrupted", hint="")
            return
        record.exit_code = _INTERNAL
        record.error = ErrorRecord(
            type=type(error).__name__,
            where="",
            message=f"internal error: {_one_line(error)}",
            hint="This is a fault of graphopt or of a plugin; --debug shows where.",
        )

    def _explain(self, error: BaseException | None) -> None:
        if self.debug and error is not None and not isinstance(error, KeyboardInterrupt):
            self.err.print(Text("".join(traceback.format_exception(error)).rstrip()), soft_wrap=True)
        found = self.record.error
        if found is None:
            return
        place = f"{found.where}: " if found.where else ""
        self._say("error", "bold red", f"{place}{found.message}")
        if found.hint:
            self._say(" hint", "cyan", found.hint)

    def _say(self, label: str, style: str, text: str) -> None:
        # Lines for people and for grep alike: never wrapped by us, so that a path stays in one piece.
        self.err.print(Text.assemble((f"{label}: ", style), text), soft_wrap=True)

    @staticmethod
    def _make_report_folder(folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PathError(
                f"the folder for reports cannot be made: {error.strerror}", where=str(folder)
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PathError("the folder for reports is not writable", where=str(folder))

    def _write_reports(self) -> None:
        if self.report is None:
            return
        from graphopt.report import json, markdown

        try:
            reporters = {} if self.registry is None else self.registry.reporters
            for name in reporters:
                try:
                    reporters[name](self.record, self.report)
                except Exception as error:  # noqa: BLE001 - a stranger's code must not hide what happened
                    self.record.warnings.append(f"the reporter {name!r} failed: {_one_line(error)}")
            json.write(self.record, self.report)
            markdown.write(self.record, self.report)
        except GraphoptError as error:
            if self.record.error is None:
                self._settle(error)
            else:
                self.record.warnings.append(f"the report could not be written: {error}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_json(arguments: list[str]) -> bool:
    """Return whether *arguments* ask for a JSON document although they could not be parsed."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in before


def command_of(arguments: list[str]) -> str:
    """Return the sub-command that *arguments* name, as far as it can be told without parsing them."""
    return next((each for each in arguments if not each.startswith("-")), "")


def flush_quietly() -> None:
    """Flush both streams; a reader that went away is no error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
