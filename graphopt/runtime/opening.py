"""Sessions of models that are in memory, and sizes of open dims with which they run."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import DataError, GraphoptError
from graphopt.runtime.feeds import bind_dims, free_dims, input_specs, random_feeds
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graphopt.ir import Model
    from graphopt.runtime.feeds import InputSpec
    from graphopt.runtime.session import Feeds, Session, Tensor, Value

_LARGE_BYTES = 256 << 20  # models from this size go through a file, not through one more copy in memory

_SIZES = (1, 64, 32, 16, 4, 128, 224, 256, 320, 512, 576, 640)
"""What open dims are tried with. 1 is what they count as elsewhere; a detector halves an image five times."""


_MOST_ELEMENTS = 1 << 23
"""Of a feed that is tried; with four dims open, a size of 224 for all of them would take 10 GB."""

_MOST_DULL = 4  # sizes with which all outputs are one number, before the first of them has to do


def open_model(model: Model, where: str) -> Session:
    """Open *model* as it stands, without the runtime's own rewrites; *where* is what errors call it."""
    from graphopt.ir.emit import emit, emit_for_runtime

    if fits_in_memory(model):
        return open_session(emit(model).SerializeToString(), optimization="none", where=where)
    with tempfile.TemporaryDirectory(prefix="graphopt-open-") as folder:
        return open_session(emit_for_runtime(model, Path(folder)), optimization="none", where=where)


def fits_in_memory(model: Model) -> bool:
    """Return whether *model* is small, and whole without files beside it."""
    import onnx_ir as oir

    held = [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    in_files = any(isinstance(tensor, oir.ExternalTensor) for tensor in held)
    return not in_files and sum(tensor.nbytes for tensor in held) < _LARGE_BYTES


def fitting_dims(
    model: Model, dims: Mapping[str, int], seed: int = 0, sizes: Sequence[int] = _SIZES
) -> dict[str, int]:
    """Return sizes for the open dims of the inputs of *model* with which it runs on random values.

    All get the same size, the first of *sizes* that works; the first dim of an input, or all but the last,
    get 1 where that works. Where all outputs are one number, whatever comes in, another size is looked for:
    a detector may run over one pixel, and find nothing in it. Sizes that make inputs of more than 8 million
    elements are left out, unless *dims* alone makes so large ones.

    Args:
        model: A model.
        dims: Sizes that are bound already; they stay as they are and are not returned.
        seed: Seed of the values.
        sizes: What to try, in this order.

    Raises:
        DataError: The model runs with none of them; the message is that of the first.
        ProviderError: The runtime refuses the model.
    """
    specs = input_specs(model)
    free = [name for name in free_dims(specs) if name not in dims]
    if not free:
        return {}
    session = open_model(model, "the model")
    most = max(_MOST_ELEMENTS, _elements(specs, {**dict.fromkeys(free, 1), **dims}))
    refusal: GraphoptError | None = None
    dull: list[dict[str, int]] = []
    for tried in _assignments(specs, free, sizes):
        try:
            if _elements(specs, {**tried, **dims}) > most:
                continue
            found = [session.run(feed) for feed in random_feeds(specs, 2, seed, {**tried, **dims})]
        except GraphoptError as error:
            refusal = refusal or error
            continue
        if _vary(found):
            return tried
        dull.append(tried)
        if len(dull) == _MOST_DULL:
            break
    if dull:
        return dull[0]
    assert refusal is not None
    raise DataError(
        f"no size of its open dims was found with which the model runs: {refusal.message}",
        hint="Bind them with --dim, or give real inputs with --data",
    )


def _elements(specs: Sequence[InputSpec], dims: Mapping[str, int]) -> int:
    """Return how many elements inputs with these *dims* have together."""
    shapes = (spec.shape or () for spec in bind_dims(specs, dims))
    return sum(math.prod(dim for dim in shape if isinstance(dim, int)) for shape in shapes)


def _vary(runs: Sequence[Mapping[str, Value]]) -> bool:
    """Return whether some output holds more than one number, within a run or over all."""
    for name in runs[0]:
        values = [np.asarray(each).reshape(-1) for run in runs for each in _parts(run[name])]
        whole = np.concatenate(values) if values else np.zeros(0)
        # NaN differs from itself: an output that is nothing else is one number all the same.
        if whole.size and (whole != whole[0]).any() and len(np.unique(whole)) > 1:
            return True
    return False


def _parts(value: Value) -> Sequence[Tensor]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def fitting_feeds(
    model: Model, count: int, seed: int, dims: Mapping[str, int], sizes: Sequence[int] = _SIZES
) -> list[Feeds]:
    """Return *count* random feeds that *model* takes; the rest is as in :func:`fitting_dims`."""
    return list(random_feeds(model, count, seed, {**fitting_dims(model, dims, seed, sizes), **dims}))


def _assignments(
    specs: Sequence[InputSpec], free: Sequence[str], sizes: Sequence[int]
) -> Iterator[dict[str, int]]:
    """Yield a size for each of the *free* dims, the likelier ones first."""
    shapes = [(spec.name, spec.shape) for spec in specs if spec.shape]
    first = {dims[0] for _, dims in shapes} | {f"{name}[0]" for name, _ in shapes}
    last = {dims[-1] for _, dims in shapes} | {f"{name}[{len(dims) - 1}]" for name, dims in shapes}
    seen: list[dict[str, int]] = []
    for size in sizes:
        for narrow in (first, set(free) - last, set[str]()):
            tried = {name: 1 if name in narrow else size for name in free}
            if tried not in seen:
                seen.append(tried)
                yield tried
