"""What every form of a weight would lose at every rank: a few numbers a weight, and no factors.

A choice between all weights needs to know that of all of them, and must not hold them. One at a time is
taken apart, for the losses alone; what is chosen is taken apart once more when its factors are made (forms).

For features F of a row (see forms) the last factor that is best on rows of second moments K leaves
``tr(W K W^T) - tr(B^T A^-1 B)`` with ``A = F K F^T`` and ``B = F K W^T``. The features of a spatial pair at a
rank are the first ones of those at any larger rank, so that one Cholesky decomposition gives all ranks. Those
of the Tucker form are combinations of the inputs in a basis that all its ranks share: W and K are turned into
it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.passes.lowrank.forms import FEATURE_RIDGE, full_ranks, halved
from graphopt.recover.lowrank import Weighed, energies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.passes.lowrank.forms import Evidence, Form, Geometry
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix

    Ranks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prospect:
    """What one weight would lose.

    Attributes:
        losses: By form and ranks: the share of the output's energy that is lost, or, where errors have a
            metric, what it makes of them.
    """

    losses: Mapping[tuple[Form, Ranks], float]

    def loss(self, form: Form, ranks: Ranks) -> float:
        """Return what *form* loses at *ranks*, which must be among those that were asked for."""
        return self.losses[form, ranks]


def survey(
    linear: Linear, geometry: Geometry, ranks: Mapping[Form, Sequence[Ranks]], evidence: Evidence
) -> Prospect:
    """Return what *linear* would lose.

    Args:
        linear: The operator. Its weight is read here, and held no longer than needed.
        geometry: Its shape.
        ranks: The ranks of each form to ask for.
        evidence: What is known of its rows and its outputs.
    """
    if not any(ranks.values()):
        return Prospect({})
    gram, losses = _taken_apart(linear.weight(), geometry, ranks, evidence)
    # The weight is gone here: its eigenvalues take as much memory once more.
    found = energies(gram)
    scale = 1.0 if evidence.metric is None else found.total
    losses |= {("thin", each): found.loss(each[0]) * scale for each in ranks.get("thin", ())}
    # At full rank a form is exact, whatever rounding has left.
    return Prospect(
        {
            (form, each): 0.0 if each == full_ranks(form, geometry) else loss
            for (form, each), loss in losses.items()
        }
    )


def _taken_apart(
    weight: Matrix, geometry: Geometry, ranks: Mapping[Form, Sequence[Ranks]], evidence: Evidence
) -> tuple[Matrix, dict[tuple[Form, Ranks], float]]:
    """Return the Gram matrix of the weight, and what all forms but the thin one lose."""
    weighed = evidence.weigh(weight)
    losses: dict[tuple[Form, Ranks], float] = {}
    if ranks.get("spatial") or ranks.get("tucker"):
        forms = _Forms(weighed, geometry, evidence)
        losses |= forms.spatial(ranks.get("spatial", ()))
        losses |= forms.tucker(ranks.get("tucker", ()))
    return weighed.gram(), losses


class _Forms:
    """One weight, while what its forms would lose is computed."""

    def __init__(self, weighed: Weighed, geometry: Geometry, evidence: Evidence) -> None:
        self._weighed = weighed
        self._weight = weight = weighed.weight
        self._geometry = geometry
        self._evidence = evidence
        covariance, metric = evidence.covariance, evidence.metric
        self._seen = weight.T if covariance is None else covariance @ weight.T
        costly = weight if metric is None else metric @ weight
        self._total = max(float(np.einsum("dm,md->", self._seen, costly)), 0.0)

    def spatial(self, ranks: Sequence[Ranks]) -> dict[tuple[Form, Ranks], float]:
        """Return the losses of a pair of kernels, kh x 1 and 1 x kw, at each of *ranks*."""
        if not ranks:
            return {}
        matrix = halved(self._weight, self._geometry)
        rows, width, most = len(matrix), self._geometry.kernel[1], max(rank for (rank,) in ranks)
        covariance = self._evidence.covariance
        if covariance is None and self._evidence.metric is None:
            found = energies(Weighed(matrix).gram())
            return {("spatial", each): found.loss(each[0]) for each in ranks}
        first = Weighed(matrix).directions()[:, :most]
        right = np.tensordot(first, self._seen.reshape(rows, width, -1), (0, 0))
        gram: Matrix | None = None
        if covariance is not None:
            turned = _turned(covariance.reshape(rows, width, rows, width), first)
            gram = turned.reshape(most * width, most * width)
        kept = self._kept(gram, right.reshape(most * width, -1))
        kept = np.cumsum(kept.reshape(most, width).sum(axis=1))
        return {("spatial", each): self._lost(kept[each[0] - 1]) for each in ranks}

    def tucker(self, ranks: Sequence[Ranks]) -> dict[tuple[Form, Ranks], float]:
        """Return the losses of 1x1, k x k and 1x1 kernels at each of *ranks*."""
        if not ranks:
            return {}
        g, evidence, taps = self._geometry, self._evidence, self._geometry.taps
        most = max(inner for inner, _ in ranks), max(outer for _, outer in ranks)
        tensor = self._weight.reshape(g.outputs, g.inputs, taps)
        source = Weighed(tensor.transpose(1, 0, 2).reshape(g.inputs, -1)).directions()[:, : most[0]]
        target = self._weighed.directions()[:, : most[1]]
        turned = np.tensordot(tensor, source, (1, 0)).swapaxes(1, 2)  # [m, inner, taps]
        core = np.tensordot(target, turned, (0, 0))
        seen = np.tensordot(source, self._seen.reshape(g.inputs, taps, -1), (0, 0))  # [inner, taps, m]
        covariance = None
        if evidence.covariance is not None:
            covariance = _turned(evidence.covariance.reshape(g.inputs, taps, g.inputs, taps), source)
        losses: dict[tuple[Form, Ranks], float] = {}
        for inner, outer in ranks:
            size = inner * taps
            features = core[:outer, :inner].reshape(outer, size)
            known = features
            if covariance is not None:
                known = features @ covariance[:inner, :, :inner].reshape(size, size)
            kept = self._kept(known @ features.T, features @ seen[:inner].reshape(size, -1))
            losses["tucker", (inner, outer)] = self._lost(kept.sum())
        return losses

    def _kept(self, gram: Matrix | None, right: Matrix) -> Matrix:
        """Return what each feature adds to what those before it keep.

        Args:
            gram: [q, q] ``F K F^T``; None where it is the identity.
            right: [q, m] ``F K W^T``.
        """
        solved = right
        if gram is not None:
            ridge = FEATURE_RIDGE * (np.trace(gram) / len(gram) + 1e-300)
            try:
                lower = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
                solved = np.linalg.solve(lower, right)
            except np.linalg.LinAlgError:
                return np.zeros(len(gram))
        metric = self._evidence.metric
        kept: Matrix = np.einsum("qm,qm->q", solved, solved if metric is None else solved @ metric)
        return kept

    def _lost(self, kept: float) -> float:
        if self._total <= 0.0:
            return 0.0
        lost = max(self._total - float(kept), 0.0) if np.isfinite(kept) else self._total
        return lost if self._evidence.metric is not None else lost / self._total


def _turned(moments: NDArray[Any], basis: Matrix) -> NDArray[Any]:
    """Return second moments [a, t, a, t] with both axes of size a in a *basis* [a, r]: [r, t, r, t]."""
    half = np.tensordot(basis, moments, (0, 0))
    return np.tensordot(half, basis, (2, 0)).swapaxes(2, 3)
