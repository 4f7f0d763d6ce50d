"""quantize-weights: store weights as codes of 8, 4 or 2 bits, in the form that the target computes with.

Activations stay float. Products with large weights become faster, because less memory is read; every other
weight becomes smaller at the same speed. Weights are read and written as a stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report
from graphopt.calibrate.needs import Needs

if TYPE_CHECKING:
    from graphopt.api import Evidence
    from graphopt.ir import Model

_MIN_BLOCK = 16


class QuantizeWeights(Pass):
    """Store weights as codes; see the module."""

    info = PassInfo(
        name="quantize-weights",
        summary="Store weights as codes of 8, 4 or 2 bits, fused with products where the target does that.",
        lossy=True,
    )

    class Options(PassOptions):
        """Which codes, how they are chosen, and where they stand."""

        bits: Literal[8, 4, 2] = Field(default=8, description="width of a code (8, 4 or 2 bits)")
        block_size: int | None = Field(
            default=None,
            description="weights that share a scale along the contracted axis (a power of two from 16; none: "
            "one scale an output channel with 8 bits, 128 with fewer)",
        )
        symmetric: bool = Field(
            default=True, description="signed codes without zero points (true), or zero points (false)"
        )
        clip: Literal["none", "mse"] = Field(
            default="none",
            description="range of a scale: to the extremes (none), or the share of it with the least squared "
            "error (mse)",
        )
        refine: Literal["none", "hqq"] = Field(
            default="none", description="half-quadratic refinement of the scales (none or hqq)"
        )
        feedback: bool = Field(
            default=False,
            description="round so that the weights of a product make up for each other on the data; "
            "with symmetric codes and clip=none (true or false)",
        )
        form: Literal["auto", "dequantize", "folded", "matmulnbits"] = Field(
            default="auto",
            description="what unpacks the codes: what the target runs best (auto), DequantizeLinear "
            "everywhere, Cast and Mul that are folded at load, or com.microsoft.MatMulNBits for products",
        )
        embeddings: Literal["gather", "folded", "keep"] = Field(
            default="gather",
            description="tables: codes are gathered, then unpacked (gather; always 8 bits), or unpacked at "
            "load (folded), or left alone (keep)",
        )
        min_elements: int = Field(
            default=1024, ge=1, description="smallest weight that is quantised (a number of elements)"
        )
        keep: tuple[str, ...] = Field(
            default=(), description="weights and nodes to leave alone (patterns of names with * and ?)"
        )
        runtime: str | None = Field(
            default=None,
            pattern=r"^\d+\.\d+(\..*)?$",
            description="release of onnxruntime that will run the model (none: the one that is installed)",
        )

        @field_validator("block_size")
        @classmethod
        def _power_of_two(cls, size: int | None) -> int | None:
            if size is not None and (size < _MIN_BLOCK or size & (size - 1)):
                raise ValueError("block_size must be a power of two from 16 on")
            return size

        @model_validator(mode="after")
        def _fed_back(self) -> Self:
            if self.feedback and not (self.symmetric and self.clip == "none" and self.refine == "none"):
                raise ValueError("feedback=true needs symmetric=true, clip=none and refine=none")
            if self.feedback and self.form == "matmulnbits":
                raise ValueError("feedback=true is not for form=matmulnbits; leave form out, or feedback")
            return self

    def lowest_opset(self, options: Options) -> int:
        """Return the first version with the type of the codes and the form of DequantizeLinear."""
        from graphopt.passes.weights.quantizer import needed_opset

        return needed_opset(options.bits, options.block_size, options.form)[0]

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: second moments, where errors are fed back."""
        return "statistics" if options.feedback else "nothing"

    def needs(self, model: Model, options: Options, context: Context) -> Needs:  # noqa: ARG002 - as the base class
        """Return the second moments of what products read, where errors are fed back."""
        from graphopt.passes.weights.quantizer import grams_of

        return grams_of(model) if options.feedback else Needs()

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Quantise weight by weight in graph order; see the module."""
        from graphopt.passes.weights.quantizer import Quantizer, Settings

        settings = Settings(
            bits=options.bits,
            block_size=options.block_size,
            symmetric=options.symmetric,
            clip=options.clip,
            refine=options.refine,
            feedback=options.feedback,
            form=options.form,
            embeddings=options.embeddings,
            min_elements=options.min_elements,
            keep=options.keep,
            runtime=options.runtime,
        )
        return Quantizer(model, settings, context).run()
