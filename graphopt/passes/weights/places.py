"""Where weights stand, who reads them, and in which form their codes pay.

A form is what stands between the codes and the readers: a DequantizeLinear that the runtime fuses with the
product behind it, codes that are gathered before they are unpacked, or arithmetic on constants that the
runtime does once, when it loads the model.
"""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import onnx_ir as oir

from graphopt.ir import tensors
from graphopt.ir.rewrite import attribute, input_at, is_op, is_overridable, sole_user
from graphopt.ir.semantics import WeightRole, weight_roles
from graphopt.passes.weights.overlooked import overlooked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.ir import Model

Form = Literal["fused", "gathered", "folded"]

_WEIGHTS = frozenset({WeightRole.WEIGHT, WeightRole.RECURRENT_WEIGHT, WeightRole.TABLE})
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class Use:
    """One reader of a weight: the node, the input, and what the weight is to it."""

    node: oir.Node
    index: int
    role: WeightRole


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that only operators read to which it is a weight.

    Attributes:
        value: The initializer, or the output of a Constant node.
        tensor: Its content.
        dims: Its shape.
        uses: Who reads it.
    """

    value: oir.Value
    tensor: oir.TensorProtocol
    dims: tuple[int, ...]
    uses: tuple[Use, ...]

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self.value.name or ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


def constants(model: Model) -> Iterator[tuple[oir.Value, oir.TensorProtocol]]:
    """Yield the constant values of all graphs but those of functions, in graph order."""
    bodies = {
        id(graph)
        for function in model.functions.values()
        for graph in (function.graph, *function.subgraphs())
    }
    for graph in model.graphs():
        if id(graph) in bodies:
            continue
        for value in list(graph.initializers.values()):
            if value.const_value is not None:
                yield value, value.const_value
        for node in list(graph):
            if is_op(node, "Constant"):
                held = tensors.constant_of(node.outputs[0])
                if held is not None:
                    yield node.outputs[0], held


def weights(
    model: Model, skip: list[tuple[str, str]], *, min_elements: int, keep: Sequence[str]
) -> list[Weight]:
    """Return the weights of *model* of two dims or more; why others are left alone goes to *skip*.

    Args:
        model: Any model.
        skip: Takes (name, reason).
        min_elements: Smallest weight that counts.
        keep: Patterns of names of weights and of their readers.
    """
    found = []
    for value, tensor in constants(model):
        dims = tuple(tensor.shape.numpy())
        uses = tuple(
            Use(node, index, role)
            for node, index in value.uses()
            if (role := weight_roles(node).get(index)) in _WEIGHTS and node.op_type not in _QUANTISERS
        )
        if not uses or len(dims) < 2:
            continue
        weight = Weight(value, tensor, dims, uses)
        reason = _refusal(weight, min_elements, keep)
        if reason:
            skip.append((weight.name, reason))
        else:
            found.append(weight)
    skip += overlooked(model, min_elements=min_elements, reads_constant_nodes=True, reads_moved=False)
    return found


def _refusal(weight: Weight, min_elements: int, keep: Sequence[str]) -> str:
    value, tensor = weight.value, weight.tensor
    if tensor.dtype in {oir.DataType.FLOAT16, oir.DataType.BFLOAT16, oir.DataType.DOUBLE}:
        return f"its type is {tensor.dtype.name.lower()}; only float32 is quantised"
    if tensor.dtype != oir.DataType.FLOAT:
        return f"its type is {tensor.dtype.name.lower()}"
    if not weight.size:
        return "it is empty"
    if weight.size < min_elements:
        return f"it has {weight.size} elements, fewer than min_elements={min_elements}"
    if is_overridable(value):
        return "callers may override it; canonicalize{freeze_initializers=true} says that nobody does"
    if value.is_graph_output():
        return "it is an output of the model"
    names = [weight.name, *(use.node.name or "" for use in weight.uses)]
    if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in keep):
        return "kept on request"
    return ""


def product_layout(weight: Weight, use: Use, ops: Sequence[str]) -> tuple[int, int, bool] | str:
    """Return (contracted length, outputs, whether it is stored turned), or why it is no plain product.

    Args:
        weight: The weight.
        use: One of its readers.
        ops: Operators that the runtime fuses with DequantizeLinear.
    """
    node = use.node
    if not is_op(node, "MatMul", "Gemm") or node.op_type not in ops or use.index != 1:
        return f"{node.op_type} reads it"
    if len(weight.dims) != 2:
        return f"it has {len(weight.dims)} dims"
    if node.op_type == "MatMul":
        return (weight.dims[0], weight.dims[1], False)
    if (
        attribute(node, "transA", 0)
        or attribute(node, "alpha", 1.0) != 1.0
        or attribute(node, "beta", 1.0) != 1.0
    ):
        return "the Gemm has alpha, beta or transA"
    if attribute(node, "transB", 0):
        return (weight.dims[1], weight.dims[0], True)
    return (weight.dims[0], weight.dims[1], False)


def contracts_last(weight: Weight) -> bool | None:
    """Return whether products contract the last axis of a weight (true) or the last but one (false).

    None where some reader is no product, or where readers differ.
    """
    found = {
        use.index == 0
        if use.node.op_type == "MatMul"
        else bool(attribute(use.node, "transB", 0))
        if use.index == 1
        else not attribute(use.node, "transA", 0)
        for use in weight.uses
    }
    products = all(is_op(use.node, "MatMul", "Gemm") for use in weight.uses)
    return found.pop() if products and len(found) == 1 else None


def feeds_transposed_convolutions(weight: Weight) -> bool:
    """Return whether its second axis holds the output channels, as in a ConvTranspose of one group."""
    return all(
        is_op(use.node, "ConvTranspose") and attribute(use.node, "group", 1) == 1 for use in weight.uses
    )


def behind(node: oir.Node) -> oir.Node | None:
    """Return the activation that would be fused with a product: right behind it or behind its bias."""
    user = sole_user(node.outputs[0])
    if is_op(user, "Add") and user is not None and any(_is_bias(item) for item in user.inputs):
        user = sole_user(user.outputs[0])
    return user


def _is_bias(value: oir.Value | None) -> bool:
    tensor = tensors.constant_of(value)
    return tensor is not None and len(tensor.shape.numpy()) == 1


def is_quantised_behind(node: oir.Node) -> bool:
    """Return whether the product's result is quantised again, which makes another kernel of it."""
    return any(user.op_type == "QuantizeLinear" for user in node.outputs[0].consumers())


def gathers_rows(weight: Weight) -> bool:
    """Return whether all that read the weight is Gather of rows."""
    readers = {id(node) for node, _ in weight.value.uses()}
    return (
        len(readers) == len(weight.uses)
        and all(
            is_op(use.node, "Gather")
            and use.index == 0
            and attribute(use.node, "axis", 0) == 0
            and input_at(use.node, 1) is not None
            for use in weight.uses
        )
        and len(weight.dims) == 2
    )
