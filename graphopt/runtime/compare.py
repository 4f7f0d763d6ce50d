"""How much the outputs of two models differ, gathered feed by feed in bounded memory.

Everything is accumulated in float64. Sums of squares are kept relative to the largest magnitude seen (as
LAPACK's xLASSQ does), so that neither huge nor tiny float64 values overflow or vanish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime import dtypes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.runtime.session import Tensor, Value

DEFAULT_MIN_SQNR_DB = 30.0
_CHUNK = 1 << 20  # elements converted to float64 at a time: 8 MiB a copy


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """How one output of the candidate differs from the reference's over all feeds.

    Numbers cover the elements that are finite in both; they are None where there is no such element, or for
    strings.

    Attributes:
        name: The output.
        exact: Whether all elements are equal (NaN equals NaN).
        max_abs: Largest absolute difference.
        max_rel: ``max_abs`` over the largest magnitude of the reference.
        sqnr_db: ``10 log10(sum(reference^2) / sum((reference - candidate)^2))``; inf where the difference is
            zero, -inf where only the reference is.
        cosine: Cosine of the angle between the two, all feeds as one vector.
        top1_agreement: Fraction of rows along the last axis whose largest element is at the same place; None
            for outputs without rows of at least two.
        equal_ratio: Fraction of equal elements.
        nonfinite: Elements where one is NaN or infinite and the other is not the same.
        both_nonfinite: Elements that are the same NaN or infinity in both.
        both_nan: Those of them that are NaN.
        constant: Whether the candidate has one value over all feeds and the reference has not.
        evidence: Whether the reference varies; without it, agreement proves nothing.
        discrete: Whether it is compared exactly: integers, bools and strings.
        elements: Number of elements compared.
        mismatch: What cannot be compared at all: a changed dtype, rank, dim or length; "" where nothing.
    """

    name: str
    exact: bool
    max_abs: float | None
    max_rel: float | None
    sqnr_db: float | None
    cosine: float | None
    top1_agreement: float | None
    equal_ratio: float
    nonfinite: int
    constant: bool
    evidence: bool
    discrete: bool
    elements: int
    mismatch: str = ""
    both_nonfinite: int = 0
    both_nan: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one output and, in a few words, why."""

    passed: bool
    note: str


class Comparator:
    """Compares outputs feed by feed.

    >>> import numpy as np
    >>> comparator = Comparator(["y"])
    >>> comparator.add([np.array([3.0, 4.0])], [np.array([3.0, 4.5])])
    >>> result = comparator.result()[0]
    >>> result.max_abs, result.sqnr_db
    (0.5, 20.0)
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._outputs = [_Output(name) for name in names]

    def add(self, reference: Sequence[Value], candidate: Sequence[Value]) -> None:
        """Take in the outputs of one feed, in the order of the names.

        Raises:
            DataError: The number of outputs is not that of the names.
        """
        if not len(reference) == len(candidate) == len(self._outputs):
            raise DataError(
                f"expected {len(self._outputs)} outputs, got {len(reference)} and {len(candidate)}"
            )
        for output, first, second in zip(self._outputs, reference, candidate, strict=True):
            output.add(first, second)

    def result(self) -> list[OutputComparison]:
        """Return one comparison an output, over all feeds so far."""
        return [output.result() for output in self._outputs]


def judge(
    comparison: OutputComparison, *, min_sqnr_db: float | None = None, max_abs: float | None = None
) -> Judgement:
    """Return whether *comparison* passes.

    It always fails on a mismatch of dtype or shape, on NaN or infinity that the reference has not (or the
    other way round), on an output that is nothing but NaN, and on one that became constant. Integers, bools
    and strings must be equal, or within *max_abs* where that is given. Floats must reach *min_sqnr_db* and
    stay within *max_abs*, whichever are given; where neither is, 30 dB.
    """
    if comparison.mismatch:
        return Judgement(passed=False, note=comparison.mismatch)
    if comparison.nonfinite:
        return Judgement(
            passed=False, note=f"{comparison.nonfinite} elements are NaN or infinite in one of the two only"
        )
    if comparison.both_nan and comparison.both_nan >= comparison.elements:
        return Judgement(passed=False, note="all elements are NaN in both: nothing to compare")
    if comparison.constant:
        return Judgement(passed=False, note="constant over all feeds, the original's is not")
    failure = _beyond(comparison, min_sqnr_db, max_abs)
    if failure:
        return Judgement(passed=False, note=failure)
    if comparison.evidence:
        count = comparison.both_nonfinite
        return Judgement(passed=True, note=f"{count} elements are NaN or infinite in both" if count else "")
    reason = "no elements" if not comparison.elements else "constant over all feeds in both models"
    return Judgement(passed=True, note=f"no evidence: {reason}")


def _beyond(comparison: OutputComparison, min_sqnr_db: float | None, max_abs: float | None) -> str:
    """Say which threshold *comparison* breaks; "" where none."""
    if comparison.exact:
        return ""
    worst = comparison.max_abs
    if max_abs is not None and worst is not None and not worst <= max_abs:
        return f"max abs {worst:.4g} is above {max_abs:g}"
    if comparison.discrete:
        if max_abs is not None and worst is not None:
            return ""
        return f"{comparison.equal_ratio:.4%} of the elements are equal, expected all"
    if min_sqnr_db is None and max_abs is None:
        min_sqnr_db = DEFAULT_MIN_SQNR_DB
    if min_sqnr_db is not None and comparison.sqnr_db is not None and not comparison.sqnr_db >= min_sqnr_db:
        return f"SQNR {comparison.sqnr_db:.2f} dB is under {min_sqnr_db:g} dB"
    return ""


@dataclass(slots=True)
class _Norm:
    """The Euclidean norm of all values seen, as scale * sqrt(total), safe from overflow and underflow."""

    scale: float = 0.0
    total: float = 0.0

    def add(self, values: np.ndarray) -> None:
        largest = float(np.max(np.abs(values), initial=0.0))
        if largest == 0.0 or math.isinf(largest):  # an infinite difference is told by the largest error
            return
        # A power of two scales without rounding; one far from the limits leaves room for the sum.
        scale = max(self.scale, math.ldexp(1.0, math.frexp(largest)[1] - 1))
        if self.scale:
            self.total *= (self.scale / scale) ** 2
        self.scale = scale
        scaled = values / scale
        self.total += float(np.dot(scaled, scaled))

    def log10_square(self) -> float:
        """Return log10 of the squared norm; -inf for zero."""
        if not self.total:
            return -math.inf
        return 2 * math.log10(self.scale) + math.log10(self.total)


def _cosine(first: _Norm, second: _Norm, difference: _Norm) -> float | None:
    """Return the cosine by its law: a.b = (|a|^2 + |b|^2 - |a-b|^2) / 2, all over a common scale."""
    if not difference.total:
        return 1.0
    if not first.total or not second.total:
        return None
    scale = max(first.scale, second.scale, difference.scale)
    squares = [norm.total * (norm.scale / scale) ** 2 for norm in (first, second, difference)]
    product = math.sqrt(squares[0]) * math.sqrt(squares[1])
    if not product:  # their magnitudes are more than 150 decades apart
        return None
    return max(-1.0, min(1.0, (squares[0] + squares[1] - squares[2]) / (2 * product)))


@dataclass(slots=True)
class _Range:
    """Whether everything seen is one value; NaN counts as a value equal to itself."""

    first: object = None
    seen: bool = False
    varies: bool = False

    def add(self, values: np.ndarray) -> None:
        if self.varies or not values.size:
            return
        if not self.seen:
            self.first, self.seen = values[0], True
        same = values == self.first
        if self.first != self.first:  # NaN
            same = np.isnan(values)
        self.varies = not bool(np.all(same))


@dataclass(slots=True)
class _Output:
    """What is known about one output so far."""

    name: str
    elements: int = 0
    equal: int = 0
    nonfinite: int = 0
    both_nonfinite: int = 0
    both_nan: int = 0
    finite: int = 0
    largest_error: float = 0.0
    largest: float = 0.0
    rows: int = 0
    hits: int = 0
    discrete: bool = False
    numeric: bool = True
    mismatch: str = ""
    reference: _Norm = field(default_factory=_Norm)
    candidate: _Norm = field(default_factory=_Norm)
    error: _Norm = field(default_factory=_Norm)
    reference_range: _Range = field(default_factory=_Range)
    candidate_range: _Range = field(default_factory=_Range)

    def add(self, reference: Value, candidate: Value) -> None:
        if reference is None or candidate is None:
            if reference is not candidate:
                self._refuse(f"expected {_kind(reference)}, got {_kind(candidate)}")
            return
        if isinstance(reference, list) or isinstance(candidate, list):
            if not (isinstance(reference, list) and isinstance(candidate, list)):
                self._refuse(f"expected {_kind(reference)}, got {_kind(candidate)}")
            elif len(reference) != len(candidate):
                self._refuse(f"expected a sequence of {len(reference)}, got one of {len(candidate)}")
            else:
                for first, second in zip(reference, candidate, strict=True):
                    self._add_tensor(first, second)
            return
        self._add_tensor(reference, candidate)

    def _add_tensor(self, reference: Tensor, candidate: Tensor) -> None:
        element, found = dtypes.of_array(reference), dtypes.of_array(candidate)
        if element.name != found.name:
            self._refuse(f"expected dtype {element.name}, got {found.name}")
            return
        if reference.ndim != candidate.ndim:
            self._refuse(f"expected rank {reference.ndim}, got rank {candidate.ndim}")
            return
        if reference.shape != candidate.shape:
            self._refuse(f"expected shape {list(reference.shape)}, got {list(candidate.shape)}")
            return
        self.elements += reference.size
        self.discrete = self.discrete or not element.is_float
        if element.name == "string":
            self.numeric = False
            self._add_words(reference.reshape(-1), candidate.reshape(-1))
            return
        self._count_rows(reference, candidate)
        for first, second in _chunks(reference, candidate):
            self._add_numbers(first, second, whole=not element.is_float)

    def _add_words(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        self.equal += int(np.count_nonzero(reference == candidate))
        self.reference_range.add(reference)
        self.candidate_range.add(candidate)

    def _count_rows(self, reference: Tensor, candidate: Tensor) -> None:
        """Count rows whose largest element is at the same place; a NaN counts as the largest in both."""
        if not reference.ndim or reference.shape[-1] < 2 or not reference.size or reference.dtype.kind == "b":
            return
        width = reference.shape[-1]
        block = max(1, _CHUNK // width)
        first, second = reference.reshape(-1, width), candidate.reshape(-1, width)
        for start in range(0, len(first), block):
            one, other = (_comparable(array[start : start + block]) for array in (first, second))
            self.rows += len(one)
            self.hits += int(np.count_nonzero(one.argmax(-1) == other.argmax(-1)))

    def _add_numbers(self, first: np.ndarray, second: np.ndarray, *, whole: bool) -> None:
        self.reference_range.add(first)
        self.candidate_range.add(second)
        if whole:
            same = first == second
            ok = np.ones(first.shape, bool)
        else:
            finite = np.isfinite(first), np.isfinite(second)
            nan = np.isnan(first) & np.isnan(second)
            same = (first == second) | nan
            self.both_nan += int(np.count_nonzero(nan))
            ok = finite[0] & finite[1]
            self.nonfinite += int(np.count_nonzero(~ok & ~same))
            self.both_nonfinite += int(np.count_nonzero(~ok & same))
        self.equal += int(np.count_nonzero(same))
        if not ok.all():
            first, second = first[ok], second[ok]
        self.finite += first.size
        if not first.size:
            return
        one, other = first.astype(np.float64), second.astype(np.float64)
        with np.errstate(over="ignore"):  # two float64 of opposite sign near the limit: the error is inf
            error = one - other
        if whole and first.dtype.itemsize == 8:  # beyond 2**53 float64 would call different integers equal
            error = _exact_difference(first, second, error)
        self.largest_error = max(self.largest_error, float(np.max(np.abs(error))))
        self.largest = max(self.largest, float(np.max(np.abs(one))))
        self.reference.add(one)
        self.candidate.add(other)
        self.error.add(error)

    def _refuse(self, reason: str) -> None:
        self.mismatch = self.mismatch or reason

    def result(self) -> OutputComparison:
        measured = self.numeric and self.finite > 0 and not self.mismatch
        return OutputComparison(
            name=self.name,
            exact=not self.mismatch and self.equal == self.elements,
            max_abs=self.largest_error if measured else None,
            max_rel=_ratio(self.largest_error, self.largest) if measured else None,
            sqnr_db=self._sqnr_db() if measured else None,
            cosine=_cosine(self.reference, self.candidate, self.error) if measured else None,
            top1_agreement=self.hits / self.rows if self.rows and not self.mismatch else None,
            equal_ratio=self.equal / self.elements if self.elements else 1.0,
            nonfinite=self.nonfinite,
            both_nonfinite=self.both_nonfinite,
            both_nan=self.both_nan,
            constant=self.reference_range.varies
            and self.candidate_range.seen
            and not self.candidate_range.varies,
            evidence=self.reference_range.varies and not self.mismatch,
            discrete=self.discrete,
            elements=self.elements,
            mismatch=self.mismatch,
        )

    def _sqnr_db(self) -> float:
        if not self.largest_error:
            return math.inf
        if math.isinf(self.largest_error):
            return -math.inf
        return 10 * (self.reference.log10_square() - self.error.log10_square())


def _ratio(error: float, largest: float) -> float:
    if not error:
        return 0.0
    return error / largest if largest else math.inf


def _kind(value: Value) -> str:
    if value is None:
        return "no value"
    return f"a sequence of {len(value)}" if isinstance(value, list) else "a tensor"


def _chunks(first: Tensor, second: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield matching flat parts of two arrays of one shape, in a type that numpy can compute with."""
    flat, other = first.reshape(-1), second.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield _comparable(flat[start : start + _CHUNK]), _comparable(other[start : start + _CHUNK])


def _comparable(array: np.ndarray) -> np.ndarray:
    """Widen types that numpy lacks (ml_dtypes), float16 and bools; leave the others."""
    if array.dtype.kind in "iu":
        return array
    if array.dtype.name in {"float32", "float64"}:
        return array
    if array.dtype.kind == "b" or array.dtype.name.startswith(("int", "uint")):
        return array.astype(np.int8 if not array.dtype.name.startswith("uint") else np.uint8)
    return array.astype(np.float32)


def _exact_difference(first: np.ndarray, second: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """Return the difference of 64-bit integers, at least 1 where they differ however large they are."""
    return np.where((first != second) & (rounded == 0), 1.0, rounded)
