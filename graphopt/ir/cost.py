"""What a model costs: MACs, parameters and bytes, per node and in total.

Conventions:

- Initializers that callers may override count as what they hold.
- Dims that nothing binds count as 1 (``--dim batch=8`` binds one). A dim that only running can tell counts as
  1 too, and :attr:`Cost.notes` says so.
- Of an If the branch with more MACs counts. The body of a Loop or Scan counts once per iteration where their
  number is known, else once, which is noted. A function counts once per call.
- Every constant tensor counts once, however many initializers and Constant nodes hold it. Bytes are those of
  all of them. Parameters are the elements of those with a floating or quantised type; of 16-bit and wider
  integers only those that an operator uses as bias. Shapes, axes and indices are no parameters, in whatever
  form an exporter wrote them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir import tensors
from graphopt.ir.collector import collector_paused
from graphopt.ir.inference.symbols import Symbols
from graphopt.ir.inference.walk import Walk
from graphopt.ir.macs import macs_of
from graphopt.ir.rewrite import attribute, node_graphs
from graphopt.ir.semantics import WeightRole, weight_roles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.ir.model import Model

UNUSED = "(unused)"
GRAPH_OUTPUT = "(graph output)"

NOT_PARAMETERS = frozenset({
    oir.DataType.BOOL, oir.DataType.STRING, oir.DataType.INT16, oir.DataType.UINT16, oir.DataType.INT32,
    oir.DataType.UINT32, oir.DataType.INT64, oir.DataType.UINT64,
})  # fmt: skip
"""Element types of what is no parameter, unless an operator uses it as bias."""


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Cost of one node.

    Attributes:
        name: Name of the node, or of its first output where it has none.
        op_type: Operator, with its domain where that is not the default one.
        macs: MACs of one execution, or None where a shape is unknown.
        parameters: Parameters that it is the first to use.
        bytes: Bytes of the constants that it is the first to use.
        times: How often it is counted: iterations of the loops around it, 0 in the smaller branch of an If.
    """

    name: str
    op_type: str
    macs: int | None
    parameters: int
    bytes: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a model; see the conventions at the top of this module.

    Attributes:
        macs: Sum over nodes of MACs times executions, or None where some are unknown.
        known_macs: The same sum without the unknown ones.
        unknown: Nodes whose MACs are unknown.
        parameters: Elements of all tensors that are parameters.
        weight_bytes: Bytes of all constant tensors.
        bytes_by_dtype: Bytes by element type, as ONNX names it in lower case, largest first.
        bytes_by_op: Bytes by operator of the first user, largest first.
        per_node: Nodes that have MACs or constants, in graph order, bodies behind the node they belong to; a
            call of a function is one node, what its body stores stands at the end.
        dead: Initializers that nothing uses.
        notes: Assumptions made, one sentence each.
    """

    macs: int | None
    known_macs: int
    unknown: tuple[str, ...]
    parameters: int
    weight_bytes: int
    bytes_by_dtype: Mapping[str, int]
    bytes_by_op: Mapping[str, int]
    per_node: tuple[NodeCost, ...]
    dead: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def measure_cost(model: Model, dims: Mapping[str, int] | None = None) -> Cost:
    """Return what *model* costs, without reading weights or changing the model.

    Args:
        model: Any model.
        dims: Sizes bound to symbolic dims, by name.
    """
    with collector_paused():
        walk = Walk(model, Symbols(dims or {}, unbound=1))
        meter = _Meter(model, walk)
        walk.on_call = meter.called
        walk.run(assume_defaults=True)
        return meter.measure()


def label(node: oir.Node) -> str:
    """Return how tables name the operator of *node*."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


@dataclass(slots=True)
class _Constants:
    """Constants that one node is the first to use."""

    parameters: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Meter:
    model: Model
    walk: Walk
    by_dtype: Counter[str] = field(default_factory=Counter)
    by_op: Counter[str] = field(default_factory=Counter)
    dead: list[str] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    constants: dict[oir.Node, _Constants] = field(default_factory=dict)
    calls: dict[oir.Node, int | None] = field(default_factory=dict)
    parameters: int = 0

    def called(self, node: oir.Node, function: oir.Function) -> None:
        """Take down the MACs of one call, while the shapes in the body are those of this call.

        Calls inside the body were taken down just before.
        """
        costs = self._graph(function.graph, 1)
        self.calls[node] = None if _unknown(costs) else _known(costs)

    def measure(self) -> Cost:
        """Put everything together, after the inference."""
        self._weigh()
        costs = self._graph(self.model.graph, 1)
        unknown, known = _unknown(costs), _known(costs)
        for function in self.model.functions.values():
            # What is computed in a body counts at its calls; what is stored in it counts here.
            costs += [replace(cost, macs=0, times=0) for cost in self._graph(function.graph, 0) if cost.bytes]
        return Cost(
            macs=None if unknown else known,
            known_macs=known,
            unknown=unknown,
            parameters=self.parameters,
            weight_bytes=sum(self.by_dtype.values()),
            bytes_by_dtype=_largest_first(self.by_dtype),
            bytes_by_op=_largest_first(self.by_op),
            per_node=tuple(costs),
            dead=tuple(self.dead),
            notes=tuple(self.notes),
        )

    def _weigh(self) -> None:
        seen: set[int] = set()
        for value, tensor in _constant_values(self.model):
            user = next(iter(value.consumers()), None)
            if user is None and not value.is_graph_output() and value.is_initializer():
                self.dead.append(value.name or "")
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size, parameters = tensors.nbytes(tensor), _parameters(value, tensor)
            self.by_dtype[tensor.dtype.name.lower()] += size
            self.parameters += parameters
            if user is None:
                self.by_op[GRAPH_OUTPUT if value.is_graph_output() else UNUSED] += size
                continue
            self.by_op[label(user)] += size
            constants = self.constants.setdefault(user, _Constants())
            constants.parameters += parameters
            constants.bytes += size

    def _graph(self, graph: oir.Graph, times: int) -> list[NodeCost]:
        costs: list[NodeCost] = []
        for node in graph:
            macs = self.calls[node] if node in self.calls else macs_of(node, self._shape_of)
            constants = self.constants.get(node)
            if macs != 0 or constants is not None:
                held = constants or _Constants()
                costs.append(NodeCost(_name(node), label(node), macs, held.parameters, held.bytes, times))
                if macs and times:
                    self._note_assumed_dims(node)
            if node.attributes:
                costs += self._bodies(node, times)
        return costs

    def _bodies(self, node: oir.Node, times: int) -> list[NodeCost]:
        bodies = list(node_graphs(node))
        if not bodies:
            return []
        if node.op_type == "If" and not node.domain:
            totals = [_known(self._graph(body, 1)) for body in bodies]
            largest = totals.index(max(totals))
            counted = [times if index == largest else 0 for index in range(len(bodies))]
            return [
                cost for body, count in zip(bodies, counted, strict=True) for cost in self._graph(body, count)
            ]
        trips = self.walk.trips.get(node)
        if trips is None:
            trips = 1
            self.notes[f"{label(node)} {_name(node)!r}: number of iterations unknown, counted once"] = None
        return [cost for body in bodies for cost in self._graph(body, times * trips)]

    def _shape_of(self, value: oir.Value | None) -> tuple[int, ...] | None:
        fact = None if value is None else self.walk.facts.get(value)
        if fact is None or fact.shape is None:
            return None
        return tuple([dim if isinstance(dim, int) else 1 for dim in fact.shape])

    def _note_assumed_dims(self, node: oir.Node) -> None:
        facts = [
            self.walk.facts.get(value) for value in (*node.inputs, *node.outputs[:1]) if value is not None
        ]
        shapes = [fact.shape for fact in facts if fact is not None and fact.shape is not None]
        if any(isinstance(dim, str) for shape in shapes for dim in shape):
            self.notes[f"{label(node)} {_name(node)!r}: dims known only when it runs count as 1"] = None


def _unknown(costs: list[NodeCost]) -> tuple[str, ...]:
    return tuple(cost.name for cost in costs if cost.macs is None and cost.times)


def _known(costs: list[NodeCost]) -> int:
    return sum((cost.macs or 0) * cost.times for cost in costs)


def _constant_values(model: Model) -> Iterator[tuple[oir.Value, oir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in graph:
            if node.op_type == "Constant" and not node.domain:
                tensor = tensors.constant_of(node.outputs[0])
                if tensor is not None:
                    yield node.outputs[0], tensor


def _parameters(value: oir.Value, tensor: oir.TensorProtocol) -> int:
    size = math.prod(tensor.shape.numpy())
    roles = [(user, weight_roles(user).get(index)) for user, index in value.uses()]
    if tensor.dtype in NOT_PARAMETERS:
        return size if any(role is WeightRole.BIAS for _, role in roles) else 0
    for user, role in roles:
        if user.op_type == "MatMulNBits" and role is WeightRole.WEIGHT:
            # The bytes are packed: K rows of N columns is what they stand for.
            rows, columns = attribute(user, "K"), attribute(user, "N")
            return int(rows) * int(columns) if rows and columns else size
    return size


def _largest_first(sizes: Counter[str]) -> dict[str, int]:
    return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


def _name(node: oir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), "") or node.op_type
