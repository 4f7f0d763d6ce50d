"""What an analysis of channels says: families of units, their members, locks, masks and rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.view import NodeView

Units = npt.NDArray[np.int64]
Kept = npt.NDArray[np.bool_]

Kind = Literal["channels", "heads", "head_dims", "hidden"]
Role = Literal["producer", "consumer", "follower"]


@dataclass(frozen=True, slots=True)
class Member:
    """One dim of one constant that the units of a family run through.

    Attributes:
        name: Name of the initializer, or of the output of a Constant node.
        axis: The dim.
        role: "producer" where a linear operator makes the channels (the outputs of a weight), "consumer"
            where one sums over them, else "follower" (biases, statistics, tables, scales).
        node: Name of the first output of the node that reads it here.
        column: 0, or 1 and more where an index goes with several units of the family.
        table: Families and units of each index, shared by all families of this dim: two arrays [dim, most].
        family: Number of the family in the table.
    """

    name: str
    axis: int
    role: Role
    node: str
    column: int = field(repr=False)
    table: tuple[Units, Units] = field(repr=False, compare=False)
    family: int = field(repr=False)

    @property
    def units(self) -> Units:
        """int64 [dim], the unit that takes each index with it when it goes; -1 where none does."""
        return column_of(self.table, self.family, self.column)


def column_of(table: tuple[Units, Units], family: int, column: int) -> Units:
    """Return the units of one family at each index of a dim: the first of an index, its second, ...

    Args:
        table: Families and units of each index, two arrays [dim, most per index]; -1 where there is none.
        family: Number of the family.
        column: Which of several units of an index.

    Returns:
        int64 [dim]; -1 where an index has no such unit.
    """
    families, units = table
    found = np.where(families == family, units, -1)
    return found[:, 0] if found.shape[1] == 1 else -np.sort(-found, axis=1)[:, column]


@dataclass(frozen=True, slots=True)
class Family:
    """Units of one kind, each removable on its own: channels of one stream, heads of one attention.

    Attributes:
        name: Name of its first producer and its dim, for example ``"conv1.weight[0]"``; unique.
        kind: "heads" and "head_dims" are the two factors of attention, "hidden" the inner units of
            perceptrons and recurrent operators, "channels" all else.
        size: Number of units.
        exact: Whether removing a unit equals setting it to zero; it does not where a norm or a reduction
            runs over the units.
        members: Dims of constants that it runs through, producers first.
        touched: Indices that one unit takes from its members, summed over them.
    """

    name: str
    kind: Kind
    size: int
    exact: bool
    members: tuple[Member, ...]
    touched: int = 0


@dataclass(frozen=True, slots=True)
class Lock:
    """Why some channels cannot be removed.

    Attributes:
        where: The node, input or output that locks them, as messages name it.
        reason: What it does with them, one phrase.
        members: (initializer, dim, number of indices) that it locks.
        unknown_op: The operator that has neither a rule nor could be probed, else empty.
    """

    where: str
    reason: str
    members: tuple[tuple[str, int, int], ...] = ()
    unknown_op: str = ""


@dataclass(frozen=True, slots=True)
class Mask:
    """A value to multiply with zeros so that the original computes what the cut model computes.

    Attributes:
        value: Name of a value whose dim is summed over by some operator; an initializer for the recurrent
            weights of LSTM, GRU and RNN.
        axis: The dim.
        keep: bool [dim].
    """

    value: str
    axis: int
    keep: Kept = field(repr=False)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A linear operator that sums over the units of a family.

    Attributes:
        node: Name of its first output.
        input: Which of its inputs is the activation.
        value: Name of that activation.
        axis: Its summed dim.
        units: int64 [dim of that axis], -1 where no unit of the family takes the index.
        weight: Name of the weight that it is multiplied with, empty where that is computed.
        weight_axis: Its summed dim.
    """

    node: str
    input: int
    value: str
    axis: int
    units: Units = field(repr=False)
    weight: str = ""
    weight_axis: int = 0


Layout = tuple[tuple[tuple[str, Units], ...], ...]
"""For each axis of a value (family, units [dim]) of all families in it: an index goes iff any unit does."""


@dataclass(frozen=True, slots=True)
class ChannelRule:
    """How one operator ties the indices of its inputs and outputs, and what of it a cut rewrites.

    Attributes:
        op_type: The operator.
        constrain: States the equations through the view of one node and labels its outputs.
        rewrite: Changes attributes and constant arguments of a node whose dims became smaller; None where
            slicing the weights is all there is.
        domain: Its domain, "" for ONNX's own.
    """

    op_type: str
    constrain: Callable[[NodeView], None]
    rewrite: Callable[[NodeCut], None] | None = None
    domain: str = ""


class Probe(Protocol):
    """Runs one operator; handed in by an upper floor, since this one executes nothing."""

    def __call__(
        self,
        domain: str,
        op_type: str,
        opset: int,
        inputs: Sequence[npt.NDArray[Any] | None],
        attributes: Mapping[str, Any],
        outputs: int,
        /,
    ) -> list[npt.NDArray[Any]]:
        """Return the outputs; raise a GraphoptError where the operator refuses."""
