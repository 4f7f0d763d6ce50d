"""One pass over the data: run the model with its inner values as outputs and keep their statistics only."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.accumulate import ChannelAccumulator, GramAccumulator, RangeAccumulator
from graphopt.calibrate.derived import derivations
from graphopt.calibrate.expose import Exposed, expose
from graphopt.calibrate.statistics import Statistics
from graphopt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import onnx_ir as oir

    from graphopt.calibrate.derived import Derivation
    from graphopt.calibrate.expose import Exposure
    from graphopt.calibrate.needs import Needs
    from graphopt.ir.model import Model
    from graphopt.runtime.session import Feeds, Session

    Array = np.ndarray[Any, np.dtype[Any]]

ROWS_PER_SAMPLE = 64
"""Positions drawn from each sample for second moments; 64 an image are enough (design: recovery)."""

_INLINE_LIMIT_BYTES = 1 << 30  # protobuf ends at 2 GiB


def collect(
    model: Model,
    feeds: Iterable[Feeds],
    needs: Needs,
    *,
    seed: int = 0,
    rows_per_sample: int | None = ROWS_PER_SAMPLE,
    progress: Callable[[int, int], None] | None = None,
    provider: str = "cpu",
) -> Statistics:
    """Return the statistics that *needs* asks for, from one pass over *feeds* in bounded memory.

    Args:
        model: The model; it is not changed.
        feeds: One mapping of inputs to arrays each; shapes may differ, and may be empty along an axis.
        needs: What to collect. What cannot be collected stands in ``skipped`` of the result.
        seed: Seed of the rows drawn for second moments.
        rows_per_sample: Rows drawn from each sample; None takes all.
        progress: Told how many feeds are done of how many; of -1 where their number is not known.
        provider: What to run on.

    Raises:
        DataError: There are no feeds, or the model cannot run on one.
        ProviderError: The provider is missing or refuses the model.
    """
    derived = derivations(model, needs.ranges)
    exposure = expose(model, set(needs.values) - _only_derived(needs, derived))
    if any(each.source in exposure.skipped for each in derived.values()):
        derived = {}
        exposure = expose(model, needs.values)
    collectors = _Collectors(needs, exposure, derived, seed, rows_per_sample)
    statistics = Statistics(skipped=dict(exposure.skipped))
    collectors.constants()
    with _session(exposure, provider) as session:
        statistics.feeds = _run(session, feeds, collectors, progress)
    collectors.finish(statistics)
    return statistics


def _only_derived(needs: Needs, derived: Mapping[str, Derivation]) -> frozenset[str]:
    """Return the values that need not be seen: their ranges follow, and nothing else is asked of them."""
    seen = {name for name, _ in needs.channels} | {rows.value for rows in needs.grams}
    return frozenset(derived) - seen


def _run(
    session: Session | None,
    feeds: Iterable[Feeds],
    collectors: _Collectors,
    progress: Callable[[int, int], None] | None,
) -> int:
    total = len(feeds) if isinstance(feeds, Sized) else -1
    done = 0
    for feed in feeds:
        try:
            outputs = {} if session is None else session.run(feed)
        except DataError as error:
            error.message = error.message.replace("this feed", f"feed {done}")
            raise
        collectors.take(feed, outputs)
        del outputs  # before the next ones are made: they may be all of a net's activations
        done += 1
        if progress is not None:
            progress(done, total)
    if not done:
        raise DataError("the data holds no feeds", where="calibration", hint="Give at least one sample.")
    return done


@contextlib.contextmanager
def _session(exposure: Exposure, provider: str) -> Iterator[Session | None]:
    """Open the model with the values exposed; None where nothing of it has to run."""
    from graphopt.ir.emit import ExternalData, emit, save
    from graphopt.runtime.session import open_session

    if not exposure.outputs:
        yield None
        return
    where = "the model with its inner values as outputs"
    with contextlib.ExitStack() as stack:
        subject: Path | bytes
        if _is_inline(exposure.model):
            subject = emit(exposure.model).SerializeToString()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-calibrate-")))
            subject = folder / "model.onnx"
            save(exposure.model, subject, external=ExternalData("one-file"))
        yield stack.enter_context(open_session(subject, provider=provider, where=where))


def _is_inline(model: Model) -> bool:
    import onnx_ir as oir

    tensors = [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    if any(isinstance(tensor, oir.ExternalTensor) for tensor in tensors):
        return False
    return sum(tensor.nbytes for tensor in tensors) < _INLINE_LIMIT_BYTES


class _Collectors:
    """The collectors of all values, and where each value is seen."""

    def __init__(
        self,
        needs: Needs,
        exposure: Exposure,
        derived: Mapping[str, Derivation],
        seed: int,
        rows_per_sample: int | None,
    ) -> None:
        self._exposure = exposure
        self._ranges = {name: RangeAccumulator() for name in sorted(needs.ranges) if name not in derived}
        self._derived = {
            name: (each.source, self._ranges[each.source].derive(each.low, each.high))
            for name, each in sorted(derived.items())
        }
        self._channels = {item: ChannelAccumulator(item[1]) for item in sorted(needs.channels)}
        self._grams = {
            rows: GramAccumulator(rows, rows_per_sample, seed)
            for rows in sorted(needs.grams, key=lambda rows: rows.key)
        }
        self._by_value: dict[str, list[RangeAccumulator | ChannelAccumulator | GramAccumulator]] = {}
        for name, ranges in self._ranges.items():
            self._by_value.setdefault(name, []).append(ranges)
        for (name, _), channels in self._channels.items():
            self._by_value.setdefault(name, []).append(channels)
        for rows, grams in self._grams.items():
            self._by_value.setdefault(rows.value, []).append(grams)
        self._refused: dict[str, str] = {}

    def constants(self) -> None:
        """Take the values that are the same for all feeds; an input with a default may yet be fed."""
        from graphopt.ir.tensors import to_array

        for name, tensor in self._exposure.constants.items():
            if name not in self._exposure.inputs:
                self._take(name, to_array(tensor), 0)

    def take(self, feed: Feeds, outputs: Feeds) -> None:
        """Take the values of one feed."""
        for name, exposed in self._exposure.outputs.items():
            self._see(name, outputs[exposed.output], exposed)
        for name in self._exposure.inputs:
            if name in feed:
                self._see(name, feed[name], Exposed(name))
            elif name in self._exposure.constants:
                self._see(name, _constant(self._exposure.constants[name]), Exposed(name))

    def _see(self, name: str, value: object, exposed: Exposed) -> None:
        if not isinstance(value, np.ndarray):
            self._refused.setdefault(name, "it is no tensor")
        elif not _is_floating(value):
            self._refused.setdefault(name, f"it is not a floating-point tensor ({value.dtype})")
        else:
            self._take(name, value, exposed.leading)

    def _take(self, name: str, array: Array, leading: int) -> None:
        if name in self._refused:
            return
        if leading:
            for part in array.reshape(-1, *array.shape[leading:]):
                self._take(name, part, 0)
            return
        for collector in self._by_value[name]:
            try:
                collector.update(array)
            except DataError as error:
                self._refused[name] = error.message

    def finish(self, statistics: Statistics) -> None:
        """Put the results into *statistics*."""
        statistics.skipped.update(self._refused)
        skipped = statistics.skipped
        statistics.ranges = {
            name: each.result() for name, each in self._ranges.items() if name not in skipped
        }
        for name, (source, each) in self._derived.items():
            if source in skipped:
                skipped[name] = f"it follows from {source!r}, and that was not seen: {skipped[source]}"
            else:
                statistics.ranges[name] = each.result()
        statistics.ranges = dict(sorted(statistics.ranges.items()))
        for item, channels in self._channels.items():
            moments = channels.result()
            if item[0] not in skipped and moments is not None:
                statistics.channels[item] = moments
        for rows, accumulator in self._grams.items():
            gram = accumulator.result()
            if rows.value in skipped:
                continue
            if gram is None:
                skipped[rows.value] = "it was empty in every feed"
            else:
                statistics.grams[rows] = gram


def _constant(tensor: oir.TensorProtocol) -> Array:
    from graphopt.ir.tensors import to_array

    return to_array(tensor)


def _is_floating(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"
