"""Rules about optional inputs and outputs that say nothing: empty, at their default, or unread."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir import rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.passes.cleanup.facts import Facts
    from graphopt.passes.cleanup.workbench import Workbench

# Larger constants are not read to find out whether they are a default; states of recurrent nets fit.
_LIMIT_BYTES = 1 << 20


def trim_inputs(bench: Workbench, node: oir.Node) -> bool:
    """Cut trailing omitted inputs of a standard operator: absent and empty mean the same."""
    if not node.inputs or node.inputs[-1] is not None or node.domain not in {"", "ai.onnx"}:
        return False
    size = len(node.inputs)
    while size and node.inputs[size - 1] is None:
        size -= 1
    node.resize_inputs(size)
    bench.counts["trimmed_inputs"] += 1
    return True


def trim_outputs(bench: Workbench, node: oir.Node) -> bool:
    """Drop optional outputs that nothing reads."""
    dropped = drop_unused_outputs(node, bench.facts)
    bench.counts["trimmed_outputs"] += dropped
    return dropped > 0


def drop_unused_outputs(node: oir.Node, facts: Facts) -> int:
    """Leave out the optional outputs of *node* that nothing reads and return how many.

    Only where the schema calls an output optional and its absence changes nothing else: the number of outputs
    of BatchNormalization selects training before opset 14, and its extra outputs need training after.
    """
    if len(node.outputs) < 2 or node.domain not in {"", "ai.onnx"} or node.op_type == "BatchNormalization":
        return 0
    optional = _optional_outputs(node.op_type, facts.version(node))
    dropped = 0
    for index, value in enumerate(node.outputs):
        if index in optional and value.name and rewrite.is_unused(value):
            value.name = ""
            value.type = value.shape = None
            dropped += 1
    size = len(node.outputs)
    while size > 1 and not node.outputs[size - 1].name and rewrite.is_unused(node.outputs[size - 1]):
        size -= 1
    if size < len(node.outputs):
        if not dropped:
            dropped = len(node.outputs) - size
        node.resize_outputs(size)
    return dropped


@cache
def _optional_outputs(op_type: str, version: int) -> frozenset[int]:
    import onnx.defs

    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return frozenset()
    kinds = onnx.defs.OpSchema.FormalParameterOption
    if any(parameter.option == kinds.Variadic for parameter in schema.outputs):
        return frozenset()
    return frozenset(
        index for index, parameter in enumerate(schema.outputs) if parameter.option == kinds.Optional
    )


def drop_default_inputs(bench: Workbench, node: oir.Node) -> bool:
    """Leave out optional inputs that hold what their absence means, bit for bit."""
    changed = False
    for index, oldest, is_default in _DEFAULTS[node.op_type]:
        value = rewrite.input_at(node, index)
        if value is None or bench.facts.version(node) < oldest:
            continue
        array = rewrite.constant_array(value, limit_bytes=_LIMIT_BYTES)
        if array is not None and is_default(bench, node, array):
            bench.clear_input(node, index)
            bench.counts["dropped_default_inputs"] += 1
            changed = True
    return changed


def _all_zero(_bench: Workbench, _node: oir.Node, array: npt.NDArray[np.generic]) -> bool:
    # A negative zero is not what an absent input means; its bytes are not all zero.
    return not any(array.tobytes())


def _all_one(_bench: Workbench, _node: oir.Node, array: npt.NDArray[np.generic]) -> bool:
    return array.size > 0 and bool(np.all(array == 1))


def _slice_axes(_bench: Workbench, node: oir.Node, array: npt.NDArray[np.generic]) -> bool:
    # Absent axes are [0, 1, ..., len(starts) - 1]; negative ones would need the rank.
    return [int(axis) for axis in array.reshape(-1)] == list(range(array.size)) and _length(
        node, 1
    ) == array.size


def _length(node: oir.Node, index: int) -> int | None:
    array = rewrite.constant_array(rewrite.input_at(node, index), limit_bytes=_LIMIT_BYTES)
    return None if array is None else array.size


def _unused_region(_bench: Workbench, node: oir.Node, _array: npt.NDArray[np.generic]) -> bool:
    mode = rewrite.attribute(node, "coordinate_transformation_mode", "half_pixel")
    return mode != "tf_crop_and_resize" and "coordinate_transformation_mode" not in _references(node)


def _constant_mode(_bench: Workbench, _node: oir.Node, array: npt.NDArray[np.generic]) -> bool:
    return not any(array.tobytes()) and array.size == 1 and array.dtype.kind in "fiub"


def _references(node: oir.Node) -> set[str]:
    return {name for name, found in node.attributes.items() if found.is_ref()}


# Per operator: (index of the input, first opset that has it, whether an array is what absence means).
# Slice and Resize are listed from their last optional input to their first.
_DEFAULTS: dict[
    str, tuple[tuple[int, int, Callable[[Workbench, oir.Node, npt.NDArray[np.generic]], bool]], ...]
] = {
    "GRU": ((5, 7, _all_zero),),
    "LSTM": ((5, 7, _all_zero), (6, 7, _all_zero), (7, 7, _all_zero)),
    "Pad": ((2, 11, _constant_mode),),
    "RNN": ((5, 7, _all_zero),),
    "Resize": ((1, 13, _unused_region),),
    "Slice": ((4, 10, _all_one), (3, 10, _slice_axes)),
    "Trilu": ((1, 14, _all_zero),),
}
DEFAULTED = frozenset(_DEFAULTS)
"""Operators that :func:`drop_default_inputs` knows."""
