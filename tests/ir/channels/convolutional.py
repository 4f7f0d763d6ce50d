"""Convolutional networks in miniature: each function returns a model and its feeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ir.channels.support import Built, Net, draw


def unet() -> Built:
    net = Net(17)
    x = net.input("x", ("batch", 3, "h", "w"))
    e1 = net.add("Relu", net.conv(net.add("Relu", net.conv(x, 16, 3)), 16, 16))
    p1 = net.add("MaxPool", e1, kernel_shape=[2, 2], strides=[2, 2])
    e2 = net.add("Relu", net.conv(p1, 32, 16))
    p2 = net.add("MaxPool", e2, kernel_shape=[2, 2], strides=[2, 2])
    b = net.add("Relu", net.conv(p2, 64, 32))
    u2 = net.add(
        "ConvTranspose", b, net.weight(64, 32, 2, 2), net.weight(32), strides=[2, 2], kernel_shape=[2, 2]
    )
    d2 = net.add("Relu", net.conv(net.add("Concat", u2, e2, axis=1), 32, 64))
    u1 = net.add(
        "ConvTranspose", d2, net.weight(32, 16, 2, 2), net.weight(16), strides=[2, 2], kernel_shape=[2, 2]
    )
    d1 = net.conv(net.add("Concat", u1, e1, axis=1), 4, 32)
    return (net.model(d1), {"x": draw(1, 3, 16, 24)}, [{"x": draw(2, 3, 8, 8)}])


def unet_resize() -> Built:
    """Resize to the size of the skip: sizes computed from Shape of both."""
    net = Net(13)
    x = net.input("x", ("batch", 3, "h", "w"))
    e1 = net.add("Relu", net.conv(x, 16, 3))
    p = net.add("MaxPool", e1, kernel_shape=[2, 2], strides=[2, 2])
    b = net.add("Relu", net.conv(p, 24, 16))
    sh = net.add("Slice", net.add("Shape", e1), net.constant([2]), net.constant([4]), net.constant([0]))
    bs = net.add("Slice", net.add("Shape", b), net.constant([0]), net.constant([2]), net.constant([0]))
    u = net.add("Resize", b, "", "", net.add("Concat", bs, sh, axis=0), mode="nearest")
    y = net.conv(net.add("Concat", u, e1, axis=1), 3, 40)
    return (net.model(y), {"x": draw(1, 3, 9, 12)}, [{"x": draw(2, 3, 8, 7)}])


def se() -> Built:
    net = Net(17)
    x = net.input("x", (1, 3, 8, 8))
    y = net.add("Relu", net.conv(x, 16, 3))
    y = net.add("Relu", net.conv(y, 16, 1, group=16))
    s = net.add("ReduceMean", y, axes=[2, 3], keepdims=1)
    s = net.add("Relu", net.conv(s, 4, 16, 1))
    s = net.add("Sigmoid", net.conv(s, 16, 4, 1))
    y = net.add("Mul", y, s)
    y = net.conv(y, 8, 16, 1)
    z = net.conv(net.add("Relu", net.conv(y, 24, 8)), 8, 24)
    y = net.add("Add", y, z)
    g = net.add("Flatten", net.add("GlobalAveragePool", y))
    return (net.model(net.add("Gemm", g, net.weight(8, 5), net.weight(5))), {"x": draw(1, 3, 8, 8)}, [])


def shuffle() -> Built:
    net = Net(11)
    x = net.input("x", ("batch", 3, 8, 8))
    y = net.add("Relu", net.conv(x, 24, 3, 1))
    for _ in range(2):
        z = net.add("Relu", net.conv(y, 24, 6, 1, group=4))
        sh = net.add("Shape", z)

        def dim(i: Any, sh: Any = sh) -> Any:
            return net.add("Unsqueeze", net.add("Gather", sh, net.constant(np.int64(i)), axis=0), axes=[0])

        z = net.add("Reshape", z, net.add("Concat", dim(0), net.constant([4, 6]), dim(2), dim(3), axis=0))
        z = net.add("Transpose", z, perm=[0, 2, 1, 3, 4])
        z = net.add("Reshape", z, net.add("Concat", dim(0), net.constant([-1]), dim(2), dim(3), axis=0))
        z = net.conv(z, 24, 1, 3, group=24)
        z = net.conv(z, 24, 6, 1, group=4)
        y = net.add("Relu", net.add("Add", y, z))
    g = net.add("Flatten", net.add("GlobalAveragePool", y))
    return (
        net.model(net.add("Gemm", g, net.weight(24, 5), net.weight(5))),
        {"x": draw(2, 3, 8, 8)},
        [{"x": draw(1, 3, 8, 8)}],
    )


def resnext() -> Built:
    net = Net(17)
    x = net.input("x", (1, 3, 8, 8))
    y = net.conv(x, 16, 3)
    z = net.add("Relu", net.conv(y, 32, 16, 1))
    z = net.add("Relu", net.conv(z, 32, 4, 3, group=8))
    z = net.conv(z, 16, 32, 1)
    y = net.add("Relu", net.add("Add", y, z))
    z = net.conv(y, 32, 1, 3, group=16)
    y = net.conv(net.add("Relu", z), 4, 32, 1)
    return (net.model(y), {"x": draw(1, 3, 8, 8)}, [])


def inception() -> Built:
    net = Net(17)
    x = net.input("x", (1, 3, 12, 12))
    y = net.add("Relu", net.conv(x, 16, 3))
    b1 = net.conv(y, 8, 16, 1)
    b2 = net.conv(net.add("Relu", net.conv(y, 6, 16, 1)), 12, 6, 3)
    b3 = net.add("AveragePool", y, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    b3 = net.conv(b3, 5, 16, 1)
    y = net.add("Concat", b1, b2, b3, y, axis=1)
    s = net.add(
        "BatchNormalization",
        y,
        *[net.weight(41), net.weight(41), net.weight(41), net.constant(np.abs(draw(41)) + 0.1)],
    )
    a, b = net.add("Split", s, net.constant([20, 21]), outputs=2, axis=1)
    y = net.add("Concat", net.conv(a, 7, 20), net.conv(b, 9, 21), axis=1)
    y = net.add("Relu", y)
    y = net.add("GlobalAveragePool", y)
    y = net.add("Squeeze", y, net.constant([2, 3]))
    return (net.model(net.linear(y, 4, 16)), {"x": draw(1, 3, 12, 12)}, [])


def groupnorm(*, native: bool = False) -> Built:
    net = Net(21 if native else 17)
    x = net.input("x", (1, 3, 8, 8))
    y = net.conv(x, 16, 3)
    if native:
        z = net.add("GroupNormalization", y, net.weight(16), net.weight(16), num_groups=4)
    else:
        sh = net.add("Shape", y)
        z = net.add("Reshape", y, net.constant([0, 4, -1]))
        z = net.add(
            "InstanceNormalization",
            z,
            net.constant(np.ones(4, np.float32)),
            net.constant(np.zeros(4, np.float32)),
        )
        z = net.add("Reshape", z, sh)
        z = net.add("Add", net.add("Mul", z, net.weight(16, 1, 1)), net.weight(16, 1, 1))
    y = net.conv(net.add("Relu", net.conv(net.add("Relu", z), 12, 16)), 5, 12)
    return (net.model(y), {"x": draw(1, 3, 8, 8)}, [])


def shared() -> Built:
    net = Net(17)
    x = net.input("x", (1, 16, 8, 8))
    w = net.weight(64, 16, 3, 3, name="w1")
    a = net.add("Relu", net.add("Conv", x, w, pads=[1] * 4))
    b = net.conv(a, 16, 64)
    flag = net.add("Relu", net.add("Conv", b, w, pads=[1] * 4))
    y = net.conv(flag, 5, 64)
    return (net.model(y), {"x": draw(1, 16, 8, 8)}, [])


def opset_9() -> Built:
    net = Net(9)
    x = net.input("x", (1, 3, 8, 8))
    y = net.add("Relu", net.conv(x, 16, 3))
    a = net.add("Slice", y, starts=[0], ends=[8], axes=[1])
    b = net.add("Slice", y, starts=[8], ends=[2**31 - 1], axes=[1])
    y = net.add("Concat", b, a, axis=1)
    y = net.add("Clip", y, min=0.0, max=6.0)
    y = net.add("Pad", y, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    y = net.conv(y, 8, 16)
    p, q = net.add("Split", y, outputs=2, axis=1, split=[3, 5])
    y = net.add("Concat", q, p, axis=1)
    y = net.add("Upsample", y, net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    y = net.add("Squeeze", net.add("GlobalAveragePool", y), axes=[2, 3])
    return (net.model(net.add("Gemm", y, net.weight(8, 4), net.weight(4))), {"x": draw(1, 3, 8, 8)}, [])


def pads_channels() -> Built:
    net = Net(17)
    x = net.input("x", (1, 3, 8, 8))
    y = net.add("Relu", net.conv(x, 8, 3))
    p = net.add("Pad", y, net.constant([0, 4, 0, 0, 0, 4, 0, 0]), net.constant(np.float32(0)))
    z = net.conv(y, 16, 8)
    y = net.add("Relu", net.add("Add", p, z))
    y = net.conv(y, 5, 16)
    return (net.model(y), {"x": draw(1, 3, 8, 8)}, [])


def flips() -> Built:
    net = Net(17)
    x = net.input("x", (1, 3, 8, 8))
    y = net.conv(x, 12, 3)
    a = net.add(
        "Slice", y, net.constant([-1]), net.constant([-(2**62)]), net.constant([1]), net.constant([-1])
    )
    b = net.add("Slice", y, net.constant([0]), net.constant([2**62]), net.constant([1]), net.constant([2]))
    flag = net.add("Gather", y, net.constant(np.array([3, 1, 4, 1, 5], np.int64)), axis=1)
    z = net.add("Concat", a, b, flag, net.add("Tile", b, net.constant([1, 2, 1, 1])), axis=1)
    return (net.model(net.conv(z, 4, 12 + 6 + 5 + 12)), {"x": draw(1, 3, 8, 8)}, [])
