"""Constants that are a transposed or reshaped other one: an embedding and the head that is tied to it."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir import tensors
from graphopt.passes.constants.expressions import Made

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as oir

    Array = npt.NDArray[Any]

_MAX_RANK = 4


class Ties:
    """Finds for each constant an earlier one that holds the same elements in another order of axes."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int, str, int], list[oir.Value]] = {}

    def find(self, value: oir.Value, array: Array) -> tuple[oir.Value, Made] | None:
        """Return the earlier constant and the expression of *value* in it; else remember *value*.

        Args:
            value: An initializer.
            array: What it holds.
        """
        bits = np.ascontiguousarray(array).view(np.dtype(f"u{array.dtype.itemsize}"))
        # A sum of the elements as integers does not depend on their order.
        total = int(bits.sum(dtype=np.uint64))
        key = (id(value.graph), bits.size, array.dtype.name, total)
        group = self._seen.setdefault(key, [])
        for other in group:
            tensor = tensors.constant_of(other)
            if tensor is None:
                continue
            source = tensors.to_array(tensor)
            made = _relation(other, source.view(bits.dtype), bits)
            if made is not None:
                return other, made
        group.append(value)
        return None


def _relation(other: oir.Value, source: Array, bits: Array) -> Made | None:
    shape = np.array(bits.shape, np.int64)
    if source.shape != bits.shape and (source.reshape(-1) == bits.reshape(-1)).all():
        return Made("Reshape", (other, shape))
    if source.ndim > _MAX_RANK:
        return None
    dims = tuple(size for size in bits.shape if size != 1)
    for axes in itertools.permutations(range(source.ndim)):
        turned = source.transpose(axes)
        if axes == tuple(range(source.ndim)):
            continue
        same_shape = turned.shape == bits.shape
        if not same_shape and tuple(size for size in turned.shape if size != 1) != dims:
            continue
        if math.prod(dims) and (turned.reshape(bits.shape) == bits).all():
            made = Made("Transpose", (other,), {"perm": list(axes)})
            return made if same_shape else Made("Reshape", (made, shape))
    return None
