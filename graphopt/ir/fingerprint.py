"""A hash of a model's structure and of the identity of its tensors, in time linear in the nodes.

Large tensors count by identity, not by content: a pass that swaps a weight puts a new tensor object in its
place, and reading gigabytes to learn that nothing changed would defeat the purpose. Identities are numbers
handed out in order of first sight by a registry that all clones of a model share, so the same model put
through the same pipeline has the same fingerprints in every process.
"""

from __future__ import annotations

import hashlib
import marshal
import weakref
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from graphopt.ir.model import Model

_SMALL_BYTES = 1024
# marshal format 2 has no back references and no interning flags, so equal values give equal bytes.
_MARSHAL_VERSION = 2


class TensorRegistry:
    """Hands out a stable key for each tensor: its content where small, else a number by identity."""

    def __init__(self) -> None:
        self._keys: dict[int, tuple[weakref.ref[Any], object]] = {}
        self._next = 0

    def key(self, tensor: oir.TensorProtocol) -> object:
        """Return the key of *tensor*, the same for as long as the object lives."""
        entry = self._keys.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        key = self._make_key(tensor)
        self._keys[id(tensor)] = (weakref.ref(tensor), key)
        return key

    def _make_key(self, tensor: oir.TensorProtocol) -> object:
        if isinstance(tensor, oir.ExternalTensor):
            facts = (tensor.path, tensor.offset or 0, tensor.length or 0)
            return ("external", int(tensor.dtype), tuple(tensor.shape.numpy()), facts)
        shape = tuple(tensor.shape.numpy())
        if isinstance(tensor, oir.StringTensor):
            if tensor.nbytes <= _SMALL_BYTES:
                return ("strings", shape, tuple(tensor.string_data()))
        elif tensor.nbytes <= _SMALL_BYTES:
            return ("bytes", int(tensor.dtype), shape, tensor.tobytes())
        self._next += 1
        return ("tensor", int(tensor.dtype), shape, self._next)


def fingerprint(model: Model) -> str:
    """Return 32 hex digits that change whenever anything that would be emitted changes."""
    digest = hashlib.blake2b(digest_size=16)
    walk = _Walk(model.registry)
    store = model.store
    header = (
        store.ir_version,
        store.producer_name or "",
        store.producer_version or "",
        store.domain or "",
        store.model_version or 0,
        store.doc_string or "",
        _props(store.metadata_props),
        repr(store.device_configurations),
    )
    digest.update(marshal.dumps(header, _MARSHAL_VERSION))
    for part in walk.graph(store.graph):
        digest.update(marshal.dumps(part, _MARSHAL_VERSION))
    for identifier, function in store.functions.items():
        digest.update(marshal.dumps((identifier, walk.attributes(function.attributes)), _MARSHAL_VERSION))
        for part in walk.graph(function.graph):
            digest.update(marshal.dumps(part, _MARSHAL_VERSION))
    return digest.hexdigest()


def _props(props: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(props.items())) if props else ()


class _Walk:
    def __init__(self, registry: TensorRegistry) -> None:
        self._registry = registry

    def graph(self, graph: oir.Graph) -> Iterable[object]:
        yield (
            graph.name or "",
            graph.doc_string or "",
            _props(graph.metadata_props),
            tuple(graph.opset_imports.items()),
            tuple(self.value(value) for value in graph.inputs),
            tuple(self.value(value) for value in graph.outputs),
        )
        for value in graph.initializers.values():
            yield (self.value(value), self.tensor(value.const_value))
        for node in graph:
            yield self.node(node)

    def node(self, node: oir.Node) -> tuple[object, ...]:
        return (
            node.domain,
            node.op_type,
            node.overload,
            node.name or "",
            node.doc_string or "",
            tuple([None if value is None else value.name for value in node.inputs]),
            tuple([self.value(value) for value in node.outputs]),
            self.attributes(node.attributes) if node.attributes else (),
            _props(node.metadata_props),
            repr(node.device_configurations) if node.device_configurations else "",
        )

    def value(self, value: oir.Value) -> tuple[object, ...]:
        shape = value.shape
        return (
            value.name or "",
            None if value.type is None else self.type(value.type),
            None
            if shape is None
            else tuple([dim if isinstance(dim, int) else ("", dim.value) for dim in shape.dims]),
            value.doc_string or "",
            _props(value.metadata_props),
            tuple(sorted(quant.items())) if (quant := value.meta.get("quant_parameter_tensor_names")) else (),
        )

    def type(self, type_: Any) -> object:
        inner = type_.elem_type
        return (
            type(type_).__name__,
            type_.denotation or "",
            int(inner) if isinstance(inner, oir.DataType) else self.type(inner),
        )

    def tensor(self, tensor: oir.TensorProtocol | None) -> object:
        if tensor is None:
            return None
        return (self._registry.key(tensor), tensor.doc_string or "", _props(tensor.metadata_props))

    def attributes(self, attributes: Mapping[str, oir.Attr]) -> tuple[object, ...]:
        return tuple([self.attribute(attribute) for attribute in attributes.values()])

    def attribute(self, attribute: oir.Attr) -> tuple[object, ...]:
        kind = attribute.type
        value = attribute.value
        content: object
        if attribute.is_ref() or value is None:
            content = None
        elif kind is oir.AttributeType.GRAPH:
            content = tuple(self.graph(value))
        elif kind is oir.AttributeType.GRAPHS:
            content = tuple(tuple(self.graph(graph)) for graph in value)
        elif kind is oir.AttributeType.TENSOR:
            content = (value.name or "", self.tensor(value))
        elif kind is oir.AttributeType.TENSORS:
            content = tuple((tensor.name or "", self.tensor(tensor)) for tensor in value)
        elif kind in {oir.AttributeType.TYPE_PROTO, oir.AttributeType.TYPE_PROTOS}:
            content = repr(value)
        else:
            content = value
        return (
            attribute.name,
            int(kind),
            attribute.ref_attr_name or "",
            attribute.doc_string or "",
            content,
        )
