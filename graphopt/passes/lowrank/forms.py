"""The forms that a weight of low rank can take, each as a few thin weights one behind the other.

Common to all: the last factor is a plain matrix on features that are linear in the rows of the original
operator. ``weight = last @ features``, whatever the form, so that the last factor can be fitted to data
without knowing the form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from graphopt.recover.lowrank import Weighed, decompose

if TYPE_CHECKING:
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix

Form = Literal["thin", "spatial", "tucker"]

FEATURE_RIDGE = 1e-9
"""Relative ridge on the second moments of features, which are few and chosen to be of use."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the costs of a form depend on.

    Attributes:
        outputs: Output channels m.
        inputs: Input channels C.
        kernel: Size of the kernel; empty for Gemm and MatMul.
        positions: Output positions of one inference.
        across: Positions after the first half of a spatial pair: rows of the output, columns of the input.
        source_positions: Input positions of one inference.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    positions: int
    across: int
    source_positions: int

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)

    @property
    def columns(self) -> int:
        """Columns d of the weight as a matrix."""
        return self.inputs * self.taps

    @property
    def macs(self) -> int:
        """MACs of the operator as it is."""
        return self.outputs * self.columns * self.positions

    @property
    def parameters(self) -> int:
        """Elements of the weight as it is."""
        return self.outputs * self.columns


@dataclass(frozen=True, slots=True)
class Factors:
    """A weight in a form.

    Attributes:
        form: Which.
        ranks: One number, or two for Tucker (of the inputs, of the outputs).
        parts: The factors but the last, in order of execution, in the layout of ONNX weights of a Conv (thin:
            [r, d]).
        features: [q, d]: what the last factor sees, as a function of a row.
        last: [m, q].
    """

    form: Form
    ranks: tuple[int, ...]
    parts: tuple[Matrix, ...]
    features: Matrix
    last: Matrix

    @property
    def product(self) -> Matrix:
        """The weight that the factors stand for, [m, d]."""
        return self.last @ self.features


def applicable(linear: Linear, form: Form) -> str:
    """Return "" where *linear* can take *form*, else why not."""
    if linear.groups != 1:
        return "grouped convolutions have small weights already"
    if form == "thin":
        return ""
    if len(linear.kernel) != 2:
        return "only two-dimensional kernels"
    if form == "spatial" and min(linear.kernel) < 2:
        return "the kernel has one row or one column"
    if form == "tucker" and math.prod(linear.kernel) < 2:
        return "the kernel is 1x1"
    return ""


def macs(form: Form, ranks: tuple[int, ...], geometry: Geometry) -> int:
    """Return the MACs of one inference."""
    rank = ranks[-1]
    m, d, positions = geometry.outputs, geometry.columns, geometry.positions
    if form == "thin":
        return positions * rank * (d + m)
    if form == "spatial":
        height, width = geometry.kernel
        return rank * (geometry.inputs * height * geometry.across + m * width * positions)
    inner, outer = ranks
    first = geometry.source_positions * geometry.inputs * inner
    return first + positions * (inner * outer * geometry.taps + outer * m)


def parameters(form: Form, ranks: tuple[int, ...], geometry: Geometry) -> int:
    """Return the elements of all factors."""
    rank = ranks[-1]
    m, d = geometry.outputs, geometry.columns
    if form == "thin":
        return rank * (d + m)
    if form == "spatial":
        height, width = geometry.kernel
        return rank * (geometry.inputs * height + m * width)
    inner, outer = ranks
    return geometry.inputs * inner + inner * outer * geometry.taps + outer * m


def full_ranks(form: Form, geometry: Geometry) -> tuple[int, ...]:
    """Return the ranks at which *form* is exact."""
    m, c = geometry.outputs, geometry.inputs
    if form == "thin":
        return (min(m, geometry.columns),)
    if form == "spatial":
        height, width = geometry.kernel
        return (min(c * height, m * width),)
    return min(c, m * geometry.taps), min(m, c * geometry.taps)


def halved(weight: Matrix, geometry: Geometry) -> Matrix:
    """Return *weight* [m, C kh kw] as [C kh, m kw]: what a spatial pair is the product of."""
    g, (height, width) = geometry, geometry.kernel
    tensor = weight.reshape(g.outputs, g.inputs, height, width)
    return tensor.transpose(1, 2, 0, 3).reshape(g.inputs * height, g.outputs * width)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the rows and the outputs of one operator.

    Attributes:
        covariance: [d, d] of the rows; None where there are no data.
        metric: [m, m] of what errors of the outputs cost, None for the same for all. With it losses are in
            the unit of the metric, without it shares of the energy of the outputs.
        count: Rows that the covariance was measured on.
        stage: How notes name the place.
        notes: What was not as it should be.
    """

    covariance: Matrix | None = None
    metric: Matrix | None = None
    count: int = 0
    stage: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, covariance: Matrix | None, metric: Matrix | None = None, *, count: int = 0, stage: str = ""
    ) -> Self:
        """Return the evidence, without a covariance that is not finite."""
        if covariance is None or np.isfinite(covariance).all():
            return cls(covariance, metric, count, stage)
        return cls(None, metric, count, stage, (f"{stage}: activations are not finite; plain SVD instead",))

    def weigh(self, weight: Matrix) -> Weighed:
        """Return *weight* [m, d] as the outputs see it."""
        return Weighed(weight, self.covariance, metric=self.metric, count=self.count, stage=self.stage)


class Splitter:
    """One weight, to be written in a form.

    Args:
        weight: [m, d].
        geometry: Its shape.
        evidence: What is known of its rows and its outputs.
        seed: For the randomised decomposition of large weights.
    """

    def __init__(self, weight: Matrix, geometry: Geometry, evidence: Evidence, *, seed: int = 0) -> None:
        self.weight = weight
        self.geometry = geometry
        self.notes = list(evidence.notes)
        self._evidence = evidence
        self._seed = seed

    def cut(self, form: Form, ranks: tuple[int, ...]) -> Factors:
        """Return the factors of *form* at *ranks*."""
        if form == "thin":
            outer, inner = self._outputs(ranks[0])
            return Factors(form, ranks, (inner,), inner, outer)
        if form == "spatial":
            return self._cut_spatial(ranks[0])
        return self._cut_tucker(*ranks)

    def _error(self, product: Matrix) -> float:
        """Return what is lost where *product* stands in for the weight, up to a factor."""
        change = product - self.weight
        covariance, metric = self._evidence.covariance, self._evidence.metric
        if metric is not None:
            seen = change if covariance is None else change @ covariance
            return max(float(np.einsum("md,md->", metric @ change, seen)), 0.0)
        if covariance is None:
            return float(np.sum(change**2))
        return max(float(np.einsum("md,md->", change @ covariance, change)), 0.0)

    def _outputs(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return the weight as a product of [m, rank] and [rank, d]."""
        evidence = self._evidence
        found = decompose(
            self.weight,
            evidence.covariance,
            metric=evidence.metric,
            count=evidence.count,
            stage=evidence.stage,
            largest_rank=rank,
            seed=self._seed,
        )
        self.notes += found.notes
        return found.cut(rank)

    def _cut_spatial(self, rank: int) -> Factors:
        """Return kh x 1 and 1 x kw kernels: the SVD of the weight as [C kh, m kw] (Jaderberg et al. 2014)."""
        g = self.geometry
        height, width = g.kernel
        outer, inner = decompose(halved(self.weight, g), largest_rank=rank, seed=self._seed).cut(rank)
        first = outer.T.reshape(rank, g.inputs, height, 1)
        # features [(r, kw), (C, kh, kw')]: the first kernel, at the column that the second one looks at
        features = np.einsum("rch,wv->rwchv", first[..., 0], np.eye(width)).reshape(rank * width, g.columns)
        last = inner.reshape(rank, g.outputs, width).transpose(1, 0, 2).reshape(g.outputs, rank * width)
        return Factors("spatial", (rank,), (first,), features, self._refit(features, last))

    def _cut_tucker(self, inner: int, outer: int) -> Factors:
        """Return 1x1, k x k and 1x1 kernels: the higher-order SVD over channels (Kim et al. 2016)."""
        g = self.geometry
        tensor = self.weight.reshape(g.outputs, g.inputs, g.taps)
        by_input = tensor.transpose(1, 0, 2).reshape(g.inputs, -1)
        source = decompose(by_input, largest_rank=inner, seed=self._seed).cut(inner)[0]
        target = self._outputs(outer)[0]
        core = np.tensordot(target, np.tensordot(tensor, source, (1, 0)), (0, 0)).swapaxes(1, 2)
        features = np.einsum("oit,ci->oct", core, source).reshape(outer, g.columns)
        parts = source.T.reshape(inner, g.inputs, 1, 1), core.reshape(outer, inner, *g.kernel)
        return Factors("tucker", (inner, outer), parts, features, self._refit(features, target))

    def _refit(self, features: Matrix, last: Matrix) -> Matrix:
        """Return the last factor that comes nearest to the weight on the data."""
        covariance = self._evidence.covariance
        seen = features if covariance is None else features @ covariance
        gram = seen @ features.T
        gram += FEATURE_RIDGE * (np.trace(gram) / max(len(gram), 1) + 1e-300) * np.eye(len(gram))
        with np.errstate(all="ignore"):
            try:
                refit = np.linalg.solve(gram, seen @ self.weight.T).T
            except np.linalg.LinAlgError:
                return last
        better = np.isfinite(refit).all() and self._error(refit @ features) <= self._error(last @ features)
        return refit if better else last
