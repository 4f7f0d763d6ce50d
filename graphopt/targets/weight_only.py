"""When a target computes with weights that are stored as codes, and when that pays."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WeightOnlyRules(BaseModel):
    """Where DequantizeLinear in front of a matrix product is a kernel of its own, and from which size on.

    Attributes:
        fused_since: First release of the runtime that fuses DequantizeLinear and MatMul.
        ops: Operators it is fused with.
        min_elements: Elements of the smallest weight for which codes are faster than floats where one row is
            multiplied with it at a time.
        min_elements_few_rows: The same for up to *max_rows* rows, and where their number is not known.
        max_rows: Rows at a time from which on floats are faster, whatever the size.
        replace_behind: Operators that must not stand right behind; each has a stand-in (Relu: Max).
        folds_casts: Whether the runtime computes Cast and Mul of constants once, when it loads the model: a
            weight stored so costs no time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fused_since: str = Field(pattern=r"^\d+\.\d+$")
    ops: tuple[str, ...]
    min_elements: int = Field(ge=1)
    min_elements_few_rows: int = Field(ge=1)
    max_rows: int = Field(ge=1)
    replace_behind: tuple[str, ...] = ()
    folds_casts: bool = False


class DynamicRules(BaseModel):
    """Which operators are faster with weights of 8 bits and activations quantised as they come.

    Attributes:
        ops: Operators that pay.
        min_elements: Elements of the smallest weight that pays, whatever it is multiplied with.
        min_elements_many_rows: The same where at least *many_rows* rows are multiplied with it at a time.
        many_rows: See there.
        never: Operators that are slower, with the factor of speed that was measured.
        slow_add: Whether an Add in front of a LayerNormalization is fused into a slow kernel, which a Sum is
            not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: tuple[str, ...]
    min_elements: int = Field(ge=1)
    min_elements_many_rows: int = Field(ge=1)
    many_rows: int = Field(ge=1)
    never: dict[str, float] = Field(default_factory=dict)
    slow_add: bool = False
