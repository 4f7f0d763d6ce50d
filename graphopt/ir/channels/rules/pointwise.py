"""Operators that keep every index in its place: element-wise, normalising, pooling, reducing, sorting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.channels.types import ChannelRule
from graphopt.ir.semantics import DEFAULT_DOMAIN, MICROSOFT_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.view import NodeView

_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Cos", "Cosh", "Div",
    "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min",
    "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan",
    "Tanh", "ThresholdedRelu", "Where", "Xor", "CastLike",
)  # fmt: skip
_FIRST_ONLY = ["Cast", "Clip", "Identity", "Shrink", "Bernoulli", "RandomNormalLike", "RandomUniformLike"]
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_MICROSOFT_ELEMENTWISE = ["BiasGelu", "FastGelu", "Gelu", "QuickGelu"]


def _elementwise(view: NodeView) -> None:
    dims = view.output_shape()
    view.emit(view.broadcast(range(len(view.node.inputs)), len(dims), dims))


def _first_only(view: NodeView) -> None:
    view.emit(view.axes(0))


def _dropout(view: NodeView) -> None:
    view.emit(view.axes(0))
    view.emit(view.axes(0), 1)


def _batch_normalization(view: NodeView) -> None:
    axes = view.axes(0)
    channels = axes[1] if len(axes) > 1 else None
    for index in range(1, 5):
        view.same(channels, view.axes(index)[0])
    if view.attribute("training_mode", 0) or len(view.node.outputs) > 1:
        view.lock_inputs("computes statistics")
    view.emit(axes)
    for index in range(1, 5):
        view.emit([channels], index)


def _instance_normalization(view: NodeView) -> None:
    axes = view.axes(0)
    for index in (1, 2):
        view.same(axes[1], view.axes(index)[0])
    for axis in axes[2:]:
        view.approximate(axis)
    view.emit(axes)


def normalize_last(view: NodeView, first: int, parameters: Iterable[int]) -> None:
    """Tie parameters to the dims of input 0 from *first* on, over which the node takes a norm."""
    axes, dims = view.axes(0), view.shape(0)
    for axis in axes[first:]:
        view.approximate(axis)
    for index in parameters:
        if view.has(index):
            view.align([axes[first:], view.axes(index)], [dims[first:], view.shape(index)], dims[first:])


def _layer_normalization(view: NodeView) -> None:
    rank = len(view.shape(0))
    first = view.attribute("axis", -1) % rank
    normalize_last(view, first, (1, 2))
    axes = view.axes(0)
    view.emit(axes)
    for index in (1, 2):
        view.emit([*axes[:first], *[None] * (rank - first)], index)


def _skip_layer_normalization(view: NodeView) -> None:
    """X + skip + bias, then a norm over the last dim; output 3 is the sum."""
    dims = view.shape(0)
    simplified = view.node.op_type.startswith("SkipSimplified")
    added = view.broadcast((0, 1, 3 if simplified else 4), len(dims), dims)
    normalize_last(view, len(dims) - 1, (2,) if simplified else (2, 3))
    view.emit(added)
    view.emit([*added[:-1], None], 1)
    view.emit([*added[:-1], None], 2)
    view.emit(added, 3)


def _group_normalization(view: NodeView) -> None:
    """C = groups x channels of a group; whole groups go without a trace, channels change their norm."""
    axes = view.axes(0)
    groups = view.attribute("num_groups", 1)
    rows, columns = None, None
    if axes[1] is not None:
        rows, columns = view.split(axes[1], (groups, len(axes[1]) // groups))
        view.approximate(columns)
    for index in (1, 2):
        parameter = view.axes(index)[0]
        view.same(rows if view.shape(index)[0] == groups != view.shape(0)[1] else axes[1], parameter)
    for axis in axes[2:]:
        view.approximate(axis)
    view.emit(axes)


def _set_groups(cut: NodeCut) -> None:
    keep = cut.keep(0, 1)
    if keep is not None:
        groups = cut.attribute("num_groups", 1)
        cut.set_attribute("num_groups", int(keep.reshape(groups, -1).any(axis=1).sum()))


def _lp_normalization(view: NodeView) -> None:
    axis = view.attribute("axis", -1)
    view.summed(0, axis)
    view.emit(view.axes(0))


def _mean_variance(view: NodeView) -> None:
    axes = view.axes(0)
    for axis in view.attribute("axes", [0, 2, 3]):
        view.approximate(axes[axis])
    view.emit(axes)


def _lrn(view: NodeView) -> None:
    view.lock(view.axes(0)[1], "norms over neighbours")
    view.emit(view.axes(0))


def _pool(view: NodeView) -> None:
    axes = view.axes(0)
    for axis in axes[2:]:
        view.lock(axis, "slides along it")
    for index in range(len(view.node.outputs)):
        view.emit([*axes[:2], *[None] * (len(axes) - 2)], index)


def _pass_two(view: NodeView) -> None:
    """Channels of X [N, C, ...] pass; other inputs say where to look."""
    view.lock_inputs("says where to look", range(1, len(view.node.inputs)))
    axes = view.axes(0)
    for axis in axes[2:]:
        view.lock(axis, "slides along it")
    view.lock(axes[0], "looks at it sample by sample")
    view.emit([None, axes[1], *[None] * (len(view.output_shape()) - 2)])


def reduced_axes(view: NodeView) -> list[int] | None:
    """Return the dims that a Reduce operator reduces, None where they are unknown."""
    rank = len(view.shape(0))
    axes = view.attribute("axes")
    if axes is None and view.has(1):
        content = view.constant(1)
        if content is None:
            return None
        axes = content.reshape(-1).tolist()
    if not axes:
        return [] if view.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in axes]


# A zero adds nothing to these, so that a masked index and a removed one are the same.
_SUMS = {"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum"}
_REDUCTIONS = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp"]


def _reduce(view: NodeView) -> None:
    reduced = reduced_axes(view)
    if reduced is None:
        view.lock_inputs("which dims it reduces is unknown")
        return
    axes = view.axes(0)
    for axis in reduced:
        if axes[axis] is None:
            continue
        if view.node.op_type in _SUMS:
            view.summed(0, axis)
        else:
            view.approximate(axes[axis])
    if view.attribute("keepdims", 1):
        view.emit([None if k in reduced else axis for k, axis in enumerate(axes)])
    else:
        view.emit([axis for k, axis in enumerate(axes) if k not in reduced])


def _softmax(view: NodeView) -> None:
    """Before opset 13 everything from the axis on is one dim."""
    axes = view.axes(0)
    rank = len(axes)
    axis = view.attribute("axis", -1 if view.opset >= 13 else 1) % rank
    for found in axes[axis : axis + 1 if view.opset >= 13 else rank]:
        view.lock(found, "normalises over it")
    view.emit([None if k == axis else found for k, found in enumerate(axes)])


def _along(view: NodeView, axis: int, text: str, *, keep: bool = True) -> None:
    """Lock the dim that an operator works along and let the others pass to all outputs."""
    axes = view.axes(0)
    axis %= len(axes)
    view.lock(axes[axis], text)
    result = [None if k == axis else found for k, found in enumerate(axes) if keep or k != axis]
    for index in range(len(view.node.outputs)):
        view.emit(result, index)


def _arg(view: NodeView) -> None:
    _along(view, view.attribute("axis", 0), "compares along it", keep=bool(view.attribute("keepdims", 1)))


def _top_k(view: NodeView) -> None:
    _along(view, view.attribute("axis", -1), "sorts along it")


def _cum(view: NodeView) -> None:
    axis = view.constant(1)
    if axis is None:
        view.lock_inputs("which dim it works along is unknown", (0,))
        return
    _along(view, int(axis.reshape(-1)[0]), "accumulates along it")


def _trilu(view: NodeView) -> None:
    axes = view.axes(0)
    for axis in axes[-2:]:
        view.lock(axis, "cuts a triangle")
    view.emit([*axes[:-2], None, None])


def _rules(
    names: Iterable[str],
    constrain: Callable[[NodeView], None],
    rewrite: Callable[[NodeCut], None] | None = None,
    domain: str = DEFAULT_DOMAIN,
) -> list[ChannelRule]:
    return [ChannelRule(name, constrain, rewrite, domain) for name in names]


RULES = [
    *_rules(_ELEMENTWISE, _elementwise),
    *_rules(_MICROSOFT_ELEMENTWISE, _elementwise, domain=MICROSOFT_DOMAIN),
    *_rules(_FIRST_ONLY, _first_only),
    ChannelRule("Dropout", _dropout),
    ChannelRule("BatchNormalization", _batch_normalization),
    ChannelRule("InstanceNormalization", _instance_normalization),
    *_rules(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _layer_normalization),
    *_rules(
        ("LayerNormalization", "SimplifiedLayerNormalization"), _layer_normalization, domain=MICROSOFT_DOMAIN
    ),
    *_rules(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        _skip_layer_normalization,
        domain=MICROSOFT_DOMAIN,
    ),
    ChannelRule("GroupNormalization", _group_normalization, _set_groups),
    ChannelRule("LpNormalization", _lp_normalization),
    ChannelRule("MeanVarianceNormalization", _mean_variance),
    ChannelRule("LRN", _lrn),
    *_rules(_POOLS, _pool),
    *_rules(["GridSample", "RoiAlign", "MaxRoiPool"], _pass_two),
    *_rules((*sorted(_SUMS), *_REDUCTIONS), _reduce),
    *_rules(["Softmax", "LogSoftmax", "Hardmax"], _softmax),
    *_rules(["ArgMax", "ArgMin"], _arg),
    ChannelRule("TopK", _top_k),
    *_rules(["CumSum", "CumProd"], _cum),
    ChannelRule("Trilu", _trilu),
]
