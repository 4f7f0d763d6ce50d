"""What a run is told, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphopt.api import Instrument
from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.text import Step

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.api import Evidence, Gate, StepView
    from graphopt.errors import GraphoptError
    from graphopt.ir import ExternalData, Model
    from graphopt.pipeline.manager import OnError
    from graphopt.pipeline.plugins import Registry
    from graphopt.pipeline.validation import Data
    from graphopt.record import RunRecord

Pipeline = str | Recipe | Sequence[Step]
"""Pipeline text, a recipe, or steps."""


class Watch(Instrument):
    """Told how a run is going: an instrument of its steps, and of what comes before and behind them."""

    def before(self, step: StepView, model: Model) -> None:
        """Turn to the step."""
        del model
        self.stage(f"step {step.index + 1}: {step.name}")

    def stage(self, text: str) -> None:
        """Called when the run turns to something else."""

    def progress(self, done: int, total: int) -> None:
        """Called when *done* of *total* parts of the stage are finished."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """All that a run is told.

    Attributes:
        model: Path of a model, or a model, which is not changed.
        pipeline: What to do.
        out: Where to write the result; None writes nothing.
        data: Feeds for validation, or where they come from; None for seeded random ones.
        samples: Take the first so many feeds.
        target: Name of what to compile for.
        providers: What to validate on; the target's provider by default.
        dims: Sizes bound to symbolic dims.
        seed: Seed for everything random.
        on_error: What to do when a step fails.
        gates: Gates besides those of a recipe.
        external: Where the bytes of large tensors go.
        validate: Whether to compare the result with the original; None means where it is written and differs.
        isolate: Run each pass in a child process.
        local_plugins: A one-file plugin to load.
        registry: Plugins, where they are loaded already.
        statistics: A file of statistics of the model, as ``graphopt calibrate`` writes it.
        measurements: The report.json of an earlier run, whose latencies are taken for measured.
        cache: Folder in which statistics are kept between runs; None keeps none.
        reproducer: Folder to write on failure; None writes none.
        instruments: Watchers of steps.
        watch: Watcher of the run as a whole.
        command: Name of the command in the record.
    """

    model: Model | Path
    pipeline: Pipeline
    out: Path | None = None
    data: Data | None = None
    samples: int | None = None
    target: str = "ort-cpu"
    providers: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    on_error: OnError = "raise"
    gates: tuple[Gate, ...] = ()
    external: ExternalData | None = None
    validate: bool | None = None
    isolate: bool = False
    local_plugins: Path | None = None
    registry: Registry | None = None
    statistics: Path | None = None
    measurements: Path | None = None
    cache: Path | None = None
    reproducer: Path | None = None
    instruments: tuple[Instrument, ...] = ()
    watch: Watch = field(default_factory=Watch)
    command: str = "run"

    @property
    def evidence(self) -> Evidence:
        """What the run is given about activations."""
        if self.data is not None:
            return "data"
        return "nothing" if self.statistics is None else "statistics"


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        record: What happened, complete whatever happened.
        model: The transformed model; None where there is none.
        files: The files written.
        error: The first failure.
        reproducer: The folder that repeats it, where one was written.
    """

    record: RunRecord
    model: Model | None = None
    files: tuple[Path, ...] = ()
    error: GraphoptError | None = None
    reproducer: Path | None = None


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        model: The transformed model.
        report: What was done, how long it took, how the result compares.
        files: The files written.
    """

    model: Model
    report: RunRecord
    files: tuple[Path, ...] = ()
