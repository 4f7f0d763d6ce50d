"""The canonical form of an ONNX model: equal for two messages exactly where they mean the same model.

Everything is compared field by field, order included, but for these, which have no meaning in ONNX:

* a scalar field that is unset and one that is set to its default (``name: ""``), outside of oneofs;
* the field that a tensor's numbers stand in (``raw_data`` or the typed one);
* the order of ``value_info`` and of ``quantization_annotation``, and a value_info entry given twice alike;
* an operator set imported twice alike.

It shares no code with graphopt: numbers are read by ``onnx.numpy_helper``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

_DATA_FIELDS = {
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "external_data",
    "data_location",
}
# Presence means something here although there is no oneof: stage 0 is not "no stage".
_PRESENCE = {"pipeline_stage"}


def canonical(message: Any, base_dir: Path | None = None) -> Any:
    """Return *message* as nested dicts and lists.

    Args:
        message: A message of onnx.
        base_dir: Where external data is; with it, tensors compare by content wherever they stand. Without it,
            external tensors compare by their entries.
    """
    form: dict[str, Any] = {}
    for field, content in message.ListFields():
        name = field.name
        if isinstance(message, TensorProto) and name in _DATA_FIELDS:
            continue
        if field.message_type is not None:
            if field.is_repeated:
                form[name] = [canonical(item, base_dir) for item in content]
            else:
                form[name] = canonical(content, base_dir)
        elif field.is_repeated:
            form[name] = [_scalar(item) for item in content]
        elif content != field.default_value or field.containing_oneof is not None or name in _PRESENCE:
            form[name] = _scalar(content)
    if isinstance(message, TensorProto):
        form["data"] = _data(message, base_dir)
    for name, key in (("value_info", "name"), ("quantization_annotation", "tensor_name")):
        if name in form:
            unique = {repr(item): item for item in form[name]}
            form[name] = sorted(unique.values(), key=lambda item: (item.get(key, ""), repr(item)))
    if "opset_import" in form:
        form["opset_import"] = list({repr(item): item for item in form["opset_import"]}.values())
    return form


def _scalar(item: Any) -> Any:
    # NaN differs from itself; its bits do not.
    return np.float64(item).tobytes() if isinstance(item, float) else item


def _data(tensor: TensorProto, base_dir: Path | None) -> Any:
    if tensor.data_location == TensorProto.EXTERNAL and base_dir is None:
        return [(entry.key, entry.value) for entry in tensor.external_data]
    if tensor.data_type == TensorProto.STRING:
        return list(tensor.string_data)
    if tensor.data_type == TensorProto.UNDEFINED:
        return None
    return numpy_helper.to_array(tensor, base_dir="" if base_dir is None else str(base_dir)).tobytes()


def difference(first: Any, second: Any, path: str = "") -> str:
    """Return the first place where two canonical forms differ, empty where they are equal."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in (*first, *(key for key in second if key not in first)):
            if key not in first or key not in second:
                return f"{path}.{key}: only in the {'first' if key in first else 'second'}"
            found = difference(first[key], second[key], f"{path}.{key}")
            if found:
                return found
        return ""
    if isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            return f"{path}: {len(first)} entries against {len(second)}"
        for k, pair in enumerate(zip(first, second, strict=True)):
            found = difference(*pair, f"{path}[{k}]")
            if found:
                return found
        return ""
    return "" if first == second else f"{path}: {str(first)[:80]!r} against {str(second)[:80]!r}"


def same_model(first: onnx.ModelProto, second: onnx.ModelProto) -> str:
    """Return the first difference between two models in canonical form, empty where there is none."""
    return difference(canonical(first), canonical(second))
