"""The work of quantize-dynamic."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.api import Report
from graphopt.ir.rewrite import add_initializer, attribute, input_at, is_op, make_node, replace_node
from graphopt.ir.semantics import WeightRole
from graphopt.ir.shapes import Shapes
from graphopt.ir.stream import is_finite
from graphopt.ir.tensors import from_array, to_array
from graphopt.passes.weights import places, recipes
from graphopt.passes.weights.grid import Grid
from graphopt.passes.weights.unpack import MICROSOFT, Unpacker

if TYPE_CHECKING:
    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.ir.tensors import Array
    from graphopt.passes.weights.places import Weight

_EVERYTHING = ("MatMul", "Gemm", "LSTM")
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_MIN_TABLE = 4096
"""Elements of the smallest table that is stored as codes: it saves bytes, and no time."""
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "DeformConv"})


class Dynamic:
    """One run over one model."""

    def __init__(
        self,
        model: Model,
        context: Context,
        *,
        reduce_range: bool,
        min_elements: int | None,
        tables: bool,
        keep: tuple[str, ...],
    ) -> None:
        self._model = model
        self._context = context
        self._rules = context.target.dynamic
        self._grid = Grid(7 if reduce_range else 8)
        self._min_elements = min_elements
        self._tables = tables
        self._keep = keep
        self._counts: Counter[str] = Counter()
        self._skipped: list[tuple[str, str]] = []
        self._quantizers: set[oir.Node] = set()
        self._recurrent_codes: dict[oir.Value, list[oir.Value]] = {}
        found = context.analysis("shapes")
        assert isinstance(found, Shapes)
        self._shapes = found

    def run(self) -> Report:
        """Rewrite everything that pays."""
        found = places.weights(self._model, self._skipped, min_elements=1, keep=self._keep)
        if not found and not self._skipped:
            self._skipped.append(("model", "no operator reads a stored float weight of two dims or more"))
        recurrent: dict[oir.Node, None] = {}
        for done, weight in enumerate(found):
            self._context.progress(done, len(found))
            stacked = [use.node for use in weight.uses if use.node.op_type in _RECURRENT]
            if stacked:
                recurrent.update(dict.fromkeys(stacked))
            else:
                self._weight(weight)
        for node in recurrent:
            self._recurrent(node)
        return Report(
            changed=bool(self._counts),
            counts=dict(sorted(self._counts.items())),
            skipped=tuple(self._skipped),
        )

    def _weight(self, weight: Weight) -> None:
        ops = self._rules.ops if self._rules is not None else _EVERYTHING
        layouts = [places.product_layout(weight, use, ops) for use in weight.uses]
        plain = [layout for layout in layouts if not isinstance(layout, str)]
        if len(plain) < len(layouts) or len(set(plain)) != 1 or len(weight.uses) < len(weight.value.uses()):
            if self._tables and places.gathers_rows(weight):
                self._table(weight)
            else:
                self._skipped.append((weight.name, self._why_no_product(weight, layouts)))
            return
        reason = self._why_slower(weight)
        if reason:
            self._skipped.append((weight.name, reason))
            return
        if not is_finite(weight.tensor):
            self._skipped.append((weight.name, "it holds NaN or infinities"))
            return
        rows, columns, turned = plain[0]
        codes = recipes.by_column(weight.tensor, rows, columns, self._grid, turned=turned)
        unpacker = Unpacker(self._model, weight)
        stored = unpacker.stored(codes)
        for use in weight.uses:
            self._product(use.node, stored)
        unpacker.drop()
        self._counts["products"] += len(weight.uses)

    def _why_no_product(self, weight: Weight, layouts: list[tuple[int, int, bool] | str]) -> str:
        for use in weight.uses:
            factor = self._rules.never.get(use.node.op_type) if self._rules is not None else None
            if factor is not None:
                return (
                    f"{use.node.op_type} would run at {factor} of fp32's speed on {self._context.target.name}"
                )
            if use.node.op_type in _CONVOLUTIONS:
                return f"{use.node.op_type} is not quantised as it runs"
        if any(use.role is WeightRole.TABLE for use in weight.uses) and not self._tables:
            return "tables=false"
        return next((layout for layout in layouts if isinstance(layout, str)), "its readers differ")

    def _why_slower(self, weight: Weight) -> str:
        """Return why codes would not be faster on the target; "" where they are."""
        least = self._min_elements
        if least is None:
            if self._rules is None:
                return ""
            least = self._rules.min_elements
            if all(self._rows(use.node) >= self._rules.many_rows for use in weight.uses):
                least = self._rules.min_elements_many_rows
        if weight.size >= least:
            return ""
        target = self._context.target.name
        return f"{weight.size} elements are no faster as codes on {target}; from {least} on they are"

    def _rows(self, node: oir.Node) -> int:
        """Return how many rows are multiplied at a time, as far as is known; at least 1."""
        shape = self._shapes.shape(node.inputs[0])
        return math.prod(dim for dim in shape[:-1] if isinstance(dim, int)) if shape else 1

    def _product(self, node: oir.Node, stored: list[oir.Value]) -> None:
        graph = node.graph
        assert graph is not None
        source = node.inputs[0]
        assert source is not None
        codes, scale, zero = self._quantized(source, graph).outputs
        name = node.name or node.outputs[0].name or "product"
        product = make_node(
            self._model, "MatMulInteger", [codes, stored[0], zero], name=f"{name}_integer", replaces=[node]
        )
        cast = make_node(
            self._model,
            "Cast",
            product.outputs,
            attributes={"to": int(oir.DataType.FLOAT)},
            name=f"{name}_cast",
        )
        scales = make_node(self._model, "Mul", [scale, stored[1]], name=f"{name}_scales")
        for new in (product, cast, scales):
            graph.insert_before(node, new)
        last = make_node(self._model, "Mul", [cast.outputs[0], scales.outputs[0]], replaces=[node])
        bias = input_at(node, 2) if node.op_type == "Gemm" else None
        if bias is not None:
            graph.insert_before(node, last)
            last = make_node(self._model, "Add", [last.outputs[0], bias], name=f"{name}_bias")
        replace_node(self._model, node, last)

    def _quantized(self, source: oir.Value, graph: oir.Graph) -> oir.Node:
        """Return the node of *graph* that quantises *source*, one for all products that read it there."""
        for reader in source.consumers():
            if reader in self._quantizers and reader.graph is graph:
                return reader
        node = make_node(
            self._model, "DynamicQuantizeLinear", [source], outputs=3, name=f"{source.name}_quantize"
        )
        # Weights come in the order of the file: a product that comes later may stand before this one.
        producer = source.producer()
        if producer is not None and producer.graph is graph:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(graph[0], node)
        self._quantizers.add(node)
        return node

    def _table(self, weight: Weight) -> None:
        least = self._min_elements or _MIN_TABLE
        if weight.size < least:
            self._skipped.append((weight.name, f"a table of {weight.size} elements, fewer than {least}"))
            return
        if not is_finite(weight.tensor):
            self._skipped.append((weight.name, "it holds NaN or infinities"))
            return
        lines, length = weight.dims
        codes = recipes.by_lines(weight.tensor, lines, length, Grid(8), length, weight.dims, (lines, 1))
        unpacker = Unpacker(self._model, weight)
        for use in weight.uses:
            unpacker.gather(codes, use)
        unpacker.drop()
        self._counts["tables"] += 1

    def _recurrent(self, node: oir.Node) -> None:
        name = node.name or node.outputs[0].name or node.op_type
        ops = self._rules.ops if self._rules is not None else _EVERYTHING
        weights = [input_at(node, 1), input_at(node, 2)]
        held = [None if value is None else _constant(value) for value in weights]
        reason = ""
        if not is_op(node, "LSTM") or "LSTM" not in ops:
            reason = (
                f"the runtime has no {node.op_type} with codes of 8 bits; quantize-weights makes it smaller"
            )
        elif any(tensor is None for tensor in held):
            reason = "its weights are not constants of float32"
        elif any(
            fnmatch.fnmatchcase(text, pattern)
            for text in (name, *(value.name or "" for value in weights if value is not None))
            for pattern in self._keep
        ):
            reason = "kept on request"
        elif not all(is_finite(tensor) for tensor in held if tensor is not None):
            reason = "its weights hold NaN or infinities"
        elif attribute(node, "layout", 0):
            reason = "it has layout=1"
        else:
            size = sum(math.prod(tensor.shape.numpy()) for tensor in held if tensor is not None)
            least = self._min_elements or (self._rules.min_elements if self._rules is not None else 1)
            if size < least:
                reason = f"{size} elements are no faster as codes on {self._context.target.name}"
        if reason:
            self._skipped.append((name, reason))
            return
        graph = node.graph
        assert graph is not None
        made: list[oir.Value] = []
        for tensor, value in zip(held, weights, strict=True):
            assert tensor is not None
            assert value is not None
            made += self._lstm_codes(tensor, value)
        w_codes, w_scale, w_zero, r_codes, r_scale, r_zero = made
        rest = [input_at(node, index) for index in range(3, 8)]
        kept = {
            key: item
            for key, item in node.attributes.items()
            if key in {"activation_alpha", "activation_beta", "activations", "clip", "direction",
                       "hidden_size", "input_forget"}
        }  # fmt: skip
        new = make_node(
            self._model,
            "DynamicQuantizeLSTM",
            [node.inputs[0], w_codes, r_codes, *rest, w_scale, w_zero, r_scale, r_zero],
            attributes=kept,
            domain=MICROSOFT,
            outputs=max(len(node.outputs), 1),
            replaces=[node],
        )
        self._model.opset_imports.setdefault(MICROSOFT, 1)
        replace_node(self._model, node, new)
        for value in weights:
            assert value is not None
            Unpacker(self._model, places.Weight(value, held[0], (), ())).drop()  # type: ignore[arg-type]  # not None
        self._counts["lstm"] += 1

    def _lstm_codes(self, tensor: oir.TensorProtocol, value: oir.Value) -> list[oir.Value]:
        """Return codes, scales and zero points of a recurrent weight as constants, once for all readers."""
        stored = self._recurrent_codes.get(value)
        if stored is None:
            assert value.graph is not None
            codes, scale = self._turned(to_array(tensor))
            zero = np.zeros(scale.shape, np.int8)
            stored = self._recurrent_codes[value] = [
                add_initializer(self._model, value.graph, f"{value.name}_{role}", from_array(array))
                for role, array in (("codes", codes), ("scale", scale), ("zero", zero))
            ]
        return stored

    def _turned(self, weight: Array) -> tuple[Array, Array]:
        """Return int8 [directions, inputs, gates] and a scale a gate of [directions, gates, inputs]."""
        scale, zero = self._grid.fit(weight.transpose(0, 2, 1).astype(np.float32))
        codes = self._grid.encode(weight.transpose(0, 2, 1).astype(np.float32), scale, zero)
        return np.ascontiguousarray(codes), scale


def _constant(value: oir.Value) -> oir.TensorProtocol | None:
    from graphopt.ir.tensors import constant_of

    tensor = constant_of(value)
    return tensor if tensor is not None and tensor.dtype == oir.DataType.FLOAT else None
