"""rewrite-masked-softmax: keep what a mask switched off above a floor, so that exp gives normal floats.

A masked element of -1e9 makes an exp that is no normal float any more, and processors take a hundred cycles
and more to add or multiply such a (denormal) number: a causal Softmax on onnxruntime's CPU provider takes
eight times as long as one without a mask (benchmarks/weights.py --part softmax). Raised to 60 below the
largest element of its row, a masked element is exp(-60) = 9e-27 of the largest: a normal float still, and
nothing in a sum of floats that has 1 in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir
from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report
from graphopt.ir.masks import masked_share, masked_values
from graphopt.ir.rewrite import add_initializer, attribute, has_reference, is_op, make_node
from graphopt.ir.shapes import Shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.ir import Model

FLOOR = 60.0
"""How far below the maximum of its row an element may lie. For rows of up to n = 7e11 elements exp(-60) / n
is a normal float, and n exp(-60) is nothing beside a sum of 1 or more."""

_DENORMAL = -87.3
"""exp of less than this is no normal float: the logarithm of 1.18e-38."""

_OPSET = 8  # Max broadcasts from there on
_AXES_INPUT = 18
_SOFTMAX_OF_ONE_AXIS = 13

_TELLS_ZERO = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Log", "NonZero", "Reciprocal", "Sign"}
)
"""What may make much of the difference between nothing and almost nothing."""

_PASSES_ON = frozenset({
    "Abs", "Cast", "Concat", "Div", "Expand", "Flatten", "Gather", "Identity", "Mul", "Neg", "Reshape",
    "Slice", "Split", "Sqrt", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What hands the elements on, as they are or so that nothing stays nothing."""


class RewriteMaskedSoftmax(Pass):
    """Put Max(x, ReduceMax(x) - 60) in front of a Softmax of which a mask switches enough elements off."""

    info = PassInfo(
        name="rewrite-masked-softmax",
        summary="Keep masked elements in front of Softmax among the normal floats, which are faster.",
        preserves=frozenset({"statistics"}),
        min_opset=_OPSET,
    )

    class Options(PassOptions):
        """Whether to ask the target."""

        force: bool = Field(
            default=False,
            description="also where the target is not known to gain from it, or too little is known to be "
            "masked (true or false)",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Rewrite in graph order."""
        rules = context.target.softmax
        least = 0.0 if options.force else None if rules is None else rules.min_masked_share
        if least is None:
            reason = (
                f"target {context.target.name} is not known to gain from it; force=true does it all the same"
            )
            return Report(changed=False, skipped=(("model", reason),))
        masked = masked_values(model, _DENORMAL)
        shapes = context.analysis("shapes")
        assert isinstance(shapes, Shapes)
        foreign = {
            graph
            for function in model.functions.values()
            for graph in (function.graph, *function.subgraphs())
            if function.opset_imports.get("", model.opset) != model.opset
        }
        floors: dict[tuple[oir.Value, oir.Graph | oir.Function | None, int], oir.Value] = {}
        skipped: list[tuple[str, str]] = []
        rewritten = 0
        for node in list(model.nodes()):
            if not is_op(node, "Softmax") or node.inputs[0] not in masked:
                continue
            source = node.inputs[0]
            assert source is not None
            reason = "it stands in a function of another opset" if node.graph in foreign else ""
            reason = (
                reason
                or _why_not(model, node, shapes)
                or _too_few(source, masked, least, force=options.force)
            )
            if reason:
                skipped.append((node.name or node.outputs[0].name or "Softmax", reason))
                continue
            # A floor stands below the maxima of one axis, in one graph.
            place = source, node.graph, _axis(model, node)
            if place not in floors:
                floors[place] = _floored(model, node, source)
            node.replace_input_with(0, floors[place])
            rewritten += 1
        if not rewritten and not skipped:
            skipped.append(("model", "no Softmax reads what a stored mask of very low numbers switches off"))
        counts = {"softmaxes": rewritten} if rewritten else {}
        return Report(changed=bool(rewritten), counts=counts, skipped=tuple(skipped))


def _why_not(model: Model, node: oir.Node, shapes: Shapes) -> str:
    """Return why *node* cannot be written so, or ""."""
    source = node.inputs[0]
    if shapes.dtype(source) is not oir.DataType.FLOAT:
        return "it is not known to compute in float32"
    if has_reference(node):
        return "its axis is an attribute of the function"
    tellers = sorted({user.op_type for value, user in _reads(node.outputs[0]) if _tells(value, user)})
    if tellers:
        return f"{tellers[0]} reads it, which tells 0 from {np.exp(-FLOOR):.0e}"
    producer = source.producer() if source is not None else None
    if is_op(producer, "Max") and _is_floor(producer):
        return "it has a floor already"
    if model.opset < _SOFTMAX_OF_ONE_AXIS:
        # There, Softmax runs over all axes from its own on.
        rank = shapes.rank(source)
        axis = attribute(node, "axis", 1)
        if rank is None or axis not in {-1, rank - 1}:
            return (
                f"Softmax of opset {model.opset} runs over several axes; "
                f"upgrade-opset{{to={_SOFTMAX_OF_ONE_AXIS}}} would help"
            )
    return ""


def _reads(value: oir.Value) -> Iterator[tuple[oir.Value, oir.Node]]:
    """Yield all that reads *value*, as it is or through what hands its elements on, with what it reads."""
    waiting, seen = [value], {value}
    while waiting:
        now = waiting.pop()
        for user in now.consumers():
            yield now, user
            if user.op_type in _PASSES_ON:
                waiting += [each for each in user.outputs if each not in seen]
                seen.update(user.outputs)


def _tells(value: oir.Value, user: oir.Node) -> bool:
    """Return whether *user*, which reads *value*, may make much of 0 in it."""
    if is_op(user, "Cast"):
        return bool(attribute(user, "to", 0) == oir.DataType.BOOL)
    return user.op_type in _TELLS_ZERO or (is_op(user, "Div") and user.inputs[1] is value)


def _axis(model: Model, node: oir.Node) -> int:
    return int(attribute(node, "axis", -1 if model.opset >= _SOFTMAX_OF_ONE_AXIS else 1))


def _is_floor(node: oir.Node | None) -> bool:
    if node is None or len(node.inputs) != 2:
        return False
    floor = node.inputs[1].producer() if node.inputs[1] is not None else None
    return is_op(floor, "Sub") and is_op(
        floor.inputs[0].producer() if floor is not None and floor.inputs[0] is not None else None, "ReduceMax"
    )


def _too_few(source: oir.Value, masked: frozenset[oir.Value], least: float, *, force: bool) -> str:
    """Return why too little is masked for it to pay, or ""."""
    if force:
        return ""
    share = masked_share(source, masked, _DENORMAL)
    if share is None:
        return "how much of it is masked is decided at run time; force=true does it all the same"
    if share < least:
        return f"{share:.1%} of it is masked; it pays from {least:.0%} on"
    return ""


def _floored(model: Model, node: oir.Node, source: oir.Value) -> oir.Value:
    """Return *source*, with nothing further than FLOOR below the maximum of its row, in front of *node*."""
    graph = node.graph
    assert graph is not None
    axis = _axis(model, node)
    name = node.name or node.outputs[0].name or "softmax"
    inputs, attributes = [source], {"keepdims": 1}
    if model.opset >= _AXES_INPUT:
        inputs.append(add_initializer(model, graph, f"{name}_axis", np.array([axis], np.int64)))
    else:
        attributes["axes"] = [axis]  # type: ignore[assignment]  # a list is an attribute too
    largest = make_node(model, "ReduceMax", inputs, attributes=attributes, name=f"{name}_max")
    distance = add_initializer(model, graph, f"{name}_distance", np.array(FLOOR, np.float32))
    floor = make_node(model, "Sub", [largest.outputs[0], distance], name=f"{name}_floor")
    raised = make_node(model, "Max", [source, floor.outputs[0]], name=f"{name}_floored")
    for new in (largest, floor, raised):
        graph.insert_before(node, new)
    type_ = oir.TensorType(oir.DataType.FLOAT)
    for new in (largest, floor, raised):
        new.outputs[0].type = type_
    raised.outputs[0].shape = source.shape
    return raised.outputs[0]
