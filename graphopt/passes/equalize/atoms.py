"""Atoms of channels: what is scaled together, and what may not be scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as oir

    Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Label:
    """The atoms of the channels of a value.

    Attributes:
        axis: The axis of channels, not negative.
        ids: [channels] atoms.
    """

    axis: int
    ids: Ids


@dataclass(frozen=True, eq=False, slots=True)
class Operator:
    """A linear operator whose weight may be rescaled.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        rows: [outputs] atoms of what it makes.
        columns: [inputs] atoms of what it reads; None where that is not labelled.
        groups: Groups of a convolution.
    """

    node: oir.Node
    rows: Ids
    columns: Ids | None
    groups: int


@dataclass(frozen=True, eq=False, slots=True)
class Offset:
    """A constant that is added to channels and is divided like them.

    Attributes:
        node: The node that reads it.
        index: Which input it is.
        axis: Its axis of channels, counted from the end (negative).
        ids: [channels] atoms.
    """

    node: oir.Node
    index: int
    axis: int
    ids: Ids


@dataclass(frozen=True, eq=False, slots=True)
class Bound:
    """A Clip whose bounds are to be divided like the channels.

    Attributes:
        node: The Clip.
        axis: The axis of channels, counted from the end (negative).
        ids: [channels] atoms.
        low: Its lower bound.
        high: Its upper bound.
        kind: What it computes in.
    """

    node: oir.Node
    axis: int
    ids: Ids
    low: float
    high: float
    kind: np.dtype[Any]


class Atoms:
    """Channels, united and locked; union-find over arrays."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(0, np.int64)
        self._locked: npt.NDArray[np.bool_] = np.zeros(0, bool)

    def fresh(self, count: int) -> Ids:
        """Return *count* new atoms."""
        ids = np.arange(len(self._parent), len(self._parent) + count)
        self._parent = np.concatenate([self._parent, ids])
        self._locked = np.concatenate([self._locked, np.zeros(count, bool)])
        return ids

    def find(self, ids: Ids) -> Ids:
        """Return what stands for each of *ids*."""
        while True:
            above = self._parent[ids]
            if np.array_equal(above, ids):
                return ids
            ids = above

    def unite(self, one: Ids, other: Ids) -> None:
        """Let atoms at the same place of both arrays be one."""
        while True:
            a, b = self.find(one), self.find(other)
            differ = a != b
            if not differ.any():
                return
            np.minimum.at(self._parent, np.maximum(a, b)[differ], np.minimum(a, b)[differ])

    def lock(self, ids: Ids) -> None:
        """Give them the scale 1 for good."""
        self._locked[ids] = True

    def roots(self) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Return what stands for each atom, and for each atom whether it is locked."""
        roots = self.find(np.arange(len(self._parent)))
        locked = np.zeros(len(roots), bool)
        np.logical_or.at(locked, roots, self._locked)
        return roots, locked[roots]
