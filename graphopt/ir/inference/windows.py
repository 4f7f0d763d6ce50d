"""Spatial dims of convolutions and poolings over symbolic dims."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.inference.facts import Fact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.ir.inference.call import Call
    from graphopt.ir.inference.symbols import Dim, Symbols


def _window(call: Call) -> tuple[int, ...] | None:
    """Return the kernel's spatial extent, dilation included, of a convolution or pooling."""
    kernel = call.attributes.get("kernel_shape")
    if kernel is None:
        weight = call.at(1 if call.op_type == "Conv" else 3 if call.op_type == "QLinearConv" else 1)
        if weight is None or weight.shape is None:
            return None
        kernel = weight.shape[2:]
    if not all(isinstance(size, int) for size in kernel):
        return None
    dilations = call.attributes.get("dilations") or (1,) * len(kernel)
    return tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))


def refine_windows(call: Call, facts: Sequence[Fact]) -> Sequence[Fact]:
    """Give convolutions and poolings over symbolic dims the same symbol for the same window.

    onnx leaves each such dim unknown, and two branches of a residual block would seem to differ.
    """
    source = call.at(0)
    if call.op_type not in _WINDOWED or source is None or source.shape is None:
        return facts
    window, fact = _window(call), facts[0]
    if window is None or fact.shape is None:
        return facts
    if not len(fact.shape) == len(window) + 2 == len(source.shape):
        return facts
    auto = call.attributes.get("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if auto not in {"NOTSET", "VALID", ""}:
        return facts
    spatial = len(window)
    strides = call.attributes.get("strides") or (1,) * spatial
    pads = call.attributes.get("pads") if auto != "VALID" else None
    pads = pads or (0,) * (2 * spatial)
    shape, symbols = list(fact.shape), call.symbols
    for k in range(spatial):
        shape[k + 2] = _window_count(
            symbols,
            source.shape[k + 2],
            shape[k + 2],
            (pads[k], pads[k + spatial]),
            (window[k], strides[k]),
            ceil=bool(call.attributes.get("ceil_mode", 0)),
        )
    return [Fact(one.dtype, tuple(shape), type=one.type) for one in facts]


def _window_count(
    symbols: Symbols, dim: Dim, found: Dim, pads: tuple[int, int], window: tuple[int, int], *, ceil: bool
) -> Dim:
    """Return how many windows fit into *dim*: floor((dim + pads - extent) / stride) + 1.

    *found* is what onnx says. With *ceil*, a last window that would start in the padding is dropped by newer
    runtimes and kept by others, so nothing is claimed where the two differ.
    """
    extent, stride = window
    if ceil:
        if isinstance(dim, int) and isinstance(found, int) and (found - 1) * stride < dim + pads[0]:
            return found
        return symbols.memo(("ceil", dim, pads, window))
    if isinstance(dim, int):
        return found
    steps = symbols.floor_div(symbols.add(dim, sum(pads) - extent), stride)
    return found if steps is None else symbols.add(steps, 1)


_WINDOWED = frozenset({"Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool"})
