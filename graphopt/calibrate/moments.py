"""Moments that merge by addition: of the channels of a value, and of the rows that a linear operator sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


@dataclass(eq=False)
class ChannelMoments:
    """What the elements of every channel are like, over all feeds and all other axes.

    Attributes:
        count: Elements of one channel.
        minimum: Smallest element; +inf where there is none. [channels] float64
        maximum: Largest element; -inf where there is none. [channels] float64
        total: Sum of the elements. [channels] float64
        total_abs: Sum of the magnitudes. [channels] float64
        total_square: Sum of the squares. [channels] float64
    """

    count: int
    minimum: Floats
    maximum: Floats
    total: Floats
    total_abs: Floats
    total_square: Floats

    @staticmethod
    def of(array: npt.NDArray[Any], axis: int) -> ChannelMoments:
        """Return the moments of one array along *axis*."""
        flat = _channels_first(array, axis)
        channels = flat.shape[0]
        if not flat.shape[1]:
            zeros = np.zeros(channels)
            return ChannelMoments(
                0, np.full(channels, np.inf), np.full(channels, -np.inf), zeros, zeros.copy(), zeros.copy()
            )
        wide = flat.astype(np.float64)
        return ChannelMoments(
            count=flat.shape[1],
            minimum=wide.min(axis=1),
            maximum=wide.max(axis=1),
            total=wide.sum(axis=1),
            total_abs=np.abs(wide).sum(axis=1),
            total_square=np.einsum("cs,cs->c", wide, wide),
        )

    @property
    def min(self) -> Floats:
        """Smallest element of every channel. [channels]."""
        return self.minimum

    @property
    def max(self) -> Floats:
        """Largest element of every channel. [channels]."""
        return self.maximum

    @property
    def mean(self) -> Floats:
        """Mean of every channel; 0 without elements. [channels]."""
        return self.total / max(self.count, 1)

    @property
    def mean_abs(self) -> Floats:
        """Mean magnitude of every channel. [channels]."""
        return self.total_abs / max(self.count, 1)

    @property
    def mean_square(self) -> Floats:
        """Mean square of every channel. [channels]."""
        return self.total_square / max(self.count, 1)

    @property
    def variance(self) -> Floats:
        """Variance of every channel, never negative. [channels]."""
        variance: Floats = np.maximum(self.mean_square - self.mean**2, 0.0)
        return variance

    def __add__(self, other: ChannelMoments) -> ChannelMoments:
        return ChannelMoments(
            count=self.count + other.count,
            minimum=np.minimum(self.minimum, other.minimum),
            maximum=np.maximum(self.maximum, other.maximum),
            total=self.total + other.total,
            total_abs=self.total_abs + other.total_abs,
            total_square=self.total_square + other.total_square,
        )


@dataclass(eq=False)
class Gram:
    """Sum of the outer products of rows, each row with a one behind it.

    Attributes:
        count: Rows seen.
        matrix: Sum of r r^T over rows r = (x, 1): its last row and column are the sums of x, its corner is
            *count*. [d + 1, d + 1] float64
    """

    count: int
    matrix: Floats

    @staticmethod
    def of(rows: npt.NDArray[Any]) -> Gram:
        """Return the Gram matrix of *rows*, [n, d]."""
        wide = np.ones((len(rows), rows.shape[1] + 1))
        wide[:, :-1] = rows
        return Gram(len(rows), wide.T @ wide)

    @property
    def size(self) -> int:
        """Length d of a row, without the one."""
        return len(self.matrix) - 1

    @property
    def mean(self) -> Floats:
        """Mean row. [d]."""
        mean: Floats = self.matrix[-1, :-1] / max(self.count, 1)
        return mean

    @property
    def second_moment(self) -> Floats:
        """Mean of x x^T. [d, d]."""
        moment: Floats = self.matrix[:-1, :-1] / max(self.count, 1)
        return moment

    @property
    def covariance(self) -> Floats:
        """Second moment about the mean. [d, d]."""
        mean = self.mean
        covariance: Floats = self.second_moment - np.outer(mean, mean)
        return covariance

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.count + other.count, self.matrix + other.matrix)


def _channels_first(array: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """Return *array* as [channels, everything else]."""
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(moved.shape[0], -1) if moved.size else np.zeros((moved.shape[0], 0), array.dtype)
