"""Values whose distribution follows from that of another one, so that they need not be looked at.

What an operator only moves (Reshape, Transpose) has the same elements. What it cuts off (Relu, Clip) has them
but for those that lie outside. In a convolutional net that is every other value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir.rewrite import input_at, is_op
from graphopt.ir.tensors import constant_of, to_array

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.ir.model import Model

_MOVING = (
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip

_LARGEST = float(np.finfo(np.float32).max)
"""What Clip cuts at where it names no bound."""

_FLOATS = frozenset({oir.DataType.FLOAT, oir.DataType.FLOAT16, oir.DataType.BFLOAT16, oir.DataType.DOUBLE})


@dataclass(frozen=True, slots=True)
class Derivation:
    """How the elements of a value follow from those of another one.

    Attributes:
        source: Name of the other value.
        low: What smaller elements become.
        high: What larger elements become.
    """

    source: str
    low: float = -np.inf
    high: float = np.inf


def derivations(model: Model, names: Iterable[str]) -> dict[str, Derivation]:
    """Return which of the values called *names* follow from others of them, which do not follow themselves.

    Values of bodies and functions never do: their feeds are not those of the model.
    """
    main = model.graph
    elsewhere = {
        value.name
        for graph in model.graphs()
        if graph is not main
        for value in (
            *graph.inputs,
            *graph.initializers.values(),
            *(each for node in graph for each in node.outputs),
        )
    }
    wanted = set(names) - elsewhere
    found: dict[str, Derivation] = {}
    for node in main:
        step = _step(node)
        if step is None:
            continue
        source, target = node.inputs[0], node.outputs[0]
        if source is None or constant_of(source) is not None or source.is_initializer():
            continue
        if not source.name or not target.name or not {source.name, target.name} <= wanted:
            continue
        before = found.get(source.name, Derivation(source.name))
        low, high = step
        # Elements are cut at the bounds of the source first.
        found[target.name] = Derivation(
            before.source, min(max(before.low, low), high), max(min(before.high, high), low)
        )
    return found


def _step(node: oir.Node) -> tuple[float, float] | None:
    """Return between which bounds the elements of the first input appear in the only output, if they do."""
    if len(node.outputs) != 1:
        return None
    if is_op(node, *_MOVING):
        return -np.inf, np.inf
    if is_op(node, "Relu"):
        return 0.0, np.inf
    if not is_op(node, "Clip"):
        return None
    if "min" in node.attributes or "max" in node.attributes:  # before opset 11
        low: float | None = node.attributes.get_float("min", -_LARGEST)
        high: float | None = node.attributes.get_float("max", _LARGEST)
    else:
        low, high = _bound(input_at(node, 1), -_LARGEST), _bound(input_at(node, 2), _LARGEST)
    return None if low is None or high is None or low > high else (low, high)


def _bound(value: oir.Value | None, default: float) -> float | None:
    """Return a constant bound of Clip; None where it is computed, or no single number."""
    if value is None:
        return default
    tensor = constant_of(value)
    if tensor is None or tensor.dtype not in _FLOATS or tensor.size != 1:
        return None
    number = float(to_array(tensor).reshape(()))
    return None if np.isnan(number) else number
