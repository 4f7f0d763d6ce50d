"""prune-blocks: leave out whole residual blocks (depth pruning), and fit what stays to make up for them.

Which blocks there are is found from the graph: whatever is added to the stream that it starts from. Those go
that cost least at the outputs, on data, for what they save: MACs, parameters or measured time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from graphopt.api import Context, Pass, PassInfo, Report
from graphopt.passes.pruning.options import BudgetOptions, Recover, Ridge, RowsPerSample

if TYPE_CHECKING:
    from graphopt.api import Evidence
    from graphopt.ir import Model


class PruneBlocks(Pass):
    """Remove the residual blocks that the outputs miss least, down to a budget of the whole model."""

    info = PassInfo(
        name="prune-blocks",
        summary="Remove residual blocks down to a share of the MACs, parameters or time (depth pruning).",
        lossy=True,
    )

    class Options(BudgetOptions):
        """How much stays, and what may go."""

        count: int | None = Field(default=None, ge=1, description="blocks that go (a number)")
        blocks: list[str] = Field(
            default_factory=list,
            description="patterns (* and ?) of the blocks that go, instead of a search; this needs no data"
            " (names of the Adds that they end in)",
        )
        protect: list[str] = Field(
            default_factory=list,
            description="patterns (* and ?) of blocks, nodes or initializers that stay as they are (names)",
        )
        best_effort: bool = Field(
            default=False,
            description="go as far as there are blocks where the budget cannot be reached, instead of failing"
            " (true or false)",
        )
        recover: Recover = "none"
        ridge: Ridge = 1e-3
        rows_per_sample: RowsPerSample = 64
        samples: int | None = Field(
            default=None, ge=1, description="samples of the data to use, or none for all (a number)"
        )
        oracle: bool = Field(
            default=True,
            description="run the result against the original with the branches set to zero and fail where"
            " they differ (true or false)",
        )

        @model_validator(mode="after")
        def _one_budget(self) -> Self:
            self.require_one_budget("count", "blocks")
            return self

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: samples to fit to, or to measure on what blocks cost."""
        return "nothing" if options.blocks and options.recover == "none" else "data"

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Find, choose, fit, remove and prove; see the module."""
        from graphopt.passes.depth.run import Run

        return Run(model, options, context).run()
