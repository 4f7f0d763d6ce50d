"""Options that passes share which remove parts of a model until a budget is met."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from graphopt.api import PassOptions

# Fields and not a class, since each pass says in an order of its own what it takes.
Recover = Annotated[
    Literal["none", "bias", "least-squares"],
    Field(
        description="what is fitted to data so that what stays makes up for what goes: nothing, biases,"
        " or weights and biases (none, bias or least-squares)"
    ),
]
Ridge = Annotated[
    Literal["auto"] | Annotated[float, Field(gt=0)],
    Field(
        description="ridge of the solves; auto: for each the one that predicts a quarter of the samples"
        " best, which is held out (relative to the mean variance of a column)"
    ),
]
RowsPerSample = Annotated[
    int, Field(ge=1, description="positions that recover draws from each sample (a number)")
]


class BudgetOptions(PassOptions):
    """How much of a model stays."""

    macs_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="MACs that remain, after / before, of the whole graph (a ratio in (0, 1])",
    )
    params_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="parameters that remain, after / before, of the whole graph (a ratio in (0, 1])",
    )
    time_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="time that remains, after / before, measured on the target's provider (a ratio in"
        " (0, 1])",
    )
    timed_as: str | None = Field(
        default=None,
        description="with time_ratio, pipeline that candidates go through before they are timed, as the"
        " result will later; the time before is without it (a text in quotes)",
    )

    def require_one_budget(self, *others: str) -> None:
        """Refuse anything but one of the ratios and of the options *others*, which are budgets too.

        Raises:
            ValueError: There is none, or more than one; or timed_as stands without time_ratio.
        """
        budgets = ("macs_ratio", "params_ratio", "time_ratio", *others)
        given = [name for name in budgets if getattr(self, name) not in (None, [])]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(
                f"expected exactly one of {', '.join(budgets[:-1])} and {budgets[-1]}, got {got}"
            )
        if self.timed_as is not None and self.time_ratio is None:
            raise ValueError("timed_as says how time_ratio is measured, and there is none")
