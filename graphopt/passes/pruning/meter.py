"""What a model costs at given numbers of kept units, without cutting it.

The MACs of a node are a function of the shapes of its operands (graphopt.ir.macs), and a shape under a cut
follows from the layout of the value: which units each index of a dim belongs to. So the cost of any choice is
known exactly before anything is rewritten; what only the whole graph tells (which branch of an If is larger)
is measured afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir import tensors
from graphopt.ir.cost import NOT_PARAMETERS
from graphopt.ir.macs import macs_of
from graphopt.ir.rewrite import node_graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.ir.shapes import Shapes

    Units = npt.NDArray[np.intp]
    Rows = Sequence[tuple[str, Units]]
    Counts = Mapping[str, int]
    Layout = Callable[[oir.Node, int], Mapping[int, Rows]]
    """Rows of each touched axis of input i of a node, or of its output -1 - i."""
    ShapeOf = Callable[[oir.Value | None], tuple[int, ...] | None]


@dataclass(frozen=True)
class Extent:
    """How many indices of one dim stay, as a function of the kept units of each family.

    The kept units of a family are always the first ones of its order of importance, so that their number says
    which they are.

    Attributes:
        size: The size of the dim.
        families: Families that touch it.
        tables: For each group of indices that one family decides alone: (family, kept indices by number of
            kept units).
        grids: For each group that is a full grid of several families: (families, indices a cell).
        ragged: For the other indices: (family, rank of its unit in order of importance, -1 for none) rows.
        fixed: Indices that no family touches.
        signature: Equal for dims whose indices belong to the same units.
    """

    size: int
    families: tuple[str, ...]
    tables: tuple[tuple[str, Units], ...]
    grids: tuple[tuple[tuple[str, ...], int], ...]
    ragged: tuple[tuple[str, Units], ...]
    fixed: int
    signature: int

    def key(self, counts: Counts) -> tuple[object, ...]:
        """Return what is equal for dims that lose the same indices."""
        if self.count(counts) == self.size:
            return (self.size,)
        return (self.signature, *(counts[family] for family in self.families))

    def count(self, counts: Counts) -> int:
        """Return how many indices stay."""
        total = self.fixed
        for family, table in self.tables:
            total += int(table[counts[family]])
        for families, cell in self.grids:
            total += cell * math.prod(counts[family] for family in families)
        if self.ragged:
            kept = np.ones(len(self.ragged[0][1]), bool)
            for family, ranks in self.ragged:
                kept &= ranks < counts[family]
            total += int(np.count_nonzero(kept))
        return total


Extents = dict[int, Extent]
"""What is known of each touched axis of one operand."""


def make_extent(rows: Rows, ranks: Mapping[str, Units], sizes: Counts) -> Extent | None:
    """Return the extent of one dim, or None where no family of *ranks* touches it.

    Args:
        rows: (family, unit of each index or -1); a family may have several rows.
        ranks: Place of each unit in its family's order of importance, by family; others count as uncut.
        sizes: Units of each family.
    """
    rows = [(family, units) for family, units in rows if family in ranks]
    if not rows:
        return None
    dim = len(rows[0][1])
    touched = np.stack([units >= 0 for _, units in rows])
    codes = (touched * (1 << np.arange(len(rows)))[:, None]).sum(axis=0)
    tables: list[tuple[str, Units]] = []
    grids: list[tuple[tuple[str, ...], int]] = []
    ragged: list[Units] = []
    for code in np.unique(codes[codes > 0]).tolist():
        inside = np.flatnonzero(codes == code)
        members = [index for index in range(len(rows)) if code >> index & 1]
        if len(members) == 1:
            family, units = rows[members[0]]
            per_rank = np.bincount(ranks[family][units[inside]], minlength=sizes[family])
            tables.append((family, np.concatenate([[0], np.cumsum(per_rank)]).astype(np.intp)))
            continue
        names = tuple(rows[index][0] for index in members)
        cell = _cell(names, [rows[index][1][inside] for index in members], sizes)
        if cell:
            grids.append((names, cell))
        else:
            ragged.append(inside)
    odd = np.concatenate(ragged) if ragged else np.zeros(0, np.intp)
    return Extent(
        size=dim,
        families=tuple(dict.fromkeys(family for family, _ in rows)),
        tables=tuple(tables),
        grids=tuple(grids),
        ragged=tuple((family, _ranked(ranks[family], units[odd])) for family, units in rows)
        if ragged
        else (),
        fixed=int(np.count_nonzero(codes == 0)),
        signature=hash(tuple((family, units.tobytes()) for family, units in rows)),
    )


def _ranked(ranks: Units, units: Units) -> Units:
    return np.where(units >= 0, ranks[units], -1)


def _cell(names: Sequence[str], units: Sequence[Units], sizes: Counts) -> int:
    """Return how often each combination of units occurs where all occur equally often, else 0."""
    if len(set(names)) < len(names):
        return 0
    shape = [sizes[name] for name in names]
    cells = math.prod(shape)
    if cells > len(units[0]):
        return 0
    found = np.bincount(np.ravel_multi_index(tuple(units), shape), minlength=cells)
    return int(found[0]) if (found == found[0]).all() else 0


class Meter:
    """MACs and parameters of a model under a cut.

    Args:
        model: The model before the cut.
        shapes: Its shapes, with every dim bound.
        layout: Gives the rows of each touched axis of input i of a node, or of its output -1 - i. A constant
            that several nodes read may be cut in another way for each.
        ranks: Place of each unit in its family's order of importance, by family.
    """

    def __init__(self, model: Model, shapes: Shapes, layout: Layout, ranks: Mapping[str, Units]) -> None:
        self.sizes: dict[str, int] = {family: len(order) for family, order in ranks.items()}
        self._shapes = shapes
        self._layout = layout
        self._ranks = ranks
        self._extents: dict[tuple[oir.Node, int], Extents] = {}
        # By the identity of the rows, which are kept so that it stays theirs: many operands share a dim.
        self._made: dict[int, tuple[Rows, Extent | None]] = {}
        self._nodes: dict[str, list[tuple[oir.Node, int]]] = {family: [] for family in ranks}
        self._tensors: dict[str, dict[oir.Value, None]] = {family: {} for family in ranks}
        self._uses: dict[oir.Value, list[Extents]] = {}
        constants = dict.fromkeys(_constants(model))
        for node, times in _executions(model, shapes):
            places = [*range(len(node.inputs)), *(-1 - index for index in range(len(node.outputs)))]
            families: dict[str, None] = {}
            for place in places:
                extents = self._at(node, place)
                found = dict.fromkeys(family for extent in extents.values() for family in extent.families)
                families |= found
                value = node.inputs[place] if place >= 0 else None
                if value is not None and value in constants:
                    self._uses.setdefault(value, []).append(extents)
                    for family in found:
                        self._tensors[family][value] = None
            if families and macs_of(node, self._shape_of(node, self.sizes)):
                for family in families:
                    self._nodes[family].append((node, times))

    def saved_macs(self, counts: Counts, family: str, kept: int) -> int:
        """Return the MACs that go when *family* goes from ``counts[family]`` to *kept* units."""
        return self._difference(counts, {**counts, family: kept}, self._nodes[family])

    def saved_parameters(self, counts: Counts, family: str, kept: int) -> int:
        """Return the parameters that go when *family* goes from ``counts[family]`` to *kept* units."""
        after = {**counts, family: kept}
        return sum(
            self._elements(value, counts) - self._elements(value, after) for value in self._tensors[family]
        )

    def removed_macs(self, counts: Counts) -> int:
        """Return the MACs that a cut to *counts* removes from the whole model."""
        nodes = dict.fromkeys(item for family in self._nodes for item in self._nodes[family])
        return self._difference(self.sizes, counts, nodes)

    def removed_parameters(self, counts: Counts) -> int:
        """Return the parameters that a cut to *counts* removes from the whole model."""
        values = dict.fromkeys(value for family in self._tensors for value in self._tensors[family])
        return sum(self._elements(value, self.sizes) - self._elements(value, counts) for value in values)

    def _difference(self, before: Counts, after: Counts, nodes: Iterable[tuple[oir.Node, int]]) -> int:
        total = 0
        for node, times in nodes:
            one = macs_of(node, self._shape_of(node, before)) or 0
            total += times * (one - (macs_of(node, self._shape_of(node, after)) or 0))
        return total

    def _at(self, node: oir.Node, place: int) -> Extents:
        found = self._extents.get((node, place))
        if found is None:
            found = {}
            for axis, rows in self._layout(node, place).items():
                if id(rows) not in self._made:
                    self._made[id(rows)] = (rows, make_extent(rows, self._ranks, self.sizes))
                extent = self._made[id(rows)][1]
                if extent is not None:
                    found[axis] = extent
            self._extents[node, place] = found
        return found

    def _elements(self, value: oir.Value, counts: Counts) -> int:
        """Return the elements of all slices of a constant; places of use with the same slice share it."""
        shape = _constant_shape(value)
        slices = {
            tuple(
                extents[axis].key(counts) if axis in extents else dim for axis, dim in enumerate(shape)
            ): extents
            for extents in self._uses[value]
        }
        return sum(
            math.prod(
                extents[axis].count(counts) if axis in extents else dim for axis, dim in enumerate(shape)
            )
            for extents in slices.values()
        )

    def _shape_of(self, node: oir.Node, counts: Counts) -> ShapeOf:
        places: dict[oir.Value, int] = {}
        for index, value in enumerate(node.inputs):
            if value is not None:
                places.setdefault(value, index)
        places |= {value: -1 - index for index, value in enumerate(node.outputs)}

        def shape_of(value: oir.Value | None) -> tuple[int, ...] | None:
            shape = None if value is None else self._shapes.shape(value)
            if value is None or shape is None:
                return None
            extents = self._at(node, places[value]) if value in places else {}
            return tuple(
                extents[axis].count(counts) if axis in extents else dim if isinstance(dim, int) else 1
                for axis, dim in enumerate(shape)
            )

        return shape_of


def _executions(model: Model, shapes: Shapes) -> Iterator[tuple[oir.Node, int]]:
    """Yield every node outside functions with how often it runs; both branches of an If count."""

    def walk(graph: oir.Graph, times: int) -> Iterator[tuple[oir.Node, int]]:
        for node in graph:
            yield node, times
            if node.attributes.data:
                inner = times * shapes.trips.get(node, 1)
                for body in node_graphs(node):
                    yield from walk(body, inner)

    yield from walk(model.graph, 1)


def _constants(model: Model) -> Iterator[oir.Value]:
    """Yield what holds the parameters: initializers and outputs of Constant nodes, each tensor once."""
    seen: set[int] = set()
    for graph in model.graphs():
        held = [value for value in graph.initializers.values() if value.const_value is not None]
        held += [node.outputs[0] for node in graph if node.op_type == "Constant" and not node.domain]
        for value in held:
            tensor = tensors.constant_of(value) if value.const_value is None else value.const_value
            if tensor is None or id(tensor) in seen or tensor.dtype in NOT_PARAMETERS:
                continue
            seen.add(id(tensor))
            yield value


def _constant_shape(value: oir.Value) -> tuple[int, ...]:
    tensor = value.const_value if value.const_value is not None else tensors.constant_of(value)
    assert tensor is not None
    return tuple(int(dim) for dim in tensor.shape.numpy())
