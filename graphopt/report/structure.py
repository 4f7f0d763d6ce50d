"""What the runtime makes of a quantised model, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.report.units import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.record import StructureRecord

_MOST_REASONS = 6


def structure_lines(structure: StructureRecord) -> Iterator[str]:
    """Yield what stands in *structure*, the good first; nothing where there is nothing to say."""
    if structure.problem:
        yield f"no integer kernels counted: {structure.problem}"
    elif structure.quantised or structure.kernels:
        kernels = _listed(structure.kernels) if structure.kernels else "no node"
        yield f"computed on codes by the runtime: {kernels}"
    if structure.fallback:
        total = sum(structure.quantised.values())
        share = f"{structure.fallback} of {total}" if structure.fallback <= total else str(structure.fallback)
        yield f"quantised, yet computed in float: {share} ({_listed(structure.fallbacks)})"
    if structure.dequantize_before:
        yield f"DequantizeLinear left before {_listed(structure.dequantize_before)}"
    if structure.off_provider:
        yield f"not on {structure.provider}: {_listed(structure.off_provider, 'on')}"


def fallback_lines(structure: StructureRecord) -> Iterator[str]:
    """Yield one line for each kind of node that fell back and its reason, the first node by name."""
    groups: dict[tuple[str, str], list[str]] = {}
    for each in structure.fallen:
        groups.setdefault((each.op_type, each.reason), []).append(each.node)
    for (op_type, reason), nodes in list(groups.items())[:_MOST_REASONS]:
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        yield f"{op_type} {shortened(nodes[0])!r}{more}: {reason}"


def _listed(counts: Mapping[str, int], word: str = "") -> str:
    return ", ".join(" ".join(filter(None, (str(count), word, name))) for name, count in counts.items())
