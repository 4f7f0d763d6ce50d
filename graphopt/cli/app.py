"""The application: commands, and what becomes of errors.

Every way out of a command goes through :func:`invoke`: results and errors become text or one JSON document,
and an exit code. Commands return their exit code; they raise, and never print, errors.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt import __version__
from graphopt.cli import calibrate, channels, demo, inspect, listings, run, sensitivity, validate
from graphopt.cli.output import Output, Told, give_streams, reserved_stdout, silence
from graphopt.errors import GraphoptError, OptionError, ProviderError, WriteError, nearest
from graphopt.record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

INTERRUPTED = 130
_BUG = 4
# What typer says about a value of an option; what was given is not always in it.
_BAD_VALUE = re.compile(
    r"Invalid value for '(--[\w-]+)'.*?: (?:Input should be (a valid \w+)|.* is not one of (.+))"
)

app = typer.Typer(
    name="graphopt",
    help="Make an ONNX model smaller and faster, and prove that it still works.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (run, validate, inspect, calibrate, sensitivity, channels, listings, demo):
    _module.register(app)


@app.callback()
def graphopt(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make an ONNX model smaller and faster, and prove that it still works."""
    del version, debug  # read from the arguments by invoke()


def command_names() -> tuple[str, ...]:
    """Return the names of all commands, in the order of ``--help``."""
    names = []
    for info in app.registered_commands:
        assert info.callback is not None
        names.append(info.name or info.callback.__name__)
    return tuple(names)


def invoke(arguments: Sequence[str]) -> int:
    """Run the command that *arguments* name and return the exit code."""
    give_streams()
    if list(arguments) in (["--version"], ["-V"]):
        sys.stdout.write(f"graphopt {__version__}\n")
        return 0
    _end_on_sigterm()
    try:
        if "--json" not in arguments:
            return _invoke(arguments)
        with reserved_stdout():
            return _invoke(arguments)
    except OSError as error:  # the device behind stdout is full or failed
        silence(sys.stdout)
        Output(json=False).error(
            WriteError(f"the output cannot be written ({error.strerror})", where="stdout")
        )
        return WriteError.exit_code


def _invoke(arguments: Sequence[str]) -> int:
    command = next((each for each in arguments if each in command_names()), "")
    output = Output(json="--json" in arguments)
    debug = "--debug" in arguments
    try:
        code = app(args=list(arguments), prog_name="graphopt", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _interrupted(output, command)
    except GraphoptError as error:
        return _failed(output, command, error, debug=debug)
    except Exception as error:  # noqa: BLE001 - the last stop: nothing may leave as a traceback
        if (usage := _usage_error(error, arguments)) is not None:
            return _failed(output, command, usage, debug=debug)
        bug = GraphoptError(
            f"internal error, a fault of graphopt: {type(error).__name__}: {error}",
            hint="Run the command again with --debug to see where, and report it.",
        )
        bug.__cause__ = error
        return _failed(output, command, bug, debug=debug, code=_BUG)
    if code == INTERRUPTED and not isinstance(code, Told):  # typer's answer to an interrupt
        return _interrupted(output, command)
    return int(code or 0)


def _usage_error(error: Exception, arguments: Sequence[str]) -> OptionError | None:
    """Return what typer (or the click that it stands on) found wrong with the arguments."""
    if not hasattr(error, "format_message") or getattr(error, "exit_code", None) is None:
        return None
    message = str(error.format_message()).strip().rstrip(".")
    hint = ""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{message}\n")
        return OptionError("no command was given", hint="`graphopt --help` lists the commands.")
    if message.startswith("No such command"):
        message = message.split(". ")[0].split("? ")[0]
        name = message.split("'")[1] if "'" in message else ""
        hint = nearest(name, command_names(), what="commands")
        message = f"there is no command {name!r}"
    context = getattr(error, "ctx", None)
    if found := _BAD_VALUE.match(message):
        option, kind, choices = found.groups()
        message = f"{option}: expected {kind or f'one of {choices}'}, got {_given(option, arguments)!r}"
    return OptionError(
        message, hint=hint or f"`{getattr(context, 'command_path', 'graphopt')} --help` says more."
    )


def _given(option: str, arguments: Sequence[str]) -> str:
    """Return the last value that *arguments* give *option*."""
    value = ""
    for argument, behind in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == option:
            value = behind
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value


def _failed(
    output: Output, command: str, error: GraphoptError, *, debug: bool, code: int | None = None
) -> int:
    from graphopt.pipeline.facts import versions
    from graphopt.pipeline.run import settle

    record = RunRecord(command=command, versions=versions(), status="failed")
    settle(record, error)
    if isinstance(error, ProviderError):
        from graphopt.runtime.providers import installation_warnings

        record.warnings = list(installation_warnings())
        for warning in record.warnings:
            output.warning(warning)
    output.error(error, traceback=debug)
    if output.json:
        output.document(record)
    return error.exit_code if code is None else code


def _interrupted(output: Output, command: str) -> int:
    error = GraphoptError("interrupted; nothing partial is left")
    output.error(error)
    if output.json:
        from graphopt.pipeline.facts import versions
        from graphopt.pipeline.run import settle

        record = RunRecord(command=command, versions=versions(), status="failed")
        settle(record, error)
        record.exit_code = INTERRUPTED
        output.document(record)
    return INTERRUPTED


def _end_on_sigterm() -> None:
    """Let a request to end unwind like an interrupt, so that temporary files and children go too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        return
