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

_STEPS = 128
"""Where more units than this are left several go at once, so that the work does not grow with their cube."""

_ALIVE = 0.75
"""Where less than this share of the columns held is left, the others are dropped."""


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
        scale: What the mean squared error is multiplied with; 1 / variance of the targets by default.
    """

    def __init__(
        self,
        moments: Moments,
        blocks: Sequence[Indices],
        *,
        stage: str,
        prior: Matrix | None = None,
        ridge: float = RIDGE,
        scale: float | None = None,
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self._blocks = [np.asarray(block, np.int64) for block in blocks]
        self._tables = _tables(self._blocks)
        self._place = np.arange(moments.columns)  # of each column in what is held
        self._alive = np.ones(moments.columns, bool)  # of what is held
        whole = np.concatenate([*self._blocks, np.zeros(0, np.int64)])
        self._disjoint = len(np.unique(whole)) == len(whole)
        variance = moments.target_variance if moments.is_finite else 0.0
        self._scale = (1.0 / variance if scale is None else scale) if variance > 0 else 0.0
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
        if self._scale == 0.0:
            return costs
        units = np.asarray(alive, np.int64)
        for table, place in self._tables:
            chosen = np.flatnonzero(place[units] >= 0)
            if not len(chosen):
                continue
            columns = self._place[table[place[units[chosen]]]]
            corner = self._inverse[columns[:, :, None], columns[:, None, :]]
            weight = self._weight[columns]
            costs[chosen] = np.einsum("uij,uij->u", weight, _solved(corner, weight)) * self._scale
        return np.maximum(costs, 0.0)

    def remove(self, *units: int) -> float:
        """Force the columns of *units* to zero, move all others to where they are best; return the loss."""
        columns = self._place[np.concatenate([self._blocks[unit] for unit in units])]
        if not columns.size:
            return 0.0
        corner = self._inverse[np.ix_(columns, columns)]
        across = self._inverse[columns]
        weight = self._weight[columns]
        cost = float(np.einsum("ij,ij->", weight, _solved(corner[None], weight[None])[0])) * self._scale
        gain = _solved(corner[None], across[None])[0]
        self._weight -= gain.T @ weight
        self._inverse -= across.T @ gain
        self._weight[columns] = 0.0
        self._inverse[columns] = 0.0
        self._inverse[:, columns] = 0.0
        self._inverse[columns, columns] = 1.0
        self._alive[columns] = False
        if self._disjoint and np.count_nonzero(self._alive) < _ALIVE * len(self._alive):
            self._shrink()
        return max(cost, 0.0)

    def _shrink(self) -> None:
        """Hold only what is left: each removal costs the square of what is held."""
        stays = np.flatnonzero(self._alive)
        self._inverse = self._inverse[np.ix_(stays, stays)]
        self._weight = self._weight[stays]
        place = np.zeros(len(self._alive), np.int64)  # nobody asks for the columns of units that are gone
        place[stays] = np.arange(len(stays))
        self._place, self._alive = place[self._place], np.ones(len(stays), bool)


def _tables(blocks: Sequence[Indices]) -> list[tuple[Indices, Indices]]:
    """Return for each size of a block the columns [n, size] of its units, and where each unit is in it."""
    by_size: dict[int, list[int]] = {}
    for unit, block in enumerate(blocks):
        by_size.setdefault(len(block), []).append(unit)
    tables = []
    for size, units in sorted(by_size.items()):
        if size:
            place = np.full(len(blocks), -1, np.int64)
            place[units] = np.arange(len(units))
            tables.append((np.stack([blocks[unit] for unit in units]), place))
    return tables


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
    while len(order) < count:
        costs = np.zeros(len(alive))
        for problem in problems:
            costs += problem.costs(alive)
        costs = np.where(np.isfinite(costs), costs, np.inf)
        step = min(max(1, len(alive) // _STEPS), count - len(order))
        places = np.argsort(costs, kind="stable")[:step]
        going = [alive[place] for place in places]
        total = sum(problem.remove(*going) for problem in problems)
        # Of several at once each counts by what it would have cost alone.
        shares = costs[places] + 1e-300
        shares = np.cumsum(shares / shares.sum()) if np.isfinite(shares).all() else np.ones(step)
        losses += (losses[-1] + total * shares).tolist()
        order += going
        gone = set(going)
        alive = [unit for unit in alive if unit not in gone]
    return Trajectory(tuple(order), tuple(losses), tuple(note for p in problems for note in p.notes))
