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
"""Smaller side of a matrix up to which its SVD is taken; see :func:`decompose`."""

_METRIC_FLOOR = 1e-6
"""Least eigenvalue of a metric, over its largest one: no direction of the outputs counts for nothing."""

_LEAST_METRIC = 1e-30
"""That of an operator on which no output depends: it can be cut anywhere, and still comes back in full."""

_OVERSAMPLING = 16
_POWER_ITERATIONS = 5


@dataclass(frozen=True, slots=True)
class Energies:
    """What cuts of a weight lose, without the directions: one number a rank, however large the weight.

    Attributes:
        squares: [min(m, d)] squares of the singular values, falling; exact to rounding of the largest one.
        total: Their sum.
    """

    squares: Matrix
    total: float

    def loss(self, rank: int) -> float:
        """Return the share of the outputs' energy that a cut at *rank* loses, in [0, 1]."""
        if rank >= len(self.squares) or self.total <= 0.0:
            return 0.0
        return float(np.clip(1.0 - np.sum(self.squares[:rank]) / self.total, 0.0, 1.0))

    def rank_for(self, energy: float) -> int:
        """Return the smallest rank that keeps *energy*, in (0, 1], of the outputs; 1 at least."""
        ranks = range(1, len(self.squares) + 1)
        return next((rank for rank in ranks if 1.0 - self.loss(rank) >= energy), len(self.squares))


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A weight taken apart, ready to be cut at any rank up to ``len(values)``.

    Attributes:
        outer: [m, r] directions of the outputs, orthonormal in the metric.
        inner: [r, d]; the weight is ``outer @ inner`` where all ranks are kept.
        values: [r] singular values, falling.
        notes: What was not as it should be.
    """

    outer: Matrix
    inner: Matrix
    values: Matrix
    notes: tuple[str, ...] = ()

    def cut(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return [m, rank] and [rank, d] whose product stands for the weight."""
        return self.outer[:, :rank].copy(), self.inner[:rank].copy()


class Weighed:
    """A weight as the energy of its outputs sees it: ``M^(1/2) W L``.

    Args:
        weight: As all others, see :func:`decompose`.
        covariance: Likewise.
        metric: Likewise.
        count: Likewise.
        stage: Likewise.
        ridge: Likewise.

    Attributes:
        weight: [m, d] as it is, in float64.
        unit: The norm of the metric; what follows is in a unit in which it is one.
        weighed: [m, d] ``M^(1/2) W``.
        seen: [m, d] ``M^(1/2) W L``.
        inverse: [m, m] ``M^(-1/2)``, None where there is no metric.
        notes: What was not as it should be.
    """

    def __init__(
        self,
        weight: Matrix,
        covariance: Matrix | None = None,
        *,
        metric: Matrix | None = None,
        count: int = 0,
        stage: str = "",
        ridge: float = WHITENING_RIDGE,
    ) -> None:
        self.weight = weight.astype(np.float64, copy=False)
        whitener: Matrix | None = None
        self.notes: tuple[str, ...] = ()
        if covariance is not None and not np.isfinite(covariance).all():
            self.notes, covariance = (f"{stage}: activations are not finite; plain SVD instead",), None
        if covariance is not None:
            regular = regularise(covariance, max(count, 1), ridge, stage)
            self.notes = regular.notes
            whitener = np.linalg.cholesky(regular.matrix)
        root: Matrix | None = None
        self.inverse: Matrix | None = None
        self.unit = 1.0
        if metric is not None:
            root, self.inverse, self.unit = _roots(metric)
        self.weighed = self.weight if root is None else root @ self.weight
        self.seen = self.weighed if whitener is None else self.weighed @ whitener

    def gram(self) -> Matrix:
        """Return the smaller Gram matrix of what is seen, [min(m, d), min(m, d)], for :func:`energies`."""
        gram = _smaller_gram(self.seen)
        if self.unit != 1.0:
            gram *= self.unit
        return gram

    def directions(self) -> Matrix:
        """Return the directions of the outputs, [m, min(m, d)], leading ones first.

        Orthonormal in the metric; those of singular values under 1e-8 of the largest are arbitrary.
        """
        outer = _by_gram(self.seen)[0]
        return outer if self.inverse is None else self.inverse @ outer


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

    Where both sides exceed :data:`EXACT_LIMIT` the SVD makes room for what needs less of time and memory: the
    eigenvectors of the smaller Gram matrix, or, where few singular values are needed, a randomised range
    finder, whose cut may lose a hundredth more than the best one.

    Args:
        weight: [m, d], finite.
        covariance: [d, d] of the rows that it is multiplied with; without it all directions count the same.
        metric: [m, m] of the outputs, positive semi-definite; without it all of them count the same.
        count: Rows that the covariance was measured on.
        stage: How notes name the place.
        ridge: Relative ridge on the covariance.
        largest_rank: No more singular values are needed.
        seed: For the randomised form.
    """
    space = Weighed(weight, covariance, metric=metric, count=count, stage=stage, ridge=ridge)
    seen = space.seen
    smaller = min(seen.shape)
    wanted = smaller if largest_rank is None else min(largest_rank, smaller)
    samples = wanted + max(_OVERSAMPLING, wanted // 4)
    if smaller <= EXACT_LIMIT:
        outer, values = _left_singular(seen)
    elif samples < smaller // 4:
        outer, values = _randomised(seen, wanted, samples, seed)
    else:
        outer, values = _by_gram(seen)
    inner = outer.T @ space.weighed
    if space.inverse is not None:
        outer = space.inverse @ outer
    return Spectrum(outer, inner, values * np.sqrt(space.unit), space.notes)


def energies(gram: Matrix) -> Energies:
    """Return what cuts lose, from what :meth:`Weighed.gram` gave: the weight need not be there any more."""
    if not np.isfinite(gram).all():  # squares that no float64 can hold: as if nothing could be kept
        return Energies(np.zeros(len(gram)), np.inf)
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    return Energies(squares, float(np.trace(gram)))


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
        outer, values = _by_gram(matrix)
    return outer, values


def _smaller_gram(matrix: Matrix) -> Matrix:
    rows, columns = matrix.shape
    with np.errstate(over="ignore", invalid="ignore"):
        return matrix @ matrix.T if rows <= columns else matrix.T @ matrix


def _by_gram(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Return the left singular vectors and values from the eigenvectors of the smaller Gram matrix."""
    scale = max(float(np.max(matrix)), -float(np.min(matrix))) or 1.0
    if 1e-100 < scale < 1e100:
        scale = 1.0  # squares are in range; a copy would cost as much memory as the weight
    else:
        matrix = matrix / scale
    squares, vectors = np.linalg.eigh(_smaller_gram(matrix))
    squares, vectors = squares[::-1], vectors[:, ::-1]
    if matrix.shape[0] > matrix.shape[1]:
        vectors, _ = np.linalg.qr(matrix @ vectors)
    return vectors, scale * np.sqrt(np.maximum(squares, 0.0))


def _randomised(matrix: Matrix, rank: int, samples: int, seed: int) -> tuple[Matrix, Matrix]:
    """Return the leading left singular vectors and values (Halko, Martinsson and Tropp 2011, 4.4 and 5.1)."""
    generator = np.random.default_rng(seed)
    basis = matrix @ generator.standard_normal((matrix.shape[1], samples))
    for _ in range(_POWER_ITERATIONS):
        basis, _ = np.linalg.qr(basis)
        basis, _ = np.linalg.qr(matrix.T @ basis)
        basis = matrix @ basis
    basis, _ = np.linalg.qr(basis)
    inner, values = _left_singular(basis.T @ matrix)
    return (basis @ inner)[:, :rank], values[:rank]
