"""Statistics in one file: an .npz of plain arrays and a JSON header; equal statistics, equal bytes."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibrate.moments import ChannelMoments, Gram
from graphopt.calibrate.needs import Rows, Window
from graphopt.calibrate.sketch import RangeSketch
from graphopt.calibrate.statistics import Statistics
from graphopt.errors import DataError, PathError

if TYPE_CHECKING:
    from os import PathLike

SCHEMA = 1
_KIND = "graphopt statistics"
_RANGE_NUMBERS = ("count", "nonfinite", "batches", "minimum", "maximum", "minimum_sum", "maximum_sum")
_MOMENTS = ("minimum", "maximum", "total", "total_abs", "total_square")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError, RuntimeError)


def save(statistics: Statistics, path: str | PathLike[str]) -> None:
    """Write *statistics* to *path*; it appears whole or not at all.

    Raises:
        PathError: The file cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise PathError("expected a file name, got a directory", where=str(target))
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **_arrays(statistics))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(stream.getbuffer())
            Path(name).chmod(0o644)
            Path(name).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise PathError(f"the statistics cannot be written ({error.strerror})", where=str(target)) from error


def load(path: str | PathLike[str]) -> Statistics:
    """Return what :func:`save` wrote.

    Raises:
        PathError: The file does not exist, or is a directory.
        DataError: It holds no statistics, or is damaged.
    """
    source = Path(path)
    if not source.exists():
        raise PathError("the statistics do not exist", where=str(source))
    if source.is_dir():
        raise PathError("expected a file of statistics, got a directory", where=str(source))
    try:
        with np.load(source, allow_pickle=False) as arrays:
            header = json.loads(bytes(arrays["header"]).decode())
            if header.get("kind") != _KIND:
                raise DataError("the file holds no statistics", where=str(source), hint=_HINT)
            if header["schema"] != SCHEMA:
                raise DataError(
                    f"expected statistics of schema {SCHEMA}, got {header['schema']}",
                    where=str(source),
                    hint="Calibrate again with this version of graphopt.",
                )
            return _statistics(header, arrays)
    except _DAMAGE as error:
        raise DataError(
            f"the file holds no statistics, or is damaged ({error})", where=str(source), hint=_HINT
        ) from error


_HINT = "`graphopt calibrate MODEL --data SRC -o FILE` writes such files."


def _arrays(statistics: Statistics) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    ranges = dict(sorted(statistics.ranges.items()))
    channels = dict(sorted(statistics.channels.items()))
    grams = dict(sorted(statistics.grams.items(), key=lambda item: item[0].key))
    header = {
        "kind": _KIND,
        "schema": SCHEMA,
        "feeds": statistics.feeds,
        "model": statistics.model,
        "data": statistics.data,
        "skipped": dict(sorted(statistics.skipped.items())),
        "ranges": list(ranges),
        "channels": [[name, axis, moments.count] for (name, axis), moments in channels.items()],
        "grams": [[*_written(rows), gram.count] for rows, gram in grams.items()],
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {"header": np.frombuffer(text, np.uint8)}
    # One array for all sketches: an archive member each would cost more than its content.
    sketches = list(ranges.values())
    arrays["range_numbers"] = np.array(
        [[float(getattr(each, name)) for name in _RANGE_NUMBERS] for each in sketches]
    ).reshape(-1, len(_RANGE_NUMBERS))
    arrays["range_sizes"] = np.array([len(each.codes) for each in sketches], np.int64)
    arrays["range_codes"] = np.concatenate([np.zeros(0, np.uint16), *(each.codes for each in sketches)])
    arrays["range_counts"] = np.concatenate([np.zeros(0, np.int64), *(each.counts for each in sketches)])
    for index, moments in enumerate(channels.values()):
        arrays[f"channels_{index}"] = np.stack([getattr(moments, name) for name in _MOMENTS])
    for index, gram in enumerate(grams.values()):
        arrays[f"gram_{index}"] = gram.matrix
    return arrays


def _statistics(header: dict[str, Any], arrays: Any) -> Statistics:  # noqa: ANN401 - numpy's NpzFile is untyped
    statistics = Statistics(
        skipped={str(name): str(reason) for name, reason in header["skipped"].items()},
        feeds=int(header["feeds"]),
        model=str(header["model"]),
        data=str(header["data"]),
    )
    numbers, sizes = arrays["range_numbers"], arrays["range_sizes"]
    codes, counts = arrays["range_codes"], arrays["range_counts"]
    ends = np.cumsum(sizes)
    for index, name in enumerate(header["ranges"]):
        part = slice(int(ends[index] - sizes[index]), int(ends[index]))
        plain = dict(zip(_RANGE_NUMBERS, (float(each) for each in numbers[index]), strict=True))
        statistics.ranges[name] = RangeSketch(
            count=int(plain["count"]),
            nonfinite=int(plain["nonfinite"]),
            minimum=plain["minimum"],
            maximum=plain["maximum"],
            batches=int(plain["batches"]),
            minimum_sum=plain["minimum_sum"],
            maximum_sum=plain["maximum_sum"],
            codes=codes[part].copy(),
            counts=counts[part].copy(),
        )
    for index, (name, axis, count) in enumerate(header["channels"]):
        stacked = arrays[f"channels_{index}"]
        statistics.channels[str(name), int(axis)] = ChannelMoments(
            int(count), *(np.array(row) for row in stacked)
        )
    for index, entry in enumerate(header["grams"]):
        statistics.grams[_read(entry)] = Gram(int(entry[-1]), arrays[f"gram_{index}"])
    return statistics


def _written(rows: Rows) -> list[object]:
    window = rows.window
    parts = (
        None
        if window is None
        else [
            list(window.kernel),
            list(window.strides),
            list(window.pads),
            list(window.dilations),
            window.auto_pad,
        ]
    )
    return [rows.value, rows.axis, parts]


def _read(entry: list[Any]) -> Rows:
    value, axis, parts = entry[:3]
    window = None
    if parts is not None:
        kernel, strides, pads, dilations, auto_pad = parts
        window = Window(tuple(kernel), tuple(strides), tuple(pads), tuple(dilations), str(auto_pad))
    return Rows(str(value), int(axis), window)
