"""The built-in criteria of importance."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.pruning.criterion import Criterion, Subject, Weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Scores = npt.NDArray[np.float64]


class L1(Criterion):
    """Sum of absolute weights that make a unit (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""

    def scores(self, subject: Subject) -> Scores:
        """Return the L1 norm of each unit over all producers."""
        return _total(_makers(subject), 1, subject.size)


class L2(Criterion):
    """Euclidean norm of the weights that make a unit."""

    def scores(self, subject: Subject) -> Scores:
        """Return the L2 norm of each unit over all producers."""
        return np.sqrt(_total(_makers(subject), 2, subject.size))


class ProductOfNorms(Criterion):
    """Norm of what makes a unit times norm of what reads it: either being small makes the unit small."""

    def scores(self, subject: Subject) -> Scores:
        """Return the product of the L2 norms over producers, readers and multi-dimensional followers."""
        result = np.ones(subject.size)
        for weights in (
            subject.of_role("producer"),
            subject.of_role("consumer"),
            tuple(weight for weight in subject.of_role("follower") if weight.array.ndim > 1),
        ):
            if weights:
                result *= np.sqrt(_total(weights, 2, subject.size))
        return result


class Random(Criterion):
    """Seeded noise: what the others are to be compared with."""

    def scores(self, subject: Subject) -> Scores:
        """Return numbers that depend on seed and name only."""
        stream = np.random.default_rng([subject.seed, zlib.crc32(subject.name.encode())])
        return stream.random(subject.size)


def _makers(subject: Subject) -> tuple[Weight, ...]:
    return subject.of_role("producer") or subject.weights


def _total(weights: Sequence[Weight], power: int, size: int) -> Scores:
    total = np.zeros(size)
    for weight in weights:
        total += weight.sums(power, size)
    return total
