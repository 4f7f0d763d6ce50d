"""Put the factors into the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.dead import remove_unread
from graphopt.ir.rewrite import add_initializer, attribute, input_at, is_op, make_node, replace_node
from graphopt.ir.tensors import constant_of

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir.model import Model
    from graphopt.passes.lowrank.fit import Fitted
    from graphopt.recover.moments import Matrix


def put(model: Model, fitted: Fitted) -> None:
    """Let *fitted* take the place of what its operator computes; the output keeps its name."""
    linear, factors = fitted.linear, fitted.factors
    if factors is None:
        assert fitted.weight is not None
        linear.write(model, fitted.weight, fitted.bias)
    elif is_op(linear.node, "Conv"):
        _put_convs(model, fitted)
    else:
        _put_matrix(model, fitted)


def _put_matrix(model: Model, fitted: Fitted) -> None:
    """Write x W^T as (x A^T) B^T: a MatMul in front, and the operator itself with B as its weight."""
    linear, factors = fitted.linear, fitted.factors
    assert factors is not None
    node, graph = linear.node, linear.node.graph
    assert graph is not None
    weight = node.inputs[1]
    assert weight is not None
    inner = add_initializer(model, graph, f"{weight.name}_inner", _as(weight, factors.features.T))
    before = make_node(
        model, "MatMul", [node.inputs[0], inner], name=f"{node.name or linear.output}_inner", replaces=[node]
    )
    graph.insert_before(node, before)
    node.replace_input_with(0, before.outputs[0])
    linear.write(model, factors.last, fitted.bias)


def _put_convs(model: Model, fitted: Fitted) -> None:
    linear, factors = fitted.linear, fitted.factors
    assert factors is not None
    node, graph = linear.node, linear.node.graph
    assert graph is not None
    old_weight, old_bias = node.inputs[1], input_at(node, 2)
    assert old_weight is not None
    name = node.name or linear.output
    window = _window(node, len(linear.kernel))
    rank = len(linear.kernel)
    one = [1] * rank
    kernels: list[tuple[Any, dict[str, Any]]]
    q, m = factors.last.shape[1], factors.last.shape[0]
    if factors.form == "thin":
        first = factors.features.reshape(q, -1, *linear.kernel)
        kernels = [(first, {**window, "kernel_shape": list(linear.kernel)})]
        last = factors.last.reshape(m, q, *one), {"kernel_shape": one}
    elif factors.form == "spatial":
        height, width = linear.kernel
        kernels = [(factors.parts[0], {**_half(window, 0), "kernel_shape": [height, 1]})]
        last = (
            factors.last.reshape(m, q // width, 1, width),
            {**_half(window, 1), "kernel_shape": [1, width]},
        )
    else:
        kernels = [
            (factors.parts[0], {"kernel_shape": one}),
            (factors.parts[1], {**window, "kernel_shape": list(linear.kernel)}),
        ]
        last = factors.last.reshape(m, q, *one), {"kernel_shape": one}
    value = node.inputs[0]
    for number, (content, attributes) in enumerate(kernels):
        suffix = "inner" if len(kernels) == 1 else f"inner{number + 1}"
        weight = add_initializer(model, graph, f"{old_weight.name}_{suffix}", _as(old_weight, content))
        conv = make_node(
            model, "Conv", [value, weight], attributes=attributes, name=f"{name}_{suffix}", replaces=[node]
        )
        graph.insert_before(node, conv)
        value = conv.outputs[0]
    weight = add_initializer(model, graph, f"{old_weight.name}_outer", _as(old_weight, last[0]))
    inputs: list[oir.Value | None] = [value, weight]
    if fitted.bias is not None and (old_bias is not None or fitted.bias.any()):
        hint = f"{name}_bias" if old_bias is None else old_bias.name or "bias"
        inputs.append(add_initializer(model, graph, hint, _as(old_weight, fitted.bias)))
    elif old_bias is not None:
        inputs.append(old_bias)
    new = make_node(model, "Conv", inputs, attributes=last[1], name=f"{name}_outer", replaces=[node])
    replace_node(model, node, new)
    remove_unread([old_weight, old_bias])


def _window(node: oir.Node, rank: int) -> dict[str, Any]:
    """Return how the kernel slides, with all that is written down."""
    found: dict[str, Any] = {}
    auto = attribute(node, "auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if auto != "NOTSET":
        found["auto_pad"] = auto
    elif attribute(node, "pads") is not None:
        found["pads"] = [int(one) for one in attribute(node, "pads")]
    for name in ("strides", "dilations"):
        found[name] = [int(one) for one in attribute(node, name, [1] * rank)]
    return found


def _half(window: dict[str, Any], axis: int) -> dict[str, Any]:
    """Return the window of a kernel that only reaches along *axis* of two."""
    found = dict(window)
    for name in ("strides", "dilations"):
        found[name] = [one if index == axis else 1 for index, one in enumerate(window[name])]
    if "pads" in window:
        found["pads"] = [one if index % 2 == axis else 0 for index, one in enumerate(window["pads"])]
    return found


def _as(weight: oir.Value, content: Matrix) -> Any:  # noqa: ANN401 - an array of the weight's own type
    tensor = constant_of(weight)
    assert tensor is not None
    return np.ascontiguousarray(content.astype(tensor.dtype.numpy()))
