"""One walk over a model that finds every value that is always the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir import rewrite, semantics, tensors
from graphopt.ir.model import with_subgraphs
from graphopt.ir.packed import is_packed
from graphopt.passes.folding import kernels, sizes
from graphopt.passes.folding.region import evaluate_region

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from graphopt.ir import Model, Shapes

    Array = npt.NDArray[Any]

_READ_BYTES = 1 << 16
"""Constants up to this size are read while walking; larger ones only when a result is wanted."""

_NEVER = frozenset({
    "Constant", "If", "Loop", "Scan", "SequenceMap", "OptionalHasElement", "OptionalGetElement", "Optional",
})  # fmt: skip
_NO_TENSOR = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SplitToSequence", "ConcatFromSequence", "SequenceAt"}
)
_SHAPE_READERS = frozenset({"Shape", "Size"})
_ARITHMETIC = frozenset({oir.DataType.INT32, oir.DataType.INT64, oir.DataType.BOOL})
_INTEGER_DIVISIONS = frozenset({"Div", "Mod"})


class Sweep:
    """What is known of a model's values.

    Attributes:
        arrays: Values that were computed or read, with their content.
        derived: Values computed from sizes of inputs, known at least in part.
        foldable: Nodes whose outputs are always the same, in topological order, outer graphs first.
        deferred: Those of them that were not computed yet.
        output_bytes: Size of each output of a deferred node; None where unknown.
        skipped: Why a node that could be folded is left alone.
        evaluated: Whether the runtime was asked.
    """

    def __init__(self, model: Model, shapes: Callable[[], Shapes]) -> None:
        self._model = model
        self._infer = shapes
        self._shapes: Shapes | None = None
        self._tensors: dict[oir.Value, oir.TensorProtocol | None] = {}
        self._opsets: dict[oir.Graph, dict[str, int]] = {}
        self.arrays: dict[oir.Value, Array] = {}
        self.derived: set[oir.Value | None] = set()
        self.foldable: dict[oir.Node, None] = {}
        self.deferred: dict[oir.Node, None] = {}
        self.output_bytes: dict[oir.Value, int | None] = {}
        self.skipped: dict[oir.Node, str] = {}
        self.evaluated = False

    @property
    def asked_shapes(self) -> bool:
        """Whether shape inference was asked."""
        return self._shapes is not None

    def shapes(self) -> Shapes:
        """Return the shapes of the model's values, inferred on first use."""
        if self._shapes is None:
            self._shapes = self._infer()
        return self._shapes

    def run(self) -> None:
        """Walk all graphs once, then evaluate what is small but needs the runtime."""
        for graph, opsets in _graphs_with_opsets(self._model):
            self._opsets[graph] = opsets
            for node in graph:
                self._visit(node, opsets)
        self._evaluate_deferred()

    def opsets_of(self, node: oir.Node) -> dict[str, int]:
        """Return the versions of the operator sets where *node* stands."""
        assert node.graph is not None
        return self._opsets[node.graph]

    def tensor_of(self, value: oir.Value) -> oir.TensorProtocol | None:
        """Return the tensor of a constant that the model holds, or None."""
        if value not in self._tensors:
            self._tensors[value] = tensors.constant_of(value)
        return self._tensors[value]

    def bytes_of(self, value: oir.Value) -> int | None:
        """Return the size of a constant or foldable value, or None where unknown."""
        if (array := self.arrays.get(value)) is not None:
            return _bytes_of(array)
        if value in self.output_bytes:
            return self.output_bytes[value]
        tensor = self.tensor_of(value)
        return None if tensor is None else tensors.nbytes(tensor)

    def _array(self, value: oir.Value) -> Array | None:
        """Return the content of a small constant or computed value, or None."""
        array = self.arrays.get(value)
        if array is None:
            tensor = self.tensor_of(value)
            if tensor is not None and tensors.is_small(tensor, _READ_BYTES):
                array = self.arrays[value] = tensors.to_array(tensor)
        return array

    def _visit(self, node: oir.Node, opsets: dict[str, int]) -> None:
        if node.domain not in {"", "ai.onnx"} or node.op_type in _NEVER or not node.inputs:
            return
        for value in node.inputs:
            if value is not None and value.name and not self._is_known(value):
                break
        else:
            self._visit_constant(node, opsets)
            return
        if node.op_type in _SHAPE_READERS or any(value in self.derived for value in node.inputs):
            self._visit_derived(node)

    def _is_known(self, value: oir.Value) -> bool:
        return value in self.arrays or value in self.output_bytes or self.tensor_of(value) is not None

    def _visit_derived(self, node: oir.Node) -> None:
        """Fold *node*, which reads sizes, where its result is one and the same number by number."""
        if rewrite.has_reference(node) or not semantics.is_pure(node):
            return
        shapes = self.shapes()
        arrays = []
        for value in node.outputs:
            known = shapes.known(value)
            if known is None:
                continue
            self.derived.add(value)
            if (array := known_array(shapes, value)) is not None:
                arrays.append((value, array))
        if len(arrays) == len(node.outputs) and not self._is_kept_output(node):
            self.arrays.update(arrays)
            self.foldable[node] = None

    def _visit_constant(self, node: oir.Node, opsets: dict[str, int]) -> None:
        """Fold *node*, whose inputs are all constant, or find out why not."""
        if rewrite.has_reference(node) or any(True for _ in rewrite.node_graphs(node)):
            return
        # A deterministic operator of the standard has no side effects either.
        if node.op_type in _NO_TENSOR or not semantics.is_deterministic(node):
            return
        if self._is_kept_output(node):
            return
        if is_packed(node):
            self.skipped[node] = "it computes a constant that is deliberately not stored"
            return
        inputs = [None if value is None or not value.name else self._array(value) for value in node.inputs]
        ready = all(
            array is not None or value is None or not value.name
            for array, value in zip(inputs, node.inputs, strict=True)
        )
        if node.op_type == "DequantizeLinear" or self._from_sparse(node):
            self.skipped[node] = (
                sizes.compressed(node, [], None, is_float=True) or "it would store a sparse constant densely"
            )
            return
        if ready and self._fold_at_once(node, inputs, opsets):
            return
        if node.op_type in _INTEGER_DIVISIONS and not any(
            array is not None and array.dtype.kind == "f" for array in inputs
        ):
            # An integer division by zero kills the process; it is left to the kernels, which see both sides.
            if ready:
                self.skipped[node] = "the integer division is not defined"
            return
        self._defer(node)

    def _is_kept_output(self, node: oir.Node) -> bool:
        """Whether *node* is the Identity that gives a constant the name of a graph output."""
        return node.op_type == "Identity" and node.outputs[0].is_graph_output()

    def _from_sparse(self, node: oir.Node) -> bool:
        return any(
            value is not None and isinstance(self.tensor_of(value), tensors.SparseTensor)
            for value in node.inputs
        )

    def _fold_at_once(self, node: oir.Node, inputs: Sequence[Array | None], opsets: dict[str, int]) -> bool:
        outputs = kernels.evaluate(node, opsets.get("", 0), inputs)
        if outputs is None or len(outputs) < len(node.outputs):
            return False
        reason = sizes.compressed(
            node,
            [None if array is None else array.nbytes for array in inputs],
            _bytes_of(outputs[0]),
            is_float=_dtype_of(outputs[0]).is_floating_point(),
        )
        if reason:
            self.skipped[node] = reason
            return True
        for value, array in zip(node.outputs, outputs, strict=False):
            array.flags.writeable = False
            self.arrays[value] = array
        self.foldable[node] = None
        return True

    def _defer(self, node: oir.Node) -> None:
        known = [None if value is None or not value.name else self.bytes_of(value) for value in node.inputs]
        small = sum(size or 0 for size in known) <= _READ_BYTES and None not in [
            size for size, value in zip(known, node.inputs, strict=True) if value is not None and value.name
        ]
        results: list[int | None] = []
        if small and node.op_type not in sizes.GROWING:
            results = [None] * len(node.outputs)
        else:
            shapes = self.shapes()
            results = [sizes.known_bytes(shapes, value) for value in node.outputs]
            if any(size is None and value.name for size, value in zip(results, node.outputs, strict=True)):
                self.skipped[node] = "the size of its result is unknown before it is computed"
                return
        reason = sizes.compressed(node, known, results[0], is_float=_casts_to_float(node))
        if reason:
            self.skipped[node] = reason
            return
        self.output_bytes.update(zip(node.outputs, results, strict=True))
        self.foldable[node] = None
        self.deferred[node] = None

    def _evaluate_deferred(self) -> None:
        """Evaluate all small deferred nodes, those with the same operator sets in one session."""
        regions: dict[tuple[tuple[str, int], ...], list[oir.Node]] = {}
        for node in self.deferred:
            if all((self.output_bytes[value] or 0) <= kernels.IMMEDIATE_BYTES for value in node.outputs):
                if any(self._is_large(value) for value in node.inputs if value is not None):
                    continue
                regions.setdefault(tuple(sorted(self.opsets_of(node).items())), []).append(node)
        self.evaluated = bool(regions)
        for opsets, nodes in regions.items():
            inside = {value for node in nodes for value in node.outputs}
            constants = {
                value: constant
                for node in nodes
                for value in node.inputs
                if value is not None and value.name and value not in inside
                and (constant := self.constant(value)) is not None
            }  # fmt: skip
            wanted = [value for node in nodes for value in node.outputs if value.name]
            result = evaluate_region(nodes, wanted, constants, dict(opsets))
            for value, array in result.arrays.items():
                array.flags.writeable = False
                self.arrays[value] = array
            self._drop_failed(result.failed)
            for node in nodes:
                if node not in result.failed:
                    del self.deferred[node]
        self._drop_unpacked()

    def _is_large(self, value: oir.Value) -> bool:
        """Whether *value* is a deferred result or constant too large to be read before it is wanted."""
        if value in self.arrays:
            return False
        size = self.bytes_of(value)
        return size is not None and size > kernels.IMMEDIATE_BYTES

    def constant(self, value: oir.Value) -> Array | oir.TensorProtocol | None:
        """Return the content of a constant or computed value, or None where it is deferred."""
        array = self.arrays.get(value)
        return array if array is not None else self.tensor_of(value)

    def _drop_failed(self, failed: dict[oir.Node, str]) -> None:
        for node, reason in failed.items():
            self.drop(node, f"it cannot be evaluated: {reason}")

    def _drop_unpacked(self) -> None:
        """Leave alone evaluated nodes that turn out to unpack a compressed weight, and what follows."""
        for node in list(self.foldable):
            if node.op_type not in {"Cast", "CastLike"} or node in self.deferred:
                continue
            inputs = [None if value is None else self.bytes_of(value) for value in node.inputs]
            value = node.outputs[0]
            is_float = value in self.arrays and _dtype_of(self.arrays[value]).is_floating_point()
            if reason := sizes.compressed(node, inputs, self.bytes_of(value), is_float=is_float):
                self.drop(node, reason)

    def drop(self, node: oir.Node, reason: str) -> None:
        """Take *node* out of what can be folded, and all that follows from it."""
        self.skipped[node] = reason
        stack = [node]
        while stack:
            current = stack.pop()
            self.foldable.pop(current, None)
            self.deferred.pop(current, None)
            for value in current.outputs:
                self.arrays.pop(value, None)
                self.output_bytes.pop(value, None)
                stack.extend(user for user in value.consumers() if user in self.foldable)


def known_array(shapes: Shapes, value: oir.Value) -> Array | None:
    """Return the content of *value* where shape arithmetic knows every element of it, else None."""
    known, shape, dtype = shapes.known(value), shapes.shape(value), shapes.dtype(value)
    if known is None or shape is None or dtype not in _ARITHMETIC:
        return None
    numbers = [item for item in known if isinstance(item, int)]
    dims = [size for size in shape if isinstance(size, int)]
    if len(numbers) != len(known) or len(dims) != len(shape):
        return None
    array = np.array(numbers, dtype.numpy()).reshape(dims)
    array.flags.writeable = False
    return array


def _graphs_with_opsets(model: Model) -> list[tuple[oir.Graph, dict[str, int]]]:
    """Return every graph with the operator sets that its nodes are of, in the order of ``Model.graphs``."""
    found: list[tuple[oir.Graph, dict[str, int]]] = []
    for body in (model.graph, *(function.graph for function in model.functions.values())):
        opsets = _normalized(dict(body.opset_imports))
        found.extend((graph, opsets) for graph in with_subgraphs(body))
    return found


def _normalized(opsets: dict[str, int]) -> dict[str, int]:
    if "ai.onnx" in opsets:
        opsets = {**opsets, "": opsets["ai.onnx"]}
    return {domain: version for domain, version in opsets.items() if domain != "ai.onnx"}


def _dtype_of(array: Array) -> oir.DataType:
    return oir.DataType.STRING if array.dtype.kind in "OSU" else oir.DataType.from_numpy(array.dtype)


def _bytes_of(array: Array) -> int | None:
    """Return how many bytes *array* takes in a file."""
    if array.dtype.isbuiltin == 1 and array.dtype.kind in "biufc":
        return array.nbytes
    return sizes.shape_bytes(array.shape, _dtype_of(array))  # text, and types that a file packs


def _casts_to_float(node: oir.Node) -> bool:
    # What CastLike casts to is its second input's business; taken for a float until it is computed.
    return node.op_type != "Cast" or oir.DataType(rewrite.attribute(node, "to")).is_floating_point()
