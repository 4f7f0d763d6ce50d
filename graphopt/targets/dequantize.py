"""Which DequantizeLinear of a stored weight a target's runtime fuses with the node that reads it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DequantizeRules(BaseModel):
    """What becomes one integer kernel together with the DequantizeLinear in front of it.

    Attributes:
        static_ops: Operators that are fused where all they read is dequantised and all that they give is
            quantised again; those of *open_ops* also where it is not.
        open_ops: Those of *static_ops* whose result may stay float.
        weight_only_ops: Operators that are fused where the weight alone is stored as codes.
        weight_only_dtypes: Element types of those codes.
        unpacked_once: Whether the runtime unpacks once, when it loads the model, what it does not fuse: then
            stored codes cost no time at all.
        min_block: Smallest block along the contracted axis, a power of two; one scale a column or a tensor is
            always fused.
        static_dtypes: Element types of the weight's codes for *static_ops*.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    static_ops: tuple[str, ...] = ()
    open_ops: tuple[str, ...] = ()
    static_dtypes: tuple[str, ...] = ("int8", "uint8")
    weight_only_ops: tuple[str, ...] = ()
    weight_only_dtypes: tuple[str, ...] = ()
    unpacked_once: bool = False
    min_block: int = Field(default=16, ge=1)
