"""Bias correction: biases that give every operator the mean output per channel that the original has.

With data both models are run, the changed one in topological order with the biases found so far. The bias
that minimises the squared error of an operator's output is the one that makes the means agree, so this is
least squares in the biases too. Where a Relu or Clip stands behind an operator, means are compared behind it:
what it cuts off shifts nobody. There a bias moves the mean by the share of the elements that are not cut off,
and one step of Newton's method is taken. From statistics alone the shift is predicted: (W' - W) E[x] (Nagel
et al., Data-Free Quantization through Weight Equalization and Bias Correction, 2019; the form with data is in
their appendix, and Finkelstein et al., Fighting Quantization Bias With Bias, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.needs import Needs
from graphopt.errors import DataError, GraphoptError
from graphopt.ir.rewrite import attribute, constant_array, input_at, is_op
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.biases.slots import Finder
from graphopt.recover.means import MeanWalk, constant_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.api import Reference
    from graphopt.calibrate.moments import ChannelMoments
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir import Model
    from graphopt.passes.biases.slots import Slot
    from graphopt.recover.moments import Matrix

_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_NOISE = 1e-5
"""Shifts below this share of the spread of a channel are rounding of float32, not worth a new constant."""


_LEAST_INSIDE = 0.02
"""Share of elements between the bounds of an activation from which on a bias moves its mean reliably."""


class Correction:
    """One correction of *model* towards *reference*.

    Args:
        model: The changed model; biases are written into it in place.
        reference: The original.
        source: "data" or "statistics".
        add: As for :class:`graphopt.passes.biases.slots.Finder`.
        skip: Gives the reason to leave an operator alone, "" for none.

    Attributes:
        counts: What was done.
        skipped: What was left alone, with the reason.
        stages: What every corrected operator was off by, for the report.
        extra: Effort, for the report.
    """

    def __init__(
        self, model: Model, reference: Reference, *, source: str, add: str, keep: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.reference = reference
        self.source = source
        self.add = add
        self.keep = tuple(keep)
        self.counts: dict[str, int] = {}
        self.skipped: list[tuple[str, str]] = []
        self.stages: list[dict[str, object]] = []
        self.extra: dict[str, object] = {}
        self._producers = producers_of(reference.model)

    def run(self, feeds: object) -> None:
        """Find and write the biases; *feeds* are used where the source is data."""
        slots = self._slots(self.model)
        if not slots:
            return
        shifts = self._measured(slots, feeds) if self.source == "data" else self._predicted(slots)
        for slot, shift in zip(slots, shifts, strict=True):
            if shift is not None:
                self._write(slot, shift)

    def _slots(self, model: Model) -> list[Slot]:
        finder = Finder(model, infer_shapes(model), self._producers.__contains__, self.add)
        found = [slot for slot in finder.slots() if not self._is_kept(slot)]
        self.skipped = finder.skipped
        return found

    def _is_kept(self, slot: Slot) -> bool:
        import fnmatch

        return any(fnmatch.fnmatchcase(slot.node.name or "", pattern) for pattern in self.keep)

    def _measured(self, slots: list[Slot], feeds: Any) -> list[Matrix | None]:  # noqa: ANN401 - iterable of feeds
        acts = [self._activation(slot, self.model) for slot in slots]
        wanted = self.reference.statistics(
            Needs(channels=frozenset((act.value, slot.axis) for slot, act in zip(slots, acts, strict=True)))
        )
        working = self.model.clone()
        working.forget_names()
        twins = self._twins(slots, working)
        # What is to be an Add must stand there before the walk begins, for it plans by nodes.
        for slot in twins:
            if slot.form == "new-add":
                slot.write(working, np.zeros(slot.channels))
        twins = self._twins(slots, working)
        found: list[Matrix | None] = [None] * len(slots)
        with MeanWalk(working, feeds) as walk:
            # Adds may stand in another order than the products in front of them.
            for place in sorted(range(len(slots)), key=lambda each: walk.position_of(twins[each].holder)):
                slot, twin, act = slots[place], twins[place], acts[place]
                target = self._target(slot, act.value, wanted)
                if target is None:
                    continue
                have = walk.mean(walk.position_of(twin.holder), twin.value, twin.axis, act.bounds)
                if not have.count or len(have.mean) != slot.channels:
                    self.skipped.append((slot.where, f"{len(have.mean)} channels, expected {slot.channels}"))
                    continue
                usable = have.inside > _LEAST_INSIDE
                step = np.where(usable, 1.0 / np.maximum(have.inside, _LEAST_INSIDE), 0.0)
                shift = found[place] = self._judged(slot, (target.mean - have.mean) * step, target)
                if shift is not None:
                    twin.write(working, twin.bias() + shift)
            self.extra["effort"] = walk.effort.as_json()
        return found

    def _twins(self, slots: list[Slot], working: Model) -> list[Slot]:
        """Return the same slots in a copy of the model."""
        finder = Finder(working, infer_shapes(working), self._producers.__contains__, self.add)
        known = {slot.value: slot for slot in finder.slots()}
        return [known[slot.value] for slot in slots]

    def _activation(self, slot: Slot, model: Model) -> Activation:
        """Return what is compared: the output of a Relu or Clip right behind, else that of the operator."""
        plain = Activation(slot.value, (-np.inf, np.inf))
        here, there = producers_of(model).get(slot.value), self._producers[slot.value]
        if here is None:
            return plain
        mine = [bounds_of(node) for node in _readers(here, slot.value)]
        theirs = [bounds_of(node) for node in _readers(there, slot.value)]
        if len(mine) != 1 or mine != theirs or mine[0] is None:
            return plain
        (reader,) = _readers(there, slot.value)
        return Activation(reader.outputs[0].name or "", mine[0])

    def _target(self, slot: Slot, value: str, wanted: Statistics) -> ChannelMoments | None:
        try:
            target = wanted.channel(value, slot.axis)
        except DataError as error:
            self.skipped.append((slot.where, error.message))
            return None
        if len(target.mean) != slot.channels:
            reason = f"{slot.channels} channels here, {len(target.mean)} in the original"
            self.skipped.append((slot.where, reason))
            return None
        return target

    def _judged(self, slot: Slot, shift: Matrix, moments: ChannelMoments | None) -> Matrix | None:
        """Return *shift* where it is one; say why where it cannot be used."""
        if not np.isfinite(shift).all():
            self.skipped.append((slot.where, "means that are not finite"))
            return None
        spread = np.maximum(np.abs(slot.bias()), 1e-30)
        relative = None
        if moments is not None:
            deviation = np.sqrt(moments.variance)
            spread = np.maximum(spread, np.maximum(deviation, np.abs(moments.mean)))
            energy = float(np.mean(moments.variance))
            relative = float(np.sqrt(np.mean(shift**2) / energy)) if energy > 0 else None
        if np.all(np.abs(shift) <= _NOISE * spread):
            self.counts["unshifted"] = self.counts.get("unshifted", 0) + 1
            return None
        self.stages.append({
            "where": slot.where,
            "shift": None if relative is None else round(relative, 6),
            "largest_shift": float(f"{np.abs(shift).max():.6g}"),
        })  # fmt: skip
        return shift

    def _predicted(self, slots: list[Slot]) -> list[Matrix | None]:
        needs = reference_needs(self.reference.model)
        statistics = self.reference.statistics(needs)
        return [self._prediction(slot, statistics) for slot in slots]

    def _prediction(self, slot: Slot, statistics: Statistics) -> Matrix | None:
        operator = operator_of(self._producers[slot.value])
        if operator is None:
            self.skipped.append((slot.where, "in the original its output is not that of an operator alone"))
            return None
        if not is_op(slot.node, *_OPS):
            self.skipped.append((slot.where, "its weight is known as codes only; give --data"))
            return None
        name, axis = input_of(operator)
        try:
            moments = statistics.channel(name, axis)
            before = response(operator, self._weight(self.reference.model, operator), moments.mean)
            after = response(slot.node, self._weight(self.model, slot.node), moments.mean)
        except GraphoptError as error:
            self.skipped.append((slot.where, error.message))
            return None
        if isinstance(before, str) or isinstance(after, str) or len(before) != len(after):
            reason = "its weight is not of the form that it has in the original"
            self.skipped.append((slot.where, reason))
            return None
        return self._judged(slot, before - after, None)

    @staticmethod
    def _weight(model: Model, node: oir.Node) -> npt.NDArray[Any]:
        value = node.inputs[1]
        assert value is not None
        array = constant_array(value)
        return constant_value(model, value) if array is None else array

    def _write(self, slot: Slot, shift: Matrix) -> None:
        refused = slot.write(self.model, slot.bias() + shift)
        if refused.all():
            self.skipped.append((slot.where, "no channel's bias fits its type"))
            return
        if refused.any():
            count = int(np.count_nonzero(refused))
            self.skipped.append((slot.where, f"{count} of {slot.channels} biases do not fit int32 and stay"))
        self._count("added" if slot.is_new else "corrected")
        if slot.form in {"codes", "new-codes"}:
            self._count("as_codes")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


@dataclass(frozen=True, slots=True)
class Activation:
    """What is compared of an operator.

    Attributes:
        value: Name of a value in the original.
        bounds: What the output of the operator is clipped to, to be that.
    """

    value: str
    bounds: tuple[float, float]


def bounds_of(node: oir.Node) -> tuple[float, float] | None:
    """Return what *node* clips its input to; None where it is no Relu or Clip of fixed bounds."""
    if is_op(node, "Relu"):
        return 0.0, np.inf
    if not is_op(node, "Clip"):
        return None
    found = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        value = input_at(node, index)
        array = np.asarray(attribute(node, name, default)) if value is None else constant_array(value)
        if array is None or array.size != 1:
            return None
        found.append(float(array.reshape(())))
    return found[0], found[1]


def _readers(node: oir.Node, name: str) -> tuple[oir.Node, ...]:
    value = next(each for each in node.outputs if each.name == name)
    return () if value.is_graph_output() else tuple(value.consumers())


def producers_of(model: Model) -> Mapping[str, oir.Node]:
    """Return the nodes of the main graph by the names of their outputs."""
    return {value.name: node for node in model.graph for value in node.outputs if value.name}


def operator_of(node: oir.Node) -> oir.Node | None:
    """Return the operator whose output, plus a constant at most, *node* gives; None where there is none."""
    if is_op(node, *_OPS):
        return node
    if not is_op(node, "Add"):
        return None
    found = [each for value in node.inputs if value is not None and (each := value.producer()) is not None]
    operators = [each for each in found if is_op(each, "MatMul")]
    return operators[0] if len(operators) == 1 else None


def input_of(node: oir.Node) -> tuple[str, int]:
    """Return the name of the activation that an operator reads, and its axis of channels."""
    value = input_at(node, 0)
    return (value.name or "") if value is not None else "", 1 if is_op(node, "Conv", "ConvTranspose") else -1


def reference_needs(model: Model) -> Needs:
    """Return the means that :func:`response` wants of what the operators of *model* read."""
    finder = Finder(model, infer_shapes(model), lambda _: True, "inputs")
    wanted = set()
    for node in model.graph:
        if (
            is_op(node, *_OPS)
            and finder.is_fixed(input_at(node, 1))
            and not finder.is_fixed(input_at(node, 0))
        ):
            wanted.add(input_of(node))
    return Needs(channels=frozenset(wanted))


def response(node: oir.Node, weight: npt.NDArray[Any], mean: Matrix) -> Matrix | str:
    """Return what an operator without its bias makes of channels that are constant at their means.

    A convolution is taken as if it had no border: padding lowers the means of what its outer taps see.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weight.
        mean: [channels] of what it reads.

    Returns:
        [outputs], or why there is none.
    """
    matrix = weight.astype(np.float64)
    groups = int(attribute(node, "group", 1))
    if is_op(node, "Conv"):
        matrix = matrix.reshape(*matrix.shape[:2], -1).sum(axis=2)  # [m, c / groups]
    elif is_op(node, "ConvTranspose"):
        matrix = matrix.reshape(*matrix.shape[:2], -1).sum(axis=2).T  # [m / groups, c]
        strides = attribute(node, "strides") or [1]
        matrix = matrix / float(np.prod(strides))  # an output sees one tap in that many
    elif is_op(node, "Gemm"):
        if attribute(node, "transA", 0):
            return "transA"
        matrix = (matrix if attribute(node, "transB", 0) else matrix.T) * float(attribute(node, "alpha", 1.0))
    elif matrix.ndim != 2:
        return f"rank {matrix.ndim}"
    else:
        matrix = matrix.T
    if is_op(node, "Conv") and groups > 1:
        parts = mean.reshape(groups, -1) if mean.size == groups * matrix.shape[1] else None
        if parts is None:
            return "channels"
        stacked = matrix.reshape(groups, -1, matrix.shape[1])
        return np.asarray(np.einsum("gmc,gc->gm", stacked, parts).reshape(-1))
    if matrix.shape[1] != mean.size:
        return "channels"
    if is_op(node, "ConvTranspose") and groups > 1:
        stacked = matrix.reshape(matrix.shape[0], groups, -1)
        return np.asarray(np.einsum("mgc,gc->gm", stacked, mean.reshape(groups, -1)).reshape(-1))
    return np.asarray(matrix @ mean)
