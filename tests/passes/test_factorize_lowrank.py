"""factorize-lowrank: exact at full rank, optimal below, in every form; budgets, data, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import DataError, GateFailed, OptionError
from graphopt.ir.cost import measure_cost
from graphopt.ir.lower import lower
from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.factorize_lowrank import FactorizeLowrank
from graphopt.passes.fold_constants import FoldConstants
from graphopt.pipeline.options import build_options
from graphopt.runtime.measurements import Measured
from tests.passes.harness import (
    apply,
    assert_golden,
    assert_same_function,
    op_types,
    parse,
    run_feeds,
    session_for,
)

PASS = FactorizeLowrank()
LOOSE: dict[str, Any] = {"round_to": 1, "min_gain": 1.0}


def low_rank(generator: np.random.Generator, rows: int, columns: int, rank: int) -> np.ndarray:
    """A weight whose singular values fall off behind *rank*."""
    thin = generator.normal(size=(rows, rank)) @ generator.normal(size=(rank, columns))
    noisy: np.ndarray = thin / np.sqrt(rank * columns) + 1e-3 * generator.normal(size=(rows, columns))
    return noisy.astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: list[int | str],
    *,
    rank: int | None = None,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (rank or len(shape)))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def conv(
    kernel: tuple[int, int] = (3, 3), rank: int = 6, *, seed: int = 0, **attributes: Any
) -> onnx.ModelProto:
    generator = np.random.default_rng(seed)
    weight = low_rank(generator, 24, 16 * kernel[0] * kernel[1], rank).reshape(24, 16, *kernel)
    bias = generator.normal(size=24).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **attributes)
    return model_of([node], {"w": weight, "b": bias}, ["n", 16, 9, 10])


def gemm(**attributes: Any) -> onnx.ModelProto:
    generator = np.random.default_rng(1)
    weight = low_rank(generator, 20, 30, 5)
    weight = weight if attributes.get("transB") else weight.T.copy()
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", **attributes)
    bias = generator.normal(size=20).astype(np.float32)
    return model_of([node], {"w": weight, "b": bias}, ["n", 30])


def matmul() -> onnx.ModelProto:
    generator = np.random.default_rng(2)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="proj"),
        helper.make_node("Add", ["h", "b"], ["y"], name="bias"),
    ]
    weights = {
        "w": low_rank(generator, 20, 30, 5).T.copy(),
        "b": generator.normal(size=20).astype(np.float32),
    }
    return model_of(nodes, weights, ["n", "t", 30])


def feeds_for(shape: tuple[int, ...], count: int = 12, seed: int = 3) -> list[dict[str, Any]]:
    """Correlated inputs: few directions carry most of the energy."""
    generator = np.random.default_rng(seed)
    channels = shape[1] if len(shape) == 4 else shape[-1]
    mixing = generator.normal(size=(channels, channels)) * 0.7 ** np.arange(channels)
    feeds = []
    for _ in range(count):
        noise = generator.normal(size=shape)
        mixed = np.einsum("nchw,cd->ndhw", noise, mixing) if len(shape) == 4 else noise @ mixing + 0.5
        feeds.append({"x": mixed.astype(np.float32)})
    return feeds


def error_of(before: Any, after: Any, feeds: list[dict[str, Any]]) -> float:
    one, two = session_for(before), session_for(after)
    noise = signal = 0.0
    for feed in feeds:
        a, b = run_feeds(one, feed)["y"], run_feeds(two, feed)["y"]
        noise += float(np.sum((a - b) ** 2))
        signal += float(np.sum((a - a.mean(axis=0)) ** 2))
    return noise / signal


@pytest.mark.parametrize("form", ["thin", "spatial", "tucker"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 0, 2, 1]},
        {"strides": [2, 1], "pads": [1, 1, 1, 1]},
        {"dilations": [1, 2], "pads": [0, 2, 0, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
    ],
)
def test_a_convolution_is_exact_at_full_rank(form: str, attributes: dict[str, Any]) -> None:
    model = conv(**attributes)
    full = {"thin": 24, "spatial": 48, "tucker": 24}[form]
    # A full rank never pays: the threshold has to be taken away by hand.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphopt.passes.lowrank.candidates.ranks_of", lambda *_: iter([_full(form, full)]))
        after, report = apply(PASS, model, forms=(form,), energy=1.0, **LOOSE)
    assert report.counts[form] == 1
    assert_same_function(model, after, rtol=2e-6, dims={"n": 2})


def _full(form: str, rank: int) -> tuple[int, ...]:
    return (16, rank) if form == "tucker" else (rank,)


@pytest.mark.parametrize("make", [gemm, lambda: gemm(transB=1), lambda: gemm(alpha=0.5, beta=2.0), matmul])
def test_a_matrix_of_low_rank_is_nearly_exact_at_that_rank(make: Any) -> None:
    model = make()
    after, report = apply(PASS, model, rank=5, **LOOSE)
    assert report.counts == {"factorized": 1, "thin": 1}
    assert_same_function(model, after, rtol=2e-2, dims={"n": 3, "t": 4})
    assert measure_cost(after).parameters < measure_cost(lower(model)).parameters


def test_what_is_left_is_the_truncated_svd() -> None:
    model = gemm(transB=1)
    after, _ = apply(PASS, model, rank=3, **LOOSE)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    bias = numpy_helper.to_array(model.graph.initializer[1])
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    x = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    expected = x @ ((u[:, :3] * s[:3]) @ v[:3]).T + bias
    np.testing.assert_allclose(run_feeds(session_for(after), {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_the_output_keeps_its_name_and_the_old_weight_goes() -> None:
    model = conv()
    after, _ = apply(PASS, model, rank=4, forms=("thin",), **LOOSE)
    assert op_types(after) == ["Conv", "Conv"]
    assert [value.name for value in after.graph.outputs] == ["y"]
    assert "w" not in after.graph.initializers
    assert not measure_cost(after).dead


def test_embeddings_become_a_thin_table() -> None:
    generator = np.random.default_rng(5)
    table = low_rank(generator, 40, 16, 4)
    model = model_of(
        [helper.make_node("Gather", ["table", "x"], ["y"], name="embed")],
        {"table": table},
        ["n", 3],
        rank=3,
        kind=TensorProto.INT64,
    )
    untouched, _ = apply(PASS, model, rank=4, **LOOSE)
    assert op_types(untouched) == ["Gather"]
    after, report = apply(PASS, model, rank=4, forms=("embedding",), **LOOSE)
    assert report.counts["embedding"] == 1
    assert op_types(after) == ["Gather", "MatMul"]
    assert measure_cost(after).parameters == 4 * (40 + 16)
    ids = np.array([[0, 39, 7]])
    got = run_feeds(session_for(after), {"x": ids})["y"]
    np.testing.assert_allclose(got, table[ids], atol=0.02)


# --- what pays ----------------------------------------------------------------


def test_ranks_follow_the_targets_alignment_and_threshold() -> None:
    generator = np.random.default_rng(6)
    weight = low_rank(generator, 96, 96, 20)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight}, [8, 96])
    _, report = apply(PASS, model, energy=0.9)
    weights: Any = report.extra["weights"]
    (entry,) = weights
    assert entry["ranks"][0] % 16 == 0
    # 48 of 96 saves nothing, 32 saves a factor of 1.5, and the threshold of the target is 1.25.
    assert entry["ranks"][0] <= 32
    square = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight[:24, :24].copy()}, [8, 24]
    )
    after, report = apply(PASS, square, energy=0.9)
    assert not report.changed
    assert op_types(after) == ["MatMul"]
    assert "no rank that pays" in report.skipped[0][1]


@pytest.mark.parametrize("allocation", ["automatic", "uniform"])
@pytest.mark.parametrize("ratio", [0.8, 0.6, 0.4])
def test_a_budget_of_macs_is_kept(ratio: float, allocation: str) -> None:
    model = chain()
    before = measure_cost(lower(model), {"n": 1}).macs
    after, report = apply(PASS, model, macs_ratio=ratio, allocation=allocation, dims={"n": 1}, **LOOSE)
    got = measure_cost(after, {"n": 1}).macs
    assert before is not None
    assert got is not None
    assert got <= ratio * before
    assert report.extra["macs_ratio"] == pytest.approx(got / before, abs=1e-6)


def test_a_budget_of_parameters_is_kept() -> None:
    model = chain()
    before = measure_cost(lower(model)).parameters
    after, _ = apply(PASS, model, params_ratio=0.5, **LOOSE)
    assert measure_cost(after).parameters <= 0.5 * before


def test_the_budget_goes_where_it_hurts_least() -> None:
    _, report = apply(PASS, chain(), macs_ratio=0.7, forms=("thin",), **LOOSE)
    ranks = {entry["where"]: entry["ranks"][0] for entry in report.extra["weights"]}  # type: ignore[attr-defined]
    # The first weight has full rank, the second nearly rank 3.
    assert ranks.get("Gemm 'second'", 99) <= 12
    assert "Gemm 'first'" not in ranks


def test_an_impossible_budget_is_an_error_unless_best_effort() -> None:
    with pytest.raises(GateFailed, match=r"macs_ratio 0\.001 cannot be reached"):
        apply(PASS, chain(), macs_ratio=0.001, **LOOSE)
    _, report = apply(PASS, chain(), macs_ratio=0.001, best_effort=True, **LOOSE)
    assert "0.001 was asked for" in report.extra["warnings"][-1]  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs_ratio": 0.5, "rank": 3}, "macs_ratio and rank"),
        ({"widen": 1.0}, "widen is not for recover=least-squares"),
        ({"forms": []}, "forms is empty"),
        ({"plan": "plan.toml", "forms": ["thin", "embedding"]}, "a plan names no tables"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_plan(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_options(PASS.Options, options)


def blind_chain() -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """Two products; the second reads one half of what the first computes, the one that varies less."""
    generator = np.random.default_rng(5)
    strong, weak = generator.normal(size=(2, 24, 8))
    second = np.concatenate([np.zeros((8, 6)), generator.normal(size=(8, 6))])
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "b"], ["y"], name="second"),
    ]
    weights = {
        "a": np.concatenate([5 * strong, weak], axis=1).astype(np.float32),
        "b": second.astype(np.float32),
    }
    return model_of(nodes, weights, ["n", 24]), feeds_for((4, 24))


@pytest.mark.parametrize("recover", ["none", "least-squares"])
def test_sensitivity_of_the_outputs_keeps_what_is_read_further_on(recover: str) -> None:
    model, feeds = blind_chain()
    options: dict[str, Any] = {"rank": 6, "recover": recover, "keep": ("second",), **LOOSE}
    local, _ = apply(PASS, model, data=feeds, **options)
    told, report = apply(PASS, model, data=feeds, sensitivity="output", **options)
    assert report.counts["thin"] == 1
    # Six directions are all that the second product can tell apart.
    assert error_of(model, told, feeds) < 1e-6
    assert error_of(model, local, feeds) > 1e-3


def test_sensitivity_of_the_outputs_needs_data() -> None:
    with pytest.raises(DataError, match="there are no data"):
        apply(PASS, blind_chain()[0], sensitivity="output", rank=6)


def test_widened_samples_keep_the_means_of_the_samples() -> None:
    model, feeds = gemm(), feeds_for((6, 30), count=40)
    thin, _ = apply(PASS, model, data=feeds, rank=3, widen=1.0, recover="bias", **LOOSE)
    plain, _ = apply(PASS, model, data=feeds, rank=3, recover="bias", **LOOSE)
    whole, wide, narrow = (
        np.concatenate([run_feeds(session_for(one), feed)["y"] for feed in feeds])
        for one in (model, thin, plain)
    )
    np.testing.assert_allclose(wide.mean(axis=0), whole.mean(axis=0), atol=1e-4)
    assert not np.allclose(wide, narrow, atol=1e-4)


def test_indices_cannot_be_widened() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("MatMul", ["f", "w"], ["y"])]
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    model = model_of(nodes, {"w": weight}, ["n", 8], kind=TensorProto.INT64)
    with pytest.raises(OptionError, match="input 'x' holds INT64"):
        apply(PASS, model, widen=1.0, recover="bias", rank=2)


def test_the_clock_decides_where_it_is_asked() -> None:
    model = chain()
    feeds = [{"x": np.zeros((1, 40), np.float32)}]

    def measured(ratio: float, ranks: dict[str, Any]) -> dict[tuple[str, str], Measured]:
        return {("", label): Measured(label, "", "cpu", 1.0, ratio, ratio, 1.0, 0.01) for label in ranks}

    labels = {f"{name}: thin (4,)": None for name in ("h", "y")}
    options: dict[str, Any] = {"rank": 4, "gain": "measured", "round_to": 1, "recover": "none"}
    slow, report = apply(PASS, model, data=feeds, measurements=measured(0.95, labels), **options)
    assert not report.changed
    assert op_types(slow) == ["Gemm", "Relu", "Gemm"]
    assert "takes 0.95 of the time" in report.skipped[0][1]
    fast, report = apply(PASS, model, data=feeds, measurements=measured(0.5, labels), **options)
    assert report.counts["factorized"] == 2
    assert op_types(fast) == ["MatMul", "Gemm", "Relu", "MatMul", "Gemm"]


def chain() -> onnx.ModelProto:
    """A weight of full rank, a Relu, a weight of nearly rank 3."""
    generator = np.random.default_rng(8)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="second", transB=1),
    ]
    weights: dict[str, np.ndarray] = {
        "w1": generator.normal(size=(40, 40)).astype(np.float32) / 6,
        "b1": generator.normal(size=40).astype(np.float32),
        "w2": low_rank(generator, 40, 40, 3),
        "b2": generator.normal(size=40).astype(np.float32),
    }
    return model_of(nodes, weights, ["n", 40])


# --- with data ----------------------------------------------------------------


def noisy(seed: int = 9) -> onnx.ModelProto:
    """Two convolutions of full rank around a Relu, with a residual."""
    generator = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h"], name="one", pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Conv", ["a", "w2", "b2"], ["z"], name="two", pads=[1] * 4),
        helper.make_node("Add", ["z", "x"], ["y"]),
    ]
    weights = {}
    for index in (1, 2):
        weights[f"w{index}"] = generator.normal(size=(12, 12, 3, 3)).astype(np.float32) / 10
        weights[f"b{index}"] = generator.normal(size=12).astype(np.float32) / 3
    return model_of(nodes, weights, ["n", 12, 8, 8])


def test_data_make_it_better_and_compensation_better_still() -> None:
    model, feeds, held = noisy(), feeds_for((4, 12, 8, 8)), feeds_for((4, 12, 8, 8), seed=4)
    options: dict[str, Any] = {"weight_ratio": 0.5, "forms": ("thin",), **LOOSE}

    def error(**more: Any) -> float:
        after, _ = apply(PASS, model, data=feeds, **options, **more)
        return error_of(model, after, held)

    plain = error(whiten=False, recover="none")
    white = error(recover="none")
    with_bias = error(recover="bias")
    compensated = error()
    assert white < 0.7 * plain
    assert with_bias < white
    assert compensated < 0.96 * with_bias


def test_the_report_tells_each_stage() -> None:
    feeds = feeds_for((2, 12, 8, 8))
    _, report = apply(PASS, noisy(), data=feeds, weight_ratio=0.5, **LOOSE)
    stages: Any = report.extra["stages"]
    assert [stage["where"] for stage in stages] == ["Conv 'one'", "Conv 'two'"]
    # What the second gives before its solve: hurt by the first alone, not yet cut.
    assert all(0 <= stage["residual_after"] < 1 for stage in stages)
    assert stages[1]["residual_before"] > 0
    assert stages[0]["rows"] == 12 * 2 * 64
    effort: Any = report.extra["effort"]
    assert effort["samples"] == 12
    agreement: Any = report.extra["agreement"]
    assert agreement["sqnr_db"] > 5


def test_what_stands_in_bodies_is_cut_before_the_rest_is_fitted() -> None:
    """MatMul, then an If with a MatMul in either body (their outputs share a name), then a MatMul."""
    generator = np.random.default_rng(5)
    weights = {name: generator.normal(size=(16, 16)).astype(np.float32) for name in ("a", "b", "c", "d")}
    inner = [
        helper.make_graph(
            [helper.make_node("MatMul", ["h", name], ["m"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info("m", TensorProto.FLOAT, [None, 16])],
        )
        for name in ("b", "c")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["i"], then_branch=inner[0], else_branch=inner[1]),
        helper.make_node("MatMul", ["i", "d"], ["y"], name="last"),
    ]
    proto = model_of(nodes, weights | {"zero": np.zeros((), np.float32)}, ["n", 16])
    feeds = feeds_for((2, 16), count=40)
    after, report = apply(PASS, proto, data=feeds, weight_ratio=0.75, **LOOSE)
    assert report.counts["factorized"] == 4
    one, two = session_for(proto), session_for(after)
    wanted, found = (np.concatenate([run_feeds(each, feed)["y"] for feed in feeds]) for each in (one, two))
    sqnr = 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2))
    agreement: Any = report.extra["agreement"]
    assert agreement["sqnr_db"] == pytest.approx(sqnr, abs=0.01)


def test_same_input_same_bytes() -> None:
    from graphopt.ir.emit import emit

    feeds = feeds_for((2, 12, 8, 8))
    first, second = (
        emit(apply(PASS, noisy(), data=feeds, macs_ratio=0.6, **LOOSE)[0]).SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )
    assert first == second


def test_a_matmul_without_bias_gets_none() -> None:
    generator = np.random.default_rng(10)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    model = model_of(nodes, {"w": generator.normal(size=(16, 16)).astype(np.float32)}, ["n", 16])
    feeds = feeds_for((40, 16))
    after, report = apply(PASS, model, data=feeds, rank=6, rows_per_sample=40, **LOOSE)
    assert op_types(after) == ["MatMul", "MatMul"]
    # Without a bias the mean counts: the cut is that of the outputs themselves (Eckart and Young).
    rows = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    values = np.linalg.svd(rows @ weight, compute_uv=False)
    one, two = session_for(model), session_for(after)
    noise = sum(float(np.sum((run_feeds(one, f)["y"] - run_feeds(two, f)["y"]) ** 2)) for f in feeds)
    assert noise == pytest.approx(float(np.sum(values[6:] ** 2)), rel=0.02)
    # The residual is over the variance all the same.
    (stage,) = report.extra["stages"]  # type: ignore[misc]
    outputs = rows @ weight
    variance = float(np.sum((outputs - outputs.mean(axis=0)) ** 2))
    assert stage["residual_after"] == pytest.approx(noise / variance, rel=1e-3)  # type: ignore[has-type]


# --- bad input ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, np.nan, w), "NaN or infinity"),
        (lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, np.inf, w), "NaN or infinity"),
    ],
)
def test_weights_that_cannot_be_taken_apart_stay(change: Any, reason: str) -> None:
    model = gemm(transB=1)
    broken = change(numpy_helper.to_array(model.graph.initializer[0])).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w"))
    after, report = apply(PASS, model, rank=3, **LOOSE)
    assert not report.changed
    assert reason in report.skipped[0][1]
    assert op_types(after) == ["Gemm"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_weights_become_rank_one(value: float) -> None:
    model = gemm(transB=1)
    constant = np.full((20, 30), value, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(constant, "w"))
    after, report = apply(PASS, model, energy=0.99, data=feeds_for((5, 30)), **LOOSE)
    assert report.extra["weights"][0]["ranks"] == [1]  # type: ignore[index]
    assert_same_function(model, after, rtol=1e-4, dims={"n": 3})


def test_bad_data_are_named_and_do_no_harm() -> None:
    model = noisy()
    feeds = feeds_for((1, 12, 8, 8), count=2)
    feeds[1]["x"][:] = np.nan
    _, report = apply(PASS, model, data=feeds, rank=5, **LOOSE)
    assert report.counts["factorized"] == 2
    assert any("not finite" in note for note in report.extra["warnings"])  # type: ignore[attr-defined]
    few = [{"x": np.ones((1, 12, 8, 8), np.float32)}]
    after, report = apply(PASS, model, data=few, rank=5, **LOOSE)
    assert any("64 rows for 109 unknowns" in note for note in report.extra["warnings"])  # type: ignore[attr-defined]
    assert np.isfinite(run_feeds(session_for(after), few[0])["y"]).all()


def test_without_data_it_says_so() -> None:
    _, report = apply(PASS, noisy(), rank=5, **LOOSE)
    assert report.extra["warnings"] == ["there are no data: plain SVD, and nothing is fitted"]


def test_a_rank_beyond_the_full_one_and_shared_weights_are_skipped() -> None:
    _, report = apply(PASS, gemm(), rank=1000, **LOOSE)
    assert not report.changed
    assert "rank 1000 does not save a factor of 1, or exceeds the full rank" in report.skipped[0][1]
    generator = np.random.default_rng(11)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    tied = model_of(nodes, {"w": generator.normal(size=(8, 8)).astype(np.float32)}, ["n", 8])
    _, report = apply(PASS, tied, rank=2, **LOOSE)
    assert [reason for _, reason in report.skipped] == ["others read its weight"] * 2
    shown = gemm()
    shown.graph.output.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, None))
    _, report = apply(PASS, shown, rank=2, check=False, **LOOSE)
    assert [reason for _, reason in report.skipped] == ["its weight is an output of the model"]


@pytest.mark.parametrize("form", ["thin", "spatial", "tucker"])
def test_one_rank_holds_for_every_form(form: str) -> None:
    # 5 is none of the sixteenths that tucker tries, and none of the two dozen ranks that spatial tries.
    after, report = apply(PASS, conv(), rank=5, forms=(form,), **LOOSE)
    told = report.extra["weights"]
    assert isinstance(told, list)
    assert told[0]["ranks"] == [5] * (2 if form == "tucker" else 1)
    kept, _ = apply(PASS, conv(), rank=3, forms=(form,), **LOOSE)
    feeds = feeds_for((2, 16, 9, 10), 2)
    assert error_of(conv(), after, feeds) < error_of(conv(), kept, feeds)


@pytest.mark.parametrize("recover", ["bias", "least-squares"])
def test_the_agreement_is_that_of_the_result(recover: str) -> None:
    model, feeds = noisy(), feeds_for((2, 12, 8, 8))
    after, report = apply(PASS, model, data=feeds, weight_ratio=0.5, recover=recover, **LOOSE)
    one, two = session_for(model), session_for(after)
    pairs = [(run_feeds(one, feed)["y"], run_feeds(two, feed)["y"]) for feed in feeds]
    noise, signal = (
        sum(float(np.sum(part)) for part in parts)
        for parts in (((a - b) ** 2 for a, b in pairs), (a**2 for a, _ in pairs))
    )
    agreement: Any = report.extra["agreement"]
    assert agreement["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    effort: Any = report.extra["effort"]
    assert effort["samples"] == len(feeds)


def test_a_weight_that_the_model_puts_out_is_not_refitted() -> None:
    """A copy of its own would make the file larger, beside the one that callers read."""
    model = chain()
    model.graph.output.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [40, 40]))
    after, report = apply(PASS, model, data=feeds_for((40, 40)), weight_ratio=0.5, **LOOSE)
    stages: Any = report.extra["stages"]
    assert [stage["where"] for stage in stages] == ["Gemm 'first'"]
    assert report.extra["params_ratio"] < 1  # type: ignore[operator]
    assert "w2" in after.graph.initializers


def test_names_can_be_kept() -> None:
    _, report = apply(PASS, chain(), rank=4, keep=("fir*",), **LOOSE)
    assert ("Gemm 'first'", "kept by name") in report.skipped
    assert report.counts["factorized"] == 1


def test_grouped_convolutions_are_skipped() -> None:
    generator = np.random.default_rng(12)
    weight = generator.normal(size=(8, 2, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, name="dw")
    _, report = apply(PASS, model_of([node], {"w": weight}, ["n", 8, 6, 6]), rank=2, **LOOSE)
    assert report.skipped == (("Conv 'dw'", "grouped convolutions have small weights already"),)


@pytest.mark.parametrize(
    ("maker", "pass_"), [("Identity", Canonicalize()), ("Neg", FoldConstants())], ids=["identity", "computed"]
)
def test_a_bias_that_another_pass_makes_constant_names_it(maker: str, pass_: Any) -> None:
    generator = np.random.default_rng(13)
    weights = {
        "w": generator.normal(size=(8, 8)).astype(np.float32),
        "b": generator.normal(size=8).astype(np.float32),
    }
    nodes = [
        helper.make_node(maker, ["b"], ["c"]),
        helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="g"),
    ]
    before = model_of(nodes, weights, ["n", 8])
    _, report = apply(PASS, before, rank=2, **LOOSE)
    ((_, reason),) = report.skipped
    assert reason == f"its bias is no constant of one number an output; {pass_.info.name} makes it one"
    made, _ = apply(pass_, before)
    _, report = apply(PASS, made, rank=2, **LOOSE)
    assert report.counts["factorized"] == 1


def test_golden() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 4] x) => (float[n, 4] y)
        <float[4, 4] w = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0}, float[4] b = {0, 1, 2, 3}>
        {
            h = MatMul (x, w)
            y = Add (h, b)
        }
    """
    before = parse(text)
    after, report = apply(PASS, before, rank=1, **LOOSE)
    assert_golden("factorize-lowrank", "matmul", before, after, report)
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 4, 8, 8] x) => (float[n, 4, u, v] y)
        <float[4, 4, 1, 2] w = {0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0,
                                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}>
        {
            y = Conv <strides = [1, 2], pads = [0, 1, 0, 1]> (x, w)
        }
    """
    before = parse(text)
    after, report = apply(PASS, before, rank=1, **LOOSE)
    assert_golden("factorize-lowrank", "conv", before, after, report)


def test_every_model_without_a_candidate_says_why() -> None:
    """Weights that are inputs too, and a model without weights."""
    text = """
    <ir_version: {ir}, opset_import: ["" : 17]>
    g (float[4,64] x{more}) => (float[4,64] y) {weights} {{ {node} }}
    """
    weight = "float[64,64] w"
    listed = parse(text.format(ir=8, more=f", {weight}", weights="", node="y = Gemm(x, w)"))
    listed.graph.initializer.append(numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    _, report = apply(PASS, listed)
    assert "freeze_initializers=true" in report.skipped[0][1]
    _, report = apply(PASS, parse(text.format(ir=8, more="", weights="", node="y = Relu(x)")))
    assert report.skipped == (("model", "no Conv, Gemm or MatMul has a stored weight"),)
