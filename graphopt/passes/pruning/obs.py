"""The criterion obs: what the model loses where all that reads a unit makes up for it as well as it can.

Of every linear operator that reads a family the least squares problem is known from the second moments of
what it reads: its own outputs are the targets. Units are taken one by one, each time the one whose loss is
least after all others have moved to where they are best (graphopt.recover.selection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.rewrite import is_op
from graphopt.ir.tensors import constant_of
from graphopt.passes.pruning.criteria import ProductOfNorms
from graphopt.passes.pruning.criterion import Criterion, Subject
from graphopt.passes.pruning.readers import Reader, reader_of
from graphopt.recover.linear import linear_of
from graphopt.recover.moments import Moments
from graphopt.recover.selection import Problem, trajectory
from graphopt.recover.solve import RIDGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.calibrate.needs import Needs
    from graphopt.calibrate.statistics import Statistics
    from graphopt.recover.selection import Trajectory

    Floats = npt.NDArray[np.float64]
    Units = npt.NDArray[np.intp]

_STREAM = "(stream)"
_LONGEST_CHAIN = 64


class Obs(Criterion):
    """Increase of the error of all readers, with their weights refitted (block-OBS); needs data.

    The order of a family's units is that of the trajectory behind its curve, where there is one.
    """

    def __init__(self) -> None:
        self._drawn: dict[str, Drawn] = {}
        self._scales: dict[str, float] = {}

    @property
    def ridges(self) -> dict[str, float]:
        """The ridge that the order of each family was drawn with."""
        return {name: drawn.ridge for name, drawn in self._drawn.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not as it should be where orders were drawn; each sentence names its stage."""
        paths = [drawn.path for drawn in self._drawn.values() if drawn.path is not None]
        return tuple(dict.fromkeys(note for path in paths for note in path.notes))

    def needs(self, subject: Subject) -> Needs:
        """Return the second moments of what the readers of the family read."""
        from graphopt.calibrate.needs import Needs

        return Needs(grams=frozenset(reader.linear.rows for reader in _readers(subject)))

    def scores(self, subject: Subject) -> Floats:
        """Return what each unit adds to the loss at its turn: their order is that of the trajectory."""
        drawn = self._drawn.get(subject.name)
        if drawn is None or drawn.subject is not subject:
            drawn = self.draw(subject)
        if drawn.path is None:
            return ProductOfNorms().scores(subject)
        return _as_scores(drawn.path, subject.size)

    def draw(self, subject: Subject, ridge: float = RIDGE) -> Drawn:
        """Return in which order the units of *subject* go where the problems of its readers have that ridge.

        The higher it is, the less others are counted on to make up for a unit: what few samples say about
        that need not hold for others.
        """
        return Drawn(subject, ridge, self._trajectory(subject, seen_by(subject), self._scales, ridge))

    def use(self, drawn: Drawn) -> None:
        """Score the units of the family in the order of *drawn* from now on."""
        self._drawn[drawn.subject.name] = drawn

    def curves(self, subjects: Mapping[str, Subject]) -> dict[str, Floats]:
        """Return losses by number of kept units, all in the unit of an error of the stream.

        An error of what is added to a stream is an error of the stream, whoever made it. An output that goes
        through one branch into a stream is worth what the branch puts in: a share of its variance. Any other
        output is worth the most of these; in a model without streams all are relative to their variance.
        """
        moments = {name: seen_by(subject) for name, subject in subjects.items()}
        variances = {one.reader.output: one.variance for found in moments.values() for one in found}
        streams = {
            one.reader.output: one.variance
            for found in moments.values()
            for one in found
            if one.variance > 0 and _place(one.reader.linear.node) == _STREAM
        }
        unit = float(np.exp(np.mean(np.log(list(streams.values()))))) if streams else 1.0
        most = max(streams.values(), default=unit)
        for found in moments.values():
            for one in found:
                output, variance = one.reader.output, variances[one.reader.output]
                worth = variance if output in streams else streams.get(_place(one.reader.linear.node), most)
                self._scales[output] = worth / unit / variance if variance > 0 else 0.0
        for subject in subjects.values():
            self.use(self.draw(subject))
        return {name: self._drawn[name].curve() for name in subjects}

    @staticmethod
    def _trajectory(
        subject: Subject, moments: list[Seen], scales: Mapping[str, float], ridge: float
    ) -> Trajectory | None:
        problems = []
        for one in moments:
            relative = 1.0 / one.variance if one.variance > 0 else 0.0
            blocks = one.reader.blocks(subject.size)
            weight = one.reader.linear.weight()
            step = len(weight) // len(one.groups)
            for group, each in enumerate(one.groups):
                problems.append(
                    Problem(
                        each,
                        blocks[group],
                        stage=one.reader.linear.where,
                        prior=weight[group * step : (group + 1) * step],
                        ridge=ridge,
                        scale=scales.get(one.reader.output, relative),
                    )
                )
        return trajectory(problems, subject.size) if problems else None


@dataclass(frozen=True)
class Drawn:
    """In which order the units of a family go.

    Attributes:
        subject: The family.
        ridge: That of the problems of its readers.
        path: The order, and what it costs; None where no linear operator reads the family.
    """

    subject: Subject
    ridge: float
    path: Trajectory | None

    def kept(self, count: int) -> Units:
        """Return the units that stay, sorted, where *count* do."""
        if self.path is None:
            order = np.argsort(-ProductOfNorms().scores(self.subject), kind="stable")
            return np.sort(order[:count]).astype(np.intp)
        return np.array(self.path.kept(count, self.subject.size), np.intp)

    def curve(self) -> Floats:
        """Return losses by number of kept units, [size + 1]."""
        path, size = self.path, self.subject.size
        if path is None:
            share = np.sort(ProductOfNorms().scores(self.subject))[::-1]
            total = float(share.sum()) or 1.0
            lost: Floats = 1.0 - np.concatenate([[0.0], np.cumsum(share)]) / total
            return lost
        losses = np.zeros(size + 1)
        losses[: len(path.losses)] = path.losses
        # The last unit never goes by itself; it costs at least what the one before did.
        steps = np.diff(path.losses)
        losses[len(path.losses) :] = losses[len(path.losses) - 1] + (steps[-1] if len(steps) else 1.0)
        return losses[::-1].copy()


@dataclass(frozen=True)
class Seen:
    """A reader and the moments of each of its groups."""

    reader: Reader
    groups: tuple[Moments, ...]

    @property
    def variance(self) -> float:
        """Sum of the variances of all that it puts out."""
        return sum(one.target_variance for one in self.groups if one.is_finite)


def _place(node: oir.Node) -> str:
    """Return where the output of *node* goes: into a stream, or through a linear operator, by its output.

    A stream is what is added to something that is no constant. Everything else gives "".
    """
    value = node.outputs[0]
    for _ in range(_LONGEST_CHAIN):
        users = value.consumers()
        if any(is_op(user, "Add", "Sum") and len(_operands(user)) > 1 for user in users):
            return _STREAM
        if len(users) != 1:
            return ""
        linear = linear_of(users[0])
        if not isinstance(linear, str) and linear.groups < linear.shape[0]:
            return linear.output
        value = users[0].outputs[0]
    return ""


def _operands(node: oir.Node) -> list[oir.Value]:
    return [value for value in node.inputs if value is not None and constant_of(value) is None]


def _readers(subject: Subject) -> list[Reader]:
    found = [reader_of(contraction) for contraction in subject.contractions]
    return [reader for reader in found if isinstance(reader, Reader)]


def seen_by(subject: Subject, held: Statistics | None = None) -> list[Seen]:
    """Return the readers of *subject* and their moments, as far as its statistics have them.

    Args:
        subject: A family with statistics.
        held: The part of these statistics that some samples are behind which ridges are chosen on.
    """
    seen = []
    for reader in _readers(subject):
        groups = _moments(reader, subject.statistics)
        aside = _moments(reader, held) if held is not None else []
        for one, part in zip(groups, aside, strict=False):
            one.held = part
        if groups:
            seen.append(Seen(reader, tuple(groups)))
    return seen


def _moments(reader: Reader, statistics: Statistics | None) -> list[Moments]:
    """Return the moments of each group of *reader*, whose targets are its own outputs; none without rows."""
    linear = reader.linear
    gram = None if statistics is None else statistics.grams.get(linear.rows)
    if gram is None or not np.isfinite(gram.matrix).all() or not gram.count:
        return []
    weight, bias = linear.weight(), linear.bias()
    width, step = linear.shape[1], linear.shape[0] // linear.groups
    groups = []
    for group in range(linear.groups):
        columns = np.append(np.arange(group * width, (group + 1) * width), gram.size)
        part = slice(group * step, (group + 1) * step)
        moments = Moments.of_gram(gram.count, gram.matrix[np.ix_(columns, columns)], weight[part], bias[part])
        groups.append(moments if linear.has_bias else moments.uncentred(bias[part]))
    return groups


def _as_scores(found: Trajectory, size: int) -> Floats:
    steps = np.maximum.accumulate(np.maximum(np.diff(found.losses), 0.0))
    scores = np.zeros(size)
    # Equal steps keep the order of the trajectory by a share that changes nothing else.
    scale = float(steps[-1]) if len(steps) and steps[-1] > 0 else 1.0
    for place, unit in enumerate(found.order):
        scores[unit] = steps[place] + 1e-9 * scale * place / max(size, 1)
    gone = set(found.order)
    for unit in range(size):
        if unit not in gone:
            scores[unit] = scale * (1.0 + 1e-6)
    return scores
