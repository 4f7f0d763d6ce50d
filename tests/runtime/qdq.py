"""Quantised models, small and made by hand, whose fate in onnxruntime is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.runtime.models import FLOAT, INT64, model

SCALE: Any = np.float32(0.05)


def conv(
    *, relu: bool = False, zero_point: int = 0, activation: bool = True, output: bool = True
) -> onnx.ModelProto:
    """y = Conv(x), 4 -> 8 channels on 6x6 with codes s8 per channel as its weight.

    Args:
        relu: Whether a Relu stands behind it.
        zero_point: Of the u8 codes behind it.
        activation: Whether its input is quantised.
        output: Whether its output is quantised.
    """
    rng = np.random.default_rng(1)
    weights: dict[str, Any] = {
        "w_q": rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        "w_scale": np.full(8, 0.01, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "x_scale": SCALE,
        "x_zero": np.uint8(128),
        "y_scale": SCALE,
        "y_zero": np.uint8(zero_point),
    }
    dequantize = helper.make_node(
        "DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], name="w_dq", axis=0
    )
    nodes = [dequantize]
    data, result = "x", "y" if not relu and not output else "c"
    if activation:
        nodes += quantised("x", "x_scale", "x_zero", "x_d")
        data = "x_d"
    nodes.append(helper.make_node("Conv", [data, "w"], [result], name="conv", pads=[1, 1, 1, 1]))
    if relu:
        nodes.append(helper.make_node("Relu", [result], ["r" if output else "y"], name="relu"))
        result = "r"
    if output:
        nodes += quantised(result, "y_scale", "y_zero", "y")
    used = {name for node in nodes for name in node.input}
    return model(
        nodes,
        [("x", FLOAT, [1, 4, 6, 6])],
        [("y", FLOAT, [1, 8, 6, 6])],
        {name: array for name, array in weights.items() if name in used},
        opset=17,
        ir_version=8,
    )


def quantised(value: str, scale: str, zero: str, result: str) -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear of *value*."""
    return [
        helper.make_node("QuantizeLinear", [value, scale, zero], [f"{value}_q"], name=f"{value}_q"),
        helper.make_node("DequantizeLinear", [f"{value}_q", scale, zero], [result], name=f"{value}_dq"),
    ]


def table() -> onnx.ModelProto:
    """y = Gather(DequantizeLinear(table), x)."""
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["rows"], name="rows_dq"),
        helper.make_node("Gather", ["rows", "x"], ["y"], name="gather"),
    ]
    codes: Any = np.arange(-32, 32).reshape(16, 4).astype(np.int8)
    return model(
        nodes,
        [("x", INT64, [3])],
        [("y", FLOAT, [3, 4])],
        {"codes": codes, "scale": SCALE},
        opset=17,
        ir_version=8,
    )


def matmul_4bit(rows: int = 64, columns: int = 48, block: int = 32) -> onnx.ModelProto:
    """y = MatMul(x, DequantizeLinear(4-bit codes in blocks along axis 0))."""
    rng = np.random.default_rng(2)
    codes = rng.integers(-8, 8, (rows, columns))
    scales = (0.01 + 0.1 * rng.random((rows // block, columns))).astype(np.float32)
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["codes", "scales"], ["w"], name="w_dq", axis=0, block_size=block
        ),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul"),
    ]
    proto = model(nodes, [("x", FLOAT, [2, rows])], [("y", FLOAT, [2, columns])], {"scales": scales})
    proto.graph.initializer.append(
        helper.make_tensor("codes", onnx.TensorProto.INT4, codes.shape, codes.reshape(-1).tolist())
    )
    return proto
