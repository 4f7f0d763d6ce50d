"""report.md: the record of a run for people, as GitHub-flavoured Markdown."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from graphopt.ir.textfiles import write_whole
from graphopt.report import plans
from graphopt.report.recovery import recovery_of
from graphopt.report.structure import fallback_lines, structure_lines
from graphopt.report.units import (
    format_bytes,
    format_change,
    format_count,
    format_db,
    format_number,
    format_seconds,
    format_tally,
    grouped_skips,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from graphopt.record import ModelFacts, RunRecord, StepRecord, ValidationRecord

_MAX_SKIPS = 20
"""Reasons listed per step; report.json has every skip."""


def to_text(record: RunRecord) -> str:
    """Return the Markdown document of *record*."""
    return "\n".join(_lines(record)) + "\n"


def write(record: RunRecord, folder: Path) -> None:
    """Write ``report.md`` into *folder*.

    Raises:
        PathError: The folder cannot be written to.
        WriteError: The file could not be written whole.
    """
    write_whole(folder / "report.md", to_text(record))


def _lines(record: RunRecord) -> Iterator[str]:
    yield f"# graphopt {record.command}: {record.status.replace('_', ' ')}"
    yield ""
    if record.error is not None:
        place = f"`{_inline(record.error.where)}`: " if record.error.where else ""
        sentences = f"{_cell(record.error.message)}. {_cell(record.error.hint)}".rstrip()
        yield from (f"> **{record.error.type}** {place}{sentences}", "")
    for name, facts in (("Input", record.input), ("Output", record.output)):
        if facts is not None:
            yield f"- {name}: `{_inline(facts.path)}` (sha256 `{facts.sha256[:16]}`)"
    if record.pipeline:
        yield f"- Pipeline: `{_inline(record.pipeline)}`"
    if record.target:
        providers = ", ".join(record.providers) or "nothing"
        yield f"- Target: {record.target}; run on: {providers}; seed {record.seed}"
    yield f"- Versions: {', '.join(f'{name} {version}' for name, version in record.versions.items())}"
    yield ""
    if record.input is not None:
        yield from _size(record.input, record.output)
    if record.steps:
        yield from _steps(record.steps)
    if record.validation is not None:
        yield from _validation(record.validation)
    if record.warnings:
        yield from ("## Warnings", "")
        yield from (f"- {_cell(warning)}" for warning in record.warnings)
        yield ""


def _size(before: ModelFacts, after: ModelFacts | None) -> Iterator[str]:
    yield from ("## Size", "")
    rows = []
    for name in ("nodes", "parameters", "macs", "bytes"):
        show = _bytes if name == "bytes" else format_count
        old: int | None = getattr(before, name)
        new: int | None = getattr(after, name, None)
        label = {"macs": "MACs", "bytes": "size"}.get(name, name)  # as on the console
        rows.append((label, show(old), show(new), format_change(old, new)))
    yield from _table(("", "before", "after", "change"), rows)


def _bytes(size: int | None) -> str:
    return "-" if size is None else format_bytes(size)


def _steps(steps: Sequence[StepRecord]) -> Iterator[str]:
    yield from ("## Steps", "")
    rows = []
    for step in steps:
        times = step.times_s
        counts = ", ".join(itertools.starmap(format_tally, step.counts.items()))
        gates = "; ".join(
            f"{gate.name} {format_number(gate.value)} against {format_number(gate.limit)}"
            f" {'passed' if gate.passed else '**failed**'}"
            for gate in step.gates
        )
        seconds = format_seconds(times.clone + times.run + times.verify + times.gate)
        rows.append(
            (str(step.index + 1), f"`{step.name}`", step.status.replace("_", " "), counts, gates, seconds)
        )
    yield from _table(("#", "pass", "result", "counts", "gates", "time"), rows)
    for step in steps:
        if step.skipped:
            yield f"Left alone by `{step.name}` ({len(step.skipped)}):"
            yield ""
            groups = grouped_skips(step.skipped)
            for where, reason, _ in groups[:_MAX_SKIPS]:
                yield f"- `{_inline(where)}`: {_cell(reason)}"
            if rest := sum(count for _, _, count in groups[_MAX_SKIPS:]):
                yield f"- and {rest} more for other reasons, in report.json"
            yield ""
        yield from _recovery(step)
        if plan := plans.name_of(step):
            yield from (f"`{_inline(step.name)}{{plan={plan}}}` repeats the choice, edited or not.", "")


def _recovery(step: StepRecord) -> Iterator[str]:
    found = recovery_of(step)
    if found is None:
        return
    yield from (f"Fitted to data by `{_inline(step.name)}`{': ' if found.line else ''}{found.line}.", "")
    if found.rows:
        yield from _table(found.head, [(f"`{_inline(where)}`", *numbers) for where, *numbers in found.rows])
    if found.left_out:
        yield from (f"And {found.left_out} more stages, in report.json.", "")


def _validation(validation: ValidationRecord) -> Iterator[str]:
    yield from (f"## Validation over {validation.feeds} feed{'s'[: validation.feeds != 1]}", "")
    yield from _table(
        ("output", "SQNR", "max abs", "cosine", "verdict"),
        [
            (
                f"`{_inline(output.name)}`",
                format_db(output.sqnr_db, exact=output.exact),
                format_number(output.max_abs),
                format_number(output.cosine, 6),
                " ".join(filter(None, ("passed" if output.passed else "**failed**", _cell(output.note)))),
            )
            for output in validation.outputs
        ],
    )
    if (latency := validation.latency) is not None:
        yield (
            f"Latency {format_seconds(latency.before_s)} before, {format_seconds(latency.after_s)} after: "
            f"{latency.ratio:.3f}x (noise of an A/A pair at worst {latency.noise_ratio:.3f}x)."
        )
        yield ""
    if validation.structure is not None:
        yield from (f"- {_cell(line)}" for line in structure_lines(validation.structure))
        yield from (f"  - {_cell(line)}" for line in fallback_lines(validation.structure))
        yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"
    yield ""


def _cell(text: str) -> str:
    """Keep user text (node names, messages) from ending a table cell or a line."""
    return " ".join(text.replace("|", "\\|").split())


def _inline(text: str) -> str:
    """Keep user text from ending a code span."""
    return text.replace("`", "'")
