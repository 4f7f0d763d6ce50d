"""Where the bias of an operator with a weight stands, or could stand, and how it is written there.

Four forms: a float constant that an operator reads or an Add behind it does, int32 codes behind a
DequantizeLinear, an input that is not given yet, and an Add that does not exist yet. Codes stay on their
grid: its scale is that of the products that the integer kernel sums up, so that the runtime still fuses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as oir

from graphopt.ir.constants import add_behind, is_private, put_constant, replace_constant
from graphopt.ir.dead import remove_unread
from graphopt.ir.dequantise import stored_codes
from graphopt.ir.quantised import is_dequantize
from graphopt.ir.rewrite import (
    add_initializer,
    attribute,
    constant_array,
    has_reference,
    input_at,
    is_op,
    make_node,
    sole_user,
)
from graphopt.ir.tensors import constant_of, from_array, to_array

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.recover.moments import Matrix

    Array = npt.NDArray[Any]

Form = Literal["float", "codes", "new", "new-codes", "new-add"]

LARGEST_CODE = 2**31 - 256
"""Codes of a bias: int32 with room for the rounding of float32 scales, as insert-qdq has it."""

_CHAIN = frozenset({"Cast", "Mul"})
_LONGEST_CHAIN = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one bias.

    Attributes:
        node: The operator with the weight.
        holder: The node that reads the bias: the operator itself, or the Add behind it.
        index: Which input of *holder* it is.
        form: How it is stored.
        value: Name of the value that the bias moves, one to one.
        axis: Its axis of channels.
        channels: Number of channels.
    """

    node: oir.Node
    holder: oir.Node
    index: int
    form: Form
    value: str
    axis: int
    channels: int

    @property
    def where(self) -> str:
        """How reports name it."""
        return named(self.node)

    @property
    def is_new(self) -> bool:
        """Whether there is no bias yet."""
        return self.form.startswith("new")

    def bias(self) -> Matrix:
        """Return the bias as it is, [channels]; zeros where there is none."""
        if self.is_new:
            return np.zeros(self.channels)
        value = self.holder.inputs[self.index]
        assert value is not None
        if self.form == "codes":
            codes, scale = _codes_of(value)
            found = codes.astype(np.float64).reshape(-1) * scale.astype(np.float64).reshape(-1)
        else:
            array = constant_array(value)
            assert array is not None
            found = array.astype(np.float64).reshape(-1)
        return np.broadcast_to(found, (self.channels,)) * self._factor()

    def write(self, model: Model, bias: Matrix) -> npt.NDArray[np.bool_]:
        """Store *bias* [channels] and return which channels could not take it, and keep what they had."""
        stored = bias / self._factor()
        if self.form == "new-codes":
            return self._write_new_codes(model, stored)
        if self.form == "codes":
            return self._write_codes(model, stored)
        kind = _float_type(self.node)
        narrow = stored.astype(kind)
        refused = ~np.isfinite(narrow)
        if refused.any():
            narrow[refused] = self.bias()[refused].astype(kind)
        if self.form == "new-add":
            add_behind(model, self.node, narrow)
        elif self.form == "new":
            put_constant(model, self.holder, self.index, narrow, f"{self.node.name or self.value}_bias")
        else:
            self._write_float(model, narrow)
        return refused

    def _factor(self) -> float:
        """Return what the operator multiplies its stored bias with."""
        return float(attribute(self.holder, "beta", 1.0)) if is_op(self.holder, "Gemm") else 1.0

    def _write_float(self, model: Model, array: Array) -> None:
        old = self.holder.inputs[self.index]
        assert old is not None
        shape = _dims(old)
        array = array.astype(_kind(old))
        # One number becomes one a channel, of the same rank: that of the sum may depend on it.
        array = array.reshape(shape if math.prod(shape) == array.size else (*shape[:-1], array.size))
        replace_constant(model, self.holder, self.index, np.ascontiguousarray(array))

    def _write_codes(self, model: Model, bias: Matrix) -> npt.NDArray[np.bool_]:
        old = self.holder.inputs[self.index]
        assert old is not None
        before, scale = _codes_of(old)
        codes, refused = _rounded(bias, scale, before)
        dequantizer = old.producer()
        assert dequantizer is not None
        stored = dequantizer.inputs[0]
        assert stored is not None
        if is_private(stored) and sole_user(old) is self.holder:
            stored.const_value = from_array(codes.reshape(_dims(stored)), stored.name or "")
            return refused
        new = self._dequantizer(model, dequantizer, old.name or "bias", codes.reshape(_dims(stored)), None)
        self.holder.replace_input_with(self.index, new)
        remove_unread([old])
        return refused

    def _write_new_codes(self, model: Model, bias: Matrix) -> npt.NDArray[np.bool_]:
        like = self.node.inputs[1].producer() if self.node.inputs[1] is not None else None
        assert like is not None
        scale = product_scale(self.node)
        assert scale is not None
        codes, refused = _rounded(bias, scale, np.zeros(self.channels, np.int32))
        hint = f"{self.node.name or self.value}_bias"
        _put(self.holder, self.index, self._dequantizer(model, like, hint, codes, scale))
        return refused

    def _dequantizer(
        self, model: Model, like: oir.Node, hint: str, codes: Array, scale: Array | None
    ) -> oir.Value:
        """Return what a new DequantizeLinear unpacks *codes* to; with the scale of *like*, or another."""
        graph = self.holder.graph
        assert graph is not None
        inputs = [self._constant(model, f"{hint}_quantized", codes)]
        if scale is None:
            inputs += [value for value in like.inputs[1:] if value is not None]
            attributes: dict[str, Any] = dict(like.attributes)
        else:
            inputs.append(self._constant(model, f"{hint}_scale", scale))
            attributes = {} if scale.ndim == 0 else {"axis": 0}
        node = make_node(
            model, "DequantizeLinear", inputs, attributes=attributes, domain=like.domain,
            name=f"{hint}_dequantize", outputs=[f"{hint}_dequantized"],
        )  # fmt: skip
        node.outputs[0].type = oir.TensorType(oir.DataType.FLOAT)
        node.outputs[0].shape = oir.Shape(codes.shape)
        graph.insert_before(self.holder, node)
        return node.outputs[0]

    def _constant(self, model: Model, hint: str, array: Array) -> oir.Value:
        graph = self.holder.graph
        assert graph is not None
        return add_initializer(model, graph, hint, np.ascontiguousarray(array))


class Finder:
    """Finds the slots of the main graph of a model; operators in bodies and functions are named alone.

    Args:
        model: The model.
        shapes: Its shapes.
        known: Whether a value of that name exists in the reference.
        add: What operators without a bias get: "inputs" (those that have an input for it), "nodes" (an Add
            where there is none) or "none".

    Attributes:
        skipped: Operators with weights that have no slot, with the reason.
    """

    def __init__(self, model: Model, shapes: Shapes, known: Callable[[str], bool], add: str) -> None:
        self.model = model
        self.shapes = shapes
        self.known = known
        self.add = add
        self.skipped: list[tuple[str, str]] = []
        self._fixed: set[oir.Value] = set()
        for node in model.nodes():
            if node.inputs and not has_graphs(node) and all(map(self.is_fixed, node.inputs)):
                self._fixed.update(node.outputs)

    def slots(self) -> list[Slot]:
        """Return the slots in graph order."""
        found = []
        for node in self.model.graph:
            channels = self._channels(node)
            if channels is None:
                continue
            slot = self._slot(node, channels)
            if isinstance(slot, str):
                self.skipped.append((named(node), slot))
            else:
                found.append(slot)
        for node in self.model.nodes():
            if node.graph is not self.model.graph and self._channels(node) is not None:
                reason = "it is inside a body or function, which is not run in parts"
                self.skipped.append((named(node), reason))
        return found

    def is_fixed(self, value: oir.Value | None) -> bool:
        """Return whether *value* depends on constants alone."""
        if value is None or constant_of(value) is not None:
            return True
        return value in self._fixed

    def _channels(self, node: oir.Node) -> int | None:
        """Return the number of outputs of an operator with a fixed weight; None where it is no such."""
        if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or is_op(
            node, "MatMulInteger", "ConvInteger"
        ):
            weight, data = input_at(node, 1), input_at(node, 0)
        elif node.op_type == "MatMulNBits" and node.domain == "com.microsoft":
            return int(attribute(node, "N", 0)) or None
        else:
            return None
        if weight is None or data is None or not self.is_fixed(weight) or self.is_fixed(data):
            return None
        dims = self.shapes.static_shape(weight)
        if dims is None or len(dims) < 2 or has_reference(node) or 0 in dims:
            return None
        match node.op_type:
            case "Conv" | "ConvInteger":
                return dims[0]
            case "ConvTranspose":
                return dims[1] * int(attribute(node, "group", 1))
            case "Gemm":
                return dims[0] if attribute(node, "transB", 0) else dims[1]
            case _:
                return dims[-1] if len(dims) == 2 else None

    def _slot(self, node: oir.Node, channels: int) -> Slot | str:
        has_input = is_op(node, "Conv", "ConvTranspose", "Gemm")
        axis = 1 if is_op(node, "Conv", "ConvTranspose", "ConvInteger") else -1
        output = node.outputs[0]
        if has_input:
            name = self._compared(output, axis)
            return self._with_form(Slot(node, node, 2, "new", name or "", axis, channels))
        adder = self._adder(output, channels, axis)
        if isinstance(adder, str):
            return adder
        if adder is not None:
            holder, index = adder
            name = holder.outputs[0].name or ""
            slot = Slot(node, holder, index, "float", name, axis, channels)
            return slot if self.known(name) else "the original has no value of the name of its output"
        if self.add != "nodes" or not is_op(node, "MatMul"):
            return "it has no bias" + (", and add=inputs gives it none" if is_op(node, "MatMul") else "")
        if self._in_codes(node):
            return "it has no bias, and an Add behind it would keep it from running on codes"
        name = output.name or ""
        if output.is_graph_output():
            return "it has no bias, and what it puts out is an output of the model"
        slot = Slot(node, node, 2, "new-add", name, axis, channels)
        return slot if self.known(name) else "the original has no value of the name of its output"

    def _compared(self, output: oir.Value, axis: int) -> str | None:
        """Return the name of the value to compare: the output, or behind a Gemm what it is reshaped to."""
        if self.known(output.name or ""):
            return output.name
        user = sole_user(output)
        if axis == -1 and user is not None and is_op(user, "Reshape"):
            result = user.outputs[0]
            one, two = self.shapes.shape(output), self.shapes.shape(result)
            if one and two and isinstance(one[-1], int) and one[-1] == two[-1]:
                return result.name if self.known(result.name or "") else None
        return None

    def _with_form(self, slot: Slot) -> Slot | str:
        node = slot.node
        if not slot.value:
            return "the original has no value of the name of its output"
        if is_op(node, "Gemm") and attribute(node, "beta", 1.0) == 0.0:
            return "beta is 0"
        bias = input_at(node, 2)
        if bias is None:
            if self.add == "none":
                return "it has no bias, and add=none gives it none"
            if not self._in_codes(node):
                return slot
            return replace(slot, form="new-codes") if product_scale(node) is not None else slot
        if constant_of(bias) is not None:
            return (
                replace(slot, form="float") if _is_row(_dims(bias), slot.channels) else "its bias is no row"
            )
        producer = bias.producer()
        if producer is None or not is_dequantize(producer):
            return "its bias is computed"
        stored = stored_codes(producer)
        if isinstance(stored, str):
            return f"its bias: {stored}"
        if stored.codes.dtype != oir.DataType.INT32 or math.prod(stored.shape) != slot.channels:
            return f"its bias is stored as {stored.codes.dtype.name.lower()} {list(stored.shape)}"
        if stored.zero_point is not None and np.any(to_array(stored.zero_point)):
            return "its bias has a zero point"
        return replace(slot, form="codes")

    def _in_codes(self, node: oir.Node) -> bool:
        """Return whether data and weight come from DequantizeLinear, so that a runtime may use codes."""
        return all(
            value is not None and is_dequantize(value.producer())
            for value in (input_at(node, 0), input_at(node, 1))
        )

    def _adder(self, value: oir.Value, channels: int, axis: int) -> tuple[oir.Node, int] | str | None:
        """Return the Add of a constant row behind *value*, and which of its inputs the constant is."""
        for _ in range(_LONGEST_CHAIN):
            user = sole_user(value)
            if user is None:
                return None
            if is_op(user, "Add"):
                index = next(
                    (k for k, each in enumerate(user.inputs) if each is not value and self.is_fixed(each)),
                    None,
                )
                if index is None:
                    return None
                each = user.inputs[index]
                if constant_of(each) is None:
                    return "its bias is stored as codes that are no int32"
                assert each is not None
                fits = axis == -1 and _is_row(_dims(each), channels)
                return (user, index) if fits else "its bias is no row"
            if not is_op(user, *_CHAIN) or is_op(value.producer(), "MatMul"):
                return None
            value = user.outputs[0]
        return None


def named(node: oir.Node) -> str:
    """Return how reports name *node*."""
    return f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')!r}"


def has_graphs(node: oir.Node) -> bool:
    """Return whether *node* has bodies."""
    return any(
        each.type in {oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS} for each in node.attributes.values()
    )


def product_scale(node: oir.Node) -> Array | None:
    """Return scale of data times scale of weight: the grid of a bias that an integer kernel adds.

    Returns:
        float32, of rank 0 or [channels]; None where the scales are computed, in blocks, or along another
        axis than that of the outputs.
    """
    values = input_at(node, 0), input_at(node, 1)
    data, weight = (None if value is None else value.producer() for value in values)
    if data is None or weight is None:
        return None
    single = constant_array(input_at(data, 1))
    stored = stored_codes(weight)
    if single is None or single.size != 1 or isinstance(stored, str) or stored.block:
        return None
    scales = to_array(stored.scale).astype(np.float32)
    if scales.size > 1 and (not is_op(node, "Conv") or stored.axis != 0):
        outputs = 0 if attribute(node, "transB", 0) else 1
        if not is_op(node, "Gemm") or stored.axis != outputs:
            return None
    product = np.float32(single.reshape(())) * (scales if scales.size > 1 else scales.reshape(()))
    return np.asarray(product, np.float32)


def _rounded(bias: Matrix, scale: Array, before: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return *bias* as int32 codes, and which channels do not fit; those keep the codes of *before*."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        codes = np.rint(bias / scale.astype(np.float64).reshape(-1))
    refused = ~(np.abs(codes) <= LARGEST_CODE)
    old = np.broadcast_to(before.reshape(-1), codes.shape)
    return np.where(refused, old, codes).astype(np.int32), refused


def _codes_of(value: oir.Value) -> tuple[Array, Array]:
    producer = value.producer()
    assert producer is not None
    stored = stored_codes(producer)
    assert not isinstance(stored, str)
    return to_array(stored.codes), to_array(stored.scale)


def _put(node: oir.Node, index: int, value: oir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _is_row(shape: tuple[int, ...], channels: int) -> bool:
    return math.prod(shape) in {1, channels} and (not shape or math.prod(shape) == shape[-1])


def _dims(value: oir.Value) -> tuple[int, ...]:
    tensor = constant_of(value)
    assert tensor is not None
    return tuple(int(dim) for dim in tensor.shape.numpy())


def _kind(value: oir.Value) -> np.dtype[Any]:
    tensor = constant_of(value)
    assert tensor is not None
    return np.dtype(tensor.dtype.numpy())


def _float_type(node: oir.Node) -> np.dtype[Any]:
    """Return the element type of what *node* computes in; float32 where it is not known."""
    for value in (*node.inputs[:2], *node.outputs):
        if value is not None and value.dtype is not None and value.dtype.is_floating_point():
            return np.dtype(value.dtype.numpy())
    return np.dtype(np.float32)
