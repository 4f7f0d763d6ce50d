"""The command line: parses, calls, prints."""

from __future__ import annotations

from typing import NoReturn


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line with *arguments*, those of the process by default, and leave with its exit code."""
    from graphopt.cli.app import main as run

    run(arguments)


def __getattr__(name: str) -> object:
    if name == "app":
        from graphopt.cli.app import app

        return app
    raise AttributeError(f"module 'graphopt.cli' has no attribute {name!r}")
