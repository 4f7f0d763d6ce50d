"""From statistics to grids: which values have a range that makes a scale, and what scale it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from graphopt.ir.masks import masked_values
from graphopt.ir.tensors import constant_of
from graphopt.passes.quantize.candidates import clamp_bounds
from graphopt.passes.quantize.grid import CODE_RANGES, Grid, activation_grid

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir.model import Model
    from graphopt.passes.quantize.placement import Placement
    from graphopt.passes.quantize.settings import Settings

Calibrator = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]


class Ranges:
    """Answers what the range of a value is.

    Args:
        model: The model that the statistics are of.
        statistics: Distributions of its values.
        calibrator: How a range is chosen.
        percentile: Percent of the elements that the range holds, for "percentile".
        settings: Types of codes.
        shared_ops: Operators whose inputs and result share a grid where that costs no more than a bit.
        found: Ranges by name, which copies of the model share; those that are looked up are added to it.
    """

    def __init__(
        self,
        model: Model,
        statistics: Statistics,
        calibrator: Calibrator,
        percentile: float,
        settings: Settings,
        shared_ops: tuple[str, ...],
        found: dict[str, tuple[float, float]],
    ) -> None:
        self._statistics = statistics
        self._calibrator = calibrator
        self._percentile = percentile
        self._settings = settings
        self._shared_ops = shared_ops
        self._masks = masked_values(model)
        self._found = found
        self.unusable: dict[oir.Value, str] = {}

    def usable(self, value: oir.Value) -> bool:
        """Return whether *value* has a range that makes a scale; ``unusable`` says why not."""
        if value in self.unusable:
            return False
        if reason := self._reason(value):
            self.unusable[value] = reason
            return False
        return True

    def _reason(self, value: oir.Value) -> str:
        name = value.name or ""
        if value in self._masks:
            return "it carries an additive mask to a Softmax"
        if name in self._statistics.skipped:
            return f"it has no statistics: {self._statistics.skipped[name]}"
        seen = self._statistics.ranges.get(name)
        if seen is not None and seen.nonfinite:
            return f"it held NaN or infinity in {seen.nonfinite} elements"
        if not self._statistics.has_range(name):
            return "the data never reached it"
        sketch = self._statistics.range(name)
        if sketch.is_constant and sketch.count > 1:
            # Any scale fits one number, and none fits what other data would bring.
            return f"it is {sketch.minimum:g} throughout the data"
        if not np.isfinite(np.float32(sketch.maximum - sketch.minimum)):
            return "its range is wider than float32"
        return ""

    def interval(self, value: oir.Value) -> tuple[float, float]:
        """Return the range of *value* by the calibrator."""
        name = value.name or ""
        if name not in self._found:
            sketch = self._statistics.range(name)
            bits = 8 if self._settings.activation_dtype in {"uint8", "int8"} else 16
            symmetric = self._settings.symmetric_activations
            match self._calibrator:
                case "minmax":
                    found = sketch.minmax()
                case "moving-average":
                    found = sketch.moving_average()
                case "percentile":
                    found = sketch.percentile(self._percentile)
                case "entropy":
                    found = sketch.entropy(bits=bits, symmetric=symmetric)
                case "mse":
                    found = sketch.mse(bits=bits, symmetric=symmetric)
            self._found[name] = (found.low, found.high)
        return self._found[name]

    def grids(self, placement: Placement) -> dict[oir.Value, Grid]:
        """Return the grid of every quantised value: one for all that moves the same codes."""
        moved = {link.result: link.inputs[0] for link in placement.links if link.moves}
        clamps = {each.result: each.clamp for each in placement.computes}
        clamps.update({link.result: link.clamp for link in placement.links})
        groups: dict[oir.Value, Group] = {}

        def group_of(value: oir.Value) -> Group:
            while value in moved:
                value = moved[value]
            if value not in groups:
                low, high = self.interval(value)
                clamp = clamps.get(value)
                if clamp is not None:
                    bounds = clamp_bounds(clamp)
                    assert bounds is not None
                    low, high = max(low, bounds[0]), min(high, bounds[1])
                groups[value] = Group([(low, high)], [] if clamp is None else [clamp])
            return groups[value]

        for link in placement.links:
            if link.node.op_type not in self._shared_ops:
                continue
            for value in link.inputs:
                if constant_of(value) is not None:
                    continue
                into, other = group_of(link.result), group_of(value)
                if into is not other and into.takes(other):
                    into.add(other)
                    groups.update(dict.fromkeys([key for key in groups if groups[key] is other], into))
        made: dict[int, Grid] = {}
        for value in placement.values:
            group = group_of(value)
            if id(group) not in made:
                made[id(group)] = group.grid(self._settings)
        return {value: made[id(group_of(value))] for value in placement.values}


_LEAST_SHARE = 0.5
"""A value that fills less than half of a shared range would lose more than one bit."""


class Group:
    """Values on one grid.

    Args:
        intervals: The range of each.
        clamps: The Relu or Clip behind some of them.
    """

    def __init__(self, intervals: list[tuple[float, float]], clamps: list[oir.Node]) -> None:
        self.intervals = intervals
        self.clamps = clamps

    @property
    def interval(self) -> tuple[float, float]:
        """The range of all, zero included."""
        lows, highs = zip(*self.intervals, strict=True)
        return min(0.0, *lows), max(0.0, *highs)

    def takes(self, other: Group) -> bool:
        """Return whether one grid is precise enough for both, and absorbs their clamps."""
        low, high = Group([*self.intervals, *other.intervals], []).interval
        for clamp in (*self.clamps, *other.clamps):
            bounds = clamp_bounds(clamp)
            if bounds is None or low < bounds[0] or high > bounds[1]:
                return False
        widths = [max(0.0, top) - min(0.0, bottom) for bottom, top in (self.interval, other.interval)]
        return min(widths) >= _LEAST_SHARE * (high - low)

    def add(self, other: Group) -> None:
        """Take the values of *other* in."""
        self.intervals += other.intervals
        self.clamps += other.clamps

    def grid(self, settings: Settings) -> Grid:
        """Return the grid of all."""
        found = activation_grid(
            *self.interval, settings.activation_dtype, symmetric=settings.symmetric_activations
        )
        for clamp in self.clamps:
            found = _within(found, clamp)
        return found


def _within(grid: Grid, clamp: oir.Node) -> Grid:
    """Shrink *grid* until it lies within the bounds of a Clip: only then is the Clip absorbed."""
    bounds = clamp_bounds(clamp)
    assert bounds is not None
    last = CODE_RANGES[grid.dtype][1]
    scale = np.float32(grid.scale)
    codes_above = last - grid.zero_point
    while codes_above > 0 and np.float32(codes_above) * scale > np.float32(bounds[1]) and scale > 0:
        scale = np.nextafter(scale, np.float32(0))
    return Grid(float(scale), grid.zero_point, grid.dtype)
