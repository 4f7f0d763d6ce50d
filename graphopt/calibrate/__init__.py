"""Calibration: what values of a model are like on data, collected in one pass and kept in little memory.

>>> from graphopt.calibrate import Needs, collect

Everything resolves on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.calibrate.collection import collect
    from graphopt.calibrate.moments import ChannelMoments, Gram
    from graphopt.calibrate.needs import Needs, Rows, Window
    from graphopt.calibrate.ranges import Range
    from graphopt.calibrate.sketch import RangeSketch
    from graphopt.calibrate.statistics import Statistics

_HOMES = {
    "ChannelMoments": "graphopt.calibrate.moments",
    "Gram": "graphopt.calibrate.moments",
    "Needs": "graphopt.calibrate.needs",
    "Range": "graphopt.calibrate.ranges",
    "RangeSketch": "graphopt.calibrate.sketch",
    "Rows": "graphopt.calibrate.needs",
    "Statistics": "graphopt.calibrate.statistics",
    "Window": "graphopt.calibrate.needs",
    "collect": "graphopt.calibrate.collection",
}

__all__ = [
    "ChannelMoments",
    "Gram",
    "Needs",
    "Range",
    "RangeSketch",
    "Rows",
    "Statistics",
    "Window",
    "collect",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
