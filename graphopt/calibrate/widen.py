"""Samples that reach further than those that were given: calibration data are few, what comes later is not.

A weight that is cut by a few samples keeps the directions that they use. Each sample is moved by what
another one differs from the mean: the same mean, only directions that occur in the data, twice the variance
at a share of 1. benchmarks/lowrank.py (anomaly-ae) measures what that is worth on recordings not seen before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from graphopt.runtime.session import Feeds

_PARTNERS = 256
"""Samples that others are moved by, drawn evenly from all: as many stay in memory."""


def widened(feeds: Iterable[Feeds], share: float, seed: int = 0) -> Iterator[Feeds]:
    """Yield every feed, moved by *share* times what another one differs from the mean of all.

    Args:
        feeds: Floating-point feeds of one shape an input; iterated twice.
        share: How far to move.
        seed: Seed of who is moved by whom.

    Raises:
        DataError: There are no feeds, or their shapes differ.
    """
    generator = np.random.default_rng(seed)
    partners: list[dict[str, npt.NDArray[Any]]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    count = 0
    for feed in map(_arrays, feeds):
        count += 1
        for name, value in feed.items():
            if shapes.setdefault(name, value.shape) != value.shape:
                raise DataError(
                    f"a sample has shape {list(value.shape)}, those before it {list(shapes[name])}",
                    where=f"input {name!r}",
                    hint="Samples of different shapes cannot be widened; set widen=0.",
                )
        # Each sample stays with the same chance (Vitter's reservoir, 1985).
        if count <= _PARTNERS:
            partners.append(feed)
        elif (place := int(generator.integers(count))) < _PARTNERS:
            partners[place] = feed
    if not count:
        raise DataError("the data holds no feeds", where="calibration", hint="Give at least one sample.")
    # The mean of those that move others, so that all moves together move nothing.
    means = {name: np.mean([each[name] for each in partners], axis=0, dtype=np.float64) for name in shapes}
    for feed in map(_arrays, feeds):
        partner = partners[int(generator.integers(len(partners)))]
        yield {
            name: (value + share * (partner[name] - means[name])).astype(value.dtype)
            for name, value in feed.items()
        }


def _arrays(feed: Feeds) -> dict[str, npt.NDArray[Any]]:
    return {name: np.asarray(value) for name, value in feed.items()}
