"""Fit the factors to data: against the original, on what the model computes with the factors so far."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.lowrank import rewrite
from graphopt.passes.lowrank.forms import Evidence, Factors, Splitter
from graphopt.recover.solve import Solution, over_variance, refit_bias, solve, solve_groups
from graphopt.recover.walk import StageReport, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.ir.spill import Spill
    from graphopt.passes.lowrank.candidates import Candidate, Way
    from graphopt.passes.lowrank.rewrite import Fitted
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix, Moments

_LAST_RIDGE = 1e-4
"""Little: the features are few, and as many rows as for the whole weight stand behind them."""


@dataclass(slots=True)
class Fit:
    """All that was fitted.

    Attributes:
        fitted: In graph order.
        stages: What happened at each, for the report.
        notes: What was not as it should be.
        extra: Agreement and effort, for the report.
    """

    fitted: list[Fitted] = field(default_factory=list)
    stages: list[StageReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, object] = field(default_factory=dict)


def plain(
    candidates: Sequence[Candidate],
    ways: Sequence[Way | None],
    split: Callable[[Candidate], Splitter],
    means: Mapping[str, Matrix],
    spill: Spill,
) -> Fit:
    """Cut every weight by itself, one after the other.

    Args:
        candidates: The operators.
        ways: How each is written.
        split: Reads the weight of one, to be cut in the space of its outputs where there are data.
        means: Mean row by output of the operator; where one is given the bias keeps the mean of the output.
        spill: Where the factors of weights in files wait.
    """
    fit = Fit()
    for candidate, way in zip(candidates, ways, strict=True):
        if way is not None:
            fitted, notes = _cut_alone(split(candidate), candidate.linear, way, means, spill)
            fit.fitted.append(fitted)
            fit.notes += notes
    return fit


def _cut_alone(
    splitter: Splitter, linear: Linear, way: Way, means: Mapping[str, Matrix], spill: Spill
) -> tuple[Fitted, list[str]]:
    factors = splitter.cut(way.form, way.ranks)
    mean = means.get(linear.output)
    bias = None
    if mean is not None and np.isfinite(mean).all() and may_have_bias(linear):
        bias = linear.bias() + (splitter.weight - factors.product) @ mean
    return rewrite.factorised(linear, factors, bias, spill), splitter.notes


def may_have_bias(linear: Linear) -> bool:
    """Return whether a bias costs nothing: Conv and Gemm add one anyway, a MatMul would need another node."""
    return linear.has_bias or linear.node.op_type != "MatMul"


def compensated(
    walk: Walk,
    candidates: Sequence[Candidate],
    ways: Sequence[Way | None],
    spill: Spill,
    *,
    ridge: float,
    whiten: bool,
    refit_others: bool,
    keep: Sequence[str] = (),
    metrics: Mapping[str, Matrix] | None = None,
) -> Fit:
    """Walk the model and fit each stage so that it makes up for what those before have lost.

    Args:
        walk: The walk over the model.
        candidates: The operators.
        ways: How each is written.
        spill: Where what is made of weights in files waits.
        ridge: Relative ridge of the solves.
        whiten: Cut in the space of the outputs.
        refit_others: Whether the weights that stay whole are fitted too.
        keep: Patterns of names of nodes that stay as they are.
        metrics: What errors cost, by output of the operator; see Splitter.
    """
    fit = Fit()
    chosen = {c.linear.node: (c, way) for c, way in zip(candidates, ways, strict=True) if way is not None}
    first = min((walk.position_of(node) for node in chosen), default=0)
    for stage in walk.stages():
        linear = stage.linear
        node = linear.node
        if stage.position < first or (
            node not in chosen and (not refit_others or kept_by_name(node.name, keep) or linear.shares_weight)
        ):
            continue
        moments = walk.observe(stage)
        weight, bias = linear.weight(), linear.bias()
        free = may_have_bias(linear)
        factors = None
        if node in chosen:
            candidate, way = chosen[node]
            seen = moments[0] if free else moments[0].uncentred(bias)
            factors, solution = _cut(
                seen,
                candidate,
                way,
                ridge,
                weight,
                bias if free else 0 * bias,
                whiten=whiten,
                metric=(metrics or {}).get(linear.output),
            )
            if not free:
                solution = over_variance(solution, seen, moments[0])
        else:
            solution = solve_groups(moments, weight, bias, stage=linear.where, ridge=ridge, free_bias=free)
        new_bias = solution.bias if free else None
        walk.write(stage, solution.weight, new_bias)
        fit.fitted.append(
            rewrite.whole(linear, solution.weight, new_bias, spill)
            if factors is None
            else rewrite.factorised(linear, factors, new_bias, spill)
        )
        fit.notes += solution.notes
        rows = sum(one.count for one in moments)
        fit.stages.append(
            StageReport(linear.where, solution.residual_before, solution.residual_after, solution.ridge, rows)
        )
    fit.extra["agreement"] = walk.finish().as_json()
    fit.extra["effort"] = walk.effort.as_json()
    fit.extra["stages"] = [stage.as_json() for stage in fit.stages]
    return fit


def _cut(
    moments: Moments,
    candidate: Candidate,
    way: Way,
    ridge: float,
    weight: Matrix,
    bias: Matrix,
    *,
    whiten: bool,
    metric: Matrix | None,
) -> tuple[Factors, Solution]:
    """Solve for the whole weight, cut it, and fit the last factor to what the others let through."""
    where = candidate.linear.where
    solution = solve(moments, weight, bias, stage=where, ridge=ridge)
    usable = moments.is_finite and moments.count > 0
    covariance = moments.covariance if usable and whiten else None
    evidence = Evidence.of(covariance, metric, count=moments.count, stage=where)
    splitter = Splitter(solution.weight, candidate.geometry, evidence)
    factors = splitter.cut(way.form, way.ranks)
    notes = (*solution.notes, *splitter.notes)
    if not usable:
        nan = float("nan")
        return factors, Solution(factors.product, bias, nan, nan, solution.ridge, notes)
    inner = moments.through(factors.features)
    last = solve(inner, factors.last, solution.bias, stage=where, ridge=_LAST_RIDGE).weight
    factors = Factors(factors.form, factors.ranks, factors.parts, factors.features, last)
    best = refit_bias(moments, factors.product, solution.bias, stage=where)
    return factors, Solution(
        factors.product, best.bias, solution.residual_before, best.residual_after, solution.ridge, notes
    )


def kept_by_name(name: str | None, patterns: Sequence[str]) -> bool:
    """Return whether a node of that name is to be left alone."""
    return any(fnmatch.fnmatchcase(name or "", pattern) for pattern in patterns)
