"""Nets with seeded random weights for benchmarks: the widths of BERT-base and of MobileNetV2."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, np.ndarray[Any, Any]]


def assembled(
    name: str, nodes: list[onnx.NodeProto], shape: list[int], output: tuple[str, list[int]], weights: Arrays
) -> onnx.ModelProto:
    """A model from x of *shape* to *output*, a name and a shape."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(np.asarray(array), each) for each, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def bert(layers: int = 4, hidden: int = 768, heads: int = 12, length: int = 128) -> onnx.ModelProto:
    """An encoder of BERT-base's widths on embedded tokens."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: Arrays = {}

    def weight(name: str, *shape: int) -> str:
        scale = 0.7 / np.sqrt(shape[0]) if len(shape) > 1 else 0.1
        weights[name] = (rng.normal(size=shape) * scale).astype(np.float32)
        return name

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def linear(x: str, name: str, wide: int, out: int) -> str:
        product = node("MatMul", [x, weight(f"{name}_w", wide, out)], f"{name}_m")
        return node("Add", [product, weight(f"{name}_b", out)], name)

    def norm(x: str, name: str) -> str:
        weights[f"{name}_g"], weights[f"{name}_s"] = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)
        return node("LayerNormalization", [x, f"{name}_g", f"{name}_s"], name)

    weights["split"] = np.array([0, 0, heads, hidden // heads], np.int64)
    weights["join"] = np.array([0, 0, hidden], np.int64)
    weights["root"] = np.array(np.sqrt(hidden // heads), np.float32)
    weights["half"], weights["one"], weights["two"] = (
        np.array(v, np.float32) for v in (0.5, 1.0, np.sqrt(2))
    )
    x = "x"
    for k in range(layers):
        parts = []
        for part, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
            shaped = node("Reshape", [linear(x, f"{part}{k}", hidden, hidden), "split"], f"{part}{k}_r")
            parts.append(node("Transpose", [shaped], f"{part}{k}_t", perm=order))
        scores = node("Div", [node("MatMul", parts[:2], f"s{k}"), "root"], f"d{k}")
        mixed = node("MatMul", [node("Softmax", [scores], f"p{k}", axis=-1), parts[2]], f"a{k}")
        joined = node(
            "Reshape", [node("Transpose", [mixed], f"a{k}_t", perm=(0, 2, 1, 3)), "join"], f"a{k}_r"
        )
        x = norm(node("Add", [linear(joined, f"o{k}", hidden, hidden), x], f"r{k}"), f"n{k}")
        up = linear(x, f"u{k}", hidden, 4 * hidden)
        erf = node("Add", [node("Erf", [node("Div", [up, "two"], f"e{k}")], f"f{k}"), "one"], f"h{k}")
        gelu = node("Mul", [node("Mul", [up, erf], f"i{k}"), "half"], f"g{k}")
        x = norm(node("Add", [linear(gelu, f"w{k}", 4 * hidden, hidden), x], f"t{k}"), f"m{k}")
    return assembled("bert", nodes, [1, length, hidden], (x, [1, length, hidden]), weights)


# MobileNetV2: expansion, channels, repeats, stride of the first (Sandler et al. 2018, table 2).
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet(activation: str, size: int = 224) -> onnx.ModelProto:
    """MobileNetV2 with folded BatchNormalization and *activation* "relu6", "silu" or "hardswish"."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: Arrays = {"low": np.float32(0.0), "high": np.float32(6.0)}

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def activate(x: str) -> str:
        if activation == "relu6":
            return node("Clip", [x, "low", "high"], f"{x}_r")
        if activation == "hardswish":
            return node("HardSwish", [x], f"{x}_r")
        return node("Mul", [x, node("Sigmoid", [x], f"{x}_s")], f"{x}_r")

    def conv(x: str, name: str, wide: int, out: int, side: int, stride: int = 1, group: int = 1) -> str:
        fan = wide // group * side * side
        weights[f"{name}_w"] = rng.normal(0, np.sqrt(2 / fan), (out, wide // group, side, side)).astype(
            np.float32
        )
        weights[f"{name}_b"] = rng.normal(0, 0.1, out).astype(np.float32)
        return node(
            "Conv",
            [x, f"{name}_w", f"{name}_b"],
            name,
            group=group,
            strides=[stride] * 2,
            pads=[side // 2] * 4,
        )

    x, wide = activate(conv("x", "stem", 3, 32, 3, 2)), 32
    for row, (expansion, out, repeats, first) in enumerate(_BLOCKS):
        for k in range(repeats):
            name, inner, shortcut = f"b{row}_{k}", wide * expansion, x
            if expansion > 1:
                x = activate(conv(x, f"{name}_up", wide, inner, 1))
            x = activate(conv(x, f"{name}_dw", inner, inner, 3, first if not k else 1, inner))
            x = conv(x, f"{name}_down", inner, out, 1)
            if k:
                x = node("Add", [x, shortcut], f"{name}_add")
            wide = out
    x = activate(conv(x, "head", wide, 1280, 1))
    x = node("Flatten", [node("GlobalAveragePool", [x], "pool")], "flat")
    weights["fc_w"] = rng.normal(0, 0.02, (1000, 1280)).astype(np.float32)
    weights["fc_b"] = np.zeros(1000, np.float32)
    node("Gemm", [x, "fc_w", "fc_b"], "y", transB=1)
    return assembled(f"mobilenetv2-{activation}", nodes, [1, 3, size, size], ("y", [1, 1000]), weights)
