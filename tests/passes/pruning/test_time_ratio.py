"""prune-channels{time_ratio}: what a table of given times makes the pass cut, and pipelines on the side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from graphopt.errors import GateFailed, OptionError, PlanError, ProviderError
from graphopt.ir.lower import lower
from graphopt.passes.prune_channels import PruneChannels
from graphopt.passes.pruning.timing import Alike, label_of
from graphopt.pipeline.manager import Manager
from graphopt.pipeline.plugins import load_plugins
from graphopt.runtime.measurements import Measured
from graphopt.targets import load_target
from tests.passes.harness import apply, context_for

if TYPE_CHECKING:
    from collections.abc import Mapping

PASS = PruneChannels()
NARROW = Alike(("n0[0]",), (32, 16), (16,))
WIDE = Alike(("w0[0]", "w1[0]"), (64, 48, 32, 16), (48, 32, 16))


def net() -> onnx.ModelProto:
    """x -> three convolutions with hidden widths of 64, 64 and 32 between layers of 8."""
    rng = np.random.default_rng(0)
    nodes, weights, source = [], [], "x"

    def conv(name: str, rows: int, columns: int, kernel: int, source: str) -> str:
        array = rng.normal(size=(rows, columns, kernel, kernel)) / np.sqrt(columns)
        weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        nodes.append(
            helper.make_node("Conv", [source, name], [f"{name}_y"], name=name, pads=[kernel // 2] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"{name}_y"], [f"{name}_r"]))
        return f"{name}_r"

    outputs = []
    for name, hidden in (("w0", 64), ("w1", 64), ("n0", 32)):
        source = conv(f"{name}_back", 8, hidden, 3, conv(name, hidden, 8, 1, source))
        outputs.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, [1, 8, 8, 8]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8])], outputs, weights
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def times(ratios: Mapping[str, float]) -> dict[tuple[str, str], Measured]:
    return {
        ("", label): Measured(label, "", "cpu", 1.0, ratio, ratio, 1.0, 0.01, replayed=True)
        for label, ratio in ratios.items()
    }


def table(narrow: float, wide: tuple[float, float, float], cuts: tuple[float, ...]) -> Any:
    ratios = {"no cut": 1.0, label_of(NARROW, 16): narrow}
    ratios |= {label_of(WIDE, kept): ratio for kept, ratio in zip(WIDE.timed, wide, strict=True)}
    return times(ratios | {f"cut {number}": ratio for number, ratio in enumerate(cuts, 1)})


def kept(report: Any) -> dict[str, int]:
    return {each["name"].removesuffix("[0]"): each["kept"] for each in report.extra["families"]}


def test_only_what_saves_time_is_cut() -> None:
    _, report = apply(PASS, net(), time_ratio=0.7, measurements=table(0.65, (1.1, 1.05, 1.01), (0.66,)))
    assert kept(report) == {"n0": 16}
    told: Any = report.extra["time"]
    assert (told["uncut"], told["measured"]) == (1.0, 0.66)
    assert told["tried"] == [{"expected": 0.65, "measured": 0.66}]
    assert {(row["kept"], row["ratio"]) for row in told["table"]} == {
        (16, 0.65),
        (48, 1.1),
        (32, 1.05),
        (16, 1.01),
    }


def test_a_width_that_is_slower_is_stepped_over() -> None:
    _, report = apply(PASS, net(), time_ratio=0.75, measurements=table(1.2, (1.1, 0.7, 0.65), (0.7,)))
    assert kept(report) == {"w0": 32, "w1": 32}


def test_noise_saves_nothing() -> None:
    _, report = apply(
        PASS, net(), time_ratio=0.5, best_effort=True, measurements=table(0.995, (0.999, 0.995, 0.8), (0.82,))
    )
    assert kept(report) == {"w0": 16, "w1": 16}


def test_the_cut_goes_further_where_times_do_not_add_up() -> None:
    slow = table(1.0, (0.95, 0.9, 0.8), (0.97, 0.89))
    _, report = apply(PASS, net(), time_ratio=0.9, measurements=slow)
    told: Any = report.extra["time"]
    assert [each["measured"] for each in told["tried"]] == [0.97, 0.89]
    assert told["tried"][1]["expected"] < told["tried"][0]["expected"]


def test_what_is_out_of_reach_is_said() -> None:
    known = table(0.9, (0.9, 0.9, 0.9), (0.81,))
    with pytest.raises(GateFailed, match=r"was not reached: 0\.810 at best, 1\.000 without a cut"):
        apply(PASS, net(), time_ratio=0.5, measurements=known)
    _, report = apply(PASS, net(), time_ratio=0.5, best_effort=True, measurements=known)
    assert kept(report) == {"n0": 16, "w0": 48, "w1": 48}


def test_nothing_is_cut_where_the_time_is_met_already() -> None:
    _, report = apply(PASS, net(), time_ratio=1.0, measurements=table(0.9, (0.9, 0.9, 0.9), ()))
    assert not report.changed


def test_options_that_do_not_fit() -> None:
    for options in ({"macs_ratio": 0.5, "timed_as": "insert-qdq"}, {"time_ratio": 0.5, "max_rounds": 2}):
        with pytest.raises(ValidationError, match="time_ratio"):
            PASS.Options(**options)
    with pytest.raises(ProviderError, match="nothing can be measured"):
        apply(PASS, net(), time_ratio=0.5, target="qnn")
    with pytest.raises(OptionError) as caught:  # a matter of usage, not a failure of the pass
        apply(
            PASS, net(), time_ratio=0.5, timed_as="insert-qdq", measurements=table(0.9, (0.9, 0.9, 0.9), ())
        )
    assert "timed_as" in caught.value.where


def test_candidates_are_timed_as_they_will_run() -> None:
    model = lower(net())
    manager = Manager(load_plugins(), target=load_target("ort-cpu"))
    from graphopt.calibrate.calibration import Calibration

    manager.calibration = Calibration([{"x": np.ones((1, 8, 8, 8), np.float32)}])
    context = manager.context()
    made = context.derived(model, "insert-qdq{measure=off}")
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph)
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph)
    with pytest.raises(PlanError, match="no-such-pass"):
        context.derived(model, "no-such-pass")
    with pytest.raises(PlanError, match="no pipelines can be run here"):
        context_for(model).derived(model, "insert-qdq")
