"""Rules about Constant nodes: they become initializers wherever a graph may hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir import rewrite, tensors
from graphopt.ir.meta import QUANTIZATION, peek_meta

if TYPE_CHECKING:
    from graphopt.passes.cleanup.workbench import Workbench


def constant_to_initializer(bench: Workbench, node: oir.Node) -> bool:
    """Turn a Constant node of a graph into an initializer of the same name.

    Bodies of functions hold no initializers, nor do models before IR version 4 (none that is not an input).
    An output of a graph keeps its node: not every runtime takes an initializer for an output.
    """
    graph, output = node.graph, node.outputs[0]
    if graph is None or not output.name or not bench.facts.holds_initializers(graph):
        return False
    if output.is_graph_output():
        return False
    tensor = tensors.constant_of(output)
    if tensor is None:
        bench.skip(node, "its value is given in a form that has no tensor")
        return False
    name = output.name
    value = oir.Value(
        name=name,
        type=oir.TensorType(tensor.dtype),
        shape=oir.Shape(tensor.shape.numpy()),
        doc_string=output.doc_string,
        const_value=tensor,
        metadata_props=dict(output.metadata_props) or None,
    )
    if QUANTIZATION in peek_meta(output):
        value.meta[QUANTIZATION] = output.meta[QUANTIZATION]
    # The initializer carries the name from here on; the removed output must not share it.
    for reader, index in output.uses():
        reader.replace_input_with(index, value)
        bench.enqueue((reader,))
    rewrite.remove_node(node)
    graph.initializers.add(value)
    bench.counts["constants_to_initializers"] += 1
    return True
