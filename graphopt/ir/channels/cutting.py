"""The cut: slices constants and rewrites attributes and arguments, in a model like the one analysed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import PassFailed
from graphopt.ir import tensors
from graphopt.ir.model import with_subgraphs
from graphopt.ir.rewrite import add_initializer, attribute, input_at, make_node
from graphopt.ir.semantics import domain_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graphopt.ir.channels.propagation import Propagation
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.types import ChannelRule, Kept
    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shape


_Place = tuple[oir.Node, int]
# Larger constants that several nodes read are weights, and their slices differ.
_MAX_COMPARED_BYTES = 1 << 16


class Keeping:
    """Which indices stay, for every labelled dim."""

    def __init__(self, run: Propagation, dead: Array) -> None:
        self.run = run
        self._stay = ~run.slots.removed(dead)
        self._memo: dict[int, Kept | None] = {}

    def keep(self, axis: Array | None) -> Kept | None:
        """Return which indices of *axis* stay, None where all do."""
        if axis is None:
            return None
        key = id(axis)
        if key not in self._memo:
            found = self._stay[axis]
            self._memo[key] = None if found.all() else found
        return self._memo[key]

    def of_input(self, node: oir.Node, index: int) -> list[Kept | None]:
        """Return what stays of each dim of input *index* of *node*, a node of the analysed model."""
        value = input_at(node, index)
        if value is None:
            return []
        axes = self.run.labels.get(value) or self.run.uses.get((node, index)) or ()
        return [self.keep(axis) for axis in axes]

    def of_output(self, value: oir.Value) -> list[Kept | None]:
        """Return what stays of each dim of a computed value."""
        return [self.keep(axis) for axis in self.run.labels.get(value, ())]


class NodeCut:
    """One node during a cut: what stays of its dims, and how it may be changed.

    Attributes:
        node: The node to change.
        model: The model that it is part of.
    """

    __slots__ = ("_keeping", "_source", "model", "node")

    def __init__(self, model: Model, node: oir.Node, source: oir.Node, keeping: Keeping) -> None:
        self.model = model
        self.node = node
        self._source = source
        self._keeping = keeping

    @property
    def opset(self) -> int:
        """Version of the node's domain."""
        return self._keeping.run.opset(self.node.domain)

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - attributes are of many types
        """Return an attribute, text as str."""
        found = attribute(self.node, name, default)
        return found.decode() if isinstance(found, bytes) else found

    def has(self, index: int) -> bool:
        """Return whether input *index* is given."""
        return input_at(self._source, index) is not None

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the dims of input *index* before the cut."""
        return self._keeping.run.shape(input_at(self._source, index))

    def entries(self, index: int) -> Shape | None:
        """Return the known elements of a small integer input before the cut."""
        return self._keeping.run.entries(input_at(self._source, index))

    def content(self, index: int) -> np.ndarray[Any, Any] | None:
        """Return what input *index* held before the cut, None where it is computed."""
        return self._keeping.run.content(input_at(self._source, index))

    def is_static(self, index: int, axis: int) -> bool:
        """Return whether dim *axis* of output *index* is a number in the model itself."""
        return self._keeping.run.is_static(self._source.outputs[index], axis)

    def keeps(self, index: int) -> list[Kept | None]:
        """Return what stays of each dim of input *index*, None for all of it."""
        return self._keeping.of_input(self._source, index)

    def keep(self, index: int, axis: int) -> Kept | None:
        """Return what stays of dim *axis* of input *index*, None for all of it."""
        keeps = self.keeps(index)
        return keeps[axis] if keeps else None

    def keeps_output(self, index: int = 0) -> list[Kept | None]:
        """Return what stays of each dim of output *index*, None for all of it."""
        return self._keeping.of_output(self._source.outputs[index])

    def count(self, index: int, axis: int) -> int | None:
        """Return how many indices of dim *axis* of input *index* stay, None where it is unknown."""
        keep = self.keep(index, axis)
        if keep is not None:
            return int(keep.sum())
        dim = self.shape(index)[axis]
        return None if dim < 0 else dim

    def size_output(self, index: int, axis: int) -> int:
        """Return how many indices of dim *axis* of output *index* stay."""
        keep = self.keeps_output(index)[axis]
        return self._keeping.run.shape(self._source.outputs[index])[axis] if keep is None else int(keep.sum())

    def count_output(self, index: int, axis: int) -> int | None:
        """Return :meth:`size_output`, None where it is unknown."""
        size = self.size_output(index, axis)
        return None if size < 0 else size

    def groups(self, index: int, axis: int, count: int) -> int:
        """Return how many of *count* equal parts of dim *axis* of input *index* have an index left."""
        keep = self.keep(index, axis)
        return count if keep is None else int(keep.reshape(count, -1).any(axis=1).sum())

    def set_attribute(self, name: str, value: Any) -> None:  # noqa: ANN401 - attributes are of many types
        """Set an attribute, or remove it with None."""
        if value is None:
            self.node.attributes.pop(name, None)
        else:
            self.node.attributes[name] = oir.convenience.convert_attribute(name, value)

    def set_input(self, index: int, content: np.ndarray[Any, Any]) -> None:
        """Let input *index* be a new constant."""
        graph = self.node.graph
        assert graph is not None
        value = add_initializer(self.model, graph, f"{self._name()}_cut", content)
        self.connect(index, value)

    def connect(self, index: int, value: oir.Value) -> None:
        """Let input *index* be *value*."""
        if index >= len(self.node.inputs):
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, value)

    def _name(self) -> str:
        return self.node.name or self.node.outputs[0].name or self.node.op_type

    def override(self, index: int, changes: Mapping[int, int], attribute: str = "") -> None:
        """Set single elements of a list of sizes: an attribute, a constant, or a computed input.

        A computed input keeps all other elements as they are computed, so that open dims stay open.

        Args:
            index: Input that holds the list.
            changes: New element by position.
            attribute: Attribute that holds it in old versions of the operator, if any.
        """
        if not changes:
            return
        if attribute and self.attribute(attribute) is not None:
            given = list(self.attribute(attribute))
            for position, number in changes.items():
                given[position] = number
            self.set_attribute(attribute, given)
            return
        content = self.content(index)
        if not self.has(index):
            content = np.ones(self.shape(1)[0], np.int64)
        current = input_at(self.node, index)
        dtype = np.int64 if current is None or current.dtype != oir.DataType.INT32 else np.int32
        if content is not None:
            values = content.reshape(-1).astype(dtype)
            values[list(changes)] = list(changes.values())
            self.set_input(index, values)
            return
        size = self.shape(index)[0]
        mask, numbers = np.zeros(size, bool), np.zeros(size, dtype)
        mask[list(changes)] = True
        numbers[list(changes)] = list(changes.values())
        assert current is not None
        self.connect(index, self._where(mask, numbers, current, self.node))

    def _where(
        self,
        mask: np.ndarray[Any, Any],
        numbers: np.ndarray[Any, Any],
        value: oir.Value,
        before: oir.Node | None,
    ) -> oir.Value:
        graph = self.node.graph
        assert graph is not None
        inputs = [
            add_initializer(self.model, graph, f"{self._name()}_{what}", content)
            for what, content in (("cut_mask", mask), ("cut_sizes", numbers))
        ]
        node = make_node(self.model, "Where", [*inputs, value], name=f"{self._name()}_cut")
        if before is not None:
            graph.insert_before(before, node)
        else:
            graph.insert_after(self.node, node)
        node.outputs[0].dtype = oir.DataType.INT64 if numbers.dtype == np.int64 else oir.DataType.INT32
        node.outputs[0].shape = oir.Shape([len(mask)])
        return node.outputs[0]

    def override_output(self, numbers: Mapping[int, int], size: int) -> None:
        """Let the readers of output 0, a list of sizes, see other numbers at single positions."""
        value = self.node.outputs[0]
        mask, content = np.zeros(size, bool), np.zeros(size, np.int64)
        mask[list(numbers)] = True
        content[list(numbers)] = list(numbers.values())
        uses = list(value.uses())
        changed = self._where(mask, content, value, None)
        for user, index in uses:
            user.replace_input_with(index, changed)

    def gather_first(self, index: int, axis: int, places: Array) -> None:
        """Pick *places* of dim *axis* of input *index* before the node sees it."""
        graph = self.node.graph
        value = input_at(self.node, index)
        assert graph is not None
        assert value is not None
        indices = add_initializer(self.model, graph, f"{self._name()}_picked", places.astype(np.int64))
        node = make_node(
            self.model, "Gather", [value, indices], attributes={"axis": axis}, name=f"{self._name()}_pick"
        )
        graph.insert_before(self.node, node)
        self.connect(index, node.outputs[0])


def cut_model(model: Model, keeping: Keeping, rules: Mapping[tuple[str, str], ChannelRule]) -> dict[str, int]:
    """Slice constants and rewrite nodes of *model*, which has the structure of the analysed one.

    Returns:
        Counts of what was done: ``tensors`` sliced, ``nodes`` rewritten.
    """
    pairs = list(_pairs(keeping.run.model, model))
    for source, node in pairs:
        for one, value in zip(source.outputs, node.outputs, strict=True):
            _shrink(value, keeping.of_output(one))
    for analysed, graph in zip(
        with_subgraphs(keeping.run.model.graph), with_subgraphs(model.graph), strict=True
    ):
        for one, value in zip(analysed.inputs, graph.inputs, strict=True):
            _shrink(value, keeping.of_output(one))
    rewritten = 0
    sliced = _cut_constants(model, pairs, keeping)
    for source, node in pairs:
        rule = rules.get((domain_of(source), source.op_type))
        if rule is None or rule.rewrite is None:
            continue
        inputs = (keep for index in range(len(source.inputs)) for keep in keeping.of_input(source, index))
        outputs = (keep for value in source.outputs for keep in keeping.of_output(value))
        if any(keep is not None for group in (inputs, outputs) for keep in group):
            rule.rewrite(NodeCut(model, node, source, keeping))
            rewritten += 1
    return {"tensors": sliced, "nodes": rewritten}


def _pairs(analysed: Model, model: Model) -> Iterator[tuple[oir.Node, oir.Node]]:
    for one, other in zip(with_subgraphs(analysed.graph), with_subgraphs(model.graph), strict=True):
        if len(one) != len(other):
            raise PassFailed("the model to cut is not the one that was analysed", where=f"graph {one.name!r}")
        for source, node in zip(one, other, strict=True):
            if source.op_type != node.op_type:
                raise PassFailed(
                    f"the model to cut has {node.op_type} where the analysed one has {source.op_type}",
                    where=f"node {source.name!r}",
                )
            yield source, node


def _shrink(value: oir.Value, keeps: Sequence[Kept | None]) -> None:
    if value.shape is None or all(keep is None for keep in keeps) or len(value.shape) != len(keeps):
        return
    value.shape = oir.Shape(
        [
            dim if keep is None or not isinstance(dim, int) else int(keep.sum())
            for dim, keep in zip(value.shape, keeps, strict=True)
        ]
    )


def _cut_constants(model: Model, pairs: Sequence[tuple[oir.Node, oir.Node]], keeping: Keeping) -> int:
    """Slice every constant as its places of use ask; those that ask for the same share the result."""
    uses: dict[oir.Value, dict[tuple[oir.Node, int], list[Kept | None]]] = {}
    for source, node in pairs:
        for index in range(len(source.inputs)):
            axes = keeping.run.uses.get((source, index))
            value = input_at(node, index)
            if axes is not None and value is not None:
                uses.setdefault(value, {})[node, index] = [keeping.keep(axis) for axis in axes]
    sliced = 0
    for value, places in uses.items():
        if all(keep is None for keeps in places.values() for keep in keeps):
            continue
        tensor = keeping.run.constant(value)
        if tensor is None:
            raise PassFailed("it is no constant in the model to cut", where=f"value {value.name!r}")
        made = _slices(tensor, places)
        sliced += len(made)
        whole = value.is_graph_output() or len(places) < len(value.uses())
        whole = whole or any(all(keep is None for keep in keeps) for keeps in places.values())
        for number, (smaller, where) in enumerate(made):
            if number == len(made) - 1 and not whole:
                _replace_constant(value, smaller)
                continue
            graph = _home(value, where[0][0])
            copy = add_initializer(model, graph, f"{value.name}_cut", smaller)
            for node, index in where:
                node.replace_input_with(index, copy)
    return sliced


def _slices(
    tensor: oir.TensorProtocol, places: Mapping[_Place, Sequence[Kept | None]]
) -> list[tuple[oir.TensorProtocol, list[_Place]]]:
    """Return the slices of one constant, each with the places of use that get it; equal ones are one."""
    groups: dict[tuple[bytes, ...], list[_Place]] = {}
    for place, keeps in places.items():
        if any(keep is not None for keep in keeps):
            key = tuple(b"" if keep is None else keep.tobytes() for keep in keeps)
            groups.setdefault(key, []).append(place)
    made: dict[tuple[object, ...], tuple[oir.TensorProtocol, list[_Place]]] = {}
    for where in groups.values():
        smaller = _slice(tensor, places[where[0]])
        # Zero biases of several layers are equal again wherever as many are left.
        small = len(groups) > 1 and tensors.is_small(smaller, _MAX_COMPARED_BYTES)
        content = (smaller.shape.numpy(), bytes(tensors.to_buffer(smaller))) if small else (len(made),)
        made.setdefault(content, (smaller, []))[1].extend(where)
    return list(made.values())


def _home(value: oir.Value, node: oir.Node) -> oir.Graph:
    producer = value.producer()
    graph = value.graph or (producer.graph if producer is not None else None) or node.graph
    assert isinstance(graph, oir.Graph)
    return graph


def _slice(tensor: oir.TensorProtocol, keeps: Sequence[Kept | None]) -> oir.TensorProtocol:
    array = tensors.to_array(tensor)
    for axis, keep in enumerate(keeps):
        if keep is not None:
            array = np.compress(keep, array, axis=axis)
    return tensors.from_array(array, tensor.name or "")


def _replace_constant(value: oir.Value, tensor: oir.TensorProtocol) -> None:
    node = value.producer()
    if node is not None:
        for name in list(node.attributes):
            node.attributes.pop(name)
        node.attributes["value"] = oir.AttrTensor("value", tensor)
    value.const_value = tensor
    value.shape = oir.Shape(tensor.shape.numpy())
