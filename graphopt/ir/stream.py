"""Weights as a stream: read a block, transform it, write it; memory does not grow with the model.

A pass that makes new weights from old ones describes how, block by block, in a :class:`Recipe`, and gets
tensors back from :func:`produce`. Where the old weight lies in a file they are :class:`LazyTensor`: nothing
is computed before somebody asks, and ``emit`` asks for one block at a time. Where the old weight is in memory
the same recipe runs at once, so that it can go. What a pass must know beforehand (extremes, whether all is
finite) it takes from :func:`scan`, which reads the same blocks.

Blocks go through buffers that are used again and again, on two threads: pages of a mapped file count as
memory of the process, a buffer does not grow. The result never depends on the threads: every block is
computed alone and has its own place.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import onnx_ir as oir

from graphopt.errors import InvalidModelError
from graphopt.ir.external import EarlyWriter
from graphopt.ir.tensors import FrozenTensor, byte_size, decode, to_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from graphopt.ir.tensors import Array

    Transform = Callable[["Block"], Sequence[Array]]
    """What becomes of one block: an array for each part of the recipe; its bytes are written as they are."""

T = TypeVar("T")

THREADS = 2
"""One waits for the disk while the other computes; more would only split the same memory bus."""

BLOCK_BYTES = 2 << 20
"""Large enough that threads seldom wait for the interpreter, small enough for the second cache of most cores
(benchmarks/streaming.py)."""

SCAN_BYTES = 1 << 19
"""What is read to be looked at, more than once, and not to be written: it stays in the cache of a core."""

COLUMN_BLOCK_BYTES = 16 << 20
"""Blocks of columns are read in one piece a row; larger ones make the pieces long enough."""

_KEPT_BYTES = 1 << 16
"""Results up to this size (scales, zero points) are kept by a lazy tensor once computed."""


class Scratch:
    """Buffers that one thread uses again for every block."""

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, key: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an array of undefined content; the next one of the same *key* may lie in the same memory."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[key] = np.empty(size, np.uint8)
        return buffer[:size].view(kind).reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A tensor seen as [rows, columns] in the order of its bytes, and how it is cut into blocks.

    Attributes:
        tensor: The tensor, of ``rows * columns`` elements.
        rows: Number of rows.
        columns: Number of columns.
        axis: 0 for blocks of whole rows, 1 for blocks of whole columns.
        multiple: Every block but the last has a multiple of this many rows (columns).
        block_bytes: About how much of the tensor a block has; 0 for what suits the axis.
    """

    tensor: oir.TensorProtocol
    rows: int
    columns: int
    axis: int = 0
    multiple: int = 1
    block_bytes: int = 0

    @property
    def length(self) -> int:
        """Rows, or columns, that the blocks share."""
        return self.columns if self.axis else self.rows

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the first row (column) of each block and the one behind its last."""
        across = self.rows if self.axis else self.columns
        line_bytes = max(1, across * self.tensor.dtype.bitwidth // 8)
        goal = self.block_bytes or (COLUMN_BLOCK_BYTES if self.axis else BLOCK_BYTES)
        step = max(1, goal // line_bytes // self.multiple) * self.multiple
        for start in range(0, self.length, step):
            yield start, min(start + step, self.length)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of a matrix.

    Attributes:
        data: [stop - start, columns], or [rows, stop - start]; of the tensor's own type, not to be changed
            but through :meth:`work`.
        start: Its first row (column) in the matrix.
        scratch: Buffers of the thread that works on it; nothing in them outlives the block.
        is_read: The data was read from a file into a buffer of its own; see :meth:`work`.
    """

    data: Array
    start: int
    scratch: Scratch
    is_read: bool = False

    def work(self, like: Array) -> Array:
        """Return an array of type and shape of *like*, to be overwritten once *like* is read no more.

        It is *like* itself where that lies in a buffer: half the memory stays in cache for twice as much.
        """
        if self.is_read or not np.may_share_memory(like, self.data):
            return like
        return self.scratch.array("work", like.shape, like.dtype)

    def as_float32(self) -> Array:
        """Return the data as float32, in a buffer where it is of another type."""
        if self.data.dtype == np.float32:
            return self.data
        copy = self.scratch.array("float32", self.data.shape, np.float32)
        with np.errstate(over="ignore"):
            copy[...] = self.data
        return copy


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor that comes out of a recipe.

    Attributes:
        dtype: Its element type.
        dims: Its shape.
        unit_bytes: Bytes that ``Matrix.multiple`` rows (columns) of the source become. Blocks stand one
            behind the other in the part's bytes, packed types packed.
    """

    dtype: oir.DataType
    dims: tuple[int, ...]
    unit_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole part."""
        return byte_size(self.dtype, self.dims)


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How one tensor becomes others.

    Attributes:
        source: What is read.
        parts: What comes out.
        transform: Called once a block, from several threads at once, in no particular order; a pure function
            of the block.
    """

    source: Matrix
    parts: tuple[Part, ...]
    transform: Transform


class LazyTensor(FrozenTensor):
    """A part of a recipe that has not run yet.

    Whoever reads it runs the recipe; ``emit`` writes all parts of a recipe in one go. Only small results are
    kept.
    """

    __slots__ = ("_kept", "index", "recipe")

    def __init__(self, recipe: Recipe, index: int, **about: Any) -> None:  # noqa: ANN401 - as the base class
        part = recipe.parts[index]
        super().__init__(part.dtype, part.dims, **about)
        self.recipe = recipe
        self.index = index
        self._kept: bytes | None = None

    @property
    def raw(self) -> Array:
        """The values."""
        return self.numpy()

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files that the recipe reads."""
        tensor = self.recipe.source.tensor
        if isinstance(tensor, LazyTensor):
            return tensor.files
        return (str(tensor.path),) if isinstance(tensor, oir.ExternalTensor) else ()

    def numpy(self) -> Array:
        """Return the values, read-only.

        Raises:
            InvalidModelError: The file of the source is gone or has changed its size.
        """
        return decode(self.tobytes(), self._dtype, self._dims)

    def tobytes(self) -> bytes:
        """Return the bytes, packed types packed.

        Raises:
            InvalidModelError: As :meth:`numpy`.
        """
        if self._kept is not None:
            return self._kept
        content = bytes(_run_in_memory(self.recipe, (self.index,))[self.index])
        if len(content) <= _KEPT_BYTES:
            self._kept = content
        return content

    def described(self, **about: Any) -> LazyTensor:  # noqa: ANN401 - as the base class
        """Return the same tensor with another name, documentation and metadata."""
        return LazyTensor(self.recipe, self.index, **about)


def is_in_file(tensor: oir.TensorProtocol) -> bool:
    """Return whether the content of *tensor* is not in memory: it lies in a file, or is made from one."""
    return isinstance(tensor, oir.ExternalTensor | LazyTensor)


def produce(recipe: Recipe, names: Sequence[str]) -> tuple[oir.TensorProtocol, ...]:
    """Return the tensors that *recipe* makes: lazy ones where its source is in a file, else made at once.

    Args:
        recipe: What to do.
        names: A name for each part.

    Raises:
        InvalidModelError: A block does not give what the recipe promises.
    """
    if is_in_file(recipe.source.tensor):
        return tuple(LazyTensor(recipe, index, name=name) for index, name in enumerate(names))
    made = _run_in_memory(recipe, tuple(range(len(recipe.parts))))
    return tuple(
        _in_memory(made[index], part, name)
        for index, (part, name) in enumerate(zip(recipe.parts, names, strict=True))
    )


def _in_memory(content: bytearray, part: Part, name: str) -> oir.TensorProtocol:
    return oir.Tensor(decode(bytes(content), part.dtype, part.dims), dtype=part.dtype, name=name)


def scan(matrix: Matrix, visit: Callable[[Block], T]) -> list[T]:
    """Return what *visit* makes of each block of *matrix*, in order of the blocks.

    Args:
        matrix: What to read.
        visit: Called from several threads at once; what it returns must not lie in the block or its scratch.

    Raises:
        InvalidModelError: The file of the tensor is gone or has changed its size.
    """
    spans = list(matrix.spans())
    results: list[T | None] = [None] * len(spans)
    with _Files() as files:
        reader = _Reader(matrix, files)

        def work(item: tuple[int, tuple[int, int]], scratch: Scratch) -> None:
            index, (start, stop) = item
            results[index] = visit(reader.block(start, stop, scratch))

        _in_threads(enumerate(spans), work, few=len(spans) == 1 or matrix.tensor.nbytes <= BLOCK_BYTES)
    return results  # type: ignore[return-value]  # every index has been visited


def is_finite(tensor: oir.TensorProtocol) -> bool:
    """Return whether a floating-point *tensor* holds neither NaN nor infinities, reading it as a stream."""
    size = math.prod(tensor.shape.numpy())
    if not size:
        return True

    def finite(block: Block) -> bool:
        data = block.as_float32() if block.data.dtype.kind == "V" else block.data
        flat = data.reshape(-1)
        with np.errstate(invalid="ignore"):
            return bool(np.isfinite(flat.max()) and np.isfinite(flat.min()))

    return all(scan(Matrix(tensor, size, 1, block_bytes=SCAN_BYTES), finite))


def write_lazy(target: int, places: Iterable[tuple[int, LazyTensor]]) -> None:
    """Write lazy tensors into an open file, each recipe once, however many of its parts are asked for.

    Args:
        target: File descriptor.
        places: Offset in the file, in bytes, and tensor.

    Raises:
        InvalidModelError: A source is gone or has changed its size.
        OSError: Writing failed, a full disk included.
    """
    recipes: dict[Recipe, dict[int, list[int]]] = {}
    for offset, tensor in places:
        recipes.setdefault(tensor.recipe, {}).setdefault(tensor.index, []).append(offset)

    writer = EarlyWriter(target)
    _run(recipes, lambda offset, data: writer.write(data, offset))


def _run_in_memory(recipe: Recipe, wanted: tuple[int, ...]) -> dict[int, bytearray]:
    made = {index: bytearray(recipe.parts[index].nbytes) for index in wanted}
    # The parts stand one behind the other in an imagined file.
    starts: dict[int, int] = {}
    end = 0
    for index in wanted:
        starts[index] = end
        end += len(made[index])

    def put(offset: int, data: memoryview) -> None:
        index = max((i for i in wanted if starts[i] <= offset and made[i]), key=lambda i: starts[i])
        at = offset - starts[index]
        made[index][at : at + len(data)] = data

    _run({recipe: {index: [starts[index]] for index in wanted}}, put)
    return made


def _run(
    recipes: Mapping[Recipe, Mapping[int, Sequence[int]]], put: Callable[[int, memoryview], None]
) -> None:
    """Run recipes in order, their blocks on two threads; *put* takes what comes out, with its offset."""

    def items(files: _Files) -> Iterator[tuple[Recipe, Mapping[int, Sequence[int]], _Reader, int, int]]:
        for recipe, offsets in recipes.items():
            reader = _Reader(recipe.source, files)
            for start, stop in recipe.source.spans():
                yield recipe, offsets, reader, start, stop

    def work(item: tuple[Recipe, Mapping[int, Sequence[int]], _Reader, int, int], scratch: Scratch) -> None:
        recipe, offsets, reader, start, stop = item
        made = recipe.transform(reader.block(start, stop, scratch))
        for index, places in offsets.items():
            part = recipe.parts[index]
            at = start // recipe.source.multiple * part.unit_bytes
            data = _bytes_of(made[index])
            expected = part.nbytes if stop == recipe.source.length else at + _units(recipe, start, stop, part)
            if at + len(data) != expected:
                raise InvalidModelError(
                    f"a block gave {len(data)} bytes; expected {expected - at}",
                    where=f"part {index} made from tensor {recipe.source.tensor.name!r}",
                )
            for place in places:
                put(place + at, data)

    with _Files() as files:
        few = len(recipes) == 1 and all(recipe.source.tensor.nbytes <= BLOCK_BYTES for recipe in recipes)
        _in_threads(items(files), work, few=few)


def _units(recipe: Recipe, start: int, stop: int, part: Part) -> int:
    return (stop - start) // recipe.source.multiple * part.unit_bytes


def _bytes_of(array: Array) -> memoryview:
    contiguous = np.ascontiguousarray(array)
    return memoryview(contiguous.reshape(-1).view(np.uint8))


class _Files:
    """Files that are open for reading, each once."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def descriptor(self, path: str) -> int:
        with self._lock:
            found = self._open.get(path)
            if found is None:
                found = self._open[path] = os.open(path, os.O_RDONLY)
            return found


class _Reader:
    """Reads blocks of one matrix; used by several threads at once."""

    def __init__(self, matrix: Matrix, files: _Files) -> None:
        self._matrix = matrix
        tensor = matrix.tensor
        self._whole: Array | None = None
        self._dtype = np.dtype(tensor.dtype.numpy())
        if isinstance(tensor, oir.ExternalTensor) and tensor.dtype.bitwidth >= 8:
            self._tensor = tensor
            try:
                self._file = files.descriptor(str(tensor.path))
            except OSError as error:
                raise self._unreadable(error) from error
        else:
            self._whole = np.asarray(to_array(tensor)).reshape(matrix.rows, matrix.columns)

    def block(self, start: int, stop: int, scratch: Scratch) -> Block:
        matrix = self._matrix
        if self._whole is not None:
            part = self._whole[:, start:stop] if matrix.axis else self._whole[start:stop]
            return Block(part, start, scratch)
        item, first = self._dtype.itemsize, self._tensor.offset or 0
        if not matrix.axis:
            data = scratch.array("source", (stop - start, matrix.columns), self._dtype)
            self._fill(memoryview(data.reshape(-1).view(np.uint8)), first + start * matrix.columns * item)
            return Block(data, start, scratch, is_read=True)
        data = scratch.array("source", (matrix.rows, stop - start), self._dtype)
        view = memoryview(data.reshape(-1).view(np.uint8))
        width, stride = (stop - start) * item, matrix.columns * item
        if stop - start == matrix.columns:
            self._fill(view, first)
        else:
            for row in range(matrix.rows):
                self._fill(view[row * width : (row + 1) * width], first + row * stride + start * item)
        return Block(data, start, scratch, is_read=True)

    def _fill(self, view: memoryview, offset: int) -> None:
        try:
            while view:
                got = os.preadv(self._file, [view], offset)
                if got == 0:
                    raise self._unreadable("it is shorter than it was")
                view, offset = view[got:], offset + got
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, reason: object) -> InvalidModelError:
        return InvalidModelError(
            f"the external data cannot be read ({reason})",
            where=f"tensor {self._tensor.name!r} in {self._tensor.path}",
            hint="The file must not change while graphopt works with the model.",
        )


def _in_threads(items: Iterable[T], work: Callable[[T, Scratch], None], *, few: bool = False) -> None:
    """Call *work* for every item, on this thread and others; the first failure stops all and is raised."""
    if few:
        scratch = Scratch()
        for item in items:
            work(item, scratch)
        return
    lock, failures = threading.Lock(), list[BaseException]()
    iterator = iter(items)

    def take() -> list[T]:
        with lock:
            return [] if failures else [item for item in (next(iterator, None),) if item is not None]

    def loop() -> None:
        scratch = Scratch()
        try:
            while taken := take():
                work(taken[0], scratch)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that called
            failures.append(error)

    others = [threading.Thread(target=loop, name=f"graphopt-stream-{k}") for k in range(1, THREADS)]
    for thread in others:
        thread.start()
    try:
        loop()
    finally:
        for thread in others:
            with contextlib.suppress(RuntimeError):
                thread.join()
    if failures:
        raise failures[0]
