"""Instruments: watch the steps of a run without being able to change its course."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graphopt.api import Instrument
from graphopt.errors import GraphoptError, PathError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike

    from graphopt.api import Report, StepView
    from graphopt.ir import Model


class Timing(Instrument):
    """Measures wall-clock time of whole steps, clone to commit.

    Attributes:
        seconds: (step name, seconds) of every finished step, in order.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: list[tuple[str, float]] = []
        self._clock = clock
        self._start = 0.0

    def before(self, step: StepView, model: Model) -> None:
        """Start the clock."""
        del step, model
        self._start = self._clock()

    def after(self, step: StepView, model: Model, report: Report) -> None:
        """Note the time of the step."""
        del model, report
        self.seconds.append((step.name, self._clock() - self._start))

    def failed(self, step: StepView, error: BaseException) -> None:
        """Note the time of the step; a failure takes time too."""
        del error
        self.seconds.append((step.name, self._clock() - self._start))


class DumpAfterChange(Instrument):
    """Writes the model after every step that changed it: ``02-fold-constants.txt`` or ``.onnx``.

    Args:
        folder: Where to write; made if missing.
        form: ``text`` for the stable text form, ``onnx`` for a model that can be run.

    Raises:
        PathError: The folder cannot be made.
    """

    def __init__(self, folder: str | PathLike[str], form: Literal["text", "onnx"] = "text") -> None:
        self.folder = Path(folder)
        self.form = form
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PathError(f"the folder cannot be made: {error.strerror}", where=str(folder)) from error

    def after(self, step: StepView, model: Model, report: Report) -> None:
        """Write the model if the step changed it."""
        if not report.changed:
            return
        stem = f"{step.index + 1:02d}-{step.name}"
        if self.form == "onnx":
            from graphopt.ir.emit import save

            save(model, self.folder / f"{stem}.onnx")
        else:
            from graphopt.ir.text import to_text

            (self.folder / f"{stem}.txt").write_text(to_text(model), encoding="utf-8")


class Progress(Instrument):
    """Tells a function what is being done: ``show(index, total, step name)``, once a step.

    Args:
        show: Called with the step's place from 0, the number of steps and its name.
        total: Number of steps.
    """

    def __init__(self, show: Callable[[int, int, str], None], total: int) -> None:
        self._show = show
        self._total = total

    def before(self, step: StepView, model: Model) -> None:
        """Show the step that starts."""
        del model
        self._show(step.index, self._total, step.name)


class InstrumentStack:
    """Calls instruments as a stack: ``before`` in order, ``after`` and ``failed`` in reverse.

    An instrument that raises is reported once and not called again: watching must not ruin the run.

    Args:
        instruments: In order of registration.
        warn: Called with one sentence for each instrument that is dropped.
    """

    def __init__(self, instruments: Iterable[Instrument], warn: Callable[[str], None]) -> None:
        self._active = list(instruments)
        self._entered: list[Instrument] = []
        self._warn = warn

    def before(self, step: StepView, model: Model) -> None:
        """Tell all instruments that *step* starts on *model*."""
        self._entered = [each for each in tuple(self._active) if self._call(each, "before", step, model)]

    def after(self, step: StepView, model: Model, report: Report) -> None:
        """Tell those that saw *step* start that it is committed or left the model unchanged."""
        for instrument in self._leave():
            self._call(instrument, "after", step, model, report)

    def failed(self, step: StepView, error: BaseException) -> None:
        """Tell those that saw *step* start that it failed."""
        for instrument in self._leave():
            self._call(instrument, "failed", step, error)

    def _leave(self) -> list[Instrument]:
        entered, self._entered = self._entered, []
        return entered[::-1]

    def _call(self, instrument: Instrument, event: str, *arguments: object) -> bool:
        """Call one method of *instrument* and return whether it may be called again."""
        try:
            getattr(instrument, event)(*arguments)
        except Exception as error:  # noqa: BLE001 - strangers' code; whatever it raises ends its part, not the run
            text = str(error) if isinstance(error, GraphoptError) else f"{type(error).__name__}: {error}"
            self._active.remove(instrument)
            self._warn(
                f"instrument {type(instrument).__name__} failed in {event}() and is no longer called: {text}"
            )
            return False
        return True
