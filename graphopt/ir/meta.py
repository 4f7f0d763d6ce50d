"""What graphopt remembers about a model beside what onnx-ir has a place for.

Everything stands in the ``meta`` stores of onnx-ir under the keys below, travels with clones, and is written
back by emit. Reading ``.meta`` or ``.metadata_props`` creates an empty store on each of many thousand values;
:func:`peek_meta` and :func:`peek_props` look without creating.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTHING: Mapping[str, Any] = {}

QUANTIZATION = "quant_parameter_tensor_names"
"""Value: its quantization annotation, role -> tensor name (onnx-ir's own key)."""

DECLARED = "graphopt.declared"
"""Value: True where the file lists it in value_info although there may be nothing to say about it."""

EXACT = "graphopt.exact"
"""Value: place ("input", "output", "value_info") -> (entry as emit would write it, entry as it was read)."""

LEFTOVER_INFOS = "graphopt.leftover_infos"
"""Graph: serialized value_info entries for names that exist nowhere in it."""

LEFTOVER_ANNOTATIONS = "graphopt.leftover_annotations"
"""Graph: serialized quantization annotations that no value can carry."""

INFOS_INSIDE = "graphopt.infos_inside"
"""Graph of a function: True where the function itself has value_info, whatever the IR version."""

TENSOR_NAMES = "graphopt.tensor_names"
"""Attribute: names of the tensors in it. Tensors are shared by clones and renamed along with values."""

EXTERNAL_ENTRIES = "graphopt.external_entries"
"""Tensor: (key, value) entries of its external data beside location, offset and length."""

DOMAIN_AS_READ = "graphopt.domain_as_read"
"""Node: ``ai.onnx`` where the file spells the default domain so; onnx-ir makes it the empty string."""

EXPORTER_TRACES = ("pkg.torch.*", "pkg.onnxscript.*", "namespace")
"""Patterns of the metadata in which exporters say where in somebody's source a thing comes from: stack
traces, scopes and rewrite notes, written on every node by torch/onnx/_internal/exporter/_core.py."""


def peek_meta(thing: Any) -> Mapping[str, Any]:  # noqa: ANN401 - model, graph, node, value, attribute or tensor
    """Return the meta store of *thing*, or an empty mapping where it has none yet."""
    store: Mapping[str, Any] | None = getattr(thing, "_metadata", None)
    return _NOTHING if store is None else store


def peek_props(thing: Any) -> Mapping[str, str]:  # noqa: ANN401 - as peek_meta
    """Return the metadata properties of *thing*, or an empty mapping where it has none yet."""
    props: Mapping[str, str] | None = getattr(thing, "_metadata_props", _NOTHING)
    return _NOTHING if props is None else props


def is_bare(thing: Any) -> bool:  # noqa: ANN401 - as peek_meta
    """Return whether *thing* has neither notes nor metadata properties, as nearly everything has none."""
    return not (getattr(thing, "_metadata", None) or getattr(thing, "_metadata_props", None))
