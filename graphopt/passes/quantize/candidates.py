"""Which nodes could run on codes: their weight, bias and the clamp behind them, or why they cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir.dequantise import dequantise, stored_codes
from graphopt.ir.quantised import is_dequantize, is_quantize
from graphopt.ir.rewrite import attribute, constant_array, has_reference, input_at, is_op, sole_user
from graphopt.ir.semantics import DEFAULT_DOMAIN, domain_of
from graphopt.ir.tensors import constant_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.targets.quantize import QuantizeRules

    Array = npt.NDArray[Any]


@dataclass(eq=False, slots=True)
class Compute:
    """A node with a weight that is to run on codes.

    Attributes:
        node: Conv, ConvTranspose, MatMul or Gemm.
        kind: "conv", "pointwise", "depthwise", "grouped", "transposed", "matmul" or "gemm".
        data: What it multiplies with its weight.
        weight: The weight, stored in the model; maybe behind a DequantizeLinear.
        channel_axis: Axis of the weight's output channels; None where one scale must do.
        bias: The stored bias, or None.
        adder: The Add of a constant behind a MatMul that becomes its bias.
        clamp: The Relu or Clip behind it that quantisation absorbs.
        result: What comes out behind adder and clamp.
        is_quantised: Whether the result is quantised.
    """

    node: oir.Node
    kind: str
    data: oir.Value
    weight: oir.Value
    channel_axis: int | None
    bias: oir.Value | None = None
    adder: oir.Node | None = None
    clamp: oir.Node | None = None
    result: oir.Value = field(init=False)
    is_quantised: bool = False

    def __post_init__(self) -> None:
        self.result = (self.clamp or self.adder or self.node).outputs[0]

    @property
    def label(self) -> str:
        """The node as reports name it."""
        return named(self.node)


OVERRIDABLE = (
    "an initializer that is an input too: canonicalize{freeze_initializers=true} in front takes it off the"
    " inputs"
)


class _NotPossibleError(Exception):
    """Why a node stays float; never leaves this module."""


class Candidates:
    """Finds what could run on codes in the graphs of a model, functions left out.

    Args:
        model: The model.
        shapes: What is known of its shapes.
        rules: What the target runs.
        chosen: Says why the user wants a node to stay float; "" where it may be quantised.

    Attributes:
        computes: In graph order.
        skipped: (node, reason) of compute operators that stay float.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        rules: QuantizeRules,
        chosen: Callable[[oir.Node], str],
    ) -> None:
        self.rules = rules
        self._shapes = shapes
        self.computes: list[Compute] = []
        self.skipped: list[tuple[str, str]] = []
        inside = function_graphs(model)
        for graph in model.graphs():
            for node in graph:
                if domain_of(node) != DEFAULT_DOMAIN or node.op_type not in rules.compute_ops:
                    continue
                if graph in inside:
                    self.skipped.append((named(node), "it stands in a function, whose callers may differ"))
                    continue
                if refusal := chosen(node):
                    self.skipped.append((named(node), refusal))
                    continue
                try:
                    self.computes.append(self._one(node))
                except _NotPossibleError as reason:
                    self.skipped.append((named(node), str(reason)))

    def _one(self, node: oir.Node) -> Compute:
        if has_reference(node):
            raise _NotPossibleError("its attributes come from the caller of a function")
        data, weight = input_at(node, 0), input_at(node, 1)
        if data is None or weight is None:
            raise _NotPossibleError("an input is missing")
        if is_dequantize(data.producer()):
            raise _NotPossibleError("it is quantised already")
        for value in (data, node.outputs[0]):
            dtype = self._shapes.dtype(value)
            if dtype is not None and dtype is not oir.DataType.FLOAT:
                raise _NotPossibleError(f"it computes in {dtype.name.lower()}, only float32 is quantised")
        if any(is_quantize(user) for user in node.outputs[0].consumers()):
            raise _NotPossibleError("its result is quantised already")
        match node.op_type:
            case "Conv":
                return self._conv(node, data, weight)
            case "ConvTranspose":
                return self._conv_transpose(node, data, weight)
            case "Gemm":
                return self._gemm(node, data, weight)
            case "MatMul":
                return self._matmul(node, data, weight)
            case _:
                raise _NotPossibleError(f"no rule for {node.op_type}")

    def _conv(self, node: oir.Node, data: oir.Value, weight: oir.Value) -> Compute:
        dims = self._stored(weight)
        group = int(attribute(node, "group", 1))
        if group == 1:
            kind = "pointwise" if all(size == 1 for size in dims[2:]) else "conv"
        elif dims[1] == 1:
            kind = "depthwise"
        else:
            kind = "grouped"
            if not self.rules.grouped_conv:
                raise _NotPossibleError(
                    f"a convolution in {group} groups is slower on codes on this target (targets/*.toml)"
                )
        bias = self._bias(node, 2, dims[0])
        return Compute(node, kind, data, weight, 0, bias, clamp=self._clamp(node))

    def _conv_transpose(self, node: oir.Node, data: oir.Value, weight: oir.Value) -> Compute:
        dims = self._stored(weight)
        group = int(attribute(node, "group", 1))
        bias = self._bias(node, 2, dims[1] * group)
        # The output channels of a group stand in axis 1, so that with groups one index is many channels.
        axis = 1 if group == 1 else None
        return Compute(node, "transposed", data, weight, axis, bias, clamp=self._clamp(node))

    def _gemm(self, node: oir.Node, data: oir.Value, weight: oir.Value) -> Compute:
        dims = self._stored(weight)
        if attribute(node, "transA", 0):
            raise _NotPossibleError("its left operand is transposed")
        if float(attribute(node, "alpha", 1.0)) != 1.0 or float(attribute(node, "beta", 1.0)) != 1.0:
            raise _NotPossibleError("alpha or beta is not 1")
        axis = 0 if attribute(node, "transB", 0) else 1
        bias = self._bias(node, 2, dims[axis])
        return Compute(node, "gemm", data, weight, axis, bias, clamp=self._clamp(node))

    def _matmul(self, node: oir.Node, data: oir.Value, weight: oir.Value) -> Compute:
        if constant_of(data) is not None:
            raise _NotPossibleError("its weight is the left operand")
        dims = self._stored(weight)
        if len(dims) != 2:
            raise _NotPossibleError(f"its weight has rank {len(dims)}, expected 2")
        adder = bias = None
        if self.rules.matmul_bias == "gemm":
            adder, bias = self._adder(node, dims[1])
        clamp = self._clamp(adder or node)
        return Compute(node, "matmul", data, weight, 1, bias, adder, clamp)

    def _adder(self, node: oir.Node, channels: int) -> tuple[oir.Node | None, oir.Value | None]:
        """Return the Add of one number a channel behind *node* and those numbers."""
        output = node.outputs[0]
        user = sole_user(output)
        if not is_op(user, "Add") or output.is_graph_output():
            return None, None
        assert user is not None
        other = user.inputs[1] if user.inputs[0] is output else user.inputs[0]
        tensor = constant_of(other)
        if tensor is None or other is output:
            return None, None
        dims = tuple(int(size) for size in tensor.shape.numpy())
        rank = self._shapes.rank(output)
        if (
            rank is None
            or len(dims) > rank
            or dims[-1:] != (channels,)
            or any(size != 1 for size in dims[:-1])
        ):
            return None, None
        array = constant_array(other)
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            return None, None
        return user, other

    def _bias(self, node: oir.Node, index: int, channels: int) -> oir.Value | None:
        value = input_at(node, index)
        if value is None:
            return None
        array = floats_of(value)
        if array is None:
            if value.is_initializer():
                raise _NotPossibleError(f"callers may override its bias, {OVERRIDABLE}")
            raise _NotPossibleError("its bias is computed")
        if not np.isfinite(array).all():
            raise _NotPossibleError("its bias holds NaN or infinity")
        if array.size not in {1, channels} or max(array.shape, default=1) != array.size:
            raise _NotPossibleError(f"its bias has the shape {list(array.shape)}")
        return value

    def _stored(self, weight: oir.Value) -> tuple[int, ...]:
        producer = weight.producer()
        if producer is not None and is_dequantize(producer) and producer.inputs[0] is not None:
            dtype = self._shapes.dtype(producer.inputs[0])
            if dtype is not None and dtype.bitwidth < 8:
                # The runtime multiplies them as they are.
                name = dtype.name.lower()
                raise _NotPossibleError(
                    f"its weight is stored in {name} codes, which 8-bit ones would double"
                )
        array = floats_of(weight)
        if array is None:
            if constant_of(weight) is not None:
                raise _NotPossibleError("its weight is not of type float32")
            if weight.is_initializer():
                raise _NotPossibleError(f"callers may override its weight, {OVERRIDABLE}")
            raise _NotPossibleError("its weight is computed")
        if not np.isfinite(array).all():
            raise _NotPossibleError("its weight holds NaN or infinity")
        if not array.size:
            raise _NotPossibleError("its weight is empty")
        return tuple(array.shape)

    def _clamp(self, node: oir.Node) -> oir.Node | None:
        output = node.outputs[0]
        user = sole_user(output)
        if user is None or output.is_graph_output() or user.graph is not node.graph:
            return None
        if not is_op(user, *self.rules.absorbed_ops) or clamp_bounds(user) is None:
            return None
        return user if user.inputs[0] is output else None


def named(node: oir.Node) -> str:
    """Return how reports name *node*: by its name, or by what it computes."""
    return node.name or f"{node.op_type} of {node.outputs[0].name!r}"


def function_graphs(model: Model) -> frozenset[oir.Graph]:
    """Return the bodies of the model's functions and the graphs inside them."""
    return frozenset(
        graph
        for function in model.functions.values()
        for graph in (function.graph, *function.graph.subgraphs())
    )


def floats_of(value: oir.Value | None) -> Array | None:
    """Return the float32 numbers that *value* holds in every run, also behind a DequantizeLinear, or None."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and is_dequantize(producer):
        stored = stored_codes(producer)
        array = None if isinstance(stored, str) else dequantise(stored)
    else:
        array = constant_array(value)
    return array if array is not None and array.dtype == np.float32 else None


def clamp_bounds(node: oir.Node) -> tuple[float, float] | None:
    """Return the smallest and largest value that a Relu or Clip lets through; None where that is computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip" or has_reference(node):
        return None
    bounds = [-float("inf"), float("inf")]
    for index, name in enumerate(("min", "max")):
        given = input_at(node, index + 1)
        if given is not None:
            array = constant_array(given, limit_bytes=64)
            if array is None or array.size != 1:
                return None
            bounds[index] = float(array.reshape(()))
        elif name in node.attributes:
            bounds[index] = float(attribute(node, name))
    return bounds[0], bounds[1]


def data_inputs(node: oir.Node) -> Iterator[oir.Value]:
    """Yield the activations that a chain or moving operator reads."""
    last = len(node.inputs) if node.op_type in {"Add", "Concat", "Mul", "Sub", "Sum", "Where", "Div"} else 1
    for value in node.inputs[:last]:
        if value is not None:
            yield value
