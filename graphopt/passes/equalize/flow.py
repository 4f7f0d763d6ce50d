"""Where a scale given to a channel goes: through positively homogeneous operators, to where it is undone.

An operator f is positively homogeneous if f(s x) = s f(x) for s > 0: Relu, pooling, sums. Between two linear
operators a channel may then be divided by any s > 0: the rows that make it are divided by s, those that read
it multiplied. Every channel of every value gets an atom; what is added or pooled together shares one; what
meets an operator of another kind, an output of the model or a body is locked: its scale stays 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir.quantised import is_dequantize
from graphopt.ir.rewrite import (
    attribute,
    captured_values,
    constant_array,
    has_reference,
    input_at,
    is_op,
    is_overridable,
)
from graphopt.ir.semantics import may_train
from graphopt.ir.tensors import constant_of
from graphopt.passes.equalize.atoms import Atoms, Bound, Label, Offset, Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.equalize.atoms import Ids


_BROADCASTING = 8
"""Opset from which on Max and Min take a bound a channel."""

_CROPS = frozenset({"tf_crop_and_resize", b"tf_crop_and_resize"})


@dataclass
class Flow:
    """The atoms of a model's main graph.

    Args:
        model: The model; it is not changed.
        shapes: Its shapes.
        keep: Gives the reason to leave the weight of a node alone, "" for none.
        bounds: Whether a Clip with other bounds than 0 and infinity may get bounds a channel.

    Attributes:
        operators: Linear operators that may be rescaled.
        offsets: Constants that are added.
        bounds_found: Clips whose bounds are divided.
        atoms: All atoms.
        skipped: Linear operators that may not be, with the reason.
        stops: Number of nodes that locked channels, by operator.
    """

    model: Model
    shapes: Shapes
    keep: Callable[[oir.Node], str]
    bounds: bool = False
    operators: list[Operator] = field(default_factory=list)
    offsets: list[Offset] = field(default_factory=list)
    bounds_found: list[Bound] = field(default_factory=list)
    atoms: Atoms = field(default_factory=Atoms)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    stops: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._labels: dict[oir.Value, Label] = {}
        captured: set[oir.Value] = set()
        for node in self.model.graph:
            if node.attributes:
                captured.update(captured_values(node))
            self._visit(node)
        for value, label in self._labels.items():
            if value.is_graph_output() or value in captured:
                self.atoms.lock(label.ids)

    def _visit(self, node: oir.Node) -> None:
        if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            reason = self._linear(node)
            if reason:
                if _is_stored(input_at(node, 1)):
                    self.skipped.append((f"{node.op_type} {node.name or node.outputs[0].name!r}", reason))
                self._stop(node)
            return
        rule = _RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
        if has_reference(node) or rule is None or not rule(self, node):
            self._stop(node)

    def _stop(self, node: oir.Node) -> None:
        """Lock all that *node* reads; what it puts out has no label."""
        found = [self._labels[value] for value in node.inputs if value is not None and value in self._labels]
        for label in found:
            self.atoms.lock(label.ids)
        if found:
            self.stops[node.op_type] = self.stops.get(node.op_type, 0) + 1

    def label(self, node: oir.Node, index: int = 0) -> Label | None:
        """Return the label of input *index* of *node*."""
        value = input_at(node, index)
        return None if value is None else self._labels.get(value)

    def put(self, node: oir.Node, label: Label, index: int = 0) -> None:
        """Label output *index* of *node*."""
        self._labels[node.outputs[index]] = label

    def _linear(self, node: oir.Node) -> str:
        """Give a linear operator atoms, and return "", or why it gets none."""
        data, weight = input_at(node, 0), input_at(node, 1)
        tensor = constant_of(weight)
        if data is None or weight is None or tensor is None:
            if weight is not None and is_overridable(weight):
                return "callers may override its weight (but for canonicalize{freeze_initializers=true})"
            if weight is not None and is_dequantize(weight.producer()):
                return "its weight is stored as codes"
            return "its weight is no constant"
        if constant_of(data) is not None or has_reference(node):
            return "it reads a constant"
        if not tensor.dtype.is_floating_point() or tensor.dtype.itemsize < 2:
            return f"its weight is {tensor.dtype.name.lower()}"
        if tensor.dtype == oir.DataType.FLOAT16:
            return "it computes in float16, whose narrow range scaled values may leave"
        if len(weight.uses()) > 1 or weight.is_graph_input() or weight.is_graph_output():
            return "its weight has other readers"
        if reason := self.keep(node):
            return reason
        dims = tuple(int(dim) for dim in tensor.shape.numpy())
        groups = int(attribute(node, "group", 1))
        rank = self.shapes.rank(node.outputs[0])
        if len(dims) < 2 or 0 in dims or rank is None:
            return "its shape is not known"
        axis, inputs, outputs = 1, dims[1] * groups, dims[0]
        if is_op(node, "ConvTranspose"):
            inputs, outputs = dims[0], dims[1] * groups
        elif not is_op(node, "Conv"):
            if len(dims) != 2 or attribute(node, "transA", 0):
                return "transA, or its weight is no matrix"
            axis = rank - 1
            inputs, outputs = dims[::-1] if attribute(node, "transB", 0) else dims
        array = constant_array(weight)
        if array is None or not np.isfinite(array).all():
            return "its weight holds NaN or infinities"
        if not self._bias_fits(node, outputs):
            return "its bias is no constant of one number an output"
        rank_in = self.shapes.rank(data)
        label = self._labels.get(data)
        columns = None
        if label is not None:
            wanted = 1 if is_op(node, "Conv", "ConvTranspose") else (rank_in or 0) - 1
            if label.axis != wanted or len(label.ids) != inputs:
                return "it sums over another axis than that of channels"
            columns = label.ids
        rows = self.atoms.fresh(outputs)
        self.operators.append(Operator(node, rows, columns, groups))
        self.put(node, Label(axis, rows))
        return ""

    def _bias_fits(self, node: oir.Node, outputs: int) -> bool:
        bias = None if is_op(node, "MatMul") else input_at(node, 2)
        if bias is None:
            return True
        array = constant_array(bias)
        if array is None or not np.isfinite(array).all():
            return False
        return array.size in {1, outputs} and (not array.ndim or array.shape[-1] == array.size)

    # Rules: label the outputs and return True, or return False, upon which the inputs are locked.

    def same(self, node: oir.Node) -> bool:
        """One input, one output of the same axes."""
        label = self.label(node)
        if label is None or len([value for value in node.outputs if value.name]) > 1:
            return False
        self.put(node, label)
        return True

    def pool(self, node: oir.Node) -> bool:
        """Pooling runs over all axes but the first two, so that channels must be the second."""
        label = self.label(node)
        return label is not None and label.axis == 1 and self.same(node)

    def relu_like(self, node: oir.Node) -> bool:
        """PRelu: a slope a channel changes nothing."""
        return constant_of(input_at(node, 1)) is not None and self._broadcasts(node) and self.same(node)

    def _broadcasts(self, node: oir.Node) -> bool:
        """Return whether the output of *node* has the shape of its first input."""
        one, two = (self.shapes.shape(value) for value in (node.inputs[0], node.outputs[0]))
        return one is not None and one == two

    def clip(self, node: oir.Node) -> bool:
        """Clip is homogeneous where its bounds are 0 and infinity; others must be divided themselves."""
        low, high = self._number(node, 1, "min", -np.inf), self._number(node, 2, "max", np.inf)
        label = self.label(node)
        if low is None or high is None or label is None:
            return False
        largest = float(np.finfo(np.float32).max)
        low, high = (-np.inf if low <= -largest else low), (np.inf if high >= largest else high)
        if low not in {0.0, -np.inf} or high not in {0.0, np.inf}:
            rank, dtype = self.shapes.rank(input_at(node, 0)), self.shapes.dtype(input_at(node, 0))
            broadcasts = self.model.opset >= _BROADCASTING
            if not self.bounds or low > high or rank is None or dtype is None or not broadcasts:
                return False
            self.bounds_found.append(Bound(node, label.axis - rank, label.ids, low, high, dtype.numpy()))
        return self.same(node)

    @staticmethod
    def _number(node: oir.Node, index: int, name: str, default: float) -> float | None:
        value = input_at(node, index)
        if value is None:
            return float(attribute(node, name, default))
        array = constant_array(value)
        return None if array is None or array.size != 1 else float(array.reshape(()))

    def dropout(self, node: oir.Node) -> bool:
        """Dropout that does not train is an identity."""
        return not may_train(node) and self.same(node)

    def add(self, node: oir.Node) -> bool:
        """Sums tie what they add, and constants go along."""
        labels = [(index, self.label(node, index)) for index in range(len(node.inputs))]
        known = [label for _, label in labels if label is not None]
        rank = self.shapes.rank(node.outputs[0])
        if not known or rank is None:
            return False
        channels = len(known[0].ids)
        axes = set()
        for index, label in labels:
            value = node.inputs[index]
            if label is None:
                if value is None or constant_of(value) is None:
                    return False
                continue
            own = self.shapes.rank(value)
            if own is None or len(label.ids) != channels:
                return False
            axes.add(label.axis + rank - own)
        dims = self.shapes.shape(node.outputs[0])
        axis = next(iter(axes))
        if len(axes) != 1 or dims is None or dims[axis] != channels:
            return False
        offsets = []
        for index, label in labels:
            if label is None:
                offset = self._offset(node, index, axis - rank, known[0].ids)
                if offset is None:
                    return False
                offsets.append(offset)
        for label in known[1:]:
            self.atoms.unite(known[0].ids, label.ids)
        self.offsets += offsets
        self.put(node, Label(axis, known[0].ids))
        return True

    def _offset(self, node: oir.Node, index: int, axis: int, ids: Ids) -> Offset | None:
        array = constant_array(node.inputs[index])
        if array is None or not np.isfinite(array).all() or array.dtype.kind not in "fV":
            return None
        if array.ndim >= -axis and array.shape[axis] not in {1, len(ids)}:
            return None
        return Offset(node, index, axis, ids)

    def multiply(self, node: oir.Node) -> bool:
        """A product with what does not scale; of two that do the smaller one (a gate) is held still."""
        one, other = self.label(node, 0), self.label(node, 1)
        main = 0 if one is not None else 1
        if one is not None and other is not None:
            ranks = [self.shapes.shape(value) for value in node.inputs]
            if ranks[0] == ranks[1]:
                return False
            main = 0 if ranks[0] == self.shapes.shape(node.outputs[0]) else 1
            gate = other if main == 0 else one
            self.atoms.lock(gate.ids)
        label = self.label(node, main)
        value = node.inputs[main]
        if label is None or value is None or (is_op(node, "Div") and main == 1):
            return False
        if self.shapes.shape(value) is None or self.shapes.shape(value) != self.shapes.shape(node.outputs[0]):
            return False
        self.put(node, label)
        return True

    def reduce(self, node: oir.Node) -> bool:
        """Means, sums and maxima over other axes than that of channels."""
        label, rank = self.label(node), self.shapes.rank(input_at(node, 0))
        if label is None or rank is None:
            return False
        axes = self._ints(node, 1, "axes")
        if axes is None or not axes:
            return False
        axes = [axis % rank for axis in axes]
        if label.axis in axes:
            return False
        kept = bool(attribute(node, "keepdims", 1))
        moved = label.axis if kept else label.axis - sum(axis < label.axis for axis in axes)
        self.put(node, Label(moved, label.ids))
        return True

    def concat(self, node: oir.Node) -> bool:
        """Concat of channels puts atoms side by side; of anything else it ties them."""
        rank = self.shapes.rank(node.outputs[0])
        labels = [self.label(node, index) for index in range(len(node.inputs))]
        if rank is None or any(label is None for label in labels):
            return False
        known = [label for label in labels if label is not None]
        axis = int(attribute(node, "axis", 1)) % rank
        if len({label.axis for label in known}) != 1:
            return False
        if known[0].axis == axis:
            self.put(node, Label(axis, np.concatenate([label.ids for label in known])))
            return True
        if len({len(label.ids) for label in known}) != 1:
            return False
        for label in known[1:]:
            self.atoms.unite(known[0].ids, label.ids)
        self.put(node, known[0])
        return True

    def split(self, node: oir.Node) -> bool:
        """Split of channels."""
        label, rank = self.label(node), self.shapes.rank(input_at(node, 0))
        if label is None or rank is None:
            return False
        axis = int(attribute(node, "axis", 0)) % rank
        start = 0
        for index, value in enumerate(node.outputs):
            ids = label.ids
            if axis == label.axis:
                dims = self.shapes.shape(value)
                size = None if dims is None else dims[axis]
                if not isinstance(size, int):
                    return False
                ids = label.ids[start : start + size]
                start += size
            self.put(node, Label(label.axis, ids), index)
        return True

    def transpose(self, node: oir.Node) -> bool:
        """Transpose moves the axis."""
        label, rank = self.label(node), self.shapes.rank(input_at(node, 0))
        if label is None or rank is None:
            return False
        order = list(attribute(node, "perm", ()) or range(rank)[::-1])
        self.put(node, Label(order.index(label.axis), label.ids))
        return True

    def pad(self, node: oir.Node) -> bool:
        """Pad with zeros, or by reflection, beside other axes than that of channels."""
        label, rank = self.label(node), self.shapes.rank(input_at(node, 0))
        pads = self._ints(node, 1, "pads")
        if label is None or rank is None or pads is None or input_at(node, 3) is not None:
            return False
        if len(pads) != 2 * rank or pads[label.axis] or pads[rank + label.axis]:
            return False
        mode = attribute(node, "mode", "constant")
        if mode in {"constant", b"constant"} and self._number(node, 2, "value", 0.0) != 0.0:
            return False
        self.put(node, label)
        return True

    def resize(self, node: oir.Node) -> bool:
        """Resize interpolates linearly, whatever its mode; with a crop it would fill in a number."""
        label, after = self.label(node), self.shapes.shape(node.outputs[0])
        crops = attribute(node, "coordinate_transformation_mode", "") in _CROPS
        if label is None or after is None or crops or after[label.axis] != len(label.ids):
            return False
        self.put(node, label)
        return True

    def reshape(self, node: oir.Node) -> bool:
        """Reshape and its kin, as far as channels stay together."""
        label = self.label(node)
        before, after = self.shapes.shape(input_at(node, 0)), self.shapes.shape(node.outputs[0])
        if label is None or before is None or after is None or not after:
            return False
        found = _reshaped(label, before, after)
        if found is None:
            return False
        self.put(node, found)
        return True

    def _ints(self, node: oir.Node, index: int, name: str) -> list[int] | None:
        """Return whole numbers that newer opsets have as an input and older ones as an attribute."""
        value = input_at(node, index)
        if value is None:
            given = attribute(node, name)
            return None if given is None else [int(each) for each in given]
        array = constant_array(value)
        return None if array is None else [int(each) for each in array.reshape(-1)]


def _is_stored(value: oir.Value | None) -> bool:
    """Return whether *value* holds a weight, whatever its form: what computes both inputs is no news."""
    if value is None:
        return False
    return value.is_initializer() or constant_of(value) is not None or is_dequantize(value.producer())


def _reshaped(label: Label, before: Sequence[Any], after: Sequence[Any]) -> Label | None:
    """Return the label behind a change of shape from *before* to *after*, None where channels are torn."""
    axis, channels = label.axis, len(label.ids)
    rest, rest_after = before[axis + 1 :], after[axis + 1 :] if len(after) > axis else None
    if any(not isinstance(dim, int) for dim in rest):
        # Nothing is known about what is inside a channel; it stays as it is if it ends the shape.
        return None
    inner = math.prod(rest)
    lead = tuple(before[:axis])
    leads_fit = len(after) > axis and (tuple(after[:axis]) == lead or axis == 1)
    if leads_fit and None not in lead and rest_after is not None:
        known = all(isinstance(dim, int) for dim in rest_after)
        if known and after[axis] == channels and math.prod(rest_after) == inner:
            return Label(axis, label.ids)
        if known and after[axis] == channels * inner and math.prod(rest_after) == 1:
            return Label(axis, np.repeat(label.ids, inner))
    if inner == 1 and after[-1] == channels:
        return Label(len(after) - 1, label.ids)
    return None


_RULES: dict[str, Callable[[Flow, oir.Node], bool]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "Abs", "Neg", "Identity"), Flow.same),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        Flow.pool,
    ),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), Flow.reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), Flow.reshape),
    **dict.fromkeys(("Add", "Sub", "Sum"), Flow.add),
    **dict.fromkeys(("Mul", "Div"), Flow.multiply),
    "PRelu": Flow.relu_like,
    "Clip": Flow.clip,
    "Dropout": Flow.dropout,
    "Concat": Flow.concat,
    "Split": Flow.split,
    "Transpose": Flow.transpose,
    "Pad": Flow.pad,
    **dict.fromkeys(("Resize", "Upsample"), Flow.resize),
}  # fmt: skip
