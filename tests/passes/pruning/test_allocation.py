"""Where a budget goes: choices, floors, alignment, and a meter that agrees with a smaller model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.cost import measure_cost
from graphopt.ir.lower import lower
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.pruning.allocation import Candidate, allocate, choices, choices_for, ordered
from graphopt.passes.pruning.meter import Meter, make_extent
from tests.examples import examples


def chain(a: int, b: int) -> onnx.ModelProto:
    """x [1, 3, 8, 8] -> Conv to *a* -> Relu -> Conv to *b* -> Relu -> Conv to 5."""
    nodes, weights, source, width = [], [], "x", 3
    for index, out in enumerate((a, b, 5)):
        array = np.ones((out, width, 3, 3), np.float32)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        nodes.append(helper.make_node("Conv", [source, f"w{index}"], [f"c{index}"], pads=[1] * 4))
        source, width = f"c{index}", out
        if index < 2:
            nodes.append(helper.make_node("Relu", [source], [f"r{index}"]))
            source = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("c2", TensorProto.FLOAT, [1, 5, 8, 8])],
        weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def layout_of(a: int, b: int) -> Any:
    one, two = np.arange(a), np.arange(b)
    table: dict[str, dict[int, Any]] = {
        "w0": {0: [("A", one)]},
        "c0": {1: [("A", one)]},
        "r0": {1: [("A", one)]},
        "w1": {0: [("B", two)], 1: [("A", one)]},
        "c1": {1: [("B", two)]},
        "r1": {1: [("B", two)]},
        "w2": {1: [("B", two)]},
    }

    def layout(node: oir.Node, place: int) -> Any:
        value = node.inputs[place] if place >= 0 else node.outputs[-1 - place]
        return table.get(value.name or "" if value is not None else "", {})

    return layout


def candidate(name: str, size: int, seed: int = 0, width: int = 1) -> Candidate:
    scores = np.random.default_rng([seed, size]).random(size)
    return Candidate(name, scores, ordered(scores), width)


def meter(a: int, b: int, found: list[Candidate]) -> Meter:
    model = lower(chain(a, b))
    ranks = {each.name: np.argsort(each.order) for each in found}
    return Meter(model, infer_shapes(model, {}, unbound=1), layout_of(a, b), ranks)


@pytest.mark.parametrize(("a", "b"), [(64, 32), (48, 48), (7, 90)])
def test_the_meter_agrees_with_the_cost_of_the_smaller_model(a: int, b: int) -> None:
    found = [candidate("A", a), candidate("B", b)]
    gauge = meter(a, b, found)
    whole = measure_cost(lower(chain(a, b)))
    for keep_a, keep_b in ((a, b), (a // 2, b), (3, b - 2), (1, 1)):
        small = measure_cost(lower(chain(keep_a, keep_b)))
        counts = {"A": keep_a, "B": keep_b}
        assert gauge.removed_macs(counts) == whole.known_macs - small.known_macs
        assert gauge.removed_parameters(counts) == whole.parameters - small.parameters


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(2, 90),
    st.integers(2, 90),
    st.floats(0.05, 0.99),
    st.sampled_from(["global", "family"]),
    st.sampled_from(["macs", "parameters"]),
    st.sampled_from([None, 1, 4, 16]),
    st.integers(1, 4),
)
def test_a_plan_meets_its_budget_or_says_that_nothing_can(
    a: int, b: int, ratio: float, scope: Any, budget: Any, round_to: int | None, min_family: int
) -> None:
    found = [candidate("A", a), candidate("B", b)]
    gauge = meter(a, b, found)
    whole = measure_cost(lower(chain(a, b)))
    amount = whole.known_macs if budget == "macs" else whole.parameters
    to_remove = int(np.ceil((1 - ratio) * amount))
    plan = allocate(
        found,
        gauge,
        budget=budget,
        to_remove=to_remove,
        scope=scope,
        round_to=round_to,
        min_family=min_family,
    )
    removable = gauge.removed_macs if budget == "macs" else gauge.removed_parameters
    assert plan.reached == (removable(plan.floors) >= to_remove)
    if plan.reached:
        assert plan.removed >= to_remove
    for each in found:
        kept = plan.counts[each.name]
        assert kept == each.size or kept >= min_family
        assert kept == each.size or round_to is None or kept % round_to == 0
        assert kept == each.size or kept % plan.alignments[each.name] == 0


def test_no_family_is_emptied_while_another_is_full() -> None:
    scores = np.ones(64)
    found = [Candidate(name, scores, ordered(scores)) for name in ("A", "B")]
    gauge = meter(64, 64, found)
    whole = measure_cost(lower(chain(64, 64))).known_macs
    plan = allocate(found, gauge, budget="macs", to_remove=whole // 2, preferred=8)
    assert all(16 <= count < 64 for count in plan.counts.values()), plan.counts


def test_dead_units_go_first_and_cost_nothing() -> None:
    scores = np.ones(32)
    scores[::2] = 0.0
    dead = Candidate("A", scores, ordered(scores))
    alive = Candidate("B", np.ones(32), ordered(np.ones(32)))
    gauge = meter(32, 32, [dead, alive])
    saved = gauge.removed_macs({"A": 16, "B": 32})
    plan = allocate([dead, alive], gauge, budget="macs", to_remove=saved)
    assert dict(plan.counts) == {"A": 16, "B": 32}
    assert set(dead.order[:16].tolist()) == set(range(1, 32, 2))


@pytest.mark.parametrize(
    ("size", "width", "alignment", "floor", "expected"),
    [
        (64, 1, 16, 8, (64, 48, 32, 16)),
        (24, 1, 16, 3, (24, 16)),
        (16, 1, 16, 2, (16,)),
        (20, 1, 8, 9, (20, 16)),
        (12, 64, 16, 2, (12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2)),
        (32, 4, 16, 4, (32, 28, 24, 20, 16, 12, 8, 4)),
        (3, 1, 1, 2, (3, 2)),
    ],
)
def test_choices_are_aligned_and_above_the_floor(
    size: int, width: int, alignment: int, floor: int, expected: tuple[int, ...]
) -> None:
    assert choices(candidate("A", size, width=width), alignment, floor) == expected


@pytest.mark.parametrize(
    ("size", "alignment"), [(64, 16), (32, 16), (24, 16), (16, 8), (12, 8), (8, 4), (6, 4), (4, 1), (3, 1)]
)
def test_a_family_takes_the_largest_alignment_that_leaves_a_choice(size: int, alignment: int) -> None:
    found, taken = choices_for(candidate("A", size), None, 16, 2, 0.125)
    assert taken == alignment
    assert len(found) >= 2


def test_an_explicit_alignment_is_never_broken() -> None:
    assert choices_for(candidate("A", 12), 16, 16, 2, 0.0) == ((12,), 16)


def test_a_budget_that_the_alignment_forbids_makes_it_give_way_and_says_so() -> None:
    found = [candidate("A", 20), candidate("B", 20)]
    gauge = meter(20, 20, found)
    to_remove = gauge.removed_macs({"A": 9, "B": 9})
    plan = allocate(found, gauge, budget="macs", to_remove=to_remove)
    assert plan.reached
    assert "multiples of" in plan.note
    refused = allocate(found, gauge, budget="macs", to_remove=to_remove, round_to=16)
    assert not refused.reached


def test_a_dim_that_two_families_share_is_counted_by_index() -> None:
    heads, dims = np.repeat(np.arange(4), 6), np.tile(np.arange(6), 4)
    ranks = {"H": np.arange(4), "D": np.arange(6)}
    extent = make_extent([("H", heads), ("D", dims)], ranks, {"H": 4, "D": 6})
    assert extent is not None
    assert extent.count({"H": 3, "D": 5}) == 15
    ragged = make_extent([("H", heads[:-1]), ("D", dims[:-1])], ranks, {"H": 4, "D": 6})
    assert ragged is not None
    assert ragged.count({"H": 4, "D": 6}) == 23
    assert ragged.count({"H": 4, "D": 5}) == 20
    assert ragged.count({"H": 3, "D": 6}) == 18
