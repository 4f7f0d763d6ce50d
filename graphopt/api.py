"""What a pass, a gate and an instrument are: the types that plugin authors write against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from graphopt.calibrate.needs import Needs
from graphopt.errors import DataError, PlanError, ProviderError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.calibrate.calibration import Calibration
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir import Model
    from graphopt.runtime.measurements import Measured, Measurements
    from graphopt.runtime.session import Feeds
    from graphopt.targets import Target

Analysis = Callable[["Model", Mapping[str, int]], object]
"""A function of a model and the bindings of its symbolic dims; its result must not alias the model."""


Evidence = Literal["nothing", "statistics", "data"]
"""What a run is given about the activations of its model, or a pass cannot do without; each is worth more
than the one before."""


class PassOptions(BaseModel):
    """Base of every pass's options: frozen, unknown keys refused, every field described with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class PassInfo:
    """What a pass declares about itself; the plan is checked against it before anything runs.

    Attributes:
        name: Name in pipelines, words joined by hyphens.
        summary: One sentence for ``graphopt passes``.
        requires: Facts that must have been provided by an earlier pass.
        provides: Facts that hold after this pass.
        conflicts: Facts that must not hold when this pass starts.
        preserves: Analyses that stay valid although the pass changed the model. With ``"statistics"`` a pass
            promises that every value that keeps its name holds what it held.
        min_opset: Lowest version of the default domain that the pass can work on; 1 means any.
        lossy: Whether the pass changes what the model computes on purpose (pruning, low rank). The SQNR of a
            result behind such a step is reported, but held to no limit that nobody asked for.
        reads_reference: Whether the pass looks at :attr:`Context.reference`, which is kept for it only.
    """

    name: str
    summary: str
    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    conflicts: frozenset[str] = frozenset()
    preserves: frozenset[str] = frozenset()
    min_opset: int = 1
    lossy: bool = False
    reads_reference: bool = False


@dataclass(frozen=True)
class Reference:
    """The model as it was before the first lossy step changed it, and where its statistics come from.

    Attributes:
        model: To be looked at only.
        calibration: Statistics of *model*, not of the one that is being worked on.
    """

    model: Model
    calibration: Calibration | None = None

    def has_statistics(self, needs: Needs) -> bool:
        """Return whether :meth:`statistics` can answer *needs*: they are held, or there is data."""
        return not needs or (self.calibration is not None and self.calibration.has(needs))

    def statistics(self, needs: Needs) -> Statistics:
        """Return statistics of the reference; as :meth:`Context.statistics`.

        Raises:
            DataError: There is neither data nor a file of statistics that holds it.
        """
        return _statistics(self.calibration, self.model, needs)


@dataclass(frozen=True)
class Report:
    """What one run of a pass did.

    Attributes:
        changed: Whether the model differs from what the pass was given; checked against the fingerprint.
        counts: What was done how often, by a short stable key (``{"folded": 12}``).
        skipped: What was left alone: (node or value, reason), in graph order.
        extra: Further JSON-ready findings for the report.
        warnings: Sentences for whoever runs it: what went another way than was asked for, and where.
    """

    changed: bool
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Context:
    """What a pass may look at besides the model and its options.

    Analyses are computed on first use and kept until the model changes. A pass that asks for an analysis
    again after its own edits calls :meth:`invalidate` first.

    Attributes:
        target: What is compiled for.
        dims: Sizes bound to symbolic dims by the user.
        seed: Seed for everything random.
        reference: The model before the first lossy step that changed it; None where there was none, or no
            step of the plan said that it reads it.
        criteria: Criteria of importance by name, as plugins registered them; for passes that prune.
        channel_rules: Rules for the channels of custom operators by name, as plugins registered them.
    """

    def __init__(
        self,
        *,
        target: Target,
        analyses: Mapping[str, Analysis],
        dims: Mapping[str, int] | None = None,
        seed: int = 0,
        criteria: Mapping[str, Any] | None = None,
        channel_rules: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
        calibration: Calibration | None = None,
        measurements: Measurements | None = None,
        derive: Callable[[Model, str], Model] | None = None,
    ) -> None:
        self.target = target
        self.dims: Mapping[str, int] = dict(dims or {})
        self.seed = seed
        self.reference: Reference | None = None
        self.criteria: Mapping[str, Any] = criteria or {}
        self.channel_rules: Mapping[str, Any] = channel_rules or {}
        self._analyses = analyses
        self._progress = progress
        self._calibration = calibration
        self._measurements = measurements
        self._derive = derive
        self._model: Model | None = None
        self._cache: dict[str, object] = {}

    def bind(self, model: Model) -> None:
        """Make *model* the one that analyses look at; the cache is the caller's to invalidate."""
        self._model = model

    def analysis(self, name: str) -> Any:  # noqa: ANN401 - each analysis has its own result type
        """Return the analysis called *name* of the model that is being worked on.

        Raises:
            PlanError: No analysis has that name.
        """
        if name not in self._analyses:
            raise PlanError(f"no analysis is called {name!r}", hint=nearest(name, self._analyses))
        if name not in self._cache:
            if self._model is None:
                raise PlanError("no model is bound to the context", where=name)
            self._cache[name] = self._analyses[name](self._model, self.dims)
        return self._cache[name]

    def invalidate(self, preserved: frozenset[str] = frozenset()) -> None:
        """Forget all analyses but the *preserved* ones, and with them the statistics."""
        self._cache = {name: value for name, value in self._cache.items() if name in preserved}
        if self._calibration is not None and "statistics" not in preserved:
            self._calibration.invalidate()

    @property
    def data(self) -> Iterable[Feeds] | None:
        """The feeds that the run was given, which can be iterated again and again; None where it has none."""
        return None if self._calibration is None else self._calibration.data

    def has_statistics(self, needs: Needs) -> bool:
        """Return whether :meth:`statistics` can answer *needs*: they were given, or there is data."""
        return not needs or (self._calibration is not None and self._calibration.has(needs))

    def statistics(self, needs: Needs) -> Statistics:
        """Return statistics of the model as it was when the step began; ask before the first edit.

        What could not be collected stands in ``skipped`` of the result, with the reason. Statistics are
        collected once for consecutive steps that preserve them, as far as :meth:`Pass.needs` told.

        Args:
            needs: What to know.

        Raises:
            DataError: There is neither data nor a file of statistics that holds it.
        """
        return _statistics(self._calibration, self._bound(), needs)

    def as_reference(self, model: Model, statistics: Statistics | None = None) -> Reference:
        """Return *model* as a reference, with the data of this run.

        Args:
            model: Any model that takes the same inputs.
            statistics: What is known about its values.
        """
        if self._calibration is None:
            return Reference(model)
        return Reference(model, self._calibration.fork(statistics))

    @property
    def held_statistics(self) -> Statistics | None:
        """What is known about the bound model without collecting anything; None where that is nothing."""
        return None if self._calibration is None else self._calibration.held

    @property
    def replays(self) -> bool:
        """Whether the run was given measurements to answer from."""
        return self._measurements is not None and bool(self._measurements.replay)

    @property
    def can_measure(self) -> bool:
        """Whether :meth:`latency` can answer: the target's provider and a feed are here, or a record."""
        return self._measurements is not None and self._measurements.can_measure(self._bound())

    def latency(self, label: str, before: Model, after: Model, **protocol: Any) -> Measured:  # noqa: ANN401 - numbers
        """Compare the time of two models on the target's provider; recorded in the report and replayed.

        Args:
            label: Names the comparison; unique within the step, and the same in every run.
            before: The model to compare with.
            after: The model to judge; it takes the same inputs.
            protocol: ``rounds``, ``trials`` and ``budget_s`` of
                :meth:`graphopt.runtime.measurements.Measurements.latency`.

        Raises:
            ProviderError: Nothing can be measured here.
        """
        if self._measurements is None:
            raise ProviderError("nothing can be measured here", where=label)
        return self._measurements.latency(label, before, after, **protocol)

    def latencies(self, before: Model, after: Mapping[str, Model], **protocol: Any) -> dict[str, Measured]:  # noqa: ANN401 - numbers
        """Compare the time of several models with one: as :meth:`latency`, at the price of one child process.

        Args:
            before: The model to compare with.
            after: The models to judge, by what names the comparison.
            protocol: ``rounds``, ``trials``, ``budget_s`` and ``clear`` of
                :meth:`graphopt.runtime.measurements.Measurements.latencies`.

        Raises:
            ProviderError: Nothing can be measured here.
        """
        if self._measurements is None:
            raise ProviderError("nothing can be measured here", where=next(iter(after), ""))
        return self._measurements.latencies(before, after, **protocol)

    def derived(self, model: Model, pipeline: str) -> Model:
        """Return what *pipeline* makes of *model*, to be looked at and measured: *model* stays as it is.

        Statistics that its steps want are collected from a few feeds of the run; nothing is measured.

        Args:
            model: Any model that takes the inputs of the run.
            pipeline: Its text.

        Raises:
            PlanError: The text is no pipeline, or its steps do not fit.
            GraphoptError: A step failed.
        """
        if self._derive is None:
            raise PlanError("no pipelines can be run here", where=pipeline)
        return self._derive(model, pipeline)

    def _bound(self) -> Model:
        if self._model is None:
            raise DataError("no model is bound to the context")
        return self._model

    def progress(self, done: int, total: int) -> None:
        """Tell whoever watches that *done* of *total* parts are finished."""
        if self._progress is not None:
            self._progress(done, total)


def _statistics(calibration: Calibration | None, model: Model, needs: Needs) -> Statistics:
    if calibration is None:
        from graphopt.calibrate.calibration import Calibration

        calibration = Calibration()
    return calibration.get(model, needs)


class Pass(ABC):
    """One transformation of a model. Stateless: same model, options and context, same bytes."""

    info: ClassVar[PassInfo]
    Options: ClassVar[type[PassOptions]] = PassOptions

    def needs(self, model: Model, options: Any, context: Context) -> Needs:  # noqa: ANN401 - as run
        """Return the statistics that :meth:`run` will ask for.

        The manager unites them over consecutive passes, so that the data is run through the model once.
        What is missing here is collected when :meth:`run` asks.

        Args:
            model: The model as it is when statistics are collected; to be looked at only.
            options: An instance of ``self.Options``.
            context: Analyses, target, dims.
        """
        del model, options, context
        return Needs()

    def lowest_opset(self, options: Any) -> int:  # noqa: ANN401 - as run
        """Return the lowest version of the default domain that a run with *options* can work on.

        A plan for an older model is refused; upgrade-opset without ``to`` goes up to it.

        Args:
            options: An instance of ``self.Options``.
        """
        del options
        return self.info.min_opset

    def evidence(self, options: Any) -> Evidence:  # noqa: ANN401 - as run
        """Return what a run cannot do without, whatever the model: a plan without it is refused.

        Statistics are data enough for a pass that asks for statistics. What depends on the model is for
        :meth:`run` to say.

        Args:
            options: An instance of ``self.Options``.
        """
        del options
        return "nothing"

    def reference_needs(self, model: Model, options: Any, context: Context) -> Needs:  # noqa: ANN401 - as run
        """Return the statistics of the reference that :meth:`run` can work on where there is no data.

        Args:
            model: The reference; to be looked at only.
            options: An instance of ``self.Options``.
            context: Analyses of *model*, target, dims.
        """
        del model, options, context
        return Needs()

    @abstractmethod
    def run(self, model: Model, options: Any, context: Context) -> Report:  # noqa: ANN401 - narrowed by each pass
        """Change *model* in place and say what was done.

        Args:
            model: A private copy; after an exception it is thrown away.
            options: An instance of ``self.Options``.
            context: Analyses, target, seed.
        """


@dataclass(frozen=True)
class GateResult:
    """One judgement of a gate, as it stands in report.json.

    Attributes:
        name: What was measured, with its unit in the name (``min_sqnr_db``).
        value: The measured number; None where it is infinite (exact agreement) or undefined.
        limit: What it was held against.
        passed: The verdict.
        note: Why, where the numbers alone do not say it.
    """

    name: str
    value: float | None
    limit: float
    passed: bool
    note: str = ""


class Gate(ABC):
    """Judges a model against the one that the run began with; a refusal rolls the step back.

    A gate is declared like a pass: a class with a name, a summary and Options.

    Attributes:
        name: Name in recipes, words joined by hyphens.
        summary: One sentence for ``graphopt passes``.
        options: The limits to hold a model against.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[PassOptions]] = PassOptions

    def __init__(self, options: Any = None) -> None:  # noqa: ANN401 - narrowed by each gate
        self.options = self.Options() if options is None else options

    @abstractmethod
    def check(self, original: Model, candidate: Model, context: Context) -> tuple[GateResult, ...]:
        """Return one result per limit; both models are to be looked at only.

        Args:
            original: The model as it was before the first step.
            candidate: The model that the step left behind, verified.
            context: Target, dim bindings and seed; its analyses look at *candidate*.
        """


@dataclass(frozen=True)
class StepView:
    """What an instrument is told about a step: its place, its pass and its printed options."""

    index: int
    name: str
    text: str


class Instrument:
    """Watches steps; ``before`` runs in order of registration, ``after`` and ``failed`` in reverse.

    All methods do nothing here; override what is needed. Every ``before`` is followed by exactly one of
    ``after`` and ``failed``.
    """

    def before(self, step: StepView, model: Model) -> None:
        """Called before the pass runs, with the model that it will see."""

    def after(self, step: StepView, model: Model, report: Report) -> None:
        """Called once the step is committed or found unchanged."""

    def failed(self, step: StepView, error: BaseException) -> None:
        """Called when the step raised, broke its contract, was refused by a gate, or was interrupted."""
