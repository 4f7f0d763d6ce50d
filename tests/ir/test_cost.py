"""Costs against closed forms and published figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.cost import Cost, measure_cost
from graphopt.ir.lower import lower
from tests import corpora

if TYPE_CHECKING:
    from pathlib import Path

FLOAT = TensorProto.FLOAT


def info(name: str, *dims: Any, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def weight(name: str, *dims: int, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(dims, dtype), name)


def cost_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto] | None = None,
    outputs: tuple[str, ...] = ("y",),
    functions: list[onnx.FunctionProto] | None = None,
    opset: int = 23,
    **dims: int,
) -> Cost:
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs], weights or []
    )
    opsets = [
        helper.make_opsetid(domain, v) for domain, v in (("", opset), ("com.microsoft", 1), ("local", 1))
    ]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions or [])
    return measure_cost(lower(model), dims)


def test_convolutions() -> None:
    conv = helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2)
    cost = cost_of([conv], [info("x", 1, 8, 32, 32)], [weight("w", 16, 4, 3, 3), weight("b", 16)])
    assert cost.macs == 16 * 16 * 16 * (4 * 9)
    assert cost.parameters == 16 * 4 * 9 + 16
    transposed = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    cost = cost_of([transposed], [info("x", 1, 8, 5, 5)], [weight("w", 8, 3, 2, 2)])
    assert cost.macs == 8 * 5 * 5 * 3 * 4


def test_quantised_operators() -> None:
    scale, zero = weight("s"), numpy_helper.from_array(np.array(0, np.uint8), "z")
    w = weight("w", 16, 8, 3, 3, dtype=np.uint8)
    bias = weight("b", 16, dtype=np.int32)
    conv = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z", "b"], ["y"])
    cost = cost_of([conv], [info("x", 1, 8, 10, 10, kind=TensorProto.UINT8)], [scale, zero, w, bias])
    assert cost.macs == 16 * 8 * 8 * 8 * 9
    assert cost.parameters == 16 * 8 * 9 + 16 + 1 + 1, "a bias counts although it is int32"
    assert cost.bytes_by_dtype == {"uint8": 16 * 8 * 9 + 1, "int32": 64, "float": 4}
    matmul = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    cost = cost_of([matmul], [info("x", 5, 8, kind=TensorProto.UINT8)], [weight("w", 8, 7, dtype=np.uint8)])
    assert cost.macs == 5 * 8 * 7
    blob = weight("w", 64, 2, 16, dtype=np.uint8)
    nbits = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=64, bits=4, block_size=32
    )
    cost = cost_of([nbits], [info("x", 3, 5, 64)], [blob, weight("s", 128)])
    assert cost.macs == 3 * 5 * 64 * 64
    assert cost.parameters == 64 * 64 + 128
    assert cost.weight_bytes == 64 * 32 + 128 * 4


@pytest.mark.parametrize(
    ("a", "b", "macs"),
    [
        ([4, 5], [5, 6], 4 * 5 * 6),
        ([5], [5, 6], 5 * 6),
        ([4, 5], [5], 4 * 5),
        ([5], [5], 5),
        ([2, 1, 4, 5], [3, 5, 6], 2 * 3 * 4 * 5 * 6),
    ],
)
def test_matmul(a: list[int], b: list[int], macs: int) -> None:
    cost = cost_of([helper.make_node("MatMul", ["a", "b"], ["y"])], [info("a", *a), info("b", *b)])
    assert cost.macs == macs
    terms = ["...k", "...kn"] if len(a) > 1 and len(b) > 1 else None
    if terms:
        einsum = helper.make_node("Einsum", ["a", "b"], ["y"], equation="...mk,...kn->...mn")
        assert cost_of([einsum], [info("a", *a), info("b", *b)]).macs == macs


def test_gemm() -> None:
    node = helper.make_node("Gemm", ["a", "b"], ["y"], transA=1, transB=1)
    assert cost_of([node], [info("a", 5, 4), info("b", 6, 5)]).macs == 4 * 5 * 6
    fused = helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", transA=1)
    assert cost_of([fused], [info("a", 3, 5, 4), info("b", 3, 5, 6)]).macs == 3 * 4 * 5 * 6


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent(op_type: str, gates: int) -> None:
    node = helper.make_node(op_type, ["x", "w", "r"], ["y"], hidden_size=8, direction="bidirectional")
    weights = [weight("w", 2, gates * 8, 5), weight("r", 2, gates * 8, 8)]
    cost = cost_of([node], [info("x", 7, 3, 5)], weights)
    assert cost.macs == 7 * 3 * 2 * gates * 8 * (5 + 8)


def test_attention() -> None:
    inputs = [info("q", 2, 8, 5, 16), info("k", 2, 4, 9, 16), info("v", 2, 4, 9, 24)]
    cost = cost_of([helper.make_node("Attention", ["q", "k", "v"], ["y"])], inputs)
    assert cost.macs == 2 * 8 * 5 * 9 * (16 + 24)
    flat = [info("q", 2, 5, 8 * 16), info("k", 2, 9, 4 * 16), info("v", 2, 9, 4 * 24)]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=8, kv_num_heads=4)
    assert cost_of([node], flat).macs == cost.macs


def branch(name: str, width: int) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{width}"], [name])],
        name,
        [],
        [helper.make_empty_tensor_value_info(name)],
        [weight(f"w{width}", 4, width)],
    )


def test_the_larger_branch_counts() -> None:
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("t", 3), else_branch=branch("e", 7))
    cost = cost_of([node], [info("x", 2, 4), info("c", kind=TensorProto.BOOL)])
    assert cost.macs == 2 * 4 * 7
    assert cost.parameters == 4 * 3 + 4 * 7
    assert [(node.macs, node.times) for node in cost.per_node] == [(2 * 4 * 7, 1), (2 * 4 * 3, 0)]


@pytest.mark.parametrize("known", [True, False])
def test_loops_count_their_iterations(known: bool) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["s", "w"], ["t"]), helper.make_node("Identity", ["go"], ["go2"])],
        "body",
        [info("i", kind=TensorProto.INT64), info("go", kind=TensorProto.BOOL), info("s", 2, 4)],
        [info("go2", kind=TensorProto.BOOL), info("t", 2, 4)],
    )
    node = helper.make_node("Loop", ["m", "", "x"], ["y"], body=body)
    weights = [weight("w", 4, 4)] + ([numpy_helper.from_array(np.array(6), "m")] if known else [])
    inputs = [info("x", 2, 4)] + ([] if known else [info("m", kind=TensorProto.INT64)])
    cost = cost_of([node], inputs, weights)
    assert cost.macs == 2 * 4 * 4 * (6 if known else 1)
    assert bool(cost.notes) is not known


def test_functions_count_at_each_call() -> None:
    function = helper.make_function(
        "local", "twice", ["a", "b"], ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["c"])],
        [helper.make_opsetid("", 23)],
    )  # fmt: skip
    calls = [
        helper.make_node("twice", ["x", "w"], ["h"], domain="local"),
        helper.make_node("twice", ["z", "w"], ["y"], domain="local"),
    ]
    cost = cost_of(
        calls, [info("x", 2, 4), info("z", 5, 4)], [weight("w", 4, 4)], ("h", "y"), functions=[function]
    )
    assert cost.macs == 2 * (2 + 5) * 16
    assert cost.parameters == 16


def test_free_dims_count_as_one_unless_bound() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs, weights = [info("x", "batch", None, 4)], [weight("w", 4, 8)]
    assert cost_of([node], inputs, weights).macs == 32
    assert cost_of([node], inputs, weights, batch=8).macs == 256


def test_unknown_shapes_are_named() -> None:
    nodes = [
        helper.make_node("Thing", ["x"], ["h"], domain="local"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="lost"),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
    ]
    cost = cost_of(nodes, [info("x", 2, 4)], [weight("w", 4, 8)], ("y", "z"))
    assert cost.macs is None
    assert cost.known_macs == 64
    assert cost.unknown == ("lost",)


def test_shapes_are_no_parameters_and_dead_weights_are_named() -> None:
    shape = helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([8])))
    scale = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(8, np.float32)))
    nodes = [
        shape,
        scale,
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Mul", ["r", "k"], ["y"]),
    ]
    cost = cost_of(nodes, [info("x", 2, 4)], [weight("unused", 3)])
    assert cost.parameters == 8 + 3
    assert cost.weight_bytes == 8 + 32 + 12
    assert cost.dead == ("unused",)
    assert cost.bytes_by_op == {"Mul": 32, "(unused)": 12, "Reshape": 8}


def test_a_weight_counts_once_however_often_it_is_used() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    cost = cost_of(nodes, [info("x", 2, 4)], [weight("w", 4, 4)])
    assert cost.parameters == 16
    assert cost.macs == 2 * 2 * 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gmacs", "million_parameters"),
    [
        # torchvision's model table ("GFLOPS" there are multiply-adds, "#Params"); the exporter folds the
        # normalisation, which costs ResNet-50 some 50,000 parameters.
        ("resnet50", 4.09, 25.6),
        ("densenet121", 2.83, 8.0),
        ("inception_v3", 5.71, 23.8),
        ("mnasnet1_0", 0.31, 4.4),
        ("mobilenet_v3_small", 0.06, 2.5),
        ("shufflenet_v2_x1_0", 0.14, 2.3),
        ("squeezenet1_1", 0.35, 1.235),
        ("convnext_tiny", 4.46, 28.6),
        ("swin_t", 4.49, 28.3),
        ("efficientnet_b0", 0.39, 5.3),
    ],
)
def test_published_figures(assets: Path, name: str, gmacs: float, million_parameters: float) -> None:
    cost = measure_cost(lower(onnx.load(corpora.zoo_model(assets, name))))
    assert cost.macs is not None
    assert round(cost.macs / 1e9, 2) == pytest.approx(gmacs, abs=0.006)
    assert cost.parameters / 1e6 == pytest.approx(million_parameters, rel=0.025)
    assert sum(node.parameters for node in cost.per_node) == cost.parameters
    assert sum(cost.bytes_by_op.values()) == cost.weight_bytes == sum(cost.bytes_by_dtype.values())
