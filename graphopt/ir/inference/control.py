"""Shape inference through If, Loop, Scan and SequenceMap.

The state of a loop is inferred by induction: a shape holds if it holds before the first iteration and the
body, given it, gives it back. What the body changes is widened to an unknown size until nothing changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from graphopt.ir.inference.facts import BOOL, INT64, UNKNOWN, Fact, from_type, from_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx_ir as oir

    from graphopt.ir.inference.symbols import Dim, Symbols
    from graphopt.ir.inference.walk import Scope, Walk

    Rule = Callable[[Walk, oir.Node, Scope], Sequence[Fact] | None]

_MAX_ROUNDS = 8
# Scan of opset 8 had a batch axis and other inputs.
_SCAN_WITHOUT_BATCH = 9


def values_of(graph: oir.Graph) -> Iterator[oir.Value]:
    """Yield the inputs, initializers and node outputs of *graph* itself."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def join(a: Fact, b: Fact, symbols: Symbols) -> Fact:
    """Return what holds for a value of which either *a* or *b* holds."""
    if a == b:
        return a
    if a.type is not None or b.type is not None:
        return _join_types(a, b)
    if a.dtype != b.dtype:
        return UNKNOWN
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return Fact(a.dtype)
    shape = tuple(x if x == y else symbols.fresh() for x, y in zip(a.shape, b.shape, strict=True))
    if a.data is None or b.data is None or len(a.data) != len(b.data):
        return Fact(a.dtype, shape)
    return Fact(a.dtype, shape, tuple(x if x == y else None for x, y in zip(a.data, b.data, strict=True)))


def _join_types(a: Fact, b: Fact) -> Fact:
    if a.type is None or b.type is None:
        return UNKNOWN
    bare = _without_shapes(a.type)
    return Fact(type=bare) if bare == _without_shapes(b.type) else UNKNOWN


def _without_shapes(proto: onnx.TypeProto) -> onnx.TypeProto:
    bare = onnx.TypeProto()
    bare.CopyFrom(proto)
    stack = [bare]
    while stack:
        one = stack.pop()
        kind = one.WhichOneof("value")
        if kind in {"tensor_type", "sparse_tensor_type"}:
            getattr(one, kind).ClearField("shape")
        elif kind == "map_type":
            stack.append(one.map_type.value_type)
        elif kind is not None:
            stack.append(getattr(one, kind).elem_type)
    return bare


def _body(node: oir.Node, name: str) -> oir.Graph | None:
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else attribute.as_graph()


def _if(walk: Walk, node: oir.Node, scope: Scope) -> Sequence[Fact] | None:
    branches = [_body(node, "then_branch"), _body(node, "else_branch")]
    results = [walk.graph(branch, scope) for branch in branches if branch is not None]
    if len(results) != 2 or len(results[0]) != len(results[1]):
        return None
    condition = walk.get(node.inputs[0])
    if condition is not None and condition.data is not None and isinstance(condition.data[0], bool | int):
        return results[0] if condition.data[0] else results[1]
    return [join(yes, no, walk.symbols) for yes, no in zip(*results, strict=True)]


class _State:
    """The values that a loop carries from one iteration to the next."""

    def __init__(self, initial: list[Fact], symbols: Symbols) -> None:
        self.facts = initial
        self._symbols = symbols
        self._wide: set[Dim] = set()

    def absorb(self, after: Sequence[Fact]) -> bool:
        """Widen to what holds before and *after* an iteration; return whether anything changed."""
        widened = [self._widen(now, then) for now, then in zip(self.facts, after, strict=True)]
        changed = widened != self.facts
        self.facts = widened
        return changed

    def give_up(self) -> None:
        """Keep element types only."""
        self.facts = [Fact(fact.dtype, type=fact.type) for fact in self.facts]

    def after_the_loop(self) -> list[Fact]:
        """Return what holds when the loop is done: a size that changes is another one then."""
        return [self._outside(fact) for fact in self.facts]

    def _widen(self, now: Fact, then: Fact) -> Fact:
        if now.type is not None or then.type is not None:
            return now if now == then else _join_types(now, then)
        if now.shape is None or then.shape is None or len(now.shape) != len(then.shape):
            return Fact(now.dtype)
        shape = tuple(self._widen_dim(x, y) for x, y in zip(now.shape, then.shape, strict=True))
        data = None
        if now.data is not None and then.data is not None and len(now.data) == len(then.data):
            data = tuple(x if x == y else None for x, y in zip(now.data, then.data, strict=True))
        return Fact(now.dtype, shape, data)

    def _widen_dim(self, now: Dim, then: Dim) -> Dim:
        if now == then or now in self._wide:
            return now
        dim = self._symbols.fresh()
        self._wide.add(dim)
        return dim

    def _outside(self, fact: Fact) -> Fact:
        if fact.shape is None:
            return fact
        shape = tuple(self._symbols.fresh() if dim in self._wide else dim for dim in fact.shape)
        return Fact(fact.dtype, shape, fact.data)


def _iterate(walk: Walk, body: oir.Graph, scope: Scope, first: int, state: _State, offset: int) -> list[Fact]:
    """Infer *body* until its state is stable and return the facts of its outputs.

    Args:
        walk: The inference.
        body: Body of a Loop or Scan; inputs other than the state are known already.
        scope: What the body inherits.
        first: Position of the first state among the body's inputs.
        state: The state, changed in place.
        offset: Position of the first state among the body's outputs.
    """
    count = len(state.facts)
    for attempt in range(_MAX_ROUNDS + 1):
        if attempt == _MAX_ROUNDS:
            state.give_up()
        for value, fact in zip(body.inputs[first : first + count], state.facts, strict=True):
            walk.put(value, fact)
        results = walk.graph(body, scope)
        if not state.absorb(results[offset : offset + count]):
            return results
    return results


def _collected(walk: Walk, fact: Fact, value: oir.Value, trips: Dim, axis: int, mark: int) -> Fact:
    """Return the fact of an output that collects *fact* of every iteration along *axis*.

    Without iterations the runtime can only go by what the body's output declares, so that is all that is
    claimed unless the number of iterations is known to be positive.
    """
    if fact.shape is None or fact.type is not None:
        return Fact(fact.dtype)
    declared = list(value.shape) if value.shape is not None else []
    certain = isinstance(trips, int) and trips > 0
    if not certain and len(declared) != len(fact.shape) and _is_vague(value.graph):
        return Fact(fact.dtype)
    inner: list[Dim] = []
    for k, dim in enumerate(fact.shape):
        keep = walk.symbols.older(dim, mark) and (
            certain or (len(declared) == len(fact.shape) and declared[k] == dim)
        )
        inner.append(dim if keep else walk.symbols.fresh())
    rank = len(inner) + 1
    axis = axis + rank if axis < 0 else axis
    inner.insert(axis, trips)
    return Fact(fact.dtype, tuple(inner))


def _is_vague(body: oir.Graph | None) -> bool:
    """Whether the runtime, which knows of a body's inputs what they declare, may miss ranks in it."""
    return body is None or any(value.shape is None for value in body.inputs)


def _scalar_like(value: oir.Value, dtype: int) -> Fact:
    """Return the fact of a body's iteration number or condition: of the rank that the body declares."""
    return Fact(dtype, (1,) if value.shape is not None and len(value.shape) == 1 else ())


def _loop(walk: Walk, node: oir.Node, scope: Scope) -> Sequence[Fact] | None:
    body = _body(node, "body")
    if body is None or len(body.inputs) < 2:
        return None
    count = len(body.inputs) - 2
    mark = walk.symbols.mark()
    walk.put(body.inputs[0], _scalar_like(body.inputs[0], INT64))
    walk.put(body.inputs[1], _scalar_like(body.inputs[1], BOOL))
    initial = [
        (walk.get(node.inputs[k + 2]) if k + 2 < len(node.inputs) else None) or UNKNOWN for k in range(count)
    ]
    state = _State(initial, walk.symbols)
    results = _iterate(walk, body, scope, 2, state, 1)
    trips = _loop_trips(walk, node, results[0])
    if isinstance(trips, int):
        walk.trips[node] = trips
    collected = [
        _collected(walk, fact, value, trips, 0, mark)
        for fact, value in zip(results[1 + count :], body.outputs[1 + count :], strict=True)
    ]
    return [*state.after_the_loop(), *collected]


def _loop_trips(walk: Walk, node: oir.Node, condition_after: Fact) -> Dim:
    limit, condition = (walk.get(node.inputs[k]) if k < len(node.inputs) else None for k in (0, 1))
    always = (condition is None or condition.data == (True,)) and condition_after.data == (True,)
    # The condition that the body hands on may be the one that it was given, which is a value of the body.
    passed_on = (condition is None or condition.data == (True,)) and _hands_on_condition(node)
    if limit is None or not (always or passed_on) or not limit.data:
        return walk.symbols.fresh()
    number = limit.data[0]
    if not isinstance(number, int | str):
        return walk.symbols.fresh()
    return walk.symbols.at_least_zero(number)


def _hands_on_condition(node: oir.Node) -> bool:
    body = node.attributes["body"].as_graph()
    value = body.outputs[0]
    producer = value.producer()
    while producer is not None and producer.op_type in {"Identity", "Cast"} and not producer.domain:
        source = producer.inputs[0]
        if source is None:
            return False
        value, producer = source, source.producer()
    return value is body.inputs[1]


def _scan(walk: Walk, node: oir.Node, scope: Scope) -> Sequence[Fact] | None:
    body = _body(node, "body")
    scanned_count = node.attributes.get("num_scan_inputs")
    if body is None or scanned_count is None or scope.opsets.get("", 0) < _SCAN_WITHOUT_BATCH:
        if body is not None:
            for value in body.inputs:
                walk.put(value, from_value(value, walk.symbols))
            walk.graph(body, scope)
        return None
    scanned = scanned_count.as_int()
    count = len(body.inputs) - scanned
    axes = _axes(node, "scan_input_axes", scanned)
    mark = walk.symbols.mark()
    trips: Dim | None = None
    for k in range(scanned):
        outer = walk.get(node.inputs[count + k]) or UNKNOWN
        inner = Fact(outer.dtype)
        if outer.shape:
            axis = axes[k] % len(outer.shape)
            length = outer.shape[axis]
            trips = length if trips is None else walk.symbols.unify(trips, length)
            inner = Fact(outer.dtype, (*outer.shape[:axis], *outer.shape[axis + 1 :]))
        walk.put(body.inputs[count + k], inner)
    state = _State([walk.get(value) or UNKNOWN for value in node.inputs[:count]], walk.symbols)
    results = _iterate(walk, body, scope, 0, state, 0)
    length = walk.symbols.fresh() if trips is None else trips
    if isinstance(length, int):
        walk.trips[node] = length
    output_axes = _axes(node, "scan_output_axes", len(results) - count)
    collected = [
        _collected(walk, fact, value, length, axis, mark)
        for fact, value, axis in zip(results[count:], body.outputs[count:], output_axes, strict=True)
    ]
    return [*state.after_the_loop(), *collected]


def _axes(node: oir.Node, name: str, count: int) -> Sequence[int]:
    attribute = node.attributes.get(name)
    return (0,) * count if attribute is None else attribute.as_ints()


def _sequence_map(walk: Walk, node: oir.Node, scope: Scope) -> Sequence[Fact] | None:
    body = _body(node, "body")
    if body is None:
        return None
    for value, outer in zip(body.inputs, node.inputs, strict=False):
        fact = walk.get(outer) or UNKNOWN
        if fact.type is not None and fact.type.HasField("sequence_type"):
            fact = from_type(fact.type.sequence_type.elem_type, walk.symbols)
        walk.put(value, fact)
    results = walk.graph(body, scope)
    facts = []
    for fact in results:
        proto = onnx.TypeProto()
        element = proto.sequence_type.elem_type
        element.tensor_type.elem_type = fact.dtype
        facts.append(Fact(type=proto) if fact.dtype else UNKNOWN)
    return facts


RULES: dict[str, Rule] = {"If": _if, "Loop": _loop, "Scan": _scan, "SequenceMap": _sequence_map}
