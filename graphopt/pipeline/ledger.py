"""The bytes ledger of a report: where the bytes of a file are, by element type and by initializer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from graphopt.errors import VerifyError
from graphopt.ir.meta import peek_props

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.record import RunRecord

_LISTED = 32
"""Initializers that are listed by name; the rest is one sum."""

_DEAD_FROM_BYTES = 1024
"""Smaller ones are shapes and scalars, which clean-up passes take away whenever they run."""


class Book:
    """The ledger of one run: opened with the input, closed with the result."""

    def __init__(self, model: Model, file_bytes: int) -> None:
        self._before = ledger(model, file_bytes)
        self._dead = dead(model)

    def check(self, model: Model) -> None:
        """Refuse a result with initializers that nothing reads; see :func:`check_dead`."""
        check_dead(self._dead, model)

    def close(self, model: Model, record: RunRecord) -> None:
        """Enter both sides into *record*, where there is a result."""
        if record.output is not None:
            after = ledger(model, record.output.bytes)
            record.extra["bytes_ledger"] = {"before": self._before, "after": after}


def ledger(model: Model, file_bytes: int) -> dict[str, Any]:
    """Return where the bytes of *model* are, without reading a weight.

    Args:
        model: The model.
        file_bytes: Bytes of its file and external data; 0 for a model that is not written.

    Returns:
        ``weights`` and ``graph`` (all else), ``metadata`` (the text of it: docs, and metadata such as the
        traces of exporters), ``by_dtype``, ``by_initializer`` (the largest, each with its
        dtype, dims and bytes), ``others`` (bytes of those not listed) and ``dead`` (what nothing reads).
    """
    from graphopt.ir.tensors import stored_bytes

    by_dtype: Counter[str] = Counter()
    listed: list[tuple[int, str, str, list[int]]] = []
    seen: set[int] = set()
    for name, tensor in _tensors(model):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        dtype = tensor.dtype.name.lower()
        size = stored_bytes(tensor)
        by_dtype[dtype] += size
        listed.append((size, name, dtype, list(tensor.shape.numpy())))
    listed.sort(key=lambda item: (-item[0], item[1]))
    total = sum(by_dtype.values())
    return {
        "weights": total,
        "graph": max(file_bytes - total, 0),
        "metadata": _text_bytes(model),
        "by_dtype": dict(sorted(by_dtype.items(), key=lambda item: (-item[1], item[0]))),
        "by_initializer": [
            {"name": name, "dtype": dtype, "dims": dims, "bytes": size}
            for size, name, dtype, dims in listed[:_LISTED]
        ],
        "others": sum(item[0] for item in listed[_LISTED:]),
        "dead": [{"name": name, "bytes": size} for name, size in dead(model).items()],
    }


def _text_bytes(model: Model) -> int:
    """Return the bytes of docs and metadata of the model, its graphs, nodes, values and initializers."""

    def things() -> Iterator[oir.Model | oir.Graph | oir.Node | oir.Value | oir.TensorProtocol]:
        yield model.store
        for graph in model.graphs():
            yield graph
            yield from graph.inputs
            for value in graph.initializers.values():
                if not value.is_graph_input():
                    yield value
                if value.const_value is not None:
                    yield value.const_value
            for node in graph:
                yield node
                yield from node.outputs

    total = 0
    for thing in things():
        total += len((thing.doc_string or "").encode())
        total += sum(len(key.encode()) + len(text.encode()) for key, text in peek_props(thing).items())
    return total


def dead(model: Model) -> dict[str, int]:
    """Return the bytes of initializers of all graphs that nothing reads, by name; inputs do not count."""
    from graphopt.ir.tensors import stored_bytes

    return {
        value.name or "": stored_bytes(value.const_value)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
        and not value.uses()
        and not value.is_graph_output()
        and not value.is_graph_input()
    }


def check_dead(before: dict[str, int], model: Model) -> None:
    """Refuse a result that holds initializers which a pass left behind without a reader.

    Args:
        before: What :func:`dead` said of the input.
        model: The result.

    Raises:
        VerifyError: It holds some of 1 KiB or more that the input did not.
    """
    left = {
        name: size for name, size in dead(model).items() if name not in before and size >= _DEAD_FROM_BYTES
    }
    if left:
        name = next(iter(left))
        raise VerifyError(
            f"{len(left)} initializers of {sum(left.values())} bytes are stored and never read",
            where=f"initializer {name!r}",
            hint="Put eliminate-dead last; the pass that left them behind should have removed them.",
        )


def _tensors(model: Model) -> Iterator[tuple[str, oir.TensorProtocol]]:
    from graphopt.ir.tensors import constant_of

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name or "", value.const_value
        for node in graph:
            if node.op_type == "Constant" and node.domain in {"", "ai.onnx"}:
                tensor = constant_of(node.outputs[0])
                if tensor is not None:
                    yield node.outputs[0].name or "", tensor
