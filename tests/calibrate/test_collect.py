"""Collected statistics against numpy over the same values, computed apart from graphopt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.calibrate import Needs, RangeSketch, Rows, Statistics, Window, collect
from graphopt.errors import DataError
from graphopt.ir.fingerprint import content_hash
from graphopt.ir.lower import lower
from tests.passes.harness import parse

if TYPE_CHECKING:
    from pathlib import Path

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3, h, w] x, float[4, 3, 3, 3] weight) => (float[n, 4, p, q] y)
{
   c = Conv <kernel_shape = [3, 3], strides = [2, 1], pads = [1, 0, 1, 2], dilations = [1, 1]> (x, weight)
   r = Relu(c)
   y = Mul(r, r)
}
"""


def net(seed: int = 0) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(NET)
    del proto.graph.input[1]
    weight = np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    return proto


def feeds(count: int, shape: tuple[int, ...] = (1, 3, 9, 8), seed: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def values(proto: onnx.ModelProto, name: str, data: list[dict[str, Any]]) -> list[np.ndarray]:
    """What onnxruntime computes for an inner value."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run([name], feed)[0] for feed in data]


def test_ranges_are_exact_at_the_ends_and_within_a_bucket_between() -> None:
    data = feeds(7)
    found = collect(lower(net()), data, Needs(ranges=frozenset({"c", "r", "x"})))
    for name in ("c", "r"):
        every = np.concatenate([each.reshape(-1) for each in values(net(), name, data)])
        sketch = found.range(name)
        assert (sketch.count, sketch.minimum, sketch.maximum) == (every.size, every.min(), every.max())
        for fraction in (0.01, 0.5, 0.9, 0.999):
            low, high = (float(np.quantile(every, fraction, method=end)) for end in ("lower", "higher"))
            width = max(abs(low), abs(high)) / 128 + 1e-30  # the bucket of zero holds denormals too
            assert low - width <= sketch.quantile(fraction) <= high + width
    ends = [(each.min(), each.max()) for each in values(net(), "c", data)]
    assert found.range("c").moving_average() == pytest.approx(np.mean(ends, axis=0))
    assert found.range("x").maximum == max(float(feed["x"].max()) for feed in data)


def test_channel_moments_are_those_of_numpy() -> None:
    data = feeds(5)
    moments = collect(lower(net()), data, Needs(channels=frozenset({("c", 1)}))).channel("c", 1)
    every = np.concatenate(values(net(), "c", data)).swapaxes(0, 1).reshape(4, -1).astype(np.float64)
    np.testing.assert_allclose(moments.mean, every.mean(1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moments.mean_abs, np.abs(every).mean(1), rtol=1e-6)
    np.testing.assert_allclose(moments.mean_square, (every**2).mean(1), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, every.var(1), rtol=1e-5)
    np.testing.assert_array_equal(moments.min, every.min(1))
    np.testing.assert_array_equal(moments.max, every.max(1))


def test_rows_of_a_convolution_are_what_its_weights_multiply() -> None:
    """W G W^T of all rows is the second moment of the convolution's output, whatever strides and pads."""
    proto, data = net(), feeds(4)
    model = lower(proto)
    (conv,) = [node for node in model.graph if node.op_type == "Conv"]
    rows = Rows.of(conv)
    assert rows == Rows("x", 1, Window((3, 3), (2, 1), (1, 0, 1, 2)))
    gram = collect(model, data, Needs(grams=frozenset({rows})), rows_per_sample=None).gram(rows)
    outputs = np.concatenate(values(proto, "c", data)).swapaxes(0, 1).reshape(4, -1).astype(np.float64)
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]).reshape(4, -1).astype(np.float64)
    assert gram.count == outputs.shape[1]
    np.testing.assert_allclose(
        weight @ gram.second_moment @ weight.T, outputs @ outputs.T / outputs.shape[1], rtol=1e-5
    )
    np.testing.assert_allclose(weight @ gram.mean, outputs.mean(1), rtol=1e-5, atol=1e-8)


def test_shards_merge_to_the_whole(tmp_path: Path) -> None:
    data = feeds(6)
    model = lower(net())
    rows = Rows("x", 1, Window((3, 3)))
    needs = Needs(frozenset({"c"}), frozenset({("r", 1)}), frozenset({rows}))
    whole = collect(model, data, needs, rows_per_sample=None)
    parts = [collect(model, part, needs, rows_per_sample=None) for part in (data[:2], data[2:])]
    for index, part in enumerate(parts):
        part.save(tmp_path / f"{index}.npz")
    merged = Statistics.load(tmp_path / "0.npz") + Statistics.load(tmp_path / "1.npz")
    assert merged.feeds == whole.feeds == 6
    np.testing.assert_array_equal(merged.range("c").codes, whole.range("c").codes)
    np.testing.assert_array_equal(merged.range("c").counts, whole.range("c").counts)
    np.testing.assert_allclose(merged.channel("r", 1).mean, whole.channel("r", 1).mean, rtol=1e-12)
    np.testing.assert_allclose(merged.gram(rows).matrix, whole.gram(rows).matrix, rtol=1e-12)


def test_sequences_of_any_length_and_empty_ones() -> None:
    """Scenario A6: lengths 5, 7, 9 and 0 give what the concatenated data gives."""
    proto = parse("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[length, 2] x) => (float[length, 2] y) { t = Tanh(x)  y = Mul(t, t) }
    """)
    rng = np.random.default_rng(3)
    parts = [rng.normal(size=(length, 2)).astype(np.float32) for length in (5, 7, 9, 0)]
    needs = Needs(ranges=frozenset({"x", "t"}))
    apart = collect(lower(proto), [{"x": part} for part in parts], needs)
    together = collect(lower(proto), [{"x": np.concatenate(parts)}], needs)
    for name in ("x", "t"):
        one, two = apart.range(name), together.range(name)
        for method in ("minmax", "percentile", "entropy", "mse"):
            assert getattr(one, method)() == getattr(two, method)()


def test_values_in_bodies_are_seen_and_what_cannot_be_is_named() -> None:
    proto = parse("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool flag) => (float[2] y) {
          y = If (flag) <
            then_branch = t () => (float[2] a) { inner = Neg(x)  a = Abs(inner) },
            else_branch = e () => (float[2] b) { b = Identity(x) } >
        }
    """)
    data = [{"x": np.array([1, -3], np.float32), "flag": np.array(flag)} for flag in (True, False, True)]
    found = collect(lower(proto), data, Needs(ranges=frozenset({"inner", "missing"})))
    assert (found.range("inner").minimum, found.range("inner").maximum) == (-1, 3)
    assert found.range("inner").batches == 2
    assert "no value of that name" in found.skipped["missing"]


def test_mse_finds_the_best_range_of_a_grid_search() -> None:
    rng = np.random.default_rng(0)
    sample = np.concatenate([rng.normal(size=20000), [40.0]]).astype(np.float32)

    def error(high: float) -> float:
        scale = 2 * high / 254
        rounded = np.clip(np.rint(sample / scale), -127, 127) * scale
        return float(np.mean((sample - rounded) ** 2))

    chosen = RangeSketch.of(sample).mse(symmetric=True)
    tried = min(error(high) for high in np.linspace(1, 40, 400))
    assert error(max(-chosen.low, chosen.high)) <= 1.05 * tried
    assert error(40.0) > 1.08 * tried


def test_no_feeds_is_an_error() -> None:
    with pytest.raises(DataError, match="no feeds"):
        collect(lower(net()), [], Needs(ranges=frozenset({"c"})))


def test_the_content_hash_reads_weights() -> None:
    assert content_hash(lower(net(0))) == content_hash(lower(net(0)))
    assert content_hash(lower(net(0))) != content_hash(lower(net(1)))
