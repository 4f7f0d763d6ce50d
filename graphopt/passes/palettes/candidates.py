"""Weights that may become palettes: which they are, their channels, and what counts of them on data."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.calibrate.needs import Needs
from graphopt.ir import rewrite, tensors
from graphopt.ir.semantics import WeightRole, weight_roles
from graphopt.passes.weights.overlooked import overlooked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir import Model

    Floats = npt.NDArray[np.float64]

TYPES = ("FLOAT", "FLOAT16", "DOUBLE")

_ROLES = (WeightRole.WEIGHT, WeightRole.RECURRENT_WEIGHT, WeightRole.TABLE)

FLOOR = 1e-4
"""Least importance of an input, relative to the mean: what is silent on the data may not be elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A weight that may be stored as a palette.

    Attributes:
        value: The initializer.
        tensor: What it holds.
        axis: Axis of its output channels (rows of a table).
        input_axis: Axis that is contracted, or None where there is none.
        reader: The first node that reads it.
        activation: Name of the value that it is multiplied with and the axis of its channels, or None.
        groups: Groups of a convolution; 1 elsewhere.
    """

    value: oir.Value
    tensor: oir.TensorProtocol
    axis: int
    input_axis: int | None
    reader: oir.Node
    activation: tuple[str, int] | None
    groups: int = 1

    @property
    def name(self) -> str:
        """Name of the initializer."""
        return self.value.name or ""

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape.numpy())

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


def find_candidates(
    model: Model, *, min_elements: int, keep: Sequence[str], annotated: frozenset[str]
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return the weights to store as palettes, in order of the graphs, and why others are none.

    Args:
        model: The model.
        min_elements: Smallest weight.
        keep: Patterns of names of initializers and nodes to leave alone.
        annotated: Names that quantization annotations refer to.
    """
    found: list[Candidate] = []
    skipped: list[tuple[str, str]] = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            uses = _weight_uses(value)
            if tensor is None or not uses:
                continue
            where = f"weight {value.name!r}"
            reason = _refused(value, tensor, annotated)
            size = math.prod(tensor.shape.numpy())
            readers = [node for node, _ in uses]
            if not reason and size < max(min_elements, 1):
                reason = "it is empty" if not size else f"it has {size} elements, fewer than {min_elements}"
            if not reason and any(_matches(keep, value.name, *(node.name for node in readers)) for _ in (0,)):
                reason = "it is to be kept"
            if reason:
                skipped.append((where, reason))
                continue
            found.append(_describe(value, tensor, uses))
    others = overlooked(
        model, min_elements=max(min_elements, 1), reads_constant_nodes=False, reads_moved=True
    )
    skipped += ((f"weight {name!r}", reason) for name, reason in others)
    return found, skipped


def _matches(patterns: Sequence[str], *names: str | None) -> bool:
    return any(fnmatch.fnmatchcase(name or "", pattern) for pattern in patterns for name in names)


def _weight_uses(value: oir.Value) -> list[tuple[oir.Node, int]]:
    """Return the uses of *value* as a weight, through Transpose, Reshape and the like too."""
    uses: list[tuple[oir.Node, int]] = []
    for node, index in value.uses():
        if weight_roles(node).get(index) in _ROLES and not rewrite.is_op(node, "QuantizeLinear"):
            uses.append((node, index))
        elif rewrite.is_op(node, "Transpose", "Reshape", "Identity") and index == 0:
            uses += [(node, index)] if _weight_uses(node.outputs[0]) else []
    return uses


def _refused(value: oir.Value, tensor: oir.TensorProtocol, annotated: frozenset[str]) -> str:
    if tensors.is_overridable(value):
        return "callers may override it; canonicalize{freeze_initializers=true} says that nobody does"
    if value.is_graph_output():
        return "it is an output of the graph"
    if value.name in annotated:
        return "a quantization annotation names it"
    if tensor.dtype.name not in TYPES:
        return f"its type is {tensor.dtype.name.lower()}"
    if isinstance(tensor, tensors.SparseTensor):
        return "it is stored as a sparse tensor"
    return ""


def _describe(value: oir.Value, tensor: oir.TensorProtocol, uses: list[tuple[oir.Node, int]]) -> Candidate:
    # What multiplies says more about a weight than what looks rows up.
    node, index = min(uses, key=lambda use: (rewrite.is_op(use[0], "Gather", "Transpose", "Reshape"), 0))
    rank = len(tensor.shape.numpy())
    axis, input_axis, groups = 0, None, 1
    activation: tuple[str, int] | None = None
    source = rewrite.input_at(node, 0)
    name = "" if source is None else source.name or ""
    if rewrite.is_op(node, "Conv") and index == 1:
        axis, input_axis, groups = 0, 1, int(rewrite.attribute(node, "group", 1))
        activation = (name, 1)
    elif rewrite.is_op(node, "ConvTranspose") and index == 1:
        axis, input_axis = 1, 0
        activation = (name, 1)
    elif rewrite.is_op(node, "Gemm") and index == 1 and rank == 2:
        transposed = bool(rewrite.attribute(node, "transB", 0))
        axis, input_axis = (0, 1) if transposed else (1, 0)
        activation = None if rewrite.attribute(node, "transA", 0) else (name, -1)
    elif rewrite.is_op(node, "MatMul") and index == 1 and rank >= 2:
        axis, input_axis = rank - 1, rank - 2
        activation = (name, -1)
    elif rewrite.is_op(node, "LSTM", "GRU", "RNN") and rank == 3:
        axis, input_axis = 1, 2
        activation = (name, -1) if index == 1 else None
    return Candidate(value, tensor, axis, input_axis, node, activation if name else None, groups)


def needs_of(candidates: Sequence[Candidate]) -> Needs:
    """Return the statistics that say which inputs of the weights count."""
    return Needs(channels=frozenset(each.activation for each in candidates if each.activation is not None))


def importance(candidate: Candidate, statistics: Statistics | None) -> Floats | None:
    """Return how much the squared error of each element counts, broadcastable to the weight, or None.

    It is the mean square of the input channel that the element is multiplied with, over its mean: with it
    the sum is the expected squared error of the outputs, but for the correlation of inputs.
    """
    if statistics is None or candidate.activation is None or candidate.input_axis is None:
        return None
    if candidate.activation not in statistics.channels:
        return None
    mean_square = statistics.channel(*candidate.activation).mean_square
    dims = candidate.dims
    inputs = dims[candidate.input_axis] * (candidate.groups if candidate.input_axis == 1 else 1)
    if mean_square.size != inputs or not np.isfinite(mean_square).all() or mean_square.mean() <= 0:
        return None
    scaled: Floats = np.maximum(mean_square / mean_square.mean(), FLOOR)
    shape = [1] * len(dims)
    if candidate.groups > 1:
        # Output channel o of a grouped convolution reads the channels of its own group.
        per_group = scaled.reshape(candidate.groups, dims[1])
        shape[0], shape[1] = dims[0], dims[1]
        return np.repeat(per_group, dims[0] // candidate.groups, 0).reshape(shape)
    shape[candidate.input_axis] = inputs
    return scaled.reshape(shape)
