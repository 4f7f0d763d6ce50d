"""synthesize-constants: compute constants that have structure, and store what occurs twice once.

A causal mask is two numbers and a diagonal, however large it is; a head that is tied to its embedding is its
transpose. The runtime computes such nodes once, when it loads the model, and runs what it ran before.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir import Model


class SynthesizeConstants(Pass):
    """Replace large constants with structure by the few nodes that compute them, bit for bit."""

    info = PassInfo(
        name="synthesize-constants",
        summary="Compute fills, ranges, masks, identities and repeated blocks, and store tied weights once.",
        preserves=frozenset({"shapes", "statistics"}),
    )

    class Options(PassOptions):
        """Which constants."""

        min_bytes: int = Field(
            default=1024, ge=1, description="smallest constant to look at, in bytes of its tensor"
        )
        ties: bool = Field(
            default=True,
            description="store weights that are equal, transposed or reshaped others once (true or false)",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Share what is equal, then look at each constant on its own; exact, -0.0 and NaN included."""
        del context
        from graphopt.ir import tensors
        from graphopt.passes.cleanup.annotations import annotated_names
        from graphopt.passes.cleanup.sharing import Sharing
        from graphopt.passes.constants.expressions import Writer, put_in_place
        from graphopt.passes.constants.structures import MIN_OPSET, TYPES, find_structure
        from graphopt.passes.constants.ties import Ties

        counts: Counter[str] = Counter()
        skipped: dict[tuple[str, str], None] = {}
        if options.ties:
            sharing = Sharing(model, options.min_bytes)
            sharing.initializers()
            counts.update(sharing.counts)
            skipped.update(dict.fromkeys(sharing.skips))
        annotated = annotated_names(model)
        writer, ties = Writer(model), Ties()
        found: list[dict[str, object]] = []
        for value in _constants(model):
            tensor = tensors.constant_of(value)
            if tensor is None or tensors.nbytes(tensor) < options.min_bytes:
                continue
            where = f"constant {value.name!r}"
            reason = _kept(value, annotated)
            if not reason and model.opset < MIN_OPSET:
                reason = (
                    f"opset {model.opset} has no ConstantOfShape; upgrade-opset{{to={MIN_OPSET}}} would help"
                )
            if reason:
                skipped[where, reason] = None
                continue
            plain = tensor.dtype.name.lower()
            array = tensors.to_array(tensor)
            if array.dtype.name not in TYPES:
                skipped[where, f"its type {plain} is not computed by the runtime's kernels"] = None
                continue
            made = find_structure(array, model.opset)
            kind = "synthesized"
            source = ""
            if made is None and options.ties and value.is_initializer():
                tie = ties.find(value, array)
                if tie is not None:
                    made, kind, source = tie[1], "tied", tie[0].name or ""
            if made is None:
                continue
            name = value.name or ""
            put_in_place(model, writer, value, made)
            counts[kind] += 1
            counts["bytes_saved"] += int(array.nbytes)
            found.append(
                {
                    "constant": name,
                    "bytes": int(array.nbytes),
                    "nodes": list(made.op_types),
                    **({"same_as": source} if source else {}),
                }
            )
        if not counts and not skipped:
            reason = (
                f"no constant of {options.min_bytes} bytes or more has a structure that nodes could compute"
            )
            skipped["model", reason] = None
        extra: dict[str, object] = {"constants": found} if found else {}
        return Report(
            changed=any(counts.values()),
            counts={key: number for key, number in sorted(counts.items()) if number},
            skipped=tuple(skipped),
            extra=extra,
        )


def _constants(model: Model) -> list[oir.Value]:
    values: list[oir.Value] = []
    for graph in model.graphs():
        values += graph.initializers.values()
        values += (node.outputs[0] for node in graph if node.op_type == "Constant" and not node.domain)
    return values


def _kept(value: oir.Value, annotated: frozenset[str]) -> str:
    """Return why *value* must stay a stored constant, or ""."""
    from graphopt.ir.semantics import WeightRole, weight_roles

    if value.is_graph_output():
        return "it is an output of the graph"
    if value.name in annotated:
        return "a quantization annotation names it"
    if not value.uses():
        return "nothing reads it"
    if any(weight_roles(node).get(index) is WeightRole.SCALE for node, index in value.uses()):
        return "it is a scale or zero point, which runtimes want as a stored constant"
    return ""
