"""Recurrence, bodies and functions in miniature: each function returns a model, a feed, and other feeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.ir.channels.support import Built, Net, draw


def recurrent(kind: str = "LSTM", direction: str = "bidirectional", *, reset_first: bool = False) -> Built:
    net = Net(17)
    x = net.input("x", (6, "batch", 8))
    g = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    y = x
    flag = 8
    dirs = 2 if direction == "bidirectional" else 1
    for hdim in (6, 5):
        sh = net.add("Shape", y)
        b = net.add("Slice", sh, net.constant([1]), net.constant([2]), net.constant([0]))
        z = net.add(
            "ConstantOfShape",
            net.add("Concat", net.constant([dirs]), b, net.constant([hdim]), axis=0),
            value=helper.make_tensor("v", 1, [1], [0.0]),
        )
        extra = [z] if kind != "LSTM" else [z, z]
        kw = {"linear_before_reset": 1} if reset_first else {}
        y = net.add(
            kind,
            y,
            net.weight(dirs, g * hdim, flag),
            net.weight(dirs, g * hdim, hdim),
            net.weight(dirs, 2 * g * hdim),
            "",
            *extra,
            outputs=[f"{kind}_{hdim}", ""],
            hidden_size=hdim,
            direction=direction,
            **kw,
        )[0]
        y = net.add("Reshape", net.add("Transpose", y, perm=[0, 2, 1, 3]), net.constant([0, 0, -1]))
        flag = dirs * hdim
    return (net.model(net.linear(y, 4, flag)), {"x": draw(6, 2, 8)}, [{"x": draw(6, 1, 8)}])


def if_capture() -> Built:
    net = Net(17)
    x = net.input("x", (1, 3, 8, 8))
    flag = net.input("flag", (), TensorProto.BOOL)
    y = net.add("Relu", net.conv(x, 16, 3))

    def branch(name: Any, k: Any) -> Any:
        w = helper.make_tensor(name + "w", 1, [6, 16, k, k], draw(6, 16, k, k).ravel())
        return helper.make_graph(
            [
                helper.make_node(
                    "Conv", [y, name + "w"], [name + "o"], pads=[k // 2] * 4, name=name + "conv"
                ),
                helper.make_node("Relu", [name + "o"], [name + "r"]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(name + "r", 1, None)],
            [w],
        )

    z = net.add("If", flag, then_branch=branch("t", 3), else_branch=branch("e", 1))
    o = net.conv(z, 4, 6)
    return (
        net.model(o),
        {"x": draw(1, 3, 8, 8), "flag": np.array([True]).reshape(())},
        [{"x": draw(1, 3, 8, 8), "flag": np.array([False]).reshape(())}],
    )


def loop() -> Built:
    net = Net(17)
    x = net.input("x", (2, 8))
    h = net.linear(x, 12, 8)
    w, w2 = (net.weight(12, 10), net.weight(10, 12))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", w], ["m"]),
            helper.make_node("Relu", ["m"], ["r"]),
            helper.make_node("MatMul", ["r", w2], ["m2"]),
            helper.make_node("Add", ["m2", "s"], ["s2"]),
            helper.make_node("Identity", ["cc"], ["cc2"]),
            helper.make_node("Tanh", ["s2"], ["s3"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("cc", 9, []),
            helper.make_tensor_value_info("s", 1, [2, 12]),
        ],
        [helper.make_tensor_value_info("cc2", 9, []), helper.make_tensor_value_info("s3", 1, [2, 12])],
    )
    z = net.add("Loop", net.constant(np.int64(3)), "", h, body=body)
    return (net.model(net.linear(z, 4, 12)), {"x": draw(2, 8)}, [])


def scan() -> Built:
    net = Net(17)
    x = net.input("x", (5, 2, 8))
    h = net.linear(x, 12, 8)
    s0 = net.constant(np.zeros((2, 6), np.float32))
    w, u = (net.weight(12, 6), net.weight(6, 6))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["xt", w], ["a"]),
            helper.make_node("MatMul", ["s", u], ["b"]),
            helper.make_node("Add", ["a", "b"], ["ab"]),
            helper.make_node("Tanh", ["ab"], ["s2"]),
            helper.make_node("Identity", ["s2"], ["y"]),
        ],
        "body",
        [helper.make_tensor_value_info("s", 1, [2, 6]), helper.make_tensor_value_info("xt", 1, [2, 12])],
        [helper.make_tensor_value_info("s2", 1, [2, 6]), helper.make_tensor_value_info("y", 1, [2, 6])],
    )
    _, y = net.add("Scan", s0, h, outputs=2, body=body, num_scan_inputs=1)
    return (net.model(net.linear(y, 4, 6)), {"x": draw(5, 2, 8)}, [])


def function_call() -> Built:
    f = helper.make_function(
        "loc",
        "Block",
        ["X", "W", "B"],
        ["Y"],
        [
            helper.make_node("MatMul", ["X", "W"], ["m"]),
            helper.make_node("Add", ["m", "B"], ["a"]),
            helper.make_node("Relu", ["a"], ["Y"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    net = Net(17)
    x = net.input("x", (2, 8))
    y = net.add("Block", x, net.weight(8, 12), net.weight(12), domain="loc")
    y = net.add("Block", y, net.weight(12, 10), net.weight(10), domain="loc")
    return (net.model(net.linear(y, 4, 10), functions=[f]), {"x": draw(2, 8)}, [])
