"""Palettes that make up for each other and for what the layers before have lost.

The model is walked in topological order with the original beside it (graphopt.recover.walk). At each operator
the weight is first solved against what the original puts out there, on what the model computes with all
palettes before it; then its palette is found so that the outputs lose least (descent.py), and the bias takes
what is left of the mean. Everything is a closed form; no gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import DataError
from graphopt.ir.rewrite import attribute, is_op
from graphopt.ir.stream import is_in_file
from graphopt.ir.tensors import from_array, nbytes
from graphopt.passes.palettes.choose import choose, exact
from graphopt.passes.palettes.descent import Problem, Shared, feed_back, improve, nearest
from graphopt.recover.linear import linear_of
from graphopt.recover.solve import refit_bias, regularise, solve_groups
from graphopt.recover.walk import StageReport, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.ir.tensors import Array
    from graphopt.passes.palettes.candidates import Candidate
    from graphopt.passes.palettes.choose import Choice, Wish
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix, Moments
    from graphopt.recover.walk import Stage
    from graphopt.runtime.session import Feeds

_IN_MEMORY = 1 << 24
"""Elements of a weight in a file up to which it is read for feedback: with --isolate all lie in files."""

DAMPING = 1e-3
"""Ridge on the second moments that the codes are found with, as a share of their mean diagonal."""


@dataclass(frozen=True)
class Settings:
    """The options that feedback has of its own.

    Attributes:
        ridge: Ridge of the solve before the codes are found.
        rows_per_sample: Positions drawn from each sample.
        seed: Seed of the draws.
    """

    ridge: float
    rows_per_sample: int
    seed: int


@dataclass(frozen=True, eq=False)
class Fed:
    """A weight that was fed back.

    Attributes:
        candidate: With the values that the palette gives in the place of the weight.
        choice: The palette.
        output_error: Mean squared error of the outputs over their mean square, by the palette alone.
        output_error_nearest: The same with the nearest values of the first codebook.
    """

    candidate: Candidate
    choice: Choice
    output_error: float
    output_error_nearest: float


@dataclass
class Outcome:
    """What became of the weights: by name, those that were fed back; the others with the reason.

    *warnings* say what was not as it should be; they are in the report too. *changed* has the operators, with
    the weight and the bias that each gets.
    """

    fed: dict[str, Fed] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    report: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    changed: list[tuple[Linear, Matrix, Matrix]] = field(default_factory=list)

    def write(self, model: Model) -> None:
        """Give the weights, and the biases that take what is left, to the *model* that was walked."""
        for linear, weight, bias in self.changed:
            linear.write(model, weight, bias if linear.has_bias else None)


def why_not(candidate: Candidate, model: Model) -> str:
    """Return why errors of *candidate* cannot be fed back; "" where they can."""
    node = candidate.reader
    if len(candidate.value.uses()) > 1:
        return "it has several readers"
    if node.graph is not model.graph:
        return "its reader is inside a body"
    if is_in_file(candidate.tensor) and candidate.size > _IN_MEMORY:
        return "it lies in a file and is large"
    linear = linear_of(node)
    if isinstance(linear, str):
        return linear
    if linear.node.inputs[1] is not candidate.value:
        return "its reader takes it through other nodes"
    return ""


def feed_back_all(
    model: Model,
    candidates: Sequence[Candidate],
    feeds: Iterable[Feeds] | None,
    wish_of: Callable[[Candidate], Wish],
    settings: Settings,
    progress: Callable[[int, int], None],
    *,
    start: Model | None,
    nearest_of: Callable[[Candidate], Array | None],
) -> Outcome:
    """Find palettes for *candidates* with error feedback, and the biases that take what is left.

    Args:
        model: The model; it stays as it is (:meth:`Outcome.write` changes it).
        candidates: Weights, each with one reader that is a linear operator of the main graph.
        feeds: Unlabelled inputs.
        wish_of: Bits and form of each.
        settings: See there.
        progress: Told (done, total).
        start: The model with nearest codes in the weights that are no candidates; None where there are none.
        nearest_of: Gives what a candidate becomes that cannot be fed back after all; None where it stays.

    Raises:
        DataError: There are no data, or the model does not run on them.
    """
    if feeds is None:
        raise DataError(
            "feedback=true fits codes to data, and there are none",
            where="share-weights",
            hint="Give unlabelled inputs with --data, or feedback=false.",
        )
    outcome = Outcome()
    if not candidates:
        return outcome
    by_value = {each.value: each for each in candidates}
    stages: list[StageReport] = []
    notes: dict[str, None] = {}
    with Walk(model, feeds, settings.rows_per_sample, settings.seed, start=start) as walk:
        found = [stage for stage in walk.stages() if stage.linear.node.inputs[1] in by_value]
        for done, stage in enumerate(found):
            progress(done, len(found))
            value = stage.linear.node.inputs[1]
            assert value is not None
            candidate = by_value[value]
            wish = wish_of(candidate)
            if exact(candidate, wish) is not None:
                continue
            result = _feed_back(walk, stage, candidate, wish, settings)
            if isinstance(result, str):
                if result:
                    outcome.skipped.append((candidate.name, result))
                rounded = nearest_of(candidate)
                if rounded is not None:
                    walk.write(stage, stage.linear.matrix(rounded), None)
                continue
            outcome.fed[candidate.name] = result.fed
            outcome.changed.append((stage.linear, result.weight, result.bias))
            walk.write(stage, result.weight, result.bias if stage.linear.has_bias else None)
            notes |= dict.fromkeys(result.notes)
            stages.append(result.report)
        agreement = walk.finish() if outcome.changed else None
    outcome.report = {
        "stages": [stage.as_json() for stage in stages],
        "agreement": None if agreement is None else agreement.as_json(),
        "effort": walk.effort.as_json(),
        "warnings": list(notes),
    }
    outcome.warnings = tuple(notes)
    return outcome


@dataclass(frozen=True, eq=False)
class _Result:
    fed: Fed
    weight: Matrix
    bias: Matrix
    report: StageReport
    notes: tuple[str, ...]


def _feed_back(
    walk: Walk, stage: Stage, candidate: Candidate, wish: Wish, settings: Settings
) -> _Result | str:
    linear = stage.linear
    moments = walk.observe(stage)
    weight, bias = linear.weight(), linear.bias()
    rows = sum(each.count for each in moments)
    if not rows or not all(each.is_finite for each in moments):
        return "activations are not finite" if rows else "there are no rows"
    solution = solve_groups(
        moments, weight, bias, stage=linear.where, ridge=settings.ridge, free_bias=linear.has_bias
    )
    alpha = float(attribute(linear.node, "alpha", 1.0)) if is_op(linear.node, "Gemm") else 1.0
    problem, notes = _problem(linear, moments, solution.weight / alpha)
    mass = np.repeat(np.einsum("gdd->gd", problem.moments), problem.weight.shape[1], axis=0)
    wanted = replace(candidate, tensor=_stored(linear, candidate, problem.weight.reshape(weight.shape)))
    choice = choose(wanted, _layout(linear, candidate, mass), wish)
    if choice.palette.nbytes(candidate.size) >= nbytes(candidate.tensor):
        return ""  # which is said where the others are put
    start = _start(problem, choice, wish)
    plain = start.values()
    shared = improve(
        problem,
        feed_back(problem, start.books, start.scales, start.book_of),
        books=wish.spacing == "kmeans",
        scales=choice.palette.scales is not None,
        dtype=candidate.tensor.dtype.numpy(),
    )
    stored = shared.values().reshape(weight.shape)
    values = stored * alpha
    scales = shared.scales.reshape(-1).astype(candidate.tensor.dtype.numpy())
    palette = replace(
        choice.palette, codebooks=shared.books, scales=None if choice.palette.scales is None else scales
    )
    left, before, after = _biases(linear, moments, values, weight, bias)
    error = problem.relative(shared.values())
    decibels = -10 * math.log10(error) if error > 0 else math.inf
    moved = replace(candidate, tensor=_stored(linear, candidate, stored))
    fed = Fed(
        moved,
        replace(choice, palette=palette, sqnr_db=decibels, exact=False),
        error,
        problem.relative(plain),
    )
    report = StageReport(linear.where, before, after, solution.ridge, rows)
    return _Result(fed, values, left, report, (*solution.notes, *notes))


def _problem(linear: Linear, moments: Sequence[Moments], weight: Matrix) -> tuple[Problem, tuple[str, ...]]:
    """Return the objective of the codes: moments about the mean where the bias can take the mean."""
    groups = len(moments)
    seen = []
    notes: dict[str, None] = {}
    for each in moments:
        matrix = each.covariance if linear.has_bias else each.gram / max(each.count, 1)
        regular = regularise(matrix, each.count, DAMPING, linear.where)
        seen.append(regular.matrix)
        notes |= dict.fromkeys(regular.notes)
    shaped = weight.reshape(groups, -1, weight.shape[1])
    return Problem(shaped, np.stack(seen), moments[0].count, linear.where), tuple(notes)


def _start(problem: Problem, choice: Choice, wish: Wish) -> Shared:
    """Return the palette as it was chosen, with nearest codes, in the objective's layout."""
    groups, rows, _ = problem.weight.shape
    palette = choice.palette
    scales = np.ones(groups * rows) if palette.scales is None else palette.scales.astype(np.float64)
    book_of = np.zeros(groups * rows, np.intp)
    if len(palette.codebooks) > 1:
        book_of = np.arange(groups * rows) // wish.group_size
    shape = (groups, rows)
    scales, book_of = scales.reshape(shape), book_of.reshape(shape)
    codes = nearest(problem.weight / scales[..., None], palette.codebooks, book_of)
    return Shared(palette.codebooks, scales, book_of, codes)


def _layout(linear: Linear, candidate: Candidate, matrix: Matrix) -> Matrix:
    """Return [m, d] in the layout of the stored weight."""
    turned = is_op(linear.node, "MatMul") or (
        is_op(linear.node, "Gemm") and not attribute(linear.node, "transB", 0)
    )
    return np.ascontiguousarray(matrix.T if turned else matrix).reshape(candidate.dims)


def _stored(linear: Linear, candidate: Candidate, matrix: Matrix) -> oir.TensorProtocol:
    """Return the tensor of the weight that is [m, d] *matrix*, a Gemm's alpha apart."""
    array = _layout(linear, candidate, matrix).astype(candidate.tensor.dtype.numpy())
    return from_array(array, candidate.name)


def _biases(
    linear: Linear, moments: Sequence[Moments], values: Matrix, weight: Matrix, bias: Matrix
) -> tuple[Matrix, float, float]:
    """Return the bias that is best for *values*, and the residual before and after."""
    step = len(values) // len(moments)
    parts = []
    before, after, total = 0.0, 0.0, 0.0
    for group, each in enumerate(moments):
        part = slice(group * step, (group + 1) * step)
        best = bias[part]
        if linear.has_bias:
            best = refit_bias(each, values[part], bias[part], stage=linear.where).bias
        parts.append(best)
        share = each.target_variance
        if share > 0:
            before += share * each.residual(weight[part], bias[part])
            after += share * each.residual(values[part], best)
            total += share
    total = total or 1.0
    return np.concatenate(parts), before / total, after / total
