"""Tensors: frozen arrays, packed low-precision types, sparse tensors, comparison without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

if TYPE_CHECKING:
    import numpy.typing as npt


def freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return *array* as a view that refuses in-place edits."""
    view = array.view()
    view.flags.writeable = False
    return view


def from_array(array: npt.NDArray[Any], name: str = "") -> oir.TensorProtocol:
    """Return a tensor over a frozen view of *array*; ml_dtypes arrays keep their dtype."""
    if array.dtype.kind in "OSU":
        flat = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
        return oir.StringTensor(flat, shape=oir.Shape(array.shape), name=name)
    return oir.Tensor(freeze(np.ascontiguousarray(array).reshape(array.shape)), name=name)


def to_array(tensor: oir.TensorProtocol) -> npt.NDArray[Any]:
    """Return the logical values of *tensor*, read-only; low-precision types as ml_dtypes, strings as objects."""
    if tensor.dtype == oir.DataType.STRING:
        array: npt.NDArray[Any] = np.empty(tensor.shape.numpy(), dtype=object)
        array.reshape(-1)[:] = list(tensor.string_data())  # type: ignore[attr-defined]  # only string tensors get here
        return freeze(array)
    return freeze(np.asarray(tensor.numpy()))


def nbytes(tensor: oir.TensorProtocol) -> int:
    """Return how many bytes *tensor* takes in a file, without reading it."""
    return int(tensor.nbytes)


def is_small(tensor: oir.TensorProtocol, limit: int) -> bool:
    """Return whether *tensor* takes at most *limit* bytes."""
    return nbytes(tensor) <= limit


def is_overridable(value: oir.Value) -> bool:
    """Return whether *value* is an initializer that a caller may replace, being a graph input too."""
    return value.is_initializer() and value.is_graph_input()


def constant_of(value: oir.Value | None) -> oir.TensorProtocol | None:
    """Return the tensor that *value* always holds, or None where it is computed or may be overridden.

    It always holds one where it is an initializer that is no input, or the output of a Constant node.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in {"", "ai.onnx"}:
        return None
    return _constant_node_tensor(node)


def _constant_node_tensor(node: oir.Node) -> oir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name == "value_float":
            return from_array(np.array(attribute.as_float(), np.float32))
        if name == "value_floats":
            return from_array(np.array(attribute.as_floats(), np.float32))
        if name == "value_int":
            return from_array(np.array(attribute.as_int(), np.int64))
        if name == "value_ints":
            return from_array(np.array(attribute.as_ints(), np.int64))
        if name == "value_string":
            text = attribute.value
            return oir.StringTensor([text if isinstance(text, bytes) else text.encode()], shape=oir.Shape([]))
        if name == "value_strings":
            texts = [t if isinstance(t, bytes) else t.encode() for t in attribute.value]
            return oir.StringTensor(texts, shape=oir.Shape([len(texts)]))
    return None


def same_bytes(a: oir.TensorProtocol, b: oir.TensorProtocol) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes (NaN payloads and -0.0 included)."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape.numpy() != b.shape.numpy():
        return False
    if a.dtype == oir.DataType.STRING:
        return list(a.string_data()) == list(b.string_data())  # type: ignore[attr-defined]  # both are string tensors
    return a.tobytes() == b.tobytes()
