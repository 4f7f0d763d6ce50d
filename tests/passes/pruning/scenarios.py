"""Models on which other pruners fail silently or leave something that cannot run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 17)]


def array(*shape: int, seed: int = 0, fan_in: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    scale = np.float32(np.sqrt(fan_in or np.prod(shape[1:]) or 1))
    return np.asarray(rng.standard_normal(shape, dtype=np.float32) / scale)


def info(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "scenario",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(content, name) for name, content in weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=OPSET)
    onnx.checker.check_model(model)
    return model


def conv(source: str, weight: str, target: str, bias: str = "", **attributes: Any) -> onnx.NodeProto:
    inputs = [source, weight, bias] if bias else [source, weight]
    return helper.make_node("Conv", inputs, [target], name=f"conv_{target}", pads=[1] * 4, **attributes)


def relu(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [target], name=f"relu_{target}")


def shared_weight() -> onnx.ModelProto:
    """A1: conv1 and conv3 share w1 [64, 16, 3, 3]."""
    return model_of(
        [
            conv("x", "w1", "c1"),
            relu("c1", "r1"),
            conv("r1", "w2", "c2"),
            relu("c2", "r2"),
            conv("r2", "w1", "c3"),
            relu("c3", "r3"),
            conv("r3", "w4", "y"),
        ],
        [info("x", [1, 16, 8, 8])],
        [info("y", [1, 10, 8, 8])],
        {"w1": array(64, 16, 3, 3), "w2": array(16, 64, 3, 3, seed=1), "w4": array(10, 64, 3, 3, seed=2)},
    )


def captured_by_branches() -> onnx.ModelProto:
    """A2: a value that a Conv inside both branches of an If reads; the weights stand inside the branches."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        weight = numpy_helper.from_array(array(10, 32, 3, 3, seed=seed), f"w_{name}")
        out = info(f"o_{name}", [1, 10, 8, 8])
        return helper.make_graph([conv("r1", f"w_{name}", f"o_{name}")], name, [], [out], [weight])

    choose = helper.make_node(
        "If", ["flag"], ["y"], name="choose", then_branch=branch("then", 3), else_branch=branch("else", 4)
    )
    return model_of(
        [conv("x", "w0", "c0"), relu("c0", "r0"), conv("r0", "w1", "c1", "b1"), relu("c1", "r1"), choose],
        [info("x", [1, 3, 8, 8]), info("flag", [], TensorProto.BOOL)],
        [info("y", [1, 10, 8, 8])],
        {"w0": array(32, 3, 3, 3), "w1": array(32, 32, 3, 3, seed=1), "b1": array(32, seed=2, fan_in=1)},
    )


HEADS = ("flatten", "reshape", "reshape zero", "depth to space", "slice")


def flattened(head: str, *, dead: bool = False) -> onnx.ModelProto:
    """A3: Conv 16 -> 64, then what hides the channels, then Gemm; with *dead* every second is zero."""
    weight, bias = array(64, 16, 3, 3), array(64, seed=1, fan_in=1)
    if dead:
        weight[::2] = 0
        bias[::2] = 0
    weights = {"w1": weight, "b1": bias, "b2": array(10, seed=3, fan_in=1)}
    nodes = [conv("x", "w1", "c1", "b1"), relu("c1", "r1")]
    features = 4096
    if head == "flatten":
        nodes.append(helper.make_node("Flatten", ["r1"], ["f"]))
    elif head == "reshape":
        weights["shape"] = np.array([1, 4096], np.int64)
        nodes.append(helper.make_node("Reshape", ["r1", "shape"], ["f"]))
    elif head == "reshape zero":
        weights["shape"] = np.array([0, -1], np.int64)
        nodes.append(helper.make_node("Reshape", ["r1", "shape"], ["f"]))
    elif head == "depth to space":
        nodes.append(helper.make_node("DepthToSpace", ["r1"], ["d"], blocksize=2))
        nodes.append(helper.make_node("Flatten", ["d"], ["f"]))
    else:
        features = 2048
        weights |= {"start": np.array([16], np.int64), "end": np.array([48], np.int64)}
        weights["axis"] = np.array([1], np.int64)
        nodes.append(helper.make_node("Slice", ["r1", "start", "end", "axis"], ["s"]))
        nodes.append(helper.make_node("Flatten", ["s"], ["f"]))
    weights["w2"] = array(features, 10, seed=2, fan_in=features)
    nodes.append(helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], name="head"))
    return model_of(nodes, [info("x", [1, 16, 8, 8])], [info("y", [1, 10])], weights)


def overridable() -> onnx.ModelProto:
    """Weights that are inputs with a default, which a caller may replace."""
    model = captured_free()
    for tensor in model.graph.initializer:
        model.graph.input.append(info(tensor.name, tensor.dims))
    onnx.checker.check_model(model)
    return model


def captured_free() -> onnx.ModelProto:
    """Two convolutions in a row, nothing special."""
    return model_of(
        [conv("x", "w1", "c1", "b1"), relu("c1", "r1"), conv("r1", "w2", "y")],
        [info("x", ["batch", 3, 8, 8])],
        [info("y", ["batch", 10, 8, 8])],
        {"w1": array(32, 3, 3, 3), "b1": array(32, seed=1, fan_in=1), "w2": array(10, 32, 3, 3, seed=2)},
    )


def locked() -> onnx.ModelProto:
    """One convolution from the input to the output: nothing can go."""
    return model_of(
        [conv("x", "w1", "y")],
        [info("x", [1, 3, 8, 8])],
        [info("y", [1, 8, 8, 8])],
        {"w1": array(8, 3, 3, 3)},
    )


def quantised() -> onnx.ModelProto:
    """QDQ: int8 weights per output channel behind DequantizeLinear, activations through a pair."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}
    nodes = []

    def pair(source: str, target: str) -> None:
        nodes.append(helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{target}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{target}_q", "s", "z"], [target]))

    pair("x", "xq")
    source, width = "xq", 3
    for index, out in enumerate((32, 10)):
        weights[f"w{index}"] = rng.integers(-127, 128, (out, width, 3, 3)).astype(np.int8)
        weights[f"ws{index}"] = rng.uniform(0.001, 0.01, out).astype(np.float32)
        weights[f"wz{index}"] = np.zeros(out, np.int8)
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"w{index}", f"ws{index}", f"wz{index}"], [f"wd{index}"], axis=0
            )
        )
        target = "y" if index else "c0"
        nodes.append(conv(source, f"wd{index}", target))
        if not index:
            nodes.append(relu("c0", "r0"))
            pair("r0", "rq")
            source = "rq"
        width = out
    return model_of(nodes, [info("x", [1, 3, 8, 8])], [info("y", [1, 10, 8, 8])], weights)
