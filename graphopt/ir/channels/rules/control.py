"""If, Loop and Scan: the labels of their bodies, joined with those of the values around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.view import NodeView


def _tie(view: NodeView, one: list[Array | None], other: list[Array | None], text: str) -> list[Array | None]:
    """State that two values that stand for each other lose the same, and return their axes."""
    if len(one) != len(other):
        for axis in (*one, *other):
            view.lock(axis, text)
        return [None] * len(other)
    for a, b in zip(one, other, strict=True):
        view.same(a, b, text)
    return [a if b is not None else None for a, b in zip(one, other, strict=True)]


def _if(view: NodeView) -> None:
    bodies = [view.attribute(name) for name in ("then_branch", "else_branch")]
    for body in bodies:
        view.run_body(body)
    for index, value in enumerate(view.node.outputs):
        then, other = (view.axes_of(body.outputs[index]) for body in bodies)
        axes = _tie(view, then, other, "its branches differ in this dim")
        if len(axes) != len(view.output_shape(index)):
            for axis in axes:
                view.lock(axis, "its shape is unknown")
            view.emit_nothing(index)
        elif value.name:
            view.emit(axes, index)


def _states(view: NodeView, body: oir.Graph, inputs: list[int], first: int) -> list[list[Array | None]]:
    """Label the states of a body like their initial values; returns them."""
    states = []
    for k, index in enumerate(inputs):
        value = body.inputs[first + k]
        axes = view.axes(index) if view.has(index) else []
        rank = view.rank_of(value)
        if rank != len(axes):
            for axis in axes:
                view.lock(axis, "changes its shape while it loops")
            axes = [None] * (rank or 0)
        view.label(value, axes)
        states.append(axes)
    return states


def _finish(
    view: NodeView, body: oir.Graph, states: list[list[Array | None]], first: int, output: int
) -> None:
    """Tie the states that a body leaves to those that it is given."""
    for k, state in enumerate(states):
        axes = _tie(view, state, view.axes_of(body.outputs[first + k]), "changes it while it loops")
        if len(axes) == len(view.output_shape(output + k)):
            view.emit(axes, output + k)
        else:
            view.emit_nothing(output + k)


def _loop(view: NodeView) -> None:
    body = view.attribute("body")
    view.lock_inputs("counts by it", (0, 1))
    for value in body.inputs[:2]:
        view.label(value, [None] * (view.rank_of(value) or 0))
    carried = list(range(2, len(view.node.inputs)))
    states = _states(view, body, carried, 2)
    view.run_body(body)
    _finish(view, body, states, 1, 0)
    for k in range(len(carried), len(view.node.outputs)):
        _emit_stack(view, view.axes_of(body.outputs[1 + k]), 0, k)


def _emit_stack(view: NodeView, axes: list[Array | None], axis: int, output: int) -> None:
    """Label an output that stacks what every iteration gives along a new dim."""
    rank = len(view.output_shape(output))
    if rank != len(axes) + 1:
        for found in axes:
            view.lock(found, "its shape is unknown")
        view.emit_nothing(output)
        return
    axis %= rank
    view.emit([*axes[:axis], None, *axes[axis:]], output)


def _scan(view: NodeView) -> None:
    if view.opset < 9:
        view.lock_inputs("scans in a form of old")
        return
    body = view.attribute("body")
    scanned = view.attribute("num_scan_inputs", 0)
    carried = len(view.node.inputs) - scanned
    states = _states(view, body, list(range(carried)), 0)
    input_axes = view.attribute("scan_input_axes") or [0] * scanned
    for k in range(scanned):
        axes = view.axes(carried + k)
        axis = input_axes[k] % max(len(axes), 1)
        view.lock(axes[axis] if axes else None, "scans along it")
        view.label(body.inputs[carried + k], [found for j, found in enumerate(axes) if j != axis])
    view.run_body(body)
    _finish(view, body, states, 0, 0)
    outputs = len(view.node.outputs) - carried
    output_axes = view.attribute("scan_output_axes") or [0] * outputs
    for k in range(outputs):
        _emit_stack(view, view.axes_of(body.outputs[carried + k]), output_axes[k], carried + k)


RULES = [ChannelRule("If", _if), ChannelRule("Loop", _loop), ChannelRule("Scan", _scan)]
