"""What a long command shows while it works: one line on the terminal, gone when it is done."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from graphopt.pipeline.run import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


class Bar(Watch):
    """Shows the stage of a run and how far it has come.

    Args:
        progress: The line on the terminal.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        """Turn to *text*; how far it will go is not known yet."""
        self._progress.reset(self._task, total=None, description=text)

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total)


@contextlib.contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Yield something to tell about the run: a bar on a terminal, and a deaf listener elsewhere."""
    if not console.is_terminal:
        yield Watch()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress)
