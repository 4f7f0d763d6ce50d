"""How channel indices flow through a graph, and what falls when some are removed.

**Slots and atoms.** Every index of every dim of every value carries a *slot*: a set of *atoms*. An atom is
something that may be removed, and an index is removed iff any atom of its set is. The empty set is
*locked*: nothing removes that index. Inputs and outputs of the graph are locked, because callers see them
in full; every index of every weight starts with an atom of its own.

**Equations.** An operator says which indices must fall together. A convolution sums over the channels of
its input, so index c of the input's channels and index c of the weight's second dim have equal slots; what
it makes carries the slots of the weight's first dim. An addition equates its operands index by index. Such
equalities of sets are solved by unification: a free slot is bound to the other one; equal sets need
nothing; common atoms cancel; one atom against one atom unites the two; one against several binds it to
their product; anything else locks what is left, which is always right, for nothing is then removed.

**Products.** A dim of H * D indices that is reshaped to [H, D] is split: index (i, j) gets the set {A_i,
B_j} of a new atom for each row and each column, so that heads and head dims become removable side by side.
The way back, a merge of two dims, makes the same products. Where the indices of a dim are entangled in
another way, the shorter factor is locked and the longer one tied along it.

**Movement.** Reshape, Transpose, Slice, Concat and their kin copy labels from where an index was to where
it goes. Copies of one index (Expand, Tile of a dim of 1, the constant cells of Pad) are new atoms: any may
go.

**Exact and approximate.** What sums over an index treats a removed one like a zero. A mean, a norm or a
maximum does not: it runs over fewer indices then. Atoms that pass such an operator are approximate; they
may be removed, but the result is the function with the norm taken over what is kept, not the original with
zeros.

**Units and families.** Atoms that are free in the end are units; units that run through the same dims of
the same constants are a family: the channels of a stream, the heads of an attention, its head dims, hidden
units.

**The cut** slices each constant by the kept indices of its dims, and rewrites attributes and constant
arguments that hold sizes: groups, heads, shapes, split sizes, bounds of slices, indices of gathers. Dims
that the model leaves open stay open: in a computed shape only the elements that changed are replaced.
Whoever reads a size as a number (a scale of 1 / sqrt(d)) goes on reading the original one.

Constants are labelled at each place of use, because exporters write equal ones (zero biases) once, which
says nothing about their readers; a matrix of differing numbers that several nodes read is one on purpose
and stays so. After a cut places of use that ask for the same slice share it again.
"""

from __future__ import annotations

from graphopt.ir.channels.analysis import Channels, analyse
from graphopt.ir.channels.inlining import prepare
from graphopt.ir.channels.types import ChannelRule, Consumer, Family, Layout, Lock, Mask, Member, Probe

__all__ = [
    "ChannelRule",
    "Channels",
    "Consumer",
    "Family",
    "Layout",
    "Lock",
    "Mask",
    "Member",
    "Probe",
    "analyse",
    "prepare",
]
