"""Low rank: a weight as a product of two thin ones, at the least cost to what it puts out.

Without data the best rank-r form keeps the largest singular values of the weight. With data it keeps the
largest of ``W L``, where ``L L^T`` is the covariance of the rows: W is projected onto the principal
directions of its *outputs*, which is optimal for the outputs (reduced rank regression, Izenman 1975). With a
metric M of those outputs it is ``M^(1/2) W L`` that is cut: errors count by what they do further on (the
weighted form of the same theorem). At full rank all are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.recover.solve import regularise

if TYPE_CHECKING:
    from graphopt.recover.moments import Matrix

WHITENING_RIDGE = 1e-4
"""Relative ridge on the covariance (prototype's figure; the result changes little from 1e-6 to 1e-2)."""

EXACT_LIMIT = 1024
"""Smaller side of a matrix up to which all singular values are computed."""

_METRIC_FLOOR = 1e-6
"""Least eigenvalue of a metric, over its largest one: no direction of the outputs counts for nothing."""

_LEAST_METRIC = 1e-30
"""That of an operator on which no output depends: it can be cut anywhere, and still comes back in full."""

_OVERSAMPLING = 16
_POWER_ITERATIONS = 3


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A weight taken apart, ready to be cut at any rank up to ``len(values)``.

    Attributes:
        outer: [m, r] directions of the outputs, orthonormal in the metric.
        inner: [r, d]; the weight is ``outer @ inner`` where all ranks are kept.
        values: [r] singular values, falling; the loss of a cut is the sum of the squares behind it.
        total: Sum of all squares, also of those that were not computed.
        notes: What was not as it should be.
    """

    outer: Matrix
    inner: Matrix
    values: Matrix
    total: float
    notes: tuple[str, ...] = ()

    def cut(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return [m, rank] and [rank, d] whose product stands for the weight."""
        return self.outer[:, :rank].copy(), self.inner[:rank].copy()

    def loss(self, rank: int) -> float:
        """Return the share of the outputs' energy that a cut at *rank* loses, in [0, 1]."""
        if self.total <= 0.0:
            return 0.0
        if rank >= len(self.values) and len(self.values) == min(self.outer.shape[0], self.inner.shape[1]):
            return 0.0
        return float(np.clip(1.0 - np.sum(self.values[:rank] ** 2) / self.total, 0.0, 1.0))

    def rank_for(self, energy: float) -> int:
        """Return the smallest rank that keeps *energy*, in (0, 1], of the outputs; 1 at least."""
        for rank in range(1, len(self.values) + 1):
            if 1.0 - self.loss(rank) >= energy:
                return rank
        return len(self.values)


def decompose(
    weight: Matrix,
    covariance: Matrix | None = None,
    *,
    metric: Matrix | None = None,
    count: int = 0,
    stage: str = "",
    ridge: float = WHITENING_RIDGE,
    largest_rank: int | None = None,
    seed: int = 0,
) -> Spectrum:
    """Take *weight* apart.

    Args:
        weight: [m, d], finite.
        covariance: [d, d] of the rows that it is multiplied with; without it all directions count the same.
        metric: [m, m] of the outputs, positive semi-definite; without it all of them count the same.
        count: Rows that the covariance was measured on.
        stage: How notes name the place.
        ridge: Relative ridge on the covariance.
        largest_rank: No more singular values are needed.
        seed: For the randomised form, which takes over where both sides exceed :data:`EXACT_LIMIT` and few
            singular values are needed.
    """
    weight = weight.astype(np.float64)
    whitener: Matrix | None = None
    notes: tuple[str, ...] = ()
    if covariance is not None and not np.isfinite(covariance).all():
        notes, covariance = (f"{stage}: activations are not finite; plain SVD instead",), None
    if covariance is not None:
        regular = regularise(covariance, max(count, 1), ridge, stage)
        notes = regular.notes
        whitener = np.linalg.cholesky(regular.matrix)
    root, inverse, unit = (None, None, 1.0) if metric is None else _roots(metric)
    weighed = weight if root is None else root @ weight
    seen = weighed if whitener is None else weighed @ whitener
    smaller = min(seen.shape)
    wanted = smaller if largest_rank is None else min(largest_rank, smaller)
    if smaller > EXACT_LIMIT and wanted + _OVERSAMPLING < smaller // 2:
        outer, values = _randomised(seen, wanted, seed)
    else:
        outer, values = _left_singular(seen)
    inner = outer.T @ weighed
    if inverse is not None:
        outer = inverse @ outer
    return Spectrum(outer, inner, values * np.sqrt(unit), unit * float(np.sum(seen * seen)), notes)


def _roots(metric: Matrix) -> tuple[Matrix, Matrix, float]:
    """Return the square root of *metric* over a number that makes its norm one, the inverse, and that number.

    In its own unit a small metric would make one factor of a weight huge and the other one tiny.
    """
    values, vectors = np.linalg.eigh((metric + metric.T) / 2)
    largest = max(float(values[-1]), _LEAST_METRIC)
    values = np.maximum(values, _METRIC_FLOOR * largest)
    unit = float(values[-1])
    roots = np.sqrt(values / unit)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T, unit


def _left_singular(matrix: Matrix) -> tuple[Matrix, Matrix]:
    try:
        outer, values, _ = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        # The iteration of the SVD may fail to converge; the symmetric one behind eigh does so far less often,
        # and on data that are finite and scaled practically never.
        scale = float(np.abs(matrix).max()) or 1.0
        squares, vectors = np.linalg.eigh((matrix / scale) @ (matrix / scale).T)
        keep = min(matrix.shape)
        outer = vectors[:, ::-1][:, :keep]
        values = scale * np.sqrt(np.maximum(squares[::-1][:keep], 0.0))
    return outer, values


def _randomised(matrix: Matrix, rank: int, seed: int) -> tuple[Matrix, Matrix]:
    """Return the leading left singular vectors and values (Halko, Martinsson and Tropp 2011, 4.4 and 5.1)."""
    generator = np.random.default_rng(seed)
    basis = matrix @ generator.standard_normal((matrix.shape[1], rank + _OVERSAMPLING))
    for _ in range(_POWER_ITERATIONS):
        basis, _ = np.linalg.qr(basis)
        basis, _ = np.linalg.qr(matrix.T @ basis)
        basis = matrix @ basis
    basis, _ = np.linalg.qr(basis)
    inner, values = _left_singular(basis.T @ matrix)
    return (basis @ inner)[:, :rank], values[:rank]
