"""The forms that a weight of low rank can take, each as a few thin weights one behind the other.

Common to all: the last factor is a plain matrix on features that are linear in the rows of the original
operator. ``weight = last @ features``, whatever the form, so that the last factor can be fitted to data
without knowing the form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphopt.recover.lowrank import Spectrum, decompose

if TYPE_CHECKING:
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix

Form = Literal["thin", "spatial", "tucker"]


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


class Splitter:
    """One weight, taken apart once for each form and cut at any rank.

    Args:
        weight: [m, d].
        geometry: Its shape.
        covariance: [d, d] of the rows; None where there are no data.
        metric: [m, m] of what errors of the outputs cost, None for the same for all. With it losses are in
            the unit of the metric, without it shares of the energy of the outputs.
        count: Rows that it was measured on.
        stage: How notes name the place.
        seed: For the randomised decomposition of large weights.
    """

    def __init__(
        self,
        weight: Matrix,
        geometry: Geometry,
        covariance: Matrix | None = None,
        *,
        metric: Matrix | None = None,
        count: int = 0,
        stage: str = "",
        seed: int = 0,
    ) -> None:
        self.weight = weight
        self.geometry = geometry
        self.notes: list[str] = []
        if covariance is not None and not np.isfinite(covariance).all():
            self.notes.append(f"{stage}: activations are not finite; plain SVD instead")
            covariance = None
        self.covariance = covariance
        self.metric = metric
        self._count = count
        self._stage = stage
        self._seed = seed
        self._thin: Spectrum | None = None
        self._spatial: Spectrum | None = None
        self._tucker: tuple[Spectrum, Spectrum] | None = None

    def cut(self, form: Form, ranks: tuple[int, ...]) -> Factors:
        """Return the factors of *form* at *ranks*."""
        if form == "thin":
            outer, inner = self.spectrum().cut(ranks[0])
            return Factors(form, ranks, (inner,), inner, outer)
        if form == "spatial":
            return self._cut_spatial(ranks[0])
        return self._cut_tucker(*ranks)

    def loss(self, form: Form, ranks: tuple[int, ...]) -> float:
        """Return the share of the output's energy that the form loses, or what the metric makes of it."""
        if form == "thin":
            spectrum = self.spectrum()
            return spectrum.loss(ranks[0]) * (1.0 if self.metric is None else spectrum.total)
        return self.error(self.cut(form, ranks).product)

    def error(self, product: Matrix) -> float:
        """Return what is lost where *product* stands in for the weight; see :meth:`loss`."""
        change = product - self.weight
        if self.metric is not None:
            seen = change if self.covariance is None else change @ self.covariance
            return max(float(np.einsum("md,md->", self.metric @ change, seen)), 0.0)
        if self.covariance is None:
            error, scale = float(np.sum(change**2)), float(np.sum(self.weight**2))
        else:
            error = float(np.einsum("md,md->", change @ self.covariance, change))
            scale = float(np.einsum("md,md->", self.weight @ self.covariance, self.weight))
        return max(error, 0.0) / scale if scale > 0 else 0.0

    def spectrum(self) -> Spectrum:
        """Return the weight as a matrix, taken apart."""
        if self._thin is None:
            self._thin = decompose(
                self.weight,
                self.covariance,
                metric=self.metric,
                count=self._count,
                stage=self._stage,
                seed=self._seed,
            )
            self.notes += self._thin.notes
        return self._thin

    def _cut_spatial(self, rank: int) -> Factors:
        """Return kh x 1 and 1 x kw kernels: the SVD of the weight as [C kh, m kw] (Jaderberg et al. 2014)."""
        g = self.geometry
        height, width = g.kernel
        if self._spatial is None:
            tensor = self.weight.reshape(g.outputs, g.inputs, height, width)
            matrix = tensor.transpose(1, 2, 0, 3).reshape(g.inputs * height, g.outputs * width)
            self._spatial = decompose(matrix, seed=self._seed)
        outer, inner = self._spatial.cut(rank)
        first = outer.T.reshape(rank, g.inputs, height, 1)
        # features [(r, kw), (C, kh, kw')]: the first kernel, at the column that the second one looks at
        features = np.einsum("rch,wv->rwchv", first[..., 0], np.eye(width)).reshape(rank * width, g.columns)
        last = inner.reshape(rank, g.outputs, width).transpose(1, 0, 2).reshape(g.outputs, rank * width)
        return Factors("spatial", (rank,), (first,), features, self._refit(features, last))

    def _cut_tucker(self, inner: int, outer: int) -> Factors:
        """Return 1x1, k x k and 1x1 kernels: the higher-order SVD over channels (Kim et al. 2016)."""
        g = self.geometry
        tensor = self.weight.reshape(g.outputs, g.inputs, g.taps)
        if self._tucker is None:
            by_input = decompose(tensor.transpose(1, 0, 2).reshape(g.inputs, -1), seed=self._seed)
            self._tucker = by_input, self.spectrum()
        source = self._tucker[0].outer[:, :inner]
        target = self._tucker[1].outer[:, :outer]
        core = np.einsum("mct,mo,ci->oit", tensor, target, source)
        features = np.einsum("oit,ci->oct", core, source).reshape(outer, g.columns)
        parts = source.T.reshape(inner, g.inputs, 1, 1), core.reshape(outer, inner, *g.kernel)
        return Factors("tucker", (inner, outer), parts, features, self._refit(features, target))

    def _refit(self, features: Matrix, last: Matrix) -> Matrix:
        """Return the last factor that comes nearest to the weight on the data."""
        seen = features if self.covariance is None else features @ self.covariance
        gram = seen @ features.T
        gram += 1e-9 * (np.trace(gram) / max(len(gram), 1) + 1e-300) * np.eye(len(gram))
        with np.errstate(all="ignore"):
            try:
                refit = np.linalg.solve(gram, seen @ self.weight.T).T
            except np.linalg.LinAlgError:
                return last
        better = np.isfinite(refit).all() and self.error(refit @ features) <= self.error(last @ features)
        return refit if better else last
