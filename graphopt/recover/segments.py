"""Run a piece of a model: from values that are known already to values that are wanted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import DataError
from graphopt.ir.clone import clone_part, clone_value
from graphopt.ir.collector import collector_paused
from graphopt.ir.emit import emit, save
from graphopt.ir.model import Model
from graphopt.ir.rewrite import captured_values
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from graphopt.ir.shapes import Shapes

    Arrays = dict[str, npt.NDArray[Any]]
    Types = dict[str, tuple[oir.DataType, int | None]]
    """Element type, and rank where it is known, by name of the value."""

_INLINE_LIMIT_BYTES = 1 << 30  # protobuf ends at 2 GiB


class Segment:
    """The part of *model* that computes *outputs* from *inputs*, ready to run.

    Args:
        model: Any model; it is not changed.
        inputs: Names of values of the main graph that will be given.
        outputs: Names of values of the main graph that are wanted; those among the inputs pass through.
        types: Types and ranks of the inputs; see :func:`types_of`.
        provider: What to run on.
    """

    def __init__(
        self,
        model: Model,
        inputs: Sequence[str],
        outputs: Sequence[str],
        types: Types,
        provider: str = "cpu",
    ) -> None:
        given = set(inputs)
        self._through = [name for name in outputs if name in given]
        computed = [name for name in dict.fromkeys(outputs) if name not in given]
        self._session = None
        self._needed: tuple[str, ...] = ()
        if not computed:
            return
        cut = _cut(model, inputs, computed, types)
        self._needed = tuple(value.name or "" for value in cut.graph.inputs)
        where = f"the part of the model up to {computed[-1]!r}"
        stored = list(_tensors(cut))
        # A session that is made of bytes has no folder to find external data in.
        in_memory = not any(isinstance(tensor, oir.ExternalTensor) for tensor in stored)
        if in_memory and sum(tensor.nbytes for tensor in stored) < _INLINE_LIMIT_BYTES:
            content = emit(cut).SerializeToString()
            self._session = open_session(content, provider=provider, where=where)
            return
        with tempfile.TemporaryDirectory(prefix="graphopt-recover-") as folder:
            path = Path(folder) / "model.onnx"
            save(cut, path)
            self._session = open_session(path, provider=provider, where=where)

    def run(self, values: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Return the outputs by name.

        Raises:
            DataError: The model cannot run on the values, or an output is no tensor.
        """
        found: Arrays = {name: values[name] for name in self._through}
        if self._session is not None:
            for name, value in self._session.run({name: values[name] for name in self._needed}).items():
                if not isinstance(value, np.ndarray):
                    raise DataError(
                        "it is no tensor, so the model cannot be run in parts", where=f"value {name!r}"
                    )
                found[name] = value
        return found


def _tensors(model: Model) -> Iterable[oir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _cut(model: Model, inputs: Sequence[str], outputs: Sequence[str], types: Types) -> Model:
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs if value.name}
    values |= {value.name: value for value in graph.inputs if value.name}
    values |= graph.initializers  # a weight may be an output of the model
    given = {values[name]: name for name in inputs}
    wanted = [values[name] for name in outputs]
    needed: set[oir.Node] = set()
    read: set[oir.Value] = set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        read.add(value)
        node = None if value in given else value.producer()
        if node is None or node in needed:
            continue
        needed.add(node)
        stack += [each for each in node.inputs if each is not None]
        if node.attributes:
            stack += captured_values(node)
    known: dict[oir.Value, oir.Value] = {}
    for value, name in given.items():
        if value not in read:
            continue
        if value.is_graph_input() and not value.is_initializer():
            known[value] = clone_value(value)
            continue
        if name not in types:
            raise DataError(
                "its type is unknown, so the model cannot be run in parts", where=f"value {name!r}"
            )
        dtype, rank = types[name]
        known[value] = oir.Value(
            name=name,
            type=oir.TensorType(dtype),
            shape=None if rank is None else oir.Shape([None] * rank),
        )
    with collector_paused():
        part = clone_part(model.store, [node for node in graph if node in needed], known, wanted)
    return Model(part, source=model.source, registry=model.registry)


def types_of(model: Model, shapes: Shapes) -> Types:
    """Return type and rank of every value of the main graph of *model* whose type is known, by name."""
    found: Types = {}
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        dtype = shapes.dtype(value) or value.dtype
        if value.name and dtype is not None:
            found[value.name] = dtype, shapes.rank(value)
    return found
