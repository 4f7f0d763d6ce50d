"""Which scales make the channels of neighbouring weights alike.

For a channel u let p_u be the range of the rows that make it over that of their whole weight, and c_u the
same of the columns that read it: with one scale a weight, 8-bit codes leave it p_u * 255 and c_u * 255 steps.
The scale s_u = sqrt(p_u / c_u) makes both sqrt(p_u c_u), which is the best of a pair (Nagel et al., Data-Free
Quantization through Weight Equalization and Bias Correction, 2019, eq. 11; Meller et al., Same, Same But
Different, 2019). Chains are solved by going over them until nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.rewrite import attribute, constant_array, is_op

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from graphopt.passes.equalize.atoms import Operator
    from graphopt.passes.equalize.flow import Flow

    Matrix = npt.NDArray[np.float64]
    Ids = npt.NDArray[np.int64]

_SWEEPS = 30
_STILL = 0.02
"""Change of log2 of every scale below which a sweep is the last one."""

LEAST_GAIN = 0.002
"""Bits a channel, in the mean, below which a step is not worth taking."""

LARGEST_LOG2 = 16
"""Scales stay within 2**-16 and 2**16: what differs by more is dead."""


@dataclass(frozen=True, eq=False, slots=True)
class Ranges:
    """Largest magnitudes of the kernels of a weight.

    Attributes:
        table: [groups, outputs of a group, inputs of a group], never negative.
        rows: [groups, outputs of a group] atoms.
        columns: [groups, inputs of a group] atoms, or None.
    """

    table: Matrix
    rows: Ids
    columns: Ids | None

    def scaled(self, logs: Matrix) -> Matrix:
        """Return the table with the scales 2**logs [atoms] in it."""
        found: Matrix = self.table * np.exp2(-logs[self.rows])[:, :, None]
        if self.columns is not None:
            found = found * np.exp2(logs[self.columns])[:, None, :]
        return found


def ranges_of(operator: Operator, roots: Ids) -> Ranges:
    """Return the ranges of an operator's weight; atoms are given by what stands for them."""
    node, groups = operator.node, operator.groups
    array = constant_array(node.inputs[1])
    assert array is not None
    table = np.abs(array.astype(np.float64))
    if is_op(node, "Conv", "ConvTranspose"):
        table = table.reshape(*table.shape[:2], -1).max(axis=2)
        if is_op(node, "Conv"):
            table = table.reshape(groups, -1, table.shape[1])
        else:  # [inputs, outputs of a group]
            table = table.reshape(groups, -1, table.shape[1]).transpose(0, 2, 1)
    else:
        turned = is_op(node, "Gemm") and attribute(node, "transB", 0)
        table = (table if turned else table.T)[None]
    columns = None if operator.columns is None else roots[operator.columns].reshape(groups, -1)
    return Ranges(table, roots[operator.rows].reshape(groups, -1), columns)


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Channels that the same operators make and read.

    Attributes:
        atoms: What stands for them.
        makers: Indices of the operators that make them.
        readers: Indices of the operators that read them.
    """

    atoms: Ids
    makers: tuple[int, ...]
    readers: tuple[int, ...]


def groups_of(flow: Flow, roots: Ids, locked: npt.NDArray[np.bool_]) -> list[Group]:
    """Return the channels that may be scaled, in the order of their first operator."""
    count = len(roots)
    signs: dict[int, list[int]] = {}
    for index, operator in enumerate(flow.operators):
        for side, ids in ((0, operator.rows), (1, operator.columns)):
            if ids is not None:
                for atom in np.unique(roots[ids]).tolist():
                    signs.setdefault(atom, []).append(2 * index + side)
    by_sign: dict[tuple[int, ...], list[int]] = {}
    for atom, sign in signs.items():
        if atom < count and not locked[atom]:
            by_sign.setdefault(tuple(sign), []).append(atom)
    found = []
    for marks, atoms in by_sign.items():
        makers = tuple(each // 2 for each in marks if not each % 2)
        readers = tuple(each // 2 for each in marks if each % 2)
        if makers and readers:
            found.append(Group(np.array(sorted(atoms)), makers, readers))
    return sorted(found, key=lambda group: (group.makers, group.readers))


def choose(ranges: Sequence[Ranges], groups: Sequence[Group], count: int) -> Matrix:
    """Return log2 of the scale that each channel is divided by.

    Args:
        ranges: Ranges of the operators' weights.
        groups: What may be scaled.
        count: Number of atoms.

    Returns:
        [count]; zero for what stays.
    """
    logs = np.zeros(count)
    for _ in range(_SWEEPS):
        moved = 0.0
        for group in groups:
            before = logs[group.atoms]
            after = np.clip(before + _step(ranges, group, logs), -LARGEST_LOG2, LARGEST_LOG2)
            moved = max(moved, float(np.abs(after - before).max()))
            logs[group.atoms] = after
        if moved < _STILL:
            break
    return logs


def evenness(ranges: Sequence[Ranges], groups: Sequence[Group], logs: Matrix) -> float:
    """Return the mean of log2(min(p_u, c_u)) over all channels, 0 at best.

    These are the bits that codes of one scale a weight do not give a channel on the side where it is smaller.
    The step of a pair never lowers it: min(p, c) <= sqrt(p c), which both become or more.
    """
    parts = [np.minimum(*_parts(ranges, group, logs)) for group in groups]
    joined = np.concatenate(parts)
    joined = joined[joined > 0]
    return float(np.mean(np.log2(joined))) if len(joined) else 0.0


def _step(ranges: Sequence[Ranges], group: Group, logs: Matrix) -> Matrix:
    row, column = _parts(ranges, group, logs)
    usable = (row > 0) & (column > 0)
    step = np.zeros(len(column))
    step[usable] = 0.5 * (np.log2(row[usable]) - np.log2(column[usable]))
    return step


def _parts(ranges: Sequence[Ranges], group: Group, logs: Matrix) -> tuple[Matrix, Matrix]:
    """Return p_u and c_u of the channels of *group*."""
    made = np.zeros(len(logs))
    read = np.zeros(len(logs))
    for index in group.makers:
        table = ranges[index].scaled(logs)
        _note(made, ranges[index].rows, table.max(axis=2), float(np.max(table)))
    for index in group.readers:
        table, columns = ranges[index].scaled(logs), ranges[index].columns
        assert columns is not None
        _note(read, columns, table.max(axis=1), float(np.max(table)))
    return made[group.atoms], read[group.atoms]


def _note(into: Matrix, atoms: Ids, found: npt.NDArray[Any], whole: float) -> None:
    if whole > 0:
        np.maximum.at(into, atoms.reshape(-1), found.reshape(-1) / whole)


def flatness(ranges: Ranges, logs: Matrix) -> float:
    """Return the mean range of a row over that of the whole weight: 1 where all rows are alike."""
    rows = np.max(ranges.scaled(logs), axis=2)
    whole = float(np.max(rows))
    return float(np.mean(rows)) / whole if whole > 0 else 1.0
