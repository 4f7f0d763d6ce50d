"""Second moments of rows and targets: all that a least squares problem needs to know of its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float64]

_NOISE = 1e-12
"""Variance over mean square below which float64 sums of squares have too few digits left to solve with."""


@dataclass(slots=True)
class Moments:
    """Sums over pairs of a row ``x`` [d] and a target ``y`` [m]; they are merged by addition.

    Attributes:
        count: Number of pairs.
        rows_sum: [d] sum of x.
        targets_sum: [m] sum of y.
        gram: [d, d] sum of x x^T.
        cross: [d, m] sum of x y^T.
        energy: [m] sum of y squared.
        held: The part of all this that some samples are behind which are set aside to choose a ridge on;
            None where there are too few.
    """

    count: int
    rows_sum: Matrix
    targets_sum: Matrix
    gram: Matrix
    cross: Matrix
    energy: Matrix
    held: Moments | None = None

    @classmethod
    def empty(cls, rows: int, targets: int) -> Self:
        """Return the moments of no pairs at all of *rows* and *targets* columns."""
        return cls(
            0,
            np.zeros(rows),
            np.zeros(targets),
            np.zeros((rows, rows)),
            np.zeros((rows, targets)),
            np.zeros(targets),
        )

    @classmethod
    def of_gram(cls, count: int, gram: Matrix, weight: Matrix, bias: Matrix | None = None) -> Self:
        """Return the moments whose targets are what a linear operator makes of its own rows.

        Args:
            count: Number of rows.
            gram: [d + 1, d + 1] sum of r r^T over the rows with a one behind them.
            weight: [m, d].
            bias: [m], zero by default.
        """
        rows = gram.shape[0] - 1
        affine = np.concatenate(
            [weight, np.zeros((len(weight), 1)) if bias is None else bias[:, None]], axis=1
        )
        cross = gram @ affine.T
        return cls(
            count,
            gram[:rows, rows].copy(),
            cross[rows].copy(),
            gram[:rows, :rows].copy(),
            cross[:rows].copy(),
            np.einsum("md,dm->m", affine, cross),
        )

    @property
    def columns(self) -> int:
        """Length d of a row."""
        return int(self.gram.shape[0])

    @property
    def outputs(self) -> int:
        """Length m of a target."""
        return int(self.cross.shape[1])

    def add(self, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """Take in [n, d] rows and their [n, m] targets.

        Products are taken about the mean of the rows given, in their own precision, and summed in float64:
        activations far from zero that vary little would lose their small directions otherwise.

        Raises:
            DataError: The shapes do not belong together.
        """
        if rows.ndim != 2 or targets.ndim != 2 or len(rows) != len(targets):
            raise DataError(
                f"rows {list(rows.shape)} and targets {list(targets.shape)} do not belong together",
                hint="The two models must compute the same values on the same inputs",
            )
        if rows.shape[1] != self.columns or targets.shape[1] != self.outputs:
            raise DataError(
                f"rows {list(rows.shape)} and targets {list(targets.shape)}; "
                f"expected {self.columns} and {self.outputs} columns"
            )
        if not len(rows):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            x_mean, y_mean = rows.mean(axis=0, dtype=np.float64), targets.mean(axis=0, dtype=np.float64)
            x, y = (rows - x_mean).astype(rows.dtype), (targets - y_mean).astype(targets.dtype)
            # What rounding has left of the sums about the means.
            x_rest, y_rest = x.sum(axis=0, dtype=np.float64), y.sum(axis=0, dtype=np.float64)
            n = len(rows)
            self.count += n
            self.rows_sum += n * x_mean + x_rest
            self.targets_sum += n * y_mean + y_rest
            self.gram += x.T @ x + np.outer(x_rest, x_mean) + np.outer(n * x_mean + x_rest, x_mean).T
            self.cross += x.T @ y + np.outer(x_rest, y_mean) + np.outer(x_mean, n * y_mean + y_rest)
            self.energy += np.einsum("nm,nm->m", y, y, dtype=np.float64) + (2 * y_rest + n * y_mean) * y_mean

    def merge(self, other: Moments) -> None:
        """Take in what *other* has seen."""
        self.count += other.count
        with np.errstate(over="ignore", invalid="ignore"):
            for name in ("rows_sum", "targets_sum", "gram", "cross", "energy"):
                getattr(self, name).__iadd__(getattr(other, name))

    def without(self, other: Moments) -> Moments:
        """Return what is left where *other*, which is part of this, is taken out."""
        with np.errstate(over="ignore", invalid="ignore"):
            return Moments(
                self.count - other.count,
                self.rows_sum - other.rows_sum,
                self.targets_sum - other.targets_sum,
                self.gram - other.gram,
                self.cross - other.cross,
                self.energy - other.energy,
            )

    def through(self, features: Matrix) -> Moments:
        """Return the moments of ``features @ x``, with features [q, d], and the same targets."""
        return Moments(
            self.count,
            features @ self.rows_sum,
            self.targets_sum,
            features @ self.gram @ features.T,
            features @ self.cross,
            self.energy,
        )

    def uncentred(self, bias: Matrix) -> Moments:
        """Return moments in which the bias is fixed at *bias* [m] instead of free.

        The targets are what the weight alone has to give, and all means are taken for zero: the best bias of
        what comes out of a solve on them is zero.
        """
        return Moments(
            self.count,
            np.zeros_like(self.rows_sum),
            np.zeros_like(self.targets_sum),
            self.gram,
            self.cross - np.outer(self.rows_sum, bias),
            self.energy - 2 * bias * self.targets_sum + self.count * bias * bias,
            None if self.held is None else self.held.uncentred(bias),
        )

    @property
    def is_finite(self) -> bool:
        """Whether no row or target held NaN, an infinity, or numbers whose squares overflow."""
        return all(
            bool(np.isfinite(part).all()) for part in (self.rows_sum, self.cross, self.gram, self.energy)
        )

    @property
    def is_constant(self) -> bool:
        """Whether all rows are one, to rounding: what is left of their covariance is noise of the sums."""
        squares = float(np.trace(self.gram)) / max(self.count, 1)
        return float(np.trace(self.covariance)) <= _NOISE * squares

    @property
    def rows_mean(self) -> Matrix:
        """[d] mean row."""
        return self.rows_sum / max(self.count, 1)

    @property
    def targets_mean(self) -> Matrix:
        """[m] mean target."""
        return self.targets_sum / max(self.count, 1)

    @property
    def covariance(self) -> Matrix:
        """[d, d] of the rows (divided by their number)."""
        mean = self.rows_mean
        return self.gram / max(self.count, 1) - np.outer(mean, mean)

    @property
    def cross_covariance(self) -> Matrix:
        """[d, m] of rows and targets."""
        return self.cross / max(self.count, 1) - np.outer(self.rows_mean, self.targets_mean)

    @property
    def target_variance(self) -> float:
        """Sum of the variances of the targets."""
        mean = self.targets_mean
        return float(max(np.sum(self.energy / max(self.count, 1) - mean * mean), 0.0))

    def best_bias(self, weight: Matrix) -> Matrix:
        """Return the bias [m] that is best for *weight* [m, d]: it makes the means agree."""
        return self.targets_mean - weight @ self.rows_mean

    def residual(self, weight: Matrix, bias: Matrix) -> float:
        """Return the mean squared error of ``weight x + bias`` over the variance of the targets.

        Args:
            weight: [m, d].
            bias: [m].

        Returns:
            0 for a perfect prediction, 1 for one that is no better than the mean. Where the targets are
            constant: 0 where the prediction is, else infinity.
        """
        gap = bias + weight @ self.rows_mean - self.targets_mean
        centred = self.cross_covariance
        variance = self.target_variance
        error = (
            variance
            - 2 * float(np.einsum("md,dm->", weight, centred))
            + float(np.einsum("md,md->", weight @ self.covariance, weight))
        )
        total = max(error, 0.0) + float(gap @ gap)
        scale = float(np.sum(self.energy)) / max(self.count, 1)
        if variance <= 1e-12 * scale or variance == 0.0:
            return 0.0 if total <= 1e-12 * max(scale, 1e-300) else float("inf")
        return total / variance
