"""What a criterion of importance is, and what it may look at.

A criterion gives each unit of a family a number from 0; larger matters more. Numbers are compared inside one
family only: the allocation normalises them before it compares families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.needs import Needs
from graphopt.errors import PassFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.calibrate.statistics import Statistics


@dataclass(frozen=True)
class Weight:
    """One axis of a constant that a family runs through.

    Attributes:
        name: Name of the initializer.
        array: Its content, read-only.
        axis: The axis that the family's units lie on.
        units: Unit of each index of that axis, -1 where no unit of the family touches it.
        role: "producer" (its output carries the units), "consumer" (it contracts them) or "follower" (it goes
            along: biases, normalisation parameters, depthwise kernels).
    """

    name: str
    array: npt.NDArray[Any]
    axis: int
    units: npt.NDArray[np.intp]
    role: str

    def sums(self, power: int, size: int) -> npt.NDArray[np.float64]:
        """Return the sum of ``|w| ** power`` over everything that belongs to each unit; [size]."""
        other = tuple(axis for axis in range(self.array.ndim) if axis != self.axis)
        magnitudes = np.abs(self.array.astype(np.float64))
        per_index = (magnitudes if power == 1 else magnitudes**power).sum(axis=other)
        return per_unit(per_index, self.units, size)


@dataclass(frozen=True)
class Contraction:
    """One place where the activations of a family are summed over.

    Attributes:
        value: Name of the activation.
        axis: Its axis that is contracted.
        units: Unit of each index of that axis, -1 where the family does not touch it.
        weight: What it is multiplied with, where that is a constant.
        node: The operator that sums.
    """

    value: str
    axis: int
    units: npt.NDArray[np.intp]
    weight: Weight | None = None
    node: oir.Node | None = None


@dataclass(frozen=True)
class Subject:
    """One family as a criterion sees it.

    Attributes:
        name: Name of the family.
        kind: "channels", "heads", "head_dims" or "hidden".
        size: Number of units.
        weights: The constants that carry its units, each axis once.
        contractions: Where its activations are summed over.
        statistics: What was asked for by ``needs``, or None for criteria that need no data.
        seed: Seed of the run.
    """

    name: str
    kind: str
    size: int
    weights: tuple[Weight, ...] = ()
    contractions: tuple[Contraction, ...] = ()
    statistics: Statistics | None = None
    seed: int = 0

    def of_role(self, role: str) -> tuple[Weight, ...]:
        """Return the weights of one role."""
        return tuple(weight for weight in self.weights if weight.role == role)


class Criterion(ABC):
    """How much each unit of a family matters. Stateless; the same subject gives the same numbers."""

    def needs(self, subject: Subject) -> Needs:  # noqa: ARG002 - the default of what others override
        """Return the statistics to collect for *subject*."""
        return Needs()

    def curves(self, subjects: Mapping[str, Subject]) -> Mapping[str, npt.NDArray[np.float64]]:  # noqa: ARG002 - as needs
        """Return what each family loses with its k most important units alone, [size + 1], by its name.

        Losses of all families are in one unit. Families without a curve are compared by their scores.
        """
        return {}

    @abstractmethod
    def scores(self, subject: Subject) -> npt.NDArray[np.float64] | Sequence[float]:
        """Return a number from 0 for each unit; larger matters more."""


def per_unit(
    per_index: npt.NDArray[np.float64], units: npt.NDArray[np.intp], size: int
) -> npt.NDArray[np.float64]:
    """Return the sum of *per_index* over the indices of each unit; [size]."""
    touched = units >= 0
    return np.bincount(units[touched], weights=per_index[touched], minlength=size)


def needs_of(criterion: Criterion, subjects: Iterable[Subject]) -> Needs:
    """Return the statistics that *criterion* wants for all of *subjects*."""
    needs = Needs()
    for subject in subjects:
        needs |= criterion.needs(subject)
    return needs


def scores_of(criterion: Criterion, subject: Subject, name: str) -> npt.NDArray[np.float64]:
    """Return what *criterion*, called *name*, says of each unit of *subject*.

    Raises:
        PassFailed: It is not a number from 0 for each.
    """
    found = np.asarray(criterion.scores(subject), dtype=np.float64)
    if found.shape != (subject.size,) or not np.isfinite(found).all() or (found < 0).any():
        raise PassFailed(
            f"the criterion {name!r} gave numbers of shape {list(found.shape)},"
            f" {int(np.isfinite(found).sum())} of them finite; expected {subject.size} from 0",
            where=f"family {subject.name!r}",
        )
    return found
