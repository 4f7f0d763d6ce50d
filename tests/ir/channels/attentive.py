"""Transformers in miniature: each function returns a model and its feeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.ir.channels.support import GENERATOR, Built, Net, draw, normalised


def gpt2() -> Built:
    """Fused qkv and Split, shapes computed from Shape, open batch and sequence, tied embedding and head."""
    net = Net(17)
    ids = net.input("ids", ("batch", "seq"), TensorProto.INT64)
    width, heads_count, size, vocabulary = (32, 4, 8, 50)
    wte = net.weight(vocabulary, width, name="wte")
    x = net.add("Gather", wte, ids)
    shp = net.add("Shape", x)

    def dim(i: Any) -> Any:
        return net.add(
            "Unsqueeze", net.add("Gather", shp, net.constant(np.int64(i)), axis=0), net.constant([0])
        )

    pos = net.add(
        "Gather",
        net.weight(64, width, name="wpe"),
        net.add(
            "Range",
            net.constant(np.int64(0)),
            net.add("Squeeze", dim(1), net.constant([0])),
            net.constant(np.int64(1)),
        ),
    )
    x = net.add("Add", x, pos)
    for layer in range(2):
        h = normalised(net, x, width)
        qkv = net.add(
            "Gemm",
            net.add("Reshape", h, net.constant([-1, width])),
            net.weight(width, 3 * width),
            net.weight(3 * width),
        )
        qkv = net.add("Reshape", qkv, net.add("Concat", dim(0), dim(1), net.constant([3 * width]), axis=0))
        q, k, v = net.add("Split", qkv, net.constant([width, width, width]), outputs=3, axis=2)

        def heads(t: Any) -> Any:
            s = net.add("Concat", dim(0), dim(1), net.constant([heads_count]), net.constant([size]), axis=0)
            return net.add("Transpose", net.add("Reshape", t, s), perm=[0, 2, 1, 3])

        q, k, v = map(heads, (q, k, v))
        a = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
        d = net.add(
            "Sqrt",
            net.add("Cast", net.add("Gather", net.add("Shape", v), net.constant(np.int64(-1)), axis=0), to=1),
        )
        a = net.add("Div", a, d)
        m = net.add(
            "Slice",
            net.constant(np.tril(np.ones((1, 1, 64, 64), bool)), f"mask{layer}"),
            net.constant([0, 0]),
            net.add("Concat", dim(1), dim(1), axis=0),
            net.constant([2, 3]),
        )
        a = net.add("Where", m, a, net.constant(np.float32(-1000000000.0)))
        a = net.add("Softmax", a, axis=-1)
        o = net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3])
        o = net.add("Reshape", o, net.add("Concat", dim(0), dim(1), net.constant([width]), axis=0))
        x = net.add("Add", x, net.linear(o, width, width))
        h = normalised(net, x, width)
        x = net.add("Add", x, net.linear(net.add("Relu", net.linear(h, 64, width)), width, 64))
    x = normalised(net, x, width)
    out = net.add("MatMul", x, net.add("Transpose", "wte", perm=[1, 0]))

    def mk(b: Any, s: Any) -> Any:
        return {"ids": GENERATOR.integers(0, vocabulary, (b, s)).astype(np.int64)}

    return (net.model(out), mk(2, 5), [mk(1, 9), mk(3, 2)])


def whisper() -> Built:
    net = Net(17)
    x = net.input("mel", (1, 8, 30))
    width, heads_count, size = (24, 3, 8)
    y = net.add("Relu", net.add("Conv", x, net.weight(width, 8, 3), net.weight(width), pads=[1, 1]))
    y = net.add(
        "Relu", net.add("Conv", y, net.weight(width, width, 3), net.weight(width), pads=[1, 1], strides=[2])
    )
    y = net.add("Transpose", y, perm=[0, 2, 1])
    y = net.add("Add", y, net.weight(15, width))
    h = normalised(net, y, width)
    q = net.add("Mul", net.linear(h, width, width), net.constant(np.float32(size ** (-0.5))))
    k = net.add("MatMul", h, net.weight(width, width))
    v = net.linear(h, width, width)

    def hd(t: Any) -> Any:
        return net.add(
            "Reshape",
            net.add(
                "Transpose",
                net.add("Reshape", t, net.constant([1, -1, heads_count, size])),
                perm=[0, 2, 1, 3],
            ),
            net.constant([heads_count, -1, size]),
        )

    q, k, v = map(hd, (q, k, v))
    a = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1])), axis=-1)
    o = net.add("MatMul", a, v)
    o = net.add("Reshape", o, net.constant([1, heads_count, 15, size]))
    o = net.add("Reshape", net.add("Transpose", o, perm=[0, 2, 1, 3]), net.constant([1, 15, width]))
    y = net.add("Add", y, net.linear(o, width, width))
    h = normalised(net, y, width)
    y = net.add("Add", y, net.linear(net.add("Erf", net.linear(h, 48, width)), width, 48))
    return (net.model(net.linear(y, 6, width)), {"mel": draw(1, 8, 30)}, [])


def vit_fused() -> Built:
    """timm: qkv Linear, Reshape [B,N,3,H,D], Transpose [2,0,3,1,4], Gather 0/1/2."""
    net = Net(17)
    x = net.input("x", ("batch", 3, 16, 16))
    width, heads_count, size = (24, 3, 8)
    y = net.add("Conv", x, net.weight(width, 3, 4, 4), net.weight(width), strides=[4, 4], kernel_shape=[4, 4])
    sh = net.add("Shape", y)
    b = net.add("Slice", sh, net.constant([0]), net.constant([1]), net.constant([0]))
    y = net.add("Reshape", y, net.add("Concat", b, net.constant([width]), net.constant([-1]), axis=0))
    y = net.add("Transpose", y, perm=[0, 2, 1])
    cls = net.add(
        "Expand",
        net.weight(1, 1, width),
        net.add("Concat", b, net.constant([1]), net.constant([width]), axis=0),
    )
    y = net.add("Concat", cls, y, axis=1)
    y = net.add("Add", y, net.weight(1, 17, width))
    for _ in range(2):
        h = normalised(net, y, width)
        qkv = net.linear(h, 3 * width, width)
        s2 = net.add("Shape", h)

        def d(i: Any, s2: Any = s2) -> Any:
            return net.add(
                "Unsqueeze", net.add("Gather", s2, net.constant(np.int64(i)), axis=0), net.constant([0])
            )

        hd = net.add("Div", d(2), net.constant([heads_count]))
        qkv = net.add(
            "Reshape",
            qkv,
            net.add("Concat", d(0), d(1), net.constant([3]), net.constant([heads_count]), hd, axis=0),
        )
        qkv = net.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = [net.add("Gather", qkv, net.constant(np.int64(i)), axis=0) for i in range(3)]
        a = net.add(
            "MatMul",
            net.add("Mul", q, net.constant(np.float32(size ** (-0.5)))),
            net.add("Transpose", k, perm=[0, 1, 3, 2]),
        )
        a = net.add("Softmax", a, axis=-1)
        o = net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3])
        o = net.add("Reshape", o, net.add("Concat", d(0), d(1), d(2), axis=0))
        y = net.add("Add", y, net.add("Mul", net.linear(o, width, width), net.weight(width)))
        h = normalised(net, y, width)
        y = net.add("Add", y, net.linear(net.add("Erf", net.linear(h, 48, width)), width, 48))
    y = net.add("Gather", normalised(net, y, width), net.constant(np.int64(0)), axis=1)
    return (
        net.model(net.add("Gemm", y, net.weight(width, 5), net.weight(5))),
        {"x": draw(2, 3, 16, 16)},
        [{"x": draw(1, 3, 16, 16)}],
    )


def mobilevit() -> Built:
    net = Net(17)
    x = net.input("x", (1, 3, 16, 16))
    width = 16
    y = net.conv(x, 12, 3)
    z = net.conv(y, width, 12, 1)
    z = net.add("Reshape", z, net.constant([width * 8, 2, 8, 2]))
    z = net.add("Transpose", z, perm=[0, 2, 1, 3])
    z = net.add("Reshape", z, net.constant([1, width, 64, 4]))
    z = net.add("Transpose", z, perm=[0, 3, 2, 1])
    z = net.add("Reshape", z, net.constant([4, 64, width]))
    h = normalised(net, z, width)
    q, k, v = [
        net.add(
            "Transpose",
            net.add("Reshape", net.linear(h, width, width), net.constant([4, 64, 2, 8])),
            perm=[0, 2, 1, 3],
        )
        for _ in range(3)
    ]
    a = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    o = net.add(
        "Reshape",
        net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3]),
        net.constant([4, 64, width]),
    )
    z = net.add("Add", z, net.linear(o, width, width))
    z = net.add("Reshape", z, net.constant([1, 4, 64, width]))
    z = net.add("Transpose", z, perm=[0, 3, 2, 1])
    z = net.add("Reshape", z, net.constant([width * 8, 8, 2, 2]))
    z = net.add("Transpose", z, perm=[0, 2, 1, 3])
    z = net.add("Reshape", z, net.constant([1, width, 16, 16]))
    z = net.conv(z, 12, width, 1)
    y = net.conv(net.add("Concat", y, z, axis=1), 6, 24)
    return (net.model(y), {"x": draw(1, 3, 16, 16)}, [])


def levit() -> Built:
    """qkv with different sizes split after reshape per head; attention bias gathered; Hardswish."""
    net = Net(17)
    x = net.input("x", (2, 9, 24))
    heads_count, kd, vd = (3, 4, 8)
    h = net.linear(x, 24, 24)
    qkv = net.linear(h, heads_count * (2 * kd + vd), 24)
    qkv = net.add("Reshape", qkv, net.constant([2, 9, heads_count, 2 * kd + vd]))
    q, k, v = net.add("Split", qkv, net.constant([kd, kd, vd]), outputs=3, axis=3)
    q = net.add("Transpose", q, perm=[0, 2, 1, 3])
    k = net.add("Transpose", k, perm=[0, 2, 3, 1])
    v = net.add("Transpose", v, perm=[0, 2, 1, 3])
    bias = net.add(
        "Gather",
        net.weight(heads_count, 9),
        net.constant(GENERATOR.integers(0, 9, (9, 9)).astype(np.int64)),
        axis=1,
    )
    a = net.add("Softmax", net.add("Add", net.add("MatMul", q, k), bias), axis=-1)
    o = net.add(
        "Reshape", net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3]), net.constant([2, 9, -1])
    )
    o = net.add("HardSwish", o)
    y = net.add("Add", h, net.linear(o, 24, heads_count * vd))
    y = net.add("ReduceMean", y, axes=[1], keepdims=0)
    return (net.model(net.linear(y, 4, 24)), {"x": draw(2, 9, 24)}, [])


def attention23(*, gqa: bool = False, flat: bool = True) -> Built:
    net = Net(23)
    x = net.input("x", ("batch", 7, 24))
    width = 24
    heads_count, key_heads, size, value_size = (4, 2, 6, 5) if gqa else (3, 3, 8, 4)
    q = net.linear(x, heads_count * size, width)
    k = net.linear(x, key_heads * size, width)
    v = net.linear(x, key_heads * value_size, width)
    if flat:
        o = net.add("Attention", q, k, v, q_num_heads=heads_count, kv_num_heads=key_heads, is_causal=1)
    else:

        def hd(t: Any, h: Any, d: Any) -> Any:
            return net.add("Transpose", net.add("Reshape", t, net.constant([0, 0, h, d])), perm=[0, 2, 1, 3])

        o = net.add(
            "Attention",
            hd(q, heads_count, size),
            hd(k, key_heads, size),
            hd(v, key_heads, value_size),
            net.weight(1, heads_count, 7, 7),
        )
        o = net.add(
            "Reshape",
            net.add("Transpose", o, perm=[0, 2, 1, 3]),
            net.constant([0, 0, heads_count * value_size]),
        )
    return (
        net.model(net.linear(o, 5, heads_count * value_size)),
        {"x": draw(2, 7, 24)},
        [{"x": draw(1, 7, 24)}],
    )


def microsoft(kind: str) -> Built:
    net = Net(17)
    x = net.input("x", (2, 7, 32))
    width = 32
    if kind == "MultiHeadAttention":
        q, k, v = (net.linear(x, 32, width), net.linear(x, 32, width), net.linear(x, 24, width))
        o = net.add(kind, q, k, v, net.weight(88), domain="com.microsoft", num_heads=4)
        d = 24
    elif kind == "GroupQueryAttention":
        q, k, v = (net.linear(x, 64, width), net.linear(x, 32, width), net.linear(x, 32, width))
        o = net.add(
            kind,
            q,
            k,
            v,
            "",
            "",
            net.constant(np.array([6, 6], np.int32)),
            net.constant(np.array(7, np.int32)),
            domain="com.microsoft",
            num_heads=4,
            kv_num_heads=2,
            outputs=["o_gqa", "pk", "pv"],
        )[0]
        d = 64
    elif kind == "Attention":
        o = net.add(
            kind,
            x,
            net.weight(width, 32 + 32 + 24),
            net.weight(88),
            domain="com.microsoft",
            num_heads=4,
            qkv_hidden_sizes=[32, 32, 24],
        )
        d = 24
    elif kind == "SkipLayerNormalization":
        a = net.linear(x, width, width)
        b = net.linear(x, width, width)
        o = net.add(
            kind, a, b, net.weight(width), net.weight(width), net.weight(width), domain="com.microsoft"
        )
        d = width
    elif kind == "RotaryEmbedding":
        q = net.linear(x, 32, width)
        k = net.linear(x, 32, width)
        cos, sin = (net.weight(16, 4), net.weight(16, 4))
        pid = net.constant(np.tile(np.arange(7), (2, 1)).astype(np.int64))
        q = net.add(kind, q, pid, cos, sin, domain="com.microsoft")
        k = net.add(kind, k, pid, cos, sin, domain="com.microsoft")

        def hd(t: Any) -> Any:
            return net.add("Transpose", net.add("Reshape", t, net.constant([2, 7, 4, 8])), perm=[0, 2, 1, 3])

        a = net.add(
            "Softmax", net.add("MatMul", hd(q), net.add("Transpose", hd(k), perm=[0, 1, 3, 2])), axis=-1
        )
        o = net.add(
            "Reshape",
            net.add("Transpose", net.add("MatMul", a, hd(net.linear(x, 32, width))), perm=[0, 2, 1, 3]),
            net.constant([2, 7, 32]),
        )
        d = 32
    elif kind == "BiasGelu":
        o = net.add(kind, net.add("MatMul", x, net.weight(width, 48)), net.weight(48), domain="com.microsoft")
        d = 48
    elif kind == "FusedMatMul":
        o = net.add(
            kind,
            net.linear(x, width, width),
            net.weight(48, width),
            domain="com.microsoft",
            transB=1,
            alpha=0.5,
        )
        d = 48
    return (net.model(net.linear(o, 5, d)), {"x": draw(2, 7, 32)}, [])


def einsum_attention() -> Built:
    net = Net(17)
    x = net.input("x", (2, 7, 24))
    heads_count, size = (3, 8)
    q, k, v = [
        net.add("Einsum", x, net.weight(24, heads_count, size), equation="bsc,chd->bhsd") for _ in range(3)
    ]
    a = net.add("Softmax", net.add("Einsum", q, k, equation="bhqd,bhkd->bhqk"), axis=-1)
    o = net.add("Einsum", a, v, equation="bhqk,bhkd->bqhd")
    o = net.add("Einsum", o, net.weight(heads_count, size, 6), equation="bqhd,hde->bqe")
    return (net.model(o), {"x": draw(2, 7, 24)}, [])


def swin() -> Built:
    net = Net(17)
    width, heads_count = (16, 2)
    x = net.input("x", (1, 3, 8, 8))
    y = net.add("Transpose", net.conv(x, width, 3, 1), perm=[0, 2, 3, 1])
    h = normalised(net, y, width)
    h = net.add(
        "Concat",
        net.add("Slice", h, net.constant([2]), net.constant([8]), net.constant([1])),
        net.add("Slice", h, net.constant([0]), net.constant([2]), net.constant([1])),
        axis=1,
    )
    h = net.add("Reshape", h, net.constant([1, 2, 4, 2, 4, width]))
    h = net.add("Reshape", net.add("Transpose", h, perm=[0, 1, 3, 2, 4, 5]), net.constant([4, 16, width]))
    qkv = net.add(
        "Transpose",
        net.add(
            "Reshape",
            net.linear(h, 3 * width, width),
            net.constant([4, 16, 3, heads_count, width // heads_count]),
        ),
        perm=[2, 0, 3, 1, 4],
    )
    q, k, v = [
        net.add("Squeeze", t, net.constant([0]))
        for t in net.add("Split", qkv, net.constant([1, 1, 1]), outputs=3, axis=0)
    ]
    a = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    bias = net.add(
        "Unsqueeze",
        net.add(
            "Transpose",
            net.add(
                "Reshape",
                net.add(
                    "Gather",
                    net.weight(49, heads_count),
                    net.constant(GENERATOR.integers(0, 49, 256).astype(np.int64)),
                ),
                net.constant([16, 16, heads_count]),
            ),
            perm=[2, 0, 1],
        ),
        net.constant([0]),
    )
    a = net.add("Softmax", net.add("Add", a, bias), axis=-1)
    o = net.add(
        "Reshape",
        net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3]),
        net.constant([4, 16, width]),
    )
    o = net.linear(o, width, width)
    o = net.add(
        "Reshape",
        net.add(
            "Transpose", net.add("Reshape", o, net.constant([1, 2, 2, 4, 4, width])), perm=[0, 1, 3, 2, 4, 5]
        ),
        net.constant([1, 8, 8, width]),
    )
    y = net.add("Add", y, o)
    ps = [
        net.add(
            "Slice",
            y,
            net.constant([i, j]),
            net.constant([2**62] * 2),
            net.constant([1, 2]),
            net.constant([2, 2]),
        )
        for i in (0, 1)
        for j in (0, 1)
    ]
    y = net.add("Concat", *ps, axis=3)
    y = normalised(net, y, 4 * width)
    y = net.add("MatMul", y, net.weight(4 * width, 10))
    return (net.model(net.linear(y, 4, 10)), {"x": draw(1, 3, 8, 8)}, [])


def xcit() -> Built:
    net = Net(17)
    x = net.input("x", (2, 9, 24))
    heads_count, size = (3, 8)
    h = net.linear(x, 24, 24)
    qkv = net.add(
        "Transpose",
        net.add("Reshape", net.linear(h, 72, 24), net.constant([2, 9, 3, heads_count, size])),
        perm=[2, 0, 3, 4, 1],
    )
    q, k, v = [net.add("Gather", qkv, net.constant(np.int64(i)), axis=0) for i in range(3)]
    nq = net.add("ReduceL2", q, axes=[-1], keepdims=1)
    q = net.add("Div", q, nq)
    a = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    o = net.add("MatMul", a, v)
    o = net.add("Reshape", net.add("Transpose", o, perm=[0, 3, 1, 2]), net.constant([2, 9, 24]))
    return (net.model(net.linear(net.add("Add", h, o), 4, 24)), {"x": draw(2, 9, 24)}, [])


def mqa() -> Built:
    net = Net(17)
    x = net.input("x", ("b", "s", 24))
    heads_count, size = (4, 6)
    q = net.add(
        "Transpose",
        net.add("Reshape", net.linear(x, heads_count * size, 24), net.constant([0, 0, heads_count, size])),
        perm=[0, 2, 1, 3],
    )
    k = net.add("Unsqueeze", net.linear(x, size, 24), net.constant([1]))
    v = net.add("Unsqueeze", net.linear(x, size, 24), net.constant([1]))
    a = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    o = net.add(
        "Reshape", net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3]), net.constant([0, 0, -1])
    )
    return (net.model(net.linear(o, 4, heads_count * size)), {"x": draw(2, 5, 24)}, [{"x": draw(1, 3, 24)}])


def rope_gqa() -> Built:
    """Llama form, everything dynamic, repeat_kv by Expand with computed shapes, KV cache inputs."""
    net = Net(17)
    x = net.input("x", ("b", "s", 24))
    heads_count, key_heads, size = (4, 2, 6)

    def size_of(t: Any, i: Any) -> Any:
        return net.add(
            "Unsqueeze",
            net.add("Gather", net.add("Shape", t), net.constant(np.int64(i)), axis=0),
            net.constant([0]),
        )

    cosw = net.weight(64, size // 2)
    sinw = net.weight(64, size // 2)

    def table(w: Any) -> Any:
        t = net.add("Slice", w, net.constant([0]), size_of(x, 1), net.constant([0]))
        return net.add("Unsqueeze", net.add("Concat", t, t, axis=-1), net.constant([0, 1]))

    cos, sin = (table(cosw), table(sinw))

    def heads(w: Any, h: Any) -> Any:
        t = net.add("MatMul", x, w)
        return net.add(
            "Transpose",
            net.add(
                "Reshape",
                t,
                net.add(
                    "Concat", size_of(x, 0), size_of(x, 1), net.constant([h]), net.constant([size]), axis=0
                ),
            ),
            perm=[0, 2, 1, 3],
        )

    def rope(t: Any) -> Any:
        half = net.add("Div", size_of(t, 3), net.constant([2]))
        a = net.add("Slice", t, net.constant([0]), half, net.constant([3]))
        b = net.add("Slice", t, half, net.constant([2**62]), net.constant([3]))
        return net.add(
            "Add",
            net.add("Mul", t, cos),
            net.add("Mul", net.add("Concat", net.add("Neg", b), a, axis=-1), sin),
        )

    q, k, v = (
        rope(heads(net.weight(24, heads_count * size), heads_count)),
        rope(heads(net.weight(24, key_heads * size), key_heads)),
        heads(net.weight(24, key_heads * size), key_heads),
    )

    def rep(t: Any) -> Any:
        u = net.add("Unsqueeze", t, net.constant([2]))
        u = net.add(
            "Expand",
            u,
            net.add(
                "Concat",
                size_of(t, 0),
                size_of(t, 1),
                net.constant([heads_count // key_heads]),
                size_of(t, 2),
                size_of(t, 3),
                axis=0,
            ),
        )
        return net.add(
            "Reshape",
            u,
            net.add(
                "Concat", size_of(t, 0), net.constant([heads_count]), size_of(t, 2), size_of(t, 3), axis=0
            ),
        )

    k, v = (rep(k), rep(v))
    a = net.add(
        "Softmax",
        net.add(
            "Div",
            net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])),
            net.constant(np.float32(2.4)),
        ),
        axis=-1,
    )
    o = net.add(
        "Reshape",
        net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3]),
        net.add("Concat", size_of(x, 0), size_of(x, 1), net.constant([-1]), axis=0),
    )
    return (net.model(net.linear(o, 4, heads_count * size)), {"x": draw(2, 5, 24)}, [{"x": draw(1, 9, 24)}])
