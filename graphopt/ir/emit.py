"""From a model to protobuf messages and files.

``emit`` writes what ``lower`` read: metadata in its order, value_info where the file had some, sparse tensors
sparse, entries that onnx-ir cannot hold from ``meta``. Names come from values, never from tensors, because
clones share tensors and a rename must not show in another clone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx_ir as oir

from graphopt.errors import OptionError, PathError, WriteError
from graphopt.ir.collector import collector_paused
from graphopt.ir.external import copy_tensor, write_at
from graphopt.ir.files import PROTOBUF_LIMIT_BYTES, FilePair, check_target, data_path, refers_to
from graphopt.ir.message import MessageWriter, Slot
from graphopt.ir.stream import LazyTensor, write_lazy
from graphopt.ir.tensors import RawTensor, SparseTensor, to_buffer

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    import onnx

    from graphopt.ir.model import Model

_PAGE_BYTES = 4096
# Tensors from this size start at a page, so that a runtime can map them; the padding is at most a sixteenth.
_ALIGNED_FROM_BYTES = 16 * _PAGE_BYTES
_SMALL_ALIGNMENT_BYTES = 16
# Room for the graph itself when weights are weighed against protobuf's limit before anything is built.
_HEADROOM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where the bytes of large tensors go.

    Attributes:
        mode: ``auto`` keeps inline what was inline and external what was external, unless the ONNX file would
            pass protobuf's 2 GiB; then, and with ``one-file``, every initializer of at least the threshold
            goes to OUT.data. ``inline`` puts everything into the ONNX file. With ``auto``, large tensors that
            a pass made are external where the model had external data before.
        size_threshold_bytes: Tensors smaller than this stay inline, unless they were external and mode is
            ``auto``.
    """

    mode: Literal["auto", "one-file", "inline"] = "auto"
    size_threshold_bytes: int = 1024


DEFAULT_EXTERNAL = ExternalData()


def emit(model: Model) -> onnx.ModelProto:
    """Return *model* as a message; external tensors stay references into their files, all keys kept.

    Raises:
        VerifyError: Something in the model cannot be written.
    """
    with collector_paused():
        return MessageWriter(model.store).model()


def save(
    model: Model,
    path: str | PathLike[str],
    *,
    external: ExternalData = DEFAULT_EXTERNAL,
    check: Callable[[Path], None] | None = None,
) -> tuple[Path, ...]:
    """Write *model* to *path*, external data to ``<path>.data`` beside it, and return the files written.

    Both files are replaced atomically and together: after any failure the old ones stand as before. The
    bytes are the same for the same model. Keys of external data that describe the old file (a checksum) are
    left out.

    Args:
        model: The model; it is not changed and does not refer to the new files afterwards.
        path: The ``.onnx`` file.
        external: Where the bytes of large tensors go.
        check: Called with the path of the complete new model, its data beside it, before anything is
            replaced; an exception leaves everything as it was.

    Raises:
        PathError: The path is a directory, cannot be written, or is a file that the model is read from.
        WriteError: The disk is full or failed.
        OptionError: ``inline`` is asked for and the model does not fit into 2 GiB.
        VerifyError: Something in the model cannot be written.
    """
    out = Path(path)
    with collector_paused():
        layout = _Layout(model, out, external)
        check_target(out, iter(layout.sources))
        if layout.slots:
            _check_data_target(data_path(out), layout.sources)
        message = MessageWriter(model.store, layout.slots).model()
        size = message.ByteSize()
        if size > PROTOBUF_LIMIT_BYTES:
            raise _too_large(size, external, out)
        data = message.SerializeToString(deterministic=True)
        del message
    with FilePair(out) as files:
        if layout.slots:
            files.write_data(layout.write)
        files.write_model(data)
        del data
        if check is not None:
            check(files.staged)
        stale = data_path(out)
        is_source = any(
            source.exists() and stale.exists() and source.samefile(stale) for source in layout.sources
        )
        drop = (
            not layout.slots and not is_source and stale.is_file() and out.is_file() and refers_to(out, stale)
        )
        files.commit(remove_data=drop)
    return (out, data_path(out)) if layout.slots else (out,)


def emit_for_runtime(model: Model, folder: Path) -> Path:
    """Save *model* into the scratch *folder* for a session and return the path of the ONNX file.

    Raises:
        WriteError: The disk is full or failed.
    """
    path = folder / "model.onnx"
    save(model, path)
    return path


def _too_large(size: int, external: ExternalData, out: Path) -> OptionError | WriteError:
    if external.mode == "inline":
        return OptionError(
            f"the model has {size} bytes; an ONNX file without external data holds {PROTOBUF_LIMIT_BYTES}",
            where=str(out),
            hint="Use external data (mode one-file).",
        )
    return WriteError(
        f"the graph without its weights has {size} bytes; an ONNX file has at most {PROTOBUF_LIMIT_BYTES}",
        where=str(out),
        hint="Lower the size threshold of external data.",
    )


def _check_data_target(data: Path, sources: tuple[Path, ...]) -> None:
    if data.is_dir():
        raise PathError("expected a place for external data, got a directory", where=str(data))
    for source in sources:
        if source.exists() and data.exists() and source.samefile(data):
            raise PathError(
                "the external data would replace a file that the model is read from",
                where=str(data),
                hint="Name another output.",
            )


class _Layout:
    """Decides which tensors go into the data file and where, and writes them there."""

    def __init__(self, model: Model, out: Path, external: ExternalData) -> None:
        initializers, others = _tensors(model)
        tensors = list({id(tensor): tensor for tensor in (*initializers, *others)}.values())
        paths = dict.fromkeys(path for tensor in tensors for path in _files(tensor))
        known = (model.source.path, *model.source.external_files) if model.source is not None else ()
        self.sources: tuple[Path, ...] = (*known, *(Path(path) for path in paths))
        self.slots: dict[int, Slot] = {}
        self._location = data_path(out).name
        self._order: list[tuple[int, oir.TensorProtocol]] = []
        self._regions: dict[tuple[object, int, int], Slot] = {}
        self._end = 0
        if external.mode == "inline":
            return
        was_external = bool(paths) or bool(model.source is not None and model.source.external_files)
        large = {id(tensor) for tensor in initializers if tensor.nbytes >= external.size_threshold_bytes}
        loose = {id(tensor) for tensor in others}
        everything = (
            external.mode == "one-file" or _inline_bytes(tensors) > PROTOBUF_LIMIT_BYTES - _HEADROOM_BYTES
        )
        for tensor in tensors:
            if isinstance(tensor, oir.StringTensor) or tensor.nbytes == 0:
                continue
            is_external = isinstance(tensor, oir.ExternalTensor)
            stays = is_external and (external.mode == "auto" or id(tensor) in loose)
            is_new = not is_external and not isinstance(tensor, RawTensor)
            moves = id(tensor) in large and (everything or (was_external and is_new))
            if stays or moves:
                self._place(tensor)

    def _place(self, tensor: oir.TensorProtocol) -> None:
        size = int(tensor.nbytes)
        region = (
            (tensor.path, tensor.offset or 0, size)
            if isinstance(tensor, oir.ExternalTensor)
            else (id(tensor), 0, size)
        )
        slot = self._regions.get(region)
        if slot is None:
            alignment = _PAGE_BYTES if size >= _ALIGNED_FROM_BYTES else _SMALL_ALIGNMENT_BYTES
            offset = -(-self._end // alignment) * alignment
            slot = self._regions[region] = Slot(self._location, offset, size)
            self._order.append((offset, tensor))
            self._end = offset + size
        self.slots[id(tensor)] = slot

    def write(self, target: int) -> None:
        """Fill the data file."""
        lazy = []
        for offset, tensor in self._order:
            if isinstance(tensor, LazyTensor):
                lazy.append((offset, tensor))
            elif isinstance(tensor, oir.ExternalTensor):
                copy_tensor(tensor, target, offset)
            else:
                write_at(target, to_buffer(tensor), offset)
        write_lazy(target, lazy)


def _files(tensor: oir.TensorProtocol) -> tuple[str, ...]:
    """Return the files that the bytes of *tensor* come from."""
    if isinstance(tensor, LazyTensor):
        return tensor.files
    return (str(tensor.path),) if isinstance(tensor, oir.ExternalTensor) else ()


def _inline_bytes(tensors: list[oir.TensorProtocol]) -> int:
    return sum(tensor.nbytes for tensor in tensors if not isinstance(tensor, oir.ExternalTensor))


def _tensors(model: Model) -> tuple[list[oir.TensorProtocol], list[oir.TensorProtocol]]:
    """Return the dense initializers, and the tensors in attributes and in sparse tensors."""
    initializers: list[oir.TensorProtocol] = []
    others: list[oir.TensorProtocol] = []

    def collect(tensor: oir.TensorProtocol | None, into: list[oir.TensorProtocol]) -> None:
        if isinstance(tensor, SparseTensor):
            others.extend((tensor.values, tensor.indices))
        elif tensor is not None:
            into.append(tensor)

    for graph in model.graphs():
        for value in graph.initializers.values():
            collect(value.const_value, initializers)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type in _TENSOR_KINDS and not attribute.is_ref():
                    collect(attribute.value, others)
                elif attribute.type in _TENSORS_KINDS and not attribute.is_ref():
                    for tensor in attribute.value:
                        collect(tensor, others)
    return initializers, others


_TENSOR_KINDS = frozenset({oir.AttributeType.TENSOR, oir.AttributeType.SPARSE_TENSOR})
_TENSORS_KINDS = frozenset({oir.AttributeType.TENSORS, oir.AttributeType.SPARSE_TENSORS})
