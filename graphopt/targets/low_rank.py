"""What a target pays for when a weight is written as two thin ones."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LowRankRules(BaseModel):
    """When a factorised weight is worth it.

    Attributes:
        round_to: Ranks are multiples of this, or what is saved is lost to kernels that run half empty.
        min_gain: Least factor of MACs that must be saved for a time that is saved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    round_to: int = Field(ge=1)
    min_gain: float = Field(ge=1.0)
