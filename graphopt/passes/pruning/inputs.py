"""What comes in: feeds that the oracle makes up where no data was given, and weights that can be ranked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import UnsupportedModelError
from graphopt.runtime.opening import fitting_feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.errors import GraphoptError
    from graphopt.ir import Model
    from graphopt.passes.pruning.criterion import Subject
    from graphopt.runtime.session import Feeds

# Not 1 first, which most models run with: over one pixel or one token, much of what is cut has no effect.
_SIZES = (4, 1, 16, 64, 32, 128, 256, 320, 512, 576)


def oracle_feeds(model: Model, dims: Mapping[str, int], seed: int, count: int) -> Sequence[Feeds]:
    """Return *count* random feeds that the original takes.

    Args:
        model: The original.
        dims: Sizes bound to symbolic dims.
        seed: Seed of the feeds.
        count: How many.

    Raises:
        DataError: No size suits.
    """
    return fitting_feeds(model, count, seed, dims, _SIZES)


def add_way_out(error: GraphoptError) -> None:
    """Say what to do where the original itself does not run."""
    hint = error.hint.rstrip(". ")
    error.hint = f"{hint}{'. ' if hint else ''}oracle=false prunes without the proof"


def check_finite(subjects: Iterable[Subject]) -> None:
    """Refuse weights that hold NaN or infinity: nothing can be said about what is important in them.

    Raises:
        UnsupportedModelError: One does; it is named.
    """
    for subject in subjects:
        for weight in subject.weights:
            if weight.array.dtype.kind in "fV" and not np.isfinite(weight.array.astype(np.float32)).all():
                raise UnsupportedModelError(
                    "the weight holds NaN or infinity, which no criterion can rank",
                    where=f"initializer {weight.name!r}",
                    hint=f"Repair the model, or leave it out with protect={weight.name}.",
                )
