"""What tests of passes share: run one pass under the manager's rules, compare functions, compare golden text.

Everything is judged by onnxruntime at DISABLE_ALL or by the text of the model, never by the pass itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from onnx import helper, numpy_helper

from graphopt.api import Context, Pass, Report
from graphopt.ir.emit import emit
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import lower
from graphopt.ir.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.calibrate import Statistics
    from graphopt.ir import Model
    from graphopt.runtime.measurements import Measured

Feeds = dict[str, Any]
"""One value per input: an array, or a list of arrays for a sequence."""

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("GRAPHOPT_UPDATE_GOLDEN") == "1"

_NUMPY_OF_ORT = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
}


def parse(text: str) -> onnx.ModelProto:
    """Return the model written in ONNX's own text syntax; ir_version and opset_import stand in the text."""
    proto = onnx.parser.parse_model(text)
    onnx.checker.check_model(proto)
    return proto


def build(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 21,
    ir_version: int = 10,
    **extra: Any,
) -> onnx.ModelProto:
    """Return the model of *nodes*; inputs and outputs are (element type, shape) by name.

    What is in *extra* beside ``imports``, further operator sets, are fields of the model.
    """
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *extra.pop("imports", [])]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imports, **extra)


def context_for(
    model: Model,
    dims: Mapping[str, int] | None = None,
    *,
    data: Sequence[Feeds] | None = None,
    statistics: Statistics | None = None,
    measurements: Mapping[tuple[str, str], Measured] | None = None,
    target: str = "ort-cpu",
) -> Context:
    """Return the context that the manager would hand to a pass.

    Args:
        model: The model that the pass works on.
        dims: Sizes bound to symbolic dims.
        data: Feeds to collect statistics from.
        statistics: Statistics that are at hand.
        measurements: Latencies to answer with, by (scope, label); the scope is "" here.
        target: What is compiled for.
    """
    from graphopt.calibrate.calibration import Calibration
    from graphopt.pipeline.plugins import load_plugins
    from graphopt.runtime.measurements import Measurements
    from graphopt.targets import load_target

    def shapes(subject: Model, bound: Mapping[str, int]) -> object:
        from graphopt.ir.shapes import infer_shapes

        return infer_shapes(subject, bound)

    def cost(subject: Model, bound: Mapping[str, int]) -> object:
        from graphopt.ir.cost import measure_cost

        return measure_cost(subject, bound)

    loaded = load_target(target)
    context = Context(
        target=loaded,
        analyses={"shapes": shapes, "cost": cost},
        dims=dims,
        calibration=Calibration(data, given=statistics),
        measurements=Measurements(loaded.provider, feeds=data, dims=dims, replay=measurements),
        criteria=load_plugins().criteria,
    )
    context.bind(model)
    return context


def apply(
    pass_: Pass,
    model: onnx.ModelProto | Model,
    *,
    dims: Mapping[str, int] | None = None,
    check: bool = True,
    data: Sequence[Feeds] | None = None,
    statistics: Statistics | None = None,
    measurements: Mapping[tuple[str, str], Measured] | None = None,
    target: str = "ort-cpu",
    **options: Any,
) -> tuple[Model, Report]:
    """Run *pass_* on a private copy of *model* as the manager does, and hold it to its word.

    The result is verified, accepted by the ONNX checker (with *check*), and ``report.changed`` agrees with
    the fingerprint. *data*, *statistics*, *measurements* and *target* are those of :func:`context_for`.
    """
    working = lower(model) if isinstance(model, onnx.ModelProto) else model.clone()
    before = fingerprint(working)
    context = context_for(
        working, dims, data=data, statistics=statistics, measurements=measurements, target=target
    )
    report = pass_.run(working, pass_.Options(**options), context)
    assert report.changed == (fingerprint(working) != before), (
        f"{pass_.info.name} says changed={report.changed}: {dict(report.counts)}"
    )
    verify(working)
    if check:
        onnx.checker.check_model(emit(working))
    return working, report


def apply_all(
    passes: Iterable[Pass], model: onnx.ModelProto | Model, *, dims: Mapping[str, int] | None = None
) -> Model:
    """Run *passes* one behind the other with their default options."""
    working = lower(model) if isinstance(model, onnx.ModelProto) else model.clone()
    for pass_ in passes:
        working, _ = apply(pass_, working, dims=dims, check=False)
    return working


def session_for(model: onnx.ModelProto | Model | Path) -> ort.InferenceSession:
    """Open *model* on the CPU at DISABLE_ALL with one thread, quietly."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if isinstance(model, Path):
        source: str | bytes = str(model)
    else:
        proto = model if isinstance(model, onnx.ModelProto) else emit(model)
        source = proto.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_feeds(session: ort.InferenceSession, feeds: Feeds) -> dict[str, Any]:
    """Return the outputs of *session* by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def random_feeds(
    model: onnx.ModelProto | Model | ort.InferenceSession,
    *,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    low: float = -2.0,
    high: float = 2.0,
) -> Feeds:
    """Return seeded random feeds for tensor inputs; free dims are 2 unless *dims* binds their name."""
    session = model if isinstance(model, ort.InferenceSession) else session_for(model)
    generator = np.random.default_rng(seed)
    feeds: Feeds = {}
    for spec in session.get_inputs():
        shape = [dim if isinstance(dim, int) else (dims or {}).get(dim or "", 2) for dim in spec.shape]
        if spec.type == "tensor(string)":
            feeds[spec.name] = generator.choice(["a", "bc", ""], size=shape).astype(object)
            continue
        dtype = _NUMPY_OF_ORT[spec.type]
        if dtype.kind == "b":
            feeds[spec.name] = np.asarray(generator.random(shape) < 0.5)
        elif dtype.kind in "iu":
            feeds[spec.name] = np.asarray(generator.integers(0, 2, size=shape)).astype(dtype)
        else:
            feeds[spec.name] = np.asarray(generator.uniform(low, high, size=shape)).astype(dtype)
    return feeds


def assert_same_function(
    before: onnx.ModelProto | Model | Path,
    after: onnx.ModelProto | Model | Path,
    *feeds: Feeds,
    rtol: float = 0.0,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
) -> None:
    """Assert that both models have the same interface and give the same outputs on onnxruntime.

    Args:
        before: The model that a pass was given.
        after: The model that it left.
        feeds: What to run; one seeded random feed where none is given.
        rtol: Largest |a - b| over the largest |a| of a floating-point output; 0 asks for equal bits up to
            the sign of zero, NaN equal to NaN. Integers, booleans and strings must always be equal.
        seed: Seed of the random feed.
        dims: Sizes of symbolic dims in the random feed.
    """
    one, two = session_for(before), session_for(after)
    for side in ("get_inputs", "get_outputs"):
        first = [(spec.name, spec.type, len(spec.shape)) for spec in getattr(one, side)()]
        second = [(spec.name, spec.type, len(spec.shape)) for spec in getattr(two, side)()]
        assert first == second, f"{side} differ: {first} against {second}"
    for feed in feeds or (random_feeds(one, seed=seed, dims=dims),):
        expected, got = run_feeds(one, feed), run_feeds(two, feed)
        assert list(expected) == list(got)
        for name, value in expected.items():
            assert_equal(value, got[name], where=name, rtol=rtol)


def assert_equal(expected: Any, got: Any, *, where: str, rtol: float = 0.0) -> None:
    """Assert that two outputs agree; sequences element by element, see :func:`assert_same_function`."""
    if isinstance(expected, list | tuple):
        assert len(expected) == len(got), f"{where}: sequence of {len(got)} instead of {len(expected)}"
        for index, (one, two) in enumerate(zip(expected, got, strict=True)):
            assert_equal(one, two, where=f"{where}[{index}]", rtol=rtol)
        return
    if expected is None or isinstance(expected, dict):
        assert expected == got, where
        return
    one, two = np.asarray(expected), np.asarray(got)
    assert one.dtype == two.dtype, f"{where}: dtype {two.dtype} instead of {one.dtype}"
    assert one.shape == two.shape, f"{where}: shape {two.shape} instead of {one.shape}"
    # bfloat16, float8 and the like are of kind V to numpy, which knows nothing of their NaN.
    floating = one.dtype.kind in "fV" and one.dtype.fields is None
    if floating:
        one, two = one.astype(np.float64), two.astype(np.float64)
    if not floating or rtol == 0.0:
        assert np.array_equal(one, two, equal_nan=floating), f"{where}: {_difference(one, two)}"
        return
    finite = np.isfinite(one)
    assert np.array_equal(finite, np.isfinite(two)), f"{where}: non-finite elements differ"
    assert np.array_equal(one[~finite], two[~finite], equal_nan=True), f"{where}: non-finite elements differ"
    if finite.any():
        scale = float(np.abs(one[finite]).max())
        error = float(np.abs(one[finite] - two[finite]).max())
        assert error <= rtol * scale, f"{where}: error {error:.3g} against a scale of {scale:.3g}"


def _difference(one: np.ndarray, two: np.ndarray) -> str:
    if one.dtype.kind in "fiu":
        delta = np.abs(one.astype(np.float64) - two.astype(np.float64))
        return f"largest difference {np.nanmax(delta) if delta.size else 0:.3g} over {delta.size} elements"
    return "elements differ"


def golden_text(before: onnx.ModelProto | Model, after: Model, report: Report) -> str:
    """Return what a golden file holds: the model before, the report, the model after."""
    from graphopt.ir.text import to_text

    first = lower(before) if isinstance(before, onnx.ModelProto) else before
    counts = "".join(f"  {key} = {count}\n" for key, count in sorted(report.counts.items()))
    skips = "".join(f"  skipped {where}: {reason}\n" for where, reason in report.skipped)
    parts = (
        "== before ==",
        to_text(first).rstrip("\n"),
        f"== report: {'changed' if report.changed else 'unchanged'} ==",
        (counts + skips).rstrip("\n"),
        "== after ==",
        to_text(after).rstrip("\n"),
    )
    return "\n".join(part for part in parts if part) + "\n"


def assert_golden(
    pass_name: str, case: str, before: onnx.ModelProto | Model, after: Model, report: Report
) -> None:
    """Compare with tests/passes/golden/PASS/CASE.txt; GRAPHOPT_UPDATE_GOLDEN=1 writes it instead."""
    path = GOLDEN / pass_name / f"{case}.txt"
    text = golden_text(before, after, report)
    if UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), (
        f"no golden file {path.name}; set GRAPHOPT_UPDATE_GOLDEN=1 and look at what it writes"
    )
    assert text == path.read_text(encoding="utf-8")


def op_types(model: Model | onnx.ModelProto, *, sort: bool = False) -> Sequence[str]:
    """Return the op types of all nodes, subgraphs and functions included, in graph order."""
    lowered = lower(model) if isinstance(model, onnx.ModelProto) else model
    names = [node.op_type for node in lowered.nodes()]
    return sorted(names) if sort else names
