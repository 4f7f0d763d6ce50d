"""From a placement to nodes: quantisers, stored codes and biases, and Gemm for MatMul and Add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir.dequantise import stored_codes
from graphopt.ir.quantised import is_dequantize
from graphopt.ir.rewrite import (
    add_initializer,
    is_op,
    is_unused,
    make_node,
    remove_nodes,
    replace_value,
)
from graphopt.ir.tensors import constant_of, to_array
from graphopt.passes.quantize.candidates import floats_of
from graphopt.passes.quantize.grid import CODE_RANGES, Codes, Grid, activation_grid, bias_codes, weight_codes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.quantize.candidates import Compute
    from graphopt.passes.quantize.feedback import Feedback
    from graphopt.passes.quantize.placement import Link, Placement
    from graphopt.passes.quantize.settings import Settings


class Emitter:
    """Writes one placement into a model.

    Args:
        model: The model; changed in place.
        shapes: Its shapes before the change.
        grids: The grid of every quantised value.
        settings: Types and forms of codes.
        feedback: What rounds weights anew; by default they are rounded to nearest.

    Attributes:
        counts: What was written, by kind.
        raised: Nodes some of whose weight scales were raised so that the bias fits int32.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        grids: Mapping[oir.Value, Grid],
        settings: Settings,
        feedback: Feedback | None = None,
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.grids = grids
        self.settings = settings
        self.feedback = feedback
        self.counts: dict[str, int] = {}
        self.raised: list[str] = []
        self._scalars: dict[tuple[int, Grid], tuple[oir.Value, oir.Value]] = {}
        self._weights: dict[tuple[object, ...], oir.Value] = {}
        self._biases: dict[tuple[object, ...], oir.Value] = {}
        self._flat: dict[oir.Value, oir.Value] = {}
        self._dequantised: dict[oir.Value, oir.Value] = {}
        self._touched: dict[oir.Value, None] = {}

    def run(self, placement: Placement) -> None:
        """Write everything; values first, so that nodes find the codes of what they read."""
        readers = {each.node for each in placement.computes} | {link.node for link in placement.links}
        shared = {value for value in placement.values if not self._is_flattened_only(value, placement)}
        for value in placement.values:
            if value in shared:
                self._quantise(value, readers, whole=value in placement.whole)
        for link in placement.links:
            self._constants(link)
        for each in placement.computes:
            self._compute(each)
        self._sweep()
        self.counts["quantised_nodes"] = len(placement.computes)
        self.counts["chain_nodes"] = len(placement.links)

    def _is_flattened_only(self, value: oir.Value, placement: Placement) -> bool:
        """Return whether only MatMuls that become Gemms read the codes of *value*, which are made flat."""
        if value in placement.whole or any(value in link.inputs for link in placement.links):
            return False
        users = [each for each in placement.computes if each.data is value]
        return bool(users) and all(self._needs_flat(each) for each in users)

    def _needs_flat(self, each: Compute) -> bool:
        return each.adder is not None and self.shapes.rank(each.data) != 2

    def _quantise(self, value: oir.Value, readers: set[oir.Node], *, whole: bool) -> None:
        uses = [(user, index) for user, index in value.uses() if whole or user in readers]
        before = value
        output = self._pair(value, self.grids[value])
        quantizer = next(user for user in value.consumers() if user.op_type == "QuantizeLinear")
        if whole and value.is_graph_output():
            replace_value(self.model, value, output)
            quantizer.replace_input_with(0, before)
        else:
            for user, index in uses:
                user.replace_input_with(index, output)
        self._dequantised[value] = output

    def _pair(self, value: oir.Value, grid: Grid) -> oir.Value:
        """Put QuantizeLinear and DequantizeLinear behind *value* and return what comes out."""
        graph = value.graph
        assert graph is not None
        scale, zero_point = self._grid_values(graph, grid)
        quantizer = make_node(
            self.model, "QuantizeLinear", [value, scale, zero_point], name=f"{value.name}_quantize",
            domain=self.settings.domain, outputs=[f"{value.name}_codes"],
        )  # fmt: skip
        dequantizer = make_node(
            self.model, "DequantizeLinear", [quantizer.outputs[0], scale, zero_point],
            name=f"{value.name}_dequantize", domain=self.settings.domain,
            outputs=[f"{value.name}_dequantized"],
        )  # fmt: skip
        for node, dtype in ((quantizer, oir.DataType[grid.dtype.upper()]), (dequantizer, oir.DataType.FLOAT)):
            node.outputs[0].type = oir.TensorType(dtype)
            node.outputs[0].shape = None if value.shape is None else value.shape.copy()
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, [quantizer, dequantizer])
        elif len(graph):
            graph.insert_before(graph[0], [quantizer, dequantizer])
        else:
            graph.extend([quantizer, dequantizer])
        self._count("quantised_values")
        return dequantizer.outputs[0]

    def _grid_values(self, graph: oir.Graph, grid: Grid) -> tuple[oir.Value, oir.Value]:
        # Rank 0: one element of rank 1 passes the checker and is refused by the kernels of QLinearAdd.
        key = (id(graph), grid)
        if key not in self._scalars:
            self._scalars[key] = (
                add_initializer(self.model, graph, "quantize_scale", np.array(grid.scale, np.float32)),
                add_initializer(
                    self.model, graph, "quantize_zero_point", np.array(grid.zero_point, grid.dtype)
                ),
            )
        return self._scalars[key]

    def _constants(self, link: Link) -> None:
        """Store the constant operands of a link as codes."""
        for index, value in enumerate(link.node.inputs):
            if value is None or value not in link.inputs or constant_of(value) is None:
                continue
            array = floats_of(value)
            assert array is not None
            grid = activation_grid(
                float(array.min(initial=0.0)), float(array.max(initial=0.0)),
                self.settings.activation_dtype, symmetric=self.settings.symmetric_activations,
            )  # fmt: skip
            low, last = CODE_RANGES[grid.dtype]
            codes = np.clip(np.rint(array / np.float32(grid.scale)) + grid.zero_point, low, last)
            scalar = Codes(
                np.asarray(codes, grid.dtype), np.array(grid.scale, np.float32),
                np.array(grid.zero_point, grid.dtype), None,
            )  # fmt: skip
            link.node.replace_input_with(index, self._stored(value, scalar, link.node))
            self._touched[value] = None

    def _compute(self, each: Compute) -> None:
        settings, node = self.settings, each.node
        grid = self.grids[each.data]
        weight = floats_of(each.weight)
        assert weight is not None
        bias = None if each.bias is None else floats_of(each.bias)
        channels = weight.shape[each.channel_axis] if each.channel_axis is not None else 1
        if bias is not None:
            bias = bias.reshape(-1)
            if bias.size == 1 and channels > 1:
                bias = np.repeat(bias, channels)
        axis = each.channel_axis if settings.per_channel else None
        with_bias = bias is not None and settings.quantize_bias
        codes = self._existing(each, axis)
        if codes is None:
            codes = weight_codes(
                weight, axis, settings.weight_dtype, symmetric=settings.symmetric_weights,
                bias=bias if with_bias else None, input_scale=grid.scale, reduce_range=settings.reduce_range,
            )  # fmt: skip
            if self.feedback is not None:
                codes = self.feedback.apply(each, weight, codes)
        if codes.saturated:
            self.raised.append(each.label)
        weight_value = self._stored(each.weight, codes, node)
        self._touched[each.weight] = None
        bias_value = each.bias
        if bias is not None and with_bias:
            assert each.bias is not None
            bias_value = self._stored_bias(each.bias, bias, grid, codes, node)
            self._touched[each.bias] = None
        if each.adder is not None:
            self._gemm(each, weight_value, bias_value, grid)
        else:
            node.replace_input_with(1, weight_value)
            if each.bias is not None:
                node.replace_input_with(2, bias_value)
        self._count(f"quantised_{each.kind}")

    def _existing(self, each: Compute, axis: int | None) -> Codes | None:
        """Return the codes of a weight that is stored as codes of the wanted form already."""
        producer = each.weight.producer()
        if not is_dequantize(producer):
            return None
        assert producer is not None
        stored = stored_codes(producer)
        if isinstance(stored, str) or stored.block:
            return None
        scales = to_array(stored.scale).astype(np.float32)
        single = scales.size == 1
        if (not single and stored.axis != axis) or to_array(stored.codes).dtype != self.settings.weight_dtype:
            return None
        zeros = np.zeros(scales.shape, self.settings.weight_dtype)
        if stored.zero_point is not None:
            zeros = to_array(stored.zero_point)
        if self.settings.symmetric_weights and np.any(zeros):
            return None
        if single:
            scales, zeros = scales.reshape(()), zeros.reshape(())
        return Codes(to_array(stored.codes), scales, zeros, None if single else axis)

    def _stored(self, value: oir.Value, codes: Codes, reader: oir.Node) -> oir.Value:
        """Return the DequantizeLinear of stored codes, one for all readers that want the same."""
        graph = reader.graph
        assert graph is not None
        key = (
            value,
            id(graph),
            codes.axis,
            codes.codes.dtype.str,
            codes.scales.tobytes(),
            codes.zero_points.tobytes(),
        )
        if key not in self._weights:
            self._weights[key] = self._unpacked(value.name or "weight", codes, graph)
        return self._weights[key]

    def _unpacked(self, name: str, codes: Codes, graph: oir.Graph) -> oir.Value:
        inputs = [
            add_initializer(self.model, graph, f"{name}_quantized", codes.codes),
            add_initializer(self.model, graph, f"{name}_scale", codes.scales),
        ]
        if codes.codes.dtype != np.int32:
            inputs.append(add_initializer(self.model, graph, f"{name}_zero_point", codes.zero_points))
        attributes: dict[str, Any] = {} if codes.axis is None else {"axis": codes.axis}
        node = make_node(
            self.model, "DequantizeLinear", inputs, attributes=attributes, domain=self.settings.domain,
            name=f"{name}_dequantize", outputs=[f"{name}_dequantized"],
        )  # fmt: skip
        node.outputs[0].type = oir.TensorType(oir.DataType.FLOAT)
        node.outputs[0].shape = oir.Shape(codes.codes.shape)
        if len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        return node.outputs[0]

    def _stored_bias(
        self, value: oir.Value, bias: np.ndarray[Any, Any], grid: Grid, weight: Codes, reader: oir.Node
    ) -> oir.Value:
        graph = reader.graph
        assert graph is not None
        key = (value, id(graph), grid.scale, weight.scales.tobytes())
        if key not in self._biases:
            codes, scales = bias_codes(bias, grid.scale, weight)
            axis = None if scales.ndim == 0 else 0
            packed = Codes(codes, scales, np.zeros(scales.shape, np.int32), axis)
            self._biases[key] = self._unpacked(value.name or "bias", packed, graph)
        return self._biases[key]

    def _gemm(self, each: Compute, weight: oir.Value, bias: oir.Value | None, grid: Grid) -> None:
        """Write MatMul and Add as one Gemm: apart, the runtime fuses them into a float Gemm at 0.53x."""
        node, adder = each.node, each.adder
        assert adder is not None
        graph = node.graph
        assert graph is not None
        data = self._dequantised.get(each.data, each.data)
        flat = self._needs_flat(each)
        if flat:
            data = self._flattened(each, data, grid)
        gemm = make_node(
            self.model, "Gemm", [data, weight, bias], name=node.name or "", replaces=[node, adder],
        )  # fmt: skip
        gemm.outputs[0].type = oir.TensorType(oir.DataType.FLOAT)
        graph.insert_before(adder, gemm)
        result = gemm.outputs[0]
        if flat:
            result = self._unflattened(each, result, adder)
        else:
            result.shape = None if adder.outputs[0].shape is None else adder.outputs[0].shape.copy()
        before = adder.outputs[0]
        replace_value(self.model, before, result)
        remove_nodes([adder, node])
        if not result.is_graph_output():  # those have taken over the name already
            result.name, before.name = before.name, None
        self._count("matmul_to_gemm")

    def _flattened(self, each: Compute, data: oir.Value, grid: Grid) -> oir.Value:
        """Return the codes of [..., K] as [rows, K]."""
        if each.data not in self._flat:
            graph = each.data.graph
            assert graph is not None
            weight = floats_of(each.weight)
            assert weight is not None
            shape = add_initializer(
                self.model, graph, f"{each.data.name}_rows", np.array([-1, weight.shape[0]], np.int64)
            )
            reshape = make_node(self.model, "Reshape", [data, shape], name=f"{each.data.name}_flatten")
            reshape.outputs[0].type = oir.TensorType(oir.DataType.FLOAT)
            source = data.producer()
            if source is not None and source.graph is graph:
                graph.insert_after(source, reshape)
            else:
                graph.insert_before(graph[0], reshape)
            self._flat[each.data] = self._pair(reshape.outputs[0], grid)
        return self._flat[each.data]

    def _unflattened(self, each: Compute, result: oir.Value, before: oir.Node) -> oir.Value:
        graph = before.graph
        assert graph is not None
        dims = self.shapes.shape(before.outputs[0])
        assert dims is not None
        unknown = [index for index, dim in enumerate(dims) if not isinstance(dim, int)]
        if len(unknown) <= 1:
            known = [dim if isinstance(dim, int) else -1 for dim in dims]
            shape = add_initializer(self.model, graph, "rows_shape", np.array(known, np.int64))
        else:
            sizes = make_node(self.model, "Shape", [each.data], name="rows_of")
            start, end = (
                add_initializer(self.model, graph, "rows_bound", np.array([number], np.int64))
                for number in (0, -1)
            )
            lead = make_node(self.model, "Slice", [sizes.outputs[0], start, end], name="rows_lead")
            last = add_initializer(self.model, graph, "rows_last", np.array([dims[-1]], np.int64))
            joined = make_node(
                self.model, "Concat", [lead.outputs[0], last], attributes={"axis": 0}, name="rows_shape"
            )
            graph.insert_before(before, [sizes, lead, joined])
            shape = joined.outputs[0]
        reshape = make_node(self.model, "Reshape", [result, shape], name=f"{before.name}_unflatten")
        reshape.outputs[0].type = oir.TensorType(oir.DataType.FLOAT)
        reshape.outputs[0].shape = None if before.outputs[0].shape is None else before.outputs[0].shape.copy()
        graph.insert_before(before, reshape)
        return reshape.outputs[0]

    def _sweep(self) -> None:
        """Remove the float weights that nothing reads any more, and the DequantizeLinear of replaced ones."""
        for value in self._touched:
            producer = value.producer()
            if producer is not None:
                if is_unused(value) and (is_dequantize(producer) or is_op(producer, "Constant")):
                    inputs = tuple(producer.inputs)  # a node that is removed lets go of them
                    remove_nodes([producer])
                    for inner in inputs:
                        self._drop(inner)
                continue
            self._drop(value)

    @staticmethod
    def _drop(value: oir.Value | None) -> None:
        if value is None or not value.is_initializer() or value.is_graph_input() or not is_unused(value):
            return
        graph = value.graph
        if graph is not None and value.name is not None and value.name in graph.initializers:
            del graph.initializers[value.name]

    def _count(self, key: str) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
