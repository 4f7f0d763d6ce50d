"""Constants that a branch which never runs must not hold.

Such a branch may compute nonsense, a negative size for one. As arithmetic it does no harm; as a constant, the
runtime's own inference sees through it when it loads the model, and refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as oir
from onnx import helper, numpy_helper, shape_inference

from graphopt.ir import rewrite
from graphopt.ir.inference.standard import schema_of

if TYPE_CHECKING:
    from graphopt.ir import Model
    from graphopt.passes.folding.cut import Cut
    from graphopt.passes.folding.sweep import Sweep


def impossible_in_branches(model: Model, sweep: Sweep, cut: Cut) -> dict[oir.Node, str]:
    """Return the nodes in subgraphs whose results, once constants, a reader could never take, and why."""
    outer = {model.graph, *(function.graph for function in model.functions.values())}
    stored = [value for value in cut.stored if value.graph not in outer]
    found: dict[oir.Node, str] = {}
    known = set(stored)
    for value in stored:
        producer = value.producer()
        for reader in dict.fromkeys(value.consumers()):
            if producer is not None and (reason := _refusal(reader, known, sweep)):
                found[producer] = f"{reader.op_type} could not take it as a constant: {reason}"
    return found


def _refusal(reader: oir.Node, stored: set[oir.Value], sweep: Sweep) -> str:
    """Return what onnx's inference says against *reader* with the values *stored* as constants."""
    assert reader.graph is not None
    opsets = sweep.opsets_of(reader)
    schema = schema_of("", reader.op_type, opsets.get("", opsets.get("ai.onnx", 0)))
    if schema is None or not rewrite.is_op(reader, reader.op_type) or rewrite.has_reference(reader):
        return ""
    if any(rewrite.node_graphs(reader)):
        return ""
    types, data = {}, {}
    shapes = sweep.shapes()
    for value in reader.inputs:
        if value is None or not value.name:
            continue
        dtype, shape = shapes.dtype(value), shapes.shape(value)
        if dtype is None:
            return ""
        dims = (
            None if shape is None else [dim if isinstance(dim, int) and dim >= 0 else None for dim in shape]
        )
        types[value.name] = helper.make_tensor_type_proto(int(dtype), dims)
        array = sweep.arrays.get(value) if value in stored or value.producer() is None else None
        if array is not None and array.dtype.kind in "iu":
            data[value.name] = numpy_helper.from_array(array)
    node = onnx.NodeProto()
    oir.serde.serialize_node_into(node, reader)
    imports = [onnx.OperatorSetIdProto(domain=domain, version=version) for domain, version in opsets.items()]
    try:
        shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
    except (shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ""
