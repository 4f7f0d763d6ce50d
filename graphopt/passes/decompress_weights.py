"""decompress-weights: stored codes become float weights where nothing is gained by keeping them.

A weight that stands behind a DequantizeLinear is small on disk. Where the runtime fuses the two into an
integer kernel it is fast too; everywhere else the same multiplication is repeated at every inference, and
what follows it runs in float all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.ir import Model


class DecompressWeights(Pass):
    """Turn DequantizeLinear nodes over stored codes into float initializers."""

    info = PassInfo(
        name="decompress-weights",
        summary="Turn stored codes into float weights where the target does not fuse their DequantizeLinear.",
        preserves=frozenset({"statistics"}),
    )

    class Options(PassOptions):
        """Which weights."""

        where: Literal["unfused", "all"] = Field(
            default="unfused",
            description="which weights: those that the target's runtime does not fuse with the node that "
            "reads them (unfused), or every one (all)",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Compute each weight as the runtime would, in graph order.

        Raises:
            OptionError: *where* is "unfused" and the target does not say what its runtime fuses.
        """
        from graphopt.errors import OptionError
        from graphopt.passes.compressed.decompression import Decompression

        rules = context.target.dequantize if options.where == "unfused" else None
        if options.where == "unfused" and rules is None:
            raise OptionError(
                f"the target {context.target.name!r} does not say which weights its runtime fuses",
                where="option 'where'",
                hint="Use where=all, or a target that has a table [dequantize].",
            )
        return Decompression(model, rules).run()
