"""Choose which of the foldable values to store, so that a file does not grow.

Storing a value frees what computed it: nodes, and constants that nothing else reads. A value that is larger
than what it frees is not stored; the node stays and its inputs are stored instead, and so on upwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graphopt.passes.folding import sizes

if TYPE_CHECKING:
    from collections.abc import Container

    import onnx_ir as oir

    from graphopt.passes.folding.sweep import Sweep

_WALK_LIMIT = 2000
"""How many nodes are looked at to find out what one value frees; a bound, not a measurement."""


@dataclass(slots=True)
class Cut:
    """What to do with the foldable nodes.

    Attributes:
        stored: Values to become constants, in reverse topological order.
        removed: Nodes that go, in reverse topological order.
        grown_bytes: By how much the values that grow exceed what they free.
        skipped: Why a foldable node stays.
        saved_bytes: By how much the file becomes smaller; negative where it grows.
    """

    stored: dict[oir.Value, None] = field(default_factory=dict)
    removed: dict[oir.Node, None] = field(default_factory=dict)
    grown_bytes: int = 0
    skipped: dict[oir.Node, str] = field(default_factory=dict)
    saved_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Freed:
    """What storing a value frees: bytes, and whether a large constant is among what it is computed from."""

    total_bytes: int
    unpacks: bool


@dataclass(frozen=True, slots=True)
class Allowance:
    """By how much a file may grow.

    Attributes:
        budget_bytes: What stored values may take in all beyond what they free.
        saved_bytes: What was saved before. Masks and the like, computed by many nodes from nothing, may use
            that up too; a stored constant is never unpacked on this account.
        free_bytes: Values up to this size are stored without asking.
    """

    budget_bytes: int
    saved_bytes: int
    free_bytes: int


def choose(sweep: Sweep, allowance: Allowance) -> Cut:
    """Return what to store.

    Args:
        sweep: What is foldable.
        allowance: By how much the file may grow; what this cut saves itself counts as saved.
    """
    generous = _components_that_shrink(sweep)
    first = _choose(sweep, generous, replace(allowance, saved_bytes=0))
    saved = allowance.saved_bytes + max(0, first.saved_bytes)
    return (
        _choose(sweep, generous, replace(allowance, saved_bytes=saved)) if first.skipped and saved else first
    )


def _balance_bytes(sweep: Sweep, cut: Cut) -> int:
    """Return by how many bytes *cut* makes the file smaller; negative where it grows."""
    total = -(_cost(sweep, list(cut.stored)) or 0)
    sources: dict[oir.Value, None] = {}
    for node in cut.removed:
        total += sizes.node_bytes(node)
        sources.update((value, None) for value in node.inputs if value is not None)
    for value in sources:
        if sweep.tensor_of(value) is not None and not _is_read(value, cut.removed):
            total += sweep.bytes_of(value) or 0
    return total


def _choose(sweep: Sweep, generous: set[oir.Node], allowance: Allowance) -> Cut:
    cut = Cut()
    for node in reversed(sweep.foldable):
        needed = _needed(node, cut.removed)
        if not needed:
            cut.removed[node] = None
            continue
        cost = _cost(sweep, needed)
        if cost is None:
            cut.skipped[node] = "the size of its result is unknown"
            continue
        own = sizes.node_bytes(node)
        if cost > own and cost > allowance.free_bytes and node not in generous:
            freed = _freed_above(sweep, node, cut)
            allowed = allowance.budget_bytes
            if not freed.unpacks and node.op_type not in sizes.GROWING:
                allowed += allowance.saved_bytes
            growth = cost - own - freed.total_bytes
            if growth > 0 and growth > allowed - cut.grown_bytes:
                cut.skipped[node] = _reason(node, cost, own + freed.total_bytes)
                continue
            cut.grown_bytes += max(0, growth)
        cut.removed[node] = None
        cut.stored.update(dict.fromkeys(needed))
    cut.saved_bytes = _balance_bytes(sweep, cut)
    return cut


def _needed(node: oir.Node, *removed: Container[oir.Node]) -> list[oir.Value]:
    """Return the outputs of *node* that something reads which is in none of *removed*."""
    return [value for value in node.outputs if _is_read(value, *removed)]


def _is_read(value: oir.Value, *removed: Container[oir.Node]) -> bool:
    # The first reader nearly always decides; consumers() would list them all each time (benchmarks/chain.py).
    uses = value._uses  # noqa: SLF001 - uses() copies, and a constant may have a reader per node of the graph
    return value.is_graph_output() or any(not any(use.node in nodes for nodes in removed) for use in uses)


def _cost(sweep: Sweep, values: list[oir.Value]) -> int | None:
    total = 0
    for value in values:
        size = sweep.bytes_of(value)
        if size is None:
            return None
        total += size + len(value.name or "") + 12
    return total


def _freed_above(sweep: Sweep, node: oir.Node, cut: Cut) -> _Freed:
    """Return what goes with *node*: the nodes and constants above it that nothing else keeps alive."""
    total = 0
    gone = {node}
    stack = [node]
    met: dict[oir.Value, None] = {}
    counted: set[oir.Value] = set()
    while stack and len(gone) < _WALK_LIMIT:
        for value in stack.pop().inputs:
            # A value with several readers is met through each; it goes with the last of them.
            if value is None or value in counted:
                continue
            met[value] = None
            if _is_read(value, gone, cut.removed):
                continue
            counted.add(value)
            producer = value.producer()
            if value.is_initializer():
                total += (sweep.bytes_of(value) or 0) if sweep.tensor_of(value) is not None else 0
            elif (
                producer is not None
                and (producer in sweep.foldable or sweep.tensor_of(value) is not None)
                and not _needed(producer, gone, cut.removed)
            ):
                total += sizes.node_bytes(producer)
                gone.add(producer)
                stack.append(producer)
    unpacks = any(
        (sweep.tensor_of(value) is not None or value not in counted)
        and (sweep.bytes_of(value) or 0) > sizes.SMALL_BYTES
        for value in met
    )
    return _Freed(total, unpacks)


def _components_that_shrink(sweep: Sweep) -> set[oir.Node]:
    """Return the foldable nodes of every connected part that, stored as a whole, takes no more bytes.

    Judged value by value, the parts of a constant that several Slice nodes take from it would each be an
    addition; together they replace it.
    """
    parents: dict[oir.Node, oir.Node] = {}

    def find(node: oir.Node) -> oir.Node:
        root = node
        while parents[root] is not root:
            root = parents[root]
        while parents[node] is not root:
            parents[node], node = root, parents[node]
        return root

    readers: dict[oir.Value, oir.Node] = {}
    for node in sweep.foldable:
        parents[node] = node
        for value in node.inputs:
            if value is None:
                continue
            producer = value.producer()
            if producer is not None and producer in parents:
                parents[find(producer)] = find(node)
            elif (sweep.bytes_of(value) or 0) > sizes.SMALL_BYTES:
                if value in readers:
                    parents[find(readers[value])] = find(node)
                readers[value] = node
    balance: dict[oir.Node, int] = {}
    counted: set[oir.Value] = set()
    unknown: set[oir.Node] = set()
    for node in sweep.foldable:
        root = find(node)
        cost = _cost(sweep, [value for value in node.outputs if _leaves(value, sweep)])
        if cost is None:
            unknown.add(root)
        balance[root] = balance.get(root, 0) + (cost or 0) - sizes.node_bytes(node)
        for value in node.inputs:
            if value is None or value in counted or _is_folded(value, sweep) or _leaves(value, sweep):
                continue
            counted.add(value)
            size = sweep.bytes_of(value) or 0
            # A small constant may be shared with another part, which may stay.
            if sweep.tensor_of(value) is not None and (
                size > sizes.SMALL_BYTES or len(value.consumers()) == 1
            ):
                balance[root] -= size
    return {node for node in sweep.foldable if (root := find(node)) not in unknown and balance[root] <= 0}


def _is_folded(value: oir.Value, sweep: Sweep) -> bool:
    producer = value.producer()
    return producer is not None and producer in sweep.foldable


def _leaves(value: oir.Value, sweep: Sweep) -> bool:
    """Whether *value* is read by something that cannot be folded."""
    return value.is_graph_output() or any(user not in sweep.foldable for user in value.consumers())


def _reason(node: oir.Node, cost: int, freed: int) -> str:
    if sizes.lookup(node):
        return f"unpacking it from its table would store {cost} bytes instead of {freed} (max_growth_bytes)"
    return f"storing its result would take {cost} bytes instead of {freed} (max_growth_bytes)"
