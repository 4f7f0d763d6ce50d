"""Numbers as people read them, shared by the Markdown and the terminal renderings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.record import Skip

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_MOST_LETTERS = 64
_HEAD = 24
_COUNT = ("", " k", " M", " G", " T")


def format_bytes(size_bytes: int) -> str:
    """Return a size in binary units with three digits.

    >>> [format_bytes(n) for n in (0, 1023, 1536, 5 * 2**20)]
    ['0 B', '1023 B', '1.50 KiB', '5.00 MiB']
    """
    return _scaled(size_bytes, 1024, _BINARY, " ")


def format_count(count: int | None) -> str:
    """Return a count in decimal units with three digits; None, which means unknown, as a dash.

    >>> [format_count(n) for n in (None, 999, 25_557_032, 4_089_284_608)]
    ['-', '999', '25.6 M', '4.09 G']
    """
    return "-" if count is None else _scaled(count, 1000, _COUNT, "")


def _scaled(number: int, base: int, units: tuple[str, ...], space: str) -> str:
    value, unit = float(number), 0
    # 999.5 would print as 1000 of the smaller unit
    while abs(value) >= base - (0.5 if unit else 0) and unit < len(units) - 1:
        value /= base
        unit += 1
    if unit == 0:
        return f"{number}{space}{units[0]}"
    digits = max(0, 2 - int(math.log10(max(abs(value), 1.0))))
    return f"{value:.{digits}f}{space}{units[unit]}"


def format_seconds(duration_s: float) -> str:
    """Return a duration with three digits and a unit that suits it.

    >>> [format_seconds(s) for s in (0.0, 0.0000421, 0.01234, 3.21, 125)]
    ['0 ms', '42.1 us', '12.3 ms', '3.21 s', '2 min 5 s']
    """
    if duration_s >= 60:
        return f"{int(duration_s // 60)} min {int(duration_s % 60)} s"
    if duration_s >= 1:
        return f"{duration_s:.3g} s"
    if duration_s >= 1e-3 or duration_s == 0:
        return f"{duration_s * 1e3:.3g} ms"
    return f"{duration_s * 1e6:.3g} us"


def format_change(before: int | None, after: int | None) -> str:
    """Return the relative change in per cent, signed; empty where there is nothing to compare.

    >>> [format_change(*pair) for pair in ((200, 100), (100, 100), (3, 4), (None, 1), (100000, 99999))]
    ['-50 %', '=', '+33 %', '', '-0.001 %']
    """
    if before is None or after is None:
        return ""
    if before == after:
        return "="
    if before == 0:
        return "new"
    percent = 100 * (after - before) / before
    if abs(percent) >= 999.5:
        return f"x{after / before:.3g}"
    return f"{percent:+.2g} %" if abs(percent) < 99.5 else f"{percent:+.0f} %"


def format_db(sqnr_db: float | None, *, exact: bool) -> str:
    """Return an SQNR in decibels; ``exact`` where the outputs are equal bit for bit.

    >>> format_db(None, exact=True), format_db(41.237, exact=False), format_db(None, exact=False)
    ('exact', '41.2 dB', '-')
    """
    if exact:
        return "exact"
    return "-" if sqnr_db is None else f"{sqnr_db:.1f} dB"


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits; None as a dash.

    >>> format_number(0.000123456), format_number(None)
    ('0.000123', '-')
    """
    return "-" if value is None else f"{value:.{digits}g}"


def shortened(text: str) -> str:
    """Return *text* without its middle where it is long: converters write whole paths into names."""
    return text if len(text) <= _MOST_LETTERS else f"{text[:_HEAD]}...{text[_HEAD + 3 - _MOST_LETTERS :]}"


def format_tally(name: str, count: int) -> str:
    """Return a count of a step with its name; ``added_bytes`` gives "55.5 KiB added".

    >>> format_tally("dropped_inputs", 3)
    '3 dropped inputs'
    """
    if name.endswith("_bytes"):
        return f"{format_bytes(count)} {name.removesuffix('_bytes').replace('_', ' ')}"
    return f"{count} {name.replace('_', ' ')}"


def grouped_skips(skips: Sequence[Skip]) -> list[tuple[str, str, int]]:
    """Return (first place and how many more, reason, number) for each reason, the first one first."""
    groups: dict[str, list[str]] = {}
    for skip in skips:
        groups.setdefault(skip.reason, []).append(skip.where)
    return [
        (f"{shortened(places[0])}{_and_more(len(places) - 1)}", reason, len(places))
        for reason, places in groups.items()
    ]


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""
