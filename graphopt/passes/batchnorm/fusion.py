"""Find the per-channel maps behind each linear operator and fold them; say why the rest stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.api import Report
from graphopt.ir import rewrite, tensors
from graphopt.ir.dead import remove_unread
from graphopt.passes.batchnorm.affine import Affine, Place, Refusal, affine_of, check_inference
from graphopt.passes.batchnorm.linear import (
    LINEAR,
    Linear,
    copy_costs_bytes,
    fold_into,
    read_linear,
    successor,
)
from graphopt.passes.cleanup.annotations import annotated_names

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as oir

    from graphopt.ir import Model, Shapes

_TRANSPARENT = ("Identity", "Cast", "CastLike")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_SHIFTS = ("Add", "Sub")
_NODE_BYTES = 64
"""What a node takes in a file at the least, with names and tags."""


class Fusion:
    """One run of fuse-batchnorm over a model."""

    def __init__(
        self,
        model: Model,
        shapes: Callable[[], Shapes],
        *,
        arithmetic: bool,
        before_conv: bool,
        copy_shared_weights: bool,
    ) -> None:
        self._model = model
        self._infer = shapes
        self._known: Shapes | None = None
        self._arithmetic = arithmetic
        self._before_conv = before_conv
        self._copy_shared_weights = copy_shared_weights
        self._opsets: dict[oir.Graph, int] = {}
        self._annotated = annotated_names(model)
        self._reasons: dict[oir.Node, str] = {}
        self._counts: dict[str, int] = {}

    def run(self) -> Report:
        """Fuse everything that can be fused."""
        self._read_opsets()
        for node in list(self._model.nodes()):
            if node.graph is not None and rewrite.is_op(node, *LINEAR) and self._is_followed(node):
                self._fuse_behind(node)
        if self._before_conv:
            for node in list(self._model.nodes()):
                if rewrite.is_op(node, "BatchNormalization") and self._fuse_before(node):
                    self._counts["fused_before_conv"] = self._counts.get("fused_before_conv", 0) + 1
        return Report(changed=bool(self._counts), counts=self._counts, skipped=self._skips())

    @property
    def _shapes(self) -> Shapes:
        if self._known is None:
            self._known = self._infer()
        return self._known

    def _read_opsets(self) -> None:
        main = self._model.opset
        self._opsets = dict.fromkeys((self._model.graph, *self._model.graph.subgraphs()), main)
        for function in self._model.functions.values():
            imports = function.opset_imports
            own = imports.get("", imports.get("ai.onnx", main))
            self._opsets.update(dict.fromkeys((function.graph, *function.subgraphs()), own))

    def _opset(self, node: oir.Node) -> int:
        assert node.graph is not None
        return self._opsets[node.graph]

    def _is_followed(self, node: oir.Node) -> bool:
        """Whether it is worth asking for shapes: some reader of *node* may be a per-channel map."""
        return any(
            rewrite.is_op(
                user, "BatchNormalization", *_TRANSPARENT, *(_ARITHMETIC if self._arithmetic else ())
            )
            for user in node.outputs[0].consumers()
        )

    def _fuse_behind(self, node: oir.Node) -> None:
        try:
            linear = read_linear(node, self._shapes)
        except Refusal as refusal:
            self._refuse(node.outputs[0].consumers(), str(refusal))
            return
        chain, affine = self._chain(linear)
        if not chain or not _is_worth_it(linear, chain):
            return
        try:
            self._check_copy(linear, chain, affine)
            self._fold(linear, chain, affine)
        except Refusal as refusal:
            self._refuse(chain, str(refusal))

    def _chain(self, linear: Linear) -> tuple[list[oir.Node], Affine]:
        """Return the maps that follow *linear* one behind the other, and what they come to together."""
        chain: list[oir.Node] = []
        affine = Affine.identity(linear.place.channels)
        results = [affine]
        value = linear.node.outputs[0]
        while True:
            user = _sole_user(value)
            if user is None:
                self._refuse(
                    value.consumers(), "others read what it normalises, or it is an output of the graph"
                )
                break
            if rewrite.is_op(user, *_ARITHMETIC) and not self._arithmetic:
                break
            try:
                step = affine_of(user, value, linear.place, self._shapes, self._opset(user))
            except Refusal as refusal:
                self._refuse([user], str(refusal))
                break
            if step is None or not (affine := affine.then(step)).is_finite:
                break
            chain.append(user)
            results.append(affine)
            value = user.outputs[0]
        while chain and rewrite.is_op(chain[-1], *_TRANSPARENT):
            chain.pop()
        return chain, results[len(chain)]

    def _check_copy(self, linear: Linear, chain: list[oir.Node], affine: Affine) -> None:
        cost = copy_costs_bytes(linear)
        if self._copy_shared_weights or not cost or (affine.scale == 1).all():
            return
        freed = sum(
            _NODE_BYTES + sum(_own_bytes(value) for value in node.inputs if value is not None)
            for node in chain
        )
        if cost > freed:
            raise Refusal(f"others read the weight too, and a copy takes {cost} bytes (copy_shared_weights)")

    def _fold(self, linear: Linear, chain: list[oir.Node], affine: Affine) -> None:
        released, bias = fold_into(self._model, linear, affine)
        last = chain[-1]
        result = linear.node.outputs[0]
        if not linear.holds_bias and bias.any():
            assert last.graph is not None
            constant = rewrite.add_initializer(self._model, last.graph, f"{linear.weight.name}_bias", bias)
            add = rewrite.make_node(self._model, "Add", [result, constant], replaces=chain)
            last.graph.insert_after(last, add)
            result = add.outputs[0]
        for node in chain:
            for key, text in node.metadata_props.items():
                linear.node.metadata_props.setdefault(key, text)
            released.extend(value for value in node.inputs if value is not linear.node.outputs[0])
        for value in (output for node in chain[:-1] for output in node.outputs):
            for user, index in value.uses():
                if _observes(user, value):
                    user.replace_input_with(index, linear.node.outputs[0])
        rewrite.replace_value(self._model, last.outputs[0], result)
        self._keep_meaning(linear.node.outputs[0], result, last.outputs[0])
        inner = {value for node in chain for value in node.outputs}
        rewrite.remove_nodes(chain)
        remove_unread((value for value in released if value not in inner), self._annotated)
        for node in chain:
            key = "batchnorms_fused" if node.op_type == "BatchNormalization" else "maps_fused"
            self._counts[key] = self._counts.get(key, 0) + 1

    def _keep_meaning(self, scaled: oir.Value, result: oir.Value, replaced: oir.Value) -> None:
        """Let names go on holding what they held: statistics of the model before are read by name."""
        if scaled is not result:
            scaled.name = self._model.fresh_name(f"{scaled.name}_scaled")
        if not result.is_graph_output():  # an output has taken its name over
            name = replaced.name
            replaced.name = self._model.fresh_name(f"{name}_fused")
            result.name = name

    def _fuse_before(self, node: oir.Node) -> bool:
        """Fold BatchNormalization *node* into the Conv that alone reads it; say why not."""
        conv = rewrite.sole_user(node.outputs[0])
        if conv is None or not rewrite.is_op(conv, "Conv") or conv.inputs[0] is not node.outputs[0]:
            return False
        try:
            _check_pads(conv)
            linear = read_linear(conv, self._shapes)
            affine = self._before(node, linear)
            self._check_copy(linear, [node], Affine(np.zeros(0), np.zeros(0)))
        except Refusal as refusal:
            self._reasons[node] = str(refusal)
            return False
        if affine is None:
            return False
        released = _fold_inputs(self._model, linear, affine)
        source = node.inputs[0]
        conv.replace_input_with(0, source)
        released.extend(node.inputs[1:])
        rewrite.remove_node(node)
        remove_unread(released, self._annotated)
        return True

    def _before(self, node: oir.Node, linear: Linear) -> Affine | None:
        weight = tensors.constant_of(linear.weight)
        assert weight is not None
        dims = [int(size) for size in weight.shape.numpy()]
        place = Place(dims[1] * linear.group, len(dims) - 1, len(dims))
        source = node.inputs[0]
        return None if source is None else affine_of(node, source, place, self._shapes, self._opset(node))

    def _refuse(self, nodes: Any, reason: str) -> None:  # noqa: ANN401 - any iterable of nodes
        for node in nodes:
            if rewrite.is_op(node, "BatchNormalization"):
                self._reasons.setdefault(node, reason)

    def _skips(self) -> tuple[tuple[str, str], ...]:
        skips = []
        for node in self._model.nodes():
            if not rewrite.is_op(node, "BatchNormalization"):
                continue
            name = f"BatchNormalization {node.name or node.outputs[0].name!r}"
            skips.append((name, self._reasons.get(node) or self._why_not(node)))
        return tuple(skips)

    def _why_not(self, node: oir.Node) -> str:
        try:
            check_inference(node, self._opset(node))
        except Refusal as refusal:
            return str(refusal)
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if producer is None:
            return "it follows an input of the graph"
        return f"it follows {producer.op_type}, which has no weights to fold it into"


def _sole_user(value: oir.Value) -> oir.Node | None:
    """Return the only node that reads the numbers of *value*, or None where others do.

    What asks for its type or shape only may as well ask the operator in front: neither changes.
    """
    if value.is_graph_output():
        return None
    readers = [node for node in value.consumers() if not _observes(node, value)]
    return readers[0] if len(readers) == 1 and readers[0].graph is value.graph else None


def _observes(node: oir.Node, value: oir.Value) -> bool:
    if rewrite.is_op(node, "Shape", "Size"):
        return True
    return rewrite.is_op(node, "CastLike") and node.inputs[0] is not value


def _own_bytes(value: oir.Value) -> int:
    tensor = tensors.constant_of(value)
    return tensors.nbytes(tensor) if tensor is not None and len(value.uses()) == 1 else 0


def _is_worth_it(linear: Linear, chain: list[oir.Node]) -> bool:
    """Whether folding *chain* removes a node, or a BatchNormalization at least."""
    if linear.holds_bias or len(chain) > 1:
        return True
    return not rewrite.is_op(chain[0], *_SHIFTS)


def _check_pads(conv: oir.Node) -> None:
    auto_pad = rewrite.attribute(conv, "auto_pad", "NOTSET")
    pads = rewrite.attribute(conv, "pads", ())
    if not (auto_pad == "VALID" or (auto_pad == "NOTSET" and not any(pads))):
        raise Refusal("the Conv behind it pads, and what it pads with is not normalised")


def _fold_inputs(model: Model, linear: Linear, affine: Affine) -> list[oir.Value | None]:
    """Make a Conv compute what it does of *affine* of its input; return what it no longer reads."""
    node, graph = linear.node, linear.node.graph
    tensor = tensors.constant_of(linear.weight)
    assert graph is not None and tensor is not None  # noqa: PT018 - one state, two facts
    weight = tensors.to_array(tensor)
    per_output = (linear.group, weight.shape[0] // linear.group, weight.shape[1])
    rest = (1,) * (weight.ndim - 2)

    def spread(vector: Any) -> Any:  # noqa: ANN401 - numpy arrays
        grouped = np.broadcast_to(vector.reshape(linear.group, 1, weight.shape[1]), per_output)
        return grouped.reshape(weight.shape[0], weight.shape[1], *rest)

    wide = weight.astype(np.float64)
    scaled = (wide * spread(affine.scale)).astype(weight.dtype)
    sums = (wide * spread(affine.shift)).sum(axis=tuple(range(1, weight.ndim)))
    bias = (linear.bias + sums).astype(weight.dtype)
    released = [linear.weight, rewrite.input_at(node, 2)]
    hint = f"{linear.weight.name}_bias"
    node.replace_input_with(1, successor(model, node, linear.weight, scaled))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, rewrite.add_initializer(model, graph, hint, bias))
    return released
