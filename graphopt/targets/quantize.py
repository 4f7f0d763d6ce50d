"""How a target wants a statically quantised graph: which nodes, which codes, where to requantise."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class QuantizeRules(BaseModel):
    """Placement of QuantizeLinear and DequantizeLinear that the target turns into integer kernels.

    Attributes:
        activation_dtype: Element type of activation codes.
        weight_dtype: Element type of weight codes.
        symmetric_activations: The zero point of activations is the middle code.
        compute_ops: Operators with a weight that run faster on codes.
        output_ops: Those whose result must be quantised, else the kernel stays float.
        open_ops: Those that are best left with a float result.
        chain_ops: Operators that run on codes inside a chain of quantised values only.
        move_ops: Operators that pass codes on unchanged, so that input and output share one scale.
        shared_scale_ops: Operators of the chain that copy codes where inputs and result have one scale.
        absorbed_ops: Clamps that disappear into the quantisation behind them.
        grouped_conv: Whether a grouped convolution that is not depthwise is faster on codes.
        depthwise: "with-pointwise": all depthwise and pointwise convolutions of a net or none of them.
        matmul_bias: "gemm": a MatMul and the Add of its bias become one Gemm; "float": the Add stays float.
        bias: How biases are stored.
        saturating: Whether 8-bit products may saturate on processors without dot-product instructions, so
            that weights leave out half of the codes there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation_dtype: Literal["uint8", "int8", "uint16", "int16"] = "uint8"
    weight_dtype: Literal["uint8", "int8", "int16"] = "int8"
    symmetric_activations: bool = False
    compute_ops: tuple[str, ...] = Field(min_length=1)
    output_ops: tuple[str, ...] = ()
    open_ops: tuple[str, ...] = ()
    chain_ops: tuple[str, ...] = ()
    move_ops: tuple[str, ...] = ()
    shared_scale_ops: tuple[str, ...] = ()
    absorbed_ops: tuple[str, ...] = ()
    grouped_conv: bool = False
    depthwise: Literal["free", "with-pointwise"] = "free"
    matmul_bias: Literal["gemm", "float"] = "float"
    bias: Literal["int32", "float"] = "int32"
    saturating: bool = False
