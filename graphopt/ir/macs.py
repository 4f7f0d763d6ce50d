"""Multiply-accumulate operations of one node, from the shapes of its operands.

One MAC is one multiplication with its addition; a bias, an activation and whatever works element by element
count nothing. The formulas are the definitions of the operators in the ONNX specification, counted without
skipping what padding multiplies by zero, which is the convention of published figures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphopt.ir.rewrite import attribute, input_at
from graphopt.ir.semantics import DEFAULT_DOMAIN, MICROSOFT_DOMAIN, domain_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as oir

    ShapeOf = Callable[[oir.Value | None], tuple[int, ...] | None]
    Formula = Callable[[oir.Node, ShapeOf], int | None]


def macs_of(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """Return the MACs of one execution of *node*; 0 for operators that have none, None where a shape lacks.

    Args:
        node: Any node; bodies and function calls are the caller's business.
        shape_of: Gives the shape of a value in numbers, or None where not even its rank is known.
    """
    formula = _FORMULAS.get((domain_of(node), node.op_type))
    return 0 if formula is None else formula(node, shape_of)


def _conv(weight_index: int) -> Formula:
    """Conv: every output element takes Cin/group * kernel MACs; the weight is [Cout, Cin/group, *kernel]."""

    def formula(node: oir.Node, shape_of: ShapeOf) -> int | None:
        out, weight = shape_of(node.outputs[0]), shape_of(input_at(node, weight_index))
        return None if out is None or not weight else math.prod(out) * math.prod(weight[1:])

    return formula


def _conv_transpose(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """ConvTranspose: every input element goes into Cout/group * kernel; weight [Cin, Cout/group, *kernel]."""
    source, weight = shape_of(input_at(node, 0)), shape_of(input_at(node, 1))
    return None if source is None or not weight else math.prod(source) * math.prod(weight[1:])


def _matmul(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """MatMul: out * K, K being the last dim of A (the last but one with transA)."""
    out, a = shape_of(node.outputs[0]), shape_of(input_at(node, 0))
    if out is None or not a:
        return None
    transposed = bool(attribute(node, "transA", 0)) and len(a) > 1
    return math.prod(out) * a[-2 if transposed else -1]


def _matmul_nbits(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """MatMulNBits: A [..., K] by a packed weight of N columns."""
    a, columns = shape_of(input_at(node, 0)), attribute(node, "N")
    return None if a is None or columns is None else math.prod(a) * int(columns)


def _recurrent(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """LSTM, GRU, RNN: each step multiplies W [dirs, gates*H, I] with the input and R with the state."""
    source, w, r = (shape_of(input_at(node, index)) for index in range(3))
    if source is None or w is None or r is None or len(source) != 3:
        return None
    return source[0] * source[1] * (math.prod(w) + math.prod(r))


def _einsum(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """Einsum of n operands: n - 1 times the product of all its index ranges; 0 MACs for one operand."""
    shapes = [shape_of(value) for value in node.inputs]
    equation = attribute(node, "equation", "")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    terms = text.split("->")[0].split(",")
    if len(shapes) < 2:
        return 0
    if len(terms) != len(shapes):
        return None
    sizes: dict[str, int] = {}
    rest: list[int] = []
    for term, shape in zip(terms, shapes, strict=True):
        if shape is None:
            return None
        head, dots, tail = term.partition("...")
        if len(head) + len(tail) > len(shape):
            return None
        middle = shape[len(head) : len(shape) - len(tail)] if dots else ()
        for letter, size in zip(
            head + tail, shape[: len(head)] + shape[len(shape) - len(tail) :], strict=False
        ):
            sizes[letter] = max(sizes.get(letter, 1), size)
        rest = [max(pair) for pair in _aligned(rest, list(middle))]
    return (len(shapes) - 1) * math.prod(sizes.values()) * math.prod(rest)


def _aligned(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    rank = max(len(a), len(b))
    return list(zip([1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b, strict=True))


def _attention(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """Attention-23: Q K^T and its product with V, for every query head.

    Operands are [batch, heads, length, size] or [batch, length, heads * size]; past keys come before.
    """
    query, key, value, past = (shape_of(input_at(node, index)) for index in (0, 1, 2, 4))
    if query is None or key is None or value is None or len(query) != len(key) or len(key) != len(value):
        return None
    past_length = past[-2] if past else 0
    if input_at(node, 4) is not None and past is None:
        return None
    if len(query) == 4:
        batch, heads, length, size = query
        return batch * heads * length * (key[2] + past_length) * (size + value[3])
    heads, key_heads = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    if len(query) != 3 or not heads or not key_heads:
        return None
    sizes = query[2] // heads + value[2] // key_heads
    return int(query[0] * heads * query[1] * (key[1] + past_length) * sizes)


def _microsoft_attention(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """com.microsoft Attention: projects X [B, S, I] by W [I, Q+K+V], then attends."""
    source, weight = shape_of(input_at(node, 0)), shape_of(input_at(node, 1))
    past = shape_of(input_at(node, 4)) if node.op_type == "Attention" else None
    if source is None or weight is None or len(source) != 3 or len(weight) != 2:
        return None
    sizes = attribute(node, "qkv_hidden_sizes") or (weight[1] // 3,) * 3
    total = source[1] + (past[-2] if past else 0)
    return int(source[0] * source[1] * (math.prod(weight) + total * (sizes[1] + sizes[2])))


def _multi_head(node: oir.Node, shape_of: ShapeOf) -> int | None:
    """com.microsoft MultiHeadAttention over Q [B, S, H], K [B, L, H], V [B, L, Hv]."""
    query, key, value = (shape_of(input_at(node, index)) for index in range(3))
    if any(shape is None or len(shape) != 3 for shape in (query, key, value)):
        return None
    assert query is not None
    assert key is not None
    assert value is not None
    return query[0] * query[1] * key[1] * (query[2] + value[2])


_FORMULAS: dict[tuple[str, str], Formula] = {
    (DEFAULT_DOMAIN, "Attention"): _attention,
    (DEFAULT_DOMAIN, "Conv"): _conv(1),
    (DEFAULT_DOMAIN, "ConvInteger"): _conv(1),
    (DEFAULT_DOMAIN, "ConvTranspose"): _conv_transpose,
    (DEFAULT_DOMAIN, "DeformConv"): _conv(1),
    (DEFAULT_DOMAIN, "Einsum"): _einsum,
    (DEFAULT_DOMAIN, "GRU"): _recurrent,
    (DEFAULT_DOMAIN, "Gemm"): _matmul,
    (DEFAULT_DOMAIN, "LSTM"): _recurrent,
    (DEFAULT_DOMAIN, "MatMul"): _matmul,
    (DEFAULT_DOMAIN, "MatMulInteger"): _matmul,
    (DEFAULT_DOMAIN, "QLinearConv"): _conv(3),
    (DEFAULT_DOMAIN, "QLinearMatMul"): _matmul,
    (DEFAULT_DOMAIN, "RNN"): _recurrent,
    (MICROSOFT_DOMAIN, "Attention"): _microsoft_attention,
    (MICROSOFT_DOMAIN, "DynamicQuantizeLSTM"): _recurrent,
    (MICROSOFT_DOMAIN, "DynamicQuantizeMatMul"): _matmul,
    (MICROSOFT_DOMAIN, "FusedConv"): _conv(1),
    (MICROSOFT_DOMAIN, "FusedGemm"): _matmul,
    (MICROSOFT_DOMAIN, "FusedMatMul"): _matmul,
    (MICROSOFT_DOMAIN, "MatMulIntegerToFloat"): _matmul,
    (MICROSOFT_DOMAIN, "MatMulNBits"): _matmul_nbits,
    (MICROSOFT_DOMAIN, "MultiHeadAttention"): _multi_head,
    (MICROSOFT_DOMAIN, "NhwcFusedConv"): _conv(1),
    (MICROSOFT_DOMAIN, "QAttention"): _microsoft_attention,
    (MICROSOFT_DOMAIN, "QGemm"): _matmul,
    (MICROSOFT_DOMAIN, "QLinearConv"): _conv(3),
    (MICROSOFT_DOMAIN, "TransposeMatMul"): _matmul,
}
