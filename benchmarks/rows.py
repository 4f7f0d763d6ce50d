"""What benchmarks of cases on tasks share: their options, the metric, and the rows of their result files."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

R = TypeVar("R")


def parser_of(doc: str | None, cases: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser that takes names of cases, and a file for their rows as ``--json``.

    Args:
        doc: The docstring of the benchmark.
        cases: All names.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = tuple(cases)

    def known(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"there is no case {name!r}; the cases are {', '.join(names)}")
        return name

    parser.add_argument("cases", nargs="*", metavar="CASE", type=known, help=", ".join(names))
    parser.add_argument("--json", type=Path)
    return parser


def open_quietly(path: Path) -> ort.InferenceSession:
    """Return a session on one thread of the CPU that says nothing."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def evaluate(task: Any, path: Path) -> float:
    """Return the task's metric of the model at *path*."""
    session = open_quietly(path)
    return float(task.evaluate(lambda feeds: session.run(None, feeds)))


def verdict(passed: bool | None) -> str:
    """Return what a line of a case ends with; None is a case without limits."""
    return "" if passed is None else " | ok" if passed else " | MISSED"


def show_all(
    rows: Iterable[R], line: Callable[[R], str], keep: Callable[[list[R]], None] = lambda _: None
) -> list[R]:
    """Print a line of each of *rows* as it comes, and return all.

    Args:
        rows: What is measured, one after the other.
        line: What to print.
        keep: Told after each what there is so far: the whole may take long.
    """
    found: list[R] = []
    for row in rows:
        found.append(row)
        print(line(row), flush=True)
        keep(found)
    return found


def keeper(path: Path | None, order: Iterable[str], indent: int = 2) -> Callable[[list[Any]], None]:
    """Return what :func:`merge` makes of rows that are dataclasses; nothing where there is no *path*."""

    def keep(rows: list[Any]) -> None:
        if path is not None:
            merge(path, map(asdict, rows), order, indent)

    return keep


def merge(path: Path, rows: Iterable[Mapping[str, Any]], order: Iterable[str], indent: int = 2) -> None:
    """Put *rows* into the file at *path*; cases that did not run this time stay as they were.

    Args:
        path: The file; it need not exist.
        rows: What was measured, each with its "case".
        order: All cases, in the order that the file is to have.
        indent: Spaces of each level.
    """
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = {each["case"]: each for each in (*known, *rows)}
    ordered = [found[case] for case in order if case in found]
    path.write_text(json.dumps(ordered, indent=indent) + "\n", encoding="utf-8")
