"""equalize-ranges: rescale channels between weights so that one scale a weight serves all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.ir import Model


class EqualizeRanges(Pass):
    """Cross-layer equalization; see docs/passes.md."""

    info = PassInfo(
        name="equalize-ranges",
        summary="Rescale channels between neighbouring weights so that coarse quantisation loses less.",
    )

    class Options(PassOptions):
        """What is made alike, and how."""

        scales: Literal["power-of-two", "any"] = Field(
            default="power-of-two",
            description="which scales are taken; powers of two change no bit of what a float model computes, "
            "any: rounding errors of float32",
        )
        clip: Literal["keep", "per-channel"] = Field(
            default="keep",
            description="what becomes of a Clip between two weights (Relu6); keep: no scale passes it; "
            "per-channel: it becomes Relu and Min with a bound a channel, which is exact but a node more",
        )
        exclude: tuple[str, ...] = Field(
            default=(), description="patterns of names of nodes whose weights stay (* and ?)"
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Follow scales, choose, rescale; see the module."""
        from graphopt.passes.equalize.rescale import Rescaling

        rescaling = Rescaling(
            model, context.analysis("shapes"), exclude=options.exclude, bounds=options.clip == "per-channel"
        )
        rescaling.run(exact=options.scales == "power-of-two")
        return Report(
            changed=bool(rescaling.counts.get("channels")),
            counts=dict(sorted(rescaling.counts.items())) if rescaling.counts.get("channels") else {},
            skipped=tuple(rescaling.skipped),
            extra={"weights": rescaling.notes, "stops": dict(sorted(rescaling.flow.stops.items()))},
        )
