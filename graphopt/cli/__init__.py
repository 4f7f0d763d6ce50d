"""The command line: parses, calls, prints."""

from __future__ import annotations


def main() -> None:
    """Run the command line and leave with its exit code; the entry point of ``graphopt``."""
    import sys

    from graphopt.cli.app import invoke

    sys.exit(invoke(sys.argv[1:]))
