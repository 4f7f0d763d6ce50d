"""Which units to drop: block-OBS, the optimal brain surgeon over groups of columns.

Of a quadratic loss with Hessian A and minimum W, forcing the columns c of W to zero and moving the others to
where they are best then costs exactly ``tr(Wc^T inv(Hcc) Wc)`` with ``H = inv(A)`` (Hassibi and Stork 1993;
for blocks Frantar and Alistarh 2022). The unit with the least cost goes, W and H are brought up to date, and
so on: every step knows of all that went before, and of what the rest can make up for.

A unit may be read by several consumers, each with its own problem: their costs are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.recover.solve import RIDGE, regularise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from graphopt.recover.moments import Matrix, Moments

    Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """In which order units go, and what that costs.

    Attributes:
        order: Units, the most dispensable first.
        losses: [len(order) + 1] loss after that many have gone, over the variance of the targets; the first
            is 0.
        notes: What was not as it should be.
    """

    order: tuple[int, ...]
    losses: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def kept(self, count: int, units: int) -> tuple[int, ...]:
        """Return the *count* of all *units* that stay, ascending."""
        gone = set(self.order[: units - count])
        return tuple(unit for unit in range(units) if unit not in gone)


class Problem:
    """The least squares problem of one consumer while units are taken from it.

    Args:
        moments: Rows and targets of the consumer.
        blocks: Columns of each unit; empty where the consumer does not read it.
        prior: [m, d] weight that the ridge pulls towards; zero by default.
        ridge: As in :mod:`graphopt.recover.solve`.
        stage: How notes name the place.
        importance: What the loss counts, relative to that of other consumers.
    """

    def __init__(
        self,
        moments: Moments,
        blocks: Sequence[Indices],
        *,
        stage: str,
        prior: Matrix | None = None,
        ridge: float = RIDGE,
        importance: float = 1.0,
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self._blocks = [np.asarray(block, np.int64) for block in blocks]
        variance = moments.target_variance if moments.is_finite else 0.0
        self._scale = importance / variance if variance > 0 else 0.0
        if not moments.is_finite or moments.count == 0:
            self.notes = (f"{stage}: no finite activations; it has no say in what goes",)
            self._inverse, self._weight = (
                np.eye(moments.columns),
                np.zeros((moments.columns, moments.outputs)),
            )
            return
        regular = regularise(moments.covariance, moments.count, ridge, stage)
        self.notes = regular.notes
        start = np.zeros((moments.outputs, moments.columns)) if prior is None else prior
        self._inverse = np.linalg.inv(regular.matrix)
        self._inverse = (self._inverse + self._inverse.T) / 2
        self._weight = self._inverse @ (moments.cross_covariance + regular.penalty * start.T)

    def costs(self, alive: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the loss that the removal of each of the *alive* units adds."""
        costs = np.zeros(len(alive))
        by_size: dict[int, list[int]] = {}
        for place, unit in enumerate(alive):
            by_size.setdefault(len(self._blocks[unit]), []).append(place)
        for size, places in by_size.items():
            if size == 0 or self._scale == 0.0:
                continue
            columns = np.stack([self._blocks[alive[place]] for place in places])
            corner = self._inverse[columns[:, :, None], columns[:, None, :]]
            weight = self._weight[columns]
            costs[places] = np.einsum("uij,uij->u", weight, _solved(corner, weight)) * self._scale
        return np.maximum(costs, 0.0)

    def remove(self, unit: int) -> None:
        """Force the columns of *unit* to zero and move all others to where they are best."""
        columns = self._blocks[unit]
        if not columns.size:
            return
        corner = self._inverse[np.ix_(columns, columns)]
        across = self._inverse[columns]
        gain = _solved(corner[None], across[None])[0]
        self._weight -= gain.T @ self._weight[columns]
        self._inverse -= across.T @ gain
        self._weight[columns] = 0.0
        self._inverse[columns] = 0.0
        self._inverse[:, columns] = 0.0
        self._inverse[columns, columns] = 1.0


def _solved(corner: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Solve stacked positive definite systems; a little is added to the diagonals against rounding."""
    size = corner.shape[-1]
    if size == 1:
        result: npt.NDArray[Any] = right / np.maximum(corner, 1e-300)
        return result
    jitter = 1e-10 * np.trace(corner, axis1=-2, axis2=-1) / size + 1e-300
    safe = corner + jitter[:, None, None] * np.eye(size)
    try:
        solved: npt.NDArray[Any] = np.linalg.solve(safe, right)
    except np.linalg.LinAlgError:  # an exactly singular block: its pseudo-inverse never fails on finite data
        solved = np.linalg.pinv(safe, hermitian=True) @ right
    return solved


def trajectory(problems: Sequence[Problem], units: int, *, removals: int | None = None) -> Trajectory:
    """Remove units one by one, the cheapest first.

    Args:
        problems: One for each consumer; they are used up.
        units: Number of units.
        removals: How many to remove; all but one by default.
    """
    alive = list(range(units))
    count = max(units - 1, 0) if removals is None else min(removals, units)
    order: list[int] = []
    losses = [0.0]
    for _ in range(count):
        costs = np.zeros(len(alive))
        for problem in problems:
            costs += problem.costs(alive)
        place = int(np.argmin(np.where(np.isfinite(costs), costs, np.inf)))
        losses.append(losses[-1] + float(costs[place]))
        unit = alive.pop(place)
        for problem in problems:
            problem.remove(unit)
        order.append(unit)
    return Trajectory(tuple(order), tuple(losses), tuple(note for p in problems for note in p.notes))
