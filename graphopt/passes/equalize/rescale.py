"""One run of equalize-ranges: choose scales, and put them into weights, biases and bounds."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.constants import replace_constant
from graphopt.ir.dead import remove_unread
from graphopt.ir.rewrite import (
    add_initializer,
    attribute,
    constant_array,
    input_at,
    is_op,
    make_node,
    replace_node,
)
from graphopt.passes.equalize.flow import Flow
from graphopt.passes.equalize.scales import (
    LARGEST_LOG2,
    LEAST_GAIN,
    choose,
    evenness,
    flatness,
    groups_of,
    ranges_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.equalize.atoms import Bound, Ids, Offset, Operator
    from graphopt.passes.equalize.scales import Group, Ranges

    Array = npt.NDArray[Any]

_SMALLEST = 2.0**-126  # normal number of float32 and bfloat16


class Rescaling:
    """Equalizes one model.

    Args:
        model: The model; changed in place by :meth:`run`.
        shapes: Its shapes.
        exclude: Patterns of names of nodes whose weights stay.
        bounds: Whether a Clip between two weights may get bounds a channel.

    Attributes:
        flow: Where scales go.
        counts: What was done.
        notes: What every weight was and is like, for the report.
        skipped: What was left alone, with the reason.
    """

    def __init__(self, model: Model, shapes: Shapes, *, exclude: Sequence[str], bounds: bool) -> None:
        self.model = model
        self.shapes = shapes

        def keep(node: oir.Node) -> str:
            name = node.name or ""
            return "exclude names it" if any(fnmatch.fnmatchcase(name, each) for each in exclude) else ""

        self.flow = Flow(model, shapes, keep, bounds=bounds)
        self.roots, self.locked = self.flow.atoms.roots()
        self.counts: dict[str, int] = {}
        self.notes: list[dict[str, object]] = []
        self.skipped = list(self.flow.skipped)

    def run(self, *, exact: bool) -> None:
        """Choose and write.

        Args:
            exact: Whether scales are powers of two.
        """
        groups = groups_of(self.flow, self.roots, self.locked)
        if not groups:
            if not self.skipped:
                self.skipped.append(("model", "no channel lies between two weights that scales may pass"))
            return
        ranges = [ranges_of(operator, self.roots) for operator in self.flow.operators]
        logs = self._settled(ranges, groups, exact=exact)
        if not logs.any():
            self.skipped.append(("model", "its channels are as alike as scales can make them"))
            return
        for operator, each in zip(self.flow.operators, ranges, strict=True):
            before, after = flatness(each, np.zeros(len(logs))), flatness(each, logs)
            if self._rescale(operator, logs):
                name = operator.node.name or operator.node.outputs[0].name
                self.notes.append({
                    "where": f"{operator.node.op_type} {name!r}",
                    "flatness_before": round(before, 4),
                    "flatness_after": round(after, 4),
                })  # fmt: skip
                self._count("weights")
        for offset in self.flow.offsets:
            self._shift(offset, logs)
        for bound in self.flow.bounds_found:
            self._bound(bound, logs)
        moving = [group for group in groups if logs[group.atoms].any()]
        self.counts["groups"] = len(moving)
        self.counts["channels"] = int(sum(np.count_nonzero(logs[group.atoms]) for group in moving))

    def _settled(self, ranges: Sequence[Ranges], groups: Sequence[Group], *, exact: bool) -> Array:
        """Return log2 of the scales: improved as long as that makes channels more alike.

        Where channels are joined, what is best for one pair may be bad for another, and rounding moves what
        was chosen: only steps that are worth something are taken, so that a second run finds none.
        """
        logs = np.zeros(len(self.roots))
        best = evenness(ranges, groups, logs)
        while True:
            now = [replace(each, table=each.scaled(logs)) for each in ranges]
            step = choose(now, groups, len(self.roots))[self.roots]
            moved = np.clip(logs + (np.rint(step) if exact else step), -LARGEST_LOG2, LARGEST_LOG2)
            moved = self._within_types(moved)
            worth = evenness(ranges, groups, moved)
            if worth <= best + LEAST_GAIN:
                return logs
            logs, best = moved, worth

    def _within_types(self, logs: Array) -> Array:
        """Return *logs* without those that would take a weight or a bias out of the range of its type."""
        while True:
            refused: list[Ids] = []
            for operator in self.flow.operators:
                for value, factor in self._parameters(operator, logs):
                    if not _fits(value, factor):
                        refused.append(operator.rows)
                        if operator.columns is not None:
                            refused.append(operator.columns)
            for offset in self.flow.offsets:
                array = constant_array(offset.node.inputs[offset.index])
                assert array is not None
                if not _fits(array, self._along(array, offset, logs)):
                    refused.append(offset.ids)
            bad = np.unique(self.roots[np.concatenate(refused)]) if refused else np.zeros(0, np.int64)
            bad = bad[logs[bad] != 0] if len(bad) else bad
            if not len(bad):
                return logs
            logs = np.where(np.isin(self.roots, bad), 0.0, logs)

    def _parameters(self, operator: Operator, logs: Array) -> list[tuple[Array, Array]]:
        """Return weight and bias of an operator, each with what it is multiplied with."""
        weight = constant_array(operator.node.inputs[1])
        assert weight is not None
        found = [(weight, self._weight_factor(operator, weight, logs))]
        bias = None if is_op(operator.node, "MatMul") else constant_array(input_at(operator.node, 2))
        if bias is not None:
            found.append((bias, np.exp2(-logs[operator.rows])))
        return found

    @staticmethod
    def _weight_factor(operator: Operator, weight: Array, logs: Array) -> Array:
        node, groups = operator.node, operator.groups
        rows = np.exp2(-logs[operator.rows])
        inputs = None if operator.columns is None else np.exp2(logs[operator.columns])
        ones = (1,) * (weight.ndim - 2)
        if is_op(node, "Conv"):
            factor = rows.reshape(-1, 1)
            if inputs is not None:
                factor = factor * np.repeat(inputs.reshape(groups, -1), len(rows) // groups, axis=0)
            return factor.reshape(*factor.shape, *ones)
        if is_op(node, "ConvTranspose"):
            factor = np.repeat(rows.reshape(groups, -1), weight.shape[0] // groups, axis=0)
            factor = factor if inputs is None else factor * inputs[:, None]
            return factor.reshape(*factor.shape, *ones)
        factor = rows[None, :] if inputs is None else rows[None, :] * inputs[:, None]  # [inputs, outputs]
        return factor.T if is_op(node, "Gemm") and attribute(node, "transB", 0) else factor

    def _rescale(self, operator: Operator, logs: Array) -> bool:
        touched = logs[operator.rows].any()
        if not touched and (operator.columns is None or not logs[operator.columns].any()):
            return False
        (weight, factor), *biases = self._parameters(operator, logs)
        replace_constant(self.model, operator.node, 1, _times(weight, factor))
        if biases and touched:
            bias, factor = biases[0]
            replace_constant(self.model, operator.node, 2, _times(bias.reshape(-1), factor))
        return True

    @staticmethod
    def _along(array: Array, offset: Offset, logs: Array) -> Array:
        rank = max(array.ndim, -offset.axis)
        shape = [1] * rank
        shape[offset.axis] = -1
        return np.exp2(-logs[offset.ids]).reshape(shape)

    def _shift(self, offset: Offset, logs: Array) -> None:
        if not logs[offset.ids].any():
            return
        array = constant_array(offset.node.inputs[offset.index])
        assert array is not None
        replace_constant(
            self.model, offset.node, offset.index, _times(array, self._along(array, offset, logs))
        )
        self._count("offsets")

    def _bound(self, bound: Bound, logs: Array) -> None:
        """Write Clip as Relu or Max, then Min, with bounds a channel."""
        if not logs[bound.ids].any():
            return
        node = bound.node
        source, graph = node.inputs[0], node.graph
        assert source is not None
        assert graph is not None
        shape = [-1, *[1] * (-bound.axis - 1)]
        factor = np.exp2(-logs[bound.ids]).reshape(shape)
        name = node.name or node.outputs[0].name or "clip"

        def limit(number: float, what: str) -> oir.Value:
            return add_initializer(self.model, graph, f"{name}_{what}", (number * factor).astype(bound.kind))

        unread = list(node.inputs[1:])
        lower: oir.Node | None = None
        if np.isfinite(bound.low):
            lower = (
                make_node(self.model, "Relu", [source], name=f"{name}_relu")
                if bound.low == 0.0
                else make_node(self.model, "Max", [source, limit(bound.low, "low")], name=f"{name}_max")
            )
        if np.isfinite(bound.high):
            if lower is not None:
                lower.outputs[0].type = source.type
                lower.outputs[0].shape = None if source.shape is None else source.shape.copy()
                graph.insert_before(node, lower)
                source = lower.outputs[0]
            lower = make_node(self.model, "Min", [source, limit(bound.high, "high")], replaces=[node])
        assert lower is not None
        replace_node(self.model, node, lower)
        remove_unread(unread)
        self._count("bounds")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def _times(array: Array, factor: Array) -> Array:
    return np.ascontiguousarray((array.astype(np.float64) * factor).astype(array.dtype))


def _fits(array: Array, factor: Array) -> bool:
    """Return whether the product is finite, nothing leaves the normal numbers, and others lose no bit."""
    wide = np.abs(array.astype(np.float64))
    after = wide * factor
    kind = array.dtype
    limit = float(np.finfo(kind).max) if kind.kind == "f" else 3e38  # bfloat16 has the range of float32
    rounded = after.astype(kind).astype(np.float64)
    lost = (after < _SMALLEST) & ((np.broadcast_to(wide, after.shape) >= _SMALLEST) | (rounded != after))
    return bool(after.max(initial=0.0) < limit) and not bool(lost.any())
