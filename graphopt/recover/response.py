"""What errors of one operator do to the outputs of the model.

An error of unit size in one channel may be amplified by what comes behind it, or vanish there; and errors of
several channels may add up or cancel. To second order that is a quadratic form of the error, ``e^T M e``,
whose matrix is the mean of ``J^T J`` over the samples, J being the Jacobian of the outputs by the operator's
channels. It is measured by differences over steps of one standard deviation of each channel: an error of
a factorised weight is no infinitesimal one, and behind a Relu the two are not the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.recover.outputs import Outputs
from graphopt.recover.segments import Segment, types_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix
    from graphopt.runtime.session import Feeds

_MACS = 1 << 35
_FEWEST, _MOST = 8, 256
"""MACs spent on one operator, and the least and most samples that they are spread over; a sample takes two
inferences a channel."""

_ELEMENTS = 4096
"""Elements of an output that are looked at; of larger ones a draw."""


class Response:
    """How the outputs of *model* answer to errors inside.

    Args:
        model: The model; it is not changed.
        shapes: Its shapes.
        feeds: Samples; those that are used are spread evenly over them.
        macs: Of one inference.
        seed: Seed of all draws.
        where: What errors call the place.
        hint: What they say to do.

    Raises:
        DataError: No output varies over the samples, or the model cannot run on them.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        feeds: Sequence[Feeds],
        *,
        macs: int,
        seed: int,
        where: str,
        hint: str,
    ) -> None:
        self._model = model
        self._feeds = _spread(feeds, _MOST)
        self._macs = max(macs, 1)
        self._seed = seed
        self._types = types_of(model, shapes)
        self._outputs = Outputs(model, self._feeds, where=where, hint=hint)
        self._inputs = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]

    def metric(self, linear: Linear) -> Matrix:
        """Return [m, m]: ``e^T M e`` is what errors e of the channels add to the outputs.

        The unit is the variance of the outputs; where the operator has several positions, e is the error of
        each, and those of different positions are taken to be independent.
        """
        outputs, m = self._outputs, linear.shape[0]
        axis = 1 if linear.kernel else -1
        feeds = _spread(self._feeds, min(max(_MACS // (2 * m * self._macs), _FEWEST), _MOST))
        before = Segment(self._model, self._inputs, [linear.output, *outputs.names], self._types)
        behind = Segment(self._model, [linear.output, *self._inputs], outputs.names, self._types)
        given = [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]
        known = [before.run(feed) for feed in given]
        steps = _deviations([values[linear.output] for values in known], axis)
        generator = np.random.default_rng(self._seed)
        total = np.zeros((m, m))
        for feed, values in zip(given, known, strict=True):
            found = values[linear.output]
            channels = np.moveaxis(found, axis, -1)
            signs = generator.choice(np.array([-1, 1], found.dtype), channels.shape[:-1])
            wanted = outputs.numbers(values)
            drawn = [_draw(each.size, generator) for each in wanted]
            changes: list[list[npt.NDArray[Any]]] = [[] for _ in wanted]
            for channel in range(m):
                step = np.zeros_like(channels)
                step[..., channel] = signs * steps[channel]
                step = np.moveaxis(step, -1, axis)
                ahead, back = (
                    outputs.numbers(behind.run({**feed, linear.output: found + way})) for way in (step, -step)
                )
                for index, (one, two, places) in enumerate(zip(ahead, back, drawn, strict=True)):
                    change = (one - two).reshape(-1)[places] if one.shape == two.shape else 0.0 * places
                    changes[index].append(change / (2 * float(steps[channel])))
            for one, rows, places, scale in zip(wanted, changes, drawn, outputs.scales, strict=True):
                if scale and len(places):
                    matrix = np.asarray(rows)
                    total += matrix @ matrix.T * (one.size / len(places) / scale)
        # Scales are sums over all samples of the outputs, of which these may be some.
        metric: Matrix = total * (len(self._feeds) / len(feeds))
        return metric


def _spread(items: Sequence[Feeds], most: int) -> list[Feeds]:
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))
    return [items[place] for place in places]


def _deviations(values: Sequence[npt.NDArray[Any]], axis: int) -> npt.NDArray[Any]:
    """Return the standard deviation of each channel; of one that does not vary the mean of the others."""
    rows = np.concatenate([np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]) for value in values])
    found = rows.std(axis=0, dtype=np.float64)
    usual = float(found.mean()) or 1.0
    return np.where(found > 1e-3 * usual, found, usual).astype(rows.dtype)


def _draw(size: int, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    if size <= _ELEMENTS:
        return np.arange(size)
    return np.sort(generator.choice(size, _ELEMENTS, replace=False))
