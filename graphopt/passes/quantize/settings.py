"""What the options of insert-qdq and the rules of a target come to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Types and forms of codes.

    Attributes:
        activation_dtype: Element type of activation codes.
        weight_dtype: Element type of weight codes.
        symmetric_activations: Zero in the middle of activation codes.
        symmetric_weights: Zero in the middle of weight codes.
        per_channel: One weight scale an output channel.
        quantize_bias: Biases become int32 codes.
        reduce_range: Weights leave out the outer half of their codes.
        domain: Domain of QuantizeLinear and DequantizeLinear.
    """

    activation_dtype: str
    weight_dtype: str
    symmetric_activations: bool
    symmetric_weights: bool
    per_channel: bool
    quantize_bias: bool
    reduce_range: bool
    domain: str = ""
