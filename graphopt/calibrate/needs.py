"""What a pass wants to know about the values of a model: plain data that can be united and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as oir

    from graphopt.ir.shapes import Shapes


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """How a convolution slides over its input; all fields as ONNX defines them, one entry a spatial axis.

    Attributes:
        kernel: Size of the kernel.
        strides: Step between two positions.
        pads: Padding at the begin of every axis, then at the end of every axis; all zero with *auto_pad*.
        dilations: Step between two elements of the kernel.
        auto_pad: ``NOTSET``, ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``; the latter two are computed from
            the size of each feed.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    def __post_init__(self) -> None:
        rank = len(self.kernel)
        for name, default, length in (("strides", 1, rank), ("pads", 0, 2 * rank), ("dilations", 1, rank)):
            given = tuple(getattr(self, name)) or (default,) * length
            if len(given) != length:
                raise ValueError(f"{name} has {len(given)} entries, expected {length}")
            object.__setattr__(self, name, given)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that a linear operator multiplies with its weight, one row for every position it visits.

    Without a window the contracted axis is *axis* and all other axes are samples. With a window the value is
    [N, C, spatial...] and a row is the patch under the kernel, in the order C, kh, kw: that of
    ``W.reshape(M, -1)``; the groups of a grouped convolution are slices of it.

    Attributes:
        value: Name of the activation.
        axis: The contracted axis; of no meaning with a window.
        window: How a convolution slides.
    """

    value: str
    axis: int = -1
    window: Window | None = None

    @property
    def key(self) -> tuple[str, int, tuple[Any, ...]]:
        """What rows are sorted by."""
        window = self.window
        parts: tuple[Any, ...] = ()
        if window is not None:
            parts = (window.kernel, window.strides, window.pads, window.dilations, window.auto_pad)
        return (self.value, self.axis, parts)

    @staticmethod
    def of(node: oir.Node, input_index: int = 0, shapes: Shapes | None = None) -> Rows | None:
        """Return the rows that *node* sees of its input *input_index*, or None where it is not linear in it.

        Args:
            node: Conv, ConvTranspose, Gemm, MatMul, or LSTM, GRU, RNN (input 0), and FusedConv,
                FusedGemm of com.microsoft.
            input_index: Which input is the activation.
            shapes: Shapes of the model; needed where a Conv has no ``kernel_shape`` and its weight is no
                constant, or a MatMul's rank is not declared.
        """
        from graphopt.ir.rewrite import attribute, input_at
        from graphopt.ir.semantics import domain_of

        value = input_at(node, input_index)
        if value is None or not value.name or domain_of(node) not in {"", "com.microsoft"}:
            return None
        name = value.name
        match node.op_type, input_index:
            case (("Conv" | "FusedConv"), 0):
                kernel = attribute(node, "kernel_shape") or _kernel_of(input_at(node, 1), shapes)
                if kernel is None:
                    return None
                window = Window(
                    kernel=_ints(kernel),
                    strides=_ints(attribute(node, "strides", ())),
                    pads=_ints(attribute(node, "pads", ())),
                    dilations=_ints(attribute(node, "dilations", ())),
                    auto_pad=_text(attribute(node, "auto_pad", "NOTSET")),
                )
                return Rows(name, 1, window)
            case "ConvTranspose", 0:
                return Rows(name, 1)
            case (("Gemm" | "FusedGemm"), (0 | 1)):
                transposed = bool(attribute(node, "transB" if input_index else "transA", 0))
                return Rows(name, -1 if transposed == bool(input_index) else 0)
            case "MatMul", 0:
                return Rows(name, -1)
            case "MatMul", 1:
                rank = None if shapes is None else shapes.rank(value)
                if rank is None:
                    rank = None if value.shape is None else len(value.shape)
                return None if rank is None else Rows(name, -1 if rank == 1 else -2)
            case (("LSTM" | "GRU" | "RNN"), 0):
                return Rows(name, -1)
            case _:
                return None


def _ints(given: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(each) for each in given)


def _text(given: str | bytes) -> str:
    return given.decode() if isinstance(given, bytes) else given


def _kernel_of(weight: oir.Value | None, shapes: Shapes | None) -> tuple[int, ...] | None:
    if weight is None:
        return None
    dims: Any = None if shapes is None else shapes.static_shape(weight)
    if dims is None and weight.const_value is not None:
        dims = weight.const_value.shape.numpy()
    if dims is None and weight.shape is not None and weight.shape.is_static():
        dims = weight.shape.numpy()
    return None if dims is None else tuple(int(dim) for dim in dims[2:])


@dataclass(frozen=True, slots=True)
class Needs:
    """What statistics are wanted; united with ``|``.

    Attributes:
        ranges: Names of values whose distribution is wanted.
        channels: (name of a value, axis): moments of every channel along the axis.
        grams: Second moments of the rows that linear operators see.
    """

    ranges: frozenset[str] = frozenset()
    channels: frozenset[tuple[str, int]] = frozenset()
    grams: frozenset[Rows] = frozenset()

    def __post_init__(self) -> None:
        for name in ("ranges", "channels", "grams"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.ranges | other.ranges, self.channels | other.channels, self.grams | other.grams)

    def __sub__(self, other: Needs) -> Needs:
        return Needs(self.ranges - other.ranges, self.channels - other.channels, self.grams - other.grams)

    def __bool__(self) -> bool:
        return bool(self.ranges or self.channels or self.grams)

    @property
    def values(self) -> tuple[str, ...]:
        """Names of all values that are looked at, sorted."""
        names = {*self.ranges, *(name for name, _ in self.channels), *(rows.value for rows in self.grams)}
        return tuple(sorted(names))

    def of_values(self, names: frozenset[str] | set[str]) -> Needs:
        """Return the part that is about the values *names*."""
        return Needs(
            frozenset(name for name in self.ranges if name in names),
            frozenset(item for item in self.channels if item[0] in names),
            frozenset(rows for rows in self.grams if rows.value in names),
        )

    def described(self) -> str:
        """Return how much that is, for messages."""
        parts = [
            f"{len(items)} {what}"
            for what, items in (
                ("ranges", self.ranges),
                ("channel sets", self.channels),
                ("grams", self.grams),
            )
            if items
        ]
        return ", ".join(parts) or "nothing"
