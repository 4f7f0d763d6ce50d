"""Run a small model in this process, on the CPU, as it stands: for folding constants.

In-process because one session takes a millisecond and a child process half a second. What is evaluated
here are pure standard operators on constants; whole models are run by worker.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import GraphoptError, ProviderError
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import onnx
    import onnx_ir as oir

    Arrays = Mapping[str, npt.NDArray[Any]]


def evaluate(model: oir.Model | onnx.ModelProto | bytes, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs of *model* by name, computed by onnxruntime without any optimisation.

    Args:
        model: A model of tensors; an onnx-ir model must hold its weights itself (no external data).
        feeds: An array for each input; low-precision tensors as arrays of ml_dtypes.

    Raises:
        ProviderError: The runtime cannot load the model, lacks an operator, or fails while running it.
    """
    content = _serialized(model)
    try:
        with open_session(content, optimization="none", where="the constants being folded") as session:
            outputs = session.run({name: np.asarray(value) for name, value in feeds.items()})
    except ProviderError:
        raise
    except GraphoptError as error:
        raise ProviderError(error.message, where=error.where, hint=error.hint) from error
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray):
            raise ProviderError(f"expected a tensor, got {type(value).__name__}", where=f"output {name!r}")
    return {name: np.asarray(value) for name, value in outputs.items()}


def evaluate_reference(model: onnx.ModelProto, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs of *model* by name, computed by ONNX's own reference implementation.

    Slow, and not bit-equal to any runtime; for operators that onnxruntime's CPU provider lacks.

    Raises:
        ProviderError: The reference implementation fails or lacks the operator.
    """
    from onnx.reference import ReferenceEvaluator

    names = [output.name for output in model.graph.output]
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception as error:  # the reference raises whatever Python and numpy raise
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProviderError(
            f"the reference implementation cannot evaluate it: {message}", where="the constants being folded"
        ) from error
    results = {}
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, (np.ndarray, np.generic)):
            raise ProviderError(f"expected a tensor, got {type(value).__name__}", where=f"output {name!r}")
        results[name] = np.asarray(value)
    return results


def _serialized(model: oir.Model | onnx.ModelProto | bytes) -> bytes:
    if isinstance(model, bytes):
        return model
    if hasattr(model, "SerializeToString"):
        return bytes(model.SerializeToString())
    import onnx_ir as oir

    return bytes(oir.to_proto(model).SerializeToString())
