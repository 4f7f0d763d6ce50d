"""Means of values of a model whose constants change while it is walked through.

One stream: in contrast to :mod:`graphopt.recover.walk` the model need not be the graph that it is compared
with, for means compare by the names of values. Activations between two places are kept in files, so that each
part of the model runs twice, whatever the number of places, and memory does not grow with the samples.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.errors import DataError
from graphopt.ir.shapes import infer_shapes
from graphopt.recover.liveness import Liveness
from graphopt.recover.segments import Segment, types_of
from graphopt.recover.spool import Spool
from graphopt.recover.walk import Effort, peak_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir.model import Model
    from graphopt.recover.moments import Matrix
    from graphopt.runtime.session import Feeds


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of every channel of a value.

    Attributes:
        count: Elements of one channel.
        mean: [channels], behind the bounds; NaN where an element was.
        inside: [channels] share of the elements between the bounds: what the mean moves by for a bias of 1.
    """

    count: int
    mean: Matrix
    inside: Matrix


@dataclass
class MeanWalk:
    """Walks through *model* and gives means of its values as they are at that time; a context manager.

    Args:
        model: The model. Between two questions its constants may be given other contents, as long as no node
            of the main graph is added or removed that depends on the inputs of the model.
        feeds: Iterated once.
        provider: What to run on.

    Attributes:
        effort: CPU seconds and memory so far.
    """

    model: Model
    feeds: Iterable[Feeds]
    provider: str = "cpu"
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        self._types = types_of(self.model, infer_shapes(self.model))
        order = list(self.model.graph)
        self._positions = {node: index for index, node in enumerate(order)}
        self._live = Liveness(order)
        self._frontier: tuple[str, ...] = tuple(
            value.name or "" for value in self.model.graph.inputs if not value.is_initializer()
        )
        self._at = 0
        self._files = 0
        self._spool: Spool | None = None  # None: the feeds themselves
        self._stack = contextlib.ExitStack()
        self._started = time.process_time()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-means-")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._spool is not None:
            self._spool.remove()
        self._stack.close()

    def position_of(self, node: oir.Node) -> int:
        """Return the place of *node* in the main graph."""
        return self._positions[node]

    def mean(
        self, position: int, name: str, axis: int, bounds: tuple[float, float] = (-np.inf, np.inf)
    ) -> Mean:
        """Go on to just before the node at *position* and return the means of a value behind it.

        Args:
            position: Not less than in the question before.
            name: The value.
            axis: Its axis of channels.
            bounds: What its elements are clipped to: those of a Relu or Clip behind it.

        Raises:
            DataError: There are no feeds, or the model cannot run on them, or channels differ among them.
        """
        self._advance(position)
        segment = Segment(self.model, self._frontier, (name,), self._types, self.provider)
        count, total, inside = 0, np.zeros(0), np.zeros(0)
        for values in self._samples():
            array = segment.run(values)[name]
            if not array.size:
                continue
            sums, within = _sums(array, axis, bounds)
            if count and len(sums) != len(total):
                raise DataError(
                    f"{len(sums)} channels, {len(total)} in the samples before", where=f"value {name!r}"
                )
            total, inside = (total + sums, inside + within) if count else (sums, within)
            count += array.size // len(sums)
        self.effort.cpu_s = time.process_time() - self._started
        self.effort.peak_bytes = peak_bytes()
        return Mean(count, total / max(count, 1), inside / max(count, 1))

    def _samples(self) -> Iterator[Mapping[str, Any]]:
        if self._spool is not None:
            yield from self._spool
            return
        count = 0
        for feed in self.feeds:
            count += 1
            yield feed
        if not count:
            raise DataError("the data holds no feeds", where="recovery", hint="Give at least one sample.")
        self.effort.samples = count

    def _advance(self, position: int) -> None:
        if position < self._at:
            raise DataError("a walk goes on, never back", where=f"node {position}")
        if position == self._at and self._spool is not None:
            return
        names = self._live.frontier(position)
        segment = Segment(self.model, self._frontier, names, self._types, self.provider)
        self._files += 1
        spool = Spool(self._folder / f"{self._files}.bin", names)
        for values in self._samples():
            spool.append(segment.run(values))
        if self._spool is not None:
            self._spool.remove()
        self._spool, self._frontier, self._at = spool, names, position


def _sums(array: npt.NDArray[Any], axis: int, bounds: tuple[float, float]) -> tuple[Matrix, Matrix]:
    """Return for every channel the sum of its clipped elements and the number of those inside the bounds."""
    moved = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    low, high = bounds
    if low == -np.inf and high == np.inf:
        within = np.full(len(moved), float(moved.shape[1]))
    else:
        within = np.count_nonzero((moved > low) & (moved < high), axis=1).astype(np.float64)
        moved = np.clip(moved, low, high)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(moved.sum(axis=1, dtype=np.float64)), within


def constant_value(model: Model, value: oir.Value) -> npt.NDArray[Any]:
    """Return what *value* of the main graph, which depends on constants alone, holds.

    Raises:
        DataError: The part of the model that computes it cannot run.
    """
    name = value.name or ""
    return Segment(model, (), (name,), {}).run({})[name]
