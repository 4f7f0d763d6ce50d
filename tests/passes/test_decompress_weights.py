"""decompress-weights: the bits that the runtime would compute, only where it computes them anew each time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from graphopt.errors import OptionError
from graphopt.ir.emit import emit
from graphopt.ir.lower import load, lower
from graphopt.passes.decompress_weights import DecompressWeights
from graphopt.runtime.structure import structure_of
from graphopt.targets import load_target
from tests.passes.harness import apply, assert_golden, assert_same_function, op_types, parse
from tests.runtime import qdq
from tests.runtime.models import write

if TYPE_CHECKING:
    from pathlib import Path

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "convolution-weight": (
        (
            "g (float[1,1,3,3] x) => (float[1,2,3,3] y)"
            " <int8[2,1,1,1] codes = {64, -3}, float[2] scale = {0.5, 0.25}, int8[2] zero = {1, 0}>"
            "{ w = DequantizeLinear <axis = 0> (codes, scale, zero) y = Conv (x, w) }"
        ),
        {},
    ),
    "fused-weight-stays": (
        (
            "g (float[1,2] x) => (float[1,2] y)"
            " <int8[2,2] codes = {1, 2, 3, 4}, float[2] scale = {0.5, 0.25}>"
            "{ w = DequantizeLinear <axis = 1> (codes, scale) y = MatMul (x, w) }"
        ),
        {},
    ),
    "fused-weight-goes-with-all": (
        (
            "g (float[1,2] x) => (float[1,2] y)"
            " <int8[2,2] codes = {1, 2, 3, 4}, float[2] scale = {0.5, 0.25}>"
            "{ w = DequantizeLinear <axis = 1> (codes, scale) y = MatMul (x, w) }"
        ),
        {"where": "all"},
    ),
    "one-of-two-is-fused": (
        (
            "g (float[1,2] x) => (float[1,2] y) <int8[2,2] codes = {1, 2, 3, 4}, float scale = {0.5}>"
            "{ w = DequantizeLinear (codes, scale) v = DequantizeLinear (codes, scale)"
            " a = MatMul (x, w) b = MatMul (a, v) c = MatMul (b, w) y = Add (c, a) }"
        ),
        {},
    ),
    "table": (
        (
            "g (int64[2] x) => (float[2,2] y) <uint8[3,2] codes = {1, 2, 3, 4, 5, 6}, float scale = {2.0}>"
            "{ rows = DequantizeLinear (codes, scale) y = Gather (rows, x) }"
        ),
        {},
    ),
    "inside-a-branch": (
        (
            "g (bool c, float[1,2] x) => (float[1,2] y) <int8[2,2] codes = {1, 2, 3, 4}, float scale = {0.5}>"
            "{ y = If (c) <"
            " then_branch = t () => (float[1,2] p) { w = DequantizeLinear (codes, scale) q = Einsum"
            ' <equation: string = "ij,jk->ik"> (x, w) p = Relu (q) },'
            " else_branch = e () => (float[1,2] r) { v = DequantizeLinear (codes, scale) r = Einsum"
            ' <equation: string = "ij,jk->ik"> (x, v) } > }'
        ),
        {},
    ),
    "computed-scale-and-output": (
        (
            "g (float[1,2] x, float s) => (float[1,2] y, float[2,2] v)"
            " <int8[2,2] codes = {1, 2, 3, 4}, float scale = {0.5}>"
            "{ w = DequantizeLinear (codes, s) y = MatMul (x, w) v = DequantizeLinear (codes, scale) }"
        ),
        {"where": "all"},
    ),
    "activations-stay": (
        (
            "g (float[1,2] x) => (float[1,2] y) <float scale = {0.5}, uint8 zero = {3}>"
            "{ q = QuantizeLinear (x, scale, zero) d = DequantizeLinear (q, scale, zero) y = Relu (d) }"
        ),
        {"where": "all"},
    ),
}


RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 8),
    TensorProto.UINT4: (0, 16),
    TensorProto.INT8: (-128, 128),
    TensorProto.UINT8: (0, 256),
    TensorProto.INT16: (-32768, 32768),
    TensorProto.INT32: (-(2**31), 2**31),
}


def case(name: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    text, options = CASES[name]
    return parse(HEADER + text), options


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    proto, options = case(name)
    after, report = apply(DecompressWeights(), proto, **options)
    assert_golden("decompress-weights", name, proto, after, report)
    assert_same_function(proto, after)


def dequantizer(
    dtype: int,
    shape: tuple[int, ...],
    scales: tuple[int, ...],
    *,
    zero: bool,
    opset: int = 21,
    domain: str = "",
    scale_type: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """y = x + Identity(DequantizeLinear(codes)), so that a graph input decides nothing."""
    rng = np.random.default_rng(7)
    low, high = RANGES[dtype]
    count = int(np.prod(scales))
    tensors = [
        helper.make_tensor("codes", dtype, shape, rng.integers(low, high, shape).reshape(-1).tolist()),
        helper.make_tensor("scale", scale_type, scales, (rng.random(count) + 0.01).tolist()),
    ]
    if zero:
        tensors.append(helper.make_tensor("zero", dtype, scales, rng.integers(low, high, count).tolist()))
    inputs = ["codes", "scale", "zero"][: len(tensors)]
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["w"], domain=domain, **attributes),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, scale_type, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    proto: onnx.ModelProto = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    return proto


@pytest.mark.parametrize(
    "proto",
    [
        dequantizer(TensorProto.INT8, (4, 6), (), zero=True),
        dequantizer(TensorProto.UINT8, (4, 6), (1,), zero=True, opset=13),
        dequantizer(TensorProto.INT8, (4, 6), (6,), zero=True, axis=-1),
        dequantizer(TensorProto.INT8, (4, 6, 2), (4,), zero=False, axis=0),
        dequantizer(TensorProto.UINT4, (5, 6), (2, 6), zero=True, axis=0, block_size=3),
        dequantizer(TensorProto.INT4, (6, 5), (6, 2), zero=False, axis=1, block_size=4),
        dequantizer(TensorProto.INT16, (4, 6), (), zero=True),
        dequantizer(TensorProto.INT32, (4, 6), (4,), zero=False, axis=0),
        dequantizer(TensorProto.INT8, (4, 6), (4,), zero=True, axis=0, scale_type=TensorProto.FLOAT16),
        dequantizer(TensorProto.UINT8, (4, 6), (4,), zero=True, axis=0, domain="com.microsoft"),
    ],
)
def test_the_bits_are_those_of_the_runtime(proto: onnx.ModelProto) -> None:
    after, report = apply(DecompressWeights(), proto, where="all", check=not proto.opset_import[1:])
    assert report.counts["decompressed"] == 1
    assert op_types(after) == ["Add"]
    assert_same_function(proto, after)


def test_the_bytes_are_counted() -> None:
    proto = qdq.conv(activation=False, output=False)
    after, report = apply(DecompressWeights(), proto)
    before, now = (
        sum(len(onnx.numpy_helper.to_array(each).tobytes()) for each in model.graph.initializer)
        for model in (proto, emit(after))
    )
    assert report.counts == {"decompressed": 1, "added_bytes": now - before}
    assert report.extra["weights"] == [
        {"node": "w_dq", "value": "w", "codes": "int8", "codes_bytes": 288, "float_bytes": 1152}
    ]
    assert list(after.graph.initializers) == ["w"]


def test_a_convolution_that_is_quantised_on_all_sides_stays() -> None:
    after, report = apply(DecompressWeights(), qdq.conv(relu=True))
    assert not report.changed
    assert report.counts == {"kept_fused": 1}
    after, report = apply(DecompressWeights(), qdq.conv(relu=True, zero_point=128))
    assert not report.changed
    assert "would quantise a float weight again" in report.skipped[0][1]
    after, report = apply(DecompressWeights(), qdq.conv(), where="all")
    assert op_types(after).count("DequantizeLinear") == 2


def test_a_target_that_does_not_say_what_it_fuses() -> None:
    from graphopt.api import Context

    model = lower(qdq.conv())
    target = load_target("ort-cpu").model_copy(update={"dequantize": None})
    context = Context(target=target, analyses={})
    with pytest.raises(OptionError, match="does not say which weights"):
        DecompressWeights().run(model, DecompressWeights.Options(), context)
    assert DecompressWeights().run(model, DecompressWeights.Options(where="all"), context).changed


def weight_only(op: str, dtype: int, scales: str, readers: int, columns: int) -> onnx.ModelProto:
    """y = x W for codes of one *dtype*; *scales* is "tensor", "rows", "columns" or "axis/block"."""
    shape = (64, columns)
    low, high = RANGES[dtype]
    codes = np.random.default_rng(5).integers(low, high, shape)
    attributes: dict[str, Any] = {}
    if scales == "tensor":
        dims: tuple[int, ...] = ()
    elif scales in {"rows", "columns"}:
        attributes = {"axis": int(scales == "columns")}
        dims = (shape[attributes["axis"]],)
    else:
        axis, block = map(int, scales.split("/"))
        attributes = {"axis": axis, "block_size": block}
        dims = tuple(-(-size // block) if k == axis else size for k, size in enumerate(shape))
    nodes = [helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], name="dq", **attributes)]
    nodes += [helper.make_node(op, ["x", "w"], [f"y{k}"], name=f"m{k}") for k in range(readers)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, [2, columns]) for k in range(readers)],
        [
            helper.make_tensor("codes", dtype, shape, codes.reshape(-1).tolist()),
            helper.make_tensor("scale", TensorProto.FLOAT, dims, [0.01] * int(np.prod(dims))),
        ],
    )
    proto: onnx.ModelProto = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]
    )
    return proto


RULES_OF = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32)
"""Whether the installed runtime is one that the rules in ort-cpu.toml were read from."""


@pytest.mark.skipif(not RULES_OF, reason="earlier releases fuse less")
def test_the_rules_are_those_of_the_installed_runtime(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    path = tmp_path / "written.onnx"
    options.optimized_model_filepath = str(path)
    dtypes = (TensorProto.INT4, TensorProto.INT8, TensorProto.UINT8)
    kinds = ("tensor", "rows", "columns", "0/16", "0/32", "0/8", "0/24", "1/16")
    for op, dtype, scales, readers in itertools.product(("MatMul", "Gemm"), dtypes, kinds, (1, 2)):
        proto = weight_only(op, dtype, scales, readers, 48)
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        fused = "MatMulNBits" in {node.op_type for node in onnx.load(path).graph.node}
        _, report = apply(DecompressWeights(), proto)
        assert ("kept_fused" in report.counts) == fused, (op, dtype, scales, readers)


@pytest.mark.slow
def test_kws_dscnn_is_unpacked_and_faster(assets: Path, tmp_path: Path) -> None:
    path = assets / "models" / "mlperf_kws_dscnn.onnx"
    model = load(path)
    after, report = apply(DecompressWeights(), model)
    assert report.counts["decompressed"] == 5
    assert "DequantizeLinear" not in op_types(after)
    assert_same_function(path, after)
    found = structure_of(path)
    assert found is not None
    assert found.dequantize_before == {"Conv": 5}
    assert structure_of(write(emit(after), tmp_path / "m.onnx")) is None


def test_one_code_takes_less_as_a_float() -> None:
    proto = dequantizer(TensorProto.INT8, (1,), (), zero=True)
    _, report = apply(DecompressWeights(), proto)
    assert report.counts == {"decompressed": 1, "freed_bytes": 2}
