"""Names that stand in quantization annotations, which refer to scales and zero points by name."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from graphopt.ir.meta import LEFTOVER_ANNOTATIONS, QUANTIZATION, peek_meta

if TYPE_CHECKING:
    from graphopt.ir import Model


def annotated_names(model: Model) -> frozenset[str]:
    """Return the names of all tensors that some quantization annotation of *model* refers to."""
    import onnx

    names: set[str] = set()
    for graph in model.graphs():
        values = chain(
            graph.inputs, graph.initializers.values(), chain.from_iterable(node.outputs for node in graph)
        )
        for value in values:
            if notes := peek_meta(value):
                names.update((notes.get(QUANTIZATION) or {}).values())
        for message in peek_meta(graph).get(LEFTOVER_ANNOTATIONS, ()):
            annotation = onnx.TensorAnnotation.FromString(message)
            names.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return frozenset(names)
