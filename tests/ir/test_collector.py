"""The pause of the cyclic garbage collector."""

from __future__ import annotations

import gc
import weakref

import pytest

from graphopt.ir.collector import collector_paused


class Ring:
    """An object that only the cyclic collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_the_collector_rests_inside_and_runs_again_behind() -> None:
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_runs_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), collector_paused():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_what_was_built_is_old_but_not_immortal() -> None:
    with collector_paused():
        ring = Ring()
    assert any(thing is ring for thing in gc.get_objects(generation=2))
    gone = weakref.ref(ring)
    del ring
    gc.collect()
    assert gone() is None


def test_what_the_caller_froze_stays_frozen() -> None:
    rings = [Ring() for _ in range(5000)]
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with collector_paused():
            rings.append(Ring())
        assert gc.get_freeze_count() >= frozen > 5000
    finally:
        gc.unfreeze()
