"""Put the factors into the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.dead import remove_unread
from graphopt.ir.rewrite import add_initializer, attribute, input_at, is_op, make_node, replace_node
from graphopt.ir.tensors import constant_of

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir.model import Model
    from graphopt.ir.spill import Spill
    from graphopt.passes.lowrank.forms import Factors, Form
    from graphopt.recover.linear import Linear
    from graphopt.recover.moments import Matrix


@dataclass(frozen=True, slots=True)
class Fitted:
    """What takes the place of one weight.

    Attributes:
        linear: The operator.
        form: The form that its weight takes; None where it stays whole.
        kernels: The weights, in the order of execution, as the model stores them.
        bias: [m], or None where the bias stays as it is.
    """

    linear: Linear
    form: Form | None
    kernels: tuple[oir.TensorProtocol, ...]
    bias: Matrix | None


def whole(linear: Linear, weight: Matrix, bias: Matrix | None, spill: Spill) -> Fitted:
    """Return another *weight* [m, d] for *linear*, put aside."""
    return Fitted(linear, None, (_kept(linear, linear.stored(weight), spill, ""),), bias)


def factorised(linear: Linear, factors: Factors, bias: Matrix | None, spill: Spill) -> Fitted:
    """Return *factors* as the weights of the operators that stand for *linear*, put aside."""
    last = factors.last
    if is_op(linear.node, "Conv"):
        q, m = last.shape[1], last.shape[0]
        if factors.form == "thin":
            contents = [factors.features.reshape(q, -1, *linear.kernel)]
        else:
            contents = list(factors.parts)
        if factors.form == "spatial":
            width = linear.kernel[1]
            contents.append(last.reshape(m, q // width, 1, width))
        else:
            contents.append(last.reshape(m, q, *[1] * len(linear.kernel)))
        suffixes = ["_inner"] if len(contents) == 2 else ["_inner1", "_inner2"]
    else:
        contents = [factors.features.T, linear.stored(last)]
        suffixes = ["_inner"]
    kernels = [
        _kept(linear, content, spill, suffix)
        for content, suffix in zip(contents, [*suffixes, "_outer"], strict=True)
    ]
    return Fitted(linear, factors.form, tuple(kernels), bias)


def _kept(linear: Linear, content: Any, spill: Spill, suffix: str) -> oir.TensorProtocol:  # noqa: ANN401 - an array
    weight = linear.node.inputs[1]
    assert weight is not None
    tensor = constant_of(weight)
    assert tensor is not None
    array = np.ascontiguousarray(content.astype(tensor.dtype.numpy()))
    return spill.keep(array, tensor, f"{weight.name}{suffix}")


def put(model: Model, fitted: Fitted) -> None:
    """Let *fitted* take the place of what its operator computes; the output keeps its name."""
    linear = fitted.linear
    if fitted.form is None:
        linear.write(model, fitted.kernels[0], fitted.bias)
    elif is_op(linear.node, "Conv"):
        _put_convs(model, fitted)
    else:
        _put_matrix(model, fitted)


def _put_matrix(model: Model, fitted: Fitted) -> None:
    """Write x W^T as (x A^T) B^T: a MatMul in front, and the operator itself with B as its weight."""
    linear = fitted.linear
    node, graph = linear.node, linear.node.graph
    assert graph is not None
    weight = node.inputs[1]
    assert weight is not None
    inner = add_initializer(model, graph, f"{weight.name}_inner", fitted.kernels[0])
    before = make_node(
        model, "MatMul", [node.inputs[0], inner], name=f"{node.name or linear.output}_inner", replaces=[node]
    )
    graph.insert_before(node, before)
    node.replace_input_with(0, before.outputs[0])
    linear.write(model, fitted.kernels[1], fitted.bias)


def _put_convs(model: Model, fitted: Fitted) -> None:
    linear = fitted.linear
    node, graph = linear.node, linear.node.graph
    assert graph is not None
    old_weight, old_bias = node.inputs[1], input_at(node, 2)
    assert old_weight is not None
    name = node.name or linear.output
    window = _window(node, len(linear.kernel))
    one = {"kernel_shape": [1] * len(linear.kernel)}
    whole_window = {**window, "kernel_shape": list(linear.kernel)}
    attributes: list[dict[str, Any]]
    if fitted.form == "thin":
        attributes = [whole_window, one]
    elif fitted.form == "spatial":
        height, width = linear.kernel
        attributes = [
            {**_half(window, 0), "kernel_shape": [height, 1]},
            {**_half(window, 1), "kernel_shape": [1, width]},
        ]
    else:
        attributes = [one, whole_window, one]
    value = node.inputs[0]
    for number, (kernel, how) in enumerate(zip(fitted.kernels[:-1], attributes[:-1], strict=True)):
        suffix = "inner" if len(attributes) == 2 else f"inner{number + 1}"
        weight = add_initializer(model, graph, f"{old_weight.name}_{suffix}", kernel)
        conv = make_node(
            model, "Conv", [value, weight], attributes=how, name=f"{name}_{suffix}", replaces=[node]
        )
        graph.insert_before(node, conv)
        value = conv.outputs[0]
    weight = add_initializer(model, graph, f"{old_weight.name}_outer", fitted.kernels[-1])
    inputs: list[oir.Value | None] = [value, weight]
    if fitted.bias is not None and (old_bias is not None or fitted.bias.any()):
        hint = f"{name}_bias" if old_bias is None else old_bias.name or "bias"
        inputs.append(add_initializer(model, graph, hint, _as(old_weight, fitted.bias)))
    elif old_bias is not None:
        inputs.append(old_bias)
    new = make_node(model, "Conv", inputs, attributes=attributes[-1], name=f"{name}_outer", replaces=[node])
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
