"""The command line: parses, calls, prints."""

from __future__ import annotations


def main() -> None:
    """Run the command line and leave with its exit code; the entry point of ``graphopt``."""
    import gc
    import sys

    try:
        from graphopt.cli.app import INTERRUPTED, invoke
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        code = invoke(sys.argv[1:])
    except KeyboardInterrupt:  # so early or so late that no command was at work
        code = INTERRUPTED
    # Taking a large model apart, object by object, takes the interpreter longer than reading it did.
    gc.freeze()
    sys.exit(code)
