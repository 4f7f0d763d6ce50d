"""The models that the oracle compares: the original with masks, and with its constant weights made random."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import PassFailed
from graphopt.ir import tensors
from graphopt.ir.model import with_subgraphs
from graphopt.ir.rewrite import add_initializer, is_overridable, make_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt

    from graphopt.ir import Model

    Kept = Mapping[int, npt.NDArray[np.bool_]]
    """Which indices stay, by axis; axes that lose nothing are absent."""
    Operands = Mapping[int, Kept]
    """Which indices stay of input i of a node, and of its output -1 - i."""
    Mask = tuple[str, int, npt.NDArray[Any]]
    Describe = Callable[[str], tuple[int, oir.DataType]]
    """Rank and element type of a value, by its name."""

# Operators whose constant operands are weights, so that other numbers in their place are as good.
_TAKE_ANY_NUMBERS = frozenset({
    "Add", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Einsum", "GRU", "Gather", "Gemm",
    "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "Mul", "PRelu",
    "RMSNormalization", "RNN", "SkipLayerNormalization", "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Sub",
})  # fmt: skip


_PASS_ON = frozenset({"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def values_by_name(model: Model) -> dict[str, oir.Value]:
    """Return every value of the main graph and its bodies by name; names are unique there."""
    found: dict[str, oir.Value] = {}
    for graph in with_subgraphs(model.graph):
        for value in (*graph.inputs, *graph.initializers.values()):
            found.setdefault(value.name or "", value)
        for node in graph:
            for value in node.outputs:
                found.setdefault(value.name or "", value)
    found.pop("", None)
    return found


def randomise_constants(model: Model, seed: int) -> tuple[str, ...]:
    """Give every weight that is one number throughout varying ones, in place, and return the names.

    Zero-initialised heads and tiny layer scales hide what is pruned behind them; a test on such a model
    proves nothing. The numbers are positive for vectors (scales and variances must be), and of the size of
    a fan-in initialisation for matrices and kernels.
    """
    return _rewrite(model, lambda value, array: _varied(value, array, seed))


def shuffle_weights(model: Model, seed: int, *, signs: bool = False) -> tuple[str, ...]:
    """Put the elements of every weight into another order, in place; channels that were dead come alive.

    Args:
        model: What to change.
        seed: Which order.
        signs: Draw the signs of matrices and kernels too. Trained weights often have a mean below zero, and
            in any order such a net may be dead behind its Relus; with a mean of about zero it is not. Vectors
            keep theirs: scales and variances must be positive.
    """

    def shuffled(value: oir.Value, array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        flat, stream = array.reshape(-1), _stream(value, seed)
        moved: npt.NDArray[Any] = flat[stream.permutation(flat.size)].reshape(array.shape)
        if signs and not _is_vector(array):
            moved = moved * stream.choice([-1.0, 1.0], array.shape)
        return moved

    return _rewrite(model, shuffled)


def nudge_weights(model: Model, seed: int) -> tuple[str, ...]:
    """Change every weight by about a unit in the last place of float32, in place: what rounding does."""

    def nudged(value: oir.Value, array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        noise = _stream(value, seed).standard_normal(array.shape)
        return np.asarray(array * (1.0 + np.finfo(np.float32).eps * noise))

    return _rewrite(model, nudged)


def _rewrite(model: Model, change: Any) -> tuple[str, ...]:  # noqa: ANN401 - a function of value and array
    changed = []
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            if value.const_value is None or is_overridable(value) or not _takes_any_numbers(value):
                continue
            array = tensors.to_array(value.const_value)
            found = change(value, array)
            if found is not None:
                name = value.name or ""
                value.const_value = tensors.from_array(np.ascontiguousarray(found, array.dtype), name)
                changed.append(name)
    return tuple(changed)


def _takes_any_numbers(value: oir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in _FLOATS or tensor.size < 2 or value.is_graph_output():
        return False
    return _is_weight(value)


def _is_weight(value: oir.Value) -> bool:
    """Return whether all readers take *value* for a weight, also through nodes that only pass it on."""
    uses = value.uses()
    return bool(uses) and all(
        node.op_type in _TAKE_ANY_NUMBERS
        or (node.op_type in _PASS_ON and index == 0 and _is_weight(node.outputs[0]))
        for node, index in uses
    )


# A layer scale that hides its block: initialisations use 1e-6 and 1e-5.
_TINY = 1e-4

_FLOATS = frozenset({oir.DataType.FLOAT, oir.DataType.DOUBLE, oir.DataType.FLOAT16, oir.DataType.BFLOAT16})


def _varied(value: oir.Value, array: npt.NDArray[Any], seed: int) -> npt.NDArray[Any] | None:
    flat = array.reshape(-1)
    # max - min and not the deviation: that of equal float32 numbers need not come out as zero.
    lowest, highest = float(flat.min()), float(flat.max())
    if not np.isfinite(lowest + highest):
        return None
    vector = _is_vector(array)
    if highest - lowest != 0.0 and not (vector and max(highest, -lowest) <= _TINY):
        return None
    stream = _stream(value, seed)
    if vector:
        return stream.uniform(0.25, 1.0, array.shape)
    fan_in = max(1, array.size // array.shape[0])
    spread: npt.NDArray[Any] = stream.standard_normal(array.shape) / np.sqrt(fan_in)
    return spread


def _is_vector(array: npt.NDArray[Any]) -> bool:
    return bool(sum(dim > 1 for dim in array.shape) < 2)


def _stream(value: oir.Value, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32((value.name or "").encode())])


def mask_model(
    model: Model,
    masks: Iterable[Mask],
    compressed: Mapping[str, Operands],
    attributes: Mapping[str, Mapping[str, oir.Attr]],
    describe: Describe,
) -> None:
    """Make *model*, in place, compute what a cut of it should.

    Masks are multiplied onto activations; whoever reads one reads the product. A norm or a mean over fewer
    channels is not that over masked ones, so *compressed* nodes see only what is kept, and their outputs are
    spread over all indices again, with 0 where something is removed.

    Args:
        model: The model; values are found by name.
        masks: (value, axis, 0/1 of each index); a value may come several times.
        compressed: Nodes to run on what is kept, by the name of their first output.
        attributes: Attributes that the cut gives them (a number of groups).
        describe: Gives rank and element type of a value by its name.
    """
    values = values_by_name(model)
    nodes = []
    for name in compressed:
        node = _value(values, name).producer()
        if node is None:
            raise PassFailed("a node that is to run on what is kept is missing", where=f"value {name!r}")
        nodes.append((name, node))
    for name, axis, vector in masks:
        value = _value(values, name)
        factor = _factor(model, name, vector, axis, describe)
        _insert_behind(model, value, make_node(model, "Mul", [value, factor]))
    for name, node in nodes:
        _compress(model, node, compressed[name], attributes[name], describe)


def _compress(
    model: Model,
    node: oir.Node,
    operands: Operands,
    attributes: Mapping[str, oir.Attr],
    describe: Describe,
) -> None:
    """Let *node* see and give only kept indices."""
    graph = node.graph
    assert graph is not None
    for index in range(len(node.inputs)):
        for axis, stays in operands.get(index, {}).items():
            picked = add_initializer(model, model.graph, "oracle_kept", np.flatnonzero(stays))
            gather = make_node(model, "Gather", [node.inputs[index], picked], attributes={"axis": axis})
            graph.insert_before(node, gather)
            node.replace_input_with(index, gather.outputs[0])
    for name, attribute in attributes.items():
        node.attributes[name] = attribute
    for index, value in enumerate(node.outputs):
        end = value
        for axis, stays in operands.get(-1 - index, {}).items():
            places = np.maximum(np.cumsum(stays) - 1, 0)
            spread = add_initializer(model, model.graph, "oracle_places", places)
            gather = make_node(model, "Gather", [end, spread], attributes={"axis": axis})
            end = _insert_behind(model, end, gather)
            factor = _factor(model, value.name or "", stays, axis, describe)
            end = _insert_behind(model, end, make_node(model, "Mul", [end, factor]))
        # The name stands for what others read, all indices of it.
        value.name, end.name = end.name, value.name


def _value(values: Mapping[str, oir.Value], name: str) -> oir.Value:
    if name not in values:
        raise PassFailed("a value that is to be masked is missing", where=f"value {name!r}")
    return values[name]


def _factor(model: Model, name: str, vector: npt.NDArray[Any], axis: int, describe: Describe) -> oir.Value:
    rank, dtype = describe(name)
    content = np.asarray(vector).astype(dtype.numpy()).reshape(-1, *(1,) * (rank - 1 - axis % rank))
    return add_initializer(model, model.graph, f"{name}_mask", content)


def _insert_behind(model: Model, value: oir.Value, node: oir.Node) -> oir.Value:
    """Put *node*, which reads *value*, behind its definition; all other readers read the output of *node*."""
    readers = [(user, index) for user, index in value.uses() if user is not node]
    producer = value.producer()
    if producer is not None:
        assert producer.graph is not None
        producer.graph.insert_after(producer, node)
    else:
        graph = value.graph if value.graph is not None else model.graph
        graph.insert_before(graph[0], node)
    output = node.outputs[0]
    for user, index in readers:
        user.replace_input_with(index, output)
    return output
