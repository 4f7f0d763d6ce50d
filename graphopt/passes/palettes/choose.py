"""The form of a palette: how many bits, one codebook or several, with scales or without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphopt.ir import tensors
from graphopt.ir.stream import Matrix, is_in_file, scan
from graphopt.passes.palettes.codebook import Spacing, make_codebook
from graphopt.passes.palettes.storage import Palette, codes_of, rounded

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir.stream import Block
    from graphopt.passes.palettes.candidates import Candidate

    Floats = npt.NDArray[np.float64]

Granularity = Literal["auto", "tensor", "channel", "group"]

_SAMPLED = 1 << 22
_SAMPLED_IN_MEMORY = 1 << 25
_POINTS = 1 << 20
"""A weight with more elements than the first number where it is in a file, than the second where it is in
memory, is looked at through at most as many of them as the third says; its codes are found for all. Sorting
and summing take a hundred bytes a point: not more than 3 GB where the weight is in memory anyway."""

_REFITS = 3
"""Rounds of codebook and scales; each lessens the error, later ones hardly."""

_DB_PER_BIT = 6.02
"""What one more bit for every element gains in SQNR, by doubling the clusters."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A palette for one weight and what it loses.

    Attributes:
        palette: The palette.
        sqnr_db: Signal to error of the weight, with the importance of its inputs; inf where it is exact.
        exact: Whether it holds the weight bit for bit.
    """

    palette: Palette
    sqnr_db: float
    exact: bool


@dataclass(frozen=True)
class Wish:
    """What the options ask for.

    Attributes:
        bits: Bits of a code, or None for the fewest that reach *sqnr_db*.
        sqnr_db: Least signal to error of a weight where bits are chosen.
        granularity: What shares a codebook.
        group_size: Channels of a group.
        spacing: How the values of a codebook are laid.
    """

    bits: int | None
    sqnr_db: float
    granularity: Granularity
    group_size: int
    spacing: Spacing


def choose(candidate: Candidate, importance: Floats | None, wish: Wish) -> Choice:
    """Return the form for *candidate*.

    Args:
        candidate: A weight with finite elements.
        importance: How much the squared error of each element counts, broadcastable, or None.
        wish: What is asked for.
    """
    dims = candidate.dims
    if candidate.size > (_SAMPLED if is_in_file(candidate.tensor) else _SAMPLED_IN_MEMORY):
        return _choose_sampled(candidate, importance, wish)
    weight = tensors.to_array(candidate.tensor)
    wide = weight.astype(np.float64)
    mass = None if importance is None else np.ascontiguousarray(np.broadcast_to(importance, dims))
    known = exact(candidate, wish)
    if known is not None:
        return known
    if wish.bits is not None:
        return _of_bits(candidate, weight, wide, mass, wish, wish.bits)
    for bits in range(1, 8):
        found = _of_bits(candidate, weight, wide, mass, wish, bits)
        if found.sqnr_db >= wish.sqnr_db:
            return found
    return _of_bits(candidate, weight, wide, mass, wish, 8)


def exact(candidate: Candidate, wish: Wish) -> Choice | None:
    """Return a palette of the very values that the weight has, where the bits suffice for that."""
    wide = tensors.to_array(candidate.tensor).astype(np.float64)
    limit = 1 << (wish.bits or 8)
    sample = np.unique(wide.reshape(-1)[: 4 * limit])
    if len(sample) > limit:
        return None
    values = np.unique(wide)
    if len(values) > limit or (np.signbit(wide) & (wide == 0)).any():
        return None
    bits = max(1, math.ceil(math.log2(len(values))))
    return Choice(Palette(values[None], bits, candidate.axis), math.inf, exact=True)


def _of_bits(
    candidate: Candidate,
    weight: npt.NDArray[np.floating],
    wide: Floats,
    mass: Floats | None,
    wish: Wish,
    bits: int,
) -> Choice:
    size = 1 << bits
    forms: list[Palette] = []
    if wish.granularity in {"auto", "tensor"} or weight.ndim < 2:
        book = make_codebook(wide.reshape(-1), None if mass is None else mass.reshape(-1), size, wish.spacing)
        forms.append(Palette(book[None], bits, candidate.axis))
    if wish.granularity in {"auto", "channel"} and weight.ndim > 1:
        forms.append(_scaled(candidate, weight, wide, mass, wish.spacing, bits))
    if wish.granularity == "group" and weight.ndim > 1:
        forms.append(_grouped(candidate, wide, mass, wish, bits))
    judged = []
    for palette in forms:
        error = (rounded(candidate.tensor, palette).astype(np.float64) - wide) ** 2
        signal = wide**2
        if mass is not None:
            error, signal = error * mass, signal * mass
        total = float(error.sum())
        db = 10 * math.log10(float(signal.sum()) / total) if total > 0 else math.inf
        # Bits spent on scales could be spent on codes as well.
        worth = db - _DB_PER_BIT * palette.overhead_bits() / candidate.size
        judged.append((worth, Choice(palette, db, exact=total == 0)))
    return max(judged, key=lambda pair: pair[0])[1]


def _channels_first(array: Floats, axis: int) -> Floats:
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _scaled(
    candidate: Candidate,
    weight: npt.NDArray[np.floating],
    wide: Floats,
    mass: Floats | None,
    spacing: Spacing,
    bits: int,
) -> Palette:
    """One codebook for all channels, each with a scale of its own; fitted in turns."""
    axis, dims = candidate.axis, candidate.dims
    rows = _channels_first(wide, axis)
    weights = np.ones_like(rows) if mass is None else _channels_first(mass, axis)
    scales = np.sqrt((rows**2).mean(1))
    scales[scales == 0] = 1.0
    palette = Palette(np.zeros((1, 1)), bits, axis)
    for step in range(_REFITS):
        # Errors count as they are in the weight, less strongly than by their square: a channel that is
        # small is often multiplied up again further on.
        counted = weights * scales[:, None]
        normal = rows / scales[:, None]
        book = make_codebook(normal.reshape(-1), counted.reshape(-1), 1 << bits, spacing)
        kept = scales.astype(weight.dtype)
        palette = Palette(book[None], bits, axis, scales=kept)
        if step == _REFITS - 1:
            break
        levels = book[_rows_of(codes_of(weight.astype(np.float32), palette, dims), dims, axis)]
        power = (weights * levels**2).sum(1)
        fitted = (weights * levels * rows).sum(1) / np.where(power > 0, power, 1.0)
        scales = np.where((power > 0) & (fitted > 0), fitted, scales)
    return palette


def _rows_of(codes: npt.NDArray[np.uint8], dims: tuple[int, ...], axis: int) -> npt.NDArray[np.uint8]:
    moved = np.moveaxis(codes.reshape(dims), axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _grouped(candidate: Candidate, wide: Floats, mass: Floats | None, wish: Wish, bits: int) -> Palette:
    rows = _channels_first(wide, candidate.axis)
    weights = None if mass is None else _channels_first(mass, candidate.axis)
    size = 1 << bits
    books = []
    for start in range(0, len(rows), wish.group_size):
        part = slice(start, start + wish.group_size)
        book = make_codebook(
            rows[part].reshape(-1), None if weights is None else weights[part].reshape(-1), size, wish.spacing
        )
        # Where a group has fewer values than codes, the last one fills up.
        books.append(np.concatenate([book, np.full(size - len(book), book[-1])]))
    return Palette(np.array(books), bits, candidate.axis, group_size=wish.group_size)


def _choose_sampled(candidate: Candidate, importance: Floats | None, wish: Wish) -> Choice:
    """Choose one codebook from a part of a large weight."""
    step = -(-candidate.size // _POINTS)
    blocks = scan(Matrix(candidate.tensor, candidate.size, 1), lambda block: _every(block, step))
    sample = np.concatenate(blocks).astype(np.float64)
    mass = None
    if importance is not None:
        places = np.unravel_index(np.arange(0, candidate.size, step), candidate.dims)
        mass = np.broadcast_to(importance, candidate.dims)[places]
    found = Choice(Palette(np.zeros((1, 1)), 8, candidate.axis), 0.0, exact=False)
    for bits in range(1, 9) if wish.bits is None else (wish.bits,):
        book = make_codebook(sample, mass, 1 << bits, wish.spacing)
        palette = Palette(book[None], bits, candidate.axis)
        codes = codes_of(sample.astype(np.float32), palette, (len(sample),))
        errors = (book[codes] - sample) ** 2
        error = float(np.average(errors, weights=mass))
        signal = float(np.average(sample**2, weights=mass))
        db = 10 * math.log10(signal / error) if error > 0 else math.inf
        found = Choice(palette, db, exact=False)
        if db >= wish.sqnr_db:
            break
    return found


def _every(block: Block, step: int) -> npt.NDArray[np.float32]:
    data = block.as_float32().reshape(-1)
    return data[-block.start % step :: step].copy()


def is_constant(tensor: oir.TensorProtocol) -> bool:
    """Return whether all elements of *tensor* are the same, without reading more than it takes."""
    if is_in_file(tensor) and math.prod(tensor.shape.numpy()) > _SAMPLED:
        return False
    array = tensors.to_array(tensor).reshape(-1)
    return bool((array == array[0]).all())
