"""The command line: parses, calls, prints."""

from __future__ import annotations


def main() -> None:
    """Run the command line and leave with its exit code; the entry point of ``graphopt``."""
    import gc
    import sys

    from graphopt.cli.app import invoke

    code = invoke(sys.argv[1:])
    # Taking a large model apart, object by object, takes the interpreter longer than reading it did.
    gc.freeze()
    sys.exit(code)
