"""infer-shapes: write down what inference knows about types and shapes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as oir
from pydantic import Field

from graphopt.api import Pass, PassInfo, PassOptions, Report
from graphopt.ir import rewrite
from graphopt.ir.inference.walk import describe
from graphopt.ir.shapes import infer_shapes

if TYPE_CHECKING:
    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.ir.shapes import Shapes

_Dim = int | str | None


class InferShapes(Pass):
    """Give every value of the main graph and its subgraphs the type and shape that inference finds.

    Inputs of graphs stay as they are, and so do the names of symbolic dims. Outputs of the model are only
    refined: an unknown dim may become known, nothing that they state changes. What a Loop or Scan collects
    from its iterations stays as the body declares it, because that decides what no iterations give. Bodies of
    functions are left
    alone, because they hold for every call. Sizes bound with ``--dim`` are not written: they bind one run,
    not the model.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="infer-shapes",
        summary="Write inferred element types and shapes into the model.",
        provides=frozenset({"shapes"}),
        preserves=frozenset({"shapes", "cost", "statistics"}),
    )

    class Options(PassOptions):
        """Options of infer-shapes."""

        overwrite: bool = Field(
            default=False,
            description="replace declared element types and dims that inference contradicts (yes or no)",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Infer, then visit every value once."""
        del context
        writer = _Writer(infer_shapes(model), overwrite=options.overwrite)
        main_outputs = set(model.graph.outputs)
        collected = _collected(model)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in graph:
                for value in node.outputs:
                    if value.name and value not in collected:
                        writer.visit(value, node, is_output=value in main_outputs)
        counts = {key: count for key, count in sorted(writer.counts.items()) if count}
        return Report(
            changed=writer.changed,
            counts=counts,
            skipped=tuple(writer.skipped),
            extra={"inference_errors": [list(error) for error in writer.shapes.errors]},
        )


def _collected(model: Model) -> set[oir.Value]:
    """Return what bodies of Loop and Scan hand out each time, for the node to collect.

    Without an iteration the runtime takes the shape of the collection from what these declare.
    """
    found: set[oir.Value] = set()
    for node in model.graph.all_nodes():
        if not rewrite.is_op(node, "Loop", "Scan"):
            continue
        for body in rewrite.node_graphs(node):
            scanned = rewrite.attribute(node, "num_scan_inputs", 0)
            first = len(body.inputs) - (1 if node.op_type == "Loop" else scanned)
            found.update(body.outputs[max(first, 0) :])
    return found


class _Writer:
    def __init__(self, shapes: Shapes, *, overwrite: bool) -> None:
        self.shapes = shapes
        self.overwrite = overwrite
        self.changed = False
        self.counts: Counter[str] = Counter()
        self.skipped: list[tuple[str, str]] = []
        self._errors = dict(shapes.errors)

    def visit(self, value: oir.Value, node: oir.Node, *, is_output: bool) -> None:
        """Write what is known about *value*, an output of *node*."""
        type_ = self.shapes.type(value)
        if type_ is None:
            self._note_unknown(value, node, "type")
            return
        if value.type is None:
            value.type = type_
            self._did("types_added")
        elif isinstance(value.type, oir.TensorType) and value.type.dtype != type_.dtype:
            self._contradiction(value, value.type.dtype.name, type_.dtype.name, is_output=is_output)
            if self.overwrite and not is_output:
                value.type = type_
                self._did("overwritten")
        if isinstance(type_, oir.TensorType):
            self._shape(value, node, is_output=is_output)

    def _shape(self, value: oir.Value, node: oir.Node, *, is_output: bool) -> None:
        found = self.shapes.shape(value)
        if found is None:
            if value.shape is None:
                self._note_unknown(value, node, "shape")
            return
        inferred = [self._writable(dim) for dim in found]
        if value.shape is None:
            value.shape = oir.Shape(inferred)
            self._did("shapes_added")
            self.counts["dims_unknown"] += sum(dim is None for dim in inferred)
            return
        declared: list[_Dim] = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        if len(declared) != len(inferred):
            self._contradiction(value, f"rank {len(declared)}", f"rank {len(inferred)}", is_output=is_output)
            if self.overwrite and not is_output:
                value.shape = oir.Shape(inferred)
                self._did("overwritten")
            return
        merged = [self._merge(a, b, is_output=is_output) for a, b in zip(declared, inferred, strict=True)]
        wrong = [k for k, (a, b) in enumerate(zip(declared, inferred, strict=True)) if _contradicts(a, b)]
        if wrong:
            self._contradiction(value, _show(declared), _show(inferred), is_output=is_output)
        self.counts["dims_unknown"] += sum(dim is None for dim in merged)
        if merged != declared:
            overwritten = any(merged[k] != declared[k] for k in wrong)
            value.shape = oir.Shape(merged)
            self._did("overwritten" if overwritten else "shapes_refined")

    def _merge(self, declared: _Dim, inferred: _Dim, *, is_output: bool) -> _Dim:
        if declared is None:
            return inferred
        if inferred is None:
            return declared
        if _contradicts(declared, inferred):
            return inferred if self.overwrite and not is_output else declared
        # The name of a dim is kept, except where inference knows its number and no caller sees the name.
        return inferred if isinstance(inferred, int) and not is_output else declared

    def _writable(self, dim: _Dim) -> _Dim:
        """Return *dim* as the model may state it: generated symbols mean nothing to others."""
        return None if isinstance(dim, str) and "?" in dim and not self.shapes.is_declared(dim) else dim

    def _did(self, key: str) -> None:
        self.changed = True
        self.counts[key] += 1

    def _contradiction(self, value: oir.Value, declared: str, inferred: str, *, is_output: bool) -> None:
        if self.overwrite and not is_output:
            return
        reason = f"declared as {declared}, inferred as {inferred}"
        reason += (
            "; outputs of the model are never overwritten" if is_output else "; overwrite=true replaces it"
        )
        self.skipped.append((f"value {value.name!r}", reason))
        self.counts["contradicted"] += 1

    def _note_unknown(self, value: oir.Value, node: oir.Node, what: str) -> None:
        self.counts[f"{what}s_unknown"] += 1
        # Only where the trail ends: what follows is unknown because this is.
        sources = [self.shapes.type(source) for source in node.inputs if source is not None]
        if None in sources:
            return
        tensors = [source for source in node.inputs if isinstance(self.shapes.type(source), oir.TensorType)]
        if what == "shape" and any(self.shapes.shape(source) is None for source in tensors):
            return
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        reason = (
            self._errors.get(describe(node)) or f"{what} unknown: {operator} depends on data or has no rule"
        )
        self.skipped.append((f"value {value.name!r}", reason))


def _contradicts(declared: _Dim, inferred: _Dim) -> bool:
    """Return whether a dim is declared as a number that inference finds to be another one, or free."""
    return isinstance(declared, int) and inferred is not None and declared != inferred


def _show(dims: list[_Dim]) -> str:
    return f"[{','.join('?' if dim is None else str(dim) for dim in dims)}]"
