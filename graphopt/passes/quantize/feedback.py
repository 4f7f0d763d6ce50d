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
from graphopt.passes.quantize.grid import weight_code_range
from graphopt.recover.feedback import round_with_feedback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.calibrate.moments import Gram
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.quantize.candidates import Compute
    from graphopt.passes.quantize.grid import Codes
    from graphopt.passes.quantize.settings import Settings
    from graphopt.recover.moments import Matrix

    Array = npt.NDArray[Any]


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
    """

    def __init__(
        self, grams: Mapping[Rows, Gram], computes: Iterable[Compute], shapes: Shapes, settings: Settings
    ) -> None:
        computes = tuple(computes)
        self._shared = frozenset(each.node for each in computes if len(each.weight.uses()) > 1)
        rows = rows_of(computes, shapes)
        self._grams = {node: grams[each] for node, each in rows.items() if each in grams}
        self._first, self._last = weight_code_range(
            settings.weight_dtype, symmetric=settings.symmetric_weights, reduce_range=settings.reduce_range
        )
        self.told: list[dict[str, object]] = []
        self.skipped: list[tuple[str, str]] = []

    def apply(self, each: Compute, weight: Array, codes: Codes) -> Codes:
        """Return *codes* of the same scales for *weight*, chosen with feedback where that can be."""
        gram = self._grams.get(each.node)
        groups = int(attribute(each.node, "group", 1)) if is_op(each.node, "Conv") else 1
        values, levels = _as_matrix(each, weight), _as_matrix(each, codes.dequantised())
        reason = ""
        if gram is None:
            reason = "there are no second moments of what its weight is multiplied with"
        elif each.node in self._shared:
            reason = "something else reads its weight too"
        elif gram.size != values.shape[1] * groups:
            reason = "the second moments are not those of its weight"
        if gram is None or reason:
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
        self.told.append(told)
        whole = np.rint(found / scales[:, None]) + zeros[:, None]
        return replace(codes, codes=_from_matrix(each, whole, codes.codes))


def rows_of(computes: Iterable[Compute], shapes: Shapes) -> dict[oir.Node, Rows]:
    """Return the rows that the weights of *computes* are multiplied with, as far as there are such."""
    found = {each.node: Rows.of(each.node, 0, shapes) for each in computes if each.kind != "transposed"}
    return {node: rows for node, rows in found.items() if rows is not None}


def _as_matrix(each: Compute, weight: Array) -> Matrix:
    """Return a weight as [m, d], the columns in the order of the rows that it is multiplied with."""
    wide = np.asarray(weight, np.float64)
    if is_op(each.node, "Conv"):
        return wide.reshape(len(wide), -1)
    return wide if attribute(each.node, "transB", 0) else wide.T


def _from_matrix(each: Compute, matrix: Matrix, like: Array) -> Array:
    turned = not is_op(each.node, "Conv") and not attribute(each.node, "transB", 0)
    return np.ascontiguousarray((matrix.T if turned else matrix).reshape(like.shape)).astype(like.dtype)
