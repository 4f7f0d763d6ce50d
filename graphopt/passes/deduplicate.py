"""deduplicate: say each thing once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from graphopt.api import Pass, PassInfo, PassOptions, Report
from graphopt.ir.collector import collector_paused
from graphopt.passes.cleanup.sharing import Sharing

if TYPE_CHECKING:
    from graphopt.api import Context
    from graphopt.ir import Model


class Deduplicate(Pass):
    """Merge equal initializers and nodes that compute the same from the same inputs.

    Initializers are equal where type, shape and bytes are; only those that agree in type and shape are read,
    and external ones are read in pieces. Overridable initializers are never merged; one that is an output of
    the model, or that a quantization annotation names, keeps its name. A large initializer of a subgraph
    gives way to an equal one of a graph around it.

    Nodes are equal where operator, inputs and attributes are and the operator is deterministic; operands of
    Add, Mul and other operators that commute to the bit count in any order. Nodes with subgraphs are left
    alone, those inside of them are not. Outputs of the model keep their names.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="deduplicate",
        summary="Merge equal initializers and nodes that compute the same.",
        preserves=frozenset({"shapes", "statistics"}),
    )

    class Options(PassOptions):
        """Options of deduplicate."""

        initializers: bool = Field(
            default=True, description="whether equal initializers are merged (true or false)"
        )
        expressions: bool = Field(
            default=True, description="whether nodes that compute the same are merged (true or false)"
        )
        min_bytes: int = Field(
            default=0, ge=0, description="smallest initializer that is worth merging, in bytes of its tensor"
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Merge initializers first, so that nodes that read equal ones are seen to be equal."""
        del context
        sharing = Sharing(model, options.min_bytes)
        # One key a node, all alive until the end: nothing for the collector to find.
        with collector_paused():
            if options.initializers:
                sharing.initializers()
            if options.expressions:
                sharing.expressions()
        counts = {key: count for key, count in sorted(sharing.counts.items()) if count}
        return Report(changed=bool(counts), counts=counts, skipped=sharing.skips)
