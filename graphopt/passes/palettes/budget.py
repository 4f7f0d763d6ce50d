"""Bits by weight, for a mean over all elements: large weights get fewer, small ones more.

An error of a weight counts relative to what it puts out, whatever its size, and one more bit lessens its
square to a quarter. So the sum of 4^-bits over the weights is made least for the bytes that there are; were
bits continuous, the rule would be bits = constant - log2(elements) / 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.recover.allocate import Choice, allocate

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDEST = 8


def spread_bits(sizes: Mapping[str, int], mean: float) -> dict[str, int]:
    """Return the bits of each weight, 1 to 8, whose mean over all elements is at most *mean*.

    Args:
        sizes: Elements of each weight.
        mean: Bits of an element, 1 at least.
    """
    items = [
        [Choice(float(size * bits), 4.0**-bits, bits) for bits in range(1, WIDEST + 1)]
        for size in sizes.values()
    ]
    found = allocate(items, mean * sum(sizes.values()))
    return {name: choice.value for name, choice in zip(sizes, found.chosen, strict=True)}
