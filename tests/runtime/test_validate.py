"""Validation end to end: what passes, what fails and why, and what a child's death looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.errors import DataError, InvalidModelError, OptionError, PathError, ProviderError, WorkerError
from graphopt.ir.lower import load
from graphopt.runtime import validate
from graphopt.runtime.child import run_in_child
from graphopt.runtime.feeds import InputSpec, random_feeds
from graphopt.runtime.session import open_session
from graphopt.runtime.validate import Validation, validate_models
from tests.runtime.models import FLOAT, INT64, linear, model, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Array = np.ndarray


def feeds(count: int = 3, shape: tuple[int, ...] = (1, 8)) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def check(before: Path, after: Path, **more: Any) -> Validation:
    return validate_models(before, after, more.pop("data", feeds()), measure_latency=False, **more)


def one(path: Path, op: str, out: Sequence[Any] = ("n", 8), dtype: int = FLOAT, **attributes: Any) -> Path:
    """Write y = op(x) with the output declared as *out*."""
    node = helper.make_node(op, ["x"], ["y"], name="node", **attributes)
    return write(model([node], [("x", FLOAT, ["n", 8])], [("y", dtype, out)]), path)


@pytest.mark.child
def test_a_model_against_itself(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    stages: list[str] = []
    done: list[tuple[int, int]] = []
    result = validate_models(
        path,
        path,
        feeds(),
        on_stage=stages.append,
        on_progress=lambda *each: done.append(each),
        latency_budget_s=1,
    )
    assert result.passed
    assert result.problems == ()
    assert result.feeds == 3
    assert set(result.levels) == {"all", "none"}
    assert result.levels["none"][0].comparison.exact
    assert result.outputs[0].comparison.name == "y"
    assert result.latency is not None
    assert 0.3 < result.latency.ratio < 3
    assert result.placement["nodes"] == {"cpu": 1}
    assert result.placement["ops"] == {"cpu": {"MatMul": 1}}
    assert result.placement["assignment"] == [{"node": "mm", "op_type": "MatMul", "provider": "cpu"}]
    assert any(str(path) in stage for stage in stages)
    assert (6, 6) in done  # three feeds at two levels


def test_sqnr_is_that_of_the_closed_form(tmp_path: Path) -> None:
    before, after = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", scale=0.9)
    result = check(before, after)
    assert not result.passed
    assert result.outputs[0].comparison.sqnr_db == pytest.approx(20, abs=1e-4)  # an error of a tenth
    assert result.problems == ("output 'y': SQNR 20.00 dB is under 30 dB",)
    assert check(before, after, min_sqnr_db=19.9).passed
    assert check(before, after, max_abs=10.0).passed
    assert not check(before, after, max_abs=1e-3).passed
    assert check(before, linear(tmp_path / "c.onnx", scale=0.999)).passed


@pytest.mark.child
def test_the_latency_limit(tmp_path: Path) -> None:
    before, after = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx")
    result = validate_models(before, after, feeds(), max_latency_ratio=0.01, latency_budget_s=1)
    assert not result.passed
    assert "of the original's time, above 0.01" in result.problems[0]


@pytest.mark.parametrize(
    ("op", "attributes", "words"),
    [
        ("Log", {}, "NaN or infinite in one of the two only"),
        ("Clip", {}, None),
    ],
)
def test_nonfinite_outputs(tmp_path: Path, op: str, attributes: dict[str, Any], words: str | None) -> None:
    before = one(tmp_path / "a.onnx", "Identity")
    result = check(before, one(tmp_path / "b.onnx", op, **attributes))
    assert result.passed == (words is None)
    if words:
        assert words in result.problems[0]


def test_an_output_that_became_constant_and_one_that_always_was(tmp_path: Path) -> None:
    zero = {"zero": np.zeros(1, np.float32)}
    node = helper.make_node("Mul", ["x", "zero"], ["y"])
    constant = write(
        model([node], [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 8])], zero), tmp_path / "c.onnx"
    )
    result = check(one(tmp_path / "a.onnx", "Identity"), constant)
    assert result.problems == ("output 'y': constant over all feeds, the original's is not",)
    same = check(constant, constant)
    assert same.passed
    assert same.warnings == ("output 'y': no evidence: constant over all feeds in both models",)


def test_integer_outputs_must_be_equal(tmp_path: Path) -> None:
    before = one(tmp_path / "a.onnx", "Cast", to=INT64, dtype=INT64)
    nodes = [helper.make_node("Neg", ["x"], ["m"]), helper.make_node("Cast", ["m"], ["y"], to=INT64)]
    after = write(model(nodes, [("x", FLOAT, ["n", 8])], [("y", INT64, ["n", 8])]), tmp_path / "b.onnx")
    assert check(before, before).passed
    result = check(before, after, min_sqnr_db=-100)
    assert "of the elements are equal, expected all" in result.problems[0]


def test_a_difference_at_one_level_names_the_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", scale=0.5)

    def tampered(model: Path, *, optimization: str = "all", **more: Any) -> Any:
        """Stand for a runtime whose optimizer breaks the optimized model."""
        wrong = model.name == "copy.onnx" and optimization == "all"
        return open_session(other if wrong else model, optimization=optimization, **more)  # type: ignore[arg-type]  # a level

    monkeypatch.setattr("graphopt.runtime.validate.open_session", tampered)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    result = check(path, copy)
    assert result.problems == ("output 'y': SQNR 6.02 dB is under 30 dB (at level all)",)
    assert not result.levels["all"][0].passed
    assert result.levels["none"][0].passed
    assert not result.outputs[0].passed


def blocked_int4(path: Path) -> tuple[Path, Path]:
    """Write scenario A9: int4 weights in blocks of 32 along axis 0, K=64, N=48; and the float32 original."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (64, 48))
    scales = rng.uniform(0.01, 0.1, (2, 48)).astype(np.float32)
    dense = (codes * np.repeat(scales, 32, axis=0)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    proto = model(nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, ["n", 48])], {"s": scales})
    proto.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [64, 48], codes.reshape(-1)))
    float_nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    original = model(float_nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, ["n", 48])], {"w": dense})
    return write(original, path / "float.onnx"), write(proto, path / "int4.onnx")


def test_blocked_int4_is_reported_level_by_level(tmp_path: Path) -> None:
    original, packed = blocked_int4(tmp_path)
    result = check(original, packed, data=feeds(shape=(1, 64)))
    sqnr = {level: outputs[0].comparison.sqnr_db for level, outputs in result.levels.items()}
    assert sqnr["none"] is not None
    assert sqnr["none"] > 100  # without the runtime's optimizer it is the same computation
    # How exact the fused kernel is depends on the release and the CPU; the verdict must follow its number.
    assert sqnr["all"] is not None
    assert result.passed == (sqnr["all"] >= 30)
    assert bool(result.warnings) == (sqnr["all"] < 80)
    assert all("depends on the runtime's optimizer" in warning for warning in result.warnings)
    if not result.passed:
        assert all("(at level all)" in problem for problem in result.problems)


# --- signatures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out": ["n", 8]}, None),
        ({"out": ["batch", 8]}, None),
        ({"out": [1, 8]}, "output 'y': expected a free dim (n) in dim 0, got 1"),
        ({"out": ["n", None]}, "output 'y': expected 8 in dim 1, got a free dim"),
        ({"out": None}, "output 'y': expected rank 2, got an unknown one"),
        (
            {"op": "Cast", "dtype": TensorProto.FLOAT16, "to": TensorProto.FLOAT16},
            "expected dtype float32, got float16",
        ),
    ],
)
def test_declared_outputs(tmp_path: Path, change: dict[str, Any], words: str | None) -> None:
    result = check(
        one(tmp_path / "a.onnx", "Identity"), one(tmp_path / "b.onnx", **{"op": "Identity", **change})
    )
    assert result.passed == (words is None)
    if words:
        assert words in result.problems[0]
        assert result.levels == {}


@pytest.mark.parametrize(
    ("old", "new", "what", "words"),
    [
        (None, ("n", 2), "output", ""),
        ((None, 2), (5, 2), "output", ""),
        (("m", 2), (5, 2), "output", ""),
        (("n*2", 2), (10, 2), "output", "expected a free dim (n*2) in dim 0, got 10"),
        ((1, 2), (1, 2, 1), "output", "expected rank 2, got rank 3"),
        (("n", 2), ("batch", 2), "input", ""),
        (("n", 2), (1, 2), "input", "expected a free dim (n) in dim 0, got 1"),
        ((None, 2), (1, 2), "input", "expected a free dim in dim 0, got 1"),
        ((1, 2), ("n", 2), "input", "expected 1 in dim 0, got a free dim (n)"),
        (None, (1, 2), "input", "expected an unknown rank, got a known one"),
    ],
)
def test_which_dims_may_change(old: Any, new: Any, what: str, words: str) -> None:
    found = validate._differs(InputSpec("v", "float32", old), InputSpec("v", "float32", new), what, {"n"})
    assert found == words


def test_names_and_order() -> None:
    a, b, c = (InputSpec(name, "float32", (1,)) for name in "abc")
    default = InputSpec("w", "float32", (1,), has_default=True)
    assert validate._changed(((a, b), (c,)), ((a, b), (c,))) == []
    assert validate._changed(((a, b), (c,)), ((b, a), (c,))) == [
        "the order of the inputs changed from ['a', 'b'] to ['b', 'a']"
    ]
    assert validate._changed(((a,), (c,)), ((a, b), (c,))) == [
        "the optimized model has an input 'b' that the original has not"
    ]
    assert validate._changed(((a,), (b, c)), ((a,), (c,))) == [
        "the output 'b' is missing in the optimized model"
    ]
    assert validate._changed(((a, default), (c,)), ((a,), (c,))) == []  # an overridable input may go


def test_bound_dims_decide(tmp_path: Path) -> None:
    before, after = one(tmp_path / "a.onnx", "Identity"), one(tmp_path / "b.onnx", "Identity", out=[1, 8])
    assert not check(before, after).passed
    assert check(before, after, dims={"n": 1}).passed


# --- what goes wrong


@pytest.mark.child
def test_feeds_are_read_once_and_lazily(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")

    def once() -> Iterator[dict[str, Array]]:
        yield from feeds(5)

    assert check(path, path, data=once()).feeds == 5


@pytest.mark.child
def test_no_feeds(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    with pytest.raises(DataError, match="there is no feed"):
        check(path, path, data=[])


def test_a_feed_that_the_original_refuses_names_it_and_the_free_dims(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"cannot run on feed 1.*--dim \(n\)") as caught:
        check(path, path, data=[*feeds(1), *feeds(1, (1, 7))])
    assert str(path) in str(caught.value)


def test_a_feed_that_only_the_optimized_model_refuses_is_a_failure(tmp_path: Path) -> None:
    before = one(tmp_path / "a.onnx", "Identity", out=("n", 8))
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    proto = model(nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 8])], {"shape": np.array([1, 8])})
    after = write(proto, tmp_path / "b.onnx")
    result = check(before, after, data=[*feeds(1), *feeds(1, (2, 8))])
    assert not result.passed
    assert "the optimized model fails on feed 1" in result.problems[0]


@pytest.mark.child
def test_missing_broken_and_too_new_models(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    with pytest.raises(PathError, match=r"none\.onnx"):
        check(path, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model", encoding="utf-8")
    with pytest.raises(InvalidModelError, match=r"text\.onnx"):
        check(path, tmp_path / "text.onnx")
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    proto = model(nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 4])], opset=21)
    proto.opset_import[0].version = 99
    with pytest.raises(ProviderError, match="imports opset 99"):
        check(path, write(proto, tmp_path / "new.onnx"))
    with pytest.raises(OptionError, match="Did you mean 'cuda'"):
        check(path, path, provider="cudda")


def die(original: Path, *_: object) -> None:
    """Stand for a kernel that crashes."""
    import os

    from graphopt.runtime import worker

    worker.stage(f"running the original {original} on feed 0")
    os.abort()


@pytest.mark.child
def test_a_native_crash_names_model_and_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = linear(tmp_path / "m.onnx")

    def crash(_: str, *arguments: object, **more: Any) -> Any:
        return run_in_child(f"{__name__}:die", *arguments, **more)

    monkeypatch.setattr("graphopt.runtime.validate.run_in_child", crash)
    with pytest.raises(
        WorkerError, match=r"crashed \(signal SIGABRT\) while running the original .*m\.onnx on feed 0"
    ):
        check(path, path)


@pytest.mark.child
def test_out_of_time(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    with pytest.raises(WorkerError, match=r"ran longer than 0\.05 s"):
        check(path, path, timeout_s=0.05)


# --- real models


def test_two_exports_of_one_net(assets: Path) -> None:
    folder = assets / "models"
    before, after = folder / "cifar10_resnet20_jpeg.onnx", folder / "cifar10_resnet20_jpeg_dynamo.onnx"
    result = check(before, after, data=random_feeds(load(before), 4), min_sqnr_db=100)
    assert result.passed
    assert result.outputs[0].comparison.top1_agreement == 1.0
    assert result.placement["ops"]["cpu"]["Conv"] == 19


def test_two_different_nets(assets: Path) -> None:
    folder = assets / "models"
    before, after = folder / "cifar10_resnet20_jpeg.onnx", folder / "cifar10_resnet56_jpeg.onnx"
    result = check(before, after, data=random_feeds(load(before), 4))
    assert not result.passed
    assert "is under 30 dB" in result.problems[0]


@pytest.mark.child
def test_external_data_and_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = linear(tmp_path / "m.onnx")
    onnx.save(
        onnx.load(path), tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0
    )
    monkeypatch.syspath_prepend(str(pytest.importorskip("graphopt").__path__[0] + "/.."))
    monkeypatch.chdir(tmp_path)
    from pathlib import Path as RelativePath

    assert check(RelativePath("m.onnx"), RelativePath("e.onnx")).passed


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_large_outputs_of_the_original_are_computed_again(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "_KEPT_BYTES", kept)
    before, after = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", scale=0.9)
    data = feeds(4)
    result = check(before, after, data=data)
    for level in ("all", "none"):
        assert result.levels[level][0].comparison.elements == 16
        assert result.levels[level][0].comparison.sqnr_db == pytest.approx(20, abs=1e-4)


def test_a_level_without_any_difference_is_called_exact(tmp_path: Path) -> None:
    _, packed = blocked_int4(tmp_path)
    result = check(packed, packed, data=feeds(shape=(1, 64)))
    assert not any("inf dB" in warning for warning in result.warnings)
    assert all("exact at level none" in warning for warning in result.warnings)
