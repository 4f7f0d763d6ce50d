"""share-weights: weights as palettes of a few shared values, and one weight where several are alike.

A palette is stored as codes and a codebook that a Gather looks up. The runtime does that once, when it loads
the model: the file becomes smaller by the ratio of the bits, and what runs is what ran before, on the values
of the codebook.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model
    from graphopt.passes.palettes.candidates import Candidate


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

        bits: int | Literal["auto"] = Field(
            default=4,
            description="bits of a code (1 to 8, or auto for the fewest that reach sqnr_db in each weight)",
        )
        sqnr_db: float = Field(
            default=30.0,
            ge=0.0,
            description="with bits=auto, least signal to error of every weight (dB)",
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

    def needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return the mean squares of the inputs of all weights, where errors are to be weighted."""
        from graphopt.calibrate.needs import Needs
        from graphopt.passes.palettes.candidates import needs_of

        needs = needs_of(self._candidates(model, options)[0])
        if options.weighting == "none" or (options.weighting == "auto" and not context.has_statistics(needs)):
            return Needs()
        return needs

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Share what is alike, then give each weight its palette.

        Raises:
            OptionError: bits are out of range, or the opset has no uint4.
        """
        import math

        from graphopt.ir import rewrite
        from graphopt.ir.stream import is_finite
        from graphopt.ir.tensors import nbytes
        from graphopt.passes.cleanup.sharing import Sharing
        from graphopt.passes.constants.expressions import Writer, put_in_place
        from graphopt.passes.palettes.candidates import importance
        from graphopt.passes.palettes.choose import Wish, choose, is_constant
        from graphopt.passes.palettes.sharing import share_nearly_equal
        from graphopt.passes.palettes.storage import encode, lookup

        uint4 = _check(model, options)
        needs = self.needs(model, options, context)
        statistics = context.statistics(needs) if needs else None
        counts: Counter[str] = Counter()
        sharing = Sharing(model, options.min_elements)
        sharing.initializers()
        counts.update(sharing.counts)
        candidates, skipped = self._candidates(model, options)
        skipped += list(sharing.skips)
        finite = []
        for candidate in candidates:
            where = f"weight {candidate.name!r}"
            if not is_finite(candidate.tensor):
                skipped.append((where, "it holds NaN or infinities"))
            elif is_constant(candidate.tensor):
                skipped.append((where, "all its elements are the same; synthesize-constants takes it"))
            else:
                finite.append(candidate)
        extra: dict[str, object] = {}
        if options.share_within > 0:
            finite, shared = share_nearly_equal(model, finite, options.share_within)
            counts["nearly_equal_shared"] += len(shared)
            if shared:
                extra["shared"] = shared
        wish = Wish(
            None if options.bits == "auto" else options.bits,
            options.sqnr_db,
            options.granularity,
            options.group_size,
            options.spacing,
        )
        writer = Writer(model)
        told: list[dict[str, object]] = []
        for done, candidate in enumerate(finite):
            context.progress(done, len(finite))
            where = f"weight {candidate.name!r}"
            mass = importance(candidate, statistics)
            if statistics is not None and mass is None and candidate.activation is not None:
                reason = statistics.skipped.get(
                    candidate.activation[0], "its input has no moments that fit it"
                )
                skipped.append((where, f"its errors are not weighted: {reason}"))
            choice = choose(candidate, mass, wish)
            palette = choice.palette
            before = nbytes(candidate.tensor)
            after = (candidate.size * palette.bits + palette.overhead_bits()) // 8
            if after >= before:
                skipped.append((where, f"as a palette it would take {after} bytes instead of {before}"))
                continue
            graph = candidate.value.graph
            assert graph is not None
            stored = [
                rewrite.add_initializer(model, graph, plane.name or "codes", plane)
                for plane in encode(candidate.tensor, palette, candidate.name, uint4=uint4)
            ]
            made = lookup(stored, palette, candidate.dims, candidate.tensor.dtype.numpy(), uint4=uint4)
            put_in_place(model, writer, candidate.value, made)
            counts["palettes"] += 1
            counts["bytes_saved"] += before - after
            told.append(
                {
                    "weight": candidate.name,
                    "bits": palette.bits,
                    "clusters": int(palette.codebooks.size),
                    "form": palette.form,
                    "weighted": mass is not None,
                    "sqnr_db": None if math.isinf(choice.sqnr_db) else round(choice.sqnr_db, 2),
                    "exact": choice.exact,
                    "bytes": [before, after],
                }
            )
        if told:
            extra["palettes"] = told
        return Report(
            changed=any(counts.values()),
            counts={key: number for key, number in sorted(counts.items()) if number},
            skipped=tuple(skipped),
            extra=extra,
        )

    def _candidates(self, model: Model, options: Options) -> tuple[list[Candidate], list[tuple[str, str]]]:
        from graphopt.passes.cleanup.annotations import annotated_names
        from graphopt.passes.palettes.candidates import find_candidates

        return find_candidates(
            model, min_elements=options.min_elements, keep=options.keep, annotated=annotated_names(model)
        )


def _check(model: Model, options: ShareWeights.Options) -> bool:
    """Return whether 4-bit codes are stored as uint4."""
    from graphopt.errors import OptionError
    from graphopt.passes.palettes.storage import UINT4_OPSET

    if options.bits != "auto" and not 1 <= options.bits <= 8:
        raise OptionError(f"codes have 1 to 8 bits, not {options.bits}", where="option 'bits'")
    if options.storage == "uint4" and model.opset < UINT4_OPSET:
        raise OptionError(
            f"the model has opset {model.opset}, which has no uint4",
            where="option 'storage'",
            hint=f"Put upgrade-opset{{to={UINT4_OPSET}}} in front, or use storage=bytes, which is as small.",
        )
    return options.storage != "bytes" and model.opset >= UINT4_OPSET
