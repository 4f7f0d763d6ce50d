"""The table [half] of a target: which half-precision types it computes in."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class HalfRules(BaseModel):
    """Half-precision types of a target.

    Attributes:
        computes: Types that a model may compute in: the provider has kernels, or casts to float and back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    computes: tuple[Literal["float16", "bfloat16"], ...]
