"""Error feedback for the codes of weights: what one weight loses in rounding, those behind it make up for.

Scales and zero points stay as they are, so that everything said about biases and kernels still holds; only
the codes are chosen anew (graphopt.recover.feedback).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.needs import Rows
from graphopt.ir.rewrite import attribute, is_op
from graphopt.passes.quantize.candidates import floats_of
from graphopt.passes.quantize.grid import weight_code_range
from graphopt.recover.feedback import round_with_feedback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from graphopt.calibrate.moments import Gram
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.quantize.candidates import Compute
    from graphopt.passes.quantize.grid import Codes
    from graphopt.passes.quantize.settings import Settings
    from graphopt.recover.moments import Matrix

    Array = npt.NDArray[Any]

_LONGEST = 1 << 13
"""Elements of a row up to which second moments are collected: their square times eight bytes."""
_LONGEST_GROUPED = 1 << 11
"""The same where only the blocks of the groups are read of them."""


class Feedback:
    """Rounds weights anew where there are second moments of what they are multiplied with.

    Args:
        grams: Second moments of rows, from float activations.
        computes: The nodes, as they are before any of them reads codes.
        shapes: Shapes of the model.
        settings: Which codes there are.

    Attributes:
        told: For each node: the error of its outputs with feedback, and rounded to nearest (mean squares,
            over that of the outputs).
        skipped: (node, why its weight is rounded to nearest).
        warnings: What was not as it should be, all nodes together.
    """

    def __init__(
        self, grams: Mapping[Rows, Gram], computes: Iterable[Compute], shapes: Shapes, settings: Settings
    ) -> None:
        self._rows = {each.node: rows_of(each, shapes) for each in computes}
        self._grams = grams
        self._first, self._last = weight_code_range(
            settings.weight_dtype, symmetric=settings.symmetric_weights, reduce_range=settings.reduce_range
        )
        self.told: list[dict[str, object]] = []
        self.skipped: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def apply(self, each: Compute, weight: Array, codes: Codes) -> Codes:
        """Return *codes* of the same scales for *weight*, chosen with feedback where that can be."""
        rows = self._rows[each.node]
        groups = groups_of(each)
        values, levels = _as_matrix(each, weight), _as_matrix(each, codes.dequantised())
        gram = None if isinstance(rows, str) else self._grams.get(rows)
        if gram is None or gram.size != values.shape[1] * groups:
            reason = rows if isinstance(rows, str) else "there are no second moments of what it multiplies"
            self.skipped.append((each.label, f"weight rounded to nearest: {reason}"))
            return codes
        if np.array_equal(values, levels):  # it was on this grid before
            return codes
        return self._fed_back(each, codes, values, gram, groups)

    def _fed_back(self, each: Compute, codes: Codes, values: Matrix, gram: Gram, groups: int) -> Codes:
        lines, width = values.shape
        zeros = np.broadcast_to(codes.zero_points.astype(np.float64), lines)
        scales = np.broadcast_to(codes.scales.astype(np.float64), lines)
        moment = gram.second_moment
        warnings: list[str] = []
        found, error, nearest, scale = np.empty_like(values), 0.0, 0.0, 0.0
        for group in range(groups):
            part = slice(group * lines // groups, (group + 1) * lines // groups)
            own = moment[group * width : (group + 1) * width, group * width : (group + 1) * width]

            def to_grid(column: Matrix, _: int, part: slice = part) -> Matrix:
                code = np.clip(np.rint(column / scales[part]) + zeros[part], self._first, self._last)
                return np.asarray((code - zeros[part]) * scales[part])

            rounded = round_with_feedback(values[part], own, gram.count, to_grid, stage=each.label)
            found[part] = rounded.weight
            warnings += rounded.notes
            energy = float(np.einsum("md,md->", values[part] @ own, values[part]))
            if energy > 0.0 and rounded.error_nearest is not None:
                error += rounded.error * energy
                nearest += rounded.error_nearest * energy
                scale += energy
        told: dict[str, object] = {"node": each.label}
        if scale > 0.0:
            told |= {"output_error": error / scale, "output_error_nearest": nearest / scale}
        if warnings:
            told["warnings"] = list(dict.fromkeys(warnings))
            self.warnings += warnings
        self.told.append(told)
        whole = np.rint(found / scales[:, None]) + zeros[:, None]
        return replace(codes, codes=_from_matrix(each, whole, codes.codes))


def rows_of(each: Compute, shapes: Shapes) -> Rows | str:
    """Return the rows that a weight is multiplied with, or why it is rounded to nearest."""
    if each.kind == "transposed":
        return "a ConvTranspose has no rows of its own"
    if len(each.weight.uses()) > 1:
        return "something else reads its weight too"
    rows, weight = Rows.of(each.node, 0, shapes), floats_of(each.weight)
    if rows is None or weight is None:
        return "the rows that it multiplies cannot be told"
    groups = groups_of(each)
    length = _as_matrix(each, weight).shape[1] * groups
    if length > (_LONGEST_GROUPED if groups > 1 else _LONGEST):
        return f"the second moments of rows of {length} would take {length**2 * 8 >> 20} MiB"
    return rows


def groups_of(each: Compute) -> int:
    """Return in how many groups a node multiplies."""
    return int(attribute(each.node, "group", 1)) if is_op(each.node, "Conv") else 1


def _as_matrix(each: Compute, weight: Array) -> Matrix:
    """Return a weight as [m, d], the columns in the order of the rows that it is multiplied with."""
    wide = np.asarray(weight, np.float64)
    if is_op(each.node, "Conv"):
        return wide.reshape(len(wide), -1)
    return wide if attribute(each.node, "transB", 0) else wide.T


def _from_matrix(each: Compute, matrix: Matrix, like: Array) -> Array:
    turned = not is_op(each.node, "Conv") and not attribute(each.node, "transB", 0)
    return np.ascontiguousarray((matrix.T if turned else matrix).reshape(like.shape)).astype(like.dtype)
