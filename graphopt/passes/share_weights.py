"""share-weights: weights as palettes of a few shared values, and one weight where several are alike.

A palette is stored as codes and a codebook that a Gather looks up. The runtime does that once, when it loads
the model: the file becomes smaller by the ratio of the bits, and what runs is what ran before, on the values
of the codebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.api import Evidence
    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model


class ShareWeights(Pass):
    """Store weights as codebooks and packed codes in standard ONNX."""

    info = PassInfo(
        name="share-weights",
        summary="Store weights as palettes of 1 to 8 bits, and weights that are alike once.",
        preserves=frozenset({"shapes"}),
        lossy=True,
    )

    class Options(PassOptions):
        """How many values, shared by what, and how they are stored."""

        bits: Annotated[int, Field(ge=1, le=8)] | Literal["auto"] = Field(
            default=4,
            description="bits of a code (1 to 8, or auto for the fewest that reach sqnr_db in each weight)",
        )
        sqnr_db: float = Field(
            default=30.0,
            ge=0.0,
            description="with bits=auto, least signal to error of every weight (dB)",
        )
        mean_bits: float | None = Field(
            default=None,
            ge=1.0,
            le=8.0,
            description="with bits=auto, bits of a code on average over all elements, instead of sqnr_db; "
            "large weights get fewer, small ones more (bits)",
        )
        granularity: Literal["auto", "tensor", "channel", "group"] = Field(
            default="auto",
            description="what shares a codebook: a tensor, a tensor whose output channels have scales of "
            "their own (channel), or group_size output channels; auto takes tensor or channel, whichever is "
            "better for its bytes",
        )
        group_size: int = Field(default=16, ge=1, description="output channels of a group (a number)")
        spacing: Literal["kmeans", "linear", "log", "power-of-two"] = Field(
            default="kmeans",
            description="how the values of a codebook lie: free (kmeans), at equal distances (linear), at "
            "equal ratios (log) or at powers of two (power-of-two)",
        )
        weighting: Literal["auto", "none", "activation"] = Field(
            default="auto",
            description="whether errors count by the mean square of the input that they are multiplied with: "
            "where there are data or statistics (auto), never (none), or always (activation)",
        )
        feedback: bool = Field(
            default=False,
            description="codes that make up for each other and for what the layers before have lost on the "
            "data, and biases that take what is left (true or false)",
        )
        ridge: float = Field(
            default=1e-3,
            gt=0,
            description="with feedback, ridge of the solve before the codes are found (relative to the mean "
            "variance of a column)",
        )
        rows_per_sample: int = Field(
            default=64, ge=1, description="with feedback, positions drawn from each sample (a number)"
        )
        storage: Literal["auto", "bytes", "uint4"] = Field(
            default="auto",
            description="how 4-bit codes are stored: as bytes of two with a table of pairs, which every "
            "opset can, or as uint4, which needs opset 21; auto takes uint4 where the model has that opset",
        )
        share_within: float = Field(
            default=0.0,
            ge=0.0,
            lt=1.0,
            description="weights of one shape that differ by at most this become one (norm of the difference "
            "over that of the first; 0 shares equal ones only)",
        )
        min_elements: int = Field(default=512, ge=1, description="smallest weight (a number of elements)")
        keep: tuple[str, ...] = Field(
            default=(), description="names of nodes or initializers to leave alone (patterns with * and ?)"
        )

        @model_validator(mode="after")
        def _bits_to_spread(self) -> Self:
            if self.mean_bits is not None and self.bits != "auto":
                raise ValueError(f"mean_bits spreads bits over the weights, which bits={self.bits} forbids")
            return self

    def lowest_opset(self, options: Options) -> int:
        """Return the first version with uint4, where that is insisted on."""
        from graphopt.passes.palettes.storage import UINT4_OPSET

        return UINT4_OPSET if options.storage == "uint4" else self.info.min_opset

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: data for feedback, else statistics to weigh errors by."""
        if options.feedback:
            return "data"
        return "statistics" if options.weighting == "activation" else "nothing"

    def needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return the mean squares of the inputs of all weights whose errors are to be weighted."""
        from graphopt.calibrate.needs import Needs
        from graphopt.passes.palettes.candidates import needs_of
        from graphopt.passes.palettes.sharer import weighted

        needs = needs_of(weighted(model, options))
        if options.weighting == "none" or (options.weighting == "auto" and not context.has_statistics(needs)):
            return Needs()
        return needs

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Share what is alike, then give each weight its palette.

        Raises:
            OptionError: The opset has no uint4.
            DataError: feedback=true and there are no data.
        """
        from graphopt.passes.palettes.sharer import Sharer

        uint4 = _check(model, options)
        needs = self.needs(model, options, context)
        statistics = context.statistics(needs) if needs else None
        return Sharer(model, options, context, statistics, uint4=uint4).run()


def _check(model: Model, options: ShareWeights.Options) -> bool:
    """Return whether 4-bit codes are stored as uint4."""
    from graphopt.errors import OptionError
    from graphopt.passes.palettes.storage import UINT4_OPSET

    if options.storage == "uint4" and model.opset < UINT4_OPSET:
        raise OptionError(
            f"the model has opset {model.opset}, which has no uint4",
            where="option 'storage'",
            hint=f"Put upgrade-opset{{to={UINT4_OPSET}}} in front, or use storage=bytes, which is as small.",
        )
    return options.storage != "bytes" and model.opset >= UINT4_OPSET
