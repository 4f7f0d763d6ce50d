"""The table [softmax] of a target: when masked rows are slow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SoftmaxRules(BaseModel):
    """How a target computes exp of what a mask switched off.

    Attributes:
        min_masked_share: Share of the elements from which on it pays to keep exp out of the numbers that are
            too small for normal floats (denormal ones), at the price of a maximum and two more element-wise
            operators.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_masked_share: float = Field(gt=0.0, le=1.0)
