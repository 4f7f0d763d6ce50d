"""Tables of records and facts for a terminal."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

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
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from graphopt.record import ModelFacts, OutputRecord, RunRecord, StepRecord, ValidationRecord

_STATUS_STYLE = {
    "committed": "green",
    "unchanged": "dim",
    "rolled_back": "yellow",
    "failed": "red",
    "ok": "green",
    "gate_failed": "red",
    "active": "green",
    "disabled": "yellow",
}
_LEVELS = {"all": "with the runtime's optimizer", "none": "without it"}
_MOST_SKIPS = 5
_MOST_OUTPUTS = 12


def table(heads: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Iterable[int] = ()) -> Table:
    """Return a plain table; columns of *right* are right-aligned, text is folded and never lost."""
    numbers = set(right)
    result = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, head in enumerate(heads):
        result.add_column(head, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return result


def status(text: str) -> Text:
    """Return a status in its colour."""
    return Text(text.replace("_", " "), style=_STATUS_STYLE.get(text, ""))


def run_summary(record: RunRecord) -> RenderableType:
    """Return what ``graphopt run`` shows: sizes, steps, comparison."""
    parts: list[RenderableType] = []
    if record.input is not None:
        parts.append(_sizes(record.input, record.output, record.validation))
    if record.steps:
        parts.append(Text())
        parts.append(steps_summary(record.steps))
    if record.validation is not None:
        parts.append(Text())
        parts.append(validation_summary(record.validation))
    return Group(*parts)


def _sizes(
    before: ModelFacts, after: ModelFacts | None, validation: ValidationRecord | None
) -> RenderableType:
    rows: list[tuple[str, str, str, str]] = []
    for label, name, show in (
        ("nodes", "nodes", format_count),
        ("parameters", "parameters", format_count),
        ("MACs", "macs", format_count),
        ("size", "bytes", _bytes),
    ):
        old: int | None = getattr(before, name)
        new: int | None = getattr(after, name, None)
        rows.append((label, show(old), show(new), format_change(old, new)))
    if validation is not None and (latency := validation.latency) is not None:
        rows.append(
            (
                "latency",
                format_seconds(latency.before_s),
                format_seconds(latency.after_s),
                f"{latency.ratio:.2f}x time (noise {abs(latency.noise_ratio - 1):.1%})",
            )
        )
    return table(("", "before", "after", "change"), rows, right=(1, 2))


def _bytes(size: int | None) -> str:
    return "-" if size is None else format_bytes(size)


def steps_summary(steps: Sequence[StepRecord]) -> RenderableType:
    """Return what the steps of a run did and left alone."""
    rows: list[tuple[str | Text, ...]] = []
    for step in steps:
        seconds = step.times_s.clone + step.times_s.run + step.times_s.verify + step.times_s.gate
        counts = ", ".join(itertools.starmap(format_tally, step.counts.items()))
        rows.append((str(step.index + 1), step.name, status(step.status), format_seconds(seconds), counts))
    heads = ("#", "pass", "result", "time", "what")
    # An empty last column would fold the names of passes on a narrow terminal.
    width = len(heads) if any(row[-1] for row in rows) else len(heads) - 1
    shown = table(heads[:width], [row[:width] for row in rows], right=(0, 3))
    return Group(shown, *_recovered(steps), *_skips(steps))


def _recovered(steps: Sequence[StepRecord]) -> Iterable[RenderableType]:
    for step in steps:
        if (found := recovery_of(step)) is not None and found.line:
            yield Text.assemble((f"{step.name} fitted to data: ", "dim"), found.line)


def _skips(steps: Sequence[StepRecord]) -> Iterable[RenderableType]:
    for step in steps:
        groups = grouped_skips(step.skipped)
        for where, reason, _ in groups[:_MOST_SKIPS]:
            yield Text.assemble((f"{step.name} left alone ", "dim"), where, (f": {reason}", "dim"))
        if rest := sum(count for _, _, count in groups[_MOST_SKIPS:]):
            yield Text(f"{step.name} left alone {rest} more, for other reasons", style="dim")


def validation_summary(validation: ValidationRecord, *, levels: bool = False) -> RenderableType:
    """Return the comparison of two models: each output at its worse level, or with *levels* at every one."""
    head = f"compared on {validation.provider or 'the runtime'} over {_many(validation.feeds, 'feed')}"
    tables = {head: validation.outputs}
    if levels and len(validation.levels) > 1:
        tables = {
            f"{head}, {_LEVELS.get(level, level)}": outputs for level, outputs in validation.levels.items()
        }
    parts: list[RenderableType] = []
    for title, outputs in tables.items():
        parts += [Text(title, style="bold"), *_outputs(outputs)]
    parts.extend(filter(None, [_placement(validation)]))
    if validation.structure is not None:
        parts.extend(Text(line) for line in structure_lines(validation.structure))
        parts.extend(Text(f"  {line}", style="dim") for line in fallback_lines(validation.structure))
    parts.extend(Text(problem, style="red") for problem in validation.problems)
    return Group(*parts)


def _outputs(outputs: Sequence[OutputRecord]) -> Iterable[RenderableType]:
    if not outputs:
        return
    # What failed stands first, so that it is seen however many outputs there are.
    ordered = sorted(outputs, key=lambda output: output.passed)
    rows = [_output_row(output) for output in ordered[:_MOST_OUTPUTS]]
    yield table(("output", "SQNR", "max abs", "cosine", "top-1", "verdict"), rows, right=(1, 2, 3, 4))
    if len(ordered) > _MOST_OUTPUTS:
        yield Text(f"and {_many(len(ordered) - _MOST_OUTPUTS, 'more output')}", style="dim")


def _placement(validation: ValidationRecord) -> Text | None:
    nodes = validation.placement.get("nodes")
    if not nodes:
        return None
    placed = ", ".join(f"{count} on {name}" for name, count in nodes.items())
    return Text(f"nodes as placed: {placed}", style="dim")


def _output_row(output: OutputRecord) -> tuple[str | Text, ...]:
    verdict = Text("passed", style="green") if output.passed else Text("failed", style="red")
    if output.note:
        verdict.append(f" ({output.note})", style="dim")
    return (
        output.name,
        format_db(output.sqnr_db, exact=output.exact),
        format_number(output.max_abs),
        format_number(output.cosine, 6),
        "-" if output.top1_agreement is None else f"{output.top1_agreement:.1%}",
        verdict,
    )


def latency_line(validation: ValidationRecord) -> Text | None:
    """Return the times of a validation in one line, or None where they were not measured."""
    latency = validation.latency
    if latency is None:
        return None
    return Text(
        f"latency {format_seconds(latency.before_s)} before, {format_seconds(latency.after_s)} after:"
        f" {latency.ratio:.2f}x time (noise {abs(latency.noise_ratio - 1):.1%})"
    )


def inspection(path: str, size_bytes: int, facts: Mapping[str, Any]) -> RenderableType:
    """Return what ``graphopt inspect`` shows."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opset_imports"].items())
    rows = [
        ("file", f"{path} ({format_bytes(size_bytes)})"),
        ("made by", facts["producer"] or "-"),
        ("versions", f"IR {facts['ir_version']}, opset {opsets or '-'}"),
        ("nodes", f"{facts['nodes']}, {facts['longest_chain']} in the longest chain"),
        ("parameters", format_count(facts["parameters"])),
        ("MACs", _macs(facts)),
        ("weights", format_bytes(facts["weight_bytes"])),
        ("free dims", ", ".join(facts["dynamic_dims"]) or "none"),
    ]
    for key, label in (
        ("subgraphs", "subgraphs"),
        ("functions", "functions"),
        ("unused_functions", "unused functions"),
        ("custom_domains", "custom domains"),
        ("external_files", "external data"),
    ):
        value = facts[key]
        if value:
            rows.append((label, str(value) if isinstance(value, int) else ", ".join(value)))
    parts: list[RenderableType] = [fields(rows), Text()]
    values = [("input", each) for each in facts["inputs"]] + [("output", each) for each in facts["outputs"]]
    parts.append(
        table(
            ("", "name", "type", "shape"),
            [(kind, each["name"], each["type"], _shape(each["shape"])) for kind, each in values],
        )
    )
    parts += [Text(), _ledger("operator", facts["ops"], str)]
    if facts["bytes_by_dtype"]:
        parts += [Text(), _ledger("bytes by dtype", facts["bytes_by_dtype"], format_bytes)]
        parts += [Text(), _ledger("bytes by operator", facts["bytes_by_op"], format_bytes)]
    costly = [each for each in facts["most_expensive"] if each["macs"] or each["bytes"]]
    if costly:
        rows_of_cost = [
            (each["node"], each["op_type"], format_count(each["macs"]), format_bytes(each["bytes"]))
            for each in costly
        ]
        parts += [Text(), table(("most MACs", "operator", "MACs", "weights"), rows_of_cost, right=(2, 3))]
    parts += [Text(), *_findings(facts)]
    return Group(*parts)


def _macs(facts: Mapping[str, Any]) -> str:
    if facts["macs"] is not None:
        return format_count(facts["macs"])
    return f"unknown: {_many(len(facts['macs_unknown']), 'node')} of unknown shape"


def _ledger(head: str, numbers: Mapping[str, int], show: Any) -> Table:  # noqa: ANN401 - a formatter
    total = sum(numbers.values()) or 1
    rows = [(name, show(number), f"{number / total:.1%}") for name, number in numbers.items()]
    return table((head, "", ""), rows, right=(1, 2))


def _findings(facts: Mapping[str, Any]) -> Iterable[Text]:
    quantised = facts["quantization"]
    if quantised["ops"]:
        ops = ", ".join(f"{count} {name}" for name, count in quantised["ops"].items())
        weights = ", ".join(f"{count} {name}" for name, count in quantised["weights_by_dtype"].items())
        yield Text(f"quantised already: {ops}" + (f"; weights {weights}" if weights else ""))
    else:
        yield Text("nothing is quantised")
    if facts["overridable_initializers"]:
        count = len(facts["overridable_initializers"])
        yield Text(
            f"{_many(count, 'initializer')} may be overridden by callers and {'are' if count != 1 else 'is'}"
            " no constant to passes; canonicalize{freeze_initializers=true} ends that",
            style="yellow",
        )
    if facts["dead_initializers"]:
        yield Text(f"{_many(len(facts['dead_initializers']), 'initializer')} unused", style="yellow")
    for note in facts["notes"]:
        yield Text(note, style="dim")


def fields(rows: Iterable[tuple[str, str]]) -> Table:
    """Return names and values, one pair a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return grid


def _shape(shape: Sequence[int | str | None] | None) -> str:
    if shape is None:
        return "unknown rank"
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
