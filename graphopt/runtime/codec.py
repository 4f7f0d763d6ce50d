"""Arguments and results of child processes as JSON and .npy files in a folder; nothing is ever unpickled."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from graphopt.errors import WorkerError
from graphopt.runtime import dtypes

if TYPE_CHECKING:
    from graphopt.runtime.session import Tensor, Value

_TAG = "$"


class StoredFeeds:
    """Feeds in a folder, saved as ``feed0``, ``feed1`` ..., read one at a time and as often as needed."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Value]]:
        for index in range(self._count):
            feed = load(self._folder, f"feed{index}")
            if not isinstance(feed, dict):
                raise WorkerError("a stored feed is no mapping", where=str(self._folder))
            yield feed


def save(value: object, folder: Path, name: str) -> None:
    """Write *value* as ``name.json`` and the arrays in it as ``name.<k>.npy``.

    Takes None, bools, numbers, text, bytes, lists, tuples, mappings, paths (made absolute), arrays of any
    element type of ONNX, dataclasses, pydantic models and :class:`StoredFeeds`.

    Raises:
        WorkerError: The value holds something else.
    """
    document = _Encoder(folder, name).encode(value)
    part = folder / f"{name}.json.part"
    part.write_text(json.dumps(document), encoding="utf-8")
    part.replace(folder / f"{name}.json")  # the file exists only once it is whole


def load(folder: Path, name: str) -> Any:  # noqa: ANN401 - whatever was saved
    """Read what :func:`save` wrote under *name*."""
    return _decode(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), folder)


class _Encoder:
    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._arrays = 0

    def encode(self, value: object) -> object:
        match value:
            case None | bool() | str():
                return value
            case np.generic():
                return (
                    self.encode(np.asarray(value))
                    if value.dtype.kind in "VOUS"
                    else self.encode(value.item())
                )
            case int() | float():
                return value
            case bytes():
                return {_TAG: "bytes", "data": base64.b64encode(value).decode()}
            case Path():
                return {_TAG: "path", "data": str(value.absolute())}
            case np.ndarray():
                return self._array(value)
            case list():
                return [self.encode(item) for item in value]
            case tuple():
                return {_TAG: "tuple", "data": [self.encode(item) for item in value]}
            case StoredFeeds():
                return {_TAG: "feeds", "data": str(value._folder.absolute()), "count": len(value)}  # noqa: SLF001 - this module's own class
            case BaseModel():
                fields = {name: getattr(value, name) for name in type(value).model_fields}
                return {_TAG: "record", "class": _name_of(value), "data": self.encode(fields)}
            case Mapping():
                return {
                    _TAG: "dict",
                    "data": [[self.encode(key), self.encode(item)] for key, item in value.items()],
                }
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
                return {_TAG: "dataclass", "class": _name_of(value), "data": self.encode(fields)}
            case _:
                raise WorkerError(f"a {type(value).__qualname__} cannot be passed to or from a child process")

    def _array(self, array: Tensor) -> object:
        if array.dtype.kind in "OUS":
            words = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
            return {_TAG: "strings", "shape": list(array.shape), "data": words}
        element = dtypes.of_array(array)
        file = f"{self._name}.{self._arrays}.npy"
        self._arrays += 1
        plain = array if element.native else np.ascontiguousarray(array).view(f"uint{max(element.bits, 8)}")
        np.save(self._folder / file, plain, allow_pickle=False)
        return {_TAG: "array", "dtype": element.name, "file": file}


def _decode(value: Any, folder: Path) -> Any:  # noqa: ANN401 - any JSON value, any result
    if isinstance(value, list):
        return [_decode(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    data: Any = value.get("data")
    match value[_TAG]:
        case "bytes":
            return base64.b64decode(data)
        case "path":
            return Path(data)
        case "tuple":
            return tuple(_decode(item, folder) for item in data)
        case "dict":
            return {_decode(key, folder): _decode(item, folder) for key, item in data}
        case "feeds":
            return StoredFeeds(Path(data), value["count"])
        case "strings":
            words: Tensor = np.empty(len(data), dtype=object)
            words[:] = data
            return words.reshape(value["shape"])
        case "array":
            array = np.load(folder / value["file"], allow_pickle=False)
            element = dtypes.by_name(value["dtype"])
            return array if element.native else array.view(element.numpy())
        case "record":
            # model_construct would skip validation, and assignment of nested records needs it
            return _class_named(value["class"]).model_validate(_decode(data, folder))
        case "dataclass":
            return _class_named(value["class"])(**_decode(data, folder))
        case tag:
            raise WorkerError(f"a child process returned something unknown ({tag})")


def _name_of(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class_named(name: str) -> Any:  # noqa: ANN401 - a class of the caller's choice
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found
