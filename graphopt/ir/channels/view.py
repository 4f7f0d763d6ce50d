"""What a rule sees of one node: labels of its inputs, sizes, attributes, and equations to state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.inference.walk import describe
from graphopt.ir.rewrite import attribute, input_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as oir

    from graphopt.ir.channels.propagation import Propagation
    from graphopt.ir.channels.slots import Array, Slots
    from graphopt.ir.shapes import Shape

_MAX_GRID = 1 << 23


class NodeView:
    """One node during the analysis.

    An axis is an int64 array of slots, or None for a dim that nothing is removed from. Axes are passed on as
    they are wherever indices only move, never copied: by the identity of the array the analysis knows which
    dim of which weight made them.
    """

    __slots__ = ("_run", "node")

    def __init__(self, run: Propagation, node: oir.Node) -> None:
        self._run = run
        self.node = node

    @property
    def slots(self) -> Slots:
        """The equations."""
        return self._run.slots

    @property
    def opset(self) -> int:
        """Version of the node's domain."""
        return self._run.opset(self.node.domain)

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - attributes are of many types
        """Return an attribute, text as str."""
        found = attribute(self.node, name, default)
        return found.decode() if isinstance(found, bytes) else found

    def has(self, index: int) -> bool:
        """Return whether input *index* is given."""
        return input_at(self.node, index) is not None

    def axes(self, index: int) -> list[Array | None]:
        """Return the axes of input *index*; weights get atoms of their own at every place of use."""
        return list(self._run.axes_of_use(self.node, index))

    def weight_axes(self, index: int) -> list[Array | None]:
        """Return the axes of input *index*, which is a weight whatever its element type."""
        return list(self._run.axes_of_use(self.node, index, weight=True))

    def is_weight(self, index: int) -> bool:
        """Return whether input *index* is constant or computed from constants alone."""
        return self._run.is_parameter(input_at(self.node, index))

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the dims of input *index*, with the sizes that the analysis took for open ones."""
        return self._run.shape(input_at(self.node, index))

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the dims of output *index*, as :meth:`shape`."""
        return self._run.shape(self.node.outputs[index])

    def is_static(self, index: int, axis: int) -> bool:
        """Return whether dim *axis* of output *index* is a number in the model itself."""
        return self._run.is_static(self.node.outputs[index], axis)

    def dtype(self, index: int) -> oir.DataType | None:
        """Return the element type of input *index*, None where it is unknown."""
        return self._run.dtype(input_at(self.node, index))

    def constant(self, index: int) -> np.ndarray[Any, Any] | None:
        """Return what input *index* is known to hold whatever the open dims are, else None."""
        return self._run.content(input_at(self.node, index))

    def entries(self, index: int) -> Shape | None:
        """Return the known elements of a small integer input, None for each that is open."""
        return self._run.entries(input_at(self.node, index))

    def reason(self, text: str) -> int:
        """Return the number of a reason for locks by this node."""
        return self._run.reason(describe(self.node), text)

    def same(self, one: Array | None, other: Array | None, text: str = "meets a dim that is fixed") -> None:
        """State that both axes lose the same indices."""
        if one is other:
            return
        if one is None or other is None:
            self.lock(other if one is None else one, text)
        elif len(one) != len(other):
            self.lock(one, text)
            self.lock(other, text)
        else:
            self.slots.unify(one, other, self.reason(text))

    def lock(self, axis: Array | None, text: str) -> None:
        """State that no index of *axis* goes."""
        if axis is not None and self.slots.is_live(axis):
            self.slots.lock(axis, self.reason(text))

    def fix(self, axis: Array | None) -> None:
        """Lock *axis* without a note: it holds no channels by nature, like the kernel dims of a weight."""
        if axis is not None:
            self.slots.lock(axis, -1)

    def give_up(self) -> None:
        """Lock everything that an operator of which nothing is known touches."""
        number = self._run.give_up(self.node)
        for index in range(len(self.node.inputs)):
            for axis in self.axes(index) if self.has(index) else ():
                if axis is not None and self.slots.is_live(axis):
                    self.slots.lock(axis, number)

    def lock_inputs(self, text: str, indices: Iterable[int] | None = None) -> None:
        """Lock every axis of the given inputs, by default of all."""
        for index in range(len(self.node.inputs)) if indices is None else indices:
            if self.has(index):
                for axis in self.axes(index):
                    self.lock(axis, text)

    def contract(self, data: int, axis: int, weight: int, weight_axis: int) -> None:
        """State that the node sums over dim *axis* of input *data* times dim *weight_axis* of *weight*."""
        one, other = self.axes(data)[axis], self.axes(weight)[weight_axis]
        self.same(one, other)
        self._run.note_contraction(self.node, data, axis, weight, weight_axis)

    def summed(self, index: int, axis: int) -> None:
        """State that the node sums over dim *axis* of input *index*."""
        self._run.note_contraction(self.node, index, axis, None, 0)

    def recurs(self, index: int, axis: int) -> None:
        """State that the node sums over dim *axis* of weight *index* times something inside of it."""
        self._run.note_inner_sum(self.node, index, axis)

    def produces(self, index: int, axis: Array | None) -> None:
        """Note that *axis* is the output side of weight *index*."""
        if axis is not None and self._run.is_parameter(input_at(self.node, index)):
            self._run.set_role(axis, "producer")

    def approximate(self, axis: Array | None) -> None:
        """Note that the node takes a mean, norm or extremum over *axis*, which masking does not reproduce."""
        if axis is not None:
            self._run.note_approximation(self.node, axis)

    def mark(self, axis: Array | None, kind: str) -> None:
        """Note what the units of *axis* are to an attention: "heads" or "head_dims"."""
        if axis is not None:
            self._run.marks.append((axis, kind))

    def fresh(self, count: int) -> Array | None:
        """Return new atoms for a dim whose indices are all alike; None for one index."""
        return self.slots.fresh(count) if count > 1 else None

    def outer(self, axes: Sequence[Array | None], dims: Sequence[int]) -> Array | None:
        """Return one axis for several dims laid out row by row; None where none of them is live."""
        if all(axis is None for axis in axes):
            return None
        total = math.prod(dims)
        if total > _MAX_GRID:
            for axis in axes:
                self.lock(axis, f"merges into a dim of {total}")
            return None
        flat: Array | None = None
        for axis, dim in zip(axes, dims, strict=True):
            if flat is None:
                flat = axis if axis is not None or dim == 1 else np.zeros(dim, np.int64)
            elif axis is None:
                flat = np.repeat(flat, dim) if dim != 1 else flat
            elif not flat.any():
                flat = np.tile(axis, len(flat))
            else:
                flat = self.slots.product(np.repeat(flat, dim), np.tile(axis, len(flat)))
        return flat

    def split(self, axis: Array | None, dims: Sequence[int]) -> list[Array | None]:
        """Return the axes of the dims that one axis is cut into, row by row."""
        if axis is None:
            return [None] * len(dims)
        reason = self.reason(f"splits {len(axis)} into {' x '.join(map(str, dims))}, which they do not fit")
        found: list[Array | None] = []
        rest: Array | None = axis
        for k, dim in enumerate(dims):
            if rest is None or dim == 1:
                found.append(None)
            elif math.prod(dims[k + 1 :]) == 1:
                found.append(rest)
                rest = None
            else:
                row, rest = self.slots.split(rest.reshape(dim, -1), reason)
                found.append(row)
        return found

    def broadcast(self, indices: Iterable[int], rank: int, dims: Sequence[int]) -> list[Array | None]:
        """Return the axes of an element-wise result over the given inputs, aligned at the last dim.

        Args:
            indices: Inputs that take part.
            rank: Rank of the result, or of its leading part.
            dims: Its dims.
        """
        inputs = [(self.axes(index), self.shape(index)) for index in indices if self.has(index)]
        return self.align([axes for axes, _ in inputs], [dims_ for _, dims_ in inputs], dims[:rank])

    def align(
        self, inputs: Sequence[Sequence[Array | None]], shapes: Sequence[Sequence[int]], dims: Sequence[int]
    ) -> list[Array | None]:
        """Return the axes of a broadcast of axes; equal dims are tied, dims of 1 are stretched."""
        result: list[Array | None] = []
        for k, dim in enumerate(dims):
            parts = []
            for axes, shape in zip(inputs, shapes, strict=True):
                position = k - len(dims) + len(axes)
                if position >= 0 and shape[position] == dim:
                    parts.append(axes[position])
            if dim == 1 or not parts:
                result.append(None)
                continue
            first = next((part for part in parts if part is not None), None)
            for part in parts:
                self.same(first, part)
            result.append(first if all(part is not None for part in parts) else None)
        return result

    def run_body(self, body: oir.Graph) -> None:
        """Label the values of a body, whose inputs are labelled already."""
        self._run.graph(body)

    def label(self, value: oir.Value, axes: Sequence[Array | None]) -> None:
        """Label an input of a body."""
        self._run.put(value, axes)

    def axes_of(self, value: oir.Value) -> list[Array | None]:
        """Return the axes of a value of a body; constants that it gives out directly are fixed."""
        found = self._run.labels.get(value)
        return [None] * (self.rank_of(value) or 0) if found is None else list(found)

    def rank_of(self, value: oir.Value) -> int | None:
        """Return the rank of a value of a body, None where it is unknown."""
        return self._run.rank(value)

    def emit(self, axes: Sequence[Array | None], index: int = 0) -> None:
        """Label output *index*."""
        if index < len(self.node.outputs):
            self._run.put(self.node.outputs[index], axes)

    def emit_nothing(self, index: int = 0) -> None:
        """Label output *index* as fixed in every dim."""
        if index < len(self.node.outputs):
            self._run.put_fixed(self.node.outputs[index])
