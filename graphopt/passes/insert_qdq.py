"""insert-qdq: static quantisation by QuantizeLinear and DequantizeLinear, placed as the target runs them."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic resolves it
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.api import Evidence
    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model


class InsertQdq(Pass):
    """Quantise weights and activations where the target runs them on codes; see docs/passes.md."""

    info = PassInfo(
        name="insert-qdq",
        summary="Quantise weights and activations statically where the target runs integer kernels.",
        provides=frozenset({"qdq"}),
        lossy=True,
    )

    class Options(PassOptions):
        """What is quantised, and how."""

        calibrator: Literal["minmax", "moving-average", "percentile", "entropy", "mse"] = Field(
            default="mse",
            description="how the range of an activation is chosen from its distribution",
        )
        percentile: float = Field(
            default=99.999,
            gt=50.0,
            le=100.0,
            description="share of the elements that the range holds, for calibrator=percentile (percent)",
        )
        activation_dtype: Literal["uint8", "int8", "uint16", "int16"] | None = Field(
            default=None, description="element type of activation codes; none: what the target runs best"
        )
        weight_dtype: Literal["uint8", "int8", "int16"] | None = Field(
            default=None, description="element type of weight codes; none: what the target runs best"
        )
        symmetric_activations: bool | None = Field(
            default=None,
            description="whether 0 stands in the middle of activation codes; none: what the target wants "
            "(true or false)",
        )
        symmetric_weights: bool | None = Field(
            default=None,
            description="whether 0 stands in the middle of weight codes; none: of signed codes only "
            "(true or false)",
        )
        per_channel: bool = Field(
            default=True, description="one weight scale an output channel, not one a weight (true or false)"
        )
        reduce_range: Literal["auto", "on", "off"] = Field(
            default="auto",
            description="leave out the outer half of the weight codes, for processors whose 8-bit products "
            "saturate; auto: where the target says so and this processor has no dot-product instructions",
        )
        feedback: bool = Field(
            default=False,
            description="choose the codes of weights so that those of an output make up for each other's "
            "rounding on the data (true or false)",
        )
        bias: Literal["int32", "float"] | None = Field(
            default=None, description="how biases are stored; none: as the target's kernels read them"
        )
        op_types: tuple[str, ...] = Field(
            default=(), description="operators with weights to quantise; empty: what the target runs on codes"
        )
        include: tuple[str, ...] = Field(
            default=(), description="patterns of node names (* and ?); empty: all nodes"
        )
        exclude: tuple[str, ...] = Field(default=(), description="patterns of node names that stay float")
        keep_float: tuple[str, ...] = Field(
            default=(), description="names of nodes that stay float; one that does not exist is an error"
        )
        quantize_inputs: bool = Field(
            default=True, description="whether inputs of the model may be quantised (true or false)"
        )
        quantize_outputs: bool = Field(
            default=True, description="whether outputs of the model may be quantised (true or false)"
        )
        opset: int | Literal["keep", "auto"] = Field(
            default="keep",
            description="version of the default domain to write for; keep: that of the model; auto: the "
            "lowest above it that the codes need (13 for a scale a channel, 21 for 16 bits); a higher one "
            "upgrades the model",
        )
        plan: Path | None = Field(
            default=None, description="a plan.toml that says which nodes stay float (a path)"
        )
        measure: Literal["auto", "on", "off"] = Field(
            default="auto",
            description="keep float what is not faster on codes, as measured on the target's provider; auto: "
            "where it and data are at hand",
        )

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: ranges of activations."""
        del options
        return "statistics"

    def needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return the ranges of all values that may be quantised, and what feedback reads."""
        from graphopt.passes.quantize.run import Quantizer

        return Quantizer(model, options, context).needs()

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Upgrade where that is asked for, place, measure, emit; see the module."""
        from graphopt.passes.quantize.run import Quantizer

        quantizer = Quantizer(model, options, context)
        if quantizer.opset == model.opset:
            return quantizer.run()
        return self._upgraded(model, options, context, quantizer.opset)

    @staticmethod
    def _upgraded(model: Model, options: Options, context: Context, opset: int) -> Report:
        """Quantise an upgraded copy, which takes the place of *model* where anything came of it."""
        from graphopt.ir.shapes import infer_shapes
        from graphopt.passes.opset.upgrade import check_range, upgrade
        from graphopt.passes.quantize.run import Quantizer

        where = f"insert-qdq{{opset={options.opset}}}"
        check_range(model.opset, opset, context.target, where)
        copy = model.clone()
        copy.forget_names()
        before = copy.opset
        counts, notes = upgrade(copy, opset, where)
        context.bind(copy)  # values that the upgrade made have ranges too
        try:
            report = Quantizer(copy, options, context, shapes=infer_shapes(copy)).run()
        finally:
            context.bind(model)
        if not report.changed:
            return report
        model.store = copy.store
        return Report(
            changed=True,
            counts={**report.counts, **counts},
            skipped=(*notes, *report.skipped),
            extra={**report.extra, "opset": [before, opset]},
            warnings=report.warnings,
        )
