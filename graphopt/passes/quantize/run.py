"""One run of insert-qdq: from options and rules to settings, from candidates to a placement that pays."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from graphopt.api import Report
from graphopt.calibrate.needs import Needs
from graphopt.errors import OptionError, ProviderError, nearest
from graphopt.passes.quantize.candidates import Candidates, Compute, function_graphs, named
from graphopt.passes.quantize.emission import Emitter
from graphopt.passes.quantize.feedback import Feedback, rows_of
from graphopt.passes.quantize.placement import Placement, place
from graphopt.passes.quantize.plans import read_decisions
from graphopt.passes.quantize.ranges import Ranges
from graphopt.passes.quantize.search import NOTHING_PAYS, Search, Variant
from graphopt.passes.quantize.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as oir

    from graphopt.api import Context
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.targets.quantize import QuantizeRules

_PER_CHANNEL_OPSET = 13
_WIDE_OPSET = 21
_FIRST_OPSET = 10


class Quantizer:
    """Quantises one model.

    Args:
        model: The model; changed in place by :meth:`run`.
        options: Options of insert-qdq.
        context: Target, statistics, measurements.
        shapes: Shapes of *model*; those of the context by default.
    """

    def __init__(
        self,
        model: Model,
        options: Any,  # noqa: ANN401 - of a pass above
        context: Context,
        *,
        shapes: Shapes | None = None,
    ) -> None:
        self.model = model
        self.options = options
        self.context = context
        self.rules = self._rules()
        self.settings = self._settings()
        self.shapes: Shapes = context.analysis("shapes") if shapes is None else shapes
        self.skipped: tuple[tuple[str, str], ...] = ()
        self.intervals: dict[str, tuple[float, float]] = {}
        self.planned = {} if options.plan is None else read_decisions(options.plan)

    def _rules(self) -> QuantizeRules:
        rules = self.context.target.quantize
        if rules is None:
            raise OptionError(
                f"the target {self.context.target.name!r} says nothing about static quantisation",
                where="insert-qdq",
                hint="Choose another --target, or add a [quantize] table to it.",
            )
        if self.options.op_types:
            known = {*rules.compute_ops, "ConvTranspose"}
            for name in self.options.op_types:
                if name not in known:
                    raise OptionError(
                        f"no rule for {name!r} among op_types", where="insert-qdq", hint=nearest(name, known)
                    )
            rules = rules.model_copy(update={"compute_ops": tuple(self.options.op_types)})
        return rules

    def _settings(self) -> Settings:
        options, rules = self.options, self.rules
        activation = options.activation_dtype or rules.activation_dtype
        weight = options.weight_dtype or rules.weight_dtype
        symmetric = options.symmetric_weights
        if symmetric is None:
            symmetric = weight.startswith("int")
        needed = _FIRST_OPSET
        if options.per_channel:
            needed = _PER_CHANNEL_OPSET
        if "16" in activation + weight:
            needed = _WIDE_OPSET
        self.opset = self._opset(needed)
        reduce_range = options.reduce_range == "on" or (
            options.reduce_range == "auto" and rules.saturating and _saturates()
        )
        return Settings(
            activation_dtype=activation,
            weight_dtype=weight,
            symmetric_activations=rules.symmetric_activations
            if options.symmetric_activations is None
            else options.symmetric_activations,
            symmetric_weights=symmetric,
            per_channel=options.per_channel,
            quantize_bias=(options.bias or rules.bias) == "int32",
            reduce_range=reduce_range,
        )

    def _opset(self, needed: int) -> int:
        """Return the version of the default domain to write for, the lowest for the codes being *needed*."""
        current, asked = self.model.opset, self.options.opset
        why = {13: "one scale a channel", 21: "a code of 16 bits"}.get(needed, "QuantizeLinear")
        if asked == "auto":
            return max(current, needed)
        if asked == "keep":
            if current >= needed:
                return current
            raise OptionError(
                f"{why} needs opset {needed}, the model is of opset {current}",
                where="option 'opset'",
                hint=f"Set opset=auto, or put upgrade-opset{{to={needed}}} in front of it"
                + (", or set per_channel=false." if needed == _PER_CHANNEL_OPSET else "."),
            )
        if asked < max(current, needed):
            reason = f"{why} needs opset {needed}" if current < needed else f"the model is of opset {current}"
            raise OptionError(
                f"asked for {asked}, and {reason}"
                + ("" if current < needed else "; an opset is never lowered"),
                where="option 'opset'",
                hint=f"Ask for {max(current, needed)} or more, or set opset=auto.",
            )
        return int(asked)

    def candidates(self) -> list[Compute]:
        """Return what may run on codes, always in the same order; ``skipped`` names the rest."""
        found = Candidates(self.model, self.shapes, self.rules, self._chosen)
        self.skipped = tuple(found.skipped)
        return found.computes

    def _chosen(self, node: oir.Node) -> str:
        """Return why the user wants *node* to stay float, or ""."""
        options, name = self.options, node.name or ""
        if name in options.keep_float:
            return "keep_float names it"
        if not self.planned.get(named(node), True):
            return "the plan keeps it float"
        if options.include and not any(fnmatch.fnmatchcase(name, each) for each in options.include):
            return "no pattern of include fits its name"
        for pattern in options.exclude:
            if fnmatch.fnmatchcase(name, pattern):
                return f"the pattern {pattern!r} of exclude fits its name"
        return ""

    def _allows_link(self, node: oir.Node) -> bool:
        name = node.name or ""
        if name in self.options.keep_float or not self.planned.get(named(node), True):
            return False
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.options.exclude)

    def place(
        self, computes: Iterable[Compute], usable: Callable[[oir.Value], bool], *, links: bool = True
    ) -> Placement:
        """Return the placement for *computes*."""

        def allowed(value: oir.Value) -> bool:
            if not self.options.quantize_inputs and value.is_graph_input():
                return False
            if not self.options.quantize_outputs and value.is_graph_output():
                return False
            return usable(value)

        inside = function_graphs(self.model)
        nodes = [node for graph in self.model.graphs() if graph not in inside for node in graph]
        return place(computes, nodes, self.rules, allowed, lambda node: links and self._allows_link(node))

    def needs(self) -> Needs:
        """Return the ranges of all values that may be quantised, and what feedback reads."""
        placement = self.place(self.candidates(), lambda _: True)
        names = {value.name for value in placement.values if value.name}
        # A chain may end at another value once a range turned out unusable.
        for each in placement.computes:
            names.update(value.name for value in (each.data, each.result) if value.name)
        rows = [rows_of(each, self.shapes) for each in placement.computes] if self.options.feedback else []
        grams = frozenset(each for each in rows if not isinstance(each, str))
        return Needs(ranges=frozenset(names), grams=grams)

    def _ranges(self, statistics: Statistics) -> Ranges:
        return Ranges(
            self.model,
            statistics,
            self.options.calibrator,
            self.options.percentile,
            self.settings,
            self.rules.shared_scale_ops,
            self.intervals,
        )

    def quantise(
        self, statistics: Statistics, variant: Variant, feedback: Feedback | None = None
    ) -> tuple[Emitter, Placement] | None:
        """Write the nodes of *variant* as codes into the model; None where nothing is left to write."""
        computes = [each for index, each in enumerate(self.candidates()) if index in variant.nodes]
        ranges = self._ranges(statistics)
        placement = self.place(computes, ranges.usable, links=variant.links)
        if not placement.computes:
            return None
        emitter = Emitter(self.model, self.shapes, ranges.grids(placement), self.settings, feedback)
        emitter.run(placement)
        return emitter, placement

    def run(self) -> Report:
        """Quantise in place and say what was done."""
        found = self.candidates()
        self._check_names()
        skipped = [*self._patterns(), *self.skipped]
        if not found:
            return Report(changed=False, skipped=(*skipped, ("model", "no node can run on codes")))
        statistics = self.context.statistics(self.needs())
        ranges = self._ranges(statistics)
        placement = self.place(found, ranges.usable)
        possible = self._possible(found, placement, ranges, skipped)
        if not possible:
            return Report(changed=False, skipped=(*skipped, ("model", "no node can run on codes")))
        variant = Variant(frozenset(possible))
        extra: dict[str, object] = {}
        if self._measures():
            search = Search(self.context, self.model, self.builder(statistics), found)
            outcome = search.run(variant)
            extra["measured"] = search.described()
            kept = sorted(variant.nodes - (outcome.nodes if outcome is not None else frozenset()))
            reason = "it is not faster on codes, as measured" if outcome is not None else NOTHING_PAYS
            skipped += [(found[index].label, reason) for index in kept]
            if outcome is None:
                skipped.append(("model", NOTHING_PAYS + self._way_out(found)))
                return Report(changed=False, skipped=tuple(skipped), extra=extra)
            variant = outcome
        elif self.options.measure == "auto":
            what = "data" if self.context.can_measure else f"provider {self.context.target.provider!r}"
            skipped.append(("measure=auto", f"there is no {what} here to measure with: float may be faster"))
        labels = [each.label for each in found]
        feedback = None
        if self.options.feedback:
            feedback = Feedback(statistics.grams, found, self.shapes, self.settings)
        written = self.quantise(statistics, variant, feedback)
        assert written is not None
        emitter, placement = written
        if feedback is not None:
            emitter.counts["fed_back"] = len(feedback.told)
            extra["feedback"] = feedback.told
            skipped += feedback.skipped
        if emitter.raised:  # their biases are large beside their weights
            extra["scales_raised_for_bias"] = emitter.raised
            emitter.counts["scales_raised_for_bias"] = len(emitter.raised)
        extra["quantised"] = [name for index, name in enumerate(labels) if index in variant.nodes]
        warnings = () if feedback is None else tuple(dict.fromkeys(feedback.warnings))
        return Report(
            changed=True, counts=emitter.counts, skipped=tuple(skipped), extra=extra, warnings=warnings
        )

    def _way_out(self, found: list[Compute]) -> str:
        """Name the pass that may still pay where there are matrix products."""
        if not any(each.kind in {"matmul", "gemm"} for each in found) or self.context.target.dynamic is None:
            return ""
        return "; quantize-dynamic and quantize-weights leave activations float"

    def _possible(
        self, found: list[Compute], placement: Placement, ranges: Ranges, skipped: list[tuple[str, str]]
    ) -> list[int]:
        """Return which of *found* are placed, and name the others."""
        placed = {each.node for each in placement.computes}
        refused = [each for each in found if each.node not in placed]
        for each in refused:
            value = next((value for value in (each.data, each.result) if value in ranges.unusable), None)
            why = "inputs or outputs of the model are to stay float"
            if value is not None:
                why = f"value {value.name!r}: {ranges.unusable[value]}"
            skipped.append((each.label, why))
        if self.rules.depthwise == "with-pointwise" and any(each.kind == "depthwise" for each in refused):
            # Between float depthwise convolutions every pointwise one pays for two conversions.
            for each in found:
                if each.node in placed and each.kind in {"depthwise", "pointwise"}:
                    placed.discard(each.node)
                    skipped.append((each.label, "a depthwise convolution of the net stays float"))
        return [index for index, each in enumerate(found) if each.node in placed]

    def _check_names(self) -> None:
        """Refuse names of keep_float and of the plan that no node has."""
        known = {each for node in self.model.nodes() for each in (node.name, named(node)) if each}
        for name in (*self.options.keep_float, *self.planned):
            if name not in known:
                where = "keep_float" if name in self.options.keep_float else str(self.options.plan)
                raise OptionError(
                    f"the model has no node {name!r}", where=where, hint=nearest(name, known, what="nodes")
                )

    def _patterns(self) -> list[tuple[str, str]]:
        """Name the patterns of include and exclude that fit no node: most likely a mistake."""
        names = [node.name or "" for node in self.model.nodes()]
        return [
            (f"{option} {pattern!r}", "no node has a name that it fits")
            for option in ("include", "exclude")
            for pattern in getattr(self.options, option)
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
        ]

    def _measures(self) -> bool:
        wanted = self.options.measure
        if wanted == "off":
            return False
        possible = self.context.can_measure
        if wanted == "on" and not possible:
            raise ProviderError(
                f"measure=on, and nothing can be measured on {self.context.target.provider!r} here",
                where="insert-qdq",
                hint="Give --measurements of a machine that has the provider, or set measure=auto.",
            )
        return possible and (wanted == "on" or self.context.data is not None or self.context.replays)

    def builder(self, statistics: Statistics) -> Callable[[Variant], Model | None]:
        """Return what makes a quantised copy of the model for a variant, None where nothing is left of it."""

        def build(variant: Variant) -> Model | None:
            from graphopt.ir.shapes import infer_shapes

            copy = self.model.clone()
            other = Quantizer(copy, self.options, self.context, shapes=infer_shapes(copy))
            other.intervals = self.intervals
            return copy if other.quantise(statistics, variant) is not None else None

        return build


def _saturates() -> bool:
    """Return whether 8-bit products saturate on this processor: x86 without VNNI."""
    import platform
    from pathlib import Path

    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "vnni" not in flags
