"""Linear operators as one matrix and one bias, whatever ONNX calls them, and the way back into the graph."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.calibrate.needs import Rows, Window
from graphopt.ir.constants import add_behind, put_constant, replace_constant
from graphopt.ir.rewrite import (
    attribute,
    constant_array,
    has_reference,
    input_at,
    is_op,
    sole_user,
)
from graphopt.ir.tensors import constant_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.recover.moments import Matrix

_FLOATS = frozenset({
    oir.DataType.FLOAT, oir.DataType.FLOAT16, oir.DataType.BFLOAT16, oir.DataType.DOUBLE,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Linear:
    """A Conv, Gemm or MatMul with a constant weight: ``y = weight x + bias`` for every row x of its input.

    Attributes:
        node: The operator.
        source: Name of the activation that it reads.
        output: Name of what it puts out; this is what stages are called by.
        result: Name of its output with the bias: behind a MatMul that of the Add.
        rows: How rows are taken from the activation.
        targets: How the outputs that belong to them are taken from the output.
        groups: Groups of a Conv: group g maps its own slice of a row to its own slice of the output.
        shape: (m, d) of the weight as a matrix: outputs of all groups, inputs of one.
        has_bias: Whether there is a bias now, with a number of its own for every output. One number for all
            is a constant like any other: a cut of the outputs does not cut it.
    """

    node: oir.Node
    source: str
    output: str
    result: str
    rows: Rows
    targets: Rows
    groups: int
    shape: tuple[int, int]
    has_bias: bool

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.node.op_type} {self.node.name or self.output!r}"

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of the kernel; empty for Gemm and MatMul."""
        return () if self.rows.window is None else self.rows.window.kernel

    @property
    def shares_weight(self) -> bool:
        """Whether something else reads the weight too, callers of the model included."""
        weight = self.node.inputs[1]
        return weight is None or len(weight.uses()) > 1 or weight.is_graph_output()

    def is_named_by(self, patterns: Iterable[str]) -> bool:
        """Return whether one of *patterns* (* and ?) fits the node, its output or its weight."""
        weight = self.node.inputs[1]
        names = (self.node.name or "", self.output, "" if weight is None else weight.name or "")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names if name)

    def weight(self) -> Matrix:
        """Return the weight as [m, d]; its columns in the order of the rows."""
        array = constant_array(self.node.inputs[1])
        assert array is not None
        return self.matrix(array)

    def matrix(self, stored: npt.NDArray[Any]) -> Matrix:
        """Return what the operator would compute with as [m, d] if *stored* were its weight."""
        if is_op(self.node, "Conv"):
            return stored.astype(np.float64).reshape(stored.shape[0], -1)
        turned = is_op(self.node, "MatMul") or not attribute(self.node, "transB", 0)
        matrix: Matrix = np.array(stored.T if turned else stored, np.float64, order="C")
        if is_op(self.node, "Gemm"):
            matrix *= float(attribute(self.node, "alpha", 1.0))
        return matrix

    def bias(self) -> Matrix:
        """Return the bias [m]; zeros where there is none."""
        adder = self._adder()
        if adder is not None:
            array: Any = constant_array(adder[0].inputs[adder[1]])
            return np.broadcast_to(array.astype(np.float64).reshape(-1), (self.shape[0],)).copy()
        array = constant_array(input_at(self.node, 2)) if not is_op(self.node, "MatMul") else None
        if array is None:
            return np.zeros(self.shape[0])
        bias = np.broadcast_to(array.astype(np.float64).reshape(-1), (self.shape[0],)).copy()
        return bias * attribute(self.node, "beta", 1.0) if is_op(self.node, "Gemm") else bias

    def stored(self, weight: Matrix) -> npt.NDArray[Any]:
        """Return *weight* [m, d] in the layout and the type in which the node keeps its own."""
        old = self.node.inputs[1]
        assert old is not None
        content: npt.NDArray[Any]
        if is_op(self.node, "Conv"):
            content = weight.reshape(weight.shape[0], -1, *_static_shape(old)[2:])
        elif is_op(self.node, "Gemm"):
            content = weight / attribute(self.node, "alpha", 1.0)
            content = content if attribute(self.node, "transB", 0) else content.T
        else:
            content = weight.T
        return np.ascontiguousarray(content.astype(_dtype_of(old)))

    def write(self, model: Model, weight: Matrix | oir.TensorProtocol, bias: Matrix | None) -> None:
        """Put *weight* and, where given, *bias* [m] into the graph that the node stands in.

        Args:
            model: The model of the node.
            weight: [m, d], or a tensor of what :meth:`stored` gave.
            bias: [m], None to leave it as it is.
        """
        content = self.stored(weight) if isinstance(weight, np.ndarray) else weight
        replace_constant(model, self.node, 1, content)
        if bias is None:
            return
        if is_op(self.node, "MatMul"):
            self._write_added_bias(model, bias)
            return
        if is_op(self.node, "Gemm"):
            beta = attribute(self.node, "beta", 1.0)
            if beta == 0.0:
                self.node.attributes.pop("beta")
                beta = 1.0
            bias = bias / beta
        array = _like(bias, input_at(self.node, 2)).astype(_dtype_of(self.node.inputs[1]))
        if input_at(self.node, 2) is None:
            put_constant(model, self.node, 2, array, f"{self.node.name or self.output}_bias")
        else:
            replace_constant(model, self.node, 2, array)

    def _adder(self) -> tuple[oir.Node, int] | None:
        """Return the Add of a constant behind a MatMul, and the index of the constant."""
        return added_constant(self.node, self.shape[0]) if is_op(self.node, "MatMul") else None

    def _write_added_bias(self, model: Model, bias: Matrix) -> None:
        kind = _dtype_of(self.node.inputs[1])
        adder = self._adder()
        if adder is not None:
            node, index = adder
            old = node.inputs[index]
            replace_constant(model, node, index, _like(bias.astype(kind), old))
            return
        if bias.any():
            add_behind(model, self.node, np.ascontiguousarray(bias.astype(kind)))


def residual_of(node: oir.Node) -> list[tuple[oir.Value, oir.Value]]:
    """Return what is added to the output of *node* behind it: (value it has become, other operand) pairs.

    Constants that are added do not count. The other operand may depend on *node*.
    """
    found: list[tuple[oir.Value, oir.Value]] = []
    value = node.outputs[0]
    while True:
        user = sole_user(value)
        if user is None or not is_op(user, "Add", "Sum", "Identity", "Dropout"):
            return found
        if is_op(user, "Add", "Sum"):
            found += [
                (value, other)
                for other in user.inputs
                if other is not None and other is not value and constant_of(other) is None and other.name
            ]
        value = user.outputs[0]


def added_constant(node: oir.Node, outputs: int) -> tuple[oir.Node, int] | None:
    """Return the Add of one number an output right behind *node*, and which of its inputs the constant is."""
    user = sole_user(node.outputs[0])
    if user is None or not is_op(user, "Add") or len(user.inputs) != 2:
        return None
    for index in (0, 1):
        value = user.inputs[index]
        if constant_of(value) is None or value is None:
            continue
        shape = _static_shape(value)
        if math.prod(shape) in {1, outputs} and (not shape or math.prod(shape) == shape[-1]):
            return user, index
    return None


def linear_of(node: oir.Node, shapes: Shapes | None = None) -> Linear | str:
    """Return *node* as a linear operator, or why it is none.

    Args:
        node: Any node.
        shapes: Shapes of the model.
    """
    if not is_op(node, "Conv", "Gemm", "MatMul"):
        return "it is no Conv, Gemm or MatMul"
    if has_reference(node):
        return "an attribute refers to the enclosing function"
    source, weight = input_at(node, 0), input_at(node, 1)
    tensor = constant_of(weight)
    if source is None or weight is None or tensor is None:
        return "its weight is no constant"
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name.lower()}"
    if constant_of(source) is not None:
        return "its input is a constant"
    rows = Rows.of(node, 0, shapes)
    if rows is None or not node.outputs[0].name:
        return "its rows cannot be told"
    dims = _static_shape(weight)
    output = node.outputs[0].name
    if is_op(node, "Conv"):
        if rows.window is None or len(dims) != 2 + len(rows.window.kernel) or 0 in dims:
            return "its weight has no proper shape"
        if input_at(node, 2) is not None and constant_of(input_at(node, 2)) is None:
            return f"its bias is no constant{_made_one_by(input_at(node, 2))}"
        targets = Rows(output, 1, Window((1,) * len(rows.window.kernel)))
        groups = int(attribute(node, "group", 1))
        shape = (dims[0], math.prod(dims[1:]))
        return Linear(
            node, rows.value, output, output, rows, targets, groups, shape, input_at(node, 2) is not None
        )
    if len(dims) != 2 or 0 in dims:
        return f"its weight has rank {len(dims)}" if 0 not in dims else "its weight is empty"
    if is_op(node, "MatMul"):
        adder = added_constant(node, dims[1])
        result = output if adder is None else adder[0].outputs[0].name or output
        has_bias = adder is not None and _size(adder[0].inputs[adder[1]]) == dims[1]
        shape = (dims[1], dims[0])
        return Linear(node, rows.value, output, result, rows, Rows(result, -1), 1, shape, has_bias)
    if attribute(node, "transA", 0):
        return "transA: its rows are columns"
    if attribute(node, "alpha", 1.0) == 0.0:
        return "alpha is 0"
    m, d = dims if attribute(node, "transB", 0) else dims[::-1]
    bias = input_at(node, 2)
    if bias is not None and (constant_of(bias) is None or not _is_row(_static_shape(bias), m)):
        return f"its bias is no constant of one number an output{_made_one_by(bias)}"
    has_bias = bias is not None and _size(bias) == m
    return Linear(node, rows.value, output, output, rows, Rows(output, -1), 1, (m, d), has_bias)


def _is_row(shape: tuple[int, ...], outputs: int) -> bool:
    return math.prod(shape) in {1, outputs} and (not shape or math.prod(shape) == shape[-1])


def _static_shape(value: oir.Value) -> tuple[int, ...]:
    tensor = constant_of(value)
    assert tensor is not None
    return tuple(int(dim) for dim in tensor.shape.numpy())


def _size(value: oir.Value | None) -> int:
    return 0 if value is None else math.prod(_static_shape(value))


def _made_one_by(value: oir.Value | None) -> str:
    """Return which pass makes a constant of *value*, as the end of a sentence; "" where none does."""
    maker = None if value is None else value.producer()
    if maker is None or not maker.inputs or constant_of(value) is not None:
        return ""
    if any(each is not None and constant_of(each) is None for each in maker.inputs):
        return ""
    return f"; {'canonicalize' if is_op(maker, 'Identity') else 'fold-constants'} makes it one"


def _like(bias: Matrix, old: oir.Value | None) -> Matrix:
    """Return *bias* [m] in the shape of the one that it replaces, on which cuts of its axes rely."""
    return bias.reshape(_static_shape(old)) if old is not None and _size(old) == bias.size else bias


def _dtype_of(value: oir.Value | None) -> np.dtype[Any]:
    tensor = constant_of(value)
    assert tensor is not None
    return np.dtype(tensor.dtype.numpy())
