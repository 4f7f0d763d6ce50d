"""Recipes that turn a stored weight into codes and scales, block by block; see graphopt.ir.stream.

Two layouts. ``columns``: a matrix [rows, columns] whose groups run down the rows, one scale a group and
column, as DequantizeLinear in front of MatMul wants it; ``turned`` reads it from its transpose. ``lines``:
each row has its own groups, as a convolution, a table or MatMulNBits wants it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir.stream import Block, Matrix, Part, Recipe, is_finite, produce, scan
from graphopt.ir.tensors import from_array, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir.tensors import Array
    from graphopt.passes.weights.grid import Grid

_TURNED_LINES = 128


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight as codes.

    Attributes:
        codes: The codes.
        scale: float32.
        zero: Zero points of the type of the codes, or None.
    """

    codes: oir.TensorProtocol
    scale: oir.TensorProtocol
    zero: oir.TensorProtocol | None

    @property
    def nbytes(self) -> int:
        """Bytes that all of it takes in a file."""
        return sum(each.nbytes for each in (self.codes, self.scale, self.zero) if each is not None)


class Unfit(Exception):  # noqa: N818 - an answer, not a failure; it never leaves the family
    """A weight stays as it is, for the reason given."""


class NotFinite(Unfit):
    """A weight holds NaN or infinities."""

    def __init__(self) -> None:
        super().__init__("it holds NaN or infinities")


def require_finite(tensor: oir.TensorProtocol) -> None:
    """Raise where a weight cannot be rounded.

    Raises:
        NotFinite: It holds NaN or infinities.
    """
    if not is_finite(tensor):
        raise NotFinite


def by_columns(
    tensor: oir.TensorProtocol,
    rows: int,
    columns: int,
    grid: Grid,
    block: int,
    *,
    turned: bool = False,
    apart: bool = False,
) -> Codes:
    """Return [rows, columns] codes with a scale for every *block* rows of a column.

    Args:
        tensor: [rows, columns], or [columns, rows] where *turned*.
        rows: Length of what is contracted.
        columns: Number of outputs.
        grid: How to round.
        block: Rows that share a scale.
        turned: Whether the tensor is the transpose.
        apart: Give the groups, which must be whole, a dim of their own: codes [groups, block, columns] and
            scales [groups, 1, columns].
    """
    require_finite(tensor)
    groups = -(-rows // block)
    dims = (groups, block, columns) if apart else (rows, columns)
    scale_dims = (groups, 1, columns) if apart else (groups, columns)
    # Zero points of several groups may share a byte.
    multiple = block * (1 if grid.symmetric else 8 // grid.width)
    matrix = (
        Matrix(tensor, columns, rows, axis=1, multiple=multiple)
        if turned
        else Matrix(tensor, rows, columns, multiple=multiple)
    )

    def transform(piece: Block) -> Sequence[Array]:
        data = _as_rows(piece, turned=turned)
        folded = _padded(data, block).reshape(-1, block, columns)
        scale, zero = grid.fit(folded)
        codes = _encode(piece, grid, folded, scale, zero)
        flat = codes.reshape(-1, columns)[: len(data)]
        return _parts(piece, grid, flat, scale, zero)

    unit = multiple * columns * grid.width // 8
    parts = [
        Part(grid.dtype, dims, unit),
        Part(oir.DataType.FLOAT, scale_dims, multiple // block * columns * 4),
    ]
    if not grid.symmetric:
        parts.append(Part(grid.dtype, scale_dims, multiple // block * columns * grid.width // 8))
    return _codes(Recipe(matrix, tuple(parts), transform))


def by_column(
    tensor: oir.TensorProtocol,
    rows: int,
    columns: int,
    grid: Grid,
    *,
    turned: bool = False,
    run: int = 1,
    dims: tuple[int, ...] | None = None,
    scale_dims: tuple[int, ...] | None = None,
) -> Codes:
    """Return [rows, columns] codes with one scale a column; the scales, [columns], are computed now.

    Args:
        tensor: [rows, columns], or [columns, rows] where *turned*.
        rows: Length of what is contracted.
        columns: Number of columns.
        grid: How to round.
        turned: Whether the tensor is the transpose.
        run: Columns side by side that share a scale: positions of a kernel.
        dims: Shape of the codes, where it is not [rows, columns].
        scale_dims: Shape of the scales, where it is not [columns / run].
    """
    if turned or not grid.is_plain:
        require_finite(tensor)
        matrix = (
            Matrix(tensor, columns, rows) if turned else Matrix(tensor, rows, columns, axis=1, multiple=run)
        )

        def fit(piece: Block) -> tuple[Array, Array | None]:
            data = piece.as_float32()
            groups = (
                data[:, :, None]
                if turned
                else data.reshape(rows, -1, run).transpose(0, 2, 1).reshape(1, rows * run, -1)
            )
            scale, zero = grid.fit(groups)
            return scale.reshape(-1), None if zero is None else zero.reshape(-1)

        found = scan(matrix, fit)
        scale = np.concatenate([part for part, _ in found])
        zeros = [part for _, part in found if part is not None]
        zero = np.concatenate(zeros) if zeros else None
    else:
        extremes = scan(
            Matrix(tensor, rows, columns),
            lambda piece: (piece.as_float32().min(axis=0), piece.as_float32().max(axis=0)),
        )
        least = np.min([low for low, _ in extremes], axis=0).reshape(-1, run).min(axis=1)
        most = np.max([high for _, high in extremes], axis=0).reshape(-1, run).max(axis=1)
        if not (np.isfinite(least).all() and np.isfinite(most).all()):
            raise NotFinite  # the extremes tell; no need to read everything once more
        scale, zero = grid.span(least, most)
    # Columns of 4-bit codes may share a byte across rows.
    multiple = 8 // grid.width
    matrix = (
        Matrix(tensor, columns, rows, axis=1, multiple=multiple)
        if turned
        else Matrix(tensor, rows, columns, multiple=multiple)
    )

    wide, shift = (
        None if each is None else np.repeat(each, run)[None] if run > 1 else each[None]
        for each in (scale, zero)
    )
    assert wide is not None

    def transform(piece: Block) -> Sequence[Array]:
        codes = _encode(piece, grid, _as_rows(piece, turned=turned)[None], wide, shift)
        return (_stored(piece, codes, grid.width),)

    shape = (rows, columns) if dims is None else dims
    (codes,) = produce(
        Recipe(matrix, (Part(grid.dtype, shape, multiple * columns * grid.width // 8),), transform),
        ("codes",),
    )
    shape = (columns // run,) if scale_dims is None else scale_dims
    return Codes(
        codes,
        from_array(scale.reshape(shape)),
        None if zero is None else stored_zero(zero.reshape(shape), grid),
    )


def by_lines(
    tensor: oir.TensorProtocol,
    lines: int,
    length: int,
    grid: Grid,
    block: int,
    dims: tuple[int, ...],
    scale_dims: tuple[int, ...],
) -> Codes:
    """Return codes of a tensor seen as [lines, length], with a scale for every *block* elements of a line.

    Args:
        tensor: ``lines * length`` elements.
        lines: Number of lines.
        length: Elements of a line, a multiple of *block*.
        grid: How to round.
        block: Elements that share a scale.
        dims: Shape of the codes.
        scale_dims: Shape of scales and zero points.
    """
    require_finite(tensor)
    groups = length // block
    multiple = math.lcm(
        8 // grid.width // math.gcd(8 // grid.width, length),
        1 if grid.symmetric else 8 // grid.width // math.gcd(8 // grid.width, groups),
    )

    def transform(piece: Block) -> Sequence[Array]:
        folded = piece.as_float32().reshape(-1, block, 1)
        scale, zero = grid.fit(folded)
        return _parts(piece, grid, _encode(piece, grid, folded, scale, zero), scale, zero)

    parts = [
        Part(grid.dtype, dims, multiple * length * grid.width // 8),
        Part(oir.DataType.FLOAT, scale_dims, multiple * groups * 4),
    ]
    if not grid.symmetric:
        parts.append(Part(grid.dtype, scale_dims, multiple * groups * grid.width // 8))
    return _codes(Recipe(Matrix(tensor, lines, length, multiple=multiple), tuple(parts), transform))


def for_nbits(
    tensor: oir.TensorProtocol, rows: int, columns: int, grid: Grid, block: int, *, turned: bool = False
) -> Codes:
    """Return the inputs of com.microsoft.MatMulNBits.

    Codes are bytes [columns, groups, bytes of a block], scales [columns, groups]. Zero points are bytes too,
    [columns, groups * bits / 8]; without them the middle code is zero.
    """
    require_finite(tensor)
    groups = -(-rows // block)
    per_byte = 8 // grid.width
    matrix = Matrix(tensor, columns, rows) if turned else Matrix(tensor, rows, columns, axis=1)
    middle = 1 << (grid.bits - 1)

    def transform(piece: Block) -> Sequence[Array]:
        data = piece.as_float32()
        lines = data if turned else _as_rows(piece, turned=True)
        padded = np.pad(lines, ((0, 0), (0, groups * block - rows)))
        folded = padded.reshape(-1, block, 1)
        scale, zero = grid.fit(folded)
        codes = grid.encode(folded, scale, zero)
        unsigned = codes.astype(np.int16) + middle if grid.symmetric else codes
        made = [_stored(piece, unsigned.astype(np.uint8), grid.width), scale]
        if zero is not None:
            per_line = zero.reshape(len(lines), groups)
            filled = np.pad(per_line, ((0, 0), (0, -groups % per_byte)))
            made.append(filled if grid.width == 8 else pack(filled, grid.width))
        return made

    size = block * grid.width // 8
    parts = [
        Part(oir.DataType.UINT8, (columns, groups, size), groups * size),
        Part(oir.DataType.FLOAT, (columns, groups), groups * 4),
    ]
    if not grid.symmetric:
        width = -(-groups // per_byte)
        parts.append(Part(oir.DataType.UINT8, (columns, width), width))
    return _codes(Recipe(matrix, tuple(parts), transform))


def stored_zero(zero: Array, grid: Grid) -> oir.TensorProtocol:
    """Return zero points as a tensor of the type of the codes."""
    dims = oir.Shape(zero.shape)
    if grid.width == 8:
        return from_array(zero)
    return oir.PackedTensor(pack(zero, grid.width), grid.dtype, shape=dims)


def _codes(recipe: Recipe) -> Codes:
    made = produce(recipe, ("codes", "scale", "zero")[: len(recipe.parts)])
    return Codes(made[0], made[1], made[2] if len(made) > 2 else None)


def _parts(piece: Block, grid: Grid, codes: Array, scale: Array, zero: Array | None) -> list[Array]:
    made = [_stored(piece, codes, grid.width), scale]
    if zero is not None:
        made.append(zero if grid.width == 8 else pack(zero, grid.width))
    return made


def _stored(piece: Block, codes: Array, bits: int) -> Array:
    """Return the bytes of *codes* as a file holds them, in a buffer."""
    if bits == 8:
        return codes
    size = -(-codes.size * bits // 8)
    work = piece.scratch.array("packing", (2 * size * 8 // bits,), np.uint8)
    return pack(codes, bits, work=work, out=piece.scratch.array("packed", (size,), np.uint8))


def _as_rows(piece: Block, *, turned: bool) -> Array:
    data = piece.as_float32()
    if not turned:
        return data
    return _turned(data, piece.scratch.array("turned", data.shape[::-1], np.float32))


def _turned(data: Array, out: Array) -> Array:
    """Put the transpose of *data* into *out*, by pieces whose lines all stay in cache."""
    for start in range(0, len(data), _TURNED_LINES):
        out[:, start : start + _TURNED_LINES] = data[start : start + _TURNED_LINES].T
    return out


def _padded(data: Array, block: int) -> Array:
    missing = -len(data) % block
    return np.pad(data, ((0, missing), (0, 0))) if missing else data


def _encode(piece: Block, grid: Grid, groups: Array, scale: Array, zero: Array | None) -> Array:
    """Return the codes of *groups*, which are overwritten where they lie in a buffer, in another buffer."""
    out = piece.scratch.array("codes", groups.shape, np.uint8)
    return grid.encode(groups, scale, zero, piece.work(groups), out)
