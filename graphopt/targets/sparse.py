"""The table [sparse] of a target: which zeros it skips."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SparseRules(BaseModel):
    """Patterns of zeros that make a product faster.

    Attributes:
        patterns: As sparsify-weights names them: "2:4" keeps two of each four neighbours along the inputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patterns: tuple[str, ...]
