"""plan.toml files of a run: what its steps have decided, to edit and to give to the same passes again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.planfile import PlanFile, write_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from graphopt.record import RunRecord, StepRecord


def write(record: RunRecord, folder: Path) -> None:
    """Write a plan into *folder* for each committed step that has one in its extra.

    Raises:
        PathError: The folder cannot be written to.
        WriteError: A file could not be written whole.
    """
    for step in record.steps:
        if items := tuple(_items(step)):
            comment = f"Repeats what the step has chosen, edited or not:\n{step.name}{{plan=THIS FILE}}"
            plan = PlanFile(step.name, items, step.fingerprint_before, f"{comment} with its other options.")
            write_plan(folder / name_of(step), plan)


def name_of(step: StepRecord) -> str:
    """Return the name of the plan of *step*; "" where it has none."""
    return f"plan-{step.index + 1}-{step.name}.toml" if any(_items(step)) else ""


def _items(step: StepRecord) -> Iterator[Mapping[str, Any]]:
    plan = step.extra.get("plan")
    if step.status == "committed" and isinstance(plan, list):
        yield from (item for item in plan if isinstance(item, dict))
