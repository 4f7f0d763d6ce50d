"""quantize-weights: what onnxruntime computes with codes in every form; the grid; bad input."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import OptionError, UnsupportedModelError
from graphopt.ir import stream
from graphopt.ir.cost import measure_cost
from graphopt.ir.emit import emit, save
from graphopt.ir.lower import load, lower
from graphopt.ir.stream import LazyTensor
from graphopt.ir.tensors import constant_of, to_array
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.passes.share_weights import ShareWeights
from graphopt.passes.weights.grid import Grid
from tests.passes.harness import apply, assert_golden, op_types, parse, run_feeds, session_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from graphopt.api import Report
    from graphopt.ir import Model

PASS = QuantizeWeights()
RNG = np.random.default_rng


def graph_model(
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, Any],
    shape: list[Any],
    *,
    kind: int = TensorProto.FLOAT,
    opset: int = 21,
    rank: int = 2,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    versions = {13: 8, 17: 8, 21: 10, 25: 13}
    return helper.make_model(
        graph, ir_version=versions[opset], opset_imports=[helper.make_opsetid("", opset)]
    )


def product(
    kind: str = "MatMul", rows: int = 512, columns: int = 520, *, opset: int = 21, behind: str = ""
) -> onnx.ModelProto:
    """x [3, rows] times a weight, maybe turned, with a bias, maybe something behind."""
    weight = (RNG(1).standard_normal((rows, columns)) * 0.05).astype(np.float32)
    bias = RNG(2).standard_normal(columns).astype(np.float32)
    inner = "z" if behind else "y"
    if kind == "MatMul":
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
            helper.make_node("Add", ["p", "b"], [inner], name="bias"),
        ]
    else:
        turned = kind == "GemmT"
        weight = np.ascontiguousarray(weight.T) if turned else weight
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], [inner], name="product", transB=int(turned))]
    if behind == "Clip":
        nodes.append(helper.make_node("Clip", ["z", "low", "high"], ["y"], name="behind"))
    elif behind:
        nodes.append(helper.make_node(behind, ["z"], ["y"], name="behind"))
    weights: dict[str, Any] = {"w": weight, "b": bias}
    if behind == "Clip":
        weights |= {"low": np.float32(-0.5).reshape(()), "high": np.float32(0.25).reshape(())}
    return graph_model(nodes, weights, [3, rows], opset=opset)


def sqnr_db(before: onnx.ModelProto, after: Model, feeds: dict[str, Any]) -> float:
    one = run_feeds(session_for(before), feeds)["y"].astype(np.float64)
    two = run_feeds(session_for(after), feeds)["y"].astype(np.float64)
    return float(10 * np.log10(np.square(one).sum() / max(np.square(one - two).sum(), 1e-300)))


def feeds_of(rows: int = 512) -> dict[str, Any]:
    return {"x": RNG(3).standard_normal((3, rows)).astype(np.float32)}


FLOOR_DB = {8: 38.0, 4: 17.0, 2: 4.0}
"""Of Gaussian weights: half a step of the range of the extremes, less a margin."""


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "GemmT"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("form", ["dequantize", "folded", "matmulnbits"])
def test_products_in_every_form(kind: str, bits: int, symmetric: bool, form: str) -> None:
    model = product(kind, opset=25 if bits == 2 else 21)
    after, report = apply(
        PASS, model, bits=bits, symmetric=symmetric, form=form, clip="mse", check=form != "matmulnbits"
    )
    assert report.counts == {{"dequantize": "dequantized"}.get(form, form): 1}
    assert sqnr_db(model, after, feeds_of()) > FLOOR_DB[bits] - 2 * (form != "dequantize")
    (name,) = [name for name in after.graph.initializers if name.endswith("_codes")]
    held = after.graph.initializers[name].const_value
    assert held is not None
    assert held.nbytes == 512 * 520 * bits // 8
    assert not measure_cost(after).dead
    assert measure_cost(after).weight_bytes < 512 * 520 * 4 * (bits + 2) / 32


@pytest.mark.parametrize("rows", [200, 511])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("form", ["dequantize", "folded", "matmulnbits"])
def test_blocks_that_do_not_divide(rows: int, symmetric: bool, form: str) -> None:
    model = product(rows=rows, columns=33)
    after, _ = apply(
        PASS, model, bits=4, block_size=64, symmetric=symmetric, form=form, check=form != "matmulnbits"
    )
    assert sqnr_db(model, after, feeds_of(rows)) > 14


def optimised(model: Model, folder: Path) -> list[str]:
    """Operators that the installed onnxruntime really runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(emit(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(op_types(onnx.load(folder / "optimised.onnx"), sort=True))


@pytest.mark.parametrize("behind", ["", "Relu", "Clip"])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "GemmT"])
@pytest.mark.parametrize("bits", [8, 4])
def test_onnxruntime_fuses_what_auto_writes(tmp_path: Path, kind: str, bits: int, behind: str) -> None:
    model = product(kind, behind=behind)
    after, report = apply(PASS, model, bits=bits)
    assert report.counts["fused"] == 1
    assert report.counts.get("activations_rewritten", 0) == (behind != "")
    found = optimised(after, tmp_path)
    assert "MatMulNBits" in found
    assert "DequantizeLinear" not in found
    assert sqnr_db(model, after, feeds_of()) > FLOOR_DB[bits] - 3


def test_small_products_and_convolutions_are_unpacked_at_load(tmp_path: Path) -> None:
    weights = {
        "k": RNG(1).standard_normal((16, 8, 3, 3)).astype(np.float32),
        "t": RNG(2).standard_normal((16, 8, 2, 2)).astype(np.float32),
        "shape": np.array([1, -1, 64], np.int64),
        "m": RNG(4).standard_normal((64, 48)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("ConvTranspose", ["c", "t"], ["d"], name="up", strides=[2, 2]),
        helper.make_node("Reshape", ["d", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "m"], ["y"], name="small"),
    ]
    model = graph_model(nodes, weights, [1, 8, 10, 10], rank=3)
    feeds = {"x": RNG(3).standard_normal((1, 8, 10, 10)).astype(np.float32)}
    for bits, least in ((8, 35.0), (4, 12.0)):
        after, report = apply(PASS, model, bits=bits, min_elements=100, block_size=32 if bits == 4 else None)
        assert report.counts == {"folded": 3}
        assert sqnr_db(model, after, feeds) > least
        found = optimised(after, tmp_path)
        assert not {"Cast", "Mul", "DequantizeLinear"} & set(found)
        folded, _ = apply(FoldConstants(), after)
        assert measure_cost(folded).weight_bytes <= measure_cost(after).weight_bytes


@pytest.mark.parametrize("symmetric", [True, False])
def test_tables_are_gathered_as_codes(symmetric: bool) -> None:
    weights = {"w": RNG(1).standard_normal((300, 32)).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["w", "x"], ["y"], name="embed")]
    model = graph_model(nodes, weights, [2, 5], kind=TensorProto.INT64, rank=3)
    feeds = {"x": np.array([[0, 299, 5, 5, -1], [1, 2, 3, 4, 6]])}
    after, report = apply(PASS, model, bits=4, symmetric=symmetric)
    assert report.counts == {"gathered": 1}
    assert next(iter(op_types(after))) == "Gather"
    assert sqnr_db(model, after, feeds) > 40
    kept, report = apply(PASS, model, bits=4, embeddings="keep")
    assert report.skipped == (("w", "embeddings=keep"),)
    folded, _ = apply(PASS, model, bits=8, embeddings="folded")
    assert sqnr_db(model, folded, feeds) > 40
    assert measure_cost(kept).weight_bytes == 300 * 32 * 4


def test_recurrent_weights_and_shared_ones() -> None:
    weights = {
        "w": RNG(1).standard_normal((1, 64, 24)).astype(np.float32) * 0.2,
        "r": RNG(2).standard_normal((1, 64, 16)).astype(np.float32) * 0.2,
        "m": RNG(4).standard_normal((24, 24)).astype(np.float32) * 0.2,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["one"]),
        helper.make_node("Transpose", ["m"], ["turned"]),
        helper.make_node("MatMul", ["one", "turned"], ["two"]),
        helper.make_node("LSTM", ["two", "w", "r"], ["y"], name="lstm", hidden_size=16),
    ]
    model = graph_model(nodes, weights, [7, 1, 24], rank=4)
    feeds = {"x": RNG(3).standard_normal((7, 1, 24)).astype(np.float32)}
    after, report = apply(PASS, model, min_elements=64)
    assert report.counts == {"folded": 3}
    assert sqnr_db(model, after, feeds) > 35


# The grid


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_is_to_the_nearest_code(bits: int, symmetric: bool) -> None:
    grid = Grid(bits, symmetric)
    groups = RNG(0).standard_normal((3, 64, 5)).astype(np.float32)
    scale, zero = grid.fit(groups)
    codes = grid.encode(groups, scale, zero)
    assert codes.min() >= grid.low
    assert codes.max() <= grid.high
    error = np.abs(grid.decode(codes, scale, zero) - groups)
    assert (error <= 0.5001 * scale[:, None] * (1 if symmetric else 2)).all()


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_lowers_the_squared_error_and_refinement_the_norm(bits: int, symmetric: bool) -> None:
    groups = RNG(0).standard_t(4, (4, 128, 6)).astype(np.float32)

    def error(grid: Grid) -> np.ndarray:
        scale, zero = grid.fit(groups)
        return np.abs(grid.decode(grid.encode(groups, scale, zero), scale, zero) - groups)

    plain = Grid(bits, symmetric)
    clipped = dataclasses.replace(plain, clip="mse")
    refined = dataclasses.replace(clipped, refine="hqq")
    assert (np.square(error(clipped)).sum(1) <= np.square(error(plain)).sum(1) * 1.0001).all()
    assert np.square(error(clipped)).sum() < 0.95 * np.square(error(plain)).sum()
    assert ((error(refined) ** 0.7).sum(1) <= (error(clipped) ** 0.7).sum(1) * 1.0001).all()
    assert (error(refined) ** 0.7).sum() < (error(clipped) ** 0.7).sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.5, -3.0, 1e-44, 3e38])
def test_constant_and_extreme_weights(symmetric: bool, value: float) -> None:
    grid = Grid(8, symmetric)
    groups = np.full((1, 32, 2), value, np.float32)
    scale, zero = grid.fit(groups)
    decoded = grid.decode(grid.encode(groups, scale, zero), scale, zero)
    assert np.isfinite(scale).all()
    assert np.allclose(decoded, groups, rtol=0.01, atol=1e-37)


# Streaming


def external(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    return path


@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"bits": 4, "symmetric": False, "form": "matmulnbits"}])
@pytest.mark.parametrize("kind", ["MatMul", "GemmT"])
def test_external_data_gives_the_same_codes(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    model = product(kind)
    path = external(model, tmp_path)
    lazy, _ = apply(PASS, load(path), check=False, **options)
    eager, _ = apply(PASS, onnx.load(path), check=False, **options)
    values = lazy.graph.initializers
    assert any(isinstance(value.const_value, LazyTensor) for value in values.values())
    save(lazy, tmp_path / "out.onnx")
    again = load(tmp_path / "out.onnx")
    for name, value in eager.graph.initializers.items():
        want, got = value.const_value, again.graph.initializers[name].const_value
        assert want is not None
        assert got is not None
        assert np.array_equal(to_array(want), to_array(got)), name


@pytest.mark.parametrize(("bits", "block"), [(8, None), (4, 32), (2, 64)])
def test_streamed_codes_follow_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, block: int | None
) -> None:
    """The stream rounds in buffers that it uses again; rint of the whole weight does not."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1 << 19)
    weight = RNG(8).standard_normal((1536, 512)).astype(np.float32)
    model = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight}, [1, 1536], opset=25
    )
    options: dict[str, Any] = {"bits": bits, "form": "dequantize"} | ({"block_size": block} if block else {})
    lazy, _ = apply(PASS, load(external(model, tmp_path)), check=False, **options)
    assert all(
        isinstance(value.const_value, LazyTensor) or value.const_value.size == 512
        for value in lazy.graph.initializers.values()
        if value.const_value is not None
    )
    save(lazy, tmp_path / "out.onnx")
    dequantize = next(
        each for each in load(tmp_path / "out.onnx").graph if each.op_type == "DequantizeLinear"
    )
    codes, scale = (to_array(constant_of(value)) for value in dequantize.inputs[:2])  # type: ignore[arg-type]
    groups = weight.reshape(-1, block or 1536, 512)
    most = np.float32((1 << (bits - 1)) - 1)
    expected_scale = np.abs(groups).max(axis=1) / most
    expected = np.rint(groups * (1 / expected_scale)[:, None])
    assert np.array_equal(scale.reshape(expected_scale.shape), expected_scale)
    assert np.array_equal(codes.astype(np.int8), expected.astype(np.int8).reshape(1536, 512))


# What is left alone, and why


@pytest.mark.parametrize(("rows", "form"), [(1, "fused"), (8, "fused"), (16, "folded"), ("n", "fused")])
def test_many_rows_at_a_time_stay_floats(rows: int | str, form: str, tmp_path: Path) -> None:
    weight = (RNG(1).standard_normal((512, 512)) * 0.05).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    model = graph_model([node], {"w": weight}, [rows, 512])
    after, report = apply(PASS, model)
    assert report.counts == {form: 1}
    assert ("MatMulNBits" in optimised(after, tmp_path)) == (form == "fused")
    if form == "folded":
        assert "16 rows at a time are faster with floats" in str(report.extra["weights"])
    elif rows == "n":
        _, report = apply(PASS, model, dims={"n": 16})
        assert report.counts == {"folded": 1}


def skipped(report: Report) -> dict[str, str]:
    return dict(report.skipped)


def test_what_is_no_product_stays_where_only_matmulnbits_has_the_codes() -> None:
    kernel = RNG(0).standard_normal((32, 16, 3, 3)).astype(np.float32)
    model = graph_model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        {"w": kernel},
        [1, 16, 8, 8],
        opset=17,
        rank=4,
    )
    after, report = apply(PASS, model, bits=4, form="matmulnbits")
    assert not report.changed
    assert "need opset 21" in skipped(report)["w"]
    assert op_types(after) == ["Conv"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay(bad: float) -> None:
    model = product()
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[5, 7] = bad
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    _, report = apply(PASS, model)
    assert not report.changed
    assert skipped(report) == {"w": "it holds NaN or infinities"}


@pytest.mark.parametrize("form", ["auto", "dequantize", "matmulnbits"])
def test_a_weight_that_a_body_reads_from_outside(tmp_path: Path, form: str) -> None:
    # onnxruntime looks for the codes of a product in its own graph, and refuses the model otherwise.
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,256] x) => (float[1,256] y) <int64 n = {2}, bool yes = {1}> {
            a = Loop (n, yes, x) <body = b (int64 i, bool c, float[1,256] s) => (bool d, float[1,256] t) {
                d = Identity (c)
                p = MatMul (s, w)
                t = Tanh (p)
            }>
            y = Gemm (a, w)
        }"""
    model = onnx.parser.parse_model(text)
    weight = (RNG(1).standard_normal((256, 256)) * 0.05).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    after, report = apply(PASS, model, form=form)
    assert sum(report.counts.values()) == 1
    assert optimised(after, tmp_path)  # it loads
    assert sqnr_db(model, after, {"x": RNG(3).standard_normal((1, 256)).astype(np.float32)}) > 35


@pytest.mark.parametrize(("symmetric", "clip"), [(True, "none"), (False, "mse")])
@pytest.mark.parametrize("form", ["auto", "dequantize"])
@pytest.mark.parametrize("kind", ["stack", "left", "deconvolution", "scaled Gemm", "lstm"])
def test_scales_go_by_output_channels(kind: str, form: str, symmetric: bool, clip: str) -> None:
    # Output channels differ by a factor of 1,000: a scale for several would leave nothing of the small ones.
    ramp = np.geomspace(0.001, 1, 48, dtype=np.float32)
    shape, feed, node, factors = {
        "stack": ((3, 64, 48), (3, 5, 64), helper.make_node("MatMul", ["x", "w"], ["y"]), ramp),
        "left": ((48, 64), (64, 5), helper.make_node("MatMul", ["w", "x"], ["y"]), ramp[:, None]),
        "deconvolution": (
            (64, 48, 2, 3),
            (1, 64, 4, 4),
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[2, 3]),
            ramp[:, None, None],
        ),
        "scaled Gemm": ((64, 48), (5, 64), helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5), ramp),
        "lstm": (
            (1, 48, 64),
            (5, 1, 64),
            helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=12),
            ramp[:, None],
        ),
    }[kind]
    weights = {"w": RNG(1).standard_normal(shape).astype(np.float32) * factors}
    if kind == "lstm":
        weights["r"] = np.zeros((1, 48, 12), np.float32)
    model = graph_model([node], weights, list(feed), rank=len(feed) + (kind == "lstm"))
    after, report = apply(PASS, model, form=form, symmetric=symmetric, clip=clip)
    assert report.changed
    # The weight as it is computed, against the one that was there, channel by channel.
    emitted = emit(after)
    reader = next(each for each in emitted.graph.node if each.op_type == node.op_type)
    index = list(node.input).index("w")
    emitted.graph.output.append(
        helper.make_tensor_value_info(reader.input[index], TensorProto.FLOAT, list(shape))
    )
    x = RNG(3).standard_normal(feed).astype(np.float32)
    found = run_feeds(session_for(emitted), {"x": x})[reader.input[index]]
    axis = {"stack": 2, "left": 0, "deconvolution": 1, "scaled Gemm": 1, "lstm": 1}[kind]
    others = tuple(each for each in range(len(shape)) if each != axis)
    error = np.square(found - weights["w"]).sum(others) / np.square(weights["w"]).sum(others)
    assert error.max() < 10**-3.7


@pytest.mark.parametrize("form", ["auto", "dequantize", "matmulnbits"])
@pytest.mark.parametrize("columns", [512, 515])
def test_two_bits_are_what_they_are_once_onnxruntime_has_fused(form: str, columns: int) -> None:
    # onnxruntime 1.32.0 mixes up the codes where a row of them ends inside a byte.
    model = product(columns=columns, opset=25)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    after, report = apply(PASS, model, form=form, bits=2)
    assert report.changed
    content, feeds = emit(after).SerializeToString(), {"x": feeds_of()["x"][:1]}
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    plain, fused = run_feeds(session_for(after), feeds)["y"], run_feeds(session, feeds)["y"]
    assert np.linalg.norm(fused - plain) < 0.02 * np.linalg.norm(plain)


def test_codes_that_would_take_more_bytes_stay_floats() -> None:
    row = {"w": RNG(1).standard_normal((1, 4096)).astype(np.float32)}
    model = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], row, [3, 1])
    for options in ({}, {"form": "matmulnbits"}, {"form": "dequantize", "bits": 4}):
        _, report = apply(PASS, model, **options)
        assert not report.changed
        assert "instead of 16384" in skipped(report)["w"]


def test_a_block_that_is_longer_than_the_rows_is_not_padded_to_its_size() -> None:
    model = product(rows=96)
    after, _ = apply(PASS, model, form="matmulnbits", bits=4, block_size=1 << 30)
    assert measure_cost(after).weight_bytes < 0.2 * measure_cost(lower(model)).weight_bytes
    assert sqnr_db(model, after, feeds_of(96)) > FLOOR_DB[4] - 3


def test_weights_that_are_out_of_reach_are_named() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[2,64] x) => (float[2,64] y, float[1,2,64] z)
        <int64[1] zero = {0}, int64[1] half = {32}, int64[1] end = {64}> {
            a = own.inside (x)
            b = own.given (a, g)
            t = Transpose (w)
            h = Cast <to = 1> (c)
            d = MatMul (b, t)
            i = Slice (s, zero, half, zero)
            j = Slice (s, half, end, zero)
            u = Concat <axis = 0> (j, i)
            v = Unsqueeze (u, zero)
            z = MatMul (d, v)
            y = MatMul (d, h)
        }
        <domain: "own", opset_import: ["" : 21]>
        inside (p) => (q) {
            k = Constant <value = float[2,3] {1, 2, 3, 4, 5, 6}> ()
            q = MatMul (p, k)
        }
        <domain: "own", opset_import: ["" : 21]>
        given (p, k) => (q) { q = MatMul (p, k) }"""
    model = onnx.parser.parse_model(text)
    arrays = {name: RNG(k).standard_normal((64, 64)).astype(np.float32) for k, name in enumerate("kgwcs")}
    model.functions[0].node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(arrays.pop("k"), "k"))
    arrays["c"] = arrays["c"].astype(np.float16)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    _, report = apply(PASS, model)
    assert not report.changed
    assert skipped(report) == {
        "k": "it stands in function 'inside', and weights in functions stay",
        "g": "function 'given' reads it, and weights in functions stay",
        "w": "Transpose stands between it and what multiplies with it; fold-constants before it would help",
        "c": "Cast stands between it and what multiplies with it",
        "s": "Slice stands between it and what multiplies with it; fold-constants before it would help",
    }
    _, report = apply(ShareWeights(), model)
    assert report.counts["palettes"] == 1  # w: palettes stand in front of Transpose as well
    assert {where for where, _ in report.skipped} == {f"weight {name!r}" for name in "kgcs"}


def test_no_fold_is_promised_where_a_weight_is_cut_anew_in_every_run() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g
        (float[2,64] a, int64[1] from, int64[1] to) => (float[2,k] y) <int64[1] one = {1}> {
            part = Slice (w, from, to, one)
            y = MatMul (a, part)
        }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    _, report = apply(PASS, model)
    assert skipped(report) == {"w": "Slice stands between it and what multiplies with it"}


def test_reasons() -> None:
    model = product()
    assert "min_elements" in skipped(apply(PASS, model, min_elements=10**7)[1])["w"]
    assert skipped(apply(PASS, model, keep=("prod*",))[1]) == {"w": "kept on request"}
    double = product()
    for index, tensor in enumerate(double.graph.initializer):
        array = numpy_helper.to_array(tensor).astype(np.float64)
        double.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, tensor.name))
    double.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    double.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert "only float32" in skipped(apply(PASS, double)[1])["w"]
    old, report = apply(PASS, model, runtime="1.24")
    assert report.counts == {"folded": 1}
    assert "1.24 does not fuse it" in str(report.extra["weights"])
    assert "Cast" in op_types(old)


def test_an_opset_that_is_too_low_names_the_upgrade() -> None:
    with pytest.raises(UnsupportedModelError, match=r"upgrade-opset\{to=21\}"):
        apply(PASS, product(opset=17), bits=4)
    with pytest.raises(UnsupportedModelError, match=r"upgrade-opset\{to=25\}"):
        apply(PASS, product(opset=21), bits=2)
    with pytest.raises(UnsupportedModelError, match=r"upgrade-opset\{to=21\}"):
        apply(PASS, product(opset=17), block_size=64)
    after, _ = apply(PASS, product(opset=17))
    assert "DequantizeLinear" in op_types(after)


@pytest.mark.parametrize("size", [0, 8, 48, -16])
def test_block_sizes_are_powers_of_two(size: int) -> None:
    from pydantic import ValidationError

    with pytest.raises((ValidationError, OptionError)):
        QuantizeWeights.Options(block_size=size)


def test_nothing_to_do() -> None:
    model = parse('<ir_version: 8, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    _, report = apply(PASS, model, bits=2)
    assert not report.changed


def test_golden() -> None:
    model = product("GemmT", rows=512, columns=520, behind="Relu")
    after, report = apply(PASS, model)
    assert_golden("quantize-weights", "gemm-and-relu", lower(model), after, report)
