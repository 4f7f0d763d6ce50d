"""Shape rules of the com.microsoft operators that onnxruntime's own optimiser and quantiser write.

The onnx package has no schemas for these. What has no rule here keeps what the model declares for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from graphopt.ir.inference.facts import Fact
from graphopt.ir.inference.standard import InferenceFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.ir.inference.call import Call
    from graphopt.ir.inference.standard import StandardInference
    from graphopt.ir.inference.symbols import Dim

    Rule = Callable[[Call, StandardInference], Sequence[Fact] | None]

DOMAIN = "com.microsoft"
# The standard operator that shapes are borrowed from is taken in this version.
_OPSET = 13


def microsoft_rule(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    """Return the facts of the outputs of *call*, or None where no rule is sure."""
    rule = _RULES.get(call.op_type)
    if rule is None:
        return None
    facts = rule(call, standard)
    return None if facts is None or len(facts) < call.outputs else facts


def _same(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    del standard
    source = call.at(0)
    return None if source is None or call.outputs != 1 else [Fact(source.dtype, source.shape)]


def _as(op_type: str, indices: Sequence[int], drop: Sequence[str] = ()) -> Rule:
    """Return the rule of an operator with the shapes of standard *op_type* over some of its inputs."""

    def rule(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
        keep = {name: given for name, given in call.given.items() if name not in drop}
        values = {name: value for name, value in call.attributes.items() if name not in drop}
        first = call.at(indices[0])
        if first is None:
            return None
        # Quantised operands have the shapes of float ones, which is all that is asked for here.
        inputs = [None if (fact := call.at(index)) is None else Fact(1, fact.shape) for index in indices]
        borrowed = replace(
            call, domain="", op_type=op_type, opset=_OPSET, attributes=values, given=keep, inputs=inputs
        )
        try:
            facts = standard.infer(borrowed)
        except InferenceFailed:
            return None
        return None if facts is None else [Fact(first.dtype, fact.shape) for fact in facts]

    return rule


_CONV_ONLY = ("activation", "activation_params")


def _fused_matmul(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    a, b = call.at(0), call.at(1)
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    if call.attributes.get("transBatchA", 0) or call.attributes.get("transBatchB", 0):
        return None
    left, right = (
        (*fact.shape[:-2], fact.shape[-1], fact.shape[-2])  # type: ignore[index]  # checked just before
        if call.attributes.get(name, 0)
        else fact.shape
        for fact, name in ((a, "transA"), (b, "transB"))
    )
    plain = replace(call, attributes={}, given={}, inputs=[Fact(a.dtype, left), Fact(b.dtype, right)])
    return _as("MatMul", (0, 1))(plain, standard)


def _matmul_nbits(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    del standard
    source = call.at(0)
    columns = call.attributes.get("N")
    if source is None or not source.shape or not isinstance(columns, int):
        return None
    return [Fact(source.dtype, (*source.shape[:-1], columns))]


def _attention(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    del standard
    source, bias = call.at(0), call.at(2)
    sizes = call.attributes.get("qkv_hidden_sizes")
    if call.outputs != 1 or source is None or source.shape is None or len(source.shape) != 3:
        return None
    hidden: Dim
    if sizes:
        hidden = int(sizes[2])
    elif bias is not None and bias.shape and isinstance(bias.shape[0], int):
        hidden = bias.shape[0] // 3
    else:
        return None
    return [Fact(source.dtype, (*source.shape[:2], hidden))]


def _skip_normalization(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    """The result, mean and inverse deviation over the last dim, and the sum that was normalised."""
    del standard
    source = call.at(0)
    if source is None or not source.shape:
        return None
    one = Fact(source.dtype, (*source.shape[:-1], 1))
    return [Fact(source.dtype, source.shape), one, one, Fact(source.dtype, source.shape)]


def _multi_head(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    """Y [batch, length, values], present keys and values [batch, heads, total, size]."""
    del standard
    query, value, heads = call.at(0), call.at(2), call.attributes.get("num_heads")
    if query is None or value is None or query.shape is None or value.shape is None or not heads:
        return None
    if len(query.shape) != 3 or len(value.shape) != 3 or call.outputs > 3:
        return None
    hidden, made = query.shape[2], value.shape[2]
    if not isinstance(hidden, int) or not isinstance(made, int):
        return None
    total = call.symbols.fresh()
    batch = query.shape[0]
    return [
        Fact(query.dtype, (*query.shape[:2], made)),
        Fact(query.dtype, (batch, heads, total, hidden // heads)),
        Fact(query.dtype, (batch, heads, total, made // heads)),
    ]


def _grouped_query(call: Call, standard: StandardInference) -> Sequence[Fact] | None:
    """Y [batch, length, heads * size]; queries may hold keys and values behind them."""
    del standard
    query = call.at(0)
    heads, key_heads = call.attributes.get("num_heads"), call.attributes.get("kv_num_heads")
    if query is None or query.shape is None or len(query.shape) != 3 or not heads or not key_heads:
        return None
    hidden = query.shape[2]
    if not isinstance(hidden, int) or call.outputs > 3:
        return None
    size = hidden // (heads if call.at(1) is not None else heads + 2 * key_heads)
    present = Fact(query.dtype, (query.shape[0], key_heads, call.symbols.fresh(), size))
    return [Fact(query.dtype, (*query.shape[:2], heads * size)), present, present]


_RULES: dict[str, Rule] = {
    "BiasGelu": _same,
    "DequantizeLinear": lambda call, standard: (
        None
        if (source := call.at(0)) is None or (scale := call.at(1)) is None
        else _same(replace(call, inputs=[Fact(scale.dtype, source.shape)]), standard)
    ),
    "FastGelu": _same,
    "FusedConv": _as("Conv", (0, 1), _CONV_ONLY),
    "FusedGemm": _as(
        "Gemm", (0, 1), ("activation", "activation_alpha", "activation_beta", "activation_gamma")
    ),
    "FusedMatMul": _fused_matmul,
    "Gelu": _same,
    "MatMulNBits": _matmul_nbits,
    "Attention": _attention,
    "GroupQueryAttention": _grouped_query,
    "MultiHeadAttention": _multi_head,
    "QLinearAdd": _as("Add", (0, 3)),
    "QLinearLeakyRelu": _same,
    "QLinearMul": _as("Mul", (0, 3)),
    "QLinearSigmoid": _same,
    "QLinearSoftmax": _same,
    "QuickGelu": _same,
    "RotaryEmbedding": _same,
    "SimplifiedLayerNormalization": _same,
    "SkipLayerNormalization": _skip_normalization,
    "SkipSimplifiedLayerNormalization": _skip_normalization,
    "TransposeMatMul": _fused_matmul,
}
