"""Read what a node does to each channel: y = scale * x + shift, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir import rewrite, semantics

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.ir import Shapes

    Vector = npt.NDArray[np.float64]
    Array = npt.NDArray[Any]

_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_DEFAULT_EPSILON = float(np.float32(1e-5))  # attributes are single precision
_MAX_DEPTH = 16


class Refusal(Exception):  # noqa: N818 - caught by the pass, which writes the reason down; never seen by users
    """Why a node is left alone."""


@dataclass(frozen=True, slots=True)
class Affine:
    """A map of each channel, ``scale * x + shift``; both of shape [channels]."""

    scale: Vector
    shift: Vector

    @staticmethod
    def identity(channels: int) -> Affine:
        """Return the map that changes nothing."""
        return Affine(np.ones(channels), np.zeros(channels))

    def then(self, other: Affine) -> Affine:
        """Return the map that applies *other* to the result of this one."""
        with np.errstate(all="ignore"):
            return Affine(self.scale * other.scale, self.shift * other.scale + other.shift)

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())


@dataclass(frozen=True, slots=True)
class Place:
    """Where the channels of a value are.

    Attributes:
        channels: How many there are.
        from_end: The channel axis counted from the last, which is 1.
        rank: Rank of the value, or None where unknown.
    """

    channels: int
    from_end: int
    rank: int | None


def affine_of(node: oir.Node, value: oir.Value, place: Place, shapes: Shapes, opset: int) -> Affine | None:
    """Return what *node* makes of *value*, or None where it is no per-channel map.

    Args:
        node: A reader of *value*.
        value: What the map is applied to.
        place: Where its channels are.
        shapes: Shapes of the model's values.
        opset: Version of the default domain where the node stands.

    Raises:
        Refusal: It is a BatchNormalization that cannot be read as such a map.
    """
    if rewrite.is_op(node, "Identity"):
        return Affine.identity(place.channels)
    if rewrite.is_op(node, "Cast", "CastLike"):
        kind = shapes.dtype(value)
        same = kind is not None and node.inputs[0] is value and shapes.dtype(node.outputs[0]) == kind
        return Affine.identity(place.channels) if same else None
    if rewrite.is_op(node, "BatchNormalization"):
        return _batch_normalization(node, value, place, opset)
    if rewrite.is_op(node, *_ARITHMETIC) and len(node.inputs) == 2 and "broadcast" not in node.attributes:
        return _arithmetic(node, value, place, shapes)
    return None


def _batch_normalization(node: oir.Node, value: oir.Value, place: Place, opset: int) -> Affine:
    """Y = scale * (x - mean) / sqrt(var + epsilon) + bias (ONNX BatchNormalization, inference)."""
    if node.inputs[0] is not value:
        raise Refusal("its parameters are computed")
    if rewrite.has_reference(node):
        raise Refusal("an attribute is set by the caller of the function")
    check_inference(node, opset)
    if place.rank is None or place.rank - place.from_end != 1:
        raise Refusal("its channel axis is not the axis of the output channels")
    vectors = []
    for name, parameter in zip(("scale", "bias", "mean", "variance"), node.inputs[1:5], strict=True):
        array = constant_through(parameter, value)
        if array is None:
            raise Refusal(f"its {name} is not constant")
        if array.shape not in {(place.channels,), (1,)} and array.ndim != 0:
            raise Refusal(f"its {name} has shape {list(array.shape)}, expected [{place.channels}]")
        vectors.append(np.broadcast_to(array.astype(np.float64), (place.channels,)))
    scale, bias, mean, variance = vectors
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + rewrite.attribute(node, "epsilon", _DEFAULT_EPSILON))
        affine = Affine(factor, bias - mean * factor)
    if not affine.is_finite:
        raise Refusal("its statistics are not finite, or a variance is negative")
    return affine


def check_inference(node: oir.Node, opset: int) -> None:
    """Make sure that a BatchNormalization node uses its stored statistics, channel by channel.

    Raises:
        Refusal: It trains, or normalises each position by itself.
    """
    if semantics.may_train(node):
        raise Refusal("it is in training mode")
    if opset < 7 and not rewrite.attribute(node, "is_test", 0):
        raise Refusal("it is in training mode (is_test=0)")
    if not rewrite.attribute(node, "spatial", 1):
        raise Refusal("it normalises every position by itself (spatial=0)")


def _arithmetic(node: oir.Node, value: oir.Value, place: Place, shapes: Shapes) -> Affine | None:
    first, second = node.inputs
    if first is second:
        return None
    operand = second if first is value else first
    array = constant_through(operand, value)
    if array is None or array.dtype.kind not in "fV":
        return None
    vector = _per_channel(array, operand, value, place, shapes)
    if vector is None:
        return None
    ones, zeros = np.ones(place.channels), np.zeros(place.channels)
    if node.op_type == "Add":
        return Affine(ones, vector)
    if node.op_type == "Mul":
        return Affine(vector, zeros)
    if node.op_type == "Sub":
        return Affine(ones, -vector) if first is value else Affine(-ones, vector)
    if first is not value:
        return None
    with np.errstate(all="ignore"):
        return Affine(1.0 / vector, zeros)


def _per_channel(
    array: Array, operand: oir.Value | None, value: oir.Value, place: Place, shapes: Shapes
) -> Vector | None:
    """Return *array*, broadcast against *value*, as one number a channel, or None where it is not that."""
    if array.ndim > (place.rank if place.rank is not None else 1):
        return None
    for axis, size in enumerate(reversed(array.shape), start=1):
        if size != 1 and (axis != place.from_end or size != place.channels):
            return None
    if (
        operand is not None
        and rewrite.constant_array(operand, 0) is None
        and not _keeps_shape(operand, value, shapes)
    ):
        return None
    return np.array(np.broadcast_to(array.astype(np.float64).reshape(-1), (place.channels,)))


def _keeps_shape(operand: oir.Value, value: oir.Value, shapes: Shapes) -> bool:
    """Whether *value* keeps its shape when *operand*, maybe expanded, is broadcast against it."""
    if not _is_expanded(operand):
        return True
    other, own = shapes.shape(operand), shapes.shape(value)
    if other is None or own is None or len(other) > len(own):
        return False
    return all(
        a == 1 or (a is not None and a == b) for a, b in zip(reversed(other), reversed(own), strict=False)
    )


def _is_expanded(value: oir.Value | None) -> bool:
    for _ in range(_MAX_DEPTH):
        node = value.producer() if value is not None else None
        if node is None or rewrite.is_op(node, "Constant"):
            return False
        if rewrite.is_op(node, "Expand"):
            return True
        value = node.inputs[0] if node.inputs else None
    return True


def constant_through(value: oir.Value | None, like: oir.Value | None = None, depth: int = 0) -> Array | None:
    """Return the content of *value* where it is a constant, maybe behind casts, reshapes and expansion.

    What an exporter leaves between a parameter and its use changes neither its numbers nor their order:
    Identity, Cast and CastLike to a float type, Unsqueeze, Squeeze, Reshape, and Expand, whose repetition the
    caller has to allow for.

    Args:
        value: A value.
        like: A value of the type that CastLike is known to cast to: its result type is not computed here.
        depth: How many nodes were passed.
    """
    array = rewrite.constant_array(value)
    if array is not None or value is None or depth > _MAX_DEPTH:
        return array
    node = value.producer()
    if node is None or rewrite.has_reference(node) or not node.inputs:
        return None
    if rewrite.is_op(node, "Identity", "Expand", "CastLike"):
        return constant_through(node.inputs[0], like, depth + 1)
    source = None
    if rewrite.is_op(node, "Cast", "Unsqueeze", "Squeeze", "Reshape"):
        source = constant_through(node.inputs[0], like, depth + 1)
    if source is None:
        return None
    if node.op_type == "Cast":
        kind = oir.DataType(rewrite.attribute(node, "to"))
        return source.astype(kind.numpy()) if kind.is_floating_point() else None
    numbers = rewrite.attribute(node, "axes")
    if numbers is None and (content := rewrite.constant_array(rewrite.input_at(node, 1))) is not None:
        numbers = [int(number) for number in content.reshape(-1)]
    try:
        if node.op_type == "Unsqueeze":
            return None if numbers is None else np.expand_dims(source, tuple(numbers))
        if node.op_type == "Squeeze":
            return np.squeeze(source, None if numbers is None else tuple(numbers))
        if numbers is None or 0 in numbers:
            return None
        return source.reshape(numbers)
    except ValueError:  # A malformed shape is the runtime's to refuse.
        return None
