"""Masks of weights as a stream: which elements stay is found block by block, and written so.

A rule says of each block which elements stay. Where that depends on the whole weight (the largest elements or
blocks of it), the least score that stays is found first by counting, sixteen bits of the scores at a time, so
that memory does not grow with the weight. Of equal scores the first in the order of the file stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphopt.ir.stream import Block, Matrix, Part, Recipe, produce, scan
from graphopt.passes.sparsity.masks import back, mask_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.passes.palettes.candidates import Candidate

    Array = npt.NDArray[Any]
    Mask = npt.NDArray[np.bool_]
    Rule = Callable[[Block], Mask]

_COLLECTED = 1 << 20
"""Scores among which the least that stays is looked for in memory; more are counted once more."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which elements stay; the options of sparsify-weights.

    Attributes:
        kind: Single elements, n of m neighbours along the inputs, or blocks.
        sparsity: Share to remove; with n:m the pattern says it.
        nm: Of each *m* neighbours the *n* with the largest score stay.
        block: Rows and inputs of a block.
        scope: What single elements are compared with.
    """

    kind: Literal["unstructured", "n:m", "block"]
    sparsity: float
    nm: tuple[int, int]
    block: tuple[int, int]
    scope: Literal["row", "tensor"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a mask does to a weight.

    Attributes:
        zeros: Elements that are zero afterwards.
        changed: Elements that were not zero before.
    """

    zeros: int
    changed: int


class Sheet:
    """A weight cut into blocks that a pattern can be decided in, and how a block lies in memory.

    Blocks are of whole output channels, or of whole input channels where the weight is the [inputs, outputs]
    matrix of a product; other weights (ConvTranspose, stacks of matrices) are one block.

    Args:
        candidate: The weight.
        pattern: What stays.
        scale: [inputs] by what magnitudes are multiplied, or None.
    """

    def __init__(
        self, candidate: Candidate, pattern: Pattern, scale: npt.NDArray[np.float64] | None = None
    ) -> None:
        self._pattern = pattern
        self._scale = scale
        self.tensor = candidate.tensor
        dims, axis, inputs = list(candidate.dims), candidate.axis, candidate.input_axis
        while axis and inputs != 0 and dims[0] == 1:
            dims, axis, inputs = dims[1:], axis - 1, None if inputs is None else inputs - 1
        self._dims, self._axis, self._inputs = dims, axis, inputs
        self.row_length = math.prod(dims) // dims[axis] if inputs is None else dims[inputs]
        self.rows = math.prod(dims) // max(1, self.row_length)
        # Dims behind those of the channels are positions of a kernel, those in front matrices of a stack.
        self._positions = 1 if inputs is None else math.prod(dims[max(axis, inputs) + 1 :])
        if axis == 0:
            self.form = "rows"
            others = self.rows // dims[0]
            multiple = pattern.block[0] // math.gcd(pattern.block[0], others)
            self.matrix = Matrix(
                self.tensor,
                dims[0],
                math.prod(dims[1:]),
                multiple=multiple if pattern.kind == "block" else 1,
            )
        elif len(dims) == 2 and inputs == 0:
            self.form = "columns"
            multiple = {"n:m": pattern.nm[1], "block": pattern.block[1]}.get(pattern.kind, 1)
            self.matrix = Matrix(self.tensor, dims[0], dims[1], multiple=multiple)
        else:
            self.form = "whole"
            self.matrix = Matrix(self.tensor, 1, math.prod(dims))

    @property
    def kept(self) -> int:
        """How many elements or blocks stay of those that are compared with each other."""
        pattern = self._pattern
        if pattern.kind == "n:m":
            return pattern.nm[0]
        total = self.rows * self.row_length
        if pattern.kind == "block":
            total //= math.prod(pattern.block)
        elif pattern.scope == "row":
            total = self._positions * self.row_length
        return total - round(total * pattern.sparsity)

    def rule(self) -> Rule:
        """Return what stays of each block, looking through the whole weight where that is needed."""
        pattern = self._pattern
        if self.form == "whole" or pattern.kind == "n:m":
            return self._decided_alone
        if pattern.kind == "unstructured" and pattern.scope == "row":
            return self._decided_alone if self.form == "rows" else self._largest_of_columns()
        unit = math.prod(pattern.block) if pattern.kind == "block" else 1
        score = self._block_scores if pattern.kind == "block" else self._scores
        least, last = _least_kept(self.matrix, score, self.kept, unit)

        def stays(piece: Block) -> Mask:
            scores = score(piece)
            first = piece.start * self.matrix.columns // unit
            mask: Mask = scores > least
            if last >= first:
                places = np.arange(first, first + scores.size).reshape(scores.shape)
                mask |= (scores == least) & (places <= last)
            return self._spread(mask, piece) if pattern.kind == "block" else mask

        return stays

    def outcome(self, rule: Rule) -> Outcome:
        """Return what *rule* does, reading the weight once."""

        def count(piece: Block) -> tuple[int, int]:
            is_set = piece.data != 0
            stays = rule(piece).reshape(is_set.shape)
            return int((~(is_set & stays)).sum()), int((is_set & ~stays).sum())

        found = scan(self.matrix, count)
        return Outcome(sum(zeros for zeros, _ in found), sum(changed for _, changed in found))

    def masked(self, rule: Rule, name: str) -> oir.TensorProtocol:
        """Return the weight with zeros where *rule* lets nothing stay: lazy where it lies in a file."""
        dims = tuple(self.tensor.shape.numpy())
        unit = self.matrix.multiple * self.matrix.columns * self.tensor.dtype.itemsize

        def transform(piece: Block) -> tuple[Array]:
            made = piece.scratch.array("masked", piece.data.shape, piece.data.dtype)
            made[...] = 0
            np.copyto(made, piece.data, where=rule(piece).reshape(piece.data.shape))
            return (made,)

        (tensor,) = produce(
            Recipe(self.matrix, (Part(self.tensor.dtype, dims, int(unit)),), transform), (name,)
        )
        return tensor

    # Scores ---------------------------------------------------------------------------------------------

    def _native(self, piece: Block) -> Array:
        """Return a block with the axes of the weight."""
        if self.form == "columns":
            return piece.data
        if self.form == "whole":
            return piece.data.reshape(self._dims)
        return piece.data.reshape(-1, *self._dims[1:])

    def _scores(self, piece: Block) -> Array:
        """Return the importance of each element, with the axes of the weight."""
        magnitudes = np.abs(self._native(piece))
        if self._scale is None:
            return magnitudes
        assert self._inputs is not None
        shape = [1] * magnitudes.ndim
        shape[self._inputs] = magnitudes.shape[self._inputs]
        start = piece.start if self.form == "columns" else 0
        return magnitudes * self._scale[start : start + shape[self._inputs]].reshape(shape)

    def _block_scores(self, piece: Block) -> Array:
        """Return the squared sum of each block of the pattern, [rows / high, inputs / wide]."""
        high, wide = self._pattern.block
        rows = rows_of(self._scores(piece), self._axis, self._inputs)
        squares = np.square(rows, dtype=np.float64)
        sums: Array = squares.reshape(len(rows) // high, high, -1, wide).sum((1, 3))
        return sums

    def _spread(self, mask: Mask, piece: Block) -> Mask:
        high, wide = self._pattern.block
        rows = np.repeat(np.repeat(mask, high, 0), wide, 1)
        return back(rows, self._native(piece).shape, self._axis, self._inputs)

    def _decided_alone(self, piece: Block) -> Mask:
        pattern = self._pattern
        scores = self._scores(piece)
        mask = mask_of(
            rows_of(scores, self._axis, self._inputs),
            pattern.sparsity,
            pattern=pattern.kind,
            nm=pattern.nm,
            block=pattern.block,
            scope=pattern.scope,
            positions=self._positions,
        )
        return back(mask, scores.shape, self._axis, self._inputs)

    def _largest_of_columns(self) -> Rule:
        """Keep the largest of each column; their least, and the last of those equal to it, fit in memory."""
        length, kept = self.matrix.rows, self.kept
        found = scan(
            Matrix(self.tensor, length, self.matrix.columns, axis=1),
            lambda piece: _least_of_columns(self._scores(Block(piece.data, 0, piece.scratch)), kept),
        )
        least, last = (np.concatenate(each) for each in zip(*found, strict=True))

        def stays(piece: Block) -> Mask:
            scores = self._scores(piece)
            places = np.arange(piece.start, piece.start + len(scores))[:, None]
            mask: Mask = (scores > least) | ((scores == least) & (places <= last))
            return mask

        return stays


def _least_of_columns(scores: Array, kept: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return the least score that stays of each column, and the last row where that score stays."""
    length, columns = scores.shape
    if not kept:
        return np.full(columns, np.inf), np.full(columns, -1)
    least = np.partition(scores, length - kept, axis=0)[length - kept]
    missing = kept - (scores > least).sum(axis=0)
    equal = scores == least
    last = np.full(columns, length)
    for column in np.flatnonzero(equal.sum(axis=0) > missing):
        last[column] = np.flatnonzero(equal[:, column])[missing[column] - 1]
    return least, last


def _least_kept(matrix: Matrix, score: Callable[[Block], Array], kept: int, unit: int) -> tuple[float, int]:
    """Return the least score of the *kept* largest, and the place of the last one equal to it that stays.

    Args:
        matrix: What is scored.
        score: Non-negative scores of a block, in order of their places.
        kept: How many stay.
        unit: Elements that a score stands for.

    Returns:
        The score, infinite where nothing stays, and a place counted in scores.
    """
    if not kept:
        return math.inf, -1
    low, width, dtype = 0, None, np.dtype(np.float64)
    missing, count = kept, 0
    while width is None or width:
        above = low, width
        found = scan(matrix, lambda piece, above=above: _counted(score(piece), *above))  # type: ignore[misc]
        dtype, shift = found[0][0], found[0][1]
        counts = np.sum([each for _, _, each in found], axis=0)
        # From the top: how many lie in higher buckets, and in which one the last that stays lies.
        beyond = np.cumsum(counts[::-1]) - counts[::-1]
        bucket = len(counts) - 1 - int(np.flatnonzero(beyond < missing)[-1])
        missing -= int(beyond[len(counts) - 1 - bucket])
        low, width, count = low + (bucket << shift), shift, int(counts[bucket])
        if width and count <= _COLLECTED:
            among = scan(matrix, partial(_within, score=score, low=low, width=width))
            keys = np.sort(np.concatenate(among))[::-1]
            low, width = int(keys[missing - 1]), 0
            missing -= int((keys > low).sum())
            count = int((keys == low).sum())
    least = float(np.array(low, f"u{dtype.itemsize}").view(dtype))
    return least, _last_of(matrix, score, least, missing, unit) if missing < count else matrix.tensor.size


def _keys(scores: Array) -> Array:
    """Return whole numbers in the order of non-negative *scores*."""
    return np.ascontiguousarray(scores).reshape(-1).view(f"u{scores.dtype.itemsize}")


def _counted(scores: Array, low: int, width: int | None) -> tuple[np.dtype[Any], int, Array]:
    """Count keys by their 16 highest bits, or by the next 16 of those between *low* and *low* + 2**width."""
    keys = _keys(scores)
    if width is None:
        width = 8 * scores.dtype.itemsize - 1  # the sign is 0
    else:
        keys = keys[(keys >= low) & (keys <= low + ((1 << width) - 1))] - keys.dtype.type(low)
    shift = max(0, width - 16)
    counts = np.bincount((keys >> keys.dtype.type(shift)).astype(np.int64), minlength=1 << (width - shift))
    return scores.dtype, shift, counts


def _within(piece: Block, *, score: Callable[[Block], Array], low: int, width: int) -> Array:
    keys = _keys(score(piece))
    found: Array = keys[(keys >= low) & (keys <= low + ((1 << width) - 1))]
    return found


def _last_of(matrix: Matrix, score: Callable[[Block], Array], least: float, missing: int, unit: int) -> int:
    """Return the place of score number *missing* of those equal to *least*."""
    starts = [start for start, _ in matrix.spans()]
    counts = np.cumsum(scan(matrix, lambda piece: int((score(piece) == least).sum())))
    index = int(np.searchsorted(counts, missing))
    wanted, before = starts[index], int(counts[index - 1]) if index else 0

    def place(piece: Block) -> int:
        if piece.start != wanted:
            return 0
        inside = np.flatnonzero(score(piece).reshape(-1) == least)[missing - before - 1]
        return piece.start * matrix.columns // unit + int(inside)

    return max(scan(matrix, place))
