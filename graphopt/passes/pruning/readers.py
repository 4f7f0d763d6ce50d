"""Linear operators that read a family: which columns of their weights belong to which unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.recover.linear import Linear, linear_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from graphopt.ir.shapes import Shapes
    from graphopt.passes.pruning.criterion import Contraction

    Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reader:
    """A Conv, Gemm or MatMul with a constant weight that sums over the units of a family.

    Attributes:
        linear: The operator.
        units: [C] the unit of the family that each index of its input belongs to, -1 for none.
    """

    linear: Linear
    units: Indices

    @property
    def output(self) -> str:
        """What it is called by."""
        return self.linear.output

    def blocks(self, size: int) -> list[list[Indices]]:
        """Return for each group of the operator the columns of each of *size* units."""
        taps = math.prod(self.linear.kernel)
        width = len(self.units) // self.linear.groups
        found = []
        for group in range(self.linear.groups):
            units = self.units[group * width : (group + 1) * width]
            found.append([columns_of(np.flatnonzero(units == unit), taps) for unit in range(size)])
        return found

    def gone(self, kept: Iterable[int]) -> npt.NDArray[np.bool_]:
        """Return which indices of its input go where only the *kept* units stay."""
        return (self.units >= 0) & ~np.isin(self.units, list(kept))


def columns_of(channels: Indices, taps: int) -> Indices:
    """Return the columns of a weight as a matrix that belong to *channels* of its input."""
    return (channels[:, None] * taps + np.arange(taps)).reshape(-1).astype(np.int64)


def reader_of(contraction: Contraction, shapes: Shapes | None = None) -> Reader | str:
    """Return the reader that *contraction* is, or why it cannot be fitted."""
    node = contraction.node
    if node is None:
        return "it is not known"
    linear = linear_of(node, shapes)
    if isinstance(linear, str):
        return linear
    weight = node.inputs[1]
    if linear.source != contraction.value or weight is None:
        return "the family is in its weight"
    if len(weight.uses()) > 1:
        return "others read its weight"
    return Reader(linear, np.asarray(contraction.units, np.int64))
