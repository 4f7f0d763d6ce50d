"""upgrade-opset: write the model for a newer version of the default ONNX domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnx import defs, helper
from pydantic import Field

from graphopt.api import Pass, PassInfo, PassOptions, Report
from graphopt.errors import OptionError, UnsupportedModelError
from graphopt.ir.collector import collector_paused
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.opset.adapters import FIRST, LAST
from graphopt.passes.opset.edit import Edit, Refused
from graphopt.passes.opset.versions import upgrade_node

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.api import Context
    from graphopt.ir import Model

_DOMAINS = ("", "ai.onnx")
_SHOWN_REFUSALS = 5
# Up to IR version 3 every initializer had to be an input, and onnxruntime took it for a constant.
_OVERRIDABLE_IR = 4


class UpgradeOpset(Pass):
    """Raise the version of the default domain, in the main graph, its subgraphs and the functions.

    A node whose operator did not change is kept as it is. One whose form changed (attributes that became
    inputs, Upsample that became Resize) is rewritten, one whose meaning changed (the axis of Softmax) too,
    with helper nodes where there is no direct way. Names of values, metadata and weights stay. A node that
    cannot be written for the newer version fails the pass; nothing is ever changed silently. Other domains
    stay. The IR version rises only where the opset came with a newer one.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="upgrade-opset",
        summary="Rewrite the model for a newer version of the default ONNX domain.",
        preserves=frozenset({"statistics"}),
    )

    class Options(PassOptions):
        """Options of upgrade-opset."""

        to: int | None = Field(
            default=None,
            ge=FIRST,
            description="version of the default domain to reach; none: the lowest that serves the plan",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Check what is asked for, then rewrite node by node."""
        current = model.opset
        if options.to is None:
            return _unchanged(
                f"opset {current}", "no version was asked for and no later pass needs a newer one"
            )
        if current == 0:
            return _unchanged("model", "it does not import the default domain")
        _check_range(current, options.to, context)
        # Not the context's analysis: sizes bound with --dim hold for one run, the model serves all.
        edit = Edit(model, options.to, infer_shapes(model))
        with collector_paused():
            counts = _upgrade(model, edit, current)
        changed = bool(counts)
        before = model.ir_version
        if changed:
            _raise_ir_version(model, options.to)
            if before < _OVERRIDABLE_IR <= model.ir_version and any(
                value.is_initializer() for value in model.graph.inputs
            ):
                remark = "its initializers are inputs: callers may override them from IR version 4 on"
                edit.notes.append(("model", remark))
        versions = {"opset": [current, model.opset], "ir_version": [before, model.ir_version]}
        return Report(changed=changed, counts=counts, skipped=tuple(edit.notes), extra=versions)


def _unchanged(where: str, reason: str) -> Report:
    return Report(changed=False, skipped=((where, reason),))


def _check_range(current: int, to: int, context: Context) -> None:
    where = f"upgrade-opset{{to={to}}}"
    if to < current:
        raise OptionError(
            f"the model is of opset {current}, and an opset is never lowered",
            where=where,
            hint=f"Ask for {current} or more, or leave the pass out.",
        )
    limit = max(limits.max_opset for limits in context.target.runtime_limits)
    if to > limit:
        raise OptionError(
            f"target {context.target.name} loads at most opset {limit}, asked for {to}",
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


def _upgrade(model: Model, edit: Edit, current: int) -> dict[str, int]:
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
            where="upgrade-opset",
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
