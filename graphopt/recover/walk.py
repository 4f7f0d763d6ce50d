"""Teacher and student side by side: what every stage of a model sees, and what it should put out.

The teacher is the model as it was, the student the same graph with the weights that were found so far. Both
are walked in topological order, stage by stage; a stage is one linear operator. Of each stage the walk gives
second moments of the student's rows and of targets: what the teacher puts out there, plus what the student
has lost already on the other side of the addition behind it. A residual block with branches f and g is
taken as f(student) = f(teacher) + g(teacher) - g(student), so that f makes up for g.

Between two stages the activations that the rest needs are kept in files, so that each part of the model runs
once, and memory does not grow with the number of samples.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.calibrate.rows import gather_rows
from graphopt.errors import DataError
from graphopt.ir.rewrite import bypass_node, is_op, nested_nodes
from graphopt.ir.shapes import infer_shapes
from graphopt.recover.grouped import GroupedMoments
from graphopt.recover.linear import Linear, linear_of, residual_of
from graphopt.recover.liveness import Liveness
from graphopt.recover.segments import Segment, types_of
from graphopt.recover.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir.model import Model
    from graphopt.recover.moments import Matrix, Moments
    from graphopt.runtime.session import Feeds

ROWS_PER_SAMPLE = 64
"""Positions drawn from each sample (design/recovery.md; more changed nothing)."""

_HOLD_OUT = 4  # one sample of so many is set aside
_LEAST_HELD = 16  # samples in all, for that
_BATCH = 32
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Stage:
    """One linear operator of the walk.

    Attributes:
        linear: The operator, in the teacher.
        others: Values on the other side of the additions behind it, of the same shape as its output.
        position: Its place in the graph.
        lost: Values that the teacher adds further on and the student does not: branches that it lacks. The
            output is to make up for them.
    """

    linear: Linear
    others: tuple[str, ...]
    position: int
    lost: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """What the stage is called by."""
        return self.linear.output

    @property
    def wanted(self) -> tuple[str, ...]:
        """Values of the teacher that the target is made of."""
        return (self.linear.result, *self.others, *self.lost)


@dataclass(frozen=True, slots=True)
class StageReport:
    """What happened at one stage, for the report.

    Attributes:
        where: The operator.
        residual_before: Mean squared error of its output before the solve, over the variance of the targets.
        residual_after: The same after the solve.
        ridge: The ridge that was used.
        rows: Number of rows.
    """

    where: str
    residual_before: float
    residual_after: float
    ridge: float
    rows: int

    def as_json(self) -> dict[str, object]:
        """Return it as it stands in the report."""

        def number(value: float) -> float | None:
            return round(float(value), 6) if np.isfinite(value) else None

        return {
            "where": self.where,
            "residual_before": number(self.residual_before),
            "residual_after": number(self.residual_after),
            "ridge": number(self.ridge),
            "rows": self.rows,
        }


@dataclass(slots=True)
class Agreement:
    """How the student's outputs compare with the teacher's over the calibration data.

    Attributes:
        noise: Sum of squared differences.
        signal: Sum of squares of the teacher's outputs.
        same: Rows of the first output, along its last axis, whose largest element is at the same place.
        rows: Number of such rows.
    """

    noise: float = 0.0
    signal: float = 0.0
    same: int = 0
    rows: int = 0

    def add(self, teacher: Sequence[npt.NDArray[Any]], student: Sequence[npt.NDArray[Any]]) -> None:
        """Take in the outputs of one sample."""
        for index, (one, two) in enumerate(zip(teacher, student, strict=True)):
            # Numbers, or their 8-bit codes; wider integers are indices.
            numeric = one.dtype.kind == "f" or (one.dtype.kind in "iu" and one.dtype.itemsize == 1)
            if not numeric or one.shape != two.shape or not one.size:
                continue
            first, second = one.astype(np.float64), two.astype(np.float64)
            self.noise += float(np.sum((first - second) ** 2))
            self.signal += float(np.sum(first * first))
            if index == 0 and one.ndim and one.shape[-1] > 1:
                self.same += int(np.sum(first.argmax(-1) == second.argmax(-1)))
                self.rows += first[..., 0].size

    def as_json(self) -> dict[str, object]:
        """Return it as it stands in the report."""
        sqnr = None
        if self.noise > 0 and self.signal > 0 and np.isfinite(self.noise + self.signal):
            sqnr = round(10 * float(np.log10(self.signal / self.noise)), 3)
        return {"sqnr_db": sqnr, "same_argmax": round(self.same / self.rows, 6) if self.rows else None}


@dataclass(slots=True)
class Effort:
    """What a walk took.

    Attributes:
        cpu_s: CPU seconds of the process.
        peak_bytes: Largest memory of the process so far.
        samples: Feeds walked over.
    """

    cpu_s: float = 0.0
    peak_bytes: int = 0
    samples: int = 0

    def as_json(self) -> dict[str, object]:
        """Return it as it stands in the report."""
        return {"cpu_s": round(self.cpu_s, 2), "peak_bytes": self.peak_bytes, "samples": self.samples}


@dataclass
class _Stream:
    model: Model
    spool: Spool | None = None  # None: the feeds themselves


@dataclass
class Walk:
    """The walk over *model*; see the module. Use it as a context manager.

    Args:
        model: The original. It is not changed.
        feeds: Calibration data, iterated once.
        rows_per_sample: Positions drawn from each sample at every stage; None takes all.
        seed: Seed of the draws.
        provider: What to run on.
        hold_out: Whether some samples are set aside to choose the ridge of each stage on.
        start: The student to begin with, the same graph with other weights: that of a walk before; by default
            it is the model as it was.
        own_stream: Whether stages see what the original computes instead of what the student does, so that
            none makes up for what others have lost.

    Attributes:
        student: The model whose weights the caller changes, through :meth:`write`.
        shapes: Shapes of the model.
        skipped: Linear operators that are no stages, with the reason.
        effort: CPU seconds and memory so far.
    """

    model: Model
    feeds: Iterable[Feeds]
    rows_per_sample: int | None = ROWS_PER_SAMPLE
    seed: int = 0
    provider: str = "cpu"
    hold_out: bool = False
    start: Model | None = None
    own_stream: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        self.shapes = infer_shapes(self.model)
        self._types = types_of(self.model, self.shapes)
        self.student = (self.start or self.model).clone()
        self._teacher_stream, self._student_stream = _Stream(self.model), _Stream(self.student)
        self._edited = self.start is not None and not self.own_stream
        self._at = 0
        self._frontier = _inputs_of(self.model)
        self._order = list(self.model.graph)
        self._positions = {node: index for index, node in enumerate(self._order)}
        self._stack = contextlib.ExitStack()
        self._folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-recover-"))
        )
        self._files = 0
        self._live = Liveness(self._order)

    def __enter__(self) -> Self:
        self._started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_spools()
        self._stack.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not as it should be with the samples that were walked over."""
        samples = self.effort.samples
        if not self.hold_out or samples >= _LEAST_HELD:
            return ()
        few = f"{samples} sample{'s'[: samples != 1]}"
        return (
            f"ridge=auto: {few}, too few to hold some out (expected {_LEAST_HELD}): the ridge is the default",
        )

    def stages(self, nodes: Iterable[oir.Node] | None = None) -> tuple[Stage, ...]:
        """Return the stages among *nodes* of the main graph (by default all of them), in graph order.

        What cannot be one is added to :attr:`skipped`.
        """
        found = []
        chosen = None if nodes is None else set(nodes)
        for position, node in enumerate(self._order):
            if chosen is not None and node not in chosen:
                continue
            linear = linear_of(node, self.shapes)
            if isinstance(linear, str):
                if chosen is not None or is_op(node, "Conv", "Gemm", "MatMul"):
                    self.skipped.append((f"{node.op_type} {node.name!r}", linear))
                continue
            found.append(Stage(linear, self._others(node), position))
        if nodes is None:
            inner = [one for node in self._order if node.attributes for one in nested_nodes(node)]
            for node in inner:
                if not isinstance(linear_of(node, self.shapes), str):
                    where = f"{node.op_type} {node.name!r}"
                    self.skipped.append((where, "it is inside a body, which is not run in parts"))
        return tuple(found)

    def position_of(self, node: oir.Node) -> int:
        """Return the place of *node* in the main graph."""
        return self._positions[node]

    def _others(self, node: oir.Node) -> tuple[str, ...]:
        """Return what is added to the output of *node*, as far as it does not depend on it."""
        pairs = residual_of(node)
        below = self._live.below(node) if pairs else set()
        return tuple(
            other.name or ""
            for value, other in pairs
            if self.shapes.shape(other) == self.shapes.shape(value) and other.producer() not in below
        )

    def observe(self, stage: Stage) -> list[Moments]:
        """Go on to *stage* and return the moments of each group of its operator.

        Stages must be observed in graph order.

        Raises:
            DataError: There are no feeds, or the model cannot run on them.
        """
        self._advance(stage.position)
        return self._collect(stage)

    def write(self, stage: Stage, weight: Matrix, bias: Matrix | None) -> None:
        """Give the student's operator of *stage* another weight [m, d] and bias [m]."""
        node = self._student_node(stage)
        replace(stage.linear, node=node).write(self.student, weight, bias)
        # Until now both streams were one; from here on the student has activations of its own.
        self._edited = not self.own_stream

    def bypass(self, output: str, operand: int) -> None:
        """Let the student pass operand *operand* of the node that makes *output* on in its place.

        Raises:
            DataError: There is no such node.
        """
        for node in self.student.graph:
            if any(value.name == output for value in node.outputs):
                bypass_node(self.student, node, operand)
                self._edited = True
                return
        raise DataError("the student has no such value", where=f"value {output!r}")

    def present(self, stage: Stage) -> tuple[Matrix, Matrix]:
        """Return the weight [m, d] and the bias [m] that the student's operator of *stage* has now."""
        linear = replace(stage.linear, node=self._student_node(stage))
        return linear.weight(), linear.bias()

    def finish(self) -> Agreement:
        """Run both to the end and return how their outputs agree."""
        agreement = Agreement()
        if self.own_stream:  # what the student computes is not known anywhere yet
            self._drop_spools()
            self._frontier = _inputs_of(self.model)
        outputs = [value.name or "" for value in self.model.graph.outputs]
        outputs = [name for name in outputs if name]
        teacher = Segment(self.model, self._frontier, outputs, self._types, self.provider)
        student = Segment(self.student, self._frontier, outputs, self._types, self.provider)
        for one, two in self._pairs():
            first, second = teacher.run(one), student.run(two)
            agreement.add([first[name] for name in outputs], [second[name] for name in outputs])
        self._note_effort()
        return agreement

    def _student_node(self, stage: Stage) -> oir.Node:
        name, kind = stage.linear.node.name, stage.linear.node.op_type
        alike = [node for node in self.student.graph if node.op_type == kind]
        for node in alike:
            if any(value.name == stage.output for value in node.outputs):
                return node
        for node in alike:  # names of nodes need not be unique
            if name and node.name == name:
                return node
        raise DataError("the student has no such operator", where=stage.linear.where)

    def _pairs(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        teacher = self._teacher_stream.spool
        student = self._student_stream.spool
        if teacher is None:
            count = 0
            for feed in self.feeds:
                count += 1
                yield feed, feed
            if not count:
                raise DataError("the data holds no feeds", where="recovery", hint="Give at least one sample.")
            self.effort.samples = count
        elif student is None:
            for values in teacher:
                yield values, values
        else:
            yield from zip(teacher, student, strict=True)

    def _advance(self, position: int) -> None:
        """Bring both streams to just before the node at *position*."""
        if position < self._at:
            raise DataError("stages must be observed in graph order", where=f"node {position}")
        if position == self._at and self._teacher_stream.spool is not None:
            return
        names = self._live.frontier(position)
        teacher = Segment(self.model, self._frontier, names, self._types, self.provider)
        student = (
            Segment(self.student, self._frontier, names, self._types, self.provider) if self._edited else None
        )
        spools = [self._spool(names) for _ in range(2 if student is not None else 1)]
        for one, two in self._pairs():
            spools[0].append(teacher.run(one))
            if student is not None:
                spools[1].append(student.run(two))
        self._drop_spools()
        self._teacher_stream.spool = spools[0]
        self._student_stream.spool = spools[1] if student is not None else None
        self._frontier = names
        self._at = position

    def _drop_spools(self) -> None:
        for stream in (self._teacher_stream, self._student_stream):
            if stream.spool is not None:
                stream.spool.remove()
                stream.spool = None

    def _spool(self, names: Sequence[str]) -> Spool:
        self._files += 1
        return Spool(self._folder / f"{self._files}.bin", names)

    def _collect(self, stage: Stage) -> list[Moments]:
        linear = stage.linear
        teacher = Segment(self.model, self._frontier, stage.wanted, self._types, self.provider)
        seen = self.model if self.own_stream else self.student
        student = Segment(seen, self._frontier, (linear.source, *stage.others), self._types, self.provider)
        groups = linear.groups
        m, d = linear.shape
        parts = {name: GroupedMoments(groups, d, m // groups) for name in ("fit", "held")}
        batches: dict[str, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {"fit": [], "held": []}
        first = dict.fromkeys(batches, 0)  # sample that each begins with

        def flush(part: str) -> None:
            batch = batches[part]
            if not batch:
                return
            # One draw for the whole batch: there are many samples, and each call costs more than its rows.
            source, target = (
                np.concatenate(side) if len(side) > 1 else side[0] for side in zip(*batch, strict=True)
            )
            seeds = [self.seed, stage.position, first[part]]
            try:
                rows = gather_rows(source, linear.rows, self.rows_per_sample, np.random.default_rng(seeds))
                targets = gather_rows(
                    target, linear.targets, self.rows_per_sample, np.random.default_rng(seeds)
                )
            except DataError as error:
                error.where = error.where or f"{linear.where}: value {linear.source!r}"
                raise
            batch.clear()
            if len(rows) != len(targets):
                raise DataError(
                    f"{len(rows)} rows and {len(targets)} targets: the streams disagree", where=linear.where
                )
            parts[part].add(rows, targets)

        for sample, (one, two) in enumerate(self._pairs()):
            want, have = teacher.run(one), student.run(two)
            target = _target(stage, want, have)
            source = have[linear.source]
            part = "held" if self.hold_out and sample % _HOLD_OUT == _HOLD_OUT - 1 else "fit"
            if not _joins(batches[part], source, target):
                flush(part)
            if not batches[part]:
                first[part] = sample
            batches[part].append((source, target))
        flush("fit")
        flush("held")
        found = parts["fit"].each
        if self.hold_out:
            for moments, aside in zip(found, parts["held"].each, strict=True):
                moments.merge(aside)
                moments.held = aside if self.effort.samples >= _LEAST_HELD else None
        self._note_effort()
        return found

    def _note_effort(self) -> None:
        self.effort.cpu_s = time.process_time() - self._started
        self.effort.peak_bytes = peak_bytes()


def _inputs_of(model: Model) -> tuple[str, ...]:
    return tuple(value.name or "" for value in model.graph.inputs if not value.is_initializer())


def _target(stage: Stage, want: Mapping[str, Any], have: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return what the operator of *stage* should put out where the teacher and the student hold these."""
    target: npt.NDArray[Any] = want[stage.linear.result].astype(np.float32)
    for name in stage.others:
        if want[name].shape != target.shape or have[name].shape != target.shape:
            raise DataError(
                f"{list(want[name].shape)} in the original and {list(have[name].shape)} in the "
                f"changed model; expected {list(target.shape)}",
                where=f"{stage.linear.where}: value {name!r}",
            )
        target = target + (want[name] - have[name])
    for name in stage.lost:
        target = target + want[name]
    return target


def _joins(
    batch: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    source: npt.NDArray[Any],
    target: npt.NDArray[Any],
) -> bool:
    """Return whether a sample can be put behind those of *batch*, along the first axis."""
    if not batch:
        return True
    return (
        len(batch) < _BATCH
        and source.ndim > 1
        and target.ndim > 1
        and (source.shape, target.shape) == (batch[0][0].shape, batch[0][1].shape)
        and (source.nbytes + target.nbytes) * len(batch) < _BATCH_BYTES
    )


def peak_bytes() -> int:
    """Return the largest memory that this process has taken; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
