"""Functions: labels are those of one call, so that a body must stand where it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as oir

from graphopt.ir.model import with_subgraphs

if TYPE_CHECKING:
    from graphopt.ir.model import Model


def prepare(model: Model) -> bool:
    """Inline the functions of *model*, in place; :meth:`Channels.cut` does the same before it cuts.

    A function that takes a graph, or means other versions of its operators than the model, stays; its calls
    are operators that nothing is known about.

    Returns:
        Whether there were calls to inline.
    """
    if not calls_functions(model):
        return False
    from onnx_ir.passes.common import InlinePass

    fitting = {id(function) for function in model.functions.values() if _adopt(model, function)}
    if not fitting:
        return False
    InlinePass(criteria=lambda function: id(function) in fitting)(model.store)
    model.forget_names()
    return True


def calls_functions(model: Model) -> bool:
    """Return whether some node calls a function of *model*."""
    return bool(model.functions) and any(
        (node.domain, node.op_type, node.overload or "") in model.functions
        for graph in with_subgraphs(model.graph)
        for node in graph
    )


def _adopt(model: Model, function: oir.Function) -> bool:
    """Let *function* import the versions of the model, where that changes the meaning of no node."""
    if any(
        found.type in {oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS}
        for found in function.attributes.values()
    ):
        return False
    other = {
        domain: model.opset_imports[domain]
        for domain, version in function.opset_imports.items()
        if model.opset_imports.get(domain, version) != version
    }
    for graph in with_subgraphs(function.graph):
        for node in graph:
            version = other.get(node.domain)
            if version is not None and not _same_meaning(node, function.opset_imports[node.domain], version):
                return False
    function.opset_imports.update(other)
    return True


def _same_meaning(node: oir.Node, one: int, other: int) -> bool:
    try:
        schemas = [onnx.defs.get_schema(node.op_type, version, node.domain) for version in (one, other)]
    except onnx.defs.SchemaError:
        return False
    return schemas[0].since_version == schemas[1].since_version
