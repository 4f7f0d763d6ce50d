"""Feeds as plain arrays: .npy files, one a feed, and an .npz that lists feeds (``0/x``, ``1/x``, ...)."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime.feeds import check_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from graphopt.calibrate.npz import StoredArray
    from graphopt.runtime.feeds import Feed, InputSpec

_LISTED = re.compile(r"(\d+)/(.+)", re.DOTALL)


def digest(files: Sequence[Path]) -> str:
    """Return a hash of names and contents, independent of where the files lie."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:32]


class NpyFolder:
    """One .npy file a feed, for models with one input that must be fed.

    Args:
        files: The files, in the order of feeds.
        specs: Inputs of the model.
        warnings: What the user should know.
    """

    def __init__(self, files: Sequence[Path], specs: Sequence[InputSpec], warnings: tuple[str, ...]) -> None:
        wanted = [spec for spec in specs if not spec.has_default and not spec.is_optional]
        if len(wanted) != 1:
            names = ", ".join(repr(spec.name) for spec in wanted)
            raise DataError(
                f"one .npy a feed serves a model with one input, this one has {len(wanted)}: {names}",
                where=str(files[0].parent),
                hint="Use a folder with one .npz a feed, arrays by input name",
            )
        self.warnings = warnings
        self._files = files
        self._specs = tuple(specs)
        self._name = wanted[0].name
        for feed, file in zip(self, files, strict=True):
            check_feeds(feed, self._specs, where=str(file))

    @cached_property
    def identity(self) -> str:
        """Hash of the files."""
        return f"npy:{digest(self._files)}"

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Feed]:
        for file in self._files:
            try:
                array: np.ndarray[Any, np.dtype[Any]] = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"the array cannot be read ({error})", where=str(file)) from error
            yield {self._name: array}


def is_list_of_feeds(names: Sequence[str]) -> bool:
    """Return whether the arrays of an .npz are called ``0/x``, ``1/x``, ..."""
    return bool(names) and all(_LISTED.fullmatch(name) for name in names)


class NpzList:
    """An .npz that lists feeds, which may differ in shape.

    Args:
        path: The file.
        arrays: Its arrays by name.
        specs: Inputs of the model.
        samples: Take the first so many; None takes all.
    """

    def __init__(
        self, path: Path, arrays: dict[str, StoredArray], specs: Sequence[InputSpec], samples: int | None
    ) -> None:
        numbered: dict[int, dict[str, StoredArray]] = {}
        for name, array in arrays.items():
            match = _LISTED.fullmatch(name)
            assert match is not None
            numbered.setdefault(int(match[1]), {})[match[2]] = array
        self._path = path
        self._specs = tuple(specs)
        feeds = [numbered[index] for index in sorted(numbered)]
        self._feeds = feeds[:samples]
        self.warnings: tuple[str, ...] = ()
        if samples is not None and samples > len(feeds):
            self.warnings = (f"{samples} samples were asked for, the data holds {len(feeds)}",)
        for index, feed in enumerate(self):
            check_feeds(feed, self._specs, where=f"feed {index} in {path}")

    @cached_property
    def identity(self) -> str:
        """Hash of the file, and how much of it is taken."""
        return f"npz-list:{digest([self._path])} samples={len(self._feeds)}"

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed]:
        from graphopt.runtime import dtypes

        known = {spec.name: spec for spec in self._specs}
        for feed in self._feeds:
            yield {
                name: array.whole(
                    dtypes.by_name(
                        array.type_name(dtypes.by_name(known[name].dtype if name in known else "float32"))
                    )
                )
                for name, array in feed.items()
            }
