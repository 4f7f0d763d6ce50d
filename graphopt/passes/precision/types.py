"""Half-precision types, what fits in them, and which operators take them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as oir

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

HALVES: dict[str, oir.DataType] = {"float16": oir.DataType.FLOAT16, "bfloat16": oir.DataType.BFLOAT16}

_NUMPY: dict[str, Any] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

LARGEST = {"float16": 65504.0, "bfloat16": 255 * 2.0**120}
"""Largest finite number of each type."""

FLOAT_ONLY = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "CumSum", "NonMaxSuppression", "RoiAlign",
    "Resize", "Upsample", "TopK", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    "Multinomial", "Bernoulli", "Range", "MelWeightMatrix", "STFT", "DFT", "Det", "EyeLike", "MaxUnpool",
    "OneHot", "LSTM", "GRU", "RNN", "ArrayFeatureExtractor", "GridSample",
    "BlackmanWindow", "HammingWindow", "HannWindow",
})  # fmt: skip
"""Operators that stay float: their result depends on more digits than a half has, or their type stands in an
attribute, or runtimes have no kernel for halves."""

BOUNDED = frozenset({
    "Softmax", "Sigmoid", "Tanh", "HardSigmoid", "Erf", "Sin", "Cos", "Sign", "ArgMax", "ArgMin",
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
})  # fmt: skip
"""Operators whose result is small whatever their input is: a mask of -1e9 ends here."""

ANY_TYPE = ("Cast", "Shape", "Size")
"""Operators that read a half as well as a float and give the same."""

MOVING = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where", "Relu", "Neg", "Abs", "Max", "Min", "DepthToSpace",
    "SpaceToDepth", "Trilu", "ConstantOfShape", "GatherElements", "GatherND",
})  # fmt: skip
"""Operators that are not worth a Cast of their own."""


def to_half(array: Array, dtype: str, out: Array | None = None) -> Array:
    """Return *array* rounded to nearest, ties to even.

    Args:
        array: Floats.
        dtype: "float16" or "bfloat16".
        out: Where the halves go.
    """
    rounded = np.empty(array.shape, _NUMPY[dtype]) if out is None else out
    with np.errstate(over="ignore", under="ignore"):
        np.copyto(rounded, array, casting="unsafe")
    return rounded


def fits(array: Array, dtype: str) -> bool:
    """Return whether every finite element of *array* stays finite as *dtype*."""
    finite = np.isfinite(array)
    return bool(np.isfinite(to_half(array, dtype).astype(np.float32)[finite]).all()) if array.size else True


@lru_cache(maxsize=4096)
def half_slots(op_type: str, opset: int, dtype: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the type variables of inputs and outputs that may hold *dtype*, or None where none may.

    Args:
        op_type: Operator of the default domain.
        opset: Version of that domain.
        dtype: "float16" or "bfloat16".

    Returns:
        For each formal input and output its type variable where that may hold *dtype*, else ""; the last one
        stands for all further ones where it is variadic.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    allowed = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if f"tensor({dtype})" in constraint.allowed_type_strs
        and "tensor(float)" in constraint.allowed_type_strs
    }
    inputs = tuple(each.type_str if each.type_str in allowed else "" for each in schema.inputs)
    outputs = tuple(each.type_str if each.type_str in allowed else "" for each in schema.outputs)
    return (inputs, outputs) if any(outputs) else None


def slot(slots: tuple[str, ...], index: int) -> str:
    """Return the type variable of input or output *index*."""
    return "" if not slots else slots[min(index, len(slots) - 1)]
