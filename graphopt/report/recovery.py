"""What a step found out by fitting to data: agreement, effort and residuals, out of its extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.report.units import format_bytes, format_db, format_number, format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.record import StepRecord

_MOST_STAGES = 100
_RESIDUALS = ("residual_before", "residual_after")
_SHIFTS = ("shift", "largest_shift")


@dataclass(frozen=True)
class Recovery:
    """What there is to show of one step.

    Attributes:
        line: How the outputs agree on the data, and what it took.
        head: Names of the columns of the table of stages.
        rows: Its rows; no more than people read.
        left_out: Stages that are not among them.
    """

    line: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


def recovery_of(step: StepRecord) -> Recovery | None:
    """Return what *step* fitted to data, None where it fitted nothing.

    A pass tells of it in its extra, or under "recovery" there: "stages" with residuals (or shifts of means),
    "agreement" and "effort". What has another form, as that of a plugin may, is left out.
    """
    found = step.extra.get("recovery", step.extra)
    if not isinstance(found, Mapping):
        return None
    stages = [each for each in _listed(found.get("stages")) if isinstance(each, Mapping) and "where" in each]
    line = ", ".join([*_agreement(found.get("agreement")), *_effort(found.get("effort"))])
    if not stages and not line:
        return None
    columns = [*(_SHIFTS if any("shift" in each for each in stages) else _RESIDUALS)]
    columns += [name for name in ("ridge", "rows") if any(name in each for each in stages)]
    head = ("stage", *(name.replace("_", " ") for name in columns)) if stages else ()
    rows = tuple(
        (str(each["where"]), *(format_number(_number_of(each, name)) for name in columns))
        for each in stages[:_MOST_STAGES]
    )
    return Recovery(line, head, rows, max(len(stages) - _MOST_STAGES, 0))


def _listed(found: object) -> Sequence[Any]:
    return found if isinstance(found, list) else []


def _agreement(found: object) -> list[str]:
    parts = []
    if (sqnr := _number_of(found, "sqnr_db")) is not None:
        parts.append(f"outputs agree to {format_db(sqnr, exact=False)} with those before it")
    if (same := _number_of(found, "same_argmax")) is not None:
        parts.append(f"{same:.1%} of their largest elements are the same ones")
    return parts


def _effort(found: object) -> list[str]:
    parts = []
    if (samples := _number_of(found, "samples")) is not None:
        parts.append(f"{samples:.0f} sample{'s'[: samples != 1]}")
    if (seconds := _number_of(found, "cpu_s")) is not None:
        parts.append(f"{format_seconds(seconds)} of CPU")
    if peak := _number_of(found, "peak_bytes"):  # 0 where the system does not tell
        parts.append(f"{format_bytes(int(peak))} at most")
    return parts


def _number_of(found: object, key: str) -> float | None:
    value = found.get(key) if isinstance(found, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
