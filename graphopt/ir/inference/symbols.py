"""Arithmetic on symbolic dims: every dim is an int or a string, and equal strings are equal sizes.

A string is the name of a dim that the model declares ("batch"), of one that only running can tell ("?7"), or
the canonical form of a polynomial of these ("2*batch+1"). Sizes are never negative, which is what makes
``max(0, batch)`` the same as ``batch``.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Dim = int | str
# A polynomial: coefficient by monomial, a monomial being the sorted names of its factors.
_Poly = dict[tuple[str, ...], int]

_MAX_NAME = 60
_MAX_TERMS = 6


class Symbols:
    """All symbols of one inference; hands out new ones and computes with them.

    Args:
        bindings: Sizes of declared symbols.
        unbound: Size of all dims that the model declares without a number and *bindings* does not bind; None
            keeps them symbolic.
    """

    def __init__(self, bindings: Mapping[str, int], unbound: int | None = None) -> None:
        self._bindings = bindings
        self._unbound = unbound
        self._polys: dict[str, _Poly] = {}
        self._by_key: dict[object, str] = {}
        self._births: dict[str, int] = {}
        self._signed: set[str] = set()
        self._sizes: set[str] = set()
        self._counter = itertools.count(1)
        self.declared: set[str] = set()

    def declare(self, name: str) -> Dim:
        """Return the dim that the model calls *name*: its binding, or a symbol of that name."""
        if name in self._bindings:
            return self._bindings[name]
        if self._unbound is not None:
            return self._unbound
        if name in self.declared:
            return name
        if name in self._polys:  # Already the name of something computed: two meanings, so keep them apart.
            return self.memo(("declared", name))
        self.declared.add(name)
        self._atom(name)
        return name

    def unnamed(self) -> Dim:
        """Return the dim that the model declares without number and name."""
        return self.fresh() if self._unbound is None else self._unbound

    def recall(self, name: str) -> Dim:
        """Return the symbol *name* that an inference function passed through, or a new one."""
        return name if name in self._polys else self.fresh()

    def note_size(self, dim: Dim) -> None:
        """Take down that *dim* is a dim of a tensor, hence not negative."""
        if isinstance(dim, str):
            self._sizes.add(dim)

    def fresh(self) -> str:
        """Return a symbol for a size that nothing is known about."""
        name = next(name for k in self._counter if (name := f"?{k}") not in self._polys)
        self._atom(name)
        return name

    def memo(self, key: object) -> str:
        """Return the symbol of the unknown size identified by *key*: the same key is the same size."""
        if key not in self._by_key:
            self._by_key[key] = self.fresh()
        return self._by_key[key]

    def mark(self) -> int:
        """Return a point in time to compare symbols with; see :meth:`older`."""
        return len(self._births)

    def older(self, dim: Dim, mark: int) -> bool:
        """Return whether *dim* is an int or was known before *mark*."""
        return isinstance(dim, int) or self._births[dim] < mark

    def is_non_negative(self, dim: Dim) -> bool:
        """Return whether *dim* cannot be below zero."""
        if isinstance(dim, int):
            return dim >= 0
        if dim in self._sizes:
            return True
        poly = self._polys[dim]
        return all(factor >= 0 for factor in poly.values()) and not any(
            symbol in self._signed for monomial in poly for symbol in monomial
        )

    def is_positive(self, dim: Dim) -> bool:
        """Return whether *dim* is at least one, taking every symbol for at least zero."""
        if isinstance(dim, int):
            return dim > 0
        return self.is_non_negative(dim) and self._polys[dim].get((), 0) > 0

    def add(self, a: Dim, b: Dim) -> Dim:
        """Return a + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        total = dict(self._poly(a))
        for monomial, factor in self._poly(b).items():
            total[monomial] = total.get(monomial, 0) + factor
        return self._name(total)

    def sub(self, a: Dim, b: Dim) -> Dim:
        """Return a - b, which may be negative."""
        return self.add(a, self.mul(b, -1))

    def mul(self, a: Dim, b: Dim) -> Dim:
        """Return a * b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        total: _Poly = {}
        for (left, x), (right, y) in itertools.product(self._poly(a).items(), self._poly(b).items()):
            monomial = tuple(sorted(left + right))
            total[monomial] = total.get(monomial, 0) + x * y
        return self._name(total)

    def product(self, dims: Iterable[Dim]) -> Dim:
        """Return the product of *dims*; 1 for none."""
        result: Dim = 1
        for dim in dims:
            result = self.mul(result, dim)
        return result

    def exact_div(self, a: Dim, b: Dim) -> Dim | None:
        """Return a / b where it divides without rest whatever the symbols are, else None."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b if b and a % b == 0 else None
        divisor = self._poly(b)
        if len(divisor) != 1:
            return 1 if a == b else None
        ((factors, by),) = divisor.items()
        result: _Poly = {}
        for monomial, factor in self._poly(a).items():
            rest = list(monomial)
            for symbol in factors:
                if symbol not in rest:
                    return None
                rest.remove(symbol)
            if factor % by:
                return None
            result[tuple(rest)] = factor // by
        return self._name(result)

    def floor_div(self, a: Dim, b: Dim) -> Dim | None:
        """Return floor(a / b), or None where b may be zero."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b if b else None
        exact = self.exact_div(a, b)
        if exact is not None:
            return exact
        return self._floor(a, b) if isinstance(b, int) and b > 0 else None

    def truncated_div(self, a: Dim, b: Dim) -> Dim | None:
        """Return a / b rounded towards zero, as ONNX Div does on integers; None where b may be zero."""
        if isinstance(a, int) and isinstance(b, int):
            return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return self.floor_div(a, b) if self.is_non_negative(a) else self.exact_div(a, b)

    def at_least_zero(self, dim: Dim) -> Dim:
        """Return max(0, dim)."""
        if isinstance(dim, int):
            return max(0, dim)
        return dim if self.is_non_negative(dim) else self.memo(("max", 0, dim))

    def unify(self, a: Dim, b: Dim) -> Dim:
        """Return the better known of two dims that must be equal."""
        return b if isinstance(b, int) and not isinstance(a, int) else a

    def broadcast(self, a: Dim, b: Dim) -> Dim:
        """Return the dim that *a* and *b* broadcast to."""
        if b in {a, 1}:
            return a
        if a == 1:
            return b
        for one, other in ((a, b), (b, a)):
            # A symbol beside a size other than 1 must be that size or 1.
            if isinstance(one, int):
                return one if isinstance(other, str) else self.memo(("broadcast", one, other))
        return self.memo(("broadcast", *sorted((str(a), str(b)))))

    def _poly(self, dim: Dim) -> _Poly:
        return self._polys[dim] if isinstance(dim, str) else {(): dim}

    def _atom(self, name: str) -> None:
        self._polys[name] = {(name,): 1}
        self._births[name] = len(self._births)

    def _floor(self, a: Dim, b: int) -> str:
        """Return the symbol for floor(a / b), which is an atom to further arithmetic."""
        name = f"floor(({a})/{b})"
        if len(name) > _MAX_NAME or name in self.declared:
            name = self.memo(("floor", a, b))
        elif name not in self._polys:
            self._atom(name)
        if not self.is_non_negative(a):
            self._signed.add(name)
        return name

    def _name(self, poly: _Poly) -> Dim:
        terms = sorted(((monomial, factor) for monomial, factor in poly.items() if factor), key=_order)
        if not terms:
            return 0
        if len(terms) == 1 and not terms[0][0]:
            return terms[0][1]
        if len(terms) == 1 and len(terms[0][0]) == 1 and terms[0][1] == 1:
            return terms[0][0][0]
        parts = []
        for monomial, factor in terms:
            product = "*".join(monomial)
            body = (
                str(abs(factor))
                if not product
                else product
                if abs(factor) == 1
                else f"{abs(factor)}*{product}"
            )
            parts.append(("-" if factor < 0 else "+") + body)
        name = "".join(parts).removeprefix("+")
        if len(name) > _MAX_NAME or len(terms) > _MAX_TERMS or name in self.declared:
            # Too long to carry around: an atom from here on.
            atom = self.memo(tuple(terms))
            if any(factor < 0 or self._signed.intersection(monomial) for monomial, factor in terms):
                self._signed.add(atom)
            return atom
        if name not in self._polys:
            self._births[name] = len(self._births)
            self._polys[name] = dict(terms)
        return name


def _order(term: tuple[tuple[str, ...], int]) -> tuple[int, tuple[str, ...]]:
    return (-len(term[0]), term[0])
