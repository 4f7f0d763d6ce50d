"""Weights that are nearly equal: one serves for both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir import tensors

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.passes.palettes.candidates import Candidate


def share_nearly_equal(
    model: Model, candidates: list[Candidate], within: float
) -> tuple[list[Candidate], list[dict[str, object]]]:
    """Let the first of weights that differ by at most *within* stand in for the others.

    Args:
        model: The model that is changed.
        candidates: Weights.
        within: Largest norm of the difference over the norm of the first.

    Returns:
        The candidates that are left, and what was shared.
    """
    del model
    left: list[Candidate] = []
    shared: list[dict[str, object]] = []
    for candidate in candidates:
        twin = _twin(candidate, left, within)
        if twin is None:
            left.append(candidate)
            continue
        first, distance = twin
        _redirect(candidate.value, first.value)
        shared.append({"weight": candidate.name, "same_as": first.name, "relative_difference": distance})
    return left, shared


def _twin(candidate: Candidate, known: list[Candidate], within: float) -> tuple[Candidate, float] | None:
    for other in known:
        if (
            other.dims != candidate.dims
            or other.tensor.dtype != candidate.tensor.dtype
            or other.value.graph is not candidate.value.graph
        ):
            continue
        one = tensors.to_array(other.tensor).astype(np.float64)
        difference = tensors.to_array(candidate.tensor).astype(np.float64) - one
        norm = float(np.linalg.norm(one))
        distance = float(np.linalg.norm(difference)) / norm if norm else math.inf
        if distance <= within:
            return other, distance
    return None


def _redirect(old: oir.Value, new: oir.Value) -> None:
    graph = old.graph
    assert graph is not None
    for node, index in old.uses():
        node.replace_input_with(index, new)
    del graph.initializers[old.name or ""]
