"""Fold a per-channel affine map into the weights of the linear operator in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir import rewrite, tensors
from graphopt.passes.batchnorm.affine import Affine, Place, Refusal

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir import Model, Shapes

    Array = npt.NDArray[Any]

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that a map of their output channels can be folded into."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear operator with constant weights.

    Attributes:
        node: The operator.
        weight: Its weight; [out, in/group, ...] of Conv, [in, out/group, ...] of ConvTranspose, [in, out] of
            MatMul and Gemm, the latter [out, in] with transB.
        bias: One number a channel, in float64, as it enters the sum; zeros where there is none.
        place: Where the channels of its output are.
        group: Groups of a convolution; 1 otherwise.
    """

    node: oir.Node
    weight: oir.Value
    bias: npt.NDArray[np.float64]
    place: Place
    group: int

    @property
    def holds_bias(self) -> bool:
        """Whether the operator can add a bias; MatMul cannot."""
        return self.node.op_type != "MatMul"


def read_linear(node: oir.Node, shapes: Shapes) -> Linear:
    """Return *node*, one of :data:`LINEAR`, with its parameters.

    Raises:
        Refusal: A parameter is not constant, is quantised, or of a type or shape that cannot be scaled.
    """
    if rewrite.has_reference(node):
        raise Refusal("an attribute of its operator is set by the caller of the function")
    weight = rewrite.input_at(node, 1)
    if weight is None:
        raise Refusal("its operator has no weight")
    tensor = tensors.constant_of(weight)
    if tensor is None:
        if rewrite.is_op(weight.producer(), "DequantizeLinear"):
            raise Refusal("the weight is quantised")
        if rewrite.is_overridable(weight):
            raise Refusal("the caller of the model may override the weight")
        raise Refusal("the weight is not constant")
    if not tensor.dtype.is_floating_point():
        raise Refusal(f"the weight is of type {tensor.dtype.name}")
    dims = [int(size) for size in tensor.shape.numpy()]
    group = int(rewrite.attribute(node, "group", 1))
    place = _place(node, dims, group, shapes)
    return Linear(node, weight, _bias(node, place), place, group)


def _place(node: oir.Node, dims: list[int], group: int, shapes: Shapes) -> Place:
    rank = len(dims)
    if node.op_type == "Conv" and rank >= 3:
        return Place(dims[0], rank - 1, rank)
    if node.op_type == "ConvTranspose" and rank >= 3:
        return Place(dims[1] * group, rank - 1, rank)
    if node.op_type == "Gemm" and rank == 2:
        return Place(dims[0] if rewrite.attribute(node, "transB", 0) else dims[1], 1, 2)
    if node.op_type == "MatMul" and rank == 2:
        return Place(dims[1], 1, shapes.rank(node.outputs[0]))
    raise Refusal(f"the weight of rank {rank} is of no known layout")


def _bias(node: oir.Node, place: Place) -> npt.NDArray[np.float64]:
    bias = rewrite.input_at(node, 2) if node.op_type != "MatMul" else None
    if bias is None:
        return np.zeros(place.channels)
    tensor = tensors.constant_of(bias)
    if tensor is None:
        if rewrite.is_op(bias.producer(), "DequantizeLinear"):
            raise Refusal("the bias is quantised")
        raise Refusal(
            "the caller of the model may override the bias"
            if rewrite.is_overridable(bias)
            else "the bias is not constant"
        )
    array = tensors.to_array(tensor)
    if any(size != 1 for size in array.shape[:-1]) or array.shape[-1:] not in {(), (1,), (place.channels,)}:
        raise Refusal(f"the bias of shape {list(array.shape)} is not one number a channel")
    if node.op_type == "Gemm" and "broadcast" in node.attributes:
        raise Refusal("the bias follows the broadcasting of opset 6")
    beta = float(rewrite.attribute(node, "beta", 1.0)) if node.op_type == "Gemm" else 1.0
    return np.array(np.broadcast_to(array.astype(np.float64).reshape(-1) * beta, (place.channels,)))


def copy_costs_bytes(linear: Linear) -> int:
    """Return the bytes of a weight that others read too, so that scaling it takes a copy; 0 where none do."""
    readers = linear.weight.uses()
    if len(readers) <= 1 and not linear.weight.is_graph_output():
        return 0
    tensor = tensors.constant_of(linear.weight)
    return 0 if tensor is None else tensors.nbytes(tensor)


def fold_into(model: Model, linear: Linear, affine: Affine) -> tuple[list[oir.Value | None], Array]:
    """Make *linear* compute *affine* of what it computed, but for the shift where it holds no bias.

    Args:
        model: The model it is part of.
        linear: What to change.
        affine: What to apply to its output.

    Returns:
        The parameters that it no longer reads, and the new bias in the type of the weight.

    Raises:
        Refusal: A weight or bias would not be finite in its type; nothing is changed then.
    """
    node = linear.node
    old = tensors.to_array(_tensor(linear.weight))
    weight = _scaled(linear, old, affine)
    with np.errstate(all="ignore"):
        bias = (linear.bias * affine.scale + affine.shift).astype(old.dtype)
    if _is_finite(old) and not _is_finite(weight):
        raise Refusal("a scaled weight overflows its type")
    if not _is_finite(bias):
        raise Refusal("the bias overflows its type")
    released: list[oir.Value | None] = []
    if linear.holds_bias:
        released.append(rewrite.input_at(node, 2))
        _set_bias(model, node, bias, linear)
    if not np.array_equal(affine.scale, np.ones_like(affine.scale)):
        released.append(linear.weight)
        node.replace_input_with(1, successor(model, node, linear.weight, weight))
    return released, bias


def _is_finite(array: Array) -> bool:
    # The low-precision types of ml_dtypes are of another kind, and all of them fit a float32.
    return bool(np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32)).all())


def _tensor(value: oir.Value) -> oir.TensorProtocol:
    tensor = tensors.constant_of(value)
    assert tensor is not None
    return tensor


def _scaled(linear: Linear, weight: Array, affine: Affine) -> Array:
    """Return the weight with each output channel scaled, computed in float64 and rounded once."""
    node, rest = linear.node, (1,) * (weight.ndim - 2)
    if node.op_type == "Conv":
        scale = affine.scale.reshape(-1, 1, *rest)
    elif node.op_type == "ConvTranspose":
        # [in, out/group, ...]: the inputs of group g are rows g * in/group ..., its outputs g * out/group ...
        per_group = affine.scale.reshape(linear.group, 1, weight.shape[1])
        rows = weight.shape[0] // linear.group
        scale = np.broadcast_to(per_group, (linear.group, rows, weight.shape[1]))
        scale = scale.reshape(weight.shape[0], weight.shape[1], *rest)
    elif node.op_type == "Gemm" and rewrite.attribute(node, "transB", 0):
        scale = affine.scale.reshape(-1, 1)
    else:
        scale = affine.scale.reshape(1, -1)
    with np.errstate(all="ignore"):
        return np.asarray((weight.astype(np.float64) * scale).astype(weight.dtype))


def successor(model: Model, node: oir.Node, old: oir.Value, content: Array) -> oir.Value:
    """Return a constant for *node* to read instead of *old*, of the same name where only *node* read that."""
    graph = node.graph
    assert graph is not None
    new = rewrite.add_initializer(model, graph, old.name or "weight", content)
    if len(old.uses()) == 1 and not old.is_graph_output() and old.name:
        name = old.name
        old.name = model.fresh_name(f"{name}_replaced")
        new.name = name
        new.doc_string = old.doc_string
        new.metadata_props.update(old.metadata_props)
    return new


def _set_bias(model: Model, node: oir.Node, bias: Array, linear: Linear) -> None:
    graph = node.graph
    assert graph is not None
    old = rewrite.input_at(node, 2)
    if old is None and not bias.any():
        return
    if old is not None:
        new = successor(model, node, old, bias)
    else:
        new = rewrite.add_initializer(model, graph, f"{linear.weight.name}_bias", bias)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, new)
    node.attributes.pop("beta", None)
