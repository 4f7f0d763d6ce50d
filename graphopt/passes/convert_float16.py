"""convert-float16: compute in half precision where the type and the data allow it, or store weights so.

Types are inferred, not guessed from names: a node becomes half where its operator has a form for it and
nothing that flows through it exceeds the type. Casts stand only where float and half meet.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.calibrate.needs import Needs
    from graphopt.ir import Model
    from graphopt.ir.tensors import Array

_BFLOAT16_OPSET = 13


class ConvertFloat16(Pass):
    """Compute in float16 or bfloat16, or store weights in it."""

    info = PassInfo(
        name="convert-float16",
        summary="Compute in float16 or bfloat16 where types and ranges allow it, or only store weights so.",
        lossy=True,
    )

    class Options(PassOptions):
        """Which type, for what, and what stays float."""

        dtype: Literal["float16", "bfloat16"] = Field(
            default="float16", description="the half-precision type (float16 or bfloat16)"
        )
        form: Literal["compute", "storage"] = Field(
            default="compute",
            description="compute in it, or only store weights in it, with a Cast to float that is folded at "
            "load: every target runs that",
        )
        keep_io: bool = Field(
            default=True, description="inputs and outputs of the model keep their types (true or false)"
        )
        keep: tuple[str, ...] = Field(
            default=(), description="names of nodes that stay float (patterns with * and ?)"
        )
        keep_ops: tuple[str, ...] = Field(default=(), description="operators that stay float (their types)")
        headroom: float = Field(
            default=2.0,
            ge=1.0,
            description="with data or statistics, nodes stay float where a value reaches the largest number "
            "of the type over this factor (a factor)",
        )
        min_elements: int = Field(
            default=256, ge=1, description="with form=storage, smallest weight (a number of elements)"
        )

    def lowest_opset(self, options: Options) -> int:
        """Return the first version in which operators take bfloat16, where that is asked for."""
        return _BFLOAT16_OPSET if options.dtype == "bfloat16" else self.info.min_opset

    def needs(self, model: Model, options: Options, context: Context) -> Needs:
        """Return the ranges of all float values, where there is data to take them from."""
        from graphopt.calibrate.needs import Needs

        if options.form == "storage":
            _check_opset(model, options)
            return Needs()
        shapes = context.analysis("shapes")
        names = []
        for node in model.graph:
            for value in node.outputs:
                dtype = shapes.dtype(value)
                if value.name and dtype is not None and dtype.name == "FLOAT":
                    names.append(value.name)
        names += [value.name or "" for value in model.graph.inputs]
        needs = Needs(ranges=frozenset(name for name in names if name))
        return needs if context.has_statistics(needs) else Needs()

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Convert; see the module.

        Raises:
            OptionError: The target does not compute in the type, or the opset has no such form.
        """
        if options.form == "storage":
            _check_opset(model, options)
            return _store(model, options)
        from graphopt.ir.dead import remove_unread
        from graphopt.passes.cleanup.annotations import annotated_names
        from graphopt.passes.precision.conversion import Conversion

        _check(model, options, context)
        needs = self.needs(model, options, context)
        conversion = Conversion(
            model,
            context.analysis("shapes"),
            dtype=options.dtype,
            keep=options.keep,
            keep_ops=options.keep_ops,
            keep_io=options.keep_io,
            statistics=context.statistics(needs) if needs else None,
            headroom=options.headroom,
        )
        constants = [value for graph in model.graphs() for value in graph.initializers.values()]
        constants += [node.outputs[0] for node in model.nodes() if node.op_type == "Constant"]
        read = [value for value in constants if value.uses()]
        conversion.run()
        remove_unread(read, keep=annotated_names(model))
        counts = {key: number for key, number in sorted(conversion.counts.items()) if number}
        if conversion.overridable:
            reason = (
                f"{conversion.overridable} initializers that callers may override stay float and are cast in "
                "every run; canonicalize{freeze_initializers=true} before it says that nobody does"
            )
            conversion.skipped.append(("model", reason))
        if not counts and not conversion.skipped:
            conversion.skipped.append(("model", "no node computes in float32"))
        return Report(changed=bool(counts), counts=counts, skipped=tuple(conversion.skipped))


def _check(model: Model, options: ConvertFloat16.Options, context: Context) -> None:
    from graphopt.errors import OptionError

    rules = context.target.half
    if rules is not None and options.dtype not in rules.computes:
        raise OptionError(
            f"the target {context.target.name!r} does not compute in {options.dtype}",
            where="option 'dtype'",
            hint=f"form=storage stores weights as {options.dtype} and computes in float"
            + (f"; it computes in {', '.join(rules.computes)}." if rules.computes else "."),
        )
    _check_opset(model, options)


def _check_opset(model: Model, options: ConvertFloat16.Options) -> None:
    from graphopt.errors import OptionError

    if options.dtype == "bfloat16" and model.opset < _BFLOAT16_OPSET:
        raise OptionError(
            f"the model has opset {model.opset}, which has no bfloat16",
            where="option 'dtype'",
            hint=f"Put upgrade-opset{{to={_BFLOAT16_OPSET}}} in front.",
        )


def _store(model: Model, options: ConvertFloat16.Options) -> Report:
    """Store float weights as halves behind a Cast."""
    import fnmatch

    from graphopt.ir import rewrite, stream, tensors
    from graphopt.passes.cleanup.annotations import annotated_names
    from graphopt.passes.constants.expressions import Made, Writer, put_in_place
    from graphopt.passes.precision.streaming import half_tensor, tensor_fits

    counts: Counter[str] = Counter()
    skipped: list[tuple[str, str]] = []
    annotated = annotated_names(model)
    writer = Writer(model)
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype.name != "FLOAT" or tensor.size < options.min_elements:
                continue
            where = f"weight {value.name!r}"
            names = [value.name or "", *(node.name or "" for node in value.consumers())]
            reason = ""
            if tensors.is_overridable(value) or value.is_graph_output() or value.name in annotated:
                reason = "callers or annotations know it by its name and type"
            elif any(fnmatch.fnmatchcase(name, pattern) for pattern in options.keep for name in names):
                reason = "it is to be kept"
            elif not value.uses():
                reason = "nothing reads it"
            elif tensor.nbytes // 2 >= tensors.stored_bytes(tensor):
                reason = "as a sparse tensor it takes fewer bytes"
            elif not tensor_fits(tensor, options.dtype):
                reason = f"it holds numbers beyond the largest {options.dtype}"
            if reason:
                skipped.append((where, reason))
                continue
            half = half_tensor(tensor, options.dtype, f"{value.name}_codes")
            # What is in memory goes as an array: equal ones become one initializer.
            held: Array | oir.Value = (
                rewrite.add_initializer(model, graph, f"{value.name}_codes", half)
                if stream.is_in_file(half)
                else tensors.to_array(half)
            )
            made = Made("Cast", (held,), {"to": int(tensor.dtype)})
            put_in_place(model, writer, value, made)
            counts["weights_stored"] += 1
            counts["bytes_saved"] += tensor.nbytes // 2
    if not counts and not skipped:
        reason = (
            f"no float32 initializer has {options.min_elements} elements or more; canonicalize makes "
            "initializers of Constant nodes"
        )
        skipped.append(("model", reason))
    return Report(changed=bool(counts), counts=dict(sorted(counts.items())), skipped=tuple(skipped))
