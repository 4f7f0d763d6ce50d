"""Keep only what the clock pays for: each operator alone, whole against factorised, on the target."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir.model import Model
from graphopt.ir.rewrite import add_initializer, constant_array, make_node
from graphopt.ir.spill import Spill
from graphopt.passes.lowrank import rewrite
from graphopt.recover.linear import linear_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.api import Context
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.lowrank.candidates import Candidate, Rules
    from graphopt.passes.lowrank.choose import Chosen
    from graphopt.passes.lowrank.forms import Splitter
    from graphopt.recover.linear import Linear


def keep_what_pays(
    model: Model,
    dims: Shapes,
    candidates: Sequence[Candidate],
    chosen: Chosen,
    split: Callable[[Candidate], Splitter],
    rules: Rules,
    context: Context,
    min_gain: float,
    notes: list[str],
) -> Chosen:
    """Return *chosen* without the ways that do not save the time they should.

    Args:
        model: The model.
        dims: Its shapes, every dim a number.
        candidates: The operators.
        chosen: How each would be written.
        split: Reads the weight of one, to be cut.
        rules: What counts.
        context: Measures.
        min_gain: Least factor of time to save, beyond the noise of the measurement.
        notes: Takes a sentence where nothing can be measured.
    """
    if not context.can_measure:
        notes.append("nothing can be measured here: theory decides what pays")
        return chosen
    ways = list(chosen.ways)
    reasons = list(chosen.reasons)
    cost = chosen.cost
    for index, (candidate, way) in enumerate(zip(candidates, chosen.ways, strict=True)):
        if way is None:
            continue
        linear = candidate.linear
        before = alone(model, linear, dims)
        if isinstance(before, str):
            notes.append(f"{linear.where}: not measured: {before}")
            continue
        after = before.clone()
        copy = linear_of(list(after.graph)[-1])
        if isinstance(copy, str):
            notes.append(f"{linear.where}: not measured: {copy}")
            continue
        factors = split(candidate).cut(way.form, way.ranks)
        rewrite.put(after, rewrite.factorised(copy, factors, None, Spill()))
        found = context.latency(f"{linear.output}: {way.form} {way.ranks}", before, after)
        limit = (1.0 - found.noise_floor) / min_gain
        if found.ratio > limit:
            ways[index] = None
            reasons[index] = (
                f"{way.form} at {way.ranks} takes {found.ratio:.2f} of the time; expected {limit:.2f}"
            )
            cost += rules.full_cost(candidate.geometry) - way.cost
    return replace(chosen, ways=tuple(ways), reasons=tuple(reasons), cost=cost)


def alone(model: Model, linear: Linear, dims: Shapes) -> Model | str:
    """Return a model of the one operator that takes the inputs of *model*, or why there is none.

    Its activation is a constant plus zero times an element of the first input: of the right shape, and
    nothing that the runtime could compute beforehand.
    """
    node = linear.node
    shape = dims.static_shape(node.inputs[0])
    dtype = dims.dtype(node.inputs[0])
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if shape is None or dtype is None or 0 in shape:
        return "the shape of its input is unknown"
    kind = None if not inputs else dims.dtype(inputs[0])
    if kind is None or kind == oir.DataType.STRING or dims.shape(inputs[0]) is None:
        return "the model has no numeric input"
    copies = [
        oir.Value(name=value.name, type=value.type, shape=None if value.shape is None else value.shape.copy())
        for value in inputs
    ]
    graph = oir.Graph(copies, [], nodes=[], opset_imports=dict(model.opset_imports), name="alone")
    store = oir.Model(graph, ir_version=model.ir_version)
    small = Model(store)
    flat = add_initializer(small, graph, "flat", np.array([-1], np.int64))
    first = add_initializer(small, graph, "first", np.array([0], np.int64))
    zero = add_initializer(small, graph, "zero", np.zeros(1, dtype.numpy()))
    generator = np.random.default_rng(0)
    content = generator.standard_normal(shape).astype(np.float32).astype(dtype.numpy())
    activation = add_initializer(small, graph, "activation", content)
    constants = []
    for value in node.inputs[1:]:
        array = constant_array(value)
        name = "" if value is None else value.name or ""
        constants.append(None if array is None else add_initializer(small, graph, name or "constant", array))
    steps = [make_node(small, "Reshape", [copies[0], flat])]
    steps.append(make_node(small, "Gather", [steps[-1].outputs[0], first]))
    steps.append(make_node(small, "Cast", [steps[-1].outputs[0]], attributes={"to": int(dtype)}))
    steps.append(make_node(small, "Mul", [steps[-1].outputs[0], zero]))
    steps.append(make_node(small, "Add", [activation, steps[-1].outputs[0]]))
    source = [steps[-1].outputs[0], *constants]
    attributes = dict(node.attributes.items())
    steps.append(make_node(small, node.op_type, source, attributes=attributes, name=node.name or ""))
    graph.extend(steps)
    output = steps[-1].outputs[0]
    output.type = oir.TensorType(dtype)
    graph.outputs.append(output)
    return small
