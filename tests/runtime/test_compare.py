"""Metrics against closed forms and against numpy on the concatenation; the rules for odd outputs."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.errors import DataError
from graphopt.runtime.compare import Comparator, OutputComparison, judge
from tests.examples import examples


def compare(*pairs: tuple[object, object]) -> OutputComparison:
    comparator = Comparator(["y"])
    for reference, candidate in pairs:
        comparator.add([reference], [candidate])  # type: ignore[list-item]  # odd values on purpose
    return comparator.result()[0]


def test_closed_form_of_every_metric() -> None:
    result = compare((np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 4.5]], np.float32)))
    assert result.max_abs == 0.5
    assert result.max_rel == 0.125
    assert result.sqnr_db == pytest.approx(20.0, abs=1e-12)  # 25 / 0.25
    assert result.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)), abs=1e-14)
    assert result.top1_agreement == 1.0
    assert not result.exact
    assert result.equal_ratio == 0.5
    assert judge(result).note == "SQNR 20.00 dB is under 30 dB"
    assert judge(result, min_sqnr_db=19.9).passed
    assert judge(result, max_abs=0.5).passed
    assert not judge(result, min_sqnr_db=10, max_abs=0.4).passed


def test_a_halved_signal_has_six_decibels_and_cosine_one() -> None:
    signal = np.linspace(-1, 1, 101)
    result = compare((signal, signal / 2))
    assert result.sqnr_db == pytest.approx(20 * math.log10(2), abs=1e-9)
    assert result.cosine == pytest.approx(1.0, abs=1e-12)


def test_opposite_and_orthogonal_directions() -> None:
    assert compare((np.array([1.0, 2.0]), np.array([-1.0, -2.0]))).cosine == pytest.approx(-1.0)
    assert compare((np.array([1.0, 0.0]), np.array([0.0, 1.0]))).cosine == pytest.approx(0.0, abs=1e-15)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
            elements=st.floats(-1000, 1000, width=32),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**32 - 1),
)
def test_streaming_equals_numpy_on_the_concatenation(references: list[np.ndarray], seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = [a + rng.normal(0, 0.1, a.shape).astype(np.float32) for a in references]
    result = compare(*zip(references, candidates, strict=True))
    a = np.concatenate([x.ravel() for x in references]).astype(np.float64)
    b = np.concatenate([x.ravel() for x in candidates]).astype(np.float64)
    assert result.elements == a.size
    if not a.size:
        assert result.max_abs is None
        assert judge(result).note.startswith("no evidence")
        return
    assert result.max_abs == np.abs(a - b).max()
    assert result.equal_ratio == np.mean(a == b)
    signal, noise = np.sum(a * a), np.sum((a - b) ** 2)
    if signal > 1e-12 and noise:
        assert result.sqnr_db == pytest.approx(10 * np.log10(signal / noise), rel=1e-9, abs=1e-9)
        assert result.cosine == pytest.approx(
            a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9, abs=1e-9
        )
    rows = [
        (x.reshape(-1, x.shape[-1]).argmax(-1), y.reshape(-1, x.shape[-1]).argmax(-1))
        for x, y in zip(references, candidates, strict=True)
        if x.size and x.shape[-1] > 1
    ]
    if rows:
        hits = np.concatenate([x == y for x, y in rows])
        assert result.top1_agreement == pytest.approx(hits.mean())
    else:
        assert result.top1_agreement is None


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_extreme_magnitudes_neither_overflow_nor_vanish(scale: float) -> None:
    result = compare((np.array([3.0, 4.0]) * scale, np.array([3.0, 4.5]) * scale))
    assert result.sqnr_db == pytest.approx(20.0, abs=1e-9)
    assert result.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)), abs=1e-12)


def test_the_ends_of_float64() -> None:
    most = np.finfo(np.float64).max
    assert compare((np.array([most, 1.0]), np.array([-most, 1.0]))).sqnr_db == -math.inf
    assert compare((np.array([most, 0.0]), np.array([most / 2, 0.0]))).sqnr_db == pytest.approx(
        6.0206, abs=1e-3
    )
    tiny = np.finfo(np.float64).smallest_subnormal
    assert compare((np.array([4 * tiny, 0.0]), np.array([2 * tiny, 0.0]))).sqnr_db == pytest.approx(
        6.0206, abs=1e-3
    )


def test_scales_that_grow_and_shrink_between_feeds_merge() -> None:
    parts = [np.array([1e-200, 1.0]), np.array([1e200, -2e200]), np.array([5.0, 1e-30])]
    result = compare(*((part, part * (1 + 1e-3)) for part in parts))
    assert result.sqnr_db == pytest.approx(60.0, abs=1e-6)


def test_large_outputs_are_taken_in_parts() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(2_500_001).astype(np.float32)
    b = a.copy()
    b[-1] += 1
    result = compare((a, b))
    assert result.equal_ratio == 1 - 1 / a.size
    assert result.max_abs == pytest.approx(1.0, rel=1e-6)


def test_equal_outputs_are_exact_with_infinite_sqnr() -> None:
    a = np.array([0.0, -1.5, 2.0], np.float32)
    result = compare((a, a.copy()))
    assert result.exact
    assert result.sqnr_db == math.inf
    assert result.max_abs == 0.0
    assert result.max_rel == 0.0
    assert result.cosine == 1.0
    assert judge(result) == judge(result, min_sqnr_db=200, max_abs=0.0)
    assert judge(result).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_where_the_original_is_finite_fails(bad: float) -> None:
    result = compare((np.array([1.0, 2.0]), np.array([1.0, bad])))
    assert result.nonfinite == 1
    verdict = judge(result, max_abs=1e9)
    assert not verdict.passed
    assert "NaN or infinite" in verdict.note


def test_the_same_nonfinite_pattern_leaves_the_rest_to_compare() -> None:
    a = np.array([math.nan, math.inf, -math.inf, 3.0, 4.0])
    b = np.array([math.nan, math.inf, -math.inf, 3.0, 4.5])
    result = compare((a, b))
    assert result.nonfinite == 0
    assert result.both_nonfinite == 3
    assert result.sqnr_db == pytest.approx(20.0)
    assert compare((a, a)).exact
    assert judge(compare((a, a))).passed
    assert judge(compare((a, a))).note == "3 elements are NaN or infinite in both"


def test_infinity_of_the_other_sign_is_a_difference() -> None:
    assert compare((np.array([math.inf, 1.0]), np.array([-math.inf, 1.0]))).nonfinite == 1


def test_nothing_but_nan_fails() -> None:
    result = compare((np.full(3, np.nan), np.full(3, np.nan)))
    verdict = judge(result)
    assert not verdict.passed
    assert "nothing to compare" in verdict.note


def test_equal_infinities_agree() -> None:
    # What a maximum over nothing gives, for one.
    assert judge(compare((np.full(3, -np.inf), np.full(3, -np.inf)))).passed


def test_an_output_that_became_constant_fails_whatever_the_thresholds() -> None:
    a = np.array([1.0, 1.0 + 1e-9])
    result = compare((a, np.ones(2)))
    assert result.constant
    assert not judge(result, max_abs=1.0, min_sqnr_db=0).passed


def test_constant_in_both_is_no_evidence_but_must_still_agree() -> None:
    same = compare((np.full(4, 2.0), np.full(4, 2.0)))
    assert not same.evidence
    assert not same.constant
    assert judge(same).passed
    assert "no evidence" in judge(same).note
    assert not judge(compare((np.full(4, 2.0), np.full(4, 3.0)))).passed


def test_zero_reference_with_nonzero_candidate_fails() -> None:
    result = compare((np.zeros(3), np.array([0.0, 1e-3, 0.0])))
    assert result.sqnr_db == -math.inf
    assert result.max_rel == math.inf
    assert not judge(result).passed


def test_single_elements_are_judged_over_all_feeds() -> None:
    values = [0.1, 0.7, -0.3]
    constant = compare(*((np.array([v]), np.array([0.5])) for v in values))
    assert constant.constant
    close = compare(*((np.array([v]), np.array([v + 1e-4])) for v in values))
    assert close.evidence
    assert judge(close).passed
    assert close.top1_agreement is None


def test_a_constant_over_each_feed_that_differs_between_feeds_is_not_constant() -> None:
    result = compare((np.full(3, 1.0), np.full(3, 1.0)), (np.full(3, 2.0), np.full(3, 2.0)))
    assert result.evidence
    assert not result.constant


def test_empty_outputs_are_judged_by_shape() -> None:
    same = compare((np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)))
    assert judge(same).passed
    assert "no elements" in judge(same).note
    other = compare((np.zeros((0, 4), np.float32), np.zeros((0, 5), np.float32)))
    assert judge(other).note == "expected shape [0, 4], got [0, 5]"


@pytest.mark.parametrize(
    ("reference", "candidate", "words"),
    [
        (np.zeros(3, np.float32), np.zeros(3, np.float16), "expected dtype float32, got float16"),
        (np.zeros((1, 3)), np.zeros(3), "expected rank 2, got rank 1"),
        (np.zeros((1, 3)), np.zeros((3, 1)), "expected shape [1, 3], got [3, 1]"),
        ([np.zeros(3)], np.zeros(3), "expected a sequence of 1, got a tensor"),
        ([np.zeros(3)], [], "expected a sequence of 1, got one of 0"),
        (None, np.zeros(3), "expected no value, got a tensor"),
    ],
)
def test_what_cannot_be_compared_is_named(reference: object, candidate: object, words: str) -> None:
    verdict = judge(compare((reference, candidate)), max_abs=1e9)
    assert not verdict.passed
    assert verdict.note == words


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "bool"])
def test_integers_and_bools_are_compared_exactly(dtype: str) -> None:
    a = np.array([0, 1, 1, 0]).astype(dtype)
    b = np.array([0, 1, 1, 1]).astype(dtype)
    result = compare((a, b))
    assert result.discrete
    assert result.equal_ratio == 0.75
    assert judge(result, min_sqnr_db=0).note.startswith("75.0000% of the elements are equal")
    assert judge(result, max_abs=1).passed
    assert judge(compare((a, a))).passed


def test_unsigned_differences_do_not_wrap() -> None:
    result = compare((np.array([0, 255], np.uint8), np.array([1, 254], np.uint8)))
    assert result.max_abs == 1.0


def test_neighbouring_large_integers_are_not_equal() -> None:
    result = compare((np.array([2**60, 5]), np.array([2**60 + 1, 5])))
    assert not result.exact
    assert result.max_abs == 1.0


def test_strings() -> None:
    a = np.array([["a", "b"]], object)
    result = compare((a, np.array([["a", "c"]], object)))
    assert result.equal_ratio == 0.5
    assert result.sqnr_db is None
    assert not judge(result, max_abs=5).passed
    assert judge(compare((a, a.copy()))).passed


def test_sequences_of_floats_are_compared_as_numbers() -> None:
    a = [np.array([3.0]), np.array([4.0, 0.0])]
    b = [np.array([3.0]), np.array([4.5, 0.0])]
    assert compare((a, b)).sqnr_db == pytest.approx(20.0)


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float16]
)
def test_low_precision_floats(dtype: type) -> None:
    result = compare((np.array([3.0, 4.0]).astype(dtype), np.array([3.0, 5.0]).astype(dtype)))
    assert result.sqnr_db == pytest.approx(10 * math.log10(25))
    assert not result.discrete


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
def test_low_precision_integers(dtype: type) -> None:
    result = compare((np.array([1, 2, 7]).astype(dtype), np.array([1, 2, 5]).astype(dtype)))
    assert result.discrete
    assert result.max_abs == 2.0


def test_a_wrong_number_of_outputs() -> None:
    with pytest.raises(DataError, match="expected 1 outputs"):
        Comparator(["y"]).add([], [])
