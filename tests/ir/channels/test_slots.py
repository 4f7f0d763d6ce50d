"""The equations against their meaning: whatever is removed, both sides of every equation stay equal."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir.channels.slots import LOCKED, Slots
from tests.examples import examples

REASON = 7


def _removed(slots: Slots, dead: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(slots.removed(dead)[values])


@st.composite
def systems(draw: st.DrawFn) -> list[tuple[str, list[int], list[int]]]:
    """Random steps over twelve atoms: unify, merge, split and lock."""
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["unify", "product", "split", "lock"]))
        size = 6 if kind == "split" else draw(st.integers(1, 6))
        pick = st.lists(st.integers(0, 30), min_size=size, max_size=size)
        steps.append((kind, draw(pick), draw(pick)))
    return steps


@given(systems(), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(200), deadline=None)
def test_every_equation_holds_whatever_is_removed(
    steps: list[tuple[str, list[int], list[int]]], seed: int
) -> None:
    slots = Slots()
    known = slots.fresh(12).tolist()
    equations: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
    locked: list[np.ndarray] = []
    for kind, first, second in steps:
        one, other = (np.array([known[i % len(known)] for i in picks]) for picks in (first, second))
        if kind == "unify":
            slots.unify(one, other, REASON)
            equations.append(("equal", one, other, other))
        elif kind == "product":
            union = slots.product(one, other)
            known += union.tolist()
            equations.append(("union", union, one, other))
        elif kind == "split":
            rows, columns = slots.split(one.reshape(2, 3), REASON)
            row = np.zeros(2, np.int64) if rows is None else rows
            column = np.zeros(3, np.int64) if columns is None else columns
            equations.append(("union", one, np.repeat(row, 3), np.tile(column, 2)))
            known += [slot for slot in (*row.tolist(), *column.tolist()) if slot != LOCKED]
        else:
            slots.lock(one, REASON)
            locked.append(one)
    atoms = np.unique(slots.atoms(np.array(known)))
    free = atoms[atoms != LOCKED]
    generator = np.random.default_rng(seed)
    for _ in range(4):
        dead = free[generator.random(len(free)) < 0.4]
        for kind, result, one, other in equations:
            left, right = _removed(slots, dead, one), _removed(slots, dead, other)
            if kind == "equal":
                assert np.array_equal(left, right)
            else:
                assert np.array_equal(_removed(slots, dead, result), left | right)
        for group in locked:
            assert not _removed(slots, dead, group).any()


def test_heads_and_head_dims_stand_side_by_side() -> None:
    slots = Slots()
    weight = slots.fresh(12)
    heads, dims = slots.split(weight.reshape(3, 4), REASON)
    assert heads is not None
    assert dims is not None
    gone = slots.removed(np.array([heads[1], dims[2]]))[weight].reshape(3, 4)
    assert gone.tolist() == [[False, False, True, False], [True] * 4, [False, False, True, False]]


def test_a_second_split_finds_the_first_one() -> None:
    slots = Slots()
    weight = slots.fresh(12)
    first = slots.split(weight.reshape(3, 4), REASON)
    second = slots.split(weight.reshape(3, 4), REASON)
    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert other is not None
        assert np.array_equal(slots.find(one), slots.find(other))


def test_grids_meet_row_by_row_and_column_by_column() -> None:
    slots = Slots()
    grids = []
    for _ in range(2):
        rows, columns = slots.fresh(3), slots.fresh(4)
        grids.append((rows, columns, slots.product(np.repeat(rows, 4), np.tile(columns, 3))))
    slots.unify(grids[0][2], grids[1][2], REASON)
    for one, other in zip(grids[0][:2], grids[1][:2], strict=True):
        assert np.array_equal(slots.find(one), slots.find(other))
        assert (slots.find(one) != LOCKED).all()


def test_columns_that_repeat_are_split_once() -> None:
    """A GroupNorm written as a reshape to [N, groups, -1] repeats each channel over the image."""
    slots = Slots()
    channels = slots.fresh(6)
    rows, columns = slots.split(np.repeat(channels, 5).reshape(2, 15), REASON)
    assert rows is not None
    assert columns is not None
    assert len(np.unique(columns)) == 3
    assert np.array_equal(columns, np.repeat(columns[::5], 5))


def test_entangled_indices_are_tied_along_the_short_side() -> None:
    slots = Slots()
    one, other = slots.fresh(4), slots.fresh(4)
    grid = np.stack([one, np.array([other[0], one[1], other[2], one[0]])])
    rows, columns = slots.split(grid, REASON)
    assert rows is None
    assert columns is not None
    assert np.array_equal(slots.find(grid[0]), slots.find(grid[1]))


def test_the_first_lock_is_remembered() -> None:
    slots = Slots()
    one, other = slots.fresh(3), slots.fresh(3)
    slots.lock(one, 3)
    slots.unify(one, other, 5)
    assert slots.reason(other).tolist() == [3, 3, 3]
