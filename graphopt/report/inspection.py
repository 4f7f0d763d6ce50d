"""What a model is made of: the document behind ``graphopt inspect``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import networkx as nx
import onnx_ir as oir

from graphopt.ir.cost import measure_cost
from graphopt.ir.tensors import constant_of, is_overridable
from graphopt.ir.views import call_graph, longest_chain, operator_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir import Model

_DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INTEGER_OPS = frozenset({"MatMulInteger", "ConvInteger", "MatMulNBits", "DynamicQuantizeMatMul"})
_MOST_EXPENSIVE = 10


def inspect_model(model: Model, dims: Mapping[str, int]) -> dict[str, Any]:
    """Return the facts of *model*, ready for JSON, in the order in which they are shown.

    Args:
        model: Any model; weights are not read.
        dims: Sizes bound to symbolic dims for counting MACs; unbound ones count as 1.
    """
    cost = measure_cost(model, dims)
    store = model.store
    nodes = list(model.nodes())
    known = _DEFAULT_DOMAINS | {domain for domain, _, _ in model.functions}
    return {
        "ir_version": model.ir_version,
        "opset_imports": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "producer": " ".join(part for part in (store.producer_name, store.producer_version) if part),
        "inputs": [_value(value) for value in model.graph.inputs if not value.is_initializer()],
        "outputs": [_value(value) for value in model.graph.outputs],
        "dynamic_dims": _dynamic_dims(model),
        "nodes": len(nodes),
        "ops": dict(Counter(_label(node) for node in nodes).most_common()),
        "longest_chain": len(longest_chain(operator_graph(model))),
        "subgraphs": sum(1 for _ in model.graph.subgraphs()),
        "functions": ["::".join(filter(None, key)) for key in model.functions],
        "unused_functions": _unused_functions(model),
        "custom_domains": sorted({node.domain for node in nodes} - known),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "macs_unknown": list(cost.unknown),
        "weight_bytes": cost.weight_bytes,
        "bytes_by_dtype": dict(cost.bytes_by_dtype),
        "bytes_by_op": dict(cost.bytes_by_op),
        "most_expensive": [
            {"node": each.name, "op_type": each.op_type, "macs": each.macs, "bytes": each.bytes}
            for each in sorted(
                cost.per_node, key=lambda each: (-(each.macs or 0) * each.times, -each.bytes, each.name)
            )[:_MOST_EXPENSIVE]
        ],
        "quantization": _quantization(nodes),
        "external_files": [] if model.source is None else [str(path) for path in model.source.external_files],
        "overridable_initializers": [
            value.name for value in model.graph.initializers.values() if is_overridable(value)
        ],
        "dead_initializers": list(cost.dead),
        "notes": list(cost.notes),
    }


def _label(node: oir.Node) -> str:
    return node.op_type if node.domain in _DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"


def _unused_functions(model: Model) -> list[str]:
    """Return the functions that no chain of calls from the main graph reaches."""
    reached = nx.descendants(call_graph(model), "main")
    return ["::".join(filter(None, key)) for key in model.functions if key not in reached]


def _value(value: oir.Value) -> dict[str, Any]:
    shape = None
    if value.shape is not None:
        shape = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    if isinstance(value.type, oir.TensorType):
        kind = value.type.dtype.name.lower()
    else:
        kind = "unknown" if value.type is None else str(value.type)
    return {"name": value.name, "type": kind, "shape": shape}


def _dynamic_dims(model: Model) -> list[str]:
    """Return the names of the free dims of the inputs; ``?`` stands for those without a name."""
    found: dict[str, None] = {}
    for value in model.graph.inputs:
        for dim in value.shape or ():
            if not isinstance(dim, int):
                found[dim.value or "?"] = None
    return list(found)


def _quantization(nodes: list[oir.Node]) -> dict[str, Any]:
    """Return what is quantised already: operators, and weights that are stored in few bits."""
    ops = Counter(
        _label(node)
        for node in nodes
        if node.op_type in _QUANTISERS | _INTEGER_OPS or node.op_type.startswith("QLinear")
    )
    weights: Counter[str] = Counter()
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.inputs:
            tensor = constant_of(node.inputs[0])
            if tensor is not None:
                weights[tensor.dtype.name.lower()] += 1
    return {"ops": dict(ops.most_common()), "weights_by_dtype": dict(weights.most_common())}
