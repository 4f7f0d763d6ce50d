"""Grids of codes: scale and zero point of a tensor, and the arrays that they stand for.

A code q stands for (q - zero_point) * scale, as QuantizeLinear and DequantizeLinear define it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Array = npt.NDArray[Any]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""The smallest normal float32: kernels flush denormal scales to zero and divide by them."""

CODE_RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
}
"""Smallest and largest code by element type."""


def weight_code_range(dtype: str, *, symmetric: bool, reduce_range: bool) -> tuple[int, int]:
    """Return the smallest and largest code of a weight.

    Args:
        dtype: Element type of the codes.
        symmetric: As many codes on either side of the middle one: the lowest is left out.
        reduce_range: Leave out the outer half, for processors whose 8-bit products saturate.
    """
    first, last = CODE_RANGES[dtype]
    if reduce_range:
        first, last = (first + 1) // 2, last // 2
    return (first + 1, last) if symmetric else (first, last)


@dataclass(frozen=True, slots=True)
class Grid:
    """One scale and zero point for a whole tensor.

    Attributes:
        scale: Distance of two codes; a float32 number, normal and positive.
        zero_point: The code of 0.0.
        dtype: Element type of the codes ("uint8").
    """

    scale: float
    zero_point: int
    dtype: str

    @property
    def low(self) -> float:
        """The smallest number on the grid."""
        return (CODE_RANGES[self.dtype][0] - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest number on the grid."""
        return (CODE_RANGES[self.dtype][1] - self.zero_point) * self.scale


def activation_grid(low: float, high: float, dtype: str, *, symmetric: bool = False) -> Grid:
    """Return the grid that covers [low, high] and 0.

    Where nothing is negative the zero point is the lowest code, so that a Relu in front is absorbed.

    Args:
        low: Smallest value to cover, finite.
        high: Largest value to cover, finite.
        dtype: Element type of the codes.
        symmetric: Zero in the middle of the codes: of signed types the lowest code is not used.
    """
    first, last = CODE_RANGES[dtype]
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric and low < 0.0:
        reach = max(-low, high)
        middle = (first + last + 1) // 2
        return Grid(_scale(reach / (last - middle)), middle, dtype)
    if symmetric and first < 0:
        return Grid(_scale(high / last), 0, dtype)
    scale = _scale((high - low) / (last - first))
    zero_point = round(first - low / scale)
    return Grid(scale, int(min(max(zero_point, first), last)), dtype)


def _scale(wanted: float) -> float:
    scale = float(np.float32(wanted))
    return scale if scale >= SMALLEST_SCALE else (1.0 if wanted == 0.0 else SMALLEST_SCALE)


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight on its grid.

    Attributes:
        codes: The codes, of the shape of the weight.
        scales: [channels], or of rank 0 for one scale.
        zero_points: Of the shape of *scales* and the type of *codes*.
        axis: The axis of *scales*; None for one scale.
        saturated: Channels whose scale was raised so that their bias fits.
    """

    codes: Array
    scales: Floats
    zero_points: Array
    axis: int | None
    saturated: int = 0

    def dequantised(self) -> Floats:
        """Return what the codes stand for."""
        scales, zeros = (self._spread(each) for each in (self.scales, self.zero_points))
        return np.asarray((self.codes.astype(np.int32) - zeros.astype(np.int32)) * scales, np.float32)

    def _spread(self, array: Array) -> Array:
        if self.axis is None:
            return array.reshape(())
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return array.reshape(shape)


_LARGEST_BIAS = 2**31 - 256
"""Codes of a bias: int32 with room for the rounding of float32 scales."""


def weight_codes(
    weight: Array,
    axis: int | None,
    dtype: str,
    *,
    symmetric: bool = True,
    bias: Array | None = None,
    input_scale: float = 1.0,
    reduce_range: bool = False,
) -> Codes:
    """Quantise a weight, per channel along *axis*.

    A channel of zeros gets the scale 1. Where the bias of a channel would not fit int32 at the scale
    ``input_scale * scale``, the scale is raised until it does: the weights of such a channel are tiny beside
    its bias, so that what they lose does not show.

    Args:
        weight: Finite numbers.
        axis: The axis of channels; None for one scale.
        dtype: "int8", "uint8" or "int16".
        symmetric: The zero point is the middle code.
        bias: [channels]; None where there is none.
        input_scale: Scale of the activation that the weight is multiplied with.
        reduce_range: Leave out the outer half of the codes, for processors whose 8-bit products saturate.
    """
    first, last = weight_code_range(dtype, symmetric=symmetric, reduce_range=reduce_range)
    values = np.asarray(weight, np.float64)
    others = None if axis is None else tuple(index for index in range(values.ndim) if index != axis)
    if values.size:
        low = np.minimum(np.min(values, axis=others), 0.0)
        high = np.maximum(np.max(values, axis=others), 0.0)
    else:
        low = high = np.zeros(() if axis is None else values.shape[axis])
    if symmetric:
        middle = (first + last) // 2
        scales = np.maximum(-low, high) / (last - middle)
        if step := linear_step(values):
            # A weight that was on a grid before loses nothing where that grid fits the codes.
            scales = np.where((scales > 0.0) & (scales <= step), step, scales)
    else:
        scales = (high - low) / (last - first)
    # A weight whose quotient with its scale would be denormal is as good as zero.
    scales = np.where(scales > 0.0, np.maximum(scales, SMALLEST_SCALE), 1.0)
    raised = 0
    if bias is not None and np.size(bias):
        reach = np.abs(np.asarray(bias, np.float64))
        reach = reach.max() if axis is None else reach
        wanted = reach / (_LARGEST_BIAS * input_scale)
        raised = int(np.count_nonzero(wanted > scales))
        scales = np.maximum(scales, wanted)
    narrow: Floats = np.asarray(scales, np.float32)
    kind = np.dtype(dtype)
    spread = narrow if axis is None else narrow.reshape(_shape(values.ndim, axis))
    if symmetric:
        zeros = np.full(narrow.shape, middle, kind)
    else:
        zeros = np.clip(np.rint(first - low / narrow.astype(np.float64)), first, last).astype(kind)
    offset = zeros if axis is None else zeros.reshape(_shape(values.ndim, axis))
    codes = np.clip(np.rint(values / spread) + offset, first, last).astype(kind)
    return Codes(codes, narrow, zeros, axis, raised)


_MOST_LEVELS = 512


def linear_step(values: Array) -> float:
    """Return the step of the uniform grid that all *values* lie on, or 0.0 where there is none.

    Weights that were quantised once and stored as floats again have few levels, all multiples of one step.
    """
    levels = np.unique(np.abs(values[: min(len(values), 8)] if values.ndim > 1 else values))
    if len(levels) > _MOST_LEVELS:
        return 0.0
    levels = np.unique(np.abs(values))
    if not 2 <= len(levels) <= _MOST_LEVELS:
        return 0.0
    gaps = np.diff(levels)
    gaps = gaps[gaps > levels[-1] * 1e-5]
    if not len(gaps):
        return 0.0
    step = float(gaps.min())
    # The smallest gap is only known to float32; the largest level tells the step most precisely.
    step = float(levels[-1] / max(round(levels[-1] / step), 1))
    multiples = levels / step
    return step if np.abs(multiples - np.rint(multiples)).max() < 1e-2 else 0.0


def bias_codes(bias: Array, input_scale: float, weight: Codes) -> tuple[Array, Floats]:
    """Return a bias as int32 codes, and their scales: input scale times weight scale."""
    scales = np.asarray(np.float32(input_scale) * weight.scales, np.float32)
    codes = np.rint(np.asarray(bias, np.float64) / scales.astype(np.float64))
    return np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32), scales


def _shape(rank: int, axis: int) -> tuple[int, ...]:
    return tuple(-1 if index == axis else 1 for index in range(rank))
