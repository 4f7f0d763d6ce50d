"""The walk that labels every value: node by node in graph order, bodies at the node that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir import tensors
from graphopt.ir.channels.slots import Slots
from graphopt.ir.channels.view import NodeView
from graphopt.ir.inference.walk import describe
from graphopt.ir.rewrite import input_at
from graphopt.ir.semantics import domain_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.types import ChannelRule, Role
    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shape, Shapes

# Integers of these types are indices, sizes and masks, never weights.
_NO_WEIGHTS = frozenset({
    oir.DataType.BOOL, oir.DataType.STRING, oir.DataType.INT16, oir.DataType.UINT16, oir.DataType.INT32,
    oir.DataType.UINT32, oir.DataType.INT64, oir.DataType.UINT64,
})  # fmt: skip
# Operators whose result may have free dims although none of their inputs has.
_MAKE_CHANNELS = frozenset({
    "ConstantOfShape", "DequantizeLinear", "Expand", "If", "Loop", "Pad", "Scan", "Tile",
})  # fmt: skip
# Reading more for the sake of a constant index or size would cost more than it could tell.
_MAX_CONTENT_BYTES = 1 << 20
_OVERRIDABLE_IR = 4


@dataclass(frozen=True, slots=True)
class Contraction:
    """Node *node* sums over dim *axis* of its input *input*, against a dim of input *weight* if any."""

    node: oir.Node
    input: int
    axis: int
    weight: int | None
    weight_axis: int


class Propagation:
    """One analysis of one model, which is only read.

    Attributes:
        slots: The equations between all labels.
        labels: Axes of every computed value.
        uses: Axes of every constant, by the node and the input that read it.
        roles: Role of a dim of a weight, by the identity of its axis, which is kept alive here.
        marks: Axes of heads and head dims.
        contractions: What sums over what.
        approximations: Nodes that take a mean, norm or extremum over an axis.
        reasons: (where, what) by number; number 0 means none.
        unknown: Operators without a rule that could not be probed, by the number of the reason.
    """

    def __init__(
        self,
        model: Model,
        symbolic: Shapes,
        concrete: Shapes,
        rules: Mapping[tuple[str, str], ChannelRule],
        fallback: ChannelRule,
    ) -> None:
        self.model = model
        self.slots = Slots()
        self.labels: dict[oir.Value, Sequence[Array | None]] = {}
        self.uses: dict[tuple[oir.Node, int], Sequence[Array | None]] = {}
        self.roles: dict[int, Role] = {}
        self.marks: list[tuple[Array, str]] = []
        self.contractions: list[Contraction] = []
        self.approximations: list[tuple[oir.Node, Array]] = []
        self.reasons: list[tuple[str, str]] = [("", "")]
        self.unknown: dict[int, str] = {}
        self._symbolic, self._concrete = symbolic, concrete
        self._rules, self._fallback = rules, fallback
        self._numbers: dict[tuple[str, str], int] = {}
        self._weights: set[tuple[oir.Node, int]] = set()
        self._derived: set[oir.Value] = set()
        self._contents: dict[oir.Value, np.ndarray[Any, Any] | None] = {}
        self._tied: dict[int, Sequence[Array | None]] = {}
        self._alive: list[Array] = []

    def run(self) -> None:
        """Label the whole model."""
        for value in self.model.graph.inputs:
            if self.constant(value) is None:
                what = "overridable initializer" if value.is_initializer() else "graph input"
                self._pin(value, f"{what} {value.name!r}", "a caller gives it in full")
        self.graph(self.model.graph)
        for value in self.model.graph.outputs:
            number = self.reason(f"graph output {value.name!r}", "a caller reads it in full")
            for axis in self.labels.get(value, ()):
                if axis is not None:
                    self.slots.lock(axis, number)

    def _pin(self, value: oir.Value, where: str, what: str) -> None:
        token = self.slots.fresh(1)
        self.slots.lock(token, self.reason(where, what))
        self.labels[value] = [
            np.full(dim, token[0]) if 1 < dim <= _MAX_CONTENT_BYTES else None for dim in self.shape(value)
        ]

    def graph(self, graph: oir.Graph) -> None:
        """Label the values of *graph*, whose inputs are labelled already."""
        for node in graph:
            self.node(node)

    def node(self, node: oir.Node) -> None:
        """Label the outputs of *node*; those of a Constant are labelled where they are read."""
        if node.op_type == "Constant" and self.constant(node.outputs[0]) is not None:
            return
        parameters = True
        live = False
        for index in range(len(node.inputs)):
            value = input_at(node, index)
            if value is None:
                continue
            parameters = parameters and self.is_parameter(value)
            if not live:
                live = any(axis is not None for axis in self.axes_of_use(node, index))
        if parameters and node.inputs and not any(True for _ in node.attributes.values() if _is_body(_)):
            self._derived.update(node.outputs)
        if live or node.op_type in _MAKE_CHANNELS:
            self._apply(node)
        for value in node.outputs:
            if value not in self.labels:
                self.put_fixed(value)

    def _apply(self, node: oir.Node) -> None:
        view = NodeView(self, node)
        rule = self._rules.get((domain_of(node), node.op_type))
        if rule is None:
            rule = self._fallback
        elif not any(_is_body(found) for found in node.attributes.values()) and not self._has_ranks(node):
            view.lock_inputs("the rank of one of its values is unknown")
            return
        try:
            rule.constrain(view)
        except (IndexError, ValueError, TypeError, ZeroDivisionError) as error:
            # A malformed node, or a form that its rule does not know; what was stated so far only ties more.
            view.lock_inputs(f"its channels could not be followed ({error})")
            for value in node.outputs:
                self.put_fixed(value)

    def _has_ranks(self, node: oir.Node) -> bool:
        inputs = (value for index in range(len(node.inputs)) if (value := input_at(node, index)))
        outputs = (
            value for value in node.outputs if value.name and (value.uses() or value.is_graph_output())
        )
        return all(self._concrete.rank(value) is not None for group in (inputs, outputs) for value in group)

    def constant(self, value: oir.Value) -> oir.TensorProtocol | None:
        """Return what *value* always holds; before IR version 4 an input with an initializer does, too."""
        found = tensors.constant_of(value)
        if found is None and self.model.ir_version < _OVERRIDABLE_IR and value.is_initializer():
            return value.const_value
        return found

    def is_parameter(self, value: oir.Value | None) -> bool:
        """Return whether *value* is constant or computed from constants alone."""
        return value is not None and (value in self._derived or self.constant(value) is not None)

    def axes_of_use(self, node: oir.Node, index: int, *, weight: bool = False) -> Sequence[Array | None]:
        """Return the axes of input *index* of *node*; integers have live ones only where they are weights."""
        value = input_at(node, index)
        if value is None:
            return ()
        found = self.labels.get(value)
        if found is not None:
            return found
        key = (node, index)
        found = self.uses.get(key)
        if found is None or (weight and key not in self._weights):
            tensor = self.constant(value)
            if tensor is None:  # defined by an outer graph that was not walked, or by nothing at all
                return [None] * (self._concrete.rank(value) or 0)
            found = self.uses[key] = self._label(value, tensor, weight=weight)
            if weight:
                self._weights.add(key)
        return found

    def _label(self, value: oir.Value, tensor: oir.TensorProtocol, *, weight: bool) -> Sequence[Array | None]:
        """Give a constant atoms of its own at one place of use.

        Exporters write equal constants once, zero biases above all, so that places of use say nothing about
        each other. A matrix of differing numbers that several nodes read is shared on purpose; it stays one.
        """
        dims = tuple(tensor.shape.numpy())
        if tensor.dtype in _NO_WEIGHTS and not weight:
            return [None] * len(dims)
        shared = len(dims) > 1 and len(value.uses()) > 1
        if shared and id(value) in self._tied:
            return self._tied[id(value)]
        axes = [self.slots.fresh(dim) if dim > 1 else None for dim in dims]
        if shared and not _is_uniform(tensor):
            self._tied[id(value)] = axes
        return axes

    def shape(self, value: oir.Value | None) -> tuple[int, ...]:
        """Return the dims that the analysis takes *value* to have, -1 for what only running can tell."""
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._concrete.shape(value) or ())

    def rank(self, value: oir.Value | None) -> int | None:
        """Return the rank of *value*, None where it is unknown."""
        return self._concrete.rank(value)

    def dtype(self, value: oir.Value | None) -> oir.DataType | None:
        """Return the element type of *value*, None where it is unknown."""
        return self._symbolic.dtype(value)

    def is_static(self, value: oir.Value, axis: int) -> bool:
        """Return whether dim *axis* of *value* is a number whatever the open dims of the model are."""
        shape = self._symbolic.shape(value)
        return shape is not None and isinstance(shape[axis], int)

    def symbolic_shape(self, value: oir.Value | None) -> Shape | None:
        """Return the dims of *value* with open dims as symbols."""
        return self._symbolic.shape(value)

    def content(self, value: oir.Value | None) -> np.ndarray[Any, Any] | None:
        """Return what *value* holds whatever the open dims are, or None."""
        if value is None:
            return None
        if value not in self._contents:
            self._contents[value] = self._content(value)
        return self._contents[value]

    def _content(self, value: oir.Value) -> np.ndarray[Any, Any] | None:
        tensor = self.constant(value)
        if tensor is not None:
            return tensors.to_array(tensor) if tensors.is_small(tensor, _MAX_CONTENT_BYTES) else None
        known, dims = self._symbolic.known(value), self._symbolic.static_shape(value)
        if known is None or dims is None or not all(isinstance(item, int) for item in known):
            return None
        return np.array(known, np.int64).reshape(dims)

    def entries(self, value: oir.Value | None) -> Shape | None:
        """Return the elements of a small integer tensor as far as they are known."""
        if value is None:
            return None
        content = self.content(value)
        if content is not None:
            return tuple(int(item) for item in content.reshape(-1))
        return self._symbolic.known(value)

    def opset(self, domain: str) -> int:
        """Return the version of *domain* that the model imports."""
        return self.model.opset_imports.get(domain, 1) if domain else self.model.opset

    def reason(self, where: str, what: str) -> int:
        """Return the number of a reason."""
        number = self._numbers.get((where, what))
        if number is None:
            number = self._numbers[where, what] = len(self.reasons)
            self.reasons.append((where, what))
        return number

    def put(self, value: oir.Value, axes: Sequence[Array | None]) -> None:
        """Label *value*."""
        self.labels[value] = list(axes)

    def put_fixed(self, value: oir.Value) -> None:
        """Label *value* as fixed in every dim."""
        self.labels[value] = [None] * (self._concrete.rank(value) or 0)

    def set_role(self, axis: Array, role: Role) -> None:
        """Note what *axis* is to the weight that it was made for; the first note stays."""
        if id(axis) not in self.roles:
            self.roles[id(axis)] = role
            self._alive.append(axis)

    def note_contraction(
        self, node: oir.Node, data: int, axis: int, weight: int | None, weight_axis: int
    ) -> None:
        """Note that *node* sums over a dim; which of two inputs is the weight is found out here."""
        if weight is not None and not self.is_parameter(input_at(node, weight)):
            if self.is_parameter(input_at(node, data)):
                data, axis, weight, weight_axis = weight, weight_axis, data, axis
            else:
                weight = None
        if self.is_parameter(input_at(node, data)):
            return
        axis %= max(len(self.axes_of_use(node, data)), 1)
        if weight is not None:
            axes = self.axes_of_use(node, weight)
            weight_axis %= len(axes)
            found = axes[weight_axis]
            if found is not None:
                self.set_role(found, "consumer")
        self.contractions.append(Contraction(node, data, axis, weight, weight_axis))

    def note_inner_sum(self, node: oir.Node, weight: int, axis: int) -> None:
        """Note that *node* sums over a dim of a weight times what it computes itself."""
        self.contractions.append(Contraction(node, weight, axis, None, 0))

    def note_approximation(self, node: oir.Node, axis: Array) -> None:
        """Note that *node* takes a mean, norm or extremum over *axis*."""
        self.approximations.append((node, axis))

    def give_up(self, node: oir.Node) -> int:
        """Return the number of the reason that nothing is known about the operator of *node*."""
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        number = self.reason(describe(node), f"there is no rule for {name}")
        self.unknown[number] = name
        return number


def _is_body(found: oir.Attr) -> bool:
    return found.type in {oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS}


def _is_uniform(tensor: oir.TensorProtocol) -> bool:
    if tensor.dtype.bitwidth < 8 or not tensor.size:
        return not tensor.size
    array = tensors.to_array(tensor)
    return bool((array == array.reshape(-1)[0]).all())
