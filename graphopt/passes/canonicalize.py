"""canonicalize: one way to say each thing, and nothing said that changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from graphopt.api import Pass, PassInfo, PassOptions, Report
from graphopt.ir.collector import collector_paused
from graphopt.passes.cleanup.facts import Facts
from graphopt.passes.cleanup.rules import GENERAL, by_operator
from graphopt.passes.cleanup.workbench import Workbench

if TYPE_CHECKING:
    from graphopt.api import Context
    from graphopt.ir import Model


class Canonicalize(Pass):
    """Bring a model to the form that other passes expect, node by node, in time linear in its size.

    Constant nodes become initializers (not in functions, whose bodies cannot hold any, nor before IR version
    4, where an initializer had to be an input). Operators whose output equals an input are dropped: Identity,
    Cast to the type at hand, Dropout that does not train, Reshape, Expand, Slice, Pad, Tile, Transpose and
    others that leave everything in place, neutral operands, operators that undo or repeat the one before.
    Rearrangements in a row are merged. Optional inputs at their default, optional outputs that nothing reads
    and trailing omitted inputs go.

    Every rewrite is exact to the bit, with one exception: adding a positive zero is dropped although it would
    turn -0.0 into 0.0.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="canonicalize",
        summary="Turn Constant nodes into initializers and drop or merge nodes that change nothing.",
        preserves=frozenset({"statistics"}),
    )

    class Options(PassOptions):
        """Options of canonicalize."""

        freeze_initializers: bool = Field(
            default=False,
            description="whether initializers that are inputs too lose their input, so that callers can no"
            " longer override them and passes may fold them (true or false)",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Rewrite *model* until no rule applies."""
        freeze = options.freeze_initializers and model.ir_version >= 4
        frozen = _freeze(model) if freeze else 0
        bench = Workbench(model, Facts(model, context))
        with collector_paused():
            bench.run(by_operator(), GENERAL)
        bench.counts["initializers_frozen"] = frozen
        counts = {key: count for key, count in sorted(bench.counts.items()) if count}
        overridable = () if freeze else _overridable(model)
        return Report(changed=bool(counts), counts=counts, skipped=(*bench.skips, *overridable))


def _freeze(model: Model) -> int:
    """Take initializers off the inputs of the main graph and return how many."""
    inputs = model.graph.inputs
    kept = [value for value in inputs if not value.is_initializer()]
    frozen = len(inputs) - len(kept)
    if frozen:
        inputs[:] = kept
    return frozen


def _overridable(model: Model) -> tuple[tuple[str, str], ...]:
    names = [value.name for value in model.graph.inputs if value.is_initializer()]
    if not names:
        return ()
    listed = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    remedy = "see freeze_initializers" if model.ir_version >= 4 else "IR versions before 4 demand it"
    reason = f"{len(names)} initializers are inputs too and stay overridable: {listed}; {remedy}"
    return (("graph inputs", reason),)
