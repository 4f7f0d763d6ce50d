"""The moments of the groups of a convolution side by side: a depthwise one has hundreds of small systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.errors import DataError
from graphopt.recover.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from graphopt.recover.moments import Matrix

    Bools = npt.NDArray[np.bool_]


LARGEST = 128
"""Columns of a group up to which groups are taken together: wider ones gain nothing from it, and would take
memory all at once."""


class GroupedMoments:
    """Moments of so many groups, taken in at once.

    Args:
        groups: Number of groups.
        rows: Columns of a row that one group reads.
        targets: Columns of a target that it makes.

    Attributes:
        each: The moments of each group.
    """

    def __init__(self, groups: int, rows: int, targets: int) -> None:
        self._sums = (
            np.zeros((groups, rows)),
            np.zeros((groups, targets)),
            np.zeros((groups, rows, rows)),
            np.zeros((groups, rows, targets)),
            np.zeros((groups, targets)),
        )
        # Views: what is added to all of them is added to each.
        self.each = [Moments(0, *parts) for parts in zip(*self._sums, strict=True)]

    def add(self, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """Take in [n, groups * d] rows and their [n, groups * m] targets, as :meth:`Moments.add` does.

        Raises:
            DataError: The shapes do not belong together.
        """
        groups = len(self.each)
        d, m = self.each[0].columns, self.each[0].outputs
        if groups == 1:
            self.each[0].add(rows, targets)
            return
        n = len(rows)
        if rows.shape != (n, groups * d) or targets.shape != (n, groups * m):
            raise DataError(
                f"rows {list(rows.shape)} and targets {list(targets.shape)}; expected as many of each, with "
                f"{groups * d} and {groups * m} columns"
            )
        if not n:
            return
        if d > LARGEST:
            for group, moments in enumerate(self.each):
                moments.add(rows[:, group * d : (group + 1) * d], targets[:, group * m : (group + 1) * m])
            return
        rows_sum, targets_sum, gram, cross, energy = self._sums
        with np.errstate(over="ignore", invalid="ignore"):
            x, x_near, x_rest = _moved(rows, groups)
            y, y_near, y_rest = _moved(targets, groups)
            x_sum, y_sum = n * x_near + x_rest, n * y_near + y_rest
            rows_sum += x_sum
            targets_sum += y_sum
            turned = x.transpose(0, 2, 1)
            gram += turned @ x + _outer(x_rest, x_near) + _outer(x_near, x_sum)
            cross += turned @ y + _outer(x_rest, y_near) + _outer(x_near, y_sum)
            energy += np.einsum("gnm,gnm->gm", y, y, dtype=np.float64) + (y_rest + y_sum) * y_near
        for moments in self.each:
            moments.count += n


def _moved(array: npt.NDArray[Any], groups: int) -> tuple[npt.NDArray[Any], Matrix, Matrix]:
    """Return [groups, n, c] of *array* less its mean, the mean as its type has it, and the sum left."""
    mean = array.mean(axis=0, dtype=np.float64).astype(array.dtype)
    moved = array - mean
    rest = moved.sum(axis=0, dtype=np.float64)
    apart = np.ascontiguousarray(moved.reshape(len(array), groups, -1).transpose(1, 0, 2))
    return apart, mean.astype(np.float64).reshape(groups, -1), rest.reshape(groups, -1)


def _outer(one: Matrix, two: Matrix) -> Matrix:
    product: Matrix = one[:, :, None] * two[:, None, :]
    return product


@dataclass(frozen=True, slots=True)
class Stacked:
    """The sums of several :class:`Moments` as arrays with the groups in front.

    Attributes:
        count: [g].
        rows_sum: [g, d].
        targets_sum: [g, m].
        gram: [g, d, d].
        cross: [g, d, m].
        energy: [g, m].
    """

    count: Matrix
    rows_sum: Matrix
    targets_sum: Matrix
    gram: Matrix
    cross: Matrix
    energy: Matrix

    @classmethod
    def of(cls, moments: Sequence[Moments]) -> Self:
        """Return the sums of *moments*, which are alike in shape."""
        names = ("rows_sum", "targets_sum", "gram", "cross", "energy")
        parts = [np.stack([getattr(each, name) for each in moments]) for name in names]
        return cls(np.array([float(each.count) for each in moments]), *parts)

    def of_groups(self, chosen: Bools) -> Stacked:
        """Return the sums of the groups that are *chosen*, [g]."""
        return Stacked(*(getattr(self, name)[chosen] for name in self.__slots__))

    def without(self, other: Stacked) -> Stacked:
        """Return what is left where *other*, which is part of this, is taken out."""
        return Stacked(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))

    @property
    def is_finite(self) -> Bools:
        """As :attr:`Moments.is_finite`, [g]."""
        parts = (self.rows_sum, self.cross, self.gram, self.energy)
        found: Bools = np.all(
            [np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts], axis=0
        )
        return found

    @property
    def rows_mean(self) -> Matrix:
        """[g, d] mean rows."""
        return self.rows_sum / np.maximum(self.count, 1)[:, None]

    @property
    def targets_mean(self) -> Matrix:
        """[g, m] mean targets."""
        return self.targets_sum / np.maximum(self.count, 1)[:, None]

    @property
    def covariance(self) -> Matrix:
        """[g, d, d] of the rows."""
        mean = self.rows_mean
        return self.gram / np.maximum(self.count, 1)[:, None, None] - _outer(mean, mean)

    @property
    def cross_covariance(self) -> Matrix:
        """[g, d, m] of rows and targets."""
        return self.cross / np.maximum(self.count, 1)[:, None, None] - _outer(
            self.rows_mean, self.targets_mean
        )

    def best_bias(self, weight: Matrix) -> Matrix:
        """Return the biases [g, m] that are best for *weight* [g, m, d]."""
        reached: Matrix = np.einsum("gmd,gd->gm", weight, self.rows_mean)
        return self.targets_mean - reached

    def residual(self, weight: Matrix, bias: Matrix) -> Matrix:
        """Return :meth:`Moments.residual` of each group, [g], for *weight* [g, m, d] and *bias* [g, m]."""
        mean_square = self.energy / np.maximum(self.count, 1)[:, None]
        scale = mean_square.sum(axis=1)
        variance = np.maximum((mean_square - self.targets_mean**2).sum(axis=1), 0.0)
        gap = bias - self.best_bias(weight)
        error = (
            variance
            - 2 * np.einsum("gmd,gdm->g", weight, self.cross_covariance)
            + np.einsum("gmd,gmd->g", weight @ self.covariance, weight)
        )
        total = np.maximum(error, 0.0) + (gap * gap).sum(axis=1)
        constant = (variance <= 1e-12 * scale) | (variance == 0.0)
        reached = total <= 1e-12 * np.maximum(scale, 1e-300)
        found: Matrix = np.where(
            constant, np.where(reached, 0.0, np.inf), total / np.where(constant, 1.0, variance)
        )
        return found
