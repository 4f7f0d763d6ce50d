"""The pass itself: golden cases, options, plans, rounds, determinism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import GateFailed, OptionError
from graphopt.ir.cost import measure_cost
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.passes.prune_channels import PruneChannels
from tests.passes.harness import apply, assert_golden, run_feeds, session_for
from tests.passes.pruning import scenarios

CASES: dict[str, tuple[onnx.ModelProto, dict[str, Any]]] = {
    "two_convolutions": (scenarios.captured_free(), {"macs_ratio": 0.5}),
    "reshape_to_gemm": (scenarios.flattened("reshape"), {"params_ratio": 0.51}),
    "branches": (scenarios.captured_by_branches(), {"macs_ratio": 0.6}),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    proto, options = CASES[case]
    after, report = apply(PruneChannels(), proto, **options)
    assert_golden("prune-channels", case, proto, after, report)


def kept_of(report: Any) -> dict[str, int]:
    return {each["name"]: each["kept"] for each in report.extra["families"]}


@pytest.mark.parametrize("scope", ["global", "family"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "product-of-norms", "random"])
def test_every_criterion_meets_the_ratio_in_both_scopes(scope: str, criterion: str) -> None:
    proto = scenarios.shared_weight()
    after, report = apply(PruneChannels(), proto, macs_ratio=0.5, scope=scope, criterion=criterion)
    ratio = measure_cost(after).known_macs / measure_cost(lower(proto)).known_macs
    assert report.extra["macs_ratio"] == ratio <= 0.5


def test_l1_keeps_the_largest_filters() -> None:
    proto = scenarios.captured_free()
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    after, report = apply(PruneChannels(), proto, macs_ratio=0.5, criterion="l1")
    (kept,) = kept_of(report).values()
    norms = np.abs(weight).sum(axis=(1, 2, 3))
    expected = weight[np.sort(np.argsort(-norms, kind="stable")[:kept])]
    tensor = after.graph.initializers["w1"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize(("criterion", "power"), [("energy", np.mean), ("entropy", np.var)])
def test_activations_are_weighed_with_what_reads_them(criterion: str, power: Any) -> None:
    proto = scenarios.captured_free()
    feeds = [
        {"x": np.random.default_rng(seed).standard_normal((2, 3, 8, 8), dtype=np.float32)} for seed in (1, 2)
    ]
    after, report = apply(PruneChannels(), proto, data=feeds, macs_ratio=0.5, criterion=criterion)
    (kept,) = kept_of(report).values()
    inner = onnx.ModelProto()
    inner.CopyFrom(proto)
    inner.graph.output.append(onnx.helper.make_empty_tensor_value_info("r1"))
    session = session_for(inner)
    seen = np.concatenate([run_feeds(session, feed)["r1"] for feed in feeds]).astype(np.float64)
    moment = power(seen if criterion == "entropy" else seen**2, axis=(0, 2, 3))
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    scores = moment * (weights["w2"].astype(np.float64) ** 2).sum(axis=(0, 2, 3))
    expected = weights["w1"][np.sort(np.argsort(-scores, kind="stable")[:kept])]
    tensor = after.graph.initializers["w1"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("round_to", [1, 4, 8, 16])
def test_an_explicit_alignment_is_kept(round_to: int) -> None:
    _, report = apply(PruneChannels(), scenarios.shared_weight(), macs_ratio=0.6, round_to=round_to)
    assert all(kept % round_to == 0 for kept in kept_of(report).values())


def test_auto_takes_the_alignment_of_the_target() -> None:
    _, report = apply(PruneChannels(), scenarios.shared_weight(), macs_ratio=0.6)
    wide = [each for each in report.extra["families"] if each["units"] == 64]  # type: ignore[attr-defined]  # a list
    assert wide
    assert all(each["kept"] % 16 == 0 for each in wide)


def test_what_is_protected_stays() -> None:
    proto = scenarios.captured_by_branches()
    _, report = apply(PruneChannels(), proto, macs_ratio=0.7, protect=["w_then"], best_effort=True)
    assert list(kept_of(report)) == ["w0[0]"]
    assert ("family 'w1[0]'", "protected by 'w_then'") in report.skipped
    _, report = apply(PruneChannels(), proto, macs_ratio=0.7, protect=["nothing*"])
    assert ("protect=nothing*", "nothing in the model has a name of this form") in report.skipped


def test_a_family_never_falls_below_its_minimum() -> None:
    _, report = apply(
        PruneChannels(),
        scenarios.shared_weight(),
        macs_ratio=0.01,
        min_family=12,
        round_to=1,
        best_effort=True,
    )
    assert kept_of(report)
    assert all(kept >= 12 for kept in kept_of(report).values())


def test_rounds_reach_the_same_ratio() -> None:
    proto = scenarios.shared_weight()
    after, report = apply(PruneChannels(), proto, macs_ratio=0.4, max_rounds=3, round_to=1)
    assert measure_cost(after).known_macs <= 0.4 * measure_cost(lower(proto)).known_macs
    oracle = report.extra["oracle"]
    assert isinstance(oracle, dict)
    assert len(oracle["exact"]) == 3


def test_the_same_bytes_every_time() -> None:
    proto = scenarios.flattened("depth to space")
    once, twice = (
        emit(
            apply(PruneChannels(), proto, params_ratio=0.5, criterion="random", seed=3)[0]
        ).SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert once == twice
    other = emit(apply(PruneChannels(), proto, params_ratio=0.5, criterion="random", seed=4)[0])
    assert other.SerializeToString(deterministic=True) != once


def test_a_ratio_of_one_changes_nothing() -> None:
    _, report = apply(PruneChannels(), scenarios.captured_free(), macs_ratio=1.0)
    assert not report.changed


def test_without_the_oracle_the_report_says_so() -> None:
    _, report = apply(PruneChannels(), scenarios.captured_free(), macs_ratio=0.5, oracle=False)
    assert report.extra["oracle"] == "switched off"


PLAN = """schema = 1
pass = "prune-channels"

[[item]]
family = "w1[0]"
{}
"""


def planned(folder: Path, line: str, **options: Any) -> tuple[Any, Any]:
    path = folder / "plan.toml"
    path.write_text(PLAN.format(line), encoding="utf-8")
    return apply(PruneChannels(), scenarios.captured_free(), plan=path, **options)


def test_a_plan_says_how_many(tmp_path: Path) -> None:
    after, report = planned(tmp_path, "keep = 7")
    assert kept_of(report) == {"w1[0]": 7}
    assert tuple(after.graph.initializers["w2"].shape.numpy()) == (10, 7, 3, 3)


def test_a_plan_says_which(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.to_array(scenarios.captured_free().graph.initializer[0])
    after, _ = planned(tmp_path, "keep_units = [30, 1, 5]")
    np.testing.assert_array_equal(after.graph.initializers["w1"].const_value.numpy(), weight[[1, 5, 30]])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("keep = 0", "from 1 to 32"),
        ("keep = 33", "from 1 to 32"),
        ("keep = 2.5", "from 1 to 32"),
        ("", "expected keep"),
        ("keep_units = [1, 1]", "once"),
        ("keep_units = [32]", "once"),
        ("keep_units = []", "once"),
        ("keep_units = [1]\nkeep = 1", "both keep and keep_units"),
        ("keeps = 3", "no key 'keeps'"),
        ('keep = 3\n[[item]]\nfamily = "w9[0]"\nkeep = 3', r"no family 'w9\[0\]'"),
        ('keep = 3\n[[item]]\nfamily = "w1[0]"\nkeep = 3', "listed twice"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        planned(tmp_path, line)


def test_a_plan_cannot_cut_what_is_protected(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="protected by 'w1'"):
        planned(tmp_path, "keep = 7", protect=["w1"])


def test_nothing_free_is_a_failed_request() -> None:
    with pytest.raises(GateFailed, match="no family of channels can be pruned"):
        apply(PruneChannels(), scenarios.locked(), macs_ratio=0.5)


def test_an_unknown_criterion_is_named_where_nothing_is_free_too() -> None:
    with pytest.raises(OptionError, match=r"no criterion 'l3'\. Criteria: energy"):
        apply(PruneChannels(), scenarios.locked(), macs_ratio=0.5, criterion="l3")
