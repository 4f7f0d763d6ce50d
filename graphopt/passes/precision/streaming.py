"""Weights as halves, over a stream: one that lies in a file is rounded block by block when it is written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.stream import Block, Matrix, Part, Recipe, produce, scan
from graphopt.passes.precision.types import HALVES, fits, to_half

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir.tensors import Array


def tensor_fits(tensor: oir.TensorProtocol, dtype: str) -> bool:
    """Return whether every finite element of a float *tensor* stays finite as *dtype*."""
    size = math.prod(tensor.shape.numpy())

    def inside(block: Block) -> bool:
        # Rounding keeps the order, so the extremes tell for all; where they are not finite each is looked at.
        ends = np.array([block.data.min(), block.data.max()])
        return fits(ends if np.isfinite(ends).all() else block.data, dtype)

    with np.errstate(invalid="ignore"):
        return not size or all(scan(Matrix(tensor, size, 1), inside))


def half_tensor(tensor: oir.TensorProtocol, dtype: str, name: str) -> oir.TensorProtocol:
    """Return a float *tensor* rounded to nearest, ties to even; lazy where it lies in a file.

    Args:
        tensor: What to round.
        dtype: "float16" or "bfloat16".
        name: Name of the result.
    """
    dims = tuple(tensor.shape.numpy())
    half = HALVES[dtype]

    def transform(block: Block) -> tuple[Array]:
        made = block.scratch.array("half", block.data.shape, half.numpy())
        return (to_half(block.data, dtype, out=made),)

    size = math.prod(dims)
    (made,) = produce(Recipe(Matrix(tensor, size, 1), (Part(half, dims, 2),), transform), (name,))
    return made
