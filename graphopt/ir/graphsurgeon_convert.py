"""Element types, dims and attributes, from what GraphSurgeon scripts write to what onnx-ir holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as oir

from graphopt.errors import PassFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs


def element_type(dtype: Any, name: str) -> oir.DataType:  # noqa: ANN401 - numpy's or ONNX's
    """Return the ONNX element type of *dtype*; *name* is the value it stands at, for the error."""
    if isinstance(dtype, int):
        return oir.DataType(dtype)
    resolved = np.dtype(dtype)
    if resolved.kind in "OSUT":
        return oir.DataType.STRING
    try:
        return oir.DataType.from_numpy(resolved)
    except TypeError as error:
        raise PassFailed(f"ONNX has no element type {resolved}", where=f"value {name!r}") from error


def type_of(variable: gs.Variable) -> oir.TypeProtocol:
    """Return the type that a variable with a known element type says."""
    dtype = element_type(variable.dtype, variable.name)
    match variable.type:
        case "tensor_type":
            return oir.TensorType(dtype)
        case "sparse_tensor_type":
            return oir.SparseTensorType(dtype)
        case "sequence_type":
            return oir.SequenceType(oir.TensorType(dtype))
        case "optional_type":
            return oir.OptionalType(oir.TensorType(dtype))
        case other:
            raise PassFailed(f"no value can be of type {other!r}", where=f"value {variable.name!r}")


def dim_of(dim: Any) -> int | str | None:  # noqa: ANN401 - what scripts write
    """Return a dim as onnx-ir takes it; negative numbers are how scripts say unknown."""
    if isinstance(dim, str):
        return dim
    return None if dim is None or int(dim) < 0 else int(dim)


def fits(declared: oir.Shape, dims: Sequence[int]) -> bool:
    """Return whether a tensor of *dims* agrees with a declared shape."""
    return len(declared) == len(dims) and all(
        not isinstance(a, int) or a == b for a, b in zip(declared, dims, strict=True)
    )


def in_export_dtype(constant: gs.Constant, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return *values* in the type that the script asked for with ``export_dtype``."""
    wanted = constant._export_dtype  # noqa: SLF001 - the property falls back to the values' own
    if wanted is None:
        return values
    return values.astype(element_type(wanted, constant.name).numpy())


def reference_type(kind: object) -> oir.AttributeType:
    """Return the type of an attribute that refers to one of the function around it."""
    from onnx_graphsurgeon.util import misc

    return oir.AttributeType(misc.convert_to_onnx_attr_type(kind))


def same_attribute(content: object, old: oir.Attr) -> bool:
    """Return whether a script left the plain attribute *old* as it was."""
    if old.type in {oir.AttributeType.INTS, oir.AttributeType.FLOATS, oir.AttributeType.STRINGS}:
        return isinstance(content, list) and content == list(old.value)
    return type(content) is type(old.value) and content == old.value


def plain_attribute(name: str, content: Any, old: oir.Attr | None, label: str) -> oir.Attr:  # noqa: ANN401 - number, text, list or dtype
    """Return an attribute holding a number, a text, a list of them, or an element type.

    Args:
        name: Its name.
        content: What the script wrote.
        old: The attribute of that name before; decides between kinds that look alike.
        label: The node, for the error.

    Raises:
        PassFailed: No kind of attribute holds *content*.
    """
    if isinstance(content, np.ndarray | np.generic):
        content = content.tolist()
    if isinstance(content, type | np.dtype):
        content = int(element_type(content, name))
    if isinstance(content, range | tuple):
        content = list(content)
    if isinstance(content, list):
        content = [item.item() if isinstance(item, np.generic) else item for item in content]
    kind = None if old is None or old.is_ref() else old.type
    if content == [] and kind in {
        oir.AttributeType.INTS,
        oir.AttributeType.FLOATS,
        oir.AttributeType.STRINGS,
    }:
        return oir.Attr(name, kind, ())
    if kind is oir.AttributeType.FLOAT and isinstance(content, int):
        content = float(content)
    if kind is oir.AttributeType.FLOATS and isinstance(content, list):
        content = [float(item) if isinstance(item, int) else item for item in content]
    try:
        return oir.serde.deserialize_attribute(onnx.helper.make_attribute(name, content))
    except (TypeError, ValueError) as error:
        raise PassFailed(
            f"attribute {name!r} cannot be {type(content).__name__}: {error}", where=label
        ) from error
