"""What a model puts out on some samples, and how far others that are to do the same are from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import DataError
from graphopt.ir.rewrite import is_op
from graphopt.recover.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir.model import Model
    from graphopt.runtime.session import Feeds

_PEELED = frozenset({
    "ArgMax", "ArgMin", "Cast", "Clip", "Flatten", "Hardmax", "Identity", "LogSoftmax", "QuantizeLinear",
    "Reshape", "Sigmoid", "Softmax", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip


class Outputs:
    """What *model* puts out on *feeds*, to hold others against: before what squashes or rounds it.

    Args:
        model: The original.
        feeds: What to run.
        where: What errors call the place.
        hint: What they say to do.

    Raises:
        DataError: No output varies, or the model cannot run on the feeds.

    Attributes:
        names: Names of what is looked at, one an output.
        scales: Sum of squares of each about its mean, over all feeds.
    """

    def __init__(self, model: Model, feeds: Sequence[Feeds], *, where: str, hint: str) -> None:
        names = list(dict.fromkeys(_peeled(value).name or "" for value in model.graph.outputs))
        self.names = names
        self._feeds = feeds
        self._inputs = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
        self._wanted = self._run(model)
        self.scales = [
            _variance([_finite(sample[index]) for sample in self._wanted]) for index in range(len(names))
        ]
        if not any(self.scales):
            raise DataError(
                "no output varies over the samples, so nothing can be measured there",
                where=where,
                hint=hint,
            )

    def error(self, model: Model) -> float:
        """Return the squared error of *model* over the variance of each output, summed over the outputs.

        An output of another shape counts as if it were zero: nothing in it can be told to be right. NaN and
        infinity where the original has none are worse than any number.
        """
        totals = [0.0] * len(self.names)
        for wanted, found in zip(self._wanted, self._run(model), strict=True):
            for index, (one, two) in enumerate(zip(wanted, found, strict=True)):
                totals[index] += self.scales[index] * _BROKEN if _is_broken(one, two) else _distance(one, two)
        return sum(total / scale for total, scale in zip(totals, self.scales, strict=True) if scale)

    def _run(self, model: Model) -> list[list[npt.NDArray[Any]]]:
        segment = Segment(model, self._inputs, self.names, {})
        found = []
        for feed in self._feeds:
            values = segment.run({name: np.asarray(value) for name, value in feed.items()})
            found.append([_numbers(values[name]) for name in self.names])
        return found

    def numbers(self, values: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return what is looked at among *values* as float64, zero where it is not finite.

        Indices have no distance: of them there is nothing.
        """
        return [_finite(_numbers(values[name])) for name in self.names]


_BROKEN = 1e6
"""What an output costs that is not finite where the original's is, in its variance."""


def _numbers(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if value.dtype.kind != "f" and value.dtype.itemsize != 1:
        return np.zeros(0)
    return value.astype(np.float64)


def _finite(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(np.isfinite(numbers), numbers, 0.0)


def _is_broken(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> bool:
    """Return whether *found* is not finite where *wanted* is; shapes that differ are not compared so."""
    return wanted.shape == found.shape and bool((np.isfinite(wanted) & ~np.isfinite(found)).any())


def _distance(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    expected = _finite(wanted)
    same = wanted.shape == found.shape
    return float(np.sum((expected - _finite(found)) ** 2 if same else expected**2))


def _variance(samples: Sequence[npt.NDArray[Any]]) -> float:
    """Return the sum of squares about the mean of each element along the last axis."""
    rows = [sample.reshape(-1, sample.shape[-1]) for sample in samples if sample.ndim and sample.size]
    if not rows or len({each.shape[1] for each in rows}) > 1:
        flat = np.concatenate([sample.reshape(-1) for sample in samples])
        return float(np.sum((flat - flat.mean()) ** 2)) if flat.size else 0.0
    stacked = np.concatenate(rows)
    return float(np.sum((stacked - stacked.mean(axis=0)) ** 2))


def _peeled(value: oir.Value) -> oir.Value:
    """Return what *value* is made of by operators of one input that squash, round, rank or reorder it.

    A softmax or rounded codes hide small errors, and what follows from them when they add up.
    """
    node = value.producer()
    while node is not None and is_op(node, *_PEELED) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
