"""The upgrade of a whole model: all graphs and functions, then the IR version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import defs, helper

from graphopt.errors import OptionError, UnsupportedModelError
from graphopt.ir.collector import collector_paused
from graphopt.ir.dead import remove_unread
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.tensors import constant_of
from graphopt.passes.cleanup.annotations import annotated_names
from graphopt.passes.opset.adapters import FIRST, LAST
from graphopt.passes.opset.edit import Edit, Refused
from graphopt.passes.opset.versions import upgrade_node

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.targets import Target

_DOMAINS = ("", "ai.onnx")
_SHOWN_REFUSALS = 5
# Up to IR version 3 every initializer had to be an input, and onnxruntime took it for a constant.
_OVERRIDABLE_IR = 4


def check_range(current: int, to: int, target: Target, where: str) -> None:
    """Refuse a version that cannot be reached from opset *current*, before anything is changed.

    Args:
        current: What the model is of.
        to: What is asked for.
        target: What is compiled for.
        where: Who asks.

    Raises:
        OptionError: It is lower, above what the target loads, or not known.
        UnsupportedModelError: The model is too old.
    """
    if to < current:
        raise OptionError(
            f"the model is of opset {current}, and an opset is never lowered",
            where=where,
            hint=f"Ask for {current} or more, or leave the pass out.",
        )
    limit = max(limits.max_opset for limits in target.runtime_limits)
    if to > limit:
        raise OptionError(
            f"target {target.name} loads at most opset {limit}, asked for {to}",
            where=where,
            hint=f"Ask for {limit} or less.",
        )
    known = min(LAST, defs.onnx_opset_version())
    if to > known:
        raise OptionError(
            f"operators are known up to opset {known}, asked for {to}",
            where=where,
            hint=f"Ask for {known} or less.",
        )
    if current < FIRST and to != current:
        raise UnsupportedModelError(
            f"upgrades start at opset {FIRST}, the model is of opset {current}", where=where
        )


def upgrade(model: Model, to: int, where: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Write *model* for opset *to*, in place.

    Args:
        model: Any model.
        to: A version that :func:`check_range` lets pass.
        where: Who asks.

    Returns:
        What was done how often, empty where nothing was; and remarks, as (where, what).

    Raises:
        UnsupportedModelError: A node cannot be written for it.
    """
    current, before = model.opset, model.ir_version
    # Not a context's analysis: sizes bound with --dim hold for one run, the model serves all.
    edit = Edit(model, to, infer_shapes(model))
    read = [value for node in model.nodes() for value in node.inputs if constant_of(value) is not None]
    with collector_paused():
        counts = _upgrade(model, edit, current, where)
    if counts:
        # What became an attribute, or is no longer given, is not left behind.
        remove_unread(read, keep=annotated_names(model))
        _raise_ir_version(model, to)
        overridable = any(value.is_initializer() for value in model.graph.inputs)
        if before < _OVERRIDABLE_IR <= model.ir_version and overridable:
            remark = "its initializers are inputs: callers may override them from IR version 4 on"
            edit.notes.append(("model", remark))
    return counts, edit.notes


def _upgrade(model: Model, edit: Edit, current: int, where: str) -> dict[str, int]:
    """Rewrite all graphs and return what was done how often; empty where nothing was."""
    refusals: list[str] = []
    counts = {"nodes_rewritten": 0}
    jobs: list[tuple[dict[str, int], list[oir.Node], int]] = []
    if current < edit.to:
        main = [model.graph, *model.graph.subgraphs()]
        jobs.append((model.opset_imports, [node for graph in main for node in graph], current))
    for function in model.functions.values():
        version = max((function.opset_imports.get(domain, 0) for domain in _DOMAINS), default=0)
        if FIRST <= version < edit.to:
            graphs = [function.graph, *function.subgraphs()]
            jobs.append((function.opset_imports, [node for graph in graphs for node in graph], version))
    for imports, nodes, version in jobs:
        for node in nodes:
            if node.domain in _DOMAINS and not _is_call(model, node):
                _upgrade_one(edit, node, version, counts, refusals)
        for domain in _DOMAINS:
            if domain in imports:
                imports[domain] = edit.to
    if refusals:
        shown = "; ".join(refusals[:_SHOWN_REFUSALS])
        more = f"; and {len(refusals) - _SHOWN_REFUSALS} more" if len(refusals) > _SHOWN_REFUSALS else ""
        raise UnsupportedModelError(
            f"cannot go from opset {current} to {edit.to}: {shown}{more}",
            where=where,
            hint="Ask for a version below the change, or export the model anew.",
        )
    if not jobs:
        return {}
    return {"graphs_upgraded": len(jobs), **{key: count for key, count in counts.items() if count}}


def _upgrade_one(
    edit: Edit, node: oir.Node, version: int, counts: dict[str, int], refusals: list[str]
) -> None:
    name = f"node {node.name or node.outputs[0].name!r}"
    edit.added.clear()
    try:
        counts["nodes_rewritten"] += upgrade_node(edit, node, version)
    except Refused as refused:
        refusals.append(f"{name}: {refused}")


def _is_call(model: Model, node: oir.Node) -> bool:
    return (node.domain, node.op_type, node.overload or "") in model.functions


def _raise_ir_version(model: Model, opset: int) -> None:
    needed = helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", opset), 0)
    model.store.ir_version = max(needed, model.ir_version)
