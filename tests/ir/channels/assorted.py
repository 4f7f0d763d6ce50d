"""More networks in miniature, by construction: each function returns a model and its feeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.ir.channels.support import Built, Net, draw


def gated() -> Built:
    net = Net()
    x = net.input("x", ("b", 8, "t"))
    y = net.add("Conv", x, net.weight(32, 8, 3), net.weight(32), pads=[1, 1])
    a, b = net.add("Split", y, net.constant([16, 16]), outputs=2, axis=1)
    y = net.add("Mul", a, net.add("Sigmoid", b))
    y = net.add("Conv", y, net.weight(16, 1, 5), group=16, pads=[2, 2])
    y = net.add(
        "BatchNormalization",
        y,
        net.weight(16),
        net.weight(16),
        net.weight(16),
        net.constant(np.abs(draw(16)) + 0.1),
    )
    y = net.add("Conv", y, net.weight(6, 16, 1))
    return (net.model(y), {"x": draw(2, 8, 9)}, [{"x": draw(1, 8, 4)}])


def pixel_shuffle() -> Built:
    net = Net()
    x = net.input("x", ("b", 3, "h", "w"))
    y = net.conv(x, 24, 3)
    sh = net.add("Shape", y)

    def d(i: Any) -> Any:
        return net.add("Slice", sh, net.constant([i]), net.constant([i + 1]))

    y = net.add("Reshape", y, net.add("Concat", d(0), net.constant([6, 2, 2]), d(2), d(3), axis=0))
    y = net.add("Transpose", y, perm=[0, 1, 4, 2, 5, 3])
    y = net.add(
        "Reshape",
        y,
        net.add(
            "Concat",
            d(0),
            net.constant([6]),
            net.add("Mul", d(2), net.constant([2])),
            net.add("Mul", d(3), net.constant([2])),
            axis=0,
        ),
    )
    return (net.model(net.conv(y, 3, 6)), {"x": draw(2, 3, 6, 8)}, [{"x": draw(1, 3, 4, 4)}])


def weight_norm() -> Built:
    net = Net()
    x = net.input("x", (1, 3, 8, 8))
    v = net.weight(12, 3, 3, 3)
    nrm = net.add("ReduceL2", v, axes=[1, 2, 3], keepdims=1)
    w = net.add("Mul", net.add("Div", v, nrm), net.weight(12, 1, 1, 1))
    y = net.add("Relu", net.add("Conv", x, w, pads=[1] * 4))
    return (net.model(net.conv(y, 4, 12)), {"x": draw(1, 3, 8, 8)}, [])


def yolo() -> Built:
    net = Net(11)
    x = net.input("x", (1, 3, 16, 16))
    s = [
        net.add(
            "Slice",
            x,
            net.constant([i, j]),
            net.constant([2**31 - 1] * 2),
            net.constant([2, 3]),
            net.constant([2, 2]),
        )
        for i in (0, 1)
        for j in (0, 1)
    ]
    y = net.add("Concat", *s, axis=1)
    y = net.conv(y, 16, 12)
    a = net.conv(y, 8, 16, 1)
    b = net.conv(y, 8, 16, 1)
    a = net.add("Add", a, net.conv(net.conv(a, 8, 8, 1), 8, 8))
    y = net.add("Concat", a, b, axis=1)
    y = net.conv(y, 16, 16, 1)
    z = net.conv(y, 8, 16, 1)
    ps = [net.add("MaxPool", z, kernel_shape=[k, k], strides=[1, 1], pads=[k // 2] * 4) for k in (3, 5)]
    y = net.conv(net.add("Concat", z, *ps, axis=1), 12, 24, 1)
    u = net.add(
        "Resize",
        y,
        net.constant(np.zeros(0, np.float32)),
        net.constant(np.array([1, 1, 2, 2], np.float32)),
        mode="nearest",
    )
    o = net.conv(u, 21, 12, 1)
    o = net.add("Reshape", o, net.constant([1, 3, 7, 16, 16]))
    o = net.add("Transpose", o, perm=[0, 1, 3, 4, 2])
    return (net.model(net.add("Sigmoid", o)), {"x": draw(1, 3, 16, 16)}, [])


def cross_attention() -> Built:
    """torch MHA: [S, B, C] -> [S, B*H, D] -> T, dynamic batch, cross attention."""
    net = Net()
    width, heads_count, size = (24, 3, 8)
    q0 = net.input("q", (5, "b", width))
    m0 = net.input("m", (9, "b", width))
    q0 = net.linear(q0, width, width)
    m = net.linear(m0, width, width)
    b = net.add("Slice", net.add("Shape", m), net.constant([1]), net.constant([2]))
    bh = net.add("Mul", b, net.constant([heads_count]))

    def hd(t: Any, s: Any) -> Any:
        return net.add(
            "Transpose",
            net.add("Reshape", t, net.add("Concat", net.constant([s]), bh, net.constant([size]), axis=0)),
            perm=[1, 0, 2],
        )

    q, k, v = (
        hd(net.linear(q0, width, width), 5),
        hd(net.linear(m, width, width), 9),
        hd(net.linear(m, width, width), 9),
    )
    a = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1])), axis=-1)
    o = net.add("Transpose", net.add("MatMul", a, v), perm=[1, 0, 2])
    o = net.add("Reshape", o, net.add("Concat", net.constant([5]), b, net.constant([width]), axis=0))
    return (
        net.model(net.linear(net.add("Add", q0, net.linear(o, width, width)), 4, width)),
        {"q": draw(5, 2, width), "m": draw(9, 2, width)},
        [{"q": draw(5, 1, width), "m": draw(9, 1, width)}],
    )


def cached_decoder() -> Built:
    net = Net()
    width, heads_count, size = (24, 3, 8)
    x = net.input("x", ("b", 1, width))
    pk = net.input("pk", ("b", heads_count, "past", size))
    pv = net.input("pv", ("b", heads_count, "past", size))

    def hd(t: Any) -> Any:
        return net.add(
            "Transpose", net.add("Reshape", t, net.constant([0, 0, heads_count, size])), perm=[0, 2, 1, 3]
        )

    q, k, v = (
        hd(net.linear(x, width, width)),
        hd(net.linear(x, width, width)),
        hd(net.linear(x, width, width)),
    )
    k = net.add("Concat", pk, k, axis=2)
    v = net.add("Concat", pv, v, axis=2)
    a = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    o = net.add(
        "Reshape",
        net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3]),
        net.constant([0, 0, width]),
    )
    y = net.linear(o, width, width)
    y = net.linear(net.add("Relu", net.linear(y, 40, width)), 5, 40)
    return (
        net.model(y, k, v),
        {"x": draw(2, 1, width), "pk": draw(2, heads_count, 4, size), "pv": draw(2, heads_count, 4, size)},
        [],
    )


def volumes() -> Built:
    net = Net()
    x = net.input("x", (1, 2, 4, 6, 6))
    y = net.add("Relu", net.add("Conv", x, net.weight(8, 2, 3, 3, 3), net.weight(8), pads=[1] * 6))
    y = net.add("ConvTranspose", y, net.weight(8, 1, 2, 2, 2), group=8, strides=[2, 2, 2])
    y = net.add("MaxPool", y, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    y = net.add("Conv", y, net.weight(3, 8, 1, 1, 1))
    return (net.model(y), {"x": draw(1, 2, 4, 6, 6)}, [])


def spatial_attention() -> Built:
    net = Net()
    x = net.input("x", (1, 3, 8, 8))
    y = net.conv(x, 16, 3)
    a = net.add("GlobalAveragePool", y)
    m = net.add("GlobalMaxPool", y)
    w1, w2 = (net.weight(4, 16, 1, 1), net.weight(16, 4, 1, 1))

    def f(t: Any) -> Any:
        return net.add("Conv", net.add("Relu", net.add("Conv", t, w1)), w2)

    y = net.add("Mul", y, net.add("Sigmoid", net.add("Add", f(a), f(m))))
    s = net.add("Concat", net.add("ReduceMean", y, axes=[1]), net.add("ReduceMax", y, axes=[1]), axis=1)
    y = net.add("Mul", y, net.add("Sigmoid", net.conv(s, 1, 2, 7)))
    return (net.model(net.conv(net.conv(y, 10, 16), 4, 10)), {"x": draw(1, 3, 8, 8)}, [])


def channels_last() -> Built:
    net = Net()
    x = net.input("x", ("b", 8, 8, 3))
    y = net.add("Transpose", x, perm=[0, 3, 1, 2])
    y = net.conv(y, 12, 3)
    y = net.add("Transpose", y, perm=[0, 2, 3, 1])
    y = net.add("Add", net.add("Mul", y, net.weight(12)), net.weight(12))
    y = net.add("Relu", y)
    y = net.add("Transpose", y, perm=[0, 3, 1, 2])
    y = net.conv(y, 10, 12)
    y = net.add("ReduceMean", net.add("Transpose", y, perm=[0, 2, 3, 1]), axes=[1, 2], keepdims=0)
    y = net.add("MatMul", y, net.weight(10, 4))
    return (net.model(net.add("Softmax", y)), {"x": draw(2, 8, 8, 3)}, [{"x": draw(1, 8, 8, 3)}])


def excitation_by_reshape() -> Built:
    net = Net()
    x = net.input("x", ("b", 3, 8, 8))
    y = net.conv(x, 16, 3)
    s = net.add("Flatten", net.add("GlobalAveragePool", y))
    s = net.add("Sigmoid", net.linear(net.add("Relu", net.linear(s, 6, 16)), 16, 6))
    sh = net.add("Shape", y)
    bc = net.add("Slice", sh, net.constant([0]), net.constant([2]))
    s = net.add("Reshape", s, net.add("Concat", bc, net.constant([1, 1]), axis=0))
    y = net.add("Mul", y, net.add("Expand", s, sh))
    return (net.model(net.conv(y, 4, 16)), {"x": draw(2, 3, 8, 8)}, [{"x": draw(1, 3, 8, 8)}])


def conformer() -> Built:
    net = Net()
    x = net.input("x", ("b", "t", 16))
    h = net.linear(x, 16, 16)
    y = net.add("Transpose", h, perm=[0, 2, 1])
    y = net.add("Conv", y, net.weight(48, 16, 1), net.weight(48))
    a, b = net.add("Split", y, net.constant([24, 24]), outputs=2, axis=1)
    y = net.add("Mul", a, net.add("Sigmoid", b))
    y = net.add("Conv", y, net.weight(24, 1, 3), net.weight(24), group=24, pads=[1, 1])
    y = net.add("Mul", y, net.add("Sigmoid", y))
    y = net.add("Conv", y, net.weight(16, 24, 1))
    y = net.add("Transpose", y, perm=[0, 2, 1])
    return (
        net.model(net.linear(net.add("Add", h, y), 5, 16)),
        {"x": draw(2, 7, 16)},
        [{"x": draw(1, 3, 16)}],
    )


def sequence_lengths() -> Built:
    net = Net(14)
    x = net.input("x", ("b", 6, 8))
    net.add(
        "LSTM",
        net.add("Transpose", x, perm=[1, 0, 2]),
        net.weight(1, 24, 8),
        net.weight(1, 24, 6),
        net.weight(1, 48),
        net.input("len", ("b",), 6),
        outputs=["yy", "yh", "yc"],
        hidden_size=6,
    )
    y = net.add("Transpose", net.add("Squeeze", "yy", net.constant([1])), perm=[1, 0, 2])
    h = net.add("Squeeze", "yh", net.constant([0]))
    return (
        net.model(net.linear(y, 4, 6), net.linear(h, 3, 6)),
        {"x": draw(2, 6, 8), "len": np.array([6, 4], np.int32)},
        [],
    )


def gathered() -> Built:
    net = Net()
    x = net.input("x", ("b", 5, 8))
    h = net.add("Relu", net.linear(x, 12, 8))
    i = net.input("i", ("b",), TensorProto.INT64)
    y = net.add("GatherND", h, net.add("Unsqueeze", i, net.constant([1])), batch_dims=1)
    y2 = net.add("Reshape", h, net.constant([0, -1]))
    return (
        net.model(net.linear(y, 4, 12), net.add("Gemm", y2, net.weight(60, 3), net.weight(3))),
        {"x": draw(2, 5, 8), "i": np.array([1, 3])},
        [],
    )


def normalised_embedding() -> Built:
    net = Net()
    x = net.input("x", ("b", 3, 8, 8))
    y = net.conv(x, 8, 3)
    for _ in range(3):
        z = net.add(
            "Relu",
            net.add(
                "BatchNormalization",
                y,
                net.weight(8),
                net.weight(8),
                net.weight(8),
                net.constant(np.abs(draw(8)) + 0.1),
            ),
        )
        y = net.add("Add", y, net.conv(net.add("Relu", net.conv(z, 6, 8)), 8, 6))
    y = net.add("ReduceMean", y, axes=[-1, -2], keepdims=0)
    y = net.add(
        "Div",
        y,
        net.add("Clip", net.add("ReduceL2", y, axes=[1], keepdims=1), net.constant(np.float32(1e-05))),
    )
    return (net.model(net.add("MatMul", y, net.weight(8, 4))), {"x": draw(2, 3, 8, 8)}, [])
