"""correct-bias: give every operator the mean output per channel that it had before the lossy steps."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic resolves it
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report
from graphopt.errors import DataError

if TYPE_CHECKING:
    from graphopt.api import Evidence, Reference
    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model


class CorrectBias(Pass):
    """Adjust biases behind quantisation and other lossy steps; see docs/passes.md."""

    info = PassInfo(
        name="correct-bias",
        summary="Adjust biases so that lossy steps before it leave the mean of every channel as it was.",
        lossy=True,
        reads_reference=True,
    )

    class Options(PassOptions):
        """What is corrected, and from what."""

        source: Literal["auto", "data", "statistics"] = Field(
            default="auto",
            description="what the means come from; data: both models are run; statistics: they are predicted "
            "from the means of the original; auto: data where there are any",
        )
        add: Literal["inputs", "nodes", "none"] = Field(
            default="inputs",
            description="what operators without a bias get; inputs: those that have an input for one; nodes: "
            "an Add behind MatMul too; none: nothing",
        )
        exclude: tuple[str, ...] = Field(
            default=(), description="patterns of names of nodes whose biases stay (* and ?)"
        )
        reference: Path | None = Field(
            default=None,
            description="the model to agree with; none: the one before the first lossy step of this run "
            "(a path)",
        )

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: samples, where they are asked for by name."""
        return "data" if options.source == "data" else "nothing"

    def reference_needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return the means of what the operators of the original read."""
        from graphopt.passes.biases.correction import reference_needs

        del options, context
        return reference_needs(model)

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Measure or predict, then write; see the module."""
        from graphopt.passes.biases.correction import Correction

        reference = self._reference(options, context)
        if reference is None:
            reason = "no step before it has changed what the model computes"
            return Report(changed=False, skipped=(("model", reason),))
        source = options.source
        if source == "auto":
            source = "statistics" if context.data is None else "data"
        if source == "data" and context.data is None:
            raise DataError(
                "source=data, and there are none",
                where="correct-bias",
                hint="Give unlabelled inputs with --data, or statistics with source=statistics.",
            )
        correction = Correction(model, reference, source=source, add=options.add, keep=options.exclude)
        correction.run(context.data)
        written = correction.counts.get("corrected", 0) + correction.counts.get("added", 0)
        return Report(
            changed=bool(written),
            counts=dict(sorted(correction.counts.items())),
            skipped=tuple(correction.skipped),
            extra={"source": source, "stages": correction.stages, **correction.extra},
        )

    @staticmethod
    def _reference(options: Options, context: Context) -> Reference | None:
        if options.reference is None:
            return context.reference
        from graphopt.ir.lower import load

        return context.as_reference(load(options.reference))
