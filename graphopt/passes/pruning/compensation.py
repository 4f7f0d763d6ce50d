"""What happens to the weights that stay, between the decision what goes and the cut.

The units that go are known, the model is still whole: this is where consumers are refitted so that what
stays makes up for what goes. Changes are made to weights of the whole model, whose removed parts the cut then
drops; so the oracle, which masks and cuts the changed model, holds for every method.

The walk (graphopt.recover.walk) goes through the model in topological order. Each reader of a family that is
cut is solved against what the original puts out there, on what the model computes with all cuts before it.
With the criterion obs the units of a family that has one reader are chosen anew there: what the cuts before
have changed, changes what can be spared.

Further sweeps walk through the result once more: every operator, depthwise convolutions too, is solved again
from where it is, on other rows, now that all that comes before it has its final units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from graphopt.errors import DataError
from graphopt.ir.rewrite import nested_nodes
from graphopt.ir.semantics import key_of
from graphopt.passes.pruning.oracle import masked_as_cut
from graphopt.passes.pruning.readers import Reader, columns_of, reader_of
from graphopt.recover.selection import Problem, trajectory
from graphopt.recover.solve import MANY_GROUPS, RIDGE, refit_bias_groups, solve_groups
from graphopt.recover.walk import StageReport, Walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.passes.prune_channels import PruneChannels
    from graphopt.passes.pruning.anatomy import Anatomy
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix, Moments
    from graphopt.recover.solve import Solution
    from graphopt.recover.walk import Stage
    from graphopt.runtime.session import Feeds

    Kept = dict[str, npt.NDArray[np.intp]]
    Fitted = tuple[Linear, Matrix, Matrix | None]
    """An operator, its weight [m, d] and, where it has one, its bias [m]."""
    Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recovery:
    """How weights are fitted; see the options of prune-channels.

    Attributes:
        method: "bias" or "least-squares".
        reselect: Whether units are chosen anew during the walk.
        refit_all: Whether weights that lose nothing are fitted too.
        ridge: Relative ridge; where samples are held out that of the choice of units alone.
        hold_out: Whether some samples are set aside to choose the ridge of each solve on.
        rows_per_sample: Positions drawn from each sample.
        seed: Seed of the draws.
        sweeps: Walks through the model; the units are final behind the first.
        own_stream: Whether stages see what the original computes, so that none makes up for another.
        selection: Ridge with which the units of a family are chosen anew, where it is not *ridge*.
        protect: Patterns of names of nodes and weights that stay as they are.
    """

    method: str
    reselect: bool
    refit_all: bool
    ridge: float
    hold_out: bool
    rows_per_sample: int
    seed: int
    sweeps: int = 1
    own_stream: bool = False
    selection: Mapping[str, float] = field(default_factory=dict)
    protect: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: PruneChannels.Options, seed: int, selection: Mapping[str, float]) -> Self:
        """Return what *options* ask for."""
        return cls(
            method=options.recover,
            reselect=options.criterion == "obs" and options.plan is None,
            refit_all=options.refit == "all" and options.compensate,
            ridge=RIDGE if options.ridge == "auto" else options.ridge,
            hold_out=options.ridge == "auto",
            rows_per_sample=options.rows_per_sample,
            seed=seed,
            sweeps=options.sweeps,
            own_stream=not options.compensate,
            selection=selection,
            protect=tuple(options.protect),
        )


@dataclass
class Outcome:
    """What was done.

    Attributes:
        kept: Units that stay, by family; other ones than before where they were chosen anew.
        report: What to report.
        skipped: What was not fitted, with the reason.
        warnings: What was not as it should be; in the report too.
    """

    kept: Kept
    report: dict[str, object] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


def compensate(
    model: Model, anatomy: Anatomy, kept: Kept, feeds: Iterable[Feeds] | None, recovery: Recovery
) -> Outcome:
    """Change the weights of *model*, in place, so that the kept units make up for the others.

    Args:
        model: The whole model, a copy of its own; weights are found by name.
        anatomy: Its families.
        kept: Units that stay, sorted, by family.
        feeds: Unlabelled inputs, iterated once a sweep.
        recovery: How.

    Raises:
        DataError: There are no data.
    """
    if feeds is None:
        raise DataError(
            f"recover={recovery.method} fits weights to data, and there are none",
            where="prune-channels",
            hint="Give unlabelled inputs with --data, or recover=none.",
        )
    return _Fitter(model, anatomy, kept, recovery).run(anatomy, feeds)


class _Fitter:
    def __init__(self, model: Model, anatomy: Anatomy, kept: Kept, recovery: Recovery) -> None:
        self.model = model
        self.recovery = recovery
        self.outcome = Outcome(dict(kept))
        self.notes: dict[str, None] = {}
        self.sizes = {name: anatomy.family(name).size for name in kept}
        self.by_output: dict[str, list[tuple[str, Reader]]] = {}
        self.open: set[str] = set()  # families whose units are still to be chosen
        self.masked: set[str] = set()  # families that are read or normed by what is not fitted
        self.reading: set[oir.Node] = set()  # nodes of the main graph in which a cut family is read
        nodes = {
            value.name: (node, inner is node)
            for node in model.graph
            for inner in (node, *nested_nodes(node))
            for value in inner.outputs
        }
        for name in kept:
            self._find_readers(anatomy, name, nodes)

    def _find_readers(
        self, anatomy: Anatomy, name: str, nodes: Mapping[str | None, tuple[oir.Node, bool]]
    ) -> None:
        contractions = anatomy.subject(name).contractions
        found = []
        for contraction in contractions:
            output = None if contraction.node is None else key_of(contraction.node)
            outer, here = nodes.get(output, (None, False))
            if outer is not None:
                self.reading.add(outer)
            reader = reader_of(contraction)
            where = f"family {name!r}, read by {output!r}"
            if isinstance(reader, str):
                self.outcome.skipped.append((where, f"not fitted: {reader}"))
            elif not here:
                self.outcome.skipped.append((where, "not fitted: it is inside a body"))
            elif reader.linear.is_named_by(self.recovery.protect):
                self.outcome.skipped.append((where, "not fitted: protected"))
            else:
                found.append(reader)
        for reader in found:
            self.by_output.setdefault(reader.output, []).append((name, reader))
        if len(found) < len(contractions) or anatomy.compressed({name: self.outcome.kept[name]}):
            self.masked.add(name)
        elif self.recovery.reselect and len(found) == 1:
            self.open.add(name)

    def _student(self, anatomy: Anatomy) -> Model | None:
        """Return the model as what cannot be fitted will see it; None where all that reads a cut is fitted.

        Readers that are fitted do without what goes by themselves; others, and norms and means over channels,
        would still see it.
        """
        kept = {name: units for name, units in self.outcome.kept.items() if name in self.masked}
        return masked_as_cut(self.model, anatomy, kept) if kept else None

    def run(self, anatomy: Anatomy, feeds: Iterable[Feeds]) -> Outcome:
        """Walk, as often as was asked for, and put what was found into the model."""
        recovery = self.recovery
        done: dict[str, Fitted] = {}
        sweeps: list[dict[str, object]] = []
        student = self._student(anatomy)
        for sweep in range(recovery.sweeps):
            with Walk(
                self.model,
                feeds,
                recovery.rows_per_sample,
                recovery.seed + sweep,
                hold_out=recovery.hold_out,
                start=student,
                own_stream=recovery.own_stream,
            ) as walk:
                found, stages = self._sweep(walk, again=sweep > 0)
                if not found and sweeps:
                    break
                done |= found
                agreement = walk.finish()
                self.notes |= dict.fromkeys(walk.notes)
                student = walk.student
            sweeps.append(
                {
                    "stages": [stage.as_json() for stage in stages],
                    "agreement": agreement.as_json(),
                    "effort": walk.effort.as_json(),
                }
            )
        for linear, weight, bias in done.values():
            linear.write(self.model, weight, bias)
        self.outcome.report = {"stages": []}
        if sweeps:
            # The last is what counts; those before tell what it was worth.
            *before, last = sweeps
            self.outcome.report = {"method": recovery.method, **last, "warnings": list(self.notes)}
            self.outcome.warnings = tuple(self.notes)
            if before:
                self.outcome.report["sweeps_before"] = before
        return self.outcome

    def _sweep(self, walk: Walk, *, again: bool) -> tuple[dict[str, Fitted], list[StageReport]]:
        """Solve stage after stage; *again* where this was done before and only weights are still open."""
        done: dict[str, Fitted] = {}
        stages: list[StageReport] = []
        walked = walk.stages()
        known = {stage.output for stage in walked}
        for output in self.by_output:
            if output not in known and not again:
                self.outcome.skipped.append((f"reader {output!r}", "not fitted: it is no stage of the walk"))
        # What stands behind a reader makes up for the cut, also where the reader itself is not fitted.
        first = min((walk.position_of(node) for node in self.reading), default=math.inf)
        for stage in walked:
            linear = stage.linear
            reads = self.by_output.get(stage.output, [])
            if stage.position < first or (not reads and not self._may_refit(linear, again=again)):
                continue
            solution, rows = self._solve(walk, stage, reads)
            bias = solution.bias if linear.has_bias else None
            walk.write(stage, solution.weight, bias)
            done[stage.output] = linear, solution.weight, bias
            self.notes |= dict.fromkeys(solution.notes)
            stages.append(
                StageReport(
                    linear.where, solution.residual_before, solution.residual_after, solution.ridge, rows
                )
            )
        return done, stages

    def _may_refit(self, linear: Linear, *, again: bool) -> bool:
        """Return whether an operator that loses nothing is fitted too."""
        recovery = self.recovery
        if recovery.method != "least-squares" or not recovery.refit_all:
            return False
        if linear.shares_weight or linear.is_named_by(recovery.protect):
            return False
        if linear.groups <= MANY_GROUPS or again:
            return True
        if recovery.sweeps == 1:
            reason = f"not fitted: it has {linear.groups} groups; sweeps=2 fits it"
            self.outcome.skipped.append((linear.where, reason))
        return False

    def _solve(self, walk: Walk, stage: Stage, reads: Sequence[tuple[str, Reader]]) -> tuple[Solution, int]:
        linear = stage.linear
        moments = walk.observe(stage)
        weight, bias = walk.present(stage)
        gone = self._gone(linear, reads, skip=self.open)
        for name, reader in reads:
            if name in self.open:
                self.open.discard(name)
                self._choose(name, reader, moments, weight, bias, gone)
        gone = self._gone(linear, reads)
        rows = sum(one.count for one in moments)
        columns = self._columns(linear, ~gone) if reads else None
        if self.recovery.method == "bias":
            masked = self._masked(linear, weight, columns)
            solution = refit_bias_groups(moments, masked, bias, stage=linear.where, free_bias=linear.has_bias)
            return solution, rows
        solution = solve_groups(
            moments,
            weight,
            bias,
            stage=linear.where,
            ridge=self.recovery.ridge,
            columns=columns,
            free_bias=linear.has_bias,
        )
        return solution, rows

    def _gone(self, linear: Linear, reads: Sequence[tuple[str, Reader]], skip: Iterable[str] = ()) -> Bools:
        """Return which indices of the operator's input are decided to go."""
        taps = math.prod(linear.kernel)
        gone = np.zeros(linear.groups * linear.shape[1] // taps, bool)
        for name, reader in reads:
            if name not in skip:
                gone |= reader.gone(self.outcome.kept[name].tolist())
        return gone

    @staticmethod
    def _columns(linear: Linear, stays: Bools) -> list[npt.NDArray[np.int64]]:
        """Return for each group of the operator the columns that stay."""
        taps = math.prod(linear.kernel)
        parts = stays.reshape(linear.groups, -1)
        return [columns_of(np.flatnonzero(part), taps) for part in parts]

    @staticmethod
    def _masked(linear: Linear, weight: Matrix, columns: Sequence[npt.NDArray[np.int64]] | None) -> Matrix:
        if columns is None:
            return weight
        masked = np.zeros_like(weight)
        step = len(weight) // linear.groups
        for group, stay in enumerate(columns):
            part = slice(group * step, (group + 1) * step)
            masked[part, stay] = weight[part, stay]
        return masked

    def _choose(
        self,
        name: str,
        reader: Reader,
        moments: Sequence[Moments],
        weight: Matrix,
        bias: Matrix,
        gone: Bools,
    ) -> None:
        """Choose the units of a family anew, as many as before, on what its reader sees now."""
        linear, size = reader.linear, self.sizes[name]
        blocks = reader.blocks(size)
        dead = self._columns(linear, gone)
        step = len(weight) // len(moments)
        problems = []
        for group, each in enumerate(moments):
            part = slice(group * step, (group + 1) * step)
            problem = Problem(
                each if linear.has_bias else each.uncentred(bias[part]),
                [*blocks[group], dead[group]],
                stage=linear.where,
                prior=weight[part],
                ridge=self.recovery.selection.get(name, self.recovery.ridge),
                scale=1.0,
            )
            if gone.any():
                problem.remove(size)
            problems.append(problem)
        count = len(self.outcome.kept[name])
        found = trajectory(problems, size, removals=size - count)
        self.outcome.kept[name] = np.array(found.kept(count, size), np.intp)
        self.notes |= dict.fromkeys(found.notes)
