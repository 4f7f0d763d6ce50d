"""sparsify-weights: set the least important elements of weights to zero, in a pattern.

On most targets a zero is multiplied like any other number: what is gained is size, of the file where tensors
are stored sparse, or of an archive of it. The report says which.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.api import Evidence
    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model
    from graphopt.passes.palettes.candidates import Candidate
    from graphopt.passes.sparsity.streaming import Sheet

_SPARSE_IR_VERSION = 5
"""First version of ONNX's IR with sparse initializers."""


NO_WEIGHTS = (
    "no initializer of {least} elements or more is a float weight; canonicalize makes initializers of "
    "Constant nodes"
)


class SparsifyWeights(Pass):
    """Set elements of weights to zero: the smallest, two of four, or blocks."""

    info = PassInfo(
        name="sparsify-weights",
        summary="Set the least important elements of weights to zero: one by one, n of m, or in blocks.",
        preserves=frozenset({"shapes"}),
        lossy=True,
    )

    class Options(PassOptions):
        """How many, in which pattern, judged by what."""

        sparsity: float = Field(
            default=0.5, ge=0.0, lt=1.0, description="share of each weight to set to zero (in [0, 1))"
        )
        pattern: Literal["unstructured", "n:m", "block"] = Field(
            default="unstructured",
            description="single elements, n of each m neighbours along the input channels, or blocks",
        )
        n: int = Field(default=2, ge=1, description="with n:m, elements that stay of each m (a number)")
        m: int = Field(default=4, ge=2, description="with n:m, neighbours that are compared (a number)")
        block_rows: int = Field(default=4, ge=1, description="with block, output channels of a block")
        block_columns: int = Field(default=4, ge=1, description="with block, input channels of a block")
        criterion: Literal["magnitude", "wanda", "entropy"] = Field(
            default="magnitude",
            description="what counts: the magnitude alone, or times the root mean square of the input "
            "(wanda), or times the information that the input carries (entropy); these need data",
        )
        scope: Literal["row", "tensor"] = Field(
            default="tensor",
            description="what elements are compared with: all weights of the same output channel (row), or "
            "the whole weight (tensor)",
        )
        storage: Literal["dense", "sparse"] = Field(
            default="dense",
            description="sparse stores a weight as ONNX sparse initializer where that is smaller (an index "
            "takes 8 bytes)",
        )
        min_elements: int = Field(default=512, ge=1, description="smallest weight (a number of elements)")
        keep: tuple[str, ...] = Field(
            default=(), description="names of nodes or initializers to leave alone (patterns with * and ?)"
        )

        @model_validator(mode="after")
        def _fewer_than_all(self) -> SparsifyWeights.Options:
            if self.n >= self.m:
                raise ValueError(f"n must be less than m, got {self.n}:{self.m}")
            return self

    def evidence(self, options: Options) -> Evidence:
        """Return what it cannot do without: moments of inputs, for all criteria but the magnitude."""
        return "nothing" if options.criterion == "magnitude" else "statistics"

    def needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return the moments of the inputs of all weights, where the criterion asks for them."""
        from graphopt.calibrate.needs import Needs
        from graphopt.passes.palettes.candidates import needs_of

        del context
        return needs_of(_candidates(model, options)[0]) if options.criterion != "magnitude" else Needs()

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Mask weight by weight.

        Raises:
            DataError: The criterion needs data and there are none.
        """
        from graphopt.ir import stream, tensors
        from graphopt.passes.sparsity.masks import factors
        from graphopt.passes.sparsity.streaming import Pattern, Sheet

        pattern = Pattern(
            options.pattern,
            options.sparsity,
            (options.n, options.m),
            (options.block_rows, options.block_columns),
            options.scope,
        )
        needs = self.needs(model, options, context)
        statistics = context.statistics(needs) if needs else None
        counts: Counter[str] = Counter()
        candidates, skipped = _candidates(model, options)
        told: list[dict[str, object]] = []
        for candidate in candidates:
            where = f"weight {candidate.name!r}"
            if not stream.is_finite(candidate.tensor):
                skipped.append((where, "it holds NaN or infinities"))
                continue
            sheet = Sheet(candidate, pattern)
            if reason := _does_not_fit(sheet, options):
                skipped.append((where, reason))
                continue
            if statistics is not None:
                scale = None
                if candidate.activation is not None and candidate.activation in statistics.channels:
                    scale = factors(statistics.channel(*candidate.activation), options.criterion)
                if scale is None or scale.size != sheet.row_length:
                    skipped.append((where, "judged by magnitude: its input has no moments that fit it"))
                else:
                    sheet = Sheet(candidate, pattern, scale)
            rule = sheet.rule()
            outcome = sheet.outcome(rule)
            if not outcome.changed:
                skipped.append((where, "it has these zeros already"))
                if options.storage == "dense":
                    continue
            stored, reason = _store(model, candidate, sheet.masked(rule, candidate.name), options)
            if reason:
                skipped.append((where, reason))
            candidate.value.const_value = stored
            counts["sparsified"] += 1
            counts["zeros"] += outcome.zeros
            told.append(
                {
                    "weight": candidate.name,
                    "sparsity": round(outcome.zeros / candidate.size, 4),
                    "stored": "sparse" if isinstance(stored, tensors.SparseTensor) else "dense",
                }
            )
        extra: dict[str, object] = {}
        if told:
            gain = "size only on this target"
            name = f"{options.n}:{options.m}" if options.pattern == "n:m" else options.pattern
            rules = context.target.sparse
            if rules is not None and name in rules.patterns:
                gain = f"the target computes {name} faster"
            else:
                skipped.append((f"target {context.target.name!r}", f"{gain}: zeros cost what numbers cost"))
            extra = {"gain": gain, "weights": told}
        if not told and not skipped:
            skipped.append(("model", NO_WEIGHTS.format(least=options.min_elements)))
        return Report(
            changed=bool(told), counts=dict(sorted(counts.items())), skipped=tuple(skipped), extra=extra
        )


def _candidates(
    model: Model, options: SparsifyWeights.Options
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    from graphopt.passes.cleanup.annotations import annotated_names
    from graphopt.passes.palettes.candidates import find_candidates

    return find_candidates(
        model, min_elements=options.min_elements, keep=options.keep, annotated=annotated_names(model)
    )


def _does_not_fit(sheet: Sheet, options: SparsifyWeights.Options) -> str:
    rows, inputs = sheet.rows, sheet.row_length
    if options.pattern == "n:m" and inputs % options.m:
        return f"its {inputs} input channels are no multiple of {options.m}"
    if options.pattern == "block" and (rows % options.block_rows or inputs % options.block_columns):
        return (
            f"blocks of {options.block_rows} x {options.block_columns} do not divide its"
            f" {rows} rows of {inputs} inputs"
        )
    if not sheet.kept:
        return f"with sparsity={options.sparsity:g} nothing of it would stay"
    return ""


def _store(
    model: Model, candidate: Candidate, dense: oir.TensorProtocol, options: SparsifyWeights.Options
) -> tuple[oir.TensorProtocol, str]:
    """Return the tensor to hold instead, and why it is dense where sparse was asked for."""
    import numpy as np

    from graphopt.ir import tensors

    name = candidate.name
    if options.storage == "dense":
        return dense, ""
    if model.ir_version < _SPARSE_IR_VERSION:
        return dense, f"IR version {model.ir_version} has no sparse initializers"
    if any(function.graph is candidate.value.graph for function in model.functions.values()):
        return dense, "a function holds no initializers"
    # How many values stay is known only now; they are held in memory.
    flat = tensors.to_array(dense).reshape(-1)
    places = np.flatnonzero(flat).astype(np.int64)
    size = places.size * (8 + flat.itemsize)
    if not places.size:
        return dense, "it holds nothing but zeros; synthesize-constants takes it"
    if size >= flat.nbytes:
        return dense, f"stored sparse it would take {size} bytes instead of {flat.nbytes}"
    values = tensors.from_array(flat[places], name)
    indices = tensors.from_array(places, f"{name}_indices")
    return tensors.SparseTensor(values, indices, candidate.dims, name=name), ""
