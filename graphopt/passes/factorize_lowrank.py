"""factorize-lowrank: write weights as products of thin ones, where the target pays for it.

Of a weight of low rank only the directions that its outputs use are kept. Which those are is asked of data
where there are any: the weight is cut in the space of its outputs, not of its numbers, and each stage is
fitted to what the original puts out there, on what the model computes with all factors before it.
"""

from __future__ import annotations

import itertools
from pathlib import Path  # noqa: TC003 - pydantic resolves it
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.api import Evidence
    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model

_GOALS = ("macs_ratio", "params_ratio", "energy", "rank", "weight_ratio", "plan")


class FactorizeLowrank(Pass):
    """Write the weights of Conv, Gemm and MatMul, and embeddings, as products of thin ones."""

    info = PassInfo(
        name="factorize-lowrank",
        summary="Write weights as products of thin ones, by rank, energy or a budget, fitted to data.",
        lossy=True,
    )

    class Options(PassOptions):
        """How far, in which forms, and how the factors are found."""

        macs_ratio: float | None = Field(
            default=None,
            gt=0.0,
            le=1.0,
            description="MACs of the whole graph that remain, after / before (in (0, 1], or none)",
        )
        params_ratio: float | None = Field(
            default=None,
            gt=0.0,
            le=1.0,
            description="parameters of the whole graph that remain, after / before (in (0, 1], or none)",
        )
        energy: float | None = Field(
            default=None,
            gt=0.0,
            le=1.0,
            description="share of the energy of each weight's output to keep (a number in (0, 1]; none means "
            "0.99 where nothing else says how far to go)",
        )
        rank: int | None = Field(
            default=None, ge=1, description="the same rank for every weight (a number of directions, or none)"
        )
        weight_ratio: float | None = Field(
            default=None,
            gt=0.0,
            le=1.0,
            description="cost of every single weight that remains, after / before (in (0, 1], or none)",
        )
        plan: Path | None = Field(
            default=None,
            description="plan.toml that says form and ranks of each weight, instead of the above (a path)",
        )
        allocation: Literal["automatic", "uniform"] = Field(
            default="automatic",
            description="how macs_ratio and params_ratio are shared: by what each weight loses, or the same "
            "ratio for all (automatic or uniform)",
        )
        forms: tuple[Literal["thin", "spatial", "tucker", "embedding"], ...] = Field(
            default=("thin", "spatial", "tucker"),
            description="forms to consider: thin (rank, then 1x1), spatial (kh x 1, 1 x kw), tucker (1x1, "
            "k x k, 1x1), embedding (a thin table and a MatMul)",
        )
        gain: Literal["theory", "measured"] = Field(
            default="theory",
            description="what decides whether a form pays: MACs, or the time of the operator on the target's "
            "provider (theory or measured)",
        )
        min_gain: float | None = Field(
            default=None,
            ge=1.0,
            description="least factor of MACs, or of measured time, that a form must save (a factor, or none "
            "for the target's)",
        )
        round_to: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
            default="auto",
            description="ranks are multiples of this (a number of directions, or auto for the target's)",
        )
        recover: Literal["none", "bias", "least-squares"] = Field(
            default="least-squares",
            description="what is fitted to data, where there are any: nothing, biases, or weights and biases "
            "(none, bias or least-squares)",
        )
        whiten: bool = Field(
            default=True,
            description="cut in the space of the outputs on the data, where there are any (true or false)",
        )
        sensitivity: Literal["local", "output"] = Field(
            default="local",
            description="what a loss is: the share of each weight's output (local), or what it does to the "
            "outputs of the model, measured on samples (output); local or output",
        )
        widen: float = Field(
            default=0.0,
            ge=0.0,
            le=4.0,
            description="cut by samples that are moved by this much of what another one differs from the "
            "mean; with recover=none or bias (a factor, 0 for the samples as they are)",
        )
        compensate: bool = Field(
            default=True,
            description="fit each weight to make up for what those before it lost (true or false)",
        )
        refit: Literal["changed", "all"] = Field(
            default="all",
            description="weights to fit: those that are factorised, or all behind the first of them "
            "(changed or all)",
        )
        ridge: float = Field(
            default=1e-3,
            gt=0.0,
            description="ridge of the solves (relative to the mean variance of a column)",
        )
        rows_per_sample: int = Field(
            default=64, ge=1, description="positions drawn from each sample (a number)"
        )
        samples: int | None = Field(
            default=None, ge=1, description="samples of the data to use (a number, or none for all)"
        )
        keep: tuple[str, ...] = Field(
            default=(), description="names of nodes to leave alone (patterns with * and ?)"
        )
        best_effort: bool = Field(
            default=False, description="accept a budget that is met only in part (true or false)"
        )

        @model_validator(mode="after")
        def _fit_together(self) -> Self:
            goals = [name for name in _GOALS if getattr(self, name) is not None]
            if len(goals) > 1:
                raise ValueError(f"{goals[0]} and {goals[1]} cannot both say how far to go; give one of them")
            if self.widen and self.recover == "least-squares":
                raise ValueError(
                    "widen is not for recover=least-squares, which fits to the samples as they are; "
                    "set recover=bias or recover=none"
                )
            if self.plan is not None and "embedding" in self.forms:
                raise ValueError(
                    "a plan names no tables of embeddings; give forms=[embedding] and how far in a step "
                    "of its own"
                )
            if not self.forms:
                raise ValueError("forms is empty: name one at least")
            return self

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: samples to run, where errors are followed or samples moved."""
        return "data" if options.sensitivity == "output" or options.widen else "nothing"

    def needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return the second moments of what each candidate reads, where it is to be whitened."""
        from graphopt.passes.lowrank.run import Run

        return Run(model, options, context).needs()

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Choose ranks, fit, and rewrite in graph order; see the module."""
        from graphopt.passes.lowrank.run import Run

        feeds = context.data
        if feeds is not None and options.samples is not None:
            feeds = list(itertools.islice(feeds, options.samples))
        return Run(model, options, context).run(feeds)
