"""rewrite-residual-sum: write the addition of a residual in front of a LayerNormalization as Sum.

onnxruntime fuses Add and LayerNormalization into a kernel that is slower on the CPU than the two; it does not
know Sum there. The result is the same to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report
from graphopt.ir import tensors
from graphopt.ir.rewrite import is_op, make_node, replace_node

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir import Model

_OPSET = 8  # Sum broadcasts from there on


class RewriteResidualSum(Pass):
    """Write Add as Sum in front of LayerNormalization, whole or in the pieces an exporter makes of it."""

    info = PassInfo(
        name="rewrite-residual-sum",
        summary="Write Add in front of LayerNormalization as Sum, which onnxruntime runs faster on the CPU.",
        preserves=frozenset({"shapes", "statistics"}),
        min_opset=_OPSET,
    )

    class Options(PassOptions):
        """Whether to ask the target."""

        force: bool = Field(
            default=False, description="also where the target is not known to gain from it (true or false)"
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Rewrite in graph order."""
        rules = context.target.dynamic
        if not options.force and (rules is None or not rules.slow_add):
            reason = (
                f"target {context.target.name} is not known to gain from it; force=true does it all the same"
            )
            return Report(changed=False, skipped=(("model", reason),))
        rewritten = 0
        for node in list(model.nodes()):
            if is_op(node, "Add") and _is_residual(node) and _feeds_normalisation(node.outputs[0]):
                replace_node(model, node, make_node(model, "Sum", list(node.inputs), replaces=[node]))
                rewritten += 1
        if not rewritten:
            reason = "no addition of two computed values stands in front of a LayerNormalization"
            return Report(changed=False, skipped=(("model", reason),))
        return Report(changed=True, counts={"additions": rewritten})


def _is_residual(node: oir.Node) -> bool:
    return len(node.inputs) == 2 and all(
        value is not None and tensors.constant_of(value) is None for value in node.inputs
    )


def _feeds_normalisation(value: oir.Value) -> bool:
    """Return whether LayerNormalization reads *value*, or its mean and what is subtracted from it do."""
    readers = value.consumers()
    if any(is_op(reader, "LayerNormalization") for reader in readers):
        return True
    means = [reader for reader in readers if is_op(reader, "ReduceMean")]
    return any(
        is_op(reader, "Sub") and reader.inputs[1] is mean.outputs[0] for mean in means for reader in readers
    )
