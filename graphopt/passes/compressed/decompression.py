"""Which stored codes a target fuses, and the edit that unpacks the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.api import Report
from graphopt.ir import rewrite, tensors
from graphopt.ir.dead import remove_unread
from graphopt.ir.dequantise import StoredCodes, dequantise, stored_codes
from graphopt.ir.quantised import is_clamp, is_dequantize, is_quantize, is_requantised, moves, wrapping
from graphopt.passes.cleanup.annotations import annotated_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.targets.dequantize import DequantizeRules


_REQUANTISED = (
    "it is not fused, but the activations of its reader are quantised: the runtime would quantise a float"
    " weight again, with one scale for all of it"
)


class Decompression:
    """One run of decompress-weights over a model.

    Args:
        model: What to change.
        rules: What the target fuses, which stays; None unpacks everything.
    """

    def __init__(self, model: Model, rules: DequantizeRules | None) -> None:
        self.model = model
        self.rules = rules
        self.annotated = annotated_names(model)
        # The value beside what it was made from: identities of tensors hold while these live.
        self.unpacked: dict[tuple[Any, ...], tuple[oir.Value, StoredCodes]] = {}
        self.skipped: list[tuple[str, str]] = []
        self.weights: list[dict[str, object]] = []
        self.unread: list[oir.Value | None] = []
        self.fused = 0

    def run(self) -> Report:
        """Unpack in graph order and report the bytes that it costs."""
        before = _constant_bytes(self.model)
        for node in [each for each in self.model.nodes() if is_dequantize(each)]:
            self.look_at(node)
        remove_unread(self.unread, keep=self.annotated)
        count = len(self.weights)
        added = _constant_bytes(self.model) - before
        counts = {"decompressed": count} if count else {}
        if added:  # a few codes with a scale and a zero point can take more than their floats
            counts["added_bytes" if added > 0 else "freed_bytes"] = abs(added)
        if self.fused:
            counts["kept_fused"] = self.fused
        return Report(
            changed=bool(count),
            counts=counts,
            skipped=tuple(self.skipped),
            extra={"weights": self.weights, "added_bytes": added} if count else {},
        )

    def look_at(self, node: oir.Node) -> None:
        """Unpack *node*, or note why not; one that unpacks an activation is not this pass's."""
        source = rewrite.input_at(node, 0)
        if source is None or (tensors.constant_of(source) is None and not tensors.is_overridable(source)):
            return
        where = f"{node.op_type} {node.name!r}"
        stored = stored_codes(node)
        if isinstance(stored, str):
            self.skipped.append((where, stored))
            return
        value = node.outputs[0]
        if value.is_graph_output():
            self.skipped.append((where, "what it gives is an output of the graph"))
            return
        if self.rules is not None and is_fused(node, stored, self.rules):
            self.fused += 1
            return
        if self.rules is not None and any(wrapping(reader) == "whole" for reader, _, _ in _readers(value)):
            # Found by reading back what onnxruntime 1.32 makes of a float weight between quantised
            # activations: 8 bits again, one scale for the whole weight (22 dB on mlperf_ic_resnet8_qdq).
            self.skipped.append((where, _REQUANTISED))
            return
        self.unpack(node, stored, where)

    def unpack(self, node: oir.Node, stored: StoredCodes, where: str) -> None:
        """Put the float weight where the codes are defined, once for all nodes that unpack them alike."""
        value, graph, home = node.outputs[0], node.graph, _home(node)
        name = value.name or node.name or "weight"
        parts = (stored.codes, stored.scale, stored.zero_point)
        key = (home, *map(id, parts), stored.axis, stored.block, stored.dtype)
        found = self.unpacked.get(key)
        float_bytes = 0
        if found is None:
            array = dequantise(stored)
            if not np.isfinite(array.astype(np.float32)).all():
                self.skipped.append((where, "what it unpacks is not finite"))
                return
            new = rewrite.add_initializer(self.model, home, name, tensors.from_array(array))
            self.unpacked[key] = (new, stored)
            float_bytes = array.nbytes
        else:
            new = found[0]
        self.unread += node.inputs
        rewrite.replace_value(self.model, value, new)
        rewrite.remove_node(node)
        if found is None and home is graph:
            # The weight goes by the name that its readers know; in another graph others may have it too.
            value.name = self.model.fresh_name(f"{name}_replaced")
            new.name = name
        self.weights.append({
            "node": node.name,
            "value": name,
            "codes": stored.codes.dtype.name.lower(),
            "codes_bytes": tensors.nbytes(stored.codes),
            "float_bytes": float_bytes,
        })  # fmt: skip


def _home(node: oir.Node) -> oir.Graph:
    """Return the graph in which the codes that *node* unpacks are defined."""
    source = rewrite.input_at(node, 0)
    graph = None if source is None else source.graph
    found = node.graph if graph is None else graph
    assert found is not None
    return found


def is_fused(node: oir.Node, stored: StoredCodes, rules: DequantizeRules) -> bool:
    """Return whether the runtime spends no time of its own on the DequantizeLinear *node*."""
    if rules.unpacked_once:
        return True
    readers = list(_readers(node.outputs[0]))
    if not readers:
        return False
    dtype = stored.codes.dtype.name.lower()
    if all(_fused_statically(reader, rules) for reader, _, _ in readers) and dtype in rules.static_dtypes:
        return True
    if len(readers) > 1 or dtype not in rules.weight_only_dtypes:
        return False
    (reader, index, moved) = readers[0]
    if moved or index != 1 or reader.op_type not in rules.weight_only_ops or len(stored.shape) != 2:
        return False
    if rewrite.attribute(reader, "transB", 0) or wrapping(reader) != "weight":
        return False
    if stored.block:
        power = stored.block & (stored.block - 1) == 0
        return stored.axis == 0 and power and stored.block >= rules.min_block
    return stored.scale.size == 1 or stored.axis == 1


def _readers(value: oir.Value) -> Iterator[tuple[oir.Node, int, bool]]:
    """Yield (node, input, whether elements are moved on the way) for each reader that computes."""
    for user, index in value.uses():
        if moves(user) and index == 0:
            for reader, place, _ in _readers(user.outputs[0]):
                yield reader, place, True
        else:
            yield user, index, False


def _fused_statically(node: oir.Node, rules: DequantizeRules) -> bool:
    """Return whether a node that is quantised on all sides becomes an integer kernel."""
    if node.op_type not in rules.static_ops or wrapping(node) != "whole":
        return False
    users = [user for value in node.outputs for user in value.consumers()]
    if not is_requantised(node):
        # The runtime fuses MatMul and Add to Gemm first, whose bias is then no integer.
        return node.op_type in rules.open_ops and not any(user.op_type == "Add" for user in users)
    return all(_absorbed(user) for user in users if is_clamp(user))


def _absorbed(clamp: oir.Node) -> bool:
    """Return whether the codes behind a Relu begin at 0, so that it is no node of its own."""
    if clamp.op_type != "Relu":
        return True
    for user in clamp.outputs[0].consumers():
        zero = rewrite.input_at(user, 2) if is_quantize(user) else None
        lowest = tensors.constant_of(zero)
        if zero is None or lowest is None:
            return zero is None  # uint8 with a zero point of 0
        array = tensors.to_array(lowest)
        if array.dtype.kind not in "iu" or not (array == np.iinfo(array.dtype).min).all():
            return False
    return True


def _constant_bytes(model: Model) -> int:
    """Return the bytes of all constants, as they stand in the file."""
    total = 0
    for graph in model.graphs():
        total += sum(
            tensors.nbytes(value.const_value)
            for value in graph.initializers.values()
            if value.const_value is not None
        )
        for node in graph:
            if node.op_type == "Constant" and (tensor := tensors.constant_of(node.outputs[0])) is not None:
                total += tensors.nbytes(tensor)
    return total
