"""Sessions of onnxruntime: any model file, any element type, quiet, with the placement of every node."""

from __future__ import annotations

import ctypes
import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from graphopt.errors import DataError, PathError, ProviderError
from graphopt.ir.encoding import is_utf8
from graphopt.runtime import dtypes, providers, refusals

if TYPE_CHECKING:
    from types import TracebackType

    from graphopt.runtime.providers import Provider

Level = Literal["none", "all"]
Tensor = np.ndarray[Any, np.dtype[Any]]
Value = Tensor | list[Tensor] | None
"""A tensor, a sequence of tensors, or an optional that is empty."""
Feeds = Mapping[str, Value]

_FATAL = 4  # onnxruntime's highest log severity: its warnings are not ours
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
_EXTERNAL_FILE = "session.optimized_model_external_initializers_file_name"
_EXTERNAL_MIN_BYTES = "session.optimized_model_external_initializers_min_size_in_bytes"


@dataclass(frozen=True, slots=True)
class IoInfo:
    """An input or output as onnxruntime sees it.

    Attributes:
        name: Its name.
        kind: "tensor", "sequence", "optional", "map" or "sparse".
        dtype: Name of the element type; "" where there is no single one.
        shape: Sizes, symbols, or None for an unknown dim.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one node of the optimized graph runs.

    Attributes:
        node: The node's name, as onnxruntime's optimizer left it.
        op_type: Its operator.
        domain: The operator's domain.
        provider: graphopt's name of the provider, or onnxruntime's where graphopt has none.
    """

    node: str
    op_type: str
    domain: str
    provider: str


def open_session(
    model: Path | bytes,
    *,
    provider: str = "cpu",
    optimization: Level = "all",
    threads: int = 1,
    record_placement: bool = False,
    optimized_path: Path | None = None,
    where: str = "",
) -> Session:
    """Make a session for *model*.

    Args:
        model: A model file (external data is found beside it), or a serialized model.
        provider: Name of the execution provider; nodes that it cannot run go to the CPU's.
        optimization: "none" runs the graph as it stands, "all" lets onnxruntime rewrite it.
        threads: Threads of one operator; 1 runs everything in the calling thread.
        record_placement: Whether :meth:`Session.placement` will be asked.
        optimized_path: Where to write the model as the runtime rewrote it, with weights in a file beside it.
        where: How errors name the model; by default its path.

    Raises:
        PathError: The file does not exist or is a directory.
        InvalidModelError: The model breaks a rule of ONNX.
        UnsupportedModelError: The runtime lacks a data type of the model.
        OptionError: No provider has that name.
        ProviderError: The provider is missing, the runtime is too old for the model, an operator is not
            implemented, or the provider fell back as a whole.
    """
    resolved = providers.resolve(provider)
    if isinstance(model, Path):
        where = where or str(model)
        if not model.exists():
            raise PathError("the file does not exist", where=where)
        if model.is_dir():
            raise PathError("expected an ONNX file, got a directory", where=where)
    return Session(
        model,
        resolved,
        optimization,
        threads,
        record_placement,
        where or "the model in memory",
        optimized_path=optimized_path,
    )


class Session:
    """A model loaded by onnxruntime; made by :func:`open_session`.

    Attributes:
        where: How errors name the model.
        provider: The provider that was asked for.
        inputs: Inputs without defaults, in order.
        outputs: Outputs in order.
    """

    def __init__(
        self,
        model: Path | bytes,
        provider: Provider,
        optimization: Level,
        threads: int,
        record_placement: bool,
        where: str,
        *,
        optimized_path: Path | None = None,
    ) -> None:
        import onnxruntime as ort

        if isinstance(model, Path) and not is_utf8(str(model)):
            raise ProviderError(
                "onnxruntime cannot open a file whose name is not UTF-8", where=where, hint="Rename it"
            )
        # Some kernels warn through the logger of the whole process, which no session option reaches.
        ort.set_default_logger_severity(_FATAL)
        self.where = where
        self.provider = provider
        self._ort = ort
        self._scratch: weakref.finalize[..., Session] | None = None  # removes the folder of a profile
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_ENABLE_ALL
            if optimization == "all"
            else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        self._recording = record_placement
        if record_placement:
            self._record(options)
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
            # A model above 2 GB cannot be one file.
            options.add_session_config_entry(_EXTERNAL_FILE, f"{optimized_path.name}.data")
            options.add_session_config_entry(_EXTERNAL_MIN_BYTES, "1024")
        names: list[str | tuple[str, dict[str, str]]] = [_with_options(provider, threads)]
        if provider.name != "cpu":
            names.append("CPUExecutionProvider")
        try:
            self._session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model, options, providers=names
            )
        except Exception as error:  # onnxruntime's exceptions have no common class below Exception
            self.close()
            raise refusals.load_refusal(
                error, where=where, provider=provider, version=str(ort.__version__)
            ) from error
        self._session.disable_fallback()
        active = self._session.get_providers()
        if provider.ort_name not in active:
            raise ProviderError(
                f"the provider {provider.name!r} could not start, {', '.join(active)} took over",
                where=where,
                hint="Check the libraries and the device that the provider needs",
            )
        self.inputs = tuple(map(_io_info, self._session.get_inputs()))
        self.outputs = tuple(map(_io_info, self._session.get_outputs()))
        self._types = {info.name: info for info in (*self.inputs, *self.outputs)}
        self._types |= {
            info.name: info for info in map(_io_info, self._session.get_overridable_initializers())
        }
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = _FATAL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder that a recording session may have made."""
        if self._scratch is not None:
            self._scratch()

    def run(self, feeds: Feeds) -> dict[str, Value]:
        """Run the model once and return its outputs by name, in order.

        Args:
            feeds: A value for every input; low-precision tensors as arrays of ml_dtypes, strings as arrays
                of object, sequences as lists, an empty optional as None.

        Raises:
            DataError: A feed is missing, does not fit, or the model cannot run on it.
            ProviderError: The provider failed.
        """
        self._check_names(feeds)
        try:
            if self._needs_ort_values(feeds):
                return self._run_ort_values(feeds)
            values = self._session.run(None, dict(feeds), self._quiet)
        except DataError:
            raise
        except Exception as error:  # as in __init__
            raise refusals.run_refusal(
                error, where=self.where, provider=self.provider, version=str(self._ort.__version__)
            ) from error
        return {info.name: _as_value(value) for info, value in zip(self.outputs, values, strict=True)}

    def bind(self, feeds: Feeds) -> Any:  # noqa: ANN401 - a function without arguments whose result is of no interest
        """Return a function that runs the model on *feeds* and does nothing else; for timing."""
        self.run(feeds)  # checks the feeds, and is the first warm-up
        if self._needs_ort_values(feeds):
            values = {name: self._ort_value(name, value) for name, value in feeds.items()}
            names = [info.name for info in self.outputs]
            return lambda: self._session.run_with_ort_values(names, values, self._quiet)
        plain = dict(feeds)
        return lambda: self._session.run(None, plain, self._quiet)

    def placement(self) -> tuple[Placement, ...]:
        """Return where each node of the optimized graph runs, in the runtime's order.

        Needs ``record_placement=True``. Releases of onnxruntime without the recording option (before 1.24)
        are asked for a profile instead, which knows only nodes that have run: call :meth:`run` first.

        Raises:
            ProviderError: The session does not record.
        """
        if not self._recording:
            raise ProviderError("the session does not record the placement of nodes", where=self.where)
        if self._scratch is not None:
            return _from_profile(Path(self._session.end_profiling()))
        return tuple(
            Placement(node.name, node.op_type, node.domain, providers.short_name(part.ep_name))
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )

    def _record(self, options: Any) -> None:  # noqa: ANN401 - onnxruntime has no stubs
        if hasattr(self._ort.InferenceSession, "get_provider_graph_assignment_info"):
            options.add_session_config_entry(_RECORD_PLACEMENT, "1")
            return
        folder = tempfile.mkdtemp(prefix="graphopt-profile-")
        self._scratch = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")

    def _check_names(self, feeds: Feeds) -> None:
        missing = [info.name for info in self.inputs if info.name not in feeds]
        if missing:
            raise DataError(f"no value for the input {missing[0]!r}", where=self.where)
        extra = [name for name in feeds if name not in self._types]
        if extra:
            raise DataError(
                f"the model has no input {extra[0]!r}",
                where=self.where,
                hint=f"Its inputs: {', '.join(info.name for info in self.inputs)}.",
            )

    def _needs_ort_values(self, feeds: Feeds) -> bool:
        """Whether a type is involved that numpy lacks, so that arrays alone cannot carry it."""
        names = (*feeds, *(info.name for info in self.outputs))
        return any((dtype := self._types[name].dtype) and not dtypes.by_name(dtype).native for name in names)

    def _run_ort_values(self, feeds: Feeds) -> dict[str, Value]:
        values = {name: self._ort_value(name, value) for name, value in feeds.items()}
        names = [info.name for info in self.outputs]
        results = self._session.run_with_ort_values(names, values, self._quiet)
        return {name: self._read(name, result) for name, result in zip(names, results, strict=True)}

    def _ort_value(self, name: str, value: Value) -> Any:  # noqa: ANN401 - onnxruntime has no stubs
        info = self._types[name]
        if not isinstance(value, np.ndarray) or info.kind != "tensor":
            raise DataError(
                f"input {name!r} is a {info.kind}, which onnxruntime's Python API cannot pass beside tensors"
                " of a type that numpy lacks",
                where=self.where,
            )
        element = dtypes.by_name(info.dtype)
        if element.native:
            return self._ort.OrtValue.ortvalue_from_numpy(value)
        make = getattr(self._ort.OrtValue, "ortvalue_from_numpy_with_onnx_type", None)
        if make is None:
            raise DataError(
                f"onnxruntime {self._ort.__version__} has no way to take a {element.name} input from Python",
                where=f"{self.where}, input {name!r}",
                hint="Use a newer onnxruntime",
            )
        return make(_carrier(value, element), element.number)

    def _read(self, name: str, result: Any) -> Value:  # noqa: ANN401 - onnxruntime has no stubs
        """Copy a tensor out of onnxruntime, whatever its element type."""
        if not result.is_tensor():
            raise DataError(
                f"output {name!r} is no tensor, which onnxruntime's Python API cannot return beside tensors"
                " of a type that numpy lacks",
                where=self.where,
            )
        element = dtypes.by_number(result.element_type())
        if element.native:
            return np.asarray(result.numpy())
        shape = tuple(result.shape())
        count = int(np.prod(shape, dtype=np.int64))
        length = (count * element.bits + 7) // 8
        raw = ctypes.string_at(result.data_ptr(), length) if length else b""
        return _unpack(np.frombuffer(raw, np.uint8), element, count).reshape(shape)


def _with_options(provider: Provider, threads: int) -> str | tuple[str, dict[str, str]]:
    """Return a provider with options of its own where the session's do not reach it."""
    if provider.name == "openvino":  # a thread pool of its own, of all cores
        return provider.ort_name, {"num_of_threads": str(threads)}
    return provider.ort_name


def _as_value(value: Any) -> Value:  # noqa: ANN401 - whatever onnxruntime returns
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [np.asarray(item) for item in value]
    return None if value is None else np.asarray(value)


def _io_info(arg: Any) -> IoInfo:  # noqa: ANN401 - onnxruntime has no stubs
    kind, element = dtypes.by_ort_type(arg.type)
    shape = tuple(size if isinstance(size, int | str) and size != "" else None for size in arg.shape or ())
    return IoInfo(arg.name, kind, element.name if element else "", shape)


def _carrier(value: Tensor, element: dtypes.ElementType) -> Tensor:
    """Return an array of *value*'s shape whose memory is laid out as onnxruntime wants it.

    Types under 8 bits are packed by onnxruntime, while an array holds one element a byte: the packed bytes
    go to the front of a buffer of the full shape, which is as large as needed and never read to its end.
    """
    dense = np.ascontiguousarray(value)
    if element.bits >= 8:
        return dense.view(f"uint{element.bits}")
    per_byte = 8 // element.bits
    codes = dense.reshape(-1).view(np.uint8) & ((1 << element.bits) - 1)
    codes = np.concatenate([codes, np.zeros(-len(codes) % per_byte, np.uint8)]).reshape(-1, per_byte)
    packed = np.zeros(len(codes), np.uint8)
    for place in range(per_byte):
        packed |= codes[:, place] << np.uint8(place * element.bits)
    buffer = np.zeros(dense.size, np.uint8)
    buffer[: len(packed)] = packed
    return buffer.reshape(dense.shape)


def _unpack(raw: np.ndarray, element: dtypes.ElementType, count: int) -> Tensor:
    """Return *count* elements from bytes as onnxruntime lays them out, first element in the lowest bits."""
    if element.bits >= 8:
        return raw.view(element.numpy())
    places = np.arange(0, 8, element.bits, dtype=np.uint8)
    codes = ((raw[:, None] >> places) & np.uint8((1 << element.bits) - 1)).reshape(-1)[:count]
    if element.name.startswith("int"):
        sign = np.int16(1 << (element.bits - 1))
        return ((codes.astype(np.int16) ^ sign) - sign).astype(np.int8).astype(element.numpy())
    if element.is_integer:
        return codes.astype(element.numpy())
    return codes.view(element.numpy())


def _from_profile(path: Path) -> tuple[Placement, ...]:
    """Read the placement of the nodes that ran from a profile of onnxruntime."""
    events = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Placement] = {}
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in arguments:
            name = str(event["name"]).removesuffix("_kernel_time")
            provider = providers.short_name(arguments["provider"])
            found.setdefault(name, Placement(name, arguments.get("op_name", ""), "", provider))
    return tuple(found.values())
