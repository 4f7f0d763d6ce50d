"""The application: its commands, and what happens where one cannot even be parsed."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from graphopt.cli.commands import demo, inspect, listing, replay, run, validate
from graphopt.cli.session import INTERRUPTED, Session, command_of, flush_quietly, is_json, settings
from graphopt.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line it cannot parse; public only as the base of BadParameter."""


class GraphoptGroup(TyperGroup):
    """The group of all commands; a usage error is told like every other error."""

    def main(  # noqa: D102 - typer's
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,  # noqa: ANN401 - typer's
    ) -> Any:  # noqa: ANN401 - typer's
        arguments = sys.argv[1:] if args is None else list(args)
        settings.debug = False
        try:
            code = super().main(
                args=arguments,
                prog_name=prog_name or "graphopt",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except _UsageError as error:
            code = _tell_usage(error, arguments)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        if not standalone_mode:
            return code
        flush_quietly()
        sys.exit(code if isinstance(code, int) else 0)


def _tell_usage(error: Any, arguments: list[str]) -> int:  # noqa: ANN401 - typer's usage error
    context = error.ctx
    path = context.command_path if context is not None else "graphopt"
    message = " ".join(error.format_message().split()).rstrip(".?")
    message, _, guess = message.partition(". Did you mean ")
    hint = f"Did you mean {guess}? " if guess else ""
    try:
        with Session(command_of(arguments), as_json=is_json(arguments)):
            raise OptionError(
                message[:1].lower() + message[1:], hint=f"{hint}'{path} --help' lists what there is."
            )
    except typer.Exit as stop:
        return stop.exit_code


app = typer.Typer(
    name="graphopt",
    cls=GraphoptGroup,
    help="Compiler passes over ONNX graphs: make a model smaller and faster, and prove that it still works.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from graphopt import __version__

        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Options before the sub-command."""
    settings.debug = debug
    if context.invoked_subcommand is None:
        if text := context.get_help():
            typer.echo(text)
        raise typer.Exit(OptionError.exit_code)


app.command("run")(run.run)
app.command("replay")(replay.replay)
app.command("validate")(validate.validate)
app.command("inspect")(inspect.inspect)
app.command("passes")(listing.passes)
app.command("plugins")(listing.plugins)
app.command("targets")(listing.targets)
app.command("demo")(demo.demo)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    app(args=arguments)
    raise AssertionError("the application ends the process")  # pragma: no cover


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Treat a polite request to end as an interrupt: drafts are removed on the way out."""
    del number, frame
    raise KeyboardInterrupt
