"""The rounds of fold-constants: sweep, choose, store, simplify what is left, and again while it helps."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from graphopt.api import Report
from graphopt.errors import PassFailed
from graphopt.ir import rewrite, tensors
from graphopt.ir.collector import collector_paused
from graphopt.ir.dead import remove_unread
from graphopt.ir.meta import QUANTIZATION, peek_meta, peek_props
from graphopt.ir.shapes import Shapes, infer_shapes
from graphopt.passes.cleanup.annotations import annotated_names
from graphopt.passes.folding.branches import inline_constant_branches
from graphopt.passes.folding.cut import Allowance, Cut, choose
from graphopt.passes.folding.impossible import impossible_in_branches
from graphopt.passes.folding.region import evaluate_region
from graphopt.passes.folding.sweep import Sweep
from graphopt.passes.folding.targets import simplify_targets

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.api import Context
    from graphopt.ir import Model

    Array = npt.NDArray[Any]
    Shared = dict[tuple[oir.Graph, str, tuple[int, ...], bytes], oir.Value]

_AUTOMATIC = 100
"""By default a model may grow by one part in this many of its constants: what lets the attention masks and
position tables of benchmarks/cleanup_zoo.py be stored, and leaves a model of small constants alone."""

_FREE_BYTES = 128
"""By default a value up to this size is stored even where the node that computes it takes less."""

_MAX_ROUNDS = 20
"""Each round but the last makes the model smaller; real models take two to four."""


def fold(model: Model, max_growth_bytes: int | None, context: Context, *, inline_branches: bool) -> Report:
    """Fold *model* in place; see :class:`graphopt.passes.fold_constants.FoldConstants`."""
    counts: Counter[str] = Counter()
    skipped: dict[oir.Node, str] = {}
    budget_bytes = max_growth_bytes or 0
    saved_bytes = _constant_bytes(model) // _AUTOMATIC if max_growth_bytes is None else 0
    free_bytes = _FREE_BYTES if max_growth_bytes is None else 0
    shared: Shared = {}
    annotated = annotated_names(model)
    with collector_paused():
        for _ in range(_MAX_ROUNDS):
            inlined = inline_constant_branches(model) if inline_branches else []
            counts["branches_inlined"] += len(inlined)
            counts["nodes_removed"] += remove_unread(inlined, annotated)
            if inlined:
                context.invalidate()
            sweep = Sweep(model, lambda: _shapes(model, context))
            sweep.run()
            allowance = Allowance(budget_bytes + min(0, saved_bytes), max(0, saved_bytes), free_bytes)
            cut = _choose(model, sweep, allowance)
            saved_bytes += cut.saved_bytes if cut.stored else 0
            decided = any(rewrite.is_op(user, "If") for value in cut.stored for user in value.consumers())
            _store(model, sweep, cut, shared, annotated, counts)
            simplified = simplify_targets(model, sweep.shapes()) if sweep.derived else []
            counts["targets_simplified"] += len(simplified)
            counts["nodes_removed"] += remove_unread(simplified, annotated)
            skipped = sweep.skipped | cut.skipped
            if cut.removed or simplified:
                context.invalidate()
            more = cut.stored and (decided or sweep.evaluated or sweep.asked_shapes)
            if not (simplified or inlined or more):
                break
    keys = ("folded", "branches_inlined", "targets_simplified", "nodes_removed")
    return Report(
        changed=any(counts[key] for key in keys),
        counts={key: number for key, number in sorted(counts.items()) if number},
        skipped=tuple((_where(node), reason) for node, reason in skipped.items() if node.graph is not None),
    )


def _constant_bytes(model: Model) -> int:
    return sum(
        tensors.nbytes(value.const_value)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _shapes(model: Model, context: Context) -> Shapes:
    """Return the shapes of *model* with every symbolic dim free.

    What the user bound by ``--dim`` holds for one run, not for the model, and must not be folded into it.
    """
    if context.dims:
        return infer_shapes(model)
    shapes = context.analysis("shapes")
    assert isinstance(shapes, Shapes)
    return shapes


def _choose(model: Model, sweep: Sweep, allowance: Allowance) -> Cut:
    """Choose what to store and compute it; what cannot be computed is left alone and the rest chosen anew."""
    while True:
        cut = choose(sweep, allowance)
        failed = {
            node: f"it cannot be evaluated: {reason}" for node, reason in _compute_missing(sweep, cut).items()
        }
        failed |= impossible_in_branches(model, sweep, cut)
        if not failed:
            return cut
        for node, reason in failed.items():
            sweep.drop(node, reason)


def _compute_missing(sweep: Sweep, cut: Cut) -> dict[oir.Node, str]:
    """Compute the stored values that were too large to be computed before they were wanted."""
    by_node: dict[oir.Node, list[oir.Value]] = {}
    for value in cut.stored:
        if value not in sweep.arrays:
            producer = value.producer()
            assert producer is not None
            by_node.setdefault(producer, []).append(value)
    for node, wanted in by_node.items():
        region = _region_of(sweep, node)
        inside = {value for inner in region for value in inner.outputs}
        outside = dict.fromkeys(
            value for inner in region for value in inner.inputs if value is not None and value not in inside
        )
        constants = {value: found for value in outside if (found := sweep.constant(value)) is not None}
        result = evaluate_region(region, wanted, constants, sweep.opsets_of(node))
        if result.failed:
            return result.failed
        for value, array in result.arrays.items():
            array.flags.writeable = False
            sweep.arrays[value] = array
    return {}


def _region_of(sweep: Sweep, node: oir.Node) -> list[oir.Node]:
    """Return *node* and the nodes above it that are not computed yet, in topological order."""
    found: dict[oir.Node, None] = {}
    stack = [(node, False)]
    while stack:
        current, done = stack.pop()
        if done:
            found[current] = None
            continue
        if current in found:
            continue
        stack.append((current, True))
        missing = (value for value in current.inputs if value is not None and sweep.constant(value) is None)
        stack.extend((above, False) for value in missing if (above := value.producer()) is not None)
    return list(found)


def _store(
    model: Model, sweep: Sweep, cut: Cut, shared: Shared, annotated: frozenset[str], counts: Counter[str]
) -> None:
    """Make the stored values constants of their graphs, equal small ones once; remove what computed them."""
    for value in cut.stored:
        producer = value.producer()
        assert producer is not None and producer.graph is not None  # noqa: PT018 - one state, two facts
        if value.is_graph_output():
            new = rewrite.add_initializer(model, producer.graph, f"{value.name}_value", sweep.arrays[value])
            if not rewrite.replace_value(model, value, new):
                raise PassFailed("a folded graph output could not be renamed", where=f"value {value.name!r}")
        else:
            _become_constant(model, producer.graph, value, sweep.arrays[value], shared)
    left = dict.fromkeys(value for node in cut.removed for value in node.inputs if value is not None)
    rewrite.remove_nodes(cut.removed)
    counts["folded"] += len(cut.stored)
    counts["nodes_removed"] += len(cut.removed)
    counts["nodes_removed"] += remove_unread(left, annotated)


def _become_constant(model: Model, graph: oir.Graph, old: oir.Value, array: Array, shared: Shared) -> None:
    """Put a constant of the same name, or an equal one, in the place of *old*."""
    key = None
    if array.nbytes <= _FREE_BYTES and array.dtype.kind != "O" and QUANTIZATION not in peek_meta(old):
        key = (graph, array.dtype.str, array.shape, array.tobytes())
        twin = shared.get(key)
        if twin is not None and twin.graph is graph:
            for user, index in old.uses():
                user.replace_input_with(index, twin)
            return
    name = old.name or "folded"
    old.name = model.fresh_name(f"{name}_folded")
    new = rewrite.add_initializer(model, graph, name, array)
    new.name = name
    new.doc_string = old.doc_string
    if props := peek_props(old):
        new.metadata_props.update(props)
    if QUANTIZATION in peek_meta(old):
        new.meta[QUANTIZATION] = old.meta[QUANTIZATION]
    if key is not None:
        shared[key] = new
    for user, index in old.uses():
        user.replace_input_with(index, new)


def _where(node: oir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"
