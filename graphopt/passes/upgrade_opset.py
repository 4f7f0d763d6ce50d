"""upgrade-opset: write the model for a newer version of the default ONNX domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from graphopt.api import Pass, PassInfo, PassOptions, Report
from graphopt.passes.opset.adapters import FIRST
from graphopt.passes.opset.upgrade import check_range, upgrade

if TYPE_CHECKING:
    from graphopt.api import Context
    from graphopt.ir import Model


class UpgradeOpset(Pass):
    """Raise the version of the default domain, in the main graph, its subgraphs and the functions.

    A node whose operator did not change is kept as it is. One whose form changed (attributes that became
    inputs, Upsample that became Resize) is rewritten, one whose meaning changed (the axis of Softmax) too,
    with helper nodes where there is no direct way. Names of values, metadata and weights stay. A node that
    cannot be written for the newer version fails the pass; nothing is ever changed silently. Other domains
    stay. The IR version rises only where the opset came with a newer one.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="upgrade-opset",
        summary="Rewrite the model for a newer version of the default ONNX domain.",
        preserves=frozenset({"statistics"}),
    )

    class Options(PassOptions):
        """Options of upgrade-opset."""

        to: int | None = Field(
            default=None,
            ge=FIRST,
            description="version of the default domain to reach; none: the lowest that serves the plan",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Check what is asked for, then rewrite node by node."""
        current = model.opset
        if options.to is None:
            return _unchanged(
                f"opset {current}", "no version was asked for and no later pass needs a newer one"
            )
        if current == 0:
            return _unchanged("model", "it does not import the default domain")
        check_range(current, options.to, context.target, f"upgrade-opset{{to={options.to}}}")
        before = model.ir_version
        counts, notes = upgrade(model, options.to, "upgrade-opset")
        versions = {"opset": [current, model.opset], "ir_version": [before, model.ir_version]}
        return Report(changed=bool(counts), counts=counts, skipped=tuple(notes), extra=versions)


def _unchanged(where: str, reason: str) -> Report:
    return Report(changed=False, skipped=((where, reason),))
