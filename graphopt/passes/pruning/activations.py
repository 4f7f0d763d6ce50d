"""Criteria that look at activations: how much of a unit its readers see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.calibrate.needs import Needs
from graphopt.passes.pruning.criterion import Criterion, Subject, per_unit

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from graphopt.calibrate.moments import ChannelMoments
    from graphopt.passes.pruning.criterion import Contraction

    Scores = npt.NDArray[np.float64]


class Energy(Criterion):
    """Mean square of the activations, weighted with the squared norm of what reads them.

    This is the mean square that the outputs of the readers lose with the unit, were its activations
    uncorrelated with the others.
    """

    def needs(self, subject: Subject) -> Needs:
        """Return the moments of all contracted activations."""
        return _moments(subject)

    def scores(self, subject: Subject) -> Scores:
        """Return E[x^2] * |w|^2, summed over all readers; [size]."""
        return _over_readers(subject, lambda moments: moments.mean_square)


class Entropy(Criterion):
    """Entropy of the activations: a unit that hardly varies says little.

    Of the moments that calibration keeps, the variance bounds the differential entropy: h <= log(2 pi e
    var) / 2, with equality for normal ones (Cover and Thomas, Elements of Information Theory, 8.6). The score
    is the entropy power exp(2 h) / (2 pi e) of that bound, weighted with the squared norm of what reads it.
    """

    def needs(self, subject: Subject) -> Needs:
        """Return the moments of all contracted activations."""
        return _moments(subject)

    def scores(self, subject: Subject) -> Scores:
        """Return the entropy power times |w|^2, summed over all readers; [size]."""
        return _over_readers(subject, lambda moments: moments.variance)


def _moments(subject: Subject) -> Needs:
    return Needs(channels=frozenset((each.value, each.axis) for each in _readers(subject)))


def _readers(subject: Subject) -> list[Contraction]:
    """Return what sums over activations; recurrent weights are summed over their own state."""
    constants = {weight.name for weight in subject.weights}
    return [each for each in subject.contractions if each.value not in constants]


def _over_readers(subject: Subject, power: Callable[[ChannelMoments], Scores]) -> Scores:
    """Return the power of each unit's activations times the squared norm of what multiplies them."""
    total = np.zeros(subject.size)
    assert subject.statistics is not None
    for reader in _readers(subject):
        moments = subject.statistics.channel(reader.value, reader.axis)
        per_index = np.asarray(power(moments), np.float64)
        if reader.weight is None:  # multiplied with another activation
            total += per_unit(per_index, reader.units, subject.size)
        else:
            norms = reader.weight.sums(2, subject.size)
            counts = per_unit(np.ones(len(per_index)), reader.units, subject.size)
            means = per_unit(per_index, reader.units, subject.size) / np.maximum(counts, 1.0)
            total += means * norms
    return total
