"""A hash of a model's structure and of the identity of its tensors, in time linear in the nodes.

Large tensors count by identity, not by content: a pass that swaps a weight puts a new tensor object in its
place, and reading gigabytes to learn that nothing changed would defeat the purpose. Identities are numbers
handed out in order of first sight by a registry that all clones of a model share, so the same model put
through the same pipeline has the same fingerprints in every process and every folder.
"""

from __future__ import annotations

import hashlib
import itertools
import marshal
import weakref
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

from graphopt.ir import meta
from graphopt.ir.collector import collector_paused
from graphopt.ir.tensors import SparseTensor, to_buffer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.ir.model import Model

_SMALL_BYTES = 1024
# marshal is several times faster than repr or json. Format 2 has no back references and no interning flags,
# so equal values give equal bytes in every process.
_MARSHAL_FORMAT = 2
# One call for each node would take longer, one for all of them memory for the whole model.
_PARTS_AT_ONCE = 1000

_GRAPH_NOTES = (meta.LEFTOVER_INFOS, meta.LEFTOVER_ANNOTATIONS, meta.INFOS_INSIDE)
_VALUE_NOTES = (meta.DECLARED, meta.QUANTIZATION, meta.EXACT)


class TensorRegistry:
    """Hands out a stable key for each tensor: its content where small, else a number by identity.

    It holds tensors weakly: a tensor that nothing uses any more may go.
    """

    def __init__(self) -> None:
        self._keys: dict[int, tuple[weakref.ref[Any], tuple[object, ...]]] = {}
        self._folders: dict[str, int] = {}
        self._last = 0

    def key(self, tensor: oir.TensorProtocol) -> tuple[object, ...]:
        """Return the key of *tensor*: numbers, text and bytes, the same for as long as the object lives."""
        entry = self._keys.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        key = self._make_key(tensor)
        self._keys[id(tensor)] = (weakref.ref(tensor), key)
        return key

    def _make_key(self, tensor: oir.TensorProtocol) -> tuple[object, ...]:
        dtype, dims = int(tensor.dtype), tuple(tensor.shape.numpy())
        if isinstance(tensor, SparseTensor):
            return ("sparse", dims, self.key(tensor.values), self.key(tensor.indices))
        if isinstance(tensor, oir.ExternalTensor):
            # The folder counts by number, for the same model has the same fingerprint wherever it lies.
            folder = self._folders.setdefault(str(tensor.base_dir), len(self._folders))
            place = (str(tensor.location), tensor.offset or 0, tensor.length or 0)
            return (
                "external",
                dtype,
                dims,
                folder,
                place,
                meta.peek_meta(tensor).get(meta.EXTERNAL_ENTRIES, ()),
            )
        if isinstance(tensor, oir.StringTensor):
            return ("strings", dims, _digest(tuple(tensor.string_data())))
        if tensor.nbytes <= _SMALL_BYTES:
            return ("bytes", dtype, dims, _digest(tensor.tobytes()))
        self._last += 1
        return ("tensor", dtype, dims, self._last)


class _Contents(TensorRegistry):
    """Keys by content alone, wherever it stands: reads every byte."""

    def _make_key(self, tensor: oir.TensorProtocol) -> tuple[object, ...]:
        if isinstance(tensor, SparseTensor | oir.StringTensor):
            return super()._make_key(tensor)
        dtype, dims = int(tensor.dtype), tuple(tensor.shape.numpy())
        return ("content", dtype, dims, hashlib.blake2b(to_buffer(tensor), digest_size=16).digest())


def content_hash(model: Model) -> str:
    """Return 32 hex digits that say what *model* is, contents of all tensors included, external ones too.

    Unlike :func:`fingerprint` it reads every weight, and is the same wherever these are stored.
    """
    digest = hashlib.blake2b(digest_size=16)
    with collector_paused():
        for part in _Walk(_Contents()).model(model.store):
            digest.update(_digest(part))
    return digest.hexdigest()


def _digest(content: object) -> bytes:
    data = marshal.dumps(content, _MARSHAL_FORMAT)  # type: ignore[arg-type]  # the stub has no name for plain data
    return data if len(data) <= 32 else hashlib.blake2b(data, digest_size=16).digest()


def fingerprint(model: Model) -> str:
    """Return 32 hex digits that change whenever anything changes that would be written, up to large contents.

    Everything counts that a file holds: names, types and shapes of values, nodes with attributes and
    subgraphs, initializers, functions, operator sets, metadata, docs, annotations, and the order of all that.
    Tensors over 1 KiB count by identity.
    """
    digest = hashlib.blake2b(digest_size=16)
    parts = _Walk(model.registry).model(model.store)
    with collector_paused():
        while some := list(itertools.islice(parts, _PARTS_AT_ONCE)):
            digest.update(marshal.dumps(some, _MARSHAL_FORMAT))
    return digest.hexdigest()


def _props(thing: object) -> tuple[tuple[str, str], ...]:
    props = meta.peek_props(thing)
    return tuple(props.items()) if props else ()


def _notes(thing: object, keys: tuple[str, ...]) -> str:
    notes = meta.peek_meta(thing)
    # repr keeps the order of insertion, which is the order in which it is written.
    return repr([(key, notes[key]) for key in keys if key in notes]) if notes else ""


class _Walk:
    """Turns parts of a store into nested tuples of plain values."""

    def __init__(self, registry: TensorRegistry) -> None:
        self._registry = registry

    def model(self, store: oir.Model) -> Iterator[object]:
        header = (
            store.ir_version,
            store.producer_name,
            store.producer_version,
            store.domain,
            store.model_version,
        )
        yield (header, store.doc_string, _props(store), repr(store.device_configurations))
        yield from self.graph(store.graph)
        for identifier, function in store.functions.items():
            yield (identifier, self.attributes(function.attributes))
            yield from self.graph(function.graph)

    def graph(self, graph: oir.Graph) -> Iterator[object]:
        """Yield a header, the initializers, and the nodes."""
        yield (
            graph.name,
            graph.doc_string,
            _props(graph),
            _notes(graph, _GRAPH_NOTES),
            tuple(graph.opset_imports.items()),
            tuple([self.value(value) for value in graph.inputs]),
            tuple([self.value(value) for value in graph.outputs]),
        )
        for value in graph.initializers.values():
            tensor = value.const_value
            yield (self.value(value), None if tensor is None else self.tensor(tensor))
        yield from map(self.node, graph)

    def node(self, node: oir.Node) -> tuple[object, ...]:
        """Return everything about *node*; its inputs by name only, as a file has them."""
        devices = node.device_configurations
        return (
            node.domain,
            node.op_type,
            node.overload,
            node.name,
            node.doc_string,
            tuple([None if value is None else value.name for value in node.inputs]),
            tuple([self.value(value) for value in node.outputs]),
            # The dict inside: its wrapper answers in Python, and most nodes have no attributes at all.
            self.attributes(node.attributes) if node.attributes.data else (),
            () if meta.is_bare(node) else (_props(node), _notes(node, (meta.DOMAIN_AS_READ,))),
            tuple([_device(device) for device in devices]) if devices else (),
        )

    def value(self, value: oir.Value) -> object:
        """Return what value_info would say about *value*: its name alone where there is no more to say."""
        type_, shape, doc = value.type, value.shape, value.doc_string
        beside = () if meta.is_bare(value) else (_props(value), _notes(value, _VALUE_NOTES))
        if type_ is None and shape is None and doc is None and not beside:
            return value.name
        return (
            value.name,
            None if type_ is None else _type(type_),
            None if shape is None else _shape(shape),
            doc,
            beside,
        )

    def tensor(self, tensor: oir.TensorProtocol) -> tuple[object, ...]:
        """Return the tensor's key and its metadata; its name is that of the value or attribute."""
        return (self._registry.key(tensor), tensor.doc_string, _props(tensor))

    def attributes(self, attributes: Mapping[str, oir.Attr]) -> tuple[object, ...]:
        """Return all attributes in their order."""
        return tuple([self._attribute(attribute) for attribute in attributes.values()])

    def _attribute(self, attribute: oir.Attr) -> tuple[object, ...]:
        kind, content = attribute.type, attribute.value
        plain: object
        if content is None:
            plain = attribute.ref_attr_name
        elif kind in _TENSOR_KINDS:
            plain = (_notes(attribute, (meta.TENSOR_NAMES,)), self.tensor(content))
        elif kind in _TENSORS_KINDS:
            plain = (_notes(attribute, (meta.TENSOR_NAMES,)), tuple([self.tensor(item) for item in content]))
        elif kind is oir.AttributeType.GRAPH:
            plain = tuple(self.graph(content))
        elif kind is oir.AttributeType.GRAPHS:
            plain = tuple([tuple(self.graph(graph)) for graph in content])
        elif kind is oir.AttributeType.TYPE_PROTO:
            plain = _type_and_shape(content)
        elif kind is oir.AttributeType.TYPE_PROTOS:
            plain = tuple([_type_and_shape(item) for item in content])
        else:
            plain = content
        return (attribute.name, int(kind), attribute.doc_string, plain)


def _type(type_: oir.TypeProtocol) -> object:
    inner = type_.elem_type
    if isinstance(inner, oir.DataType):
        return (type(type_).__name__, type_.denotation, int(inner))
    return (type(type_).__name__, type_.denotation, _type(inner))


def _shape(shape: oir.Shape) -> tuple[object, ...]:
    return tuple(
        [
            (dim if isinstance(dim, int) else (dim.value,), shape.get_denotation(k))
            for k, dim in enumerate(shape.dims)
        ]
    )


def _type_and_shape(item: oir.TypeAndShape) -> object:
    return (
        None if item.type is None else _type(item.type),
        None if item.shape is None else _shape(item.shape),
    )


def _device(device: oir.NodeDeviceConfiguration) -> object:
    return oir.serde.serialize_node_device_configuration(device).SerializeToString(deterministic=True)


_TENSOR_KINDS = frozenset({oir.AttributeType.TENSOR, oir.AttributeType.SPARSE_TENSOR})
_TENSORS_KINDS = frozenset({oir.AttributeType.TENSORS, oir.AttributeType.SPARSE_TENSORS})
