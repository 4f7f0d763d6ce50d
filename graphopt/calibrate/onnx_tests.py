"""ONNX's own test data as feeds: ``test_data_set_<k>/input_<i>.pb``."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from graphopt.calibrate.arrays import digest
from graphopt.errors import DataError
from graphopt.runtime.feeds import check_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from graphopt.runtime.feeds import Feed, InputSpec
    from graphopt.runtime.session import Tensor, Value


def number(path: Path) -> tuple[int, str]:
    """Return what files are sorted by: the last number in their name."""
    digits = re.findall(r"\d+", path.name)
    return (int(digits[-1]) if digits else -1), path.name


class OnnxTests:
    """ONNX's own test data: serialized tensors by the position of their input."""

    def __init__(
        self, folders: Sequence[Path], specs: tuple[InputSpec, ...], warnings: tuple[str, ...]
    ) -> None:
        self.warnings = warnings
        self._folders = folders
        self._specs = specs
        for folder in self._folders:
            # The suite feeds NaN and infinity on purpose.
            check_feeds(self._read(folder), self._specs, where=str(folder), finite=False)

    @cached_property
    def identity(self) -> str:
        """Hash of the files."""
        return f"onnx-test:{digest([file for folder in self._folders for file in _inputs(folder)])}"

    def __len__(self) -> int:
        return len(self._folders)

    def __iter__(self) -> Iterator[Feed]:
        for folder in self._folders:
            yield self._read(folder)

    def _read(self, folder: Path) -> Feed:
        files = _inputs(folder)
        if len(files) > len(self._specs):
            raise DataError(
                f"expected at most {len(self._specs)} inputs, got {len(files)}", where=str(folder)
            )
        return {spec.name: _read_proto(file, spec) for spec, file in zip(self._specs, files, strict=False)}


def _inputs(folder: Path) -> list[Path]:
    return sorted(folder.glob("input_*.pb"), key=number)


def _read_proto(file: Path, spec: InputSpec) -> Value:
    import onnx
    import onnx_ir as oir
    from google.protobuf.message import DecodeError

    from graphopt.ir.tensors import to_array

    def array(proto: onnx.TensorProto) -> Tensor:
        tensor: Tensor = to_array(oir.serde.deserialize_tensor(proto)).copy()
        if tensor.dtype == object:
            tensor.reshape(-1)[:] = [
                word.decode() if isinstance(word, bytes) else word for word in tensor.reshape(-1)
            ]
        return tensor

    try:
        raw = file.read_bytes()
        if spec.is_optional:
            optional = onnx.OptionalProto.FromString(raw)
            if optional.HasField("sequence_value"):
                return [array(item) for item in optional.sequence_value.tensor_values]
            return array(optional.tensor_value) if optional.HasField("tensor_value") else None
        if spec.is_sequence:
            return [array(item) for item in onnx.SequenceProto.FromString(raw).tensor_values]
        return array(onnx.TensorProto.FromString(raw))
    except (DecodeError, OSError, ValueError, TypeError) as error:
        raise DataError(f"the file is not a serialized {spec} ({error})", where=str(file)) from error
