"""What is known about values without running anything: element types, shapes, constants, opset versions.

Element types are followed through operator schemas on demand, because most rules need only them and a whole
shape inference costs more than all rules together on a long graph (benchmarks/chain.py). Shapes are inferred
once, when the first rule asks for one.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir import tensors
from graphopt.ir.rewrite import attribute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.api import Context
    from graphopt.ir import Model, Shapes

Dim = int | str | None
"""A dim: its size, the name of a symbol, or None."""

_ELEMENT_TYPES = {
    "tensor(bfloat16)": oir.DataType.BFLOAT16,
    "tensor(bool)": oir.DataType.BOOL,
    "tensor(double)": oir.DataType.DOUBLE,
    "tensor(float)": oir.DataType.FLOAT,
    "tensor(float16)": oir.DataType.FLOAT16,
    "tensor(int32)": oir.DataType.INT32,
    "tensor(int64)": oir.DataType.INT64,
    "tensor(int8)": oir.DataType.INT8,
    "tensor(string)": oir.DataType.STRING,
    "tensor(uint8)": oir.DataType.UINT8,
}


class Facts:
    """Facts about the values of one model while a pass changes it.

    Args:
        model: The model that is being changed.
        context: Where the shape analysis comes from.
    """

    def __init__(self, model: Model, context: Context) -> None:
        self._model = model
        self._context = context
        self._dtypes: dict[oir.Value, oir.DataType | None] = {}
        self._shapes: Shapes | None = None
        self._stands_for: dict[oir.Value, oir.Value] = {}
        self._imports: dict[oir.Graph, dict[str, int]] = {}
        self._versions: dict[tuple[oir.Graph | None, str], int] = {}
        self._function_graphs: set[oir.Graph] = set()
        for function in model.functions.values():
            for graph in (function.graph, *function.subgraphs()):
                self._function_graphs.add(graph)
                self._imports[graph] = function.opset_imports

    def holds_initializers(self, graph: oir.Graph) -> bool:
        """Return whether a constant of *graph* can be an initializer that is not an input.

        Bodies of functions hold none, and before IR version 4 every initializer had to be an input.
        """
        return self._model.ir_version >= 4 and graph not in self._function_graphs

    def version(self, node: oir.Node) -> int:
        """Return the opset version that decides what *node* means; 0 where its domain is not imported."""
        key = (node.graph if self._imports else None, node.domain)
        known = self._versions.get(key)
        if known is None:
            imports = self._imports.get(node.graph, self._model.opset_imports) if node.graph else {}
            known = imports.get(node.domain, 0)
            if node.domain in {"", "ai.onnx"}:
                known = imports.get("", imports.get("ai.onnx", 0))
            self._versions[key] = known
        return known

    def dtype(self, value: oir.Value | None) -> oir.DataType | None:
        """Return the element type of the tensor *value*, or None where it is unknown or no tensor."""
        path: list[oir.Value] = []
        seen: set[oir.Value] = set()
        found: oir.DataType | None = None
        while value is not None and value not in seen:
            seen.add(value)
            if value in self._dtypes:
                found = self._dtypes[value]
                break
            path.append(value)
            found = self._stated_dtype(value)
            if found is not None:
                break
            value = self._source_of_type(value)
        if found is None and path:
            found = self._inference().dtype(path[0])
        for passed in path:
            self._dtypes[passed] = found
        return found

    def _stated_dtype(self, value: oir.Value) -> oir.DataType | None:
        """Return the type that stands at the value itself or that its operator alone decides."""
        if value.is_initializer() and value.const_value is not None:
            return value.const_value.dtype
        # Callers are held to what the inputs declare; other declarations are claims, which survive edits.
        if value.is_graph_input() and value.graph is self._model.graph:
            return value.type.dtype if isinstance(value.type, oir.TensorType) else None
        node = value.producer()
        if node is None or node.domain not in {"", "ai.onnx"}:
            return None
        if node.op_type == "Cast":
            to = attribute(node, "to")
            return None if to is None else oir.DataType(to)
        if node.op_type == "Constant":
            tensor = tensors.constant_of(value)
            return None if tensor is None else tensor.dtype
        if node.op_type == "ConstantOfShape":
            if "value" in node.attributes:
                content = attribute(node, "value")
                return None if content is None else oir.DataType(content.dtype)
            return oir.DataType.FLOAT
        flow = _type_flow(node.op_type, self.version(node), value.index() or 0)
        return flow if isinstance(flow, oir.DataType) else None

    def _source_of_type(self, value: oir.Value) -> oir.Value | None:
        """Return the input of the producer of *value* that has the same element type, by schema."""
        node = value.producer()
        if node is None or node.domain not in {"", "ai.onnx"}:
            return None
        flow = _type_flow(node.op_type, self.version(node), value.index() or 0)
        if not isinstance(flow, tuple):
            return None
        candidates = [
            source
            for index in flow
            if index < len(node.inputs) and (source := node.inputs[index]) is not None
        ]
        for source in candidates:
            if self._dtypes.get(source) is not None:
                return source
            stated = self._stated_dtype(source)
            if stated is not None:
                self._dtypes[source] = stated
                return source
        return candidates[0] if candidates else None

    def shape(self, value: oir.Value | None) -> tuple[Dim, ...] | None:
        """Return the shape of *value*, or None where not even the rank is known.

        What the model declares about values inside of it is not believed, as in the analysis.
        """
        if value is None:
            return None
        tensor = tensors.constant_of(value)
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        inferred = self._inference().shape(value)
        if inferred is None and value in self._stands_for:
            inferred = self._inference().shape(self._stands_for[value])
        return None if inferred is None else tuple(inferred)

    def adopt(self, new: oir.Value, old: oir.Value) -> None:
        """Note that *new*, which inference may not have met, has the type and shape of *old*."""
        self._stands_for[new] = self._stands_for.get(old, old)

    def _inference(self) -> Shapes:
        if self._shapes is None:
            if self._context.dims:
                # Sizes that the user binds for measuring say nothing about what the model may be fed with.
                from graphopt.ir.shapes import infer_shapes

                self._shapes = infer_shapes(self._model)
            else:
                self._shapes = self._context.analysis("shapes")
        return self._shapes

    def static_shape(self, value: oir.Value | None) -> tuple[int, ...] | None:
        """Return the shape of *value* where every dim is a number, else None."""
        shape = self.shape(value)
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            return None
        return tuple(dim for dim in shape if isinstance(dim, int))

    def rank(self, value: oir.Value | None) -> int | None:
        """Return the number of dims of *value*, or None."""
        shape = self.shape(value)
        return None if shape is None else len(shape)


def equal_dims(first: Sequence[Dim], second: Sequence[Dim]) -> bool:
    """Return whether two shapes are the same in every run; an unknown dim equals nothing."""
    return len(first) == len(second) and all(
        one is not None and one == two for one, two in zip(first, second, strict=True)
    )


@cache
def _type_flow(op_type: str, version: int, output: int) -> oir.DataType | tuple[int, ...] | None:
    """Return where output *output* of an operator has its element type from, according to its schema.

    Returns:
        The one type that it can have, or the indices of the inputs of the same type, or None.
    """
    import onnx.defs

    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
    if output >= len(schema.outputs):
        return None
    name = schema.outputs[output].type_str
    if name in _ELEMENT_TYPES:
        return _ELEMENT_TYPES[name]
    allowed = next(
        (constraint.allowed_type_strs for constraint in schema.type_constraints
         if constraint.type_param_str == name), None
    )  # fmt: skip
    if allowed is not None and len(allowed) == 1:
        return _ELEMENT_TYPES.get(allowed[0])
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return tuple(
        index
        for index, parameter in enumerate(schema.inputs)
        if parameter.type_str == name and (parameter.option != variadic or parameter.is_homogeneous)
    )
