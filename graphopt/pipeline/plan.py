"""The plan: steps with typed options, checked whole before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from graphopt.api import Evidence
from graphopt.errors import OptionError, PlanError
from graphopt.pipeline.options import build_options, print_options
from graphopt.pipeline.text import Step, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.api import Gate, Pass, PassOptions
    from graphopt.pipeline.plugins import Registry

UPGRADE_PASS = "upgrade-opset"  # noqa: S105 - the name of a pass
"""The one pass that changes the opset; its option ``to`` says to which version."""


@dataclass(frozen=True)
class PlannedStep:
    """One step, ready to run.

    Attributes:
        index: Place in the pipeline, from 0.
        name: Name of the pass.
        pass_: The pass.
        options: Its options, complete and checked.
    """

    index: int
    name: str
    pass_: Pass
    options: PassOptions

    @property
    def step(self) -> Step:
        """The step as data: options in declared order, defaults omitted."""
        return Step(self.name, print_options(self.options))

    @property
    def text(self) -> str:
        """The step in its normal text form."""
        return to_text([self.step])

    @property
    def title(self) -> str:
        """How messages name the step, counting from 1 as people do."""
        return f"step {self.index + 1} ({self.name})"


@dataclass(frozen=True)
class Plan:
    """Steps that fit together, in the order in which they were given."""

    steps: tuple[PlannedStep, ...]

    @property
    def text(self) -> str:
        """The pipeline in its normal text form; it parses and plans to the same plan."""
        return to_text(planned.step for planned in self.steps)


def make_plan(
    steps: Sequence[Step],
    registry: Registry,
    model_opset: int | None = None,
    given: Evidence | None = None,
) -> Plan:
    """Return the checked plan for *steps*.

    Args:
        steps: What to run, in order; the order is kept.
        registry: Where passes are looked up.
        model_opset: Version of the default domain of the model to be transformed, where it is known:
            passes are then held against it, and ``upgrade-opset`` without ``to`` gets the lowest version
            that serves the passes behind it.
        given: What the run is given about activations, where it is known: data, statistics, or nothing.

    Raises:
        PlanError: A pass is unknown; or lacks a fact that an earlier pass must provide; or conflicts with
            one; or needs a newer opset, or data or statistics that are not given.
        OptionError: An option is unknown or malformed.
        PluginError: A pass cannot be imported or is not what it was registered as.
    """
    planned = []
    for index, step in enumerate(steps):
        where = f"step {index + 1} ({step.name})"
        pass_type = registry.passes.find(step.name, where=f"step {index + 1}")
        options = build_options(pass_type.Options, step.options, owner=where)
        planned.append(PlannedStep(index, step.name, _instantiate(pass_type, where), options))
    _check_facts(planned)
    if given is not None:
        _check_evidence(planned, given)
    if model_opset is not None:
        planned = _check_opsets(planned, model_opset)
    return Plan(tuple(planned))


def make_gates(steps: Sequence[Step], registry: Registry) -> tuple[Gate, ...]:
    """Return the gates that a recipe asks for, with typed options.

    Raises:
        PlanError: A gate is unknown.
        OptionError: An option is unknown or malformed.
        PluginError: A gate cannot be imported or is not what it was registered as.
    """
    gates = []
    for index, step in enumerate(steps):
        where = f"gate {index + 1} ({step.name})"
        gate_type = registry.gates.find(step.name, where=f"gate {index + 1}")
        gates.append(gate_type(build_options(gate_type.Options, step.options, owner=where)))
    return tuple(gates)


def _instantiate(pass_type: type[Pass], where: str) -> Pass:
    try:
        return pass_type()
    except Exception as error:
        raise PlanError(
            f"the pass cannot be created: {type(error).__name__}: {error}",
            where=where,
            hint="A pass takes no arguments; its options go to run().",
        ) from error


def _check_facts(planned: Sequence[PlannedStep]) -> None:
    providers: dict[str, PlannedStep] = {}
    for item in planned:
        info = item.pass_.info
        for fact in sorted(info.requires - providers.keys()):
            later = [other for other in planned[item.index + 1 :] if fact in other.pass_.info.provides]
            hint = (
                f"Move {later[0].name!r}, now step {later[0].index + 1}, before {item.name!r}."
                if later
                else f"Put a pass before {item.name!r} that provides {fact!r}; `graphopt passes` lists them."
            )
            names = f"{item.name!r} needs {fact!r}, which no earlier pass provides"
            if later:
                names = f"{item.name!r} needs {fact!r}, which {later[0].name!r} provides only after it"
            raise PlanError(names, where=item.title, hint=hint)
        for fact in sorted(info.conflicts & providers.keys()):
            other = providers[fact]
            provider = f"{other.name!r} (step {other.index + 1})"
            raise PlanError(
                f"{item.name!r} cannot run where {fact!r} holds, and {provider} provides it",
                where=item.title,
                hint=f"Put {item.name!r} before {other.name!r}, or leave one of them out.",
            )
        for fact in info.provides:
            providers.setdefault(fact, item)


def _check_evidence(planned: Sequence[PlannedStep], given: Evidence) -> None:
    worth = get_args(Evidence)
    for item in planned:
        wanted = item.pass_.evidence(item.options)
        if worth.index(wanted) > worth.index(given):
            either = "data or statistics" if wanted == "statistics" else "data"
            raise PlanError(
                f"{item.text} needs {either}, and the run is given {given}",
                where=item.title,
                hint="Give inputs with --data"
                + (", or statistics with --statistics." if wanted == "statistics" else "."),
            )


def _check_opsets(planned: Sequence[PlannedStep], opset: int) -> list[PlannedStep]:
    result = []
    certain = True
    for item in planned:
        step = item
        needed = item.pass_.lowest_opset(item.options)
        if item.name == UPGRADE_PASS:
            step = _with_target_opset(item, planned[item.index + 1 :], opset)
            # A model without the default domain has nothing to upgrade and stays without.
            opset = opset and (getattr(step.options, "to", None) or opset)
        elif needed > max(opset, 1) and certain:
            found = f"is at opset {opset} by then" if opset else "does not import the default domain"
            raise PlanError(
                f"{item.text!r} needs opset {needed} or newer, but the model {found}",
                where=item.title,
                hint=f"Put {UPGRADE_PASS}{{to={needed}}} before it." if opset else "Leave the pass out.",
            )
        # A pass with an option of that name may raise the opset of the model for what it inserts.
        certain &= getattr(item.options, "opset", "keep") == "keep"
        result.append(step)
    return result


def _with_target_opset(item: PlannedStep, later: Sequence[PlannedStep], opset: int) -> PlannedStep:
    """Fill in an unset ``to`` with the lowest version that serves the passes up to the next upgrade."""
    if "to" not in type(item.options).model_fields or getattr(item.options, "to", None) is not None:
        return item
    lowest = opset
    for other in later:
        if other.name == UPGRADE_PASS:
            break
        lowest = max(lowest, other.pass_.lowest_opset(other.options))
    if lowest <= max(opset, 1) or not opset:
        return item  # nothing asks for a newer one; the pass says so in its report
    try:
        options = build_options(
            type(item.options), {**print_options(item.options), "to": lowest}, owner=item.title
        )
    except OptionError as error:
        raise PlanError(
            f"no version of opset that {item.name!r} reaches serves the later passes, they need {lowest}",
            where=item.title,
            hint=error.hint,
        ) from error
    return PlannedStep(item.index, item.name, item.pass_, options)
