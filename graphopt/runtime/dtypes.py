"""Element types under their three names: ours (numpy's, ml_dtypes'), onnxruntime's, and ONNX's number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.errors import DataError


@dataclass(frozen=True, slots=True)
class ElementType:
    """One element type.

    Attributes:
        name: Name in specs, errors and .npz files: numpy's or ml_dtypes' name, or "string".
        ort_name: Name inside onnxruntime's type strings: ``tensor(<ort_name>)``.
        number: Value in ``onnx.TensorProto.DataType``.
        bits: Bits of one element as onnxruntime stores it; 0 for strings.
        native: Whether numpy itself has the type, so that onnxruntime takes arrays of it directly.
    """

    name: str
    ort_name: str
    number: int
    bits: int
    native: bool = True

    @property
    def is_float(self) -> bool:
        """Whether the type can hold a fraction, NaN or an exponent."""
        return self.name.startswith(("float", "bfloat"))

    @property
    def is_integer(self) -> bool:
        """Whether the type is a signed or unsigned integer."""
        return self.name.startswith(("int", "uint"))

    def numpy(self) -> np.dtype[Any]:
        """Return the numpy dtype of arrays that hold this type (object for strings).

        Raises:
            DataError: The installed ml_dtypes is too old for the type.
        """
        if self.name == "string":
            return np.dtype(object)
        if self.native:
            return np.dtype(self.name)
        import ml_dtypes

        found = getattr(ml_dtypes, self.name, None)
        if found is None:
            raise DataError(
                f"the installed ml_dtypes {ml_dtypes.__version__} has no type {self.name}",
                hint="Upgrade it with: pip install -U ml_dtypes",
            )
        dtype: np.dtype[Any] = np.dtype(found)
        return dtype


ELEMENT_TYPES = (
    ElementType("float32", "float", 1, 32),
    ElementType("uint8", "uint8", 2, 8),
    ElementType("int8", "int8", 3, 8),
    ElementType("uint16", "uint16", 4, 16),
    ElementType("int16", "int16", 5, 16),
    ElementType("int32", "int32", 6, 32),
    ElementType("int64", "int64", 7, 64),
    ElementType("string", "string", 8, 0),
    ElementType("bool", "bool", 9, 8),
    ElementType("float16", "float16", 10, 16),
    ElementType("float64", "double", 11, 64),
    ElementType("uint32", "uint32", 12, 32),
    ElementType("uint64", "uint64", 13, 64),
    ElementType("complex64", "complex64", 14, 64),
    ElementType("complex128", "complex128", 15, 128),
    ElementType("bfloat16", "bfloat16", 16, 16, native=False),
    ElementType("float8_e4m3fn", "float8e4m3fn", 17, 8, native=False),
    ElementType("float8_e4m3fnuz", "float8e4m3fnuz", 18, 8, native=False),
    ElementType("float8_e5m2", "float8e5m2", 19, 8, native=False),
    ElementType("float8_e5m2fnuz", "float8e5m2fnuz", 20, 8, native=False),
    ElementType("uint4", "uint4", 21, 4, native=False),
    ElementType("int4", "int4", 22, 4, native=False),
    ElementType("float4_e2m1fn", "float4e2m1", 23, 4, native=False),
    ElementType("float8_e8m0fnu", "float8e8m0", 24, 8, native=False),
    ElementType("uint2", "uint2", 25, 2, native=False),
    ElementType("int2", "int2", 26, 2, native=False),
)

_BY_NAME = {each.name: each for each in ELEMENT_TYPES}
_BY_ORT_NAME = {each.ort_name: each for each in ELEMENT_TYPES}
_BY_NUMBER = {each.number: each for each in ELEMENT_TYPES}


def by_name(name: str) -> ElementType:
    """Return the type called *name*; "str", "object" and "bytes" mean strings.

    Raises:
        DataError: ONNX has no such type.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name == "object" or name.startswith(("str", "bytes")):
        return _BY_NAME["string"]
    raise DataError(f"ONNX has no element type {name!r}", hint=f"Known: {', '.join(_BY_NAME)}.")


def by_number(number: int) -> ElementType:
    """Return the type with the value *number* of ``onnx.TensorProto.DataType``.

    Raises:
        DataError: The number is not one of a type.
    """
    if number in _BY_NUMBER:
        return _BY_NUMBER[number]
    raise DataError(f"ONNX has no element type with number {number}")


def by_ort_type(text: str) -> tuple[str, ElementType | None]:
    """Split one of onnxruntime's type strings into its kind and element type.

    >>> by_ort_type("seq(tensor(float))")[0], by_ort_type("tensor(double)")[1].name
    ('sequence', 'float64')

    Returns:
        The kind ("tensor", "sequence", "optional", "map" or "sparse") and the element type; None where the
        type has no single element type that is known here.
    """
    kind = next(
        (
            each
            for prefix, each in (
                ("tensor(", "tensor"),
                ("seq(", "sequence"),
                ("optional(", "optional"),
                ("map(", "map"),
            )
            if text.startswith(prefix)
        ),
        "sparse",
    )
    inner = text.rpartition("tensor(")[2].partition(")")[0]
    return kind, _BY_ORT_NAME.get(inner)


def of_array(array: np.ndarray) -> ElementType:
    """Return the element type of *array*.

    Raises:
        DataError: ONNX has no such type (dates, records, extended precision).
    """
    if array.dtype.kind in "OUS":
        return _BY_NAME["string"]
    return by_name(array.dtype.name)
