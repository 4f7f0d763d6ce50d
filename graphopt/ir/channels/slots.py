"""Slots: one number an index of a dim, standing for the set of atoms whose removal removes that index.

A slot is an atom, another name of a slot, or a product: the union of two slots. Atoms are removed freely
unless they are locked; a locked atom counts as absent from every set, and the empty set is never removed.
Everything works on whole arrays of slots, so that a dim of thousands of indices costs a few numpy calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

Array = npt.NDArray[np.int64]

LOCKED = 0
"""The slot of an index that nothing removes."""


class Slots:
    """A union-find over slots with products; see the top of the package for the equations.

    Reasons are small positive numbers that the caller hands out; the first one to lock an atom stays.
    """

    def __init__(self) -> None:
        self._size = 1
        self._parent = np.zeros(1024, np.int64)
        self._left = np.full(1024, -1, np.int64)
        self._right = np.full(1024, -1, np.int64)
        self._reason = np.zeros(1024, np.int64)
        self._reason[LOCKED] = -1
        self._birth = np.zeros(1024, np.int64)
        self._births = 0
        self.has_products = False

    def __len__(self) -> int:
        return self._size

    def fresh(self, count: int) -> Array:
        """Return *count* new atoms; they share a birth, see :meth:`birth`."""
        start, end = self._size, self._size + count
        if end > len(self._parent):
            grow = max(end, 2 * len(self._parent)) - len(self._parent)
            self._parent = np.concatenate([self._parent, np.zeros(grow, np.int64)])
            self._left = np.concatenate([self._left, np.full(grow, -1, np.int64)])
            self._right = np.concatenate([self._right, np.full(grow, -1, np.int64)])
            self._reason = np.concatenate([self._reason, np.zeros(grow, np.int64)])
            self._birth = np.concatenate([self._birth, np.zeros(grow, np.int64)])
        self._size = end
        self._births += 1
        made = np.arange(start, end, dtype=np.int64)
        self._parent[start:end] = made
        self._birth[start:end] = self._births
        return made

    def birth(self, atoms: Array) -> Array:
        """Return which call of :meth:`fresh` made each of *atoms*."""
        return self._birth[atoms]

    def reason(self, slots: Array) -> Array:
        """Return what locked each slot that is no product: 0 for free ones, -1 for :data:`LOCKED` itself."""
        return self._reason[self._roots(slots)]

    def _roots(self, slots: Array) -> Array:
        roots = self._parent[slots]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[slots] = roots
        return roots

    def find(self, slots: Array) -> Array:
        """Return one slot for every class of equal ones; :data:`LOCKED` for locked atoms."""
        roots = self._roots(slots)
        return np.where(self._reason[roots] != 0, LOCKED, roots)

    def settle(self, slots: Array) -> Array:
        """Return :meth:`find` with products that have come down to one atom or none replaced by that."""
        roots = self.find(slots)
        if self.has_products:
            union = np.unique(roots[self._left[roots] >= 0])
            if len(union):
                atoms = self.atoms(union)
                count = (atoms != LOCKED).sum(axis=1)
                # The largest, and where there is one the only one, stands last.
                self._parent[union[count == 1]] = atoms[count == 1, -1]
                roots = self.find(roots)
                if not count.all():
                    roots = np.where(np.isin(roots, union[count == 0]), LOCKED, roots)
        return roots

    def atoms(self, slots: Array) -> Array:
        """Return the atoms of each slot, locked ones left out.

        Args:
            slots: Any shape.

        Returns:
            Shape of *slots* plus one dim: the atoms in ascending order behind as many zeros as it takes.
        """
        table = self.find(slots.reshape(-1))[:, None]
        if self.has_products:
            while True:
                split = self._left[table] >= 0
                if not split.any():
                    break
                more = np.where(split, self.find(np.where(split, self._right[table], LOCKED)), LOCKED)
                table = np.where(split, self.find(np.where(split, self._left[table], LOCKED)), table)
                table = np.concatenate([table, more[:, split.any(axis=0)]], axis=1)
            if table.shape[1] > 1:
                table.sort(axis=1)
                twice = table[:, 1:] == table[:, :-1]
                if twice.any():
                    table[:, 1:][twice] = LOCKED
                    table.sort(axis=1)
                used = table.any(axis=0)
                used[-1] = True
                table = table[:, used]
        return table.reshape(*slots.shape, table.shape[1])

    def is_live(self, slots: Array) -> bool:
        """Return whether some index of *slots* may be removed."""
        roots = self.find(slots)
        if not roots.any():
            return False
        return not self.has_products or bool(self.atoms(roots).any())

    def lock(self, slots: Array, reason: int) -> None:
        """Lock every atom of *slots*."""
        atoms = self.atoms(slots.reshape(-1))
        self._reason[atoms[atoms != LOCKED]] = reason

    def product(self, one: Array, other: Array) -> Array:
        """Return, element by element, the union of two slots."""
        a, b = self.find(one), self.find(other)
        result = np.where(b == LOCKED, a, b)
        both = (a != LOCKED) & (b != LOCKED) & (a != b)
        if both.any():
            pairs = np.stack([np.minimum(a[both], b[both]), np.maximum(a[both], b[both])], axis=1)
            pairs, where = np.unique(pairs, axis=0, return_inverse=True)
            made = self.fresh(len(pairs))
            self._left[made], self._right[made] = pairs[:, 0], pairs[:, 1]
            self.has_products = True
            result[both] = made[where.reshape(-1)]
        return result

    def unify(self, one: Array, other: Array, reason: int) -> None:
        """Make the slots at the same place of both arrays equal, locking what cannot be.

        A free atom takes the place of the other slot; of two sets the common atoms cancel, one left against
        one left unites them, one against several binds it to their product, anything else is locked.
        """
        first, second = one.reshape(-1), other.reshape(-1)
        a, b = self.settle(first), self.settle(second)
        differ = a != b
        if not differ.any():
            return
        a, b, first, second = a[differ], b[differ], first[differ], second[differ]
        plain = (self._left[a] < 0) & (self._left[b] < 0)
        if plain.any():
            # The slots themselves where they are locked atoms: they know by what.
            self._join(self._named(first, a)[plain], self._named(second, b)[plain], reason)
        a, b = a[~plain], b[~plain]
        if len(a):
            self._pair_factors(a, b)
            a, b = self.settle(a), self.settle(b)
            differ = a != b
            a, b = a[differ], b[differ]
        if len(a) and not self._bind_all(a, b, reason):
            for x, y in dict.fromkeys(zip(a.tolist(), b.tolist(), strict=True)):
                self._reconcile(x, y, reason)

    def _pair_factors(self, a: Array, b: Array) -> None:
        """Where products meet products, unite their factors that stand at the same places.

        Two grids of the same sides, each with atoms of its own for rows and columns, meet like this: rows
        must be rows then and columns columns, for no other way leaves both removable.
        """
        both = (self._left[a] >= 0) & (self._left[b] >= 0)
        if not both.any():
            return
        ones, others = self.atoms(a[both]), self.atoms(b[both])
        weights = np.random.default_rng(0).integers(0, 2**63, len(ones), dtype=np.uint64)
        places: list[dict[int, int]] = []
        for table in (ones, others):
            atoms, where = np.unique(table, return_inverse=True)
            sums = np.zeros(len(atoms), np.uint64)
            np.add.at(sums, where.reshape(table.shape), weights[:, None])
            places.append(
                {
                    place: atom
                    for atom, place in zip(atoms.tolist(), sums.tolist(), strict=True)
                    if atom != LOCKED
                }
            )
        pairs = [(atom, places[1][place]) for place, atom in places[0].items() if place in places[1]]
        if pairs:
            table = np.array(pairs)
            self._join(table[:, 0], table[:, 1], -1)

    def _named(self, slots: Array, settled: Array) -> Array:
        roots = self._roots(slots)
        return np.where(self._left[roots] < 0, roots, settled)

    def _join(self, a: Array, b: Array, reason: int) -> None:
        """Unite atoms with atoms; a lock of one is the lock of both."""
        while True:
            a, b = self._roots(a), self._roots(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            why_a, why_b = self._reason[a], self._reason[b]
            for x, why_x, why_y in ((a, why_a, why_b), (b, why_b, why_a)):
                catch = (why_x == 0) & (why_y != 0)
                self._reason[x[catch]] = np.where(why_y[catch] < 0, reason, why_y[catch])
            # A lock may have reached a partner of another pair just now: locked first, then linked.
            locked_a, locked_b = self._reason[a] != 0, self._reason[b] != 0
            open_pairs = ~(locked_a & locked_b)
            free = ~locked_a & ~locked_b
            # Links go from the younger to the older, so that there are no cycles; of several links of one
            # slot numpy keeps the last, and the next round makes up for the others.
            self._parent[np.maximum(a[free], b[free])] = np.minimum(a[free], b[free])
            a, b = a[open_pairs], b[open_pairs]

    def _bind_all(self, a: Array, b: Array, reason: int) -> bool:
        """Bind free atoms to products in one go; False where the pairs are entangled or of another kind."""
        flip = self._left[b] < 0
        atom, product = np.where(flip, b, a), np.where(flip, a, b)
        if (self._left[atom] >= 0).any() or (atom == LOCKED).any():
            return False
        parts = self.atoms(product)
        single, first = np.unique(atom, return_index=True)
        if np.isin(single, parts).any() or not parts.any(axis=1).all():
            return False
        self._parent[single] = product[first]
        others = np.ones(len(atom), bool)
        others[first] = False
        for x, y in dict.fromkeys(zip(atom[others].tolist(), product[others].tolist(), strict=True)):
            self._reconcile(x, y, reason)
        return True

    def _set(self, slot: int) -> frozenset[int]:
        return frozenset(self.atoms(np.array([slot]))[0].tolist()) - {LOCKED}

    def _bind(self, atom: int, atoms: Iterable[int]) -> None:
        union = np.array([LOCKED])
        for part in sorted(atoms):
            union = self.product(union, np.array([part]))
        self._parent[atom] = union[0]

    def _reconcile(self, x: int, y: int, reason: int) -> None:
        one, other = self._set(x), self._set(y)
        common = one & other
        one, other = one - common, other - common
        if not one and not other:
            return
        if len(one) == 1 and other:
            self._bind(next(iter(one)), other)
        elif len(other) == 1 and one:
            self._bind(next(iter(other)), one)
        else:
            self._reason[np.array(sorted(one | other))] = reason

    def split(self, grid: Array, reason: int) -> tuple[Array | None, Array | None]:
        """Return slots of rows and columns such that an index goes iff its row or its column goes.

        Args:
            grid: [rows, columns] slots.
            reason: Noted for what is locked where the grid has no such structure: then the longer side is
                tied along the shorter one, which stays whole.

        Returns:
            [rows] and [columns] slots, None for a side that nothing is removed from.
        """
        grid = self.settle(grid)
        if not grid.any():
            return None, None
        if (grid == grid[:1]).all():
            return None, grid[0]
        if (grid == grid[:, :1]).all():
            return grid[:, 0], None
        if len(np.unique(grid[0])) < grid.shape[1]:
            few, first, where = np.unique(grid, axis=1, return_index=True, return_inverse=True)
            if few.shape[1] < grid.shape[1]:
                order = np.argsort(first)
                rows, columns = self.split(few[:, order], reason)
                return rows, None if columns is None else columns[np.argsort(order)[where.reshape(-1)]]
        if len(np.unique(grid[:, 0])) < grid.shape[0]:
            few, first, where = np.unique(grid, axis=0, return_index=True, return_inverse=True)
            if few.shape[0] < grid.shape[0]:
                order = np.argsort(first)
                rows, columns = self.split(few[order], reason)
                return None if rows is None else rows[np.argsort(order)[where.reshape(-1)]], columns
        plain = grid.all() and (self._left[grid] < 0).all() and len(np.unique(grid)) == grid.size
        if plain:
            rows, columns = self.fresh(grid.shape[0]), self.fresh(grid.shape[1])
            self._left[grid], self._right[grid] = rows[:, None], columns[None, :]
            self.has_products = True
            return rows, columns
        found = self._factor(grid)
        return found or self._tie(grid, reason)

    def _factor(self, grid: Array) -> tuple[Array, Array] | None:
        """Return the rows and columns of a grid that is a product already, None where it is not."""
        atoms = self.atoms(grid)
        row, column = atoms[:, 0, :], atoms[0, :, :]
        in_row = (atoms[:, :, None, :] == row[:, None, :, None]).any(axis=3).all(axis=1)
        in_column = (atoms[:, :, None, :] == column[None, :, :, None]).any(axis=3).all(axis=0)
        row, column = np.where(in_row, row, LOCKED), np.where(in_column, column, LOCKED)
        covered = (atoms[:, :, :, None] == row[:, None, None, :]).any(axis=3)
        covered |= (atoms[:, :, :, None] == column[None, :, None, :]).any(axis=3)
        if not (covered | (atoms == LOCKED)).all():
            return None
        return self._union(row), self._union(column)

    def _union(self, table: Array) -> Array:
        union = table[:, 0]
        for k in range(1, table.shape[1]):
            union = self.product(union, table[:, k])
        return union

    def _tie(self, grid: Array, reason: int) -> tuple[Array | None, Array | None]:
        tall = grid.shape[0] > grid.shape[1]
        turned = grid.T if tall else grid
        self.unify(np.broadcast_to(turned[0], turned[1:].shape), turned[1:], reason)
        tied = self.find(turned[0])
        return (tied, None) if tall else (None, tied)

    def removed(self, dead: Array) -> npt.NDArray[np.bool_]:
        """Return for every slot whether it goes when the atoms *dead* go."""
        gone = np.zeros(self._size, bool)
        gone[dead] = True
        everything = np.arange(self._size)
        roots = self.find(everything)
        products = np.flatnonzero((self._left[: self._size] >= 0) & (roots == everything))
        while len(products):
            before = gone[products].copy()
            left, right = self.find(self._left[products]), self.find(self._right[products])
            gone[products] = before | gone[left] | gone[right]
            if np.array_equal(gone[products], before):
                break
        gone[LOCKED] = False
        return gone[roots]
