"""What operators mean, as far as more than one pass needs to know: a table by (domain, op_type).

The table says what holds for every version of an operator that ONNX has had; where versions differ, the
functions look at the node. What is not in the table is treated as unknown: neither deterministic nor pure.
"""

from __future__ import annotations

from enum import Enum, unique
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.rewrite import attribute, constant_array, input_at, node_graphs

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as oir

    Functions = Mapping[tuple[str, str, str], oir.Function]

DEFAULT_DOMAIN = ""
MICROSOFT_DOMAIN = "com.microsoft"


@unique
class WeightRole(Enum):
    """What a constant input of an operator is to it."""

    WEIGHT = "weight"
    """Multiplied with the activation: the bulk of a model's parameters."""
    RECURRENT_WEIGHT = "recurrent_weight"
    """Multiplied with the state of LSTM, GRU and RNN."""
    BIAS = "bias"
    """Added to the result."""
    TABLE = "table"
    """Rows are picked from it: embeddings."""
    NORMALIZATION = "normalization"
    """Scale, shift and statistics of a normalisation, one number a channel."""
    SCALE = "scale"
    """Scale or zero point of a quantisation."""


_W, _R, _B = WeightRole.WEIGHT, WeightRole.RECURRENT_WEIGHT, WeightRole.BIAS
_T, _N, _S = WeightRole.TABLE, WeightRole.NORMALIZATION, WeightRole.SCALE

_WEIGHTS: dict[tuple[str, str], dict[int, WeightRole]] = {
    ("", "Conv"): {1: _W, 2: _B},
    ("", "ConvTranspose"): {1: _W, 2: _B},
    ("", "ConvInteger"): {1: _W, 3: _S},
    ("", "DeformConv"): {1: _W, 3: _B},
    ("", "QLinearConv"): {1: _S, 2: _S, 3: _W, 4: _S, 5: _S, 6: _S, 7: _S, 8: _B},
    ("", "Gemm"): {0: _W, 1: _W, 2: _B},
    ("", "MatMul"): {0: _W, 1: _W},
    ("", "MatMulInteger"): {0: _W, 1: _W, 2: _S, 3: _S},
    ("", "QLinearMatMul"): {0: _W, 1: _S, 2: _S, 3: _W, 4: _S, 5: _S, 6: _S, 7: _S},
    ("", "Einsum"): {0: _W, 1: _W},
    ("", "LSTM"): {1: _W, 2: _R, 3: _B, 7: _B},
    ("", "GRU"): {1: _W, 2: _R, 3: _B},
    ("", "RNN"): {1: _W, 2: _R, 3: _B},
    ("", "Gather"): {0: _T},
    ("", "PRelu"): {1: _N},
    ("", "BatchNormalization"): {1: _N, 2: _N, 3: _N, 4: _N},
    ("", "InstanceNormalization"): {1: _N, 2: _N},
    ("", "LayerNormalization"): {1: _N, 2: _N},
    ("", "GroupNormalization"): {1: _N, 2: _N},
    ("", "RMSNormalization"): {1: _N},
    ("", "QuantizeLinear"): {0: _W, 1: _S, 2: _S},
    ("", "DequantizeLinear"): {0: _W, 1: _S, 2: _S},
    (MICROSOFT_DOMAIN, "FusedConv"): {1: _W, 2: _B},
    (MICROSOFT_DOMAIN, "FusedGemm"): {0: _W, 1: _W, 2: _B},
    (MICROSOFT_DOMAIN, "FusedMatMul"): {0: _W, 1: _W},
    (MICROSOFT_DOMAIN, "MatMulNBits"): {1: _W, 2: _S, 3: _S, 5: _B},
    (MICROSOFT_DOMAIN, "DynamicQuantizeMatMul"): {1: _W, 2: _S, 3: _S, 4: _B},
    (MICROSOFT_DOMAIN, "MatMulIntegerToFloat"): {1: _W, 2: _S, 3: _S, 4: _S, 5: _S, 6: _B},
    (MICROSOFT_DOMAIN, "QGemm"): {1: _S, 2: _S, 3: _W, 4: _S, 5: _S, 6: _B, 7: _S, 8: _S},
    (MICROSOFT_DOMAIN, "Attention"): {1: _W, 2: _B},
    (MICROSOFT_DOMAIN, "SkipLayerNormalization"): {2: _N, 3: _N, 4: _B},
    (MICROSOFT_DOMAIN, "EmbedLayerNormalization"): {2: _T, 3: _T, 4: _T, 5: _N, 6: _N},
    (MICROSOFT_DOMAIN, "QuantizeLinear"): {0: _W, 1: _S, 2: _S},
    (MICROSOFT_DOMAIN, "DequantizeLinear"): {0: _W, 1: _S, 2: _S},
}

_RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip

# Operators of com.microsoft that the runtime's own optimiser writes; each is a pure function of its inputs.
_MICROSOFT_PURE = frozenset({
    "Attention", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "ConvTransposeWithDynamicPads", "CropAndResize",
    "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FastGelu",
    "FusedConv", "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "Gelu", "GridSample",
    "GroupQueryAttention", "Inverse", "Irfft", "MatMulBnb4", "MatMulInteger16", "MatMulIntegerToFloat",
    "MatMulNBits", "MaxpoolWithMask", "MulInteger", "MultiHeadAttention", "MurmurHash3", "NhwcConv",
    "NhwcFusedConv", "NhwcMaxPool", "Pad", "QAttention", "QEmbedLayerNormalization", "QGemm", "QLinearAdd",
    "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
    "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QMoE",
    "QuantizeLinear", "QuickGelu", "Range", "ReduceSumInteger", "Rfft", "RotaryEmbedding", "SampleOp",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "TransposeMatMul", "Trilu", "Unique",
})  # fmt: skip

_COMMUTATIVE = frozenset({
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum",
    "Xor",
})  # fmt: skip

# Move or pick elements without changing any of them: what comes out was in the first input (or, for Pad,
# Concat and the Scatter family, in one of the data inputs).
_DATA_MOVEMENT = frozenset({
    "CenterCropPad", "Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "Pad", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def domain_of(node: oir.Node) -> str:
    """Return the domain of *node*; "" and "ai.onnx" are one."""
    return DEFAULT_DOMAIN if node.domain == "ai.onnx" else node.domain


@cache
def _default_operators() -> frozenset[tuple[str, str]]:
    # The schemas of the installed onnx are the list of what is standard; ONNX operators other than the random
    # ones are functions of their inputs by definition.
    import onnx.defs

    return frozenset(
        (schema.domain, schema.name)
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain in {"", "ai.onnx.ml"}
    )


def is_deterministic(node: oir.Node, functions: Functions | None = None) -> bool:
    """Return whether *node* gives the same outputs for the same inputs, every time.

    Args:
        node: Any node; one with bodies is judged by what stands in them.
        functions: Functions of the model, so that calls are judged by their body. Without them, and for
            operators of unknown domains, the answer is False.
    """
    return _is_deterministic(node, functions or {}, frozenset())


def _is_deterministic(node: oir.Node, functions: Functions, active: frozenset[tuple[str, str, str]]) -> bool:
    key = (node.domain, node.op_type, node.overload or "")
    if key in functions:
        if key in active:  # ONNX forbids recursion; an invalid model must not hang us.
            return False
        return all(_is_deterministic(inner, functions, active | {key}) for inner in functions[key])
    domain = domain_of(node)
    if domain == MICROSOFT_DOMAIN:
        return node.op_type in _MICROSOFT_PURE
    if (domain, node.op_type) not in _default_operators():
        return False
    if domain == DEFAULT_DOMAIN:
        if node.op_type in _RANDOM:
            return False
        if node.op_type == "Dropout":
            return not may_train(node)
    return all(_is_deterministic(inner, functions, active) for body in node_graphs(node) for inner in body)


def may_train(node: oir.Node) -> bool:
    """Return whether a Dropout or BatchNormalization node may run in training mode.

    Dropout-12 reads ``training_mode`` from an input, BatchNormalization-14 from an attribute; Dropout-7 and
    -10 know inference only. BatchNormalization before version 14 trains where it lists more than one output,
    whether anything reads the others or not; since then more than one come with the attribute.
    """
    if node.op_type == "BatchNormalization":
        return len(node.outputs) > 1 or bool(attribute(node, "training_mode", 0))
    mode = input_at(node, 2)
    if mode is None:
        return False
    array = constant_array(mode, limit_bytes=64)
    return array is None or bool(np.any(array))


def is_pure(node: oir.Node, functions: Functions | None = None) -> bool:
    """Return whether *node* may be removed when nothing reads its outputs.

    ONNX operators have no side effects, random ones included; an operator of an unknown domain might.
    """
    return _is_pure(node, functions or {}, frozenset())


def _is_pure(node: oir.Node, functions: Functions, active: frozenset[tuple[str, str, str]]) -> bool:
    key = (node.domain, node.op_type, node.overload or "")
    if key in functions:
        return key not in active and all(
            _is_pure(inner, functions, active | {key}) for inner in functions[key]
        )
    domain = domain_of(node)
    if domain == MICROSOFT_DOMAIN:
        return node.op_type in _MICROSOFT_PURE
    if (domain, node.op_type) not in _default_operators():
        return False
    return all(_is_pure(inner, functions, active) for body in node_graphs(node) for inner in body)


def is_standard(node: oir.Node) -> bool:
    """Return whether *node* is an operator that the ONNX standard defines (default domain or ai.onnx.ml)."""
    return (domain_of(node), node.op_type) in _default_operators()


def key_of(node: oir.Node) -> str:
    """Return the name of the first output that *node* makes: what tells it from all others.

    Nodes need no names, and names of nodes may repeat. An output that may be left out can be without a name:
    the sequence of an LSTM of which only the last state is read.
    """
    return next((value.name for value in node.outputs if value.name), "")


def is_commutative(node: oir.Node) -> bool:
    """Return whether the inputs of *node* may be swapped without changing a bit of its output.

    Sum, Max, Min and Mean qualify with up to two inputs: with more, rounding depends on the order.
    """
    return domain_of(node) == DEFAULT_DOMAIN and node.op_type in _COMMUTATIVE and len(node.inputs) <= 2


def is_data_movement(node: oir.Node) -> bool:
    """Return whether *node* only moves, picks or repeats elements, so that scales pass through unchanged."""
    return domain_of(node) == DEFAULT_DOMAIN and node.op_type in _DATA_MOVEMENT


def has_bodies(node: oir.Node) -> bool:
    """Return whether *node* is a standard operator that runs subgraphs."""
    return domain_of(node) == DEFAULT_DOMAIN and node.op_type in _CONTROL_FLOW


def weight_roles(node: oir.Node) -> Mapping[int, WeightRole]:
    """Return the role of each input of *node* that may hold parameters, by its index.

    Whether an input does hold parameters depends on the graph: MatMul has roles for both of its inputs, of
    which usually one is constant.
    """
    return _WEIGHTS.get((domain_of(node), node.op_type), {})
