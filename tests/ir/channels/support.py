"""What tests of channels share: build a model, cut it, compare with the masked original on onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.channels import Channels, analyse, prepare
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.runtime.probe import run_node
from tests.passes.harness import run_feeds, session_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.ir import Model
    from graphopt.ir.channels import Mask

Shape = tuple[int | str, ...]
Built = tuple[onnx.ModelProto, dict[str, Any], list[dict[str, Any]]]
"""A model, a feed, and feeds of other open dims."""

GENERATOR = np.random.default_rng(7)


def draw(*shape: int) -> Any:
    """Return normally distributed numbers."""
    return GENERATOR.standard_normal(shape).astype(np.float32)


class Net:
    """A small model under construction; weights are seeded and differ from each other."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self.generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, *shape: int, name: str = "") -> str:
        return self.constant(self.generator.standard_normal(shape).astype(np.float32), name)

    def constant(self, content: Any, name: str = "") -> str:
        name = name or f"c{len(self.initializers)}"
        array = np.asarray(content)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op_type: str, *inputs: str, outputs: int | Sequence[str] = 1, **attributes: Any) -> Any:
        start = len(self.nodes)
        names = [f"v{start}_{k}" for k in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"n{start}", **attributes))
        return names[0] if len(names) == 1 else names

    def conv(self, value: str, made: int, read: int, kernel: int = 3, **attributes: Any) -> str:
        pad = kernel // 2
        found: str = self.add(
            "Conv",
            value,
            self.weight(made, read, kernel, kernel),
            self.weight(made),
            pads=[pad] * 4,
            **attributes,
        )
        return found

    def linear(self, value: str, made: int, read: int) -> str:
        found: str = self.add("Add", self.add("MatMul", value, self.weight(read, made)), self.weight(made))
        return found

    def model(self, *outputs: str, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted({f.domain for f in functions})]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=10 if self.opset < 23 else 11, functions=functions
        )


def normalised(net: Net, value: str, width: int) -> str:
    """Add a LayerNormalization over the last dim."""
    found: str = net.add("LayerNormalization", value, net.weight(width), net.weight(width), axis=-1)
    return found


def half(channels: Channels, seed: int = 0, ratio: float = 0.5) -> dict[str, list[int]]:
    """Keep a random part of every family."""
    generator = np.random.default_rng(seed)
    return {
        family.name: sorted(
            generator.permutation(family.size)[: max(1, int(np.ceil(family.size * ratio)))].tolist()
        )
        for family in channels.families
    }


def with_masks(proto: onnx.ModelProto, masks: Sequence[Mask], ranks: Mapping[str, int]) -> onnx.ModelProto:
    """Multiply values and initializers of the main graph and of all bodies with their masks."""
    masked = onnx.ModelProto()
    masked.CopyFrom(proto)
    _mask_graph(masked.graph, masks, ranks, masked.graph)
    return masked


def _mask_graph(
    graph: onnx.GraphProto, masks: Sequence[Mask], ranks: Mapping[str, int], top: onnx.GraphProto
) -> None:
    for tensor in graph.initializer:
        for mask in masks:
            if mask.value == tensor.name:
                array = numpy_helper.to_array(tensor)
                shape = [1] * array.ndim
                shape[mask.axis] = len(mask.keep)
                content = (array * mask.keep.reshape(shape)).astype(array.dtype)
                tensor.CopyFrom(numpy_helper.from_array(content, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        for attribute in kept.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _mask_graph(attribute.g, masks, ranks, top)
        nodes.append(kept)
        for position, name in enumerate(list(kept.output)):
            own = [mask for mask in masks if mask.value == name]
            current = f"{name}__raw"
            if own:
                kept.output[position] = current
            for number, mask in enumerate(own):
                shape = [1] * ranks[name]
                shape[mask.axis] = len(mask.keep)
                content = mask.keep.reshape(shape).astype(np.float32)
                top.initializer.append(numpy_helper.from_array(content, f"{name}__mask{number}"))
                following = name if number == len(own) - 1 else f"{name}__masked{number}"
                nodes.append(helper.make_node("Mul", [current, f"{name}__mask{number}"], [following]))
                current = following
    del graph.node[:]
    graph.node.extend(nodes)


def ranks_of(model: Model, channels: Channels) -> dict[str, int]:
    return {
        value.name: len(channels.layout(value.name))
        for node in model.nodes()
        for value in node.outputs
        if value.name
    }


def error(expected: Any, got: Any) -> float:
    """Largest difference over the largest expected magnitude, over all outputs of the same shape."""
    worst = 0.0
    for name, one in expected.items():
        other = got[name]
        assert one.shape == other.shape, f"{name}: {other.shape} instead of {one.shape}"
        if one.size and one.dtype.kind == "f":
            scale = float(np.abs(one).max()) or 1.0
            worst = max(worst, float(np.abs(one.astype(np.float64) - other).max()) / scale)
        else:
            assert np.array_equal(one, other)
    return worst


def check_cut(
    proto: onnx.ModelProto,
    feeds: Mapping[str, Any],
    *,
    channels: Channels | None = None,
    kept: Mapping[str, Sequence[int]] | None = None,
    limit: float = 1e-5,
    others: Sequence[Mapping[str, Any]] = (),
    strict: bool = True,
    **options: Any,
) -> tuple[Model, Channels]:
    """Cut a model, by default half of every family, and hold it against the masked original.

    The cut model must pass the checker, run, differ from the original, and equal the masked original.

    Args:
        proto: The model.
        feeds: Inputs.
        channels: Its analysis, made here by default.
        kept: Units that stay, by family.
        limit: Largest relative error.
        others: Further feeds, of other open dims.
        strict: Let ONNX's own shape inference judge the cut model too; it does not know every operator.
        options: For :func:`analyse`.

    Returns:
        The cut model and the analysis.
    """
    model = lower(proto)
    found = analyse(model, **options) if channels is None else channels
    chosen = half(found) if kept is None else kept
    assert chosen, [(lock.where, lock.reason) for lock in found.locks]
    assert not found.approximate(chosen), "only exact units can be held against masks"
    cut = model.clone()
    found.cut(cut, chosen)
    emitted = emit(cut)
    if strict:
        onnx.shape_inference.infer_shapes(emitted, strict_mode=True)
    whole = model.clone()
    prepare(whole)
    masked = with_masks(emit(whole), found.masks(chosen), ranks_of(whole, found))
    for feed in (feeds, *others):
        expected, got = (
            run_feeds(session_for(masked), dict(feed)),
            run_feeds(session_for(emitted), dict(feed)),
        )
        dense = run_feeds(session_for(proto), dict(feed))
        assert error(expected, got) <= limit
        assert error(dense, got) > 1e-4, "the cut changes nothing, so that this shows nothing"
    return cut, found


def weights(model: Model) -> int:
    """Number of elements of all floating-point initializers of the main graph."""
    return sum(
        int(np.prod(value.const_value.shape.numpy()))
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    )


def probe(
    domain: str,
    op_type: str,
    opset: int,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any],
    outputs: int,
) -> list[Any]:
    """Run one operator on onnxruntime."""
    opsets = {"": opset if not domain else 21, **({domain: opset} if domain else {})}
    return run_node(op_type, inputs, domain=domain, opsets=opsets, attributes=attributes, outputs=outputs)
