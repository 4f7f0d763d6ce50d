"""Grids of codes: scales and zero points of groups of weights, rounding to nearest, clipping, refinement.

A block of weights is looked at as [outer, size, inner] groups that share a scale along the middle axis, in
float32. Everything is local to a group, so that blocks of a stream need nothing of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as oir

if TYPE_CHECKING:
    from graphopt.ir.tensors import Array

_RATIOS = tuple(1.0 - 0.04 * step for step in range(16))
"""Shares of the range that clipping tries; below 0.4 even 2-bit grids of Gaussian weights lose."""

_ROUND = np.float32(12582912)

_ROUNDS = 20
_NORM = 0.7
"""Rounds and norm of the half-quadratic refinement, as its authors give them (Badri and Shaji, 2023)."""

_TYPES = {
    (8, True): oir.DataType.INT8,
    (7, True): oir.DataType.INT8,
    (8, False): oir.DataType.UINT8,
    (4, True): oir.DataType.INT4,
    (4, False): oir.DataType.UINT4,
    (2, True): oir.DataType.INT2,
    (2, False): oir.DataType.UINT2,
}


@dataclass(frozen=True, slots=True)
class Grid:
    """How weights become codes.

    Attributes:
        bits: 8, 4 or 2; 7 for codes of a byte that use half of its range.
        symmetric: No zero points: codes are signed, zero is code 0.
        clip: ``mse`` takes the share of each group's range that gives the least squared error.
        refine: ``hqq`` moves scale and codes so that the error with outliers taken out is least.
    """

    bits: int
    symmetric: bool = True
    clip: Literal["none", "mse"] = "none"
    refine: Literal["none", "hqq"] = "none"

    @property
    def dtype(self) -> oir.DataType:
        """Element type of the codes."""
        return _TYPES[self.bits, self.symmetric]

    @property
    def width(self) -> int:
        """Bits that a code takes in a file."""
        return 8 if self.bits == 7 else self.bits

    @property
    def low(self) -> int:
        """Lowest code; with 8 bits the range is symmetric too, as kernels expect."""
        if not self.symmetric:
            return 0
        return 1 - (1 << (self.bits - 1)) if self.bits > 4 else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Highest code."""
        return (1 << (self.bits - self.symmetric)) - 1

    @property
    def is_plain(self) -> bool:
        """Whether scales follow from the extremes alone."""
        return self.clip == "none" and self.refine == "none"

    def fit(self, groups: Array) -> tuple[Array, Array | None]:
        """Return scale and zero point of each group.

        Args:
            groups: float32 [outer, size, inner], all finite.

        Returns:
            float32 [outer, inner] scales, positive, and uint8 zero points or None.
        """
        scale, zero = self.span(groups.min(axis=1), groups.max(axis=1))
        if self.clip == "mse":
            scale, zero = self._clipped(groups)
        if self.refine == "hqq":
            scale, zero = self._refined(groups, scale, zero)
        return scale, zero

    def span(self, least: Array, most: Array, ratio: float = 1.0) -> tuple[Array, Array | None]:
        """Return scales and zero points that cover *ratio* of the range from *least* to *most*."""
        least, most = np.minimum(least, 0), np.maximum(most, 0)
        tiny = np.float32(np.finfo(np.float32).tiny)
        if self.symmetric:
            scale = np.maximum(most, -least) * np.float32(ratio) / np.float32(self.high)
            return np.where(scale < tiny, np.float32(1), scale).astype(np.float32), None
        # Halves first: the width of a range of float32 may be beyond float32.
        width = (most / np.float32(self.high) - least / np.float32(self.high)) * np.float32(ratio)
        scale = np.where(width < tiny, np.float32(1), width).astype(np.float32)
        zero = np.clip(np.rint(-least * np.float32(ratio) / scale), 0, self.high)
        return scale, zero.astype(np.uint8)

    def encode(
        self,
        groups: Array,
        scale: Array,
        zero: Array | None,
        work: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """Return the codes of *groups*, one a byte: int8 or uint8 [outer, size, inner].

        Args:
            groups: As for :meth:`fit`.
            scale: [outer, inner].
            zero: [outer, inner] or None.
            work: float32 of the shape of *groups*, to be overwritten; may be *groups* itself.
            out: Where the codes go: bytes of the shape of *groups*.
        """
        codes = np.empty(groups.shape, np.uint8) if out is None else out
        codes = codes.view(np.int8 if self.symmetric else np.uint8)
        work = np.empty_like(groups) if work is None else work
        # A product with the reciprocal is several times faster than a division, and off by half a code in
        # 2**23; a scale whose reciprocal is beyond float32 is divided by.
        if float(scale.min(initial=1)) > 1e-37:
            np.multiply(groups, (np.float32(1) / scale)[:, None], out=work)
        else:
            np.divide(groups, scale[:, None], out=work)
        if self.symmetric and self.is_plain:
            # All within the range: the sum with 1.5 * 2**23 has the nearest whole number, ties to even, in
            # the low bits of its float; rint and a conversion take three times as long.
            work += _ROUND
            np.copyto(codes, work.view(np.int32), casting="unsafe")
            return codes
        np.rint(work, out=work)
        if zero is not None:
            work += zero[:, None]
        np.clip(work, self.low, self.high, out=work)
        np.copyto(codes, work, casting="unsafe")
        return codes

    def decode(self, codes: Array, scale: Array, zero: Array | None) -> Array:
        """Return what the codes stand for, float32 [outer, size, inner]."""
        steps = codes.astype(np.float32)
        if zero is not None:
            steps -= zero[:, None]
        steps *= scale[:, None]
        return steps

    def _clipped(self, groups: Array) -> tuple[Array, Array | None]:
        least, most = groups.min(axis=1), groups.max(axis=1)
        best = np.full(least.shape, np.inf)
        scale, zero = self.span(least, most)
        for ratio in _RATIOS:
            wide, shift = self.span(least, most, ratio)
            error = self.decode(self.encode(groups, wide, shift), wide, shift)
            error -= groups
            loss = np.square(error, out=error).sum(axis=1, dtype=np.float64)
            better = loss < best
            best = np.where(better, loss, best)
            scale = np.where(better, wide, scale)
            if zero is not None and shift is not None:
                zero = np.where(better, shift, zero)
        return scale, zero

    def _refined(self, groups: Array, scale: Array, zero: Array | None) -> tuple[Array, Array | None]:
        """Half-quadratic: split the error into outliers, shrunk by a norm below one, and the rest.

        Badri and Shaji move the zero point alone, as a float. Codes of ONNX have whole zero points, so here
        the scale is what moves: in each round the least-squares scale of the weights without the outliers. A
        group keeps what it began with where the norm does not fall.
        """
        magnitude = float(np.abs(groups).mean(dtype=np.float64)) or 1.0
        beta, best, kept = 10.0 / magnitude, np.full(scale.shape, np.inf), scale
        for _ in range(_ROUNDS):
            codes = self.encode(groups, scale, zero)
            steps = codes.astype(np.float32)
            if zero is not None:
                steps -= zero[:, None]
            error = groups - steps * scale[:, None]
            size = np.abs(error)
            loss = np.power(size, _NORM).sum(axis=1, dtype=np.float64)
            better = loss < best
            best, kept = np.where(better, loss, best), np.where(better, scale, kept)
            if not better.any():
                break
            with np.errstate(divide="ignore", over="ignore"):
                shrunk = size - np.power(size, _NORM - 1) / np.float32(beta)
            outliers = np.sign(error) * np.maximum(np.where(size > 0, shrunk, 0), 0)
            power = np.square(steps).sum(axis=1, dtype=np.float64)
            fitted = ((groups - outliers) * steps).sum(axis=1, dtype=np.float64) / np.where(power, power, 1)
            scale = np.where((power > 0) & (fitted > 0), fitted, scale).astype(np.float32)
            beta *= 1.01
        return kept, zero
