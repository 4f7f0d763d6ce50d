"""prune-channels: remove channels, heads, head dims and hidden units, and prove that it equals masking them.

Which units there are and what goes with them is found by graphopt.ir.channels, for any architecture. This
pass is policy: it scores units, spreads a budget over the families, cuts, and holds the result against the
masked original.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic resolves it
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from graphopt.api import Context, Pass, PassInfo, Report
from graphopt.passes.pruning.options import BudgetOptions, Recover, Ridge, RowsPerSample

if TYPE_CHECKING:
    from graphopt.api import Evidence
    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model


class PruneChannels(Pass):
    """Remove the least important units of every free family, down to a budget of the whole model."""

    info = PassInfo(
        name="prune-channels",
        summary="Remove channels, heads and hidden units down to a share of the MACs or parameters.",
        lossy=True,
    )

    class Options(BudgetOptions):
        """How much stays, and what may go."""

        plan: Path | None = Field(
            default=None,
            description="plan.toml that says what each family keeps, instead of a ratio (a path)",
        )
        best_effort: bool = Field(
            default=False,
            description="go as far as the free families allow where the ratio cannot be reached, instead of"
            " failing (true or false)",
        )
        scope: Literal["global", "family"] = Field(
            default="global",
            description="global: the cheapest units of the whole graph go; family: one fraction of every"
            " family goes (a word)",
        )
        criterion: str = Field(
            default="product-of-norms",
            description="what makes a unit important: l1, l2, product-of-norms, energy, entropy, obs, random,"
            " or one of a plugin (a name)",
        )
        sensitivity: Literal["local", "output"] = Field(
            default="local",
            description="what a loss of the criterion obs is worth: as part of the stream that it goes into,"
            " or as measured at the outputs, on samples held out, with one family cut at a time (local or"
            " output)",
        )
        min_family: int = Field(
            default=2, ge=1, description="fewest units that a family keeps; smaller families stay (units)"
        )
        round_to: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
            default="auto",
            description="kept channels are a multiple of this, whatever it costs; auto: of the target's"
            " alignment, else 8, 4 or 1 where a family or the budget leaves no choice (channels)",
        )
        protect: list[str] = Field(
            default_factory=list,
            description="patterns (* and ?) of nodes, initializers or families that stay as they are (names)",
        )
        allow_approximate: bool = Field(
            default=False,
            description="also units that norms or means run over, where no cut equals masking (true or"
            " false)",
        )
        units: list[Literal["all", "channels", "heads", "head_dims", "hidden"]] = Field(
            default=["all"], description="kinds of units that may go (words)"
        )
        max_rounds: int = Field(
            default=1,
            ge=1,
            le=100,
            description="rounds of scoring and cutting, each part of the way (rounds)",
        )
        seed: int | None = Field(
            default=None, ge=0, description="seed of the random criterion; none: that of the run (a number)"
        )
        recover: Recover = "none"
        compensate: bool = Field(
            default=True,
            description="fit each weight on what the model computes with all cuts before it, so that it makes"
            " up for them; false: on what the original computes there (true or false)",
        )
        refit: Literal["changed", "all"] = Field(
            default="all",
            description="weights that recover=least-squares fits: those that lose inputs, or all behind the"
            " first of them (changed or all)",
        )
        sweeps: int = Field(
            default=1,
            ge=1,
            le=16,
            description="times that recover walks through the model; from the second on depthwise"
            " convolutions are fitted too, and every weight from where it is (walks)",
        )
        ridge: Ridge = 1e-3
        rows_per_sample: RowsPerSample = 64
        samples: int | None = Field(
            default=None,
            ge=1,
            description="samples of the data that recover uses, or none for all (a number)",
        )
        oracle: bool = Field(
            default=True,
            description="run the masked original against the pruned model and fail where they differ"
            " (true or false)",
        )

        @model_validator(mode="after")
        def _one_budget(self) -> Self:
            self.require_one_budget("plan")
            if self.sensitivity == "output" and self.criterion != "obs":
                raise ValueError(f"sensitivity=output weighs losses of criterion=obs, got {self.criterion}")
            if self.sweeps > 1 and not self.compensate:
                raise ValueError("sweeps make up for what others have lost; compensate=false has one")
            if self.max_rounds > 1 and self.time_ratio is not None:
                raise ValueError("time_ratio is reached in one round; max_rounds must be 1")
            return self

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: samples to fit to or to measure on, second moments for obs."""
        if options.recover != "none" or options.sensitivity == "output":
            return "data"
        return "statistics" if options.criterion == "obs" and options.plan is None else "nothing"

    def needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return what the criterion wants to know of the families that may be cut."""
        from graphopt.passes.pruning.pruner import Pruner

        return Pruner(model, options, context).needs()

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Score, allocate, cut and prove; see the module."""
        from graphopt.passes.pruning.pruner import Pruner

        pruner = Pruner(model, options, context)
        if options.plan is None:
            pruner.criterion()  # an unknown name is an error also where nothing is left to score
        return pruner.run()
