"""From labels to families: which atoms are free, which run through the same dims, what they are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.channels.types import Family, Lock, Member
from graphopt.ir.rewrite import input_at
from graphopt.ir.semantics import key_of

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir.channels.propagation import Propagation
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.types import Kind, Role

_LINEAR = frozenset(
    {"MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "FusedMatMul", "FusedGemm", "MatMulNBits"}
)


@dataclass(slots=True)
class _Dim:
    """One live dim of one constant at one place of use, with the atoms of each index [dim, most]."""

    node: oir.Node
    name: str
    axis: int
    role: Role
    atoms: Array


@dataclass(slots=True)
class Units:
    """Families of an analysis and the way from an atom to its unit.

    Attributes:
        families: In order of their first dim in the graph.
        atoms: For each family, the atom of each unit.
        family_of: [slots] index of the family of each atom, -1 where it has none.
        unit_of: [slots] its unit.
    """

    families: list[Family] = field(default_factory=list)
    atoms: list[Array] = field(default_factory=list)
    family_of: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    unit_of: Array = field(default_factory=lambda: np.zeros(0, np.int64))


def _dims(run: Propagation) -> list[_Dim]:
    found: dict[int, _Dim] = {}
    for (node, index), axes in run.uses.items():
        value = input_at(node, index)
        assert value is not None
        for k, axis in enumerate(axes):
            if axis is not None and id(axis) not in found and run.slots.is_live(axis):
                role = run.roles.get(id(axis), "follower")
                found[id(axis)] = _Dim(node, value.name or "", k, role, run.slots.atoms(axis))
    return list(found.values())


def _flowing(run: Propagation) -> Array:
    """Return [slots] whether an atom runs through a value that is computed from the inputs."""
    flows = np.zeros(len(run.slots), bool)
    seen: set[int] = set()
    for value, axes in run.labels.items():
        if run.is_parameter(value):
            continue
        for axis in axes:
            if axis is not None and id(axis) not in seen:
                seen.add(id(axis))
                flows[run.slots.atoms(axis).reshape(-1)] = True
    return flows


def _signatures(dims: list[_Dim], count: int) -> tuple[Array, np.ndarray]:
    """Return the free atoms and a hash of the set of dims that each runs through."""
    atoms = np.concatenate([dim.atoms.reshape(-1) for dim in dims])
    where = np.concatenate([np.full(dim.atoms.size, k) for k, dim in enumerate(dims)])
    pairs = np.unique((atoms * len(dims) + where)[atoms > 0])
    atoms, where = pairs // len(dims), pairs % len(dims)
    # Sums of 64-bit random numbers, one a dim: equal sets have equal sums, others differ but for one in 2^64.
    weights = np.random.default_rng(0).integers(0, 2**63, len(dims), dtype=np.uint64)
    free, start = np.unique(atoms, return_index=True)
    return free, np.add.reduceat(weights[where], start) if count else np.zeros(0, np.uint64)


def find_units(run: Propagation) -> Units:
    """Group the free atoms of an analysis into families; atoms that occur in no constant have none."""
    size = len(run.slots)
    units = Units(family_of=np.full(size, -1, np.int64), unit_of=np.full(size, -1, np.int64))
    dims = _dims(run)
    if not dims:
        return units
    free, signature = _signatures(dims, size)
    flowing = _flowing(run)[free]
    free, signature = free[flowing], signature[flowing]
    if not len(free):
        return units
    _, group = np.unique(signature, return_inverse=True)
    group_of = np.full(size, -1, np.int64)
    group_of[free] = group
    # Factors of one dim, heads and head dims above all, may run through the same dims; atoms of one family
    # never meet in one index.
    mixed: set[int] = set()
    for dim in dims:
        if dim.atoms.shape[1] > 1:
            groups = np.where(dim.atoms > 0, group_of[dim.atoms], -1)
            groups.sort(axis=1)
            twice = groups[:, 1:][(groups[:, 1:] == groups[:, :-1]) & (groups[:, 1:] >= 0)]
            mixed.update(np.unique(twice).tolist())
    if mixed:
        split = np.isin(group, sorted(mixed))
        births = np.where(split, run.slots.birth(free), 0)
        _, group = np.unique(np.stack([group, births]), axis=1, return_inverse=True)
        group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[order])) + 1
    classes = [part for part in np.split(free[order], bounds) if len(part) > 1]
    _name_all(run, dims, classes, units)
    return units


def _name_all(run: Propagation, dims: list[_Dim], classes: list[Array], units: Units) -> None:
    for k, atoms in enumerate(classes):
        units.family_of[atoms] = k
    touched: list[list[int]] = [[] for _ in classes]
    first = np.full(len(run.slots), np.iinfo(np.int64).max)
    for k, dim in enumerate(dims):
        present = np.unique(dim.atoms)
        for family in np.unique(units.family_of[present]).tolist():
            if family >= 0:
                touched[family].append(k)
        # Units are numbered by the first index that they take, in the first dim that has them.
        new = present[first[present] == np.iinfo(np.int64).max]
        if len(new):
            flat, index = np.unique(dim.atoms.T.reshape(-1)[::-1], return_index=True)
            place = (dim.atoms.size - 1 - index) % len(dim.atoms)
            chosen = np.isin(flat, new)
            first[flat[chosen]] = place[chosen]
    kinds = _kinds(run)
    approximate = np.zeros(len(run.slots), bool)
    for _, axis in run.approximations:
        approximate[run.slots.atoms(axis).reshape(-1)] = True
    names: dict[str, int] = {}

    def first_producer(k: int) -> int:
        return next((d for d in touched[k] if dims[d].role == "producer"), touched[k][0])

    ranked = sorted(range(len(classes)), key=first_producer)
    renumber = np.full(len(classes), -1, np.int64)
    for rank, k in enumerate(ranked):
        renumber[k] = rank
    known = units.family_of >= 0
    units.family_of[known] = renumber[units.family_of[known]]
    for k in ranked:
        atoms = classes[k][np.argsort(first[classes[k]], kind="stable")]
        units.atoms.append(atoms)
        units.unit_of[atoms] = np.arange(len(atoms))
    tables = [table_of(units, dim.atoms) for dim in dims]
    taken = np.zeros(len(classes), np.int64)
    for families, _ in tables:
        # Of an index with several units of one family each is counted, which is near enough.
        taken += np.bincount(families[families >= 0], minlength=len(classes))
    for rank, k in enumerate(ranked):
        atoms = units.atoms[rank]
        exact = not approximate[atoms].any()
        members = _members(rank, [dims[d] for d in touched[k]], [tables[d] for d in touched[k]])
        kind = _kind(kinds, atoms, [dims[d] for d in touched[k]], exact=exact)
        name = f"{members[0].name}[{members[0].axis}]"
        if kind in {"heads", "head_dims"}:
            name = f"{name}.{kind}"
        number = names[name] = names.get(name, 0) + 1
        units.families.append(
            Family(
                name if number == 1 else f"{name}#{number}",
                kind,
                len(atoms),
                exact,
                members,
                round(int(taken[rank]) / len(atoms)),
            )
        )


def table_of(units: Units, atoms: Array) -> tuple[Array, Array]:
    """Return the families and units of the atoms [dim, most] of one axis, -1 where an atom has none."""
    families = np.where(atoms > 0, units.family_of[atoms], -1)
    return families, units.unit_of[atoms]


def families_in(table: tuple[Array, Array]) -> dict[int, int]:
    """Return the families of an axis, each with how many of its units one index has at most."""
    families = table[0]
    present = {family: 1 for family in np.unique(families).tolist() if family >= 0}
    if families.shape[1] > 1:
        for family in present:
            present[family] = int((families == family).sum(axis=1).max())
    return present


def _members(family: int, dims: list[_Dim], tables: list[tuple[Array, Array]]) -> tuple[Member, ...]:
    members = [
        Member(dim.name, dim.axis, dim.role, key_of(dim.node), column, table, family)
        for dim, table in zip(dims, tables, strict=True)
        for column in range(1 if table[0].shape[1] == 1 else families_in(table)[family])
    ]
    rank = {"producer": 0, "consumer": 1, "follower": 2}
    # A family is named after its first producer, else after its first dim at all.
    first = next((member for member in members if member.role == "producer"), members[0])
    rest = sorted((member for member in members if member is not first), key=lambda member: rank[member.role])
    return (first, *rest)


def _kinds(run: Propagation) -> dict[str, np.ndarray]:
    kinds = {kind: np.zeros(len(run.slots), bool) for kind in ("heads", "head_dims")}
    for axis, kind in run.marks:
        kinds[kind][run.slots.atoms(axis).reshape(-1)] = True
    return kinds


def _kind(kinds: dict[str, np.ndarray], atoms: Array, dims: list[_Dim], *, exact: bool) -> Kind:
    if kinds["heads"][atoms].any():
        return "heads"
    if kinds["head_dims"][atoms].any():
        return "head_dims"
    makers = [dim for dim in dims if dim.role == "producer"]
    if exact and makers and all(dim.node.op_type in _LINEAR for dim in makers):
        return "hidden"
    return "channels"


def find_locks(run: Propagation) -> tuple[Lock, ...]:
    """Return who locked which dims of constants, in order of the first that each locked."""
    held: dict[int, dict[tuple[str, int], int]] = {}
    seen: set[int] = set()
    for (node, index), axes in run.uses.items():
        value = input_at(node, index)
        for k, axis in enumerate(axes):
            if axis is None or id(axis) in seen:
                continue
            seen.add(id(axis))
            numbers, counts = np.unique(run.slots.reason(axis), return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                if number > 0:
                    place = held.setdefault(number, {})
                    key = (value.name or "" if value is not None else "", k)
                    place[key] = place.get(key, 0) + count
    overridable = [
        Lock(
            f"overridable initializer {value.name!r}",
            "a caller may replace it",
            tuple((value.name or "", k, dim) for k, dim in enumerate(run.shape(value)) if dim > 1),
        )
        for value in run.model.graph.inputs
        if value.is_initializer() and run.constant(value) is None
    ]
    return (
        *overridable,
        *(
            Lock(
                *run.reasons[number],
                tuple((name, axis, count) for (name, axis), count in places.items()),
                run.unknown.get(number, ""),
            )
            for number, places in sorted(held.items())
        ),
    )
