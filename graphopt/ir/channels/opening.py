"""Open dims: the analysis works on numbers, so it needs sizes for dims that the model leaves open.

Any sizes will do that the model accepts: labels never move to an open dim, and a cut leaves it open. A
network may ask for a height that five poolings halve, or bake in a batch of one; so a few sizes are tried.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir.infos import dim_name
from graphopt.ir.shapes import infer_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes

# (size of the first dim of an input, size of all others): images of 64 and sequences of 16 suit most; 576 and
# 512 are frames of speech at 16 kHz.
_SIZES = ((2, 64), (1, 64), (2, 16), (1, 16), (1, 224), (1, 576), (1, 512), (1, 320), (1, 1))


def bind_open_dims(model: Model, shapes: Shapes | None, dims: Mapping[str, int]) -> tuple[Shapes, Shapes]:
    """Return the shapes of *model* with open dims as symbols, and with a size for each of them."""
    symbolic = shapes if shapes is not None else infer_shapes(model)
    open_names, unnamed = _open_dims(model)
    if not open_names and not unnamed:
        return symbolic, symbolic
    best: tuple[int, Shapes] | None = None
    for first, other in _SIZES:
        sizes = {name: first if leading else other for name, leading in open_names.items()}
        sizes.update(dims)
        found = infer_shapes(model, sizes, unbound=other)
        wrong = _misfits(model, found)
        if best is None or wrong < best[0]:
            best = (wrong, found)
        if not wrong:
            break
    assert best is not None
    return symbolic, best[1]


def _open_dims(model: Model) -> tuple[dict[str, bool], bool]:
    """Return, by name, if an open dim is only ever the first of an input; and if any has no name."""
    names: dict[str, bool] = {}
    unnamed = False
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, oir.SymbolicDim):
                name = dim_name(dim)
                if name is None:
                    unnamed = True
                else:
                    names[name] = names.get(name, True) and axis == 0
    return names, unnamed


def _misfits(model: Model, shapes: Shapes) -> int:
    """Return how many nodes do not work with the sizes that were assumed."""
    wrong = len(shapes.errors)
    for node in model.nodes():
        if node.op_type not in {"Reshape", "Expand", "Add", "Concat", "Conv", "MatMul", "Gemm"}:
            continue
        result = shapes.static_shape(node.outputs[0])
        if result is None or min(result, default=1) <= 0:
            wrong += result is not None or node.op_type != "Concat"
        elif node.op_type == "Reshape":
            data = shapes.static_shape(node.inputs[0])
            wrong += data is not None and math.prod(data) != math.prod(result)
    return wrong
