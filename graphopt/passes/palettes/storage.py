"""Codes as standard ONNX stores them, and the nodes that look them up.

A code of n bits is cut into planes of 8, 4, 2 and 1 bits, so that every number of bits from 1 to 8 takes
exactly that much: 6 bits are a plane of 4 and one of 2. A plane of 4 bits is a uint4 tensor from opset 21 on;
otherwise planes are bytes, and a table of 256 rows, one for all palettes of a model, turns each byte into its
2, 4 or 8 codes. The runtime does all that once, when it loads the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir.stream import Matrix, Part, Recipe, produce
from graphopt.ir.tensors import pack, to_array
from graphopt.passes.constants.expressions import Made
from graphopt.passes.palettes.codebook import nearest_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from graphopt.ir.stream import Block
    from graphopt.ir.tensors import Array

    Codes = npt.NDArray[np.uint8]

UINT4_OPSET = 21
"""First version of the default domain with uint4."""

_NODE_BITS = 8 * 110
"""What a node takes in a file, about, in bits."""


@dataclass(frozen=True, eq=False)
class Palette:
    """How one tensor is stored.

    Attributes:
        codebooks: [groups, k] float64; ascending in every row.
        bits: Bits of a code.
        axis: Axis of the channels that scales and groups go by.
        scales: [channels] of the tensor's type, or None.
        group_size: Channels of a group; 0 for one codebook for all.
    """

    codebooks: npt.NDArray[np.float64]
    bits: int
    axis: int = 0
    scales: Array | None = None
    group_size: int = 0

    @property
    def form(self) -> str:
        """What shares a codebook, as reports say it."""
        return "channel" if self.scales is not None else "group" if len(self.codebooks) > 1 else "tensor"

    def nbytes(self, size: int) -> int:
        """Return the bytes that a weight of *size* elements takes as this palette, about."""
        return (size * self.bits + self.overhead_bits()) // 8

    def overhead_bits(self) -> int:
        """Bits that it takes besides the codes, about: codebooks, scales and nodes."""
        nodes = 3 + len(planes(self.bits)) * 2 + (self.scales is not None) + (len(self.codebooks) > 1)
        scales = 0 if self.scales is None else self.scales.size
        return 32 * (self.codebooks.size + scales) + _NODE_BITS * nodes


def planes(bits: int) -> tuple[int, ...]:
    """Return the widths that add up to *bits*, widest first."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def encode(
    tensor: oir.TensorProtocol, palette: Palette, name: str, *, uint4: bool
) -> tuple[oir.TensorProtocol, ...]:
    """Return the planes of the codes of *tensor*; lazy ones where it lies in a file.

    Args:
        tensor: What to store, floating.
        palette: How.
        name: Prefix of the tensors' names.
        uint4: Store planes of 4 bits as uint4 in the tensor's shape.
    """
    dims = tuple(tensor.shape.numpy())
    columns = math.prod(dims[1:])
    # Eight rows are whole bytes in every plane.
    source = Matrix(tensor, dims[0], columns, multiple=8)
    parts = []
    for width in planes(palette.bits):
        if width == 4 and uint4:
            parts.append(Part(oir.DataType.UINT4, dims, columns * width))
        else:
            size = -(-dims[0] * columns * width // 8)
            shape = dims if width == 8 else (size,)
            parts.append(Part(oir.DataType.UINT8, shape, columns * width))

    def transform(block: Block) -> Sequence[Array]:
        codes = codes_of(block.as_float32(), palette, dims, block.start)
        return _cut(codes, palette.bits)

    names = [f"{name}_codes{width}" for width in planes(palette.bits)]
    return produce(Recipe(source, tuple(parts), transform), names)


def codes_of(rows: Array, palette: Palette, dims: tuple[int, ...], start: int = 0) -> Codes:
    """Return the code of every element of some *rows* (indices from *start* on of the first axis), flat."""
    shaped = rows.reshape(-1, *dims[1:])
    if palette.scales is not None:
        scales = along(palette.scales.astype(np.float32), palette.axis, len(dims))
        if palette.axis == 0:
            scales = scales[start : start + len(shaped)]
        shaped = shaped / scales
    books = palette.codebooks
    if len(books) == 1:
        return nearest_codes(shaped.reshape(-1), books[0]).astype(np.uint8)
    codes = np.empty(shaped.shape, np.uint8)
    offset = start if palette.axis == 0 else 0
    moved, values = np.moveaxis(codes, palette.axis, 0), np.moveaxis(shaped, palette.axis, 0)
    for index in range(len(moved)):
        book = books[(index + offset) // palette.group_size]
        moved[index] = nearest_codes(values[index], book)
    return codes.reshape(-1)


def along(vector: Array, axis: int, rank: int) -> Array:
    """Return *vector* in the shape that broadcasts along *axis* of a tensor of that *rank*."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def decoded(codes: Codes, palette: Palette, dims: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return the weight that the runtime computes from *codes*."""
    books: Array = palette.codebooks.astype(dtype)
    weight: Array
    if len(books) == 1:
        weight = books[0][codes].reshape(dims)
    else:
        groups = np.arange(dims[palette.axis]) // palette.group_size
        weight = books[along(groups, palette.axis, len(dims)), codes.reshape(dims)]
    if palette.scales is not None:
        weight = weight * along(palette.scales, palette.axis, len(dims))
    return weight


def rounded(tensor: oir.TensorProtocol, palette: Palette) -> Array:
    """Return the weight that the runtime computes where the codes of *tensor* are the nearest ones."""
    weight = to_array(tensor)
    codes = codes_of(weight.astype(np.float32), palette, weight.shape)
    return decoded(codes, palette, weight.shape, weight.dtype)


def _cut(codes: Codes, bits: int) -> list[Array]:
    cut: list[Array] = []
    left = bits
    for width in planes(bits):
        left -= width
        plane = codes >> np.uint8(left) & np.uint8((1 << width) - 1)
        if width == 8:
            cut.append(plane)
        elif width == 1:
            cut.append(np.packbits(plane, bitorder="little"))
        else:
            cut.append(pack(plane, width))
    return cut


def _table(width: int, shift: int) -> Made:
    """Return the codes in every byte, moved up by *shift* bits: int32, [256, 8 / width]."""
    per_byte = 8 // width
    byte = np.arange(256)[:, None] >> (width * np.arange(per_byte))
    codes = ((byte & ((1 << width) - 1)) << shift).astype(np.uint8)
    return Made("Cast", (codes,), {"to": int(oir.DataType.INT32)})


def table_bytes(bits: int, *, uint4: bool) -> dict[tuple[int, int], int]:
    """Return about how many bytes the tables of palettes of *bits* bits take in a file, each once a model.

    Args:
        bits: Bits of a code.
        uint4: As for :func:`encode`.

    Returns:
        Bytes by (width of the plane, bits below it).
    """
    found, left = {}, bits
    for width in planes(bits):
        left -= width
        if width < 8 and not (width == 4 and uint4):
            found[width, left] = _table(width, left).cost_bytes
    return found


def lookup(
    stored: Sequence[oir.Value], palette: Palette, dims: tuple[int, ...], dtype: npt.DTypeLike, *, uint4: bool
) -> Made:
    """Return the expression that turns planes back into the weight.

    Args:
        stored: The planes, as :func:`encode` makes them.
        palette: What they mean.
        dims: Shape of the weight.
        dtype: Its type.
        uint4: As for :func:`encode`.
    """
    index = _index(stored, palette.bits, dims, uint4=uint4)
    books = palette.codebooks.astype(dtype)
    rank = len(dims)
    if len(books) > 1:
        groups = (
            np.arange(dims[palette.axis], dtype=np.int32) // palette.group_size * np.int32(books.shape[1])
        )
        index = Made("Add", (index, along(groups, palette.axis, rank)))
    weight = Made("Gather", (books.reshape(-1), index), {"axis": 0})
    if palette.scales is None:
        return weight
    return Made("Mul", (weight, along(palette.scales, palette.axis, rank)))


def _index(stored: Sequence[oir.Value], bits: int, dims: tuple[int, ...], *, uint4: bool) -> Made:
    total: Made | None = None
    count, left = math.prod(dims), bits
    to_int32 = {"to": int(oir.DataType.INT32)}
    for plane, width in zip(stored, planes(bits), strict=True):
        left -= width
        part = Made("Cast", (plane,), to_int32)
        if width == 4 and uint4:
            if left:
                part = Made("Mul", (part, np.array(1 << left, np.int32)))
        elif width < 8:
            part = Made("Gather", (_table(width, left), part), {"axis": 0})
            if count * width % 8:
                # The last byte is not full.
                part = Made("Reshape", (part, np.array([-1], np.int64)))
                bounds = (np.array([number], np.int64) for number in (0, count))
                part = Made("Slice", (part, *bounds))
            part = Made("Reshape", (part, np.array(dims, np.int64)))
        total = part if total is None else Made("Add", (total, part))
    assert total is not None
    return total
