"""Put other numbers where a node reads a constant, and constants where there were none.

What others read stays as it was for them: a constant that belongs to one reader is changed in place, so that
it keeps its name; of any other the reader gets a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir.dead import remove_unread
from graphopt.ir.rewrite import add_initializer, hand_over, make_node
from graphopt.ir.tensors import from_array

if TYPE_CHECKING:
    import numpy.typing as npt

    from graphopt.ir.model import Model


def is_private(value: oir.Value) -> bool:
    """Return whether *value* is an initializer that one node reads, once, and no caller can see."""
    plain = value.is_initializer() and not value.is_graph_input() and not value.is_graph_output()
    return plain and len(value.uses()) == 1


def replace_constant(
    model: Model, node: oir.Node, index: int, content: npt.NDArray[Any] | oir.TensorProtocol
) -> None:
    """Let constant input *index* of *node* hold *content*; other readers of it keep what they had."""
    old, graph = node.inputs[index], node.graph
    assert old is not None
    assert graph is not None
    if is_private(old):
        tensor = from_array(content, old.name or "") if isinstance(content, np.ndarray) else content
        old.const_value = tensor
        old.shape = oir.Shape(tensor.shape.numpy())
        return
    node.replace_input_with(index, add_initializer(model, graph, old.name or "constant", content))
    remove_unread([old])


def put_constant(model: Model, node: oir.Node, index: int, array: npt.NDArray[Any], name: str) -> None:
    """Let input *index* of *node*, which it lacks so far, be an initializer of about that *name*."""
    assert node.graph is not None
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(model, node.graph, name, array))


def add_behind(model: Model, node: oir.Node, array: npt.NDArray[Any]) -> None:
    """Put an Add of *array* behind the first output of *node*.

    The sum takes the name of the output, by which readers, reports and statistics know it.
    """
    output, graph = node.outputs[0], node.graph
    assert graph is not None
    name = output.name or ""
    constant = add_initializer(model, graph, f"{name}_bias", array)
    add = make_node(model, "Add", [None, constant], name=f"{node.name or name}_bias")
    graph.insert_after(node, add)
    new = add.outputs[0]
    new.type, new.shape = output.type, None if output.shape is None else output.shape.copy()
    hand_over(output, new)
    add.replace_input_with(0, output)
    output.name = model.fresh_name(f"{name}_product")
    new.name = name
