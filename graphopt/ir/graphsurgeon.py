"""Run a function over an ``onnx_graphsurgeon.Graph`` on a model, and lose nothing that it did not touch.

GraphSurgeon itself keeps neither metadata nor quantization annotations nor defaults of inputs, changes some
low-precision types, and copies weights. So it is shown a shell of the model: the same graph whose tensors
have types and shapes but no bytes until a script asks for them. What comes back is written into a new store
by graphsurgeon_writer.py, which takes everything that GraphSurgeon has no place for from the original.

Functions with an overload are not shown, because GraphSurgeon would take them for one another; they stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import PassFailed
from graphopt.ir.collector import collector_paused
from graphopt.ir.emit import emit
from graphopt.ir.tensors import RawTensor, to_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx
    import onnx_graphsurgeon as gs

    from graphopt.ir.model import Model

SHOWN_ATTRIBUTES = frozenset(
    {
        oir.AttributeType.FLOAT,
        oir.AttributeType.INT,
        oir.AttributeType.STRING,
        oir.AttributeType.TENSOR,
        oir.AttributeType.GRAPH,
        oir.AttributeType.FLOATS,
        oir.AttributeType.INTS,
        oir.AttributeType.STRINGS,
    }
)
"""What GraphSurgeon can hold; attributes of other types stay with their node without being shown."""


@dataclass
class Origins:
    """What each part of the GraphSurgeon graph was made from.

    Keyed by ``id``; ``alive`` holds the parts so that no id is handed out twice.

    Attributes:
        graphs: GraphSurgeon graph or function -> graph.
        nodes: GraphSurgeon node -> node.
        kinds: Graph -> name -> (dtype, dims, kind) of the variable as it was shown.
        read: Array handed to the script -> (the array, the tensor that it is a copy of).
    """

    graphs: dict[int, oir.Graph] = field(default_factory=dict)
    nodes: dict[int, oir.Node] = field(default_factory=dict)
    kinds: dict[int, dict[str, tuple[object, ...]]] = field(default_factory=dict)
    read: dict[int, tuple[Any, oir.TensorProtocol]] = field(default_factory=dict)
    alive: list[object] = field(default_factory=list)


@dataclass(frozen=True)
class SurgeonCounts:
    """What a script did: nodes that are new, nodes that are gone, tensors with new content."""

    nodes_added: int
    nodes_removed: int
    tensors_changed: int


def run_graphsurgeon(model: Model, function: Callable[[gs.Graph], gs.Graph | None]) -> SurgeonCounts:
    """Let *function* change *model* through GraphSurgeon.

    Tensors whose values the function leaves alone come back as the same objects, read or not; nothing is read
    from external data that the function does not read.

    Args:
        model: Its store is replaced; after an error it is as it was.
        function: Changes the graph in place, or returns another one.

    Raises:
        PassFailed: The function returned something else than a graph or None, or left a graph that cannot be
            written: a name without a producer or with two, an attribute of an unknown type, a cycle.
    """
    import onnx_graphsurgeon as gs

    from graphopt.ir.graphsurgeon_writer import StoreWriter

    with collector_paused():
        graph, origins = _show(model)
    returned = function(graph)
    if returned is not None and not isinstance(returned, gs.Graph):
        raise PassFailed(
            f"the function returned {type(returned).__name__}, expected an onnx_graphsurgeon.Graph or None"
        )
    result = graph if returned is None else returned
    if result is not graph and id(result) not in origins.graphs:
        origins.graphs[id(result)] = model.graph
    with collector_paused():
        writer = StoreWriter(model, origins)
        model.store = writer.model(result)
    model.forget_names()
    return SurgeonCounts(writer.nodes_added, writer.nodes_removed, writer.tensors_changed)


def variable_kind(tensor: gs.Tensor) -> tuple[object, ...]:
    """Return what GraphSurgeon says about a variable, in a form that compares."""
    shape = tensor.shape
    return (tensor.dtype, None if shape is None else tuple(shape), getattr(tensor, "type", "tensor_type"))


def _show(model: Model) -> tuple[gs.Graph, Origins]:
    """Return the GraphSurgeon graph of *model*, and where its parts come from."""
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.ir.tensor import LazyValues
    from onnx_graphsurgeon.logger import G_LOGGER

    origins = Origins()

    class Unread(LazyValues):  # type: ignore[misc]  # onnx_graphsurgeon has no types
        """Values that are read from the model's own tensor when a script asks for them."""

        def __init__(self, stub: onnx.TensorProto, tensor: oir.TensorProtocol) -> None:
            self.tensor = stub
            self.origin = tensor
            self.shape = list(stub.dims)
            self.dtype = _surgeon_dtype(tensor.dtype)
            self.nbytes = int(tensor.nbytes)

        def load(self) -> Any:  # noqa: ANN401 - an array of any dtype
            array = np.array(to_array(self.origin))
            if self.origin.dtype == oir.DataType.STRING:
                array.reshape(-1)[:] = [_text(item) for item in array.reshape(-1)]
            origins.read[id(array)] = (array, self.origin)
            return array

    def attach(surgeon: gs.Graph, original: oir.Graph, outer: tuple[oir.Graph, ...] = ()) -> None:
        origins.graphs[id(surgeon)] = original
        origins.alive.append(surgeon)
        kinds = origins.kinds.setdefault(id(original), {})
        for name, tensor in surgeon.tensors().items():
            if isinstance(tensor, gs.Variable):
                kinds[name] = variable_kind(tensor)
            elif not isinstance(tensor._values, Unread):  # noqa: SLF001 - lazy values have no other door
                # An outer graph does not list a constant that only its inner graphs read.
                home = next(graph for graph in (original, *outer) if name in graph.initializers)
                own = home.initializers[name].const_value
                if own is not None:
                    tensor._values = Unread(tensor._values.tensor, own)  # noqa: SLF001 - as above
        for surgeon_node, node in zip(surgeon.nodes, original, strict=True):
            origins.nodes[id(surgeon_node)] = node
            origins.alive.append(surgeon_node)
            for name, content in surgeon_node.attrs.items():
                if isinstance(content, gs.Graph):
                    attach(content, node.attributes[name].as_graph(), (original, *outer))
                elif isinstance(content, gs.Constant):
                    tensor = node.attributes[name].as_tensor()
                    content._values = Unread(content._values.tensor, tensor)  # noqa: SLF001 - as above

    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR  # it warns of each low-precision type, which this bridge takes care of
    try:
        graph = gs.import_onnx(emit(_shell(model)))
    finally:
        G_LOGGER.severity = severity
    attach(graph, model.graph)
    for function in graph.functions:
        attach(function, model.functions[function.domain, function.name, ""].graph)
    return graph, origins


def _text(item: bytes) -> str | bytes:
    """Return *item* as GraphSurgeon hands out strings; what is no UTF-8 stays bytes."""
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item


def _surgeon_dtype(dtype: oir.DataType) -> object:
    """Return *dtype* as GraphSurgeon does: numpy's type, or ONNX's number where numpy has none."""
    from onnx_graphsurgeon.importers.onnx_importer import get_numpy_type

    known = get_numpy_type(int(dtype))
    return int(dtype) if known is None else known


def _shell(model: Model) -> Model:
    """Return a copy of *model* whose tensors have no bytes, without what GraphSurgeon cannot hold."""
    shell = model.clone()
    for identifier in [identifier for identifier in shell.functions if identifier[2]]:
        del shell.store.functions[identifier]
    for graph in shell.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _stub(value.const_value)
        for node in graph:
            for attribute in tuple(node.attributes.values()):
                if not is_shown(attribute):
                    node.attributes.pop(attribute.name)
                elif attribute.type is oir.AttributeType.TENSOR and not attribute.is_ref():
                    stub = _stub(attribute.as_tensor())
                    node.attributes[attribute.name] = oir.AttrTensor(attribute.name, stub)
    return shell


def is_shown(attribute: oir.Attr) -> bool:
    """Return whether GraphSurgeon can hold *attribute*: of a type that it knows, and texts in UTF-8."""
    if attribute.type not in SHOWN_ATTRIBUTES:
        return False
    if attribute.is_ref():
        return True
    texts: Iterator[object] = iter(())
    if attribute.type is oir.AttributeType.STRING:
        texts = iter((attribute.value,))
    elif attribute.type is oir.AttributeType.STRINGS:
        texts = iter(attribute.value)
    return all(isinstance(text, str) for text in texts)


def _stub(tensor: oir.TensorProtocol) -> oir.TensorProtocol:
    return RawTensor(b"", tensor.dtype, tuple(tensor.shape.numpy()), name=tensor.name)
