"""Metadata in which exporters say where in somebody's source a thing comes from."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import onnx
import onnx_ir as oir

from graphopt.ir.clone import copy_meta
from graphopt.ir.meta import EXPORTER_TRACES, LEFTOVER_INFOS, peek_meta, peek_props
from graphopt.ir.tensors import SparseTensor, describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.ir import Model


def remove_traces(model: Model) -> int:
    """Remove the traces of exporters from all of *model*, from itself down to tensors; return how many."""
    found = _from_thing(model.store)
    for graph in model.graphs():
        found += _from_thing(graph) + _from_leftovers(graph)
        for value in (*graph.inputs, *graph.initializers.values()):
            found += _from_thing(value)
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value, number = _from_tensor(value.const_value)
                found += number
        for node in graph:
            found += _from_thing(node) + _from_attributes(node)
            for value in node.outputs:
                found += _from_thing(value)
    return found


def _traces(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if any(fnmatchcase(key, pattern) for pattern in EXPORTER_TRACES)]


def _from_thing(thing: oir.Model | oir.Graph | oir.Node | oir.Value) -> int:
    keys = _traces(peek_props(thing))
    for key in keys:
        del thing.metadata_props[key]
    return len(keys)


def _from_tensor(tensor: oir.TensorProtocol) -> tuple[oir.TensorProtocol, int]:
    """Return *tensor*, or another one over the same data: tensors are shared with the models before."""
    if isinstance(tensor, SparseTensor):
        values, one = _from_tensor(tensor.values)
        indices, two = _from_tensor(tensor.indices)
        if not one + two:
            return tensor, 0
        return SparseTensor(values, indices, tuple(tensor.shape.numpy()), name=tensor.name), one + two
    props = dict(peek_props(tensor))
    keys = _traces(props)
    for key in keys:
        del props[key]
    return (describe(tensor, props, tensor.doc_string or "") if keys else tensor), len(keys)


def _from_attributes(node: oir.Node) -> int:
    found = 0
    for name, attribute in list(node.attributes.items()):
        if attribute.type is not oir.AttributeType.TENSOR or attribute.is_ref():
            continue
        tensor, number = _from_tensor(attribute.value)
        if number:
            changed = oir.Attr(name, attribute.type, tensor, doc_string=attribute.doc_string)
            copy_meta(attribute, changed)
            node.attributes[name] = changed
            found += number
    return found


def _from_leftovers(graph: oir.Graph) -> int:
    """Remove them from value_info entries of names that exist nowhere in *graph*."""
    found = 0
    entries = []
    for data in peek_meta(graph).get(LEFTOVER_INFOS, ()):
        info = onnx.ValueInfoProto.FromString(data)
        keys = _traces(entry.key for entry in info.metadata_props)
        kept = [entry for entry in info.metadata_props if entry.key not in keys]
        if keys:
            del info.metadata_props[:]
            info.metadata_props.extend(kept)
        entries.append(info.SerializeToString(deterministic=True))
        found += len(keys)
    if found:
        graph.meta[LEFTOVER_INFOS] = tuple(entries)
    return found
