"""share-weights: bytes on disk, values that onnxruntime computes, and codebooks against brute force."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import OptionError
from graphopt.ir.cost import measure_cost
from graphopt.ir.emit import emit, save
from graphopt.ir.lower import load
from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.deduplicate import Deduplicate
from graphopt.passes.eliminate_dead import EliminateDead
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.palettes import choose
from graphopt.passes.palettes.codebook import make_codebook
from graphopt.passes.share_weights import ShareWeights
from tests.passes.harness import apply, assert_golden

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]


def matmul(weight: Array, opset: int = 17) -> onnx.ModelProto:
    """y = x W, with W also as a second output's operand, so that its values can be seen: v = I W."""
    dtype = helper.np_dtype_to_tensor_dtype(weight.dtype)
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", rows])],
        [helper.make_tensor_value_info("y", dtype, ["n", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    ir_version = 10 if opset > 20 else 8
    proto: onnx.ModelProto = helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)]
    )
    return proto


def values_of(model: Any, rows: int, dtype: Any = np.float32) -> Array:
    """The weight as onnxruntime computes it: the product with the identity."""
    results: list[Array] = []
    for level in (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        content = model if isinstance(model, onnx.ModelProto) else emit(model)
        session = ort.InferenceSession(
            content.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, {"x": np.eye(rows, dtype=dtype)})[0])
    np.testing.assert_array_equal(results[0], results[1])
    return results[0]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("bits", "opset"), [*((bits, 17) for bits in range(1, 9)), (3, 9), (4, 21), (6, 21)])
def test_every_number_of_bits(bits: int, opset: int) -> None:
    weight = normal(64, 129)
    after, report = apply(ShareWeights(), matmul(weight, opset), bits=bits, granularity="tensor")
    told = report.extra["palettes"][0]  # type: ignore[index]
    values = values_of(after, 64)
    assert (1 << bits) * 0.95 < len(np.unique(values)) == told["clusters"] <= 1 << bits
    # A Lloyd-Max quantiser of the normal distribution (Max, 1960); finite samples do a little better.
    max_db = {1: 4.40, 2: 9.30, 3: 14.62, 4: 20.22, 5: 26.01, 6: 31.89, 7: 37.81, 8: 43.7}[bits]
    error = float(((values - weight).astype(np.float64) ** 2).sum())
    measured = 10 * np.log10(float((weight.astype(np.float64) ** 2).sum()) / error)
    assert max_db - 0.25 < measured < max_db + (1.5 if bits < 7 else 6.0)
    assert measured == pytest.approx(told["sqnr_db"], abs=0.01)
    cost = measure_cost(after)
    tables = 256 * 15 if opset < 21 or bits != 4 else 0  # a byte for each code in a byte, at most
    assert cost.weight_bytes <= weight.nbytes * bits / 32 + 4 * 2**bits + tables
    assert not cost.dead


@pytest.mark.parametrize("bits", [1, 3, 4, 7])
def test_what_was_saved_is_what_the_file_lost(bits: int) -> None:
    proto = matmul(normal(96, 64))
    before = len(proto.SerializeToString())
    after, report = apply(ShareWeights(), proto, bits=bits)
    assert report.counts["bytes_saved"] == pytest.approx(
        before - len(emit(after).SerializeToString()), abs=400
    )


def test_tables_of_several_palettes_are_stored_once() -> None:
    proto = matmul(normal(64, 64))
    proto.graph.initializer.append(numpy_helper.from_array(normal(64, 64, seed=1), "v"))
    proto.graph.node[0].output[0] = "h"
    proto.graph.node.append(helper.make_node("MatMul", ["h", "v"], ["y"]))
    after, _ = apply(ShareWeights(), proto, bits=3)
    tables = [value for value in after.graph.initializers.values() if value.shape.numpy()[0] == 256]  # type: ignore[union-attr]
    assert sorted(value.const_value.nbytes for value in tables) == [4 * 256, 8 * 256]  # type: ignore[union-attr]
    assert all(len(value.uses()) == 1 for value in tables)


def test_a_palette_is_not_worth_the_tables_it_needs() -> None:
    _, report = apply(ShareWeights(), matmul(normal(32, 24)), bits=7)
    assert not report.changed
    assert "tables" in dict(report.skipped)["model"]


def test_codebooks_are_the_best_there_are() -> None:
    rng = np.random.default_rng(3)
    for size in (2, 3, 4):
        points = np.sort(rng.standard_normal(11) ** 3)
        mass = rng.random(11)
        found = make_codebook(points, mass, size, "kmeans")
        least = np.inf
        for cuts in itertools.combinations(range(1, 11), size - 1):
            parts = np.split(np.arange(11), cuts)
            error = sum(
                float((mass[p] * (points[p] - np.average(points[p], weights=mass[p])) ** 2).sum())
                for p in parts
            )
            least = min(least, error)
        error = float((mass * ((points[:, None] - found[None]) ** 2).min(1)).sum())
        assert error == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("size", [16, 64, 256])
def test_large_codebooks_come_close_to_many_lloyd_rounds(size: int) -> None:
    points = np.random.default_rng(4).laplace(size=20_000)
    found = make_codebook(points, None, size, "kmeans")
    best = np.quantile(points, (np.arange(size) + 0.5) / size)
    for _ in range(300):
        codes = np.searchsorted((best[1:] + best[:-1]) / 2, points)
        counts = np.bincount(codes, minlength=size)
        best = np.where(counts > 0, np.bincount(codes, points, size) / np.maximum(counts, 1), best)

    def error(codebook: Array) -> float:
        at = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, points)
        return float(((points - codebook[at]) ** 2).sum())

    assert error(found) <= error(best) * 1.02


def test_fewer_values_than_codes_are_kept_exactly() -> None:
    weight = np.random.default_rng(5).choice(np.array([-2.5, 0, 0.125, 7], np.float32), (64, 64))
    after, report = apply(ShareWeights(), matmul(weight), bits=8)
    told = report.extra["palettes"][0]  # type: ignore[index]
    assert (told["bits"], told["clusters"], told["exact"]) == (2, 4, True)
    np.testing.assert_array_equal(values_of(after, 64), weight)


@pytest.mark.parametrize("spacing", ["linear", "log", "power-of-two"])
def test_spacing(spacing: str) -> None:
    after, _ = apply(ShareWeights(), matmul(normal(64, 64)), spacing=spacing, granularity="tensor")
    levels = np.unique(values_of(after, 64)).astype(np.float64)
    assert 0.0 in levels
    positive = levels[levels > 0]
    if spacing == "linear":
        np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-4)
    elif spacing == "log":
        np.testing.assert_allclose(positive[1:] / positive[:-1], positive[1] / positive[0], rtol=1e-4)
    else:
        mantissa, _ = np.frexp(positive)
        assert (mantissa == 0.5).all()


def test_channels_have_scales_where_that_is_worth_it() -> None:
    weight = normal(128, 64) * 10.0 ** np.linspace(-2, 2, 64, dtype=np.float32)
    proto = matmul(weight)
    after, report = apply(ShareWeights(), proto)
    assert report.extra["palettes"][0]["form"] == "channel"  # type: ignore[index]
    values = values_of(after, 128)
    per_channel = ((values - weight) ** 2).sum(0) / (weight**2).sum(0)
    assert (10 * np.log10(per_channel) < -15).all()
    _, report = apply(ShareWeights(), matmul(normal(16, 64)))
    assert report.extra["palettes"][0]["form"] == "tensor"  # type: ignore[index]


def test_groups_have_codebooks_of_their_own() -> None:
    weight = normal(64, 40)
    weight[:, 8:] += 100
    after, report = apply(ShareWeights(), matmul(weight), granularity="group", group_size=8)
    assert report.extra["palettes"][0]["clusters"] == 5 * 16  # type: ignore[index]
    values = values_of(after, 64)
    assert len(np.unique(values[:, :8])) == 16
    assert float(((values - weight) ** 2).sum()) < 0.02 * float((normal(64, 40) ** 2).sum())


@pytest.mark.parametrize("limit", [1 << 25, 1 << 11])
def test_errors_count_by_what_the_inputs_are(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(choose, "_SAMPLED_IN_MEMORY", limit)
    monkeypatch.setattr(choose, "_POINTS", 1 << 11)  # every second element, where the weight is large
    weight = normal(64, 64)
    scale = np.where(np.arange(64) < 16, 10.0, 0.1).astype(np.float32)
    feeds = [{"x": normal(8, 64, seed=9 + k) * scale} for k in range(4)]
    proto = matmul(weight)
    x = np.concatenate([feed["x"] for feed in feeds])
    errors = {}
    for weighting in ("none", "activation"):
        after, report = apply(
            ShareWeights(), proto, data=feeds, bits=3, weighting=weighting, granularity="tensor"
        )
        assert report.extra["palettes"][0]["weighted"] == (weighting == "activation")  # type: ignore[index]
        errors[weighting] = float(((x @ (values_of(after, 64) - weight)) ** 2).mean())
    assert errors["activation"] < 0.95 * errors["none"]


def test_bits_are_chosen_weight_by_weight() -> None:
    for wanted in (15.0, 30.0):
        after, report = apply(ShareWeights(), matmul(normal(64, 256)), bits="auto", sqnr_db=wanted)
        told = report.extra["palettes"][0]  # type: ignore[index]
        weight = normal(64, 256)
        error = float(((values_of(after, 64) - weight) ** 2).sum())
        assert 10 * np.log10(float((weight**2).sum()) / error) >= wanted
        assert told["bits"] == {15.0: 4, 30.0: 6}[wanted]


@pytest.mark.parametrize("name", ["bytes", "uint4", "scales"])
def test_golden(name: str) -> None:
    weight = normal(32, 48)
    if name == "scales":
        weight *= 4.0 ** np.arange(48, dtype=np.float32)
    proto = matmul(weight, 21 if name == "uint4" else 17)
    after, report = apply(ShareWeights(), proto, bits=6 if name == "scales" else 4)
    assert_golden("share-weights", name, proto, after, report)


def a8(opset: int) -> onnx.ModelProto:
    """Scenario A8: 1024 x 1024 with 16 values."""
    weight = np.random.default_rng(1).choice(normal(16), (1024, 1024))
    return matmul(weight, opset)


@pytest.mark.parametrize("opset", [17, 21])
def test_clean_up_keeps_palettes_packed(opset: int, tmp_path: Path) -> None:
    proto = a8(opset)
    model, _ = apply(ShareWeights(), proto)
    steps: list[tuple[Any, dict[str, Any]]] = [
        (Canonicalize(), {}),
        (FoldConstants(), {}),
        (FoldConstants(), {"max_growth_bytes": 1 << 30}),
        (Deduplicate(), {}),
        (EliminateDead(), {}),
    ]
    for step, options in steps:
        model, _ = apply(step, model, **options)
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size <= 0.14 * (4 << 20)
    assert not measure_cost(model).dead
    np.testing.assert_array_equal(values_of(model, 1024), values_of(proto, 1024))


@pytest.mark.parametrize("opset", [17, 21])
def test_the_runtime_folds_palettes_at_load(opset: int, tmp_path: Path) -> None:
    after, _ = apply(ShareWeights(), matmul(normal(64, 64), opset), bits=6)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "written.onnx")
    ort.InferenceSession(emit(after).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "written.onnx").graph.node] == ["MatMul"]


def test_external_weights_are_read_in_blocks_and_come_out_the_same(tmp_path: Path) -> None:
    proto = matmul(normal(301, 300))
    inside, _ = apply(ShareWeights(), proto, bits=5)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    outside, _ = apply(ShareWeights(), load(tmp_path / "m.onnx"), bits=5, check=False)
    save(outside, tmp_path / "out.onnx")
    np.testing.assert_array_equal(values_of(onnx.load(tmp_path / "out.onnx"), 301), values_of(inside, 301))


@pytest.mark.parametrize("limit", ["_SAMPLED", "_SAMPLED_IN_MEMORY"])
def test_a_codebook_from_a_part_of_a_large_weight_is_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    weight = normal(300, 300)
    proto = matmul(weight)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=limit == "_SAMPLED", size_threshold=0)
    sqnr = []
    for points in (1 << 20, 1 << 14):  # the second one looks at every sixth element
        monkeypatch.setattr(choose, limit, points)
        monkeypatch.setattr(choose, "_POINTS", points)
        after, _ = apply(ShareWeights(), load(tmp_path / "m.onnx"), granularity="tensor", check=False)
        save(after, tmp_path / "out.onnx")
        error = values_of(onnx.load(tmp_path / "out.onnx"), 300) - weight
        sqnr.append(10 * math.log10(float(np.square(weight).sum()) / float(np.square(error).sum())))
    assert sqnr[1] == pytest.approx(sqnr[0], abs=0.1)
    assert sqnr[1] != sqnr[0]


def test_weights_that_are_alike_are_stored_once() -> None:
    weights = [normal(64, 64), normal(64, 64), normal(64, 64) + np.float32(0.001), normal(64, 64, seed=2)]
    nodes = [helper.make_node("MatMul", [f"v{k}", f"w{k}"], [f"v{k + 1}"]) for k in range(4)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("v4", TensorProto.FLOAT, [2, 64])],
        [numpy_helper.from_array(weight, f"w{k}") for k, weight in enumerate(weights)],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    _, report = apply(ShareWeights(), proto)
    assert (report.counts["initializers_merged"], report.counts["palettes"]) == (1, 3)
    _, report = apply(ShareWeights(), proto, share_within=0.01)
    assert (report.counts["nearly_equal_shared"], report.counts["palettes"]) == (1, 2)
    assert report.extra["shared"][0]["same_as"] == "w0"  # type: ignore[index]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.full((64, 64), np.nan, np.float32), "it holds NaN or infinities"),
        (np.where(np.eye(64) > 0, np.inf, 1).astype(np.float32), "it holds NaN or infinities"),
        (np.ones((64, 64), np.float32), "all its elements are the same; synthesize-constants takes it"),
        (np.zeros((64, 0), np.float32), "it is empty"),
        (normal(4, 4), "it has 16 elements, fewer than 512"),
    ],
)
def test_what_is_left_alone_is_named(weight: Array, reason: str) -> None:
    _, report = apply(ShareWeights(), matmul(weight))
    assert not report.changed
    assert report.skipped == (("weight 'w'", reason),)


def test_kept_and_overridable() -> None:
    _, report = apply(ShareWeights(), matmul(normal(64, 64)), keep=("prod*",))
    assert report.skipped == (("weight 'w'", "it is to be kept"),)
    proto = matmul(normal(64, 64))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 64]))
    _, report = apply(ShareWeights(), proto)
    assert "callers may override it" in report.skipped[0][1]


def test_options_that_cannot_be_met() -> None:
    with pytest.raises(OptionError, match=r"opset 17, which has no uint4.*upgrade-opset\{to=21\}"):
        apply(ShareWeights(), matmul(normal(64, 64)), storage="uint4")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(dtype: Any) -> None:
    weight = normal(64, 64).astype(dtype)
    after, report = apply(ShareWeights(), matmul(weight))
    assert report.counts["palettes"] == 1
    values = values_of(after, 64, dtype)
    assert values.dtype == dtype
    assert float(((values.astype(np.float64) - weight) ** 2).mean()) < 0.02


def test_a_grouped_convolution_is_weighted_by_its_own_inputs() -> None:
    weight = normal(64, 2, 3, 3)
    weight[:8] *= 0.3
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=32)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    loud = np.where(np.arange(64) < 8, 10, 0.01).astype(np.float32)[:, None, None]
    feeds = [{"x": normal(1, 64, 8, 8, seed=k) * loud} for k in range(3)]
    outputs = {}
    for weighting in ("none", "activation"):
        after, _ = apply(ShareWeights(), proto, data=feeds, bits=2, weighting=weighting, granularity="tensor")
        session = ort.InferenceSession(emit(after).SerializeToString(), providers=["CPUExecutionProvider"])
        reference = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs[weighting] = sum(
            float(((session.run(None, feed)[0] - reference.run(None, feed)[0]) ** 2).sum()) for feed in feeds
        )
    assert outputs["activation"] < 0.8 * outputs["none"]


@pytest.mark.slow
def test_squeezenet_is_stored_as_it_was_compressed(assets: Path, tmp_path: Path) -> None:
    path = assets / "models" / "imagenet_squeezenet10_deepcompressed.onnx"
    after, report = apply(ShareWeights(), load(path), bits=8, check=False)
    told: Any = report.extra["palettes"]
    assert sum(each["exact"] for each in told) >= 20
    save(after, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < 0.27 * path.stat().st_size
