"""correct-bias, judged by onnxruntime: means of the corrected model against those of the original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.api import Context
from graphopt.calibrate import Statistics
from graphopt.errors import DataError, GraphoptError
from graphopt.ir.emit import emit
from graphopt.ir.lower import load, lower
from graphopt.passes.correct_bias import CorrectBias
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.pipeline.calibrating import calibrate, for_pipeline
from graphopt.pipeline.manager import Manager
from graphopt.pipeline.plan import make_plan
from graphopt.pipeline.plugins import load_plugins
from graphopt.pipeline.reproducer import read_reproducer
from graphopt.pipeline.text import parse as parse_pipeline
from graphopt.targets import load_target
from tests.passes.harness import apply, assert_golden, op_types, run_feeds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from graphopt.ir import Model

Array = np.ndarray[Any, Any]
NODE = helper.make_node


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: Sequence[int], rank: int = 2
) -> onnx.ModelProto:
    """Return a model of input x of that shape, and of output y of that rank."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return model


def network(**changed: Array) -> onnx.ModelProto:
    """Convolutions of every kind and products with and without a bias; *changed* are weights by name."""
    nodes = [
        NODE("Conv", ["x", "w1", "b1"], ["c1"], "stem", pads=[1, 1, 1, 1]),
        NODE("Relu", ["c1"], ["r1"]),
        NODE("Conv", ["r1", "w2"], ["c2"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        NODE("Clip", ["c2", "low", "high"], ["r2"]),
        NODE("Conv", ["r2", "w3", "b1"], ["c3"], "shares"),
        NODE("Add", ["c3", "r1"], ["s"]),
        NODE("ConvTranspose", ["s", "w4", "b4"], ["c4"], "up", strides=[2, 2]),
        NODE("GlobalAveragePool", ["c4"], ["p"]),
        NODE("Flatten", ["p"], ["f"]),
        NODE("Gemm", ["f", "w5", "b5"], ["g5"], "hidden", transB=1, beta=0.5),
        NODE("Tanh", ["g5"], ["t5"]),
        NODE("MatMul", ["t5", "w6"], ["m6"], "product"),
        NODE("Add", ["b6", "m6"], ["a6"]),
        NODE("Tanh", ["a6"], ["t6"]),
        NODE("MatMul", ["t6", "w7"], ["m7"], "bare"),
        NODE("Tanh", ["m7"], ["y"]),
    ]
    weights = {
        "w1": normal(8, 3, 3, 3, scale=0.3), "b1": normal(8, seed=1),
        "w2": normal(8, 1, 3, 3, seed=2, scale=0.5),
        "low": np.array(-1, np.float32), "high": np.array(2, np.float32),
        "w3": normal(8, 8, 1, 1, seed=4, scale=0.4),
        "w4": normal(8, 6, 2, 2, seed=5, scale=0.4), "b4": normal(6, seed=6),
        "w5": normal(5, 6, seed=7), "b5": normal(5, seed=8),
        "w6": normal(5, 4, seed=9), "b6": normal(4, seed=10),
        "w7": normal(4, 3, seed=11),
    }  # fmt: skip
    return model_of(nodes, {**weights, **changed}, [2, 3, 8, 8])


WEIGHTS = ("w1", "w2", "w3", "w4", "w5", "w6", "w7")


def coarse(model: onnx.ModelProto, steps: int = 3) -> onnx.ModelProto:
    """Return the model with weights rounded to a few levels, and biased towards zero: means shift."""
    changed = {}
    for value in model.graph.initializer:
        if value.name in WEIGHTS:
            array = numpy_helper.to_array(value)
            reach = np.abs(array).max() / steps
            changed[value.name] = (np.floor(np.abs(array) / reach) * reach * np.sign(array)).astype(
                np.float32
            )
    return network(**changed)


def feeds(count: int = 8, shape: Sequence[int] = (2, 3, 8, 8), seed: int = 3) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.normal(0.5, 1, shape).astype(np.float32)} for _ in range(count)]


def means(
    model: onnx.ModelProto | Model, data: Sequence[dict[str, Any]], names: dict[str, int]
) -> dict[str, Array]:
    """Return the means of values by name, along their axes of channels, at DISABLE_ALL."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model if isinstance(model, onnx.ModelProto) else emit(model))
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    total: dict[str, Any] = dict.fromkeys(names, 0.0)
    for feed in data:
        for name, array in run_feeds(session, feed).items():
            moved = np.moveaxis(array.astype(np.float64), names[name], 0)
            total[name] = total[name] + moved.reshape(len(moved), -1).mean(axis=1) / len(data)
    return total


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original.onnx"
    onnx.save(network(), path)
    return path


COMPARED = {"r1": 1, "c3": 1, "c4": 1, "g5": -1, "a6": -1, "m7": -1}


def test_every_operator_has_the_means_of_the_original(original: Path) -> None:
    data = feeds()
    wanted = means(network(), data, COMPARED)
    before = means(coarse(network()), data, COMPARED)
    after, report = apply(CorrectBias(), coarse(network()), reference=original, data=data, add="nodes")
    assert report.counts == {"corrected": 5, "added": 2}
    found = means(after, data, COMPARED)
    for name, want in wanted.items():
        assert np.abs(before[name] - want).max() > 0.02, name
        # Behind a Relu the mean is not linear in the bias: one step takes most of the way.
        limit = 0.2 * np.abs(before[name] - want).max() if name == "r1" else 1e-5
        np.testing.assert_allclose(found[name], want, atol=limit, err_msg=name)
    assert report.extra["source"] == "data"
    names = {node.input[2] for node in emit(after).graph.node if node.name in {"stem", "shares"}}
    assert len(names) == 2


def test_biases_are_added_where_they_are_inputs_only_if_not_told_otherwise(original: Path) -> None:
    data = feeds(2)
    _, report = apply(CorrectBias(), coarse(network()), reference=original, data=data)
    assert report.counts == {"corrected": 5, "added": 1}
    assert ("MatMul 'bare'", "it has no bias, and add=inputs gives it none") in report.skipped
    after, report = apply(CorrectBias(), coarse(network()), reference=original, data=data, add="none")
    assert report.counts == {"corrected": 5}
    assert op_types(after) == op_types(network())
    _, report = apply(CorrectBias(), coarse(network()), reference=original, data=data, exclude=["*"])
    assert not report.changed


def test_from_statistics_the_shift_is_predicted(tmp_path: Path) -> None:
    """Closed form: without borders the prediction (W' - W) E[x] is exact for the first operator."""
    weights = {"w": normal(4, 3, 1, 1), "b": normal(4, seed=1), "v": normal(5, 4, seed=2)}
    nodes = [
        NODE("Conv", ["x", "w", "b"], ["c"], "conv"),
        NODE("GlobalAveragePool", ["c"], ["p"]),
        NODE("Flatten", ["p"], ["f"]),
        NODE("Gemm", ["f", "v"], ["y"], "gemm", transB=1),
    ]
    before = model_of(nodes, weights, [1, 3, 4, 4])
    rough = {name: np.rint(array * 2) / 2 if name != "b" else array for name, array in weights.items()}
    path = tmp_path / "original.onnx"
    onnx.save(before, path)
    data = feeds(6, (1, 3, 4, 4))
    shifted = model_of(nodes, rough, [1, 3, 4, 4])
    after, report = apply(CorrectBias(), shifted, reference=path, data=data, source="statistics")
    assert report.counts == {"corrected": 1, "added": 1}
    names = {"c": 1, "y": -1}
    wanted, found = means(before, data, names), means(after, data, names)
    for name, want in wanted.items():
        np.testing.assert_allclose(found[name], want, atol=1e-5, err_msg=name)


def integer_kernels(model: Model, path: Path) -> int:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(emit(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return sum(node.op_type in {"QLinearConv", "QGemm"} for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("per_channel", [True, False])
def test_codes_of_biases_stay_on_their_grid_and_kernels_integer(per_channel: bool, tmp_path: Path) -> None:
    nodes = [
        NODE("Conv", ["x", "w1", "b"], ["c1"], "one"), NODE("Relu", ["c1"], ["r1"]),
        NODE("Conv", ["r1", "w2"], ["c2"], "two"), NODE("Relu", ["c2"], ["r2"]),
        NODE("Conv", ["r2", "w3", "b"], ["c3"], "three"),
        NODE("GlobalAveragePool", ["c3"], ["p"]), NODE("Flatten", ["p"], ["f"]),
        NODE("MatMul", ["f", "w4"], ["m"], "four"), NODE("Add", ["m", "b4"], ["y"]),
    ]  # fmt: skip
    weights = {
        "w1": normal(16, 3, 3, 3, scale=0.3), "b": normal(16, seed=1, scale=0.1),
        "w2": normal(16, 16, 1, 1, seed=2, scale=0.3), "w3": normal(16, 16, 1, 1, seed=3, scale=0.3),
        "w4": normal(16, 5, seed=4), "b4": normal(5, seed=5),
    }  # fmt: skip
    before = model_of(nodes, weights, [1, 3, 8, 8])
    data = feeds(8, (1, 3, 8, 8))
    path = tmp_path / "original.onnx"
    onnx.save(before, path)
    # Two bits, as it were: what is left of a weight is far from it.
    codes, _ = apply(InsertQdq(), before, data=data, measure="off", per_channel=per_channel)
    for value in codes.graph.initializers.values():
        array = value.const_value.numpy() if value.const_value is not None else np.zeros(0)
        if array.dtype == np.int8 and array.size > 16:
            rough = (array.astype(np.int32) // 48 * 48 + 12).clip(-127, 127).astype(np.int8)
            value.const_value = lower_tensor(rough, value.name or "")
    after, report = apply(CorrectBias(), codes, reference=path, data=data)
    assert report.counts["as_codes"] == 4
    assert report.counts["added"] == 1
    assert integer_kernels(after, tmp_path / "a.onnx") == integer_kernels(codes, tmp_path / "b.onnx") + 0
    names = {"c3": 1, "y": -1}
    wanted, rough_means, found = (means(model, data, names) for model in (before, codes, after))
    for name, want in wanted.items():
        assert np.abs(rough_means[name] - want).max() > 0.1
        np.testing.assert_allclose(found[name], want, atol=0.02, err_msg=name)
    proto = emit(after)
    producers = {output: node for node in proto.graph.node for output in node.output}
    types = {value.name: value.data_type for value in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            unpacked = producers[node.input[2]]
            assert unpacked.op_type == "DequantizeLinear"
            assert types[unpacked.input[0]] == TensorProto.INT32


def lower_tensor(array: Array, name: str) -> Any:
    from graphopt.ir.tensors import from_array

    return from_array(array, name)


def test_products_that_became_flat_gemms_are_found_by_what_they_are_reshaped_to(tmp_path: Path) -> None:
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"], "one"), NODE("Add", ["m", "b"], ["h"]), NODE("Relu", ["h"], ["r"]),
        NODE("MatMul", ["r", "v"], ["n"], "two"), NODE("Add", ["n", "c"], ["y"]),
    ]  # fmt: skip
    weights = {
        "w": normal(16, 32),
        "b": normal(32, seed=1),
        "v": normal(32, 8, seed=2),
        "c": normal(8, seed=3),
    }
    before, data = model_of(nodes, weights, [2, 5, 16], 3), feeds(6, (2, 5, 16))
    path = tmp_path / "original.onnx"
    onnx.save(before, path)
    codes, _ = apply(InsertQdq(), before, data=data, measure="off", per_channel=False)
    after, report = apply(CorrectBias(), codes, reference=path, data=data)
    assert report.counts == {"as_codes": 2, "corrected": 2}
    want, rough, found = (means(model, data, {"y": -1})["y"] for model in (before, codes, after))
    assert np.abs(found - want).max() < 0.3 * np.abs(rough - want).max()


def test_a_bias_that_does_not_fit_int32_stays_and_is_named(tmp_path: Path) -> None:
    """The scale of the bias is 1e-12: one would be 10**12 codes."""
    nodes = [
        NODE("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        NODE("DequantizeLinear", ["wq", "sw"], ["wd"]),
        NODE("DequantizeLinear", ["bq", "sb"], ["bd"]),
        NODE("Conv", ["xd", "wd", "bd"], ["c"], "conv"),
        NODE("Add", ["c", "one"], ["y"]),
    ]
    weights: dict[str, Array] = {
        "sx": np.array(1e-6, np.float32), "zx": np.array(0, np.uint8), "sw": np.array(1e-6, np.float32),
        "wq": np.ones((2, 3, 1, 1), np.int8), "bq": np.array([3, 4], np.int32),
        "sb": np.array(1e-12, np.float32), "one": np.array(1, np.float32),
    }  # fmt: skip
    changed = model_of([NODE("QuantizeLinear", ["x", "sx", "zx"], ["xq"]), *nodes], weights, [1, 3, 2, 2], 4)
    plain = model_of(
        [NODE("Conv", ["x", "w", "b"], ["c"], "conv"), NODE("Add", ["c", "one"], ["y"])],
        {
            "w": np.full((2, 3, 1, 1), 1e-6, np.float32),
            "b": np.array([1.0, 1e-11], np.float32),
            "one": weights["one"],
        },
        [1, 3, 2, 2],
        4,
    )
    path = tmp_path / "original.onnx"
    onnx.save(plain, path)
    after, report = apply(
        CorrectBias(), changed, reference=path, data=[{"x": np.zeros((1, 3, 2, 2), np.float32)}]
    )
    assert ("Conv 'conv'", "1 of 2 biases do not fit int32 and stay") in report.skipped
    (codes,) = [
        numpy_helper.to_array(value)
        for value in emit(after).graph.initializer
        if value.data_type == TensorProto.INT32
    ]
    assert codes.tolist() == [3, 10]


def test_without_a_lossy_step_there_is_nothing_to_do() -> None:
    _, report = apply(CorrectBias(), network(), data=feeds(1))
    assert not report.changed
    assert report.skipped[0][1] == "no step before it has changed what the model computes"


def test_a_model_against_itself_stays_as_it_is(original: Path) -> None:
    _, report = apply(CorrectBias(), network(), reference=original, data=feeds(2))
    assert not report.changed
    assert report.counts == {"unshifted": 6}


def test_what_has_other_channels_or_another_name_is_left_alone(original: Path, tmp_path: Path) -> None:
    nodes = [NODE("Conv", ["x", "w1", "b1"], ["c1"], "cut"), NODE("Conv", ["c1", "w2"], ["y"], "other")]
    weights = {"w1": normal(5, 3, 3, 3), "b1": normal(5), "w2": normal(2, 5, 1, 1)}
    cut = model_of(nodes, weights, [2, 3, 8, 8], 4)
    _, report = apply(CorrectBias(), cut, reference=original, data=feeds(1))
    assert not report.changed
    reasons = dict(report.skipped)
    assert reasons["Conv 'cut'"] == "5 channels here, 8 in the original"


def test_bad_input_is_refused_or_named(original: Path) -> None:
    with pytest.raises(DataError, match="there is no data"):
        apply(CorrectBias(), coarse(network()), reference=original)
    with pytest.raises(DataError, match="source=data"):
        apply(CorrectBias(), coarse(network()), reference=original, source="data")
    with pytest.raises(DataError):
        apply(CorrectBias(), coarse(network()), reference=original, data=[])
    with pytest.raises(GraphoptError):
        apply(CorrectBias(), coarse(network()), reference=original.parent / "none.onnx", data=feeds(1))
    bad = feeds(1)
    bad[0]["x"][0, 0, 0, 0] = np.nan
    _, report = apply(CorrectBias(), coarse(network()), reference=original, data=bad)
    assert ("Conv 'stem'", "means that are not finite") in report.skipped
    constant = [{"x": np.full((2, 3, 8, 8), 0.5, np.float32)}] * 2
    after, report = apply(CorrectBias(), coarse(network()), reference=original, data=constant)
    assert report.changed
    want, found = (means(each, constant, {"g5": -1})["g5"] for each in (network(), after))
    np.testing.assert_allclose(found, want, atol=1e-5)


def manager(data: Any = None, statistics: Statistics | None = None) -> Manager:
    from graphopt.calibrate.calibration import Calibration

    registry = load_plugins()
    return Manager(registry, target=load_target("ort-cpu"), calibration=Calibration(data, given=statistics))


PIPELINE = "sparsify-weights{sparsity=0.5,min_elements=16},correct-bias"


def run(pipeline: str, manager: Manager, **options: Any) -> Any:
    plan = make_plan(parse_pipeline(pipeline), manager.registry, 17)
    return manager.run(lower(network()), plan, **options)


@pytest.mark.slow
def test_behind_a_lossy_step_the_reference_is_the_model_before_it(tmp_path: Path) -> None:
    data = feeds()
    path = tmp_path / "data.npz"
    np.savez(path, x=np.stack([feed["x"] for feed in data]))
    onnx.save(network(), tmp_path / "m.onnx")
    plain = graphopt.run(
        tmp_path / "m.onnx", PIPELINE, data=str(path), out=tmp_path / "o.onnx", validate=False
    )
    wanted = means(network(), data, {"c4": 1})["c4"]
    after = onnx.load(tmp_path / "o.onnx")
    np.testing.assert_allclose(means(after, data, {"c4": 1})["c4"], wanted, atol=1e-5)
    assert plain.report.steps[1].status == "committed"
    isolated = graphopt.run(
        tmp_path / "m.onnx", PIPELINE, data=str(path), out=tmp_path / "i.onnx", validate=False, isolate=True
    )
    assert isolated.report.steps[1].counts == plain.report.steps[1].counts
    assert (tmp_path / "i.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()


def test_statistics_of_the_original_serve_a_step_behind_a_lossy_one(tmp_path: Path) -> None:
    model, data = lower(network()), feeds()
    registry = load_plugins()
    wanted = for_pipeline(model, PIPELINE, registry, load_target("ort-cpu"))
    assert {name for name, _ in wanted.needs.channels} == {"x", "r1", "r2", "s", "f", "t5", "t6"}
    statistics = calibrate(model, data, wanted, tmp_path / "s.npz")
    result = run(PIPELINE, manager(statistics=statistics))
    assert result.error is None
    assert result.steps[1].extra["source"] == "statistics"
    assert result.steps[1].counts["corrected"] == 5  # all that have a bias


def test_a_failure_leaves_a_reproducer_that_holds_the_original(tmp_path: Path) -> None:
    result = run(PIPELINE, manager(), reproducer=tmp_path / "r")
    assert isinstance(result.error, DataError)
    found = read_reproducer(tmp_path / "r")
    path = found.steps[0].options["reference"]
    assert isinstance(path, str)
    assert [value.name for value in load(path).graph.outputs] == ["y"]


def test_the_reference_is_kept_only_for_a_step_that_reads_it() -> None:
    seen: list[object] = []
    kept = Context.as_reference

    def spy(self: Context, *arguments: Any) -> Any:
        seen.append(arguments)
        return kept(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "as_reference", spy)
        run("sparsify-weights{sparsity=0.5,min_elements=16}", manager())
        assert not seen
        run(PIPELINE, manager(data=feeds(1)))
        assert len(seen) == 1


def test_golden(tmp_path: Path) -> None:
    nodes = [NODE("MatMul", ["x", "w"], ["m"], "product"), NODE("Add", ["m", "b"], ["y"], "bias")]
    weight = np.array([[1.0, 0.4], [0.6, 1.0]], np.float32)
    bias = np.zeros(2, np.float32)
    onnx.save(model_of(nodes, {"w": weight, "b": bias}, [1, 2]), tmp_path / "original.onnx")
    changed = model_of(nodes, {"w": np.rint(weight), "b": bias}, [1, 2])
    after, report = apply(
        CorrectBias(),
        changed,
        reference=tmp_path / "original.onnx",
        data=[{"x": np.ones((1, 2), np.float32)}],
    )
    assert_golden("correct-bias", "product", changed, after, report)


def test_adds_in_another_order_than_their_products_and_a_number_of_higher_rank(tmp_path: Path) -> None:
    nodes = [
        NODE("MatMul", ["x", "w1"], ["m1"], "one"),
        NODE("MatMul", ["x", "w2"], ["m2"], "two"),
        NODE("Add", ["m2", "b2"], ["a2"]),
        NODE("Add", ["m1", "b1"], ["a1"]),
        NODE("Mul", ["a1", "a2"], ["y"]),
    ]
    weights = {
        "w1": normal(6, 4), "b1": normal(1, 1, 1, seed=1),
        "w2": normal(6, 4, seed=2), "b2": normal(4, seed=3),
    }  # fmt: skip
    before = model_of(nodes, weights, [5, 6], rank=3)
    path = tmp_path / "original.onnx"
    onnx.save(before, path)
    data = [{"x": normal(5, 6, seed=seed) + 1} for seed in range(4)]
    changed = model_of(
        nodes, {**weights, "w1": np.abs(weights["w1"]), "w2": np.abs(weights["w2"])}, [5, 6], 3
    )
    after, report = apply(CorrectBias(), changed, reference=path, data=data)
    assert report.counts == {"corrected": 2}
    assert run_feeds(ort.InferenceSession(emit(after).SerializeToString()), data[0])["y"].shape == (1, 5, 4)
    compared = {"a1": -1, "a2": -1}
    one, two = means(before, data, compared), means(after, data, compared)
    for name in compared:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5)


def test_operators_in_bodies_are_named(tmp_path: Path) -> None:
    """c = Conv(x); y = Conv(c) or c, as a condition says; the reference has other biases."""

    def conditional(shift: float) -> onnx.ModelProto:
        bodies = [
            helper.make_graph(
                [node],
                node.op_type,
                [],
                [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)],
            )
            for node in (NODE("Conv", ["c", "w2", "b"], ["t"], "inner"), NODE("Identity", ["c"], ["e"]))
        ]
        nodes = [
            NODE("Conv", ["x", "w1", "b"], ["c"], "outer"),
            NODE("If", ["on"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
        ]
        weights = {"w1": normal(4, 3, 1, 1), "w2": normal(4, 4, 1, 1, seed=1), "on": np.ones((), bool)}
        return model_of(nodes, {**weights, "b": normal(4, seed=2) + np.float32(shift)}, [2, 3, 8, 8], 4)

    path = tmp_path / "original.onnx"
    path.write_bytes(conditional(0.0).SerializeToString())
    _, report = apply(CorrectBias(), conditional(0.5), data=feeds(), reference=path)
    assert report.counts["corrected"] == 1
    assert report.skipped == (("Conv 'inner'", "it is inside a body or function, which is not run in parts"),)
