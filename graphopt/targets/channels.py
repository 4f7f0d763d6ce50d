"""Which numbers of channels a provider computes at full speed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ChannelRules(BaseModel):
    """What prune-channels rounds to.

    Attributes:
        alignment: Channels that fill the registers of a convolution or matrix product: multiples of it pay.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alignment: int = Field(ge=1)
