"""What leaving blocks out does to the outputs, with what stays fitted to other samples where it will be."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from graphopt.errors import DataError
from graphopt.passes.depth.blocks import bypass
from graphopt.passes.depth.fit import fit_without
from graphopt.recover.outputs import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from graphopt.ir import Model
    from graphopt.passes.depth.blocks import Block
    from graphopt.passes.depth.fit import Recovery
    from graphopt.runtime.session import Feeds

_HELD = 4  # one sample of so many is run, the others are fitted
_MOST_RUN = 64  # samples
_MOST_FITTED = 128
_MOST_ROWS = 4096  # of all; the order of the blocks needs less than the weights in the end
_LEAST_SAMPLES = 8


def measure_errors(
    model: Model, data: Iterable[Feeds], recovery: Recovery | None
) -> Callable[[Sequence[Block]], float]:
    """Return what measures *model* without some blocks: squared error of the outputs over their variance.

    Args:
        model: The whole model; it is not changed.
        data: Unlabelled inputs, of which some hundred are used.
        recovery: How what stays will be fitted; None: not at all.

    Raises:
        DataError: There are too few samples to hold some out, or no output varies over them.
    """
    feeds = list(islice(data, _HELD * _MOST_RUN))
    hint = "Give other samples with --data, or name the blocks that are to go with blocks=[...]."
    if recovery is None:
        outputs = Outputs(model, feeds[:_MOST_RUN], where="prune-blocks", hint=hint)

        def error_unfitted(blocks: Sequence[Block]) -> float:
            student = model.clone()
            bypass(student, blocks)
            return outputs.error(student)

        return error_unfitted
    if len(feeds) < _LEAST_SAMPLES:
        raise DataError(
            f"what blocks cost is measured on samples held out, and there are {len(feeds)} in all;"
            f" expected {_LEAST_SAMPLES}",
            where="prune-blocks",
            hint="Give more samples with --data, or recover=none.",
        )
    fitted = [feed for index, feed in enumerate(feeds) if index % _HELD != _HELD - 1][:_MOST_FITTED]
    rows = min(recovery.rows_per_sample, -(-_MOST_ROWS // len(fitted)))
    recovery_here = replace(recovery, rows_per_sample=rows)
    held = Outputs(model, feeds[_HELD - 1 :: _HELD], where="prune-blocks", hint=hint)

    def error_fitted(blocks: Sequence[Block]) -> float:
        return held.error(fit_without(model, blocks, fitted, recovery_here).student)

    return error_fitted
