"""fold-constants: compute what is always the same, once, now.

Evaluates nodes whose inputs are constants, and shape arithmetic on sizes that the model fixes. A result is
stored only where the file does not grow by it beyond the allowance, and a constant that is stored compressed
(quantised, as a palette, narrow or sparse) stays compressed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.ir import Model


class FoldConstants(Pass):
    """Replace computations on constants and on known shapes by their results."""

    info = PassInfo(
        name="fold-constants",
        summary="Compute constant nodes and known shapes once, without making the file larger.",
        preserves=frozenset({"statistics"}),
    )

    class Options(PassOptions):
        """What may be folded."""

        max_growth_bytes: int | None = Field(
            None,
            ge=0,
            description="bytes by which folding may make the file larger in all; none means a hundredth of "
            "the model's constants, only for what is computed from small constants (masks, positions), and "
            "besides any result of up to 128 bytes",
        )
        inline_branches: bool = Field(
            default=True, description="replace an If with a constant condition by the branch that it takes"
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Fold until nothing changes; see the module."""
        from graphopt.ir.scopes import unshadow
        from graphopt.passes.folding.rounds import fold

        renamed = unshadow(model)
        report = fold(model, options.max_growth_bytes, context, inline_branches=options.inline_branches)
        if not renamed:
            return report
        counts = {**report.counts, "renamed_hiding_values": renamed}
        return Report(changed=True, counts=counts, skipped=report.skipped)
