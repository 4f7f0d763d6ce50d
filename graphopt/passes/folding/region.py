"""Evaluate a set of foldable nodes in one runtime session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import ProviderError
from graphopt.ir import tensors
from graphopt.passes.folding import kernels
from graphopt.runtime.evaluate import evaluate, evaluate_reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import onnx

    Array = npt.NDArray[Any]

_EMBEDDED_BYTES = 4096
"""Constants up to this size travel inside the model: some kernels want attributes-like inputs constant."""

_IR_VERSION = 10
"""Of region models; every onnxruntime that graphopt supports reads it, whatever the model's own version."""


@dataclass(slots=True)
class Evaluation:
    """Values of a region, and the nodes that could not be evaluated with the reason of each."""

    arrays: dict[oir.Value, Array] = field(default_factory=dict)
    failed: dict[oir.Node, str] = field(default_factory=dict)


def evaluate_region(
    nodes: Sequence[oir.Node],
    wanted: Sequence[oir.Value],
    constants: Mapping[oir.Value, Array | oir.TensorProtocol],
    opsets: Mapping[str, int],
) -> Evaluation:
    """Return the *wanted* values that *nodes* compute from *constants*.

    A region of nodes that all have exact kernels is computed by them, anything else in one session; where the
    session refuses, the nodes are tried one by one, and those that the runtime lacks by ONNX's reference
    implementation.

    Args:
        nodes: In topological order, closed: their inputs are constants or outputs of earlier ones.
        wanted: Outputs of *nodes*.
        constants: What feeds the region.
        opsets: Versions of the operator sets where the nodes stand.
    """
    by_kernels = _evaluate_by_kernels(nodes, wanted, constants, opsets)
    if by_kernels is not None:
        return Evaluation(arrays=by_kernels)
    try:
        return Evaluation(arrays=_run(nodes, wanted, constants, opsets))
    except ProviderError as error:
        if len(nodes) == 1:
            return _last_resort(nodes[0], wanted, constants, opsets, error)
    return _one_by_one(nodes, wanted, constants, opsets)


def _evaluate_by_kernels(
    nodes: Sequence[oir.Node],
    wanted: Sequence[oir.Value],
    constants: Mapping[oir.Value, Array | oir.TensorProtocol],
    opsets: Mapping[str, int],
) -> dict[oir.Value, Array] | None:
    if not all(kernels.handles(node) for node in nodes):
        return None
    values: dict[oir.Value, Array] = {}
    pending = _readers(nodes)
    keep = set(wanted)
    for node in nodes:
        inputs = [None if value is None else _array(value, values, constants) for value in node.inputs]
        outputs = kernels.evaluate(node, opsets.get("", 0), inputs)
        if outputs is None:
            return None
        values.update(zip(node.outputs, outputs, strict=False))
        for value in node.inputs:
            if value is not None and value in pending:
                pending[value] -= 1
                if not pending[value] and value not in keep:
                    values.pop(value, None)
    return {value: values[value] for value in wanted}


def _readers(nodes: Sequence[oir.Node]) -> dict[oir.Value, int]:
    counts: dict[oir.Value, int] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None:
                counts[value] = counts.get(value, 0) + 1
    return counts


def _array(
    value: oir.Value,
    values: Mapping[oir.Value, Array],
    constants: Mapping[oir.Value, Array | oir.TensorProtocol],
) -> Array:
    if value in values:
        return values[value]
    constant = constants[value]
    return constant if isinstance(constant, np.ndarray) else tensors.to_array(constant)


def _one_by_one(
    nodes: Sequence[oir.Node],
    wanted: Sequence[oir.Value],
    constants: Mapping[oir.Value, Array | oir.TensorProtocol],
    opsets: Mapping[str, int],
) -> Evaluation:
    result = Evaluation()
    known: dict[oir.Value, Array | oir.TensorProtocol] = dict(constants)
    for node in nodes:
        if any(value is not None and value not in known for value in node.inputs):
            result.failed[node] = "an input of it could not be evaluated"
            continue
        part = evaluate_region([node], [value for value in node.outputs if value.name], known, opsets)
        result.failed.update(part.failed)
        known.update(part.arrays)
    keep = set(wanted)
    result.arrays = {
        value: array for value, array in known.items() if value in keep and isinstance(array, np.ndarray)
    }
    return result


def _last_resort(
    node: oir.Node,
    wanted: Sequence[oir.Value],
    constants: Mapping[oir.Value, Array | oir.TensorProtocol],
    opsets: Mapping[str, int],
    error: ProviderError,
) -> Evaluation:
    if "implement" not in error.message:
        return Evaluation(failed={node: error.message})
    proto, feeds, names = _build([node], wanted, constants, opsets)
    try:
        outputs = evaluate_reference(proto, feeds)
    except ProviderError as second:
        return Evaluation(failed={node: second.message})
    return Evaluation(arrays={value: outputs[names[value]] for value in wanted})


def _run(
    nodes: Sequence[oir.Node],
    wanted: Sequence[oir.Value],
    constants: Mapping[oir.Value, Array | oir.TensorProtocol],
    opsets: Mapping[str, int],
) -> dict[oir.Value, Array]:
    proto, feeds, names = _build(nodes, wanted, constants, opsets)
    outputs = evaluate(proto, feeds)
    return {value: outputs[names[value]] for value in wanted}


def _build(
    nodes: Sequence[oir.Node],
    wanted: Sequence[oir.Value],
    constants: Mapping[oir.Value, Array | oir.TensorProtocol],
    opsets: Mapping[str, int],
) -> tuple[onnx.ModelProto, dict[str, Array], dict[oir.Value, str]]:
    """Return the region as a model, what to feed it, and the names of its values.

    Values are named by number: a region may span graphs whose names hide each other.
    """
    import onnx
    from onnx import helper

    names: dict[oir.Value, str] = {}
    graph = onnx.GraphProto(name="constants")
    feeds: dict[str, Array] = {}
    inside = {value for node in nodes for value in node.outputs}
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name != "" and value not in names:
                names[value] = f"v{len(names)}"
                if value not in inside:
                    _add_constant(graph, feeds, names[value], constants[value])
        proto = oir.to_proto(node)
        del proto.input[:], proto.output[:], proto.metadata_props[:]
        proto.input.extend("" if value is None else names.get(value, "") for value in node.inputs)
        proto.output.extend(names.get(value, "") for value in node.outputs)
        graph.node.append(proto)
    graph.output.extend(onnx.ValueInfoProto(name=names[value]) for value in wanted)
    imports = [helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())]
    used = {node.domain for node in nodes}
    model = helper.make_model(
        graph, ir_version=_IR_VERSION, opset_imports=[one for one in imports if one.domain in used]
    )
    return model, feeds, names


def _add_constant(
    graph: onnx.GraphProto, feeds: dict[str, Array], name: str, constant: Array | oir.TensorProtocol
) -> None:
    import onnx

    tensor = tensors.from_array(constant, name) if isinstance(constant, np.ndarray) else constant
    if tensor.dtype == oir.DataType.STRING or tensor.nbytes > _EMBEDDED_BYTES:
        array = constant if isinstance(constant, np.ndarray) else tensors.to_array(constant)
        if tensor.dtype == oir.DataType.STRING:
            array = np.array([_text(item) for item in array.reshape(-1)], object).reshape(array.shape)
        feeds[name] = array
        graph.input.append(
            onnx.helper.make_tensor_value_info(name, int(tensor.dtype), [int(size) for size in array.shape])
        )
        return
    proto = onnx.TensorProto(
        name=name, data_type=int(tensor.dtype), dims=[int(size) for size in tensor.shape.numpy()]
    )
    proto.raw_data = tensor.tobytes()
    graph.initializer.append(proto)


def _text(item: object) -> str:
    return item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item)
