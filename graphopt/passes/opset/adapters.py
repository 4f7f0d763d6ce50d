"""One function for each (operator, version) whose meaning or form changed, between opsets 7 and 26.

Each takes a node written for the version before and writes it for its own version, in place where it can.
Every other change of these operators only admits more types or adds attributes whose default is the old
behaviour; the table was made by reading the changelog of ONNX operators up to opset 26 (LAST).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir import rewrite
from graphopt.passes.opset.edit import Edit, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as oir

    Adapter = Callable[[Edit, oir.Node], None]

FIRST = 7
LAST = 26

_INPUT_ROI_OPTIONAL = 13
_ALLOW_ZERO = 14
# Resize has no coordinate modes in this version.
_RESIZE_ONLY = 10
_TO_FLOAT_LIMIT = 3.4028234663852886e38


def _refuse(reason: str) -> Adapter:
    def adapter(edit: Edit, node: oir.Node) -> None:
        del edit, node
        raise Refused(reason)

    return adapter


def _ints_to_input(name: str, position: int) -> Adapter:
    """Return the adapter that moves the integers of attribute *name* to input *position*."""

    def adapter(edit: Edit, node: oir.Node) -> None:
        values = edit.take(node, name)
        if values is None or (name == "axes" and not values):
            return
        inputs = [*node.inputs[:position], *([None] * (position - len(node.inputs)))]
        edit.give_inputs(node, [*inputs, edit.ints(node, name, values)])

    return adapter


def _batchnorm_9(edit: Edit, node: oir.Node) -> None:
    if not edit.take(node, "spatial", 1):
        raise Refused("spatial=0 (statistics for every element) exists up to version 8 only")


def _batchnorm_14(edit: Edit, node: oir.Node) -> None:
    del edit
    if len(node.outputs) > 1:
        raise Refused("its further outputs mean training, and version 14 has other ones")


def _clip_11(edit: Edit, node: oir.Node) -> None:
    low, high = edit.take(node, "min"), edit.take(node, "max")
    source = node.inputs[0]
    # The defaults of version 6 are the limits of float32, which no bound stands for.
    bounds = [
        None
        if number is None or abs(number) >= _TO_FLOAT_LIMIT
        else edit.scalar_like(node, hint, number, source)
        for hint, number in (("min", low), ("max", high))
    ]
    edit.give_inputs(node, [source, *bounds])


def _dft_20(edit: Edit, node: oir.Node) -> None:
    axis = edit.take(node, "axis", 1)
    length = rewrite.input_at(node, 1)
    edit.give_inputs(node, [node.inputs[0], length, edit.constant(node, "axis", np.array(axis, np.int64))])


def _dropout_10(edit: Edit, node: oir.Node) -> None:
    edit.drop_outputs(node, 1, "its mask is boolean from version 10 on")


def _dropout_12(edit: Edit, node: oir.Node) -> None:
    ratio = edit.take(node, "ratio")
    if ratio is not None:
        edit.give_inputs(node, [node.inputs[0], edit.constant(node, "ratio", np.array(ratio, np.float32))])


def _grid_sample_20(edit: Edit, node: oir.Node) -> None:
    mode = edit.read(node, "mode", "bilinear")
    names = {"bilinear": "linear", "bicubic": "cubic"}
    edit.set(node, "mode", names.get(mode, mode))


def _group_norm_21(edit: Edit, node: oir.Node) -> None:
    """Repeat scale and bias, one a group up to version 18, to one a channel."""
    groups = edit.read(node, "num_groups")
    shape = edit.shape_of(node.inputs[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(channels, int) or channels % groups:
        raise Refused("the number of its channels is unknown")
    values: list[oir.Value] = []
    for hint, value in zip(("scale", "bias"), node.inputs[1:3], strict=True):
        array = rewrite.constant_array(value)
        if array is not None:
            values.append(edit.constant(node, hint, np.repeat(array, channels // groups)))
            continue
        column = edit.before(node, "Reshape", [value, edit.ints(node, f"{hint}_column", [groups, 1])])
        target = edit.ints(node, f"{hint}_target", [groups, channels // groups])
        wide = edit.before(node, "Expand", [column, target])
        values.append(edit.before(node, "Reshape", [wide, edit.ints(node, f"{hint}_flat", [channels])]))
    edit.give_inputs(node, [node.inputs[0], *values])


def _softmax_13(edit: Edit, node: oir.Node) -> None:
    """Softmax, LogSoftmax, Hardmax: over all dims from the axis on up to version 11, over one from 13 on."""
    axis = edit.take(node, "axis", 1)
    source = node.inputs[0]
    shape = edit.shape_of(source)
    if shape is not None:
        first = axis + len(shape) if axis < 0 else axis
        wide = [k for k in range(first, len(shape)) if shape[k] != 1]
        if len(wide) <= 1 and shape:
            edit.set(node, "axis", wide[0] if wide else len(shape) - 1)
            return
    dims = edit.before(node, "Shape", [source])
    flat = edit.before(node, "Flatten", [source], {"axis": axis})
    result = edit.before(node, node.op_type, [flat], {"axis": -1})
    zero = {"allowzero": 1} if edit.to >= _ALLOW_ZERO else {}
    edit.replace(node, "Reshape", [result, dims], zero)


def _one_hot_11(edit: Edit, node: oir.Node) -> None:
    indices = rewrite.constant_array(node.inputs[0])
    if indices is None or bool((indices < 0).any()):
        remark = (
            "negative indices give off_value by the text of version 9 and count from the end from version 11 "
            "on; onnxruntime counts from the end in both"
        )
        edit.notes.append((f"OneHot {node.name!r}", remark))


def _pad_11(edit: Edit, node: oir.Node) -> None:
    pads, number = edit.take(node, "pads"), edit.take(node, "value", 0.0)
    value = edit.scalar_like(node, "value", number, node.inputs[0]) if number else None
    edit.give_inputs(node, [node.inputs[0], edit.ints(node, "pads", pads), value])


def _resize_11(edit: Edit, node: oir.Node) -> None:
    """Version 10 scales coordinates as x / scale; nearest rounds down when enlarging and up when shrinking.

    That is what onnxruntime does; the text of version 10 leaves it open.
    """
    scales = node.inputs[1]
    mode = edit.read(node, "mode", "nearest")
    edit.set(node, "coordinate_transformation_mode", "asymmetric")
    if mode == "nearest":
        edit.set(node, "nearest_mode", _nearest_mode(scales))
    edit.give_inputs(node, [node.inputs[0], _no_roi(edit, node), scales])


def _nearest_mode(scales: oir.Value | None) -> str:
    factors = rewrite.constant_array(scales)
    if factors is None:
        raise Refused("its scales are not constant, and version 10 rounds by whether they enlarge or shrink")
    if bool((factors >= 1).all()):
        return "floor"
    if bool((factors <= 1).all()):
        return "ceil"
    raise Refused("it enlarges some dims and shrinks others, which version 10 rounds in opposite directions")


def _no_roi(edit: Edit, node: oir.Node) -> oir.Value | None:
    if edit.to >= _INPUT_ROI_OPTIONAL:
        return None
    return edit.constant(node, "roi", np.zeros(0, np.float32))


def _resize_13(edit: Edit, node: oir.Node) -> None:
    if edit.read(node, "coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn":
        raise Refused("coordinate_transformation_mode=tf_half_pixel_for_nn exists in versions 11 and 12 only")
    inputs = [rewrite.input_at(node, index) for index in range(4)]
    # Before version 13 an unused input had to be given as an empty tensor.
    edit.give_inputs(node, [inputs[0], *(None if _is_empty(value) else value for value in inputs[1:])])


def _is_empty(value: oir.Value | None) -> bool:
    array = rewrite.constant_array(value, limit_bytes=64)
    return array is not None and array.size == 0


def _roi_align_16(edit: Edit, node: oir.Node) -> None:
    edit.set(node, "coordinate_transformation_mode", "output_half_pixel")


def _scatter_11(edit: Edit, node: oir.Node) -> None:
    del edit
    node.op_type = "ScatterElements"


def _slice_10(edit: Edit, node: oir.Node) -> None:
    starts, ends, axes = (edit.take(node, name) for name in ("starts", "ends", "axes"))
    inputs = [node.inputs[0], edit.ints(node, "starts", starts), edit.ints(node, "ends", ends)]
    if axes is not None:
        inputs.append(edit.ints(node, "axes", axes))
    edit.give_inputs(node, inputs)


def _split_18(edit: Edit, node: oir.Node) -> None:
    if rewrite.input_at(node, 1) is None:
        edit.set(node, "num_outputs", len(node.outputs))


def _topk_10(edit: Edit, node: oir.Node) -> None:
    edit.give_inputs(node, [node.inputs[0], edit.ints(node, "k", [edit.take(node, "k")])])


def _upsample_9(edit: Edit, node: oir.Node) -> None:
    scales = edit.take(node, "scales")
    edit.give_inputs(node, [node.inputs[0], edit.constant(node, "scales", np.array(scales, np.float32))])


def _upsample_10(edit: Edit, node: oir.Node) -> None:
    """Upsample became Resize; its scales are at least 1, so nearest always rounds down."""
    mode = edit.read(node, "mode", "nearest")
    mode = "linear" if mode in {"bilinear", "trilinear"} else mode
    source, scales = node.inputs[0], node.inputs[1]
    if edit.to == _RESIZE_ONLY:
        edit.replace(node, "Resize", [source, scales], {"mode": mode})
        return
    attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    inputs = [source, _no_roi(edit, node), scales]
    edit.replace(node, "Resize", inputs, attributes, written_for=_RESIZE_ONLY + 1)


def _attention_24(edit: Edit, node: oir.Node) -> None:
    if edit.read(node, "is_causal", 0):
        raise Refused("where its causal mask starts was redefined")


_SOFTMAXES = ("Hardmax", "LogSoftmax", "Softmax")
_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("Attention", 24): _attention_24,
    ("Attention", 25): _attention_24,
    ("BatchNormalization", 9): _batchnorm_9,
    ("BatchNormalization", 14): _batchnorm_14,
    ("Clip", 11): _clip_11,
    ("DFT", 20): _dft_20,
    ("Dropout", 10): _dropout_10,
    ("Dropout", 12): _dropout_12,
    ("GridSample", 20): _grid_sample_20,
    ("GroupNormalization", 21): _group_norm_21,
    ("OneHot", 11): _one_hot_11,
    ("Pad", 11): _pad_11,
    ("ReduceSum", 13): _ints_to_input("axes", 1),
    ("Resize", 11): _resize_11,
    ("Resize", 13): _resize_13,
    ("RoiAlign", 16): _roi_align_16,
    ("Scan", 9): _refuse("its batch dim and optional sequence lengths exist in version 8 only"),
    ("Scatter", 11): _scatter_11,
    ("Slice", 10): _slice_10,
    ("Split", 13): _ints_to_input("split", 1),
    ("Split", 18): _split_18,
    ("Squeeze", 13): _ints_to_input("axes", 1),
    ("TopK", 10): _topk_10,
    ("Unsqueeze", 13): _ints_to_input("axes", 1),
    ("Upsample", 9): _upsample_9,
    ("Upsample", 10): _upsample_10,
    **{(op_type, 13): _softmax_13 for op_type in _SOFTMAXES},
    **{(op_type, 18): _ints_to_input("axes", 1) for op_type in _REDUCTIONS},
}
