"""Where feeds come from: the sources behind ``--data``, checked whole before anything runs.

A source yields feeds one at a time and keeps none, so that it may be larger than memory; it may be iterated
as often as needed. Plugins add sources through the same kind of function as the ones below: it returns None
for a text that it does not know.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from graphopt.calibrate.arrays import NpyFolder, NpzList, digest, is_list_of_feeds
from graphopt.calibrate.callables import CallableSource, names_callable
from graphopt.calibrate.npz import StoredArray, read_headers
from graphopt.calibrate.onnx_tests import OnnxTests, number
from graphopt.errors import DataError, OptionError, PathError, nearest
from graphopt.runtime import dtypes
from graphopt.runtime.feeds import (
    InputSpec,
    all_finite,
    bind_dims,
    check_feeds,
    iter_random_feeds,
)

if TYPE_CHECKING:
    from graphopt.runtime.feeds import Feed
    from graphopt.runtime.session import Tensor

RANDOM_WARNING = (
    "the inputs are random: numbers measured on them say little about accuracy on real data. Give real inputs"
    " with --data"
)


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What the user asked for.

    Attributes:
        text: The text of ``--data``.
        specs: The inputs of the model.
        samples: Take the first so many feeds; None takes all.
        seed: Seed of random feeds.
        dims: Sizes of free dims.
        base_dir: Where relative paths start; None means the working directory.
        preprocess: How images become inputs, as a recipe's table says; None where it has none.
    """

    text: str
    specs: tuple[InputSpec, ...]
    samples: int | None = None
    seed: int = 0
    dims: Mapping[str, int] = field(default_factory=dict)
    base_dir: Path | None = None
    preprocess: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """The text as a path."""
        return (self.base_dir or Path()) / Path(self.text).expanduser()

    @property
    def wanted(self) -> tuple[InputSpec, ...]:
        """The inputs with the dims bound."""
        return bind_dims(self.specs, self.dims)


class DataSource(Protocol):
    """Feeds, checked against the model's inputs.

    Attributes:
        warnings: What the user should know about them.
    """

    warnings: tuple[str, ...]

    @property
    def identity(self) -> str:
        """What decides the feeds, as a short text: equal identities mean equal feeds."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Feed]: ...


SourceFactory = Callable[[SourceRequest], DataSource | None]


def open_source(request: SourceRequest, extra: Iterable[SourceFactory] = ()) -> DataSource:
    """Return the source that *request* names, after checking all that it will yield.

    Built-in sources are asked first, then those of plugins, then Python for ``module:function``.

    Args:
        request: What the user asked for.
        extra: Sources of plugins, in order.

    Raises:
        PathError: The text names nothing that exists.
        OptionError: ``random:N`` or the number of samples is malformed.
        DataError: The data cannot be read or does not fit the model's inputs.
    """
    if request.samples is not None and request.samples < 1:
        raise OptionError(f"expected at least 1 sample, got {request.samples}", where="--samples")
    built_in = [factory for factory in BUILT_IN.values() if factory is not callable_source]
    # module:function last: a plugin's own scheme reads like it.
    for factory in (*built_in, *extra, callable_source):
        source = factory(request)
        if source is not None:
            return source
    path = request.path
    if not path.exists():
        hint = "Use an .npz file, a folder with one .npz a feed, or random:N"
        raise PathError("the data does not exist", where=str(path), hint=hint)
    if path.is_dir():
        raise DataError(
            "the folder holds neither .npz files nor an ONNX test_data_set",
            where=str(path),
            hint="Use a folder with one .npz or .npy a feed, or images and a recipe with [preprocess]",
        )
    raise DataError(
        "the file is of no kind that can be read",
        where=str(path),
        hint="Use an .npz file with one array an input, samples along its first axis",
    )


def is_random(text: str) -> bool:
    """Return whether *text* of ``--data`` asks for random feeds."""
    return text.startswith("random:")


def random_source(request: SourceRequest) -> DataSource | None:
    """Return random feeds for ``random:N``."""
    kind, colon, count = request.text.partition(":")
    if kind != "random" or not colon:
        return None
    if not count.isdecimal() or not int(count):
        raise OptionError(
            f"expected random:N with N at least 1, got {request.text!r}",
            where="--data",
            hint="For example random:16",
        )
    return _Random(request, int(count))


def npz_source(request: SourceRequest) -> DataSource | None:
    """Return the samples of an .npz file, one array an input."""
    path = request.path
    if path.suffix != ".npz" or path.is_dir():
        return None
    if not path.exists():
        raise PathError("the data does not exist", where=str(path))
    arrays = read_headers(path)
    if is_list_of_feeds(list(arrays)):
        return NpzList(path, arrays, request.wanted, request.samples)
    return _Npz(request, path)


def npy_source(request: SourceRequest) -> DataSource | None:
    """Return the feeds of a folder with one .npy a feed, or of one .npy file."""
    path = request.path
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path] if path.suffix == ".npy" else []
    if not files:
        return None
    if not path.exists():
        raise PathError("the data does not exist", where=str(path))
    count, warnings = _taken(len(files), request.samples)
    return NpyFolder(files[:count], request.wanted, warnings)


def image_source(request: SourceRequest) -> DataSource | None:
    """Return the images of a folder, prepared as the recipe says."""
    from graphopt.calibrate.images import SUFFIXES, ImageFolder, Preprocess, check_pillow

    path = request.path
    files = (
        sorted(each for each in path.glob("*") if each.suffix.lower() in SUFFIXES) if path.is_dir() else []
    )
    if not files:
        return None
    check_pillow(str(path))
    if request.preprocess is None:
        raise DataError(
            "the folder holds images, and nothing says how they become inputs",
            where=str(path),
            hint="Write a recipe with a [preprocess] table: resize, crop, scale, mean, std, layout, dtype",
        )
    try:
        preprocess = Preprocess.model_validate(dict(request.preprocess))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise OptionError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}",
            where="[preprocess]",
        ) from error
    count, warnings = _taken(len(files), request.samples)
    return ImageFolder(files[:count], request.wanted, preprocess, warnings)


def callable_source(request: SourceRequest) -> DataSource | None:
    """Return the feeds of ``module:function``."""
    if not names_callable(request.text):
        return None
    return CallableSource(request.text, request.wanted, request.samples)


def folder_source(request: SourceRequest) -> DataSource | None:
    """Return the feeds of a folder with one .npz a feed, in order of their names."""
    path = request.path
    files = sorted(path.glob("*.npz")) if path.is_dir() else []
    return _Folder(request, path, files) if files else None


def onnx_test_source(request: SourceRequest) -> DataSource | None:
    """Return the feeds of ONNX's test data: ``test_data_set_<k>/input_<i>.pb``, or one such folder."""
    path = request.path
    if not path.is_dir():
        return None
    folders = sorted((each for each in path.glob("test_data_set_*") if each.is_dir()), key=number)
    if not folders and any(path.glob("input_*.pb")):
        folders = [path]
    if not folders:
        return None
    count, warnings = _taken(len(folders), request.samples)
    return OnnxTests(folders[:count], request.wanted, warnings)


BUILT_IN: Mapping[str, SourceFactory] = {
    "random": random_source,
    "npz": npz_source,
    "folder": folder_source,
    "onnx-test": onnx_test_source,
    "npy": npy_source,
    "images": image_source,
    "callable": callable_source,
}
"""The sources of this package by name, in the order in which they are asked."""


def _taken(present: int, samples: int | None) -> tuple[int, tuple[str, ...]]:
    """Return how many of the *present* feeds to take, and a warning where that is fewer than asked for."""
    if samples is None or samples == present:
        return present, ()
    if samples < present:
        return samples, ()
    return present, (f"{samples} samples were asked for, the data holds {present}",)


class _Random:
    def __init__(self, request: SourceRequest, count: int) -> None:
        self._request = request
        self._count = min(count, request.samples or count)
        self.warnings: tuple[str, ...] = (RANDOM_WARNING,)
        next(iter(self))  # a type that cannot be made up is an error now

    @property
    def identity(self) -> str:
        dims = ",".join(f"{name}={size}" for name, size in sorted(self._request.dims.items()))
        specs = hashlib.sha256(repr(self._request.specs).encode()).hexdigest()[:16]
        return f"random:{self._count} seed={self._request.seed} dims={dims} inputs={specs}"

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feed]:
        request = self._request
        return iter_random_feeds(request.specs, self._count, request.seed, request.dims)


class _Npz:
    """Arrays by input name. Feed i is a[i:i+1] where the ranks are equal, a[i] where the array's is one more.

    An array of rank 0 for an input of rank 0 goes with every feed.
    """

    def __init__(self, request: SourceRequest, path: Path) -> None:
        self._path = path
        arrays = read_headers(path)
        specs = {spec.name: spec for spec in request.wanted}
        _check_names(arrays, list(specs.values()), str(path))
        self._parts = [_Part(array, specs[name]) for name, array in arrays.items()]
        lengths = {part.array.name: part.array.shape[0] for part in self._parts if part.array.shape}
        present = min(lengths.values(), default=1)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise DataError(f"the arrays differ in their number of samples: {listed}", where=str(path))
        if not present:
            raise DataError("the arrays hold no samples", where=str(path))
        for part in self._parts:
            part.check()
        self._count, self.warnings = _taken(present, request.samples)
        for part in self._parts:
            part.check_finite(self._count)

    @cached_property
    def identity(self) -> str:
        return f"npz:{digest([self._path])} samples={self._count}"

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feed]:
        streams = [part.samples(self._count) for part in self._parts]
        for values in zip(*streams, strict=True):
            yield {part.array.name: value for part, value in zip(self._parts, values, strict=True)}


@dataclass(frozen=True, slots=True)
class _Part:
    """One array of an .npz file and the input that it feeds."""

    array: StoredArray
    spec: InputSpec

    def check(self) -> None:
        """Compare kind, dtype, rank and dims of one sample with the spec."""
        spec, array = self.spec, self.array
        if spec.is_sequence:
            raise DataError(
                f"the input is a {spec}, which one array cannot hold",
                where=array.where,
                hint=f"Use a folder with one .npz a feed; its arrays are {spec.name}[0], {spec.name}[1] ...",
            )
        _check_dtype(array, spec)
        if spec.shape is None or not (array.shape or spec.shape):
            return
        rank, shape = len(spec.shape), array.shape
        if len(shape) not in {rank, rank + 1} or not shape:
            raise DataError(
                f"expected rank {rank} or {rank + 1} ({spec}), got rank {len(shape)} {list(shape)}",
                where=array.where,
                hint="The first axis counts the samples",
            )
        sample = (1, *shape[1:]) if len(shape) == rank else shape[1:]
        for axis, (size, dim) in enumerate(zip(sample, spec.shape, strict=True)):
            if isinstance(dim, int) and size != dim:
                hint = ""
                if not axis and len(shape) == rank:
                    hint = f"Feed i is a[i:i+1]; stack feeds of {dim} along a new first axis"
                raise DataError(
                    f"expected {dim} in dim {axis} of a sample ({spec}), got {size}",
                    where=array.where,
                    hint=hint,
                )

    def check_finite(self, count: int) -> None:
        element = dtypes.by_name(self.spec.dtype)
        if not element.is_float:
            return
        # Of an array in Fortran order the samples taken are spread over the whole.
        shape = self.array.shape if self.array.fortran_order else (count, *self.array.shape[1:])
        total = 1
        for size in shape if self.array.shape else ():
            total *= size
        if not all(all_finite(block) for block in self.array.blocks(element, total)):
            raise _not_finite(self.array.where)

    def samples(self, count: int) -> Iterator[Tensor]:
        element = dtypes.by_name(self.spec.dtype)
        if not self.array.shape:
            value = self.array.whole(element)
            yield from (value for _ in range(count))
            return
        keep_axis = self.spec.shape is None or len(self.spec.shape) == len(self.array.shape)
        for row in self.array.rows(count, element):
            yield row[None] if keep_axis else row


class _Folder:
    """One .npz a feed: arrays by input name as they are fed; the items of a sequence x are x[0], x[1], ..."""

    def __init__(self, request: SourceRequest, path: Path, files: Sequence[Path]) -> None:
        count, self.warnings = _taken(len(files), request.samples)
        self._path = path
        self._files = files[:count]
        self._specs = request.wanted
        for file in self._files:  # one feed at a time is read, checked and forgotten
            check_feeds(self._read(file), self._specs, where=str(file))

    @cached_property
    def identity(self) -> str:
        return f"folder:{digest(self._files)}"

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Feed]:
        for file in self._files:
            yield self._read(file)

    def _read(self, file: Path) -> Feed:
        arrays = read_headers(file)
        feed: Feed = {}
        known: set[str] = set()
        for spec in self._specs:
            if spec.is_sequence:
                names = sorted(
                    (name for name in arrays if _item_of(spec, name)), key=lambda name: number(Path(name))
                )
                if not names and (spec.has_default or spec.is_optional):
                    if spec.is_optional:
                        feed[spec.name] = None
                    continue
                feed[spec.name] = [_whole(arrays[name], spec) for name in names]
                known.update(names)
            elif spec.name in arrays:
                feed[spec.name] = _whole(arrays[spec.name], spec)
                known.add(spec.name)
            elif spec.is_optional:
                feed[spec.name] = None
        given = [*feed, *(name for name in arrays if name not in known)]
        _check_names(given, self._specs, str(file))
        return feed


def _item_of(spec: InputSpec, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(spec.name)}\[\d+\]", name) is not None


def _whole(array: StoredArray, spec: InputSpec) -> Tensor:
    _check_dtype(array, spec)
    return array.whole(dtypes.by_name(spec.dtype))


def _check_names(given: Iterable[str], specs: Sequence[InputSpec], where: str) -> None:
    names, given = [spec.name for spec in specs], list(given)
    extra = [name for name in given if name not in set(names)]
    missing = [spec.name for spec in specs if spec.name not in given and not spec.has_default]
    if missing:
        found = ", ".join(map(repr, given)) or "none"
        raise DataError(
            f"no array for the input {missing[0]!r}, the arrays are {found}",
            where=where,
            hint=f"Inputs: {', '.join(map(repr, names))}.",
        )
    if extra:
        raise DataError(
            f"the model has no input {extra[0]!r}", where=where, hint=nearest(extra[0], names, what="inputs")
        )


def _check_dtype(array: StoredArray, spec: InputSpec) -> None:
    wanted = dtypes.by_name(spec.dtype)
    found = array.type_name(wanted)
    if found != wanted.name:
        hint = f"Convert it with: array.astype({wanted.name!r})" if wanted.native else ""
        raise DataError(
            f"expected {wanted.name} for the input {spec}, got {found}", where=array.where, hint=hint
        )


def _not_finite(where: str) -> DataError:
    return DataError("the values hold NaN or infinity", where=where, hint="Remove such samples from the data")
