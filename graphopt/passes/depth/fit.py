"""Fit what stays to data once blocks are left out, against the original, with the walk of graphopt.recover.

What a branch added to a stream, the last operator before it that makes the stream, or is added to it, is
fitted to put out as well. All operators from there on are fitted to what they put out in the original.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.ir.rewrite import is_op, sole_user
from graphopt.recover.solve import MANY_GROUPS, refit_bias_groups, solve_groups
from graphopt.recover.walk import StageReport, Walk

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.depth.blocks import Block
    from graphopt.recover.linear import Linear
    from graphopt.recover.solve import Solution
    from graphopt.recover.walk import Stage
    from graphopt.runtime.session import Feeds

_PASSING = frozenset({"Dropout", "Identity", "Relu"})
"""What may stand between two sums of a stream, of which once is as good as twice."""


@dataclass(frozen=True)
class Recovery:
    """How weights are fitted; see the options of prune-blocks.

    Attributes:
        method: "bias" or "least-squares".
        ridge: Relative ridge.
        hold_out: Whether some samples are set aside to choose the ridge of each solve on.
        rows_per_sample: Positions drawn from each sample.
        seed: Seed of the draws.
        protect: Patterns of names of nodes and weights that stay as they are.
    """

    method: str
    ridge: float
    hold_out: bool
    rows_per_sample: int
    seed: int
    protect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        student: A copy of the model that passes the blocks by and has the fitted weights.
        solved: The operators that were fitted, and what to.
        report: What to report.
        skipped: What was not fitted, with the reason.
        warnings: What was not as it should be; in the report too.
    """

    student: Model
    solved: tuple[tuple[Linear, Solution], ...]
    report: dict[str, object]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def write(self, model: Model) -> None:
        """Give the weights to the *model* that was walked."""
        for linear, solution in self.solved:
            linear.write(model, solution.weight, solution.bias if linear.has_bias else None)


def fit_without(model: Model, blocks: Sequence[Block], feeds: Iterable[Feeds], recovery: Recovery) -> Fit:
    """Return weights with which *model* does without *blocks*.

    Args:
        model: The model that the blocks were found in; it is not changed.
        blocks: What will go, in graph order.
        feeds: Unlabelled inputs.
        recovery: How.
    """
    gone = {node for block in blocks for node in block.nodes}
    lost = _lost(blocks, gone)
    solved: list[tuple[Linear, Solution]] = []
    skipped: list[tuple[str, str]] = []
    stages: list[StageReport] = []
    notes: dict[str, None] = {}
    with Walk(model, feeds, recovery.rows_per_sample, recovery.seed, hold_out=recovery.hold_out) as walk:
        first = min(walk.position_of(block.add) for block in blocks)
        for block in blocks:
            walk.bypass(block.output, block.operand)
        for found in walk.stages():
            stage = _aimed(found, lost, walk.shapes)
            linear = stage.linear
            if linear.node in gone or (stage.position < first and not stage.lost):
                continue
            if reason := _why_not(linear, recovery.protect):
                skipped.append((linear.where, f"not fitted: {reason}"))
                continue
            solution, rows = _solve(walk, stage, recovery)
            walk.write(stage, solution.weight, solution.bias if linear.has_bias else None)
            solved.append((linear, solution))
            notes |= dict.fromkeys(solution.notes)
            before, after = solution.residual_before, solution.residual_after
            stages.append(StageReport(linear.where, before, after, solution.ridge, rows))
        agreement = walk.finish()
        notes |= dict.fromkeys(walk.notes)
    report: dict[str, object] = {
        "method": recovery.method,
        "stages": [stage.as_json() for stage in stages],
        "agreement": agreement.as_json(),
        "effort": walk.effort.as_json(),
        "warnings": list(notes),
    }
    return Fit(walk.student, tuple(solved), report, tuple(skipped), tuple(notes))


def _solve(walk: Walk, stage: Stage, recovery: Recovery) -> tuple[Solution, int]:
    linear = stage.linear
    moments = walk.observe(stage)
    rows = sum(one.count for one in moments)
    weight, bias = linear.weight(), linear.bias()
    if recovery.method == "bias":
        found = refit_bias_groups(moments, weight, bias, stage=linear.where, free_bias=linear.has_bias)
    else:
        found = solve_groups(
            moments, weight, bias, stage=linear.where, ridge=recovery.ridge, free_bias=linear.has_bias
        )
    return found, rows


def _why_not(linear: Linear, protect: Sequence[str]) -> str:
    if linear.is_named_by(protect):
        return "protected"
    if linear.groups > MANY_GROUPS:
        return f"it has {linear.groups} groups"
    return "others read its weight too" if linear.shares_weight else ""


def _aimed(stage: Stage, lost: Mapping[oir.Value, tuple[str, ...]], shapes: Shapes) -> Stage:
    """Return *stage* with the branches that its output lacks, or the first sum that lacks any."""
    value = output = stage.linear.node.outputs[0]
    while value not in lost:
        user = sole_user(value)
        if user is None or not is_op(user, "Add", "Sum", "Identity", "Dropout"):
            return stage
        value = user.outputs[0]
    if shapes.shape(value) != shapes.shape(output):
        return stage  # a sum that it is broadcast to lacks more than it can put out
    branches = lost[value]
    return replace(stage, lost=branches, others=tuple(name for name in stage.others if name not in branches))


def _lost(blocks: Sequence[Block], gone: Collection[oir.Node]) -> dict[oir.Value, tuple[str, ...]]:
    """Return which branches streams, and what they are before a Relu, lack right behind them.

    Args:
        blocks: What goes, in graph order.
        gone: Its nodes.

    Returns:
        The outputs of branches that follow each other, by the value before the first.
    """
    found: dict[oir.Value, tuple[str, ...]] = {}
    sums = {block.add for block in blocks}
    for block in reversed(blocks):
        branches = (block.branch, *found.get(block.add.outputs[0], ()))
        reader, value = block.add, block.add.inputs[block.operand]
        while value is not None and _is_read_only_by(value, {reader, *gone}):
            found[value] = branches
            producer = value.producer()
            if producer is None or producer in sums or not is_op(producer, *_PASSING):
                break
            reader, value = producer, producer.inputs[0]
    return found


def _is_read_only_by(value: oir.Value, nodes: Collection[oir.Node]) -> bool:
    return not value.is_graph_output() and all(user in nodes for user in value.consumers())
