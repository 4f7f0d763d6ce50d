"""The oracle: on every prune, the masked original against the pruned model, run on onnxruntime.

What it proves: the pruned model computes what the original computes with the removed channels set to zero
wherever they are summed over. What makes the proof more than words: weights that are one number throughout
are made random in both copies (a zero-initialised head would agree with anything), and the pruned model must
differ from the dense one; where it does not, because what was removed was dead already, the elements of all
weights are shuffled in both copies, and then it must.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, PassFailed
from graphopt.passes.pruning.masked import (
    mask_model,
    nudge_weights,
    randomise_constants,
    shuffle_weights,
    values_by_name,
)
from graphopt.runtime.compare import Comparator
from graphopt.runtime.opening import open_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.passes.pruning.anatomy import Anatomy
    from graphopt.passes.pruning.masked import Describe, Mask, Operands
    from graphopt.runtime.session import Feeds, Value

TOLERANCE = 1e-5
"""Largest relative error for float32: rounding in another order leaves about 1e-6 (benchmarks/zoo)."""

_SAME = 1e-6  # relative; rounding of float32 outputs that are the same leaves less
_EVIDENCE = 10.0  # the pruned model must be so many times nearer to the masked one than to the dense one
_SUSPECT = 100.0  # tolerances; a wrong cut is farther off than that
_SHUFFLES = 4  # a net that is dead in one order of its weights, as behind a last Relu, lives in another
_FLOORS = 4.0  # times what one unit in the last place of the weights changes
_TOLERANCES = {"FLOAT16": 2e-2, "BFLOAT16": 1e-1}


@dataclass(frozen=True)
class Verdict:
    """What one comparison found.

    Attributes:
        error: Largest relative error over all outputs: max |masked - pruned| / max |masked|.
        difference: The same between dense and pruned: what shows that something was pruned at all.
        tolerance: What *error* is held to: 1e-5 for float32, more for narrower types, and where the model is
            so ill-conditioned that rounding alone does more.
        feeds: Number of feeds.
        randomised: Weights that were one number throughout, made random in both copies.
        shuffled: Whether all weights had to be shuffled for the pruned model to differ.
        output: The output with the largest error.
        varies: Whether some output of the masked original is more than one number.
        unused: Whether what was removed reaches no output at all, whatever the weights: then the pruned model
            is the dense one, which proves as much.
    """

    error: float
    difference: float
    tolerance: float
    feeds: int
    randomised: int
    shuffled: bool
    output: str
    varies: bool = True
    unused: bool = False

    @property
    def passed(self) -> bool:
        """Whether the models agree."""
        return self.error <= self.tolerance

    def record(self) -> dict[str, object]:
        """Return it ready for the report."""
        return {
            "relative_error": self.error,
            "relative_difference_to_dense": self.difference,
            "tolerance": self.tolerance,
            "feeds": self.feeds,
            "constant_weights_randomised": self.randomised,
            "weights_shuffled": self.shuffled,
            "removed_without_effect": self.unused,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Claim:
    """What is to be proven: that a cut equals masking.

    Attributes:
        cut: Cuts a clone of the model in place.
        masks: What to multiply onto activations: (value, axis, 0/1 of each index).
        compressed: Nodes that norm or reduce a cut axis, by first output: what stays of their operands.
        describe: Gives rank and element type of a value by its name.
    """

    cut: Callable[[Model], None]
    masks: Sequence[Mask]
    compressed: Mapping[str, Operands]
    describe: Describe


def claim_of(anatomy: Anatomy, kept: Mapping[str, npt.NDArray[np.intp]]) -> Claim:
    """Return the claim that cutting the model of *anatomy* to *kept* units equals masking the others."""
    return Claim(
        cut=lambda clone: anatomy.cut(clone, kept),
        masks=anatomy.masks(kept),
        compressed=anatomy.compressed(kept),
        describe=anatomy.describe,
    )


def masked_like(model: Model, claim: Claim, pruned: Model) -> Model:
    """Return a copy of *model* that computes in full width what *pruned*, its cut, should compute."""
    copy = model.clone()
    attributes = _attributes_of(pruned, claim.compressed)
    mask_model(copy, claim.masks, claim.compressed, attributes, claim.describe)
    return copy


def masked_as_cut(model: Model, anatomy: Anatomy, kept: Mapping[str, npt.NDArray[np.intp]]) -> Model:
    """Return a copy of *model* in full width that computes what a cut to *kept* units would."""
    pruned = model.clone()
    anatomy.cut(pruned, kept)
    return masked_like(model, claim_of(anatomy, kept), pruned)


def judge(
    model: Model, claim: Claim, feeds: Sequence[Feeds], *, seed: int, pruned: Model | None = None
) -> Verdict:
    """Return how far the pruned model is from the masked original.

    Args:
        model: The model before the cut; not changed.
        claim: The cut and the masks that should equal it.
        feeds: What to run.
        seed: Seed of the random weights.
        pruned: The pruned model, where it is there already; it is used if no weight has to be random.

    Raises:
        PassFailed: The pruned model cannot run, or nothing shows that it differs from the dense one.
        DataError: The original cannot run on the feeds.
        ProviderError: The runtime refuses the original.
    """
    subject = model.clone()
    randomised = randomise_constants(subject, seed)
    verdict = _compare(subject, claim, feeds, len(randomised), None if randomised else pruned, shuffled=False)
    if verdict.passed and verdict.difference <= _EVIDENCE * verdict.tolerance:  # then look closer
        # What was removed was dead, or its effect is too small to be seen: make it matter.
        for attempt in range(_SHUFFLES):
            shuffled = subject.clone()
            shuffle_weights(shuffled, seed + attempt, signs=attempt > 0)
            again = _compare(shuffled, claim, feeds, len(randomised), None, shuffled=True)
            if again.passed and again.difference <= _SAME and again.varies:
                return replace(again, error=max(verdict.error, again.error), unused=True)
            if not again.passed:
                return again
            if again.difference > max(_SAME, _EVIDENCE * again.error):
                worse = again.error > verdict.error
                return again if worse else replace(verdict, shuffled=True, difference=again.difference)
        raise PassFailed(
            "the oracle proves nothing: the pruned model does not differ from the dense one, even with"
            f" weights shuffled {_SHUFFLES} times (relative difference {again.difference:.2g})",
            hint="Give real inputs with --data, protect what is without effect, or set oracle=false",
        )
    return verdict


def _compare(
    subject: Model,
    claim: Claim,
    feeds: Sequence[Feeds],
    randomised: int,
    pruned: Model | None,
    *,
    shuffled: bool,
) -> Verdict:
    if pruned is None:
        pruned = subject.clone()
        claim.cut(pruned)
    masked = masked_like(subject, claim, pruned)
    dense_outputs = _run(subject, feeds, "the original")
    masked_outputs = _run(masked, feeds, "the masked original")
    try:
        pruned_outputs = _run(pruned, feeds, "the pruned model")
    except GraphoptError as refusal:
        raise PassFailed(
            f"the pruned model does not run: {refusal.message}", where="oracle", hint=refusal.hint
        ) from refusal
    error, output, varies = _relative(masked_outputs, pruned_outputs)
    difference, _, _ = _relative(dense_outputs, pruned_outputs)
    tolerance = _tolerance(subject)
    if tolerance < error <= _SUSPECT * tolerance:
        # Ill-conditioned models (logarithms, recurrences) magnify rounding: ask this one by how much.
        nudge_weights(masked, seed=0)
        floor, _, _ = _relative(masked_outputs, _run(masked, feeds, "the masked original"))
        tolerance = max(tolerance, _FLOORS * floor)
    return Verdict(error, difference, tolerance, len(feeds), randomised, shuffled, output, varies)


def _attributes_of(pruned: Model, names: Iterable[str]) -> dict[str, Mapping[str, oir.Attr]]:
    values = values_by_name(pruned)
    found: dict[str, Mapping[str, oir.Attr]] = {}
    for name in names:
        producer = values[name].producer() if name in values else None
        found[name] = {} if producer is None else dict(producer.attributes)
    return found


def _run(model: Model, feeds: Sequence[Feeds], where: str) -> list[dict[str, Value]]:
    session = open_model(model, where)
    return [session.run(feed) for feed in feeds]


def _relative(
    reference: Sequence[Mapping[str, Value]], candidate: Sequence[Mapping[str, Value]]
) -> tuple[float, str, bool]:
    """Return the largest relative error of an output, its name, and whether the reference varies at all.

    Discrete outputs count the part of their elements that differs.
    """
    names = list(reference[0])
    comparator = Comparator(names)
    for one, two in zip(reference, candidate, strict=True):
        comparator.add([one[name] for name in names], [two[name] for name in names])
    worst, where = 0.0, names[0] if names else ""
    varies = False
    for each in comparator.result():
        varies = varies or each.evidence
        if each.mismatch or each.nonfinite:
            error = math.inf
        elif each.max_rel is None or each.discrete:
            error = 1.0 - each.equal_ratio
        else:
            error = each.max_rel
        if error > worst:
            worst, where = error, each.name
    return worst, where, varies


def _tolerance(model: Model) -> float:
    """Return what rounding in the narrowest float type of *model* allows."""
    types = {
        value.const_value.dtype.name
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.size > 1
    }
    return max((_TOLERANCES[name] for name in types if name in _TOLERANCES), default=TOLERANCE)
