"""What comes in: feeds that the oracle makes up where no data was given, and weights that can be ranked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import DataError, GraphoptError, UnsupportedModelError
from graphopt.passes.pruning.oracle import open_model
from graphopt.runtime.feeds import free_dims, input_specs, random_feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.ir import Model
    from graphopt.passes.pruning.criterion import Subject
    from graphopt.runtime.session import Feeds

# Sizes to try for dims that nobody bound: a batch of one suits most; an image of one pixel suits nobody.
_SIZES = (4, 1, 16, 64, 32, 128, 256, 320, 512, 576)


def oracle_feeds(model: Model, dims: Mapping[str, int], seed: int, count: int) -> Sequence[Feeds]:
    """Return random feeds that the original takes.

    Free dims that *dims* does not bind get the first size that the model runs with; the first dim of an
    input, or all but the last, get 1 where that works.

    Args:
        model: The original.
        dims: Sizes bound to symbolic dims.
        seed: Seed of the feeds.
        count: How many.

    Raises:
        DataError: No size suits.
    """
    specs = input_specs(model)
    free = [name for name in free_dims(specs) if name not in dims]
    if not free:
        return random_feeds(model, count, seed, dims)
    session = open_model(model, "the original")
    first = {spec.shape[0] for spec in specs if spec.shape} | {f"{spec.name}[0]" for spec in specs}
    last = {spec.shape[-1] for spec in specs if spec.shape}
    last |= {f"{spec.name}[{len(spec.shape) - 1}]" for spec in specs if spec.shape}
    refusal: GraphoptError | None = None
    for size in _SIZES:
        for narrow in (first, set(free) - last, set[str]()):
            sizes = {name: 1 if name in narrow else size for name in free}
            try:
                feeds = random_feeds(model, count, seed, {**sizes, **dims})
                session.run(feeds[0])
            except GraphoptError as error:
                refusal = refusal or error
            else:
                return feeds
    assert refusal is not None
    raise DataError(
        f"the oracle finds no input that the model takes: {refusal.message}",
        hint="Give real inputs with --data, bind free dims with --dim, or set oracle=false",
    )


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
