"""The work of quantize-weights: choose a form for each weight, make its codes, put them in their place."""

from __future__ import annotations

import importlib.metadata
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from graphopt.api import Report
from graphopt.calibrate.needs import Needs, Rows
from graphopt.errors import UnsupportedModelError
from graphopt.ir.rewrite import is_op
from graphopt.ir.semantics import WeightRole
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.stream import is_in_file
from graphopt.ir.tensors import constant_of, from_array, stored_bytes, to_array
from graphopt.passes.weights import places, recipes
from graphopt.passes.weights.feedback import on_grid
from graphopt.passes.weights.grid import Grid
from graphopt.passes.weights.unpack import Unpacker, replace_clamp
from graphopt.targets.target import release_key

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.api import Context
    from graphopt.calibrate.moments import Gram
    from graphopt.ir import Model
    from graphopt.passes.weights.places import Weight
    from graphopt.targets.weight_only import WeightOnlyRules

_MIN_BLOCK = 16
"""Smallest block that the runtime's kernels take."""

_BLOCK = 128
_IN_MEMORY = 1 << 24  # elements of a weight in a file up to which it is read whole for feedback
_OPSETS = {"axis": 13, "int4": 21, "block": 21, "int2": 25}
_IR_VERSIONS = {4: 10, 2: 13}


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of quantize-weights."""

    bits: Literal[8, 4, 2]
    block_size: int | None
    symmetric: bool
    clip: Literal["none", "mse"]
    refine: Literal["none", "hqq"]
    feedback: bool
    form: Literal["auto", "dequantize", "folded", "matmulnbits"]
    embeddings: Literal["gather", "folded", "keep"]
    min_elements: int
    keep: tuple[str, ...]
    runtime: str | None


class Quantizer:
    """One run over one model."""

    def __init__(self, model: Model, settings: Settings, context: Context) -> None:
        self._model = model
        self._settings = settings
        self._context = context
        self._rules = context.target.weight_only
        self._release = settings.runtime or importlib.metadata.version("onnxruntime")
        self._grid = Grid(settings.bits, settings.symmetric, settings.clip, settings.refine)
        self._counts: Counter[str] = Counter()
        self._skipped: list[tuple[str, str]] = []
        self._notes: list[dict[str, object]] = []
        self._told: dict[str, dict[str, Any]] = {}
        self._grams: dict[Rows, Gram] = {}
        self._shapes = infer_shapes(model, context.dims)
        if settings.feedback:
            self._grams = context.statistics(grams_of(model)).grams

    def run(self) -> Report:
        """Quantise every weight that can be; see quantize_weights."""
        found = places.weights(
            self._model, self._skipped, min_elements=self._settings.min_elements, keep=self._settings.keep
        )
        if found:
            self._check_opset()
        elif not self._skipped:
            self._skipped.append(("model", "no operator reads a stored float weight of two dims or more"))
        for done, weight in enumerate(found):
            self._context.progress(done, len(found))
            try:
                self._quantize(weight)
            except recipes.Unfit as reason:
                self._skipped.append((weight.name, str(reason)))
        if self._notes:
            needed = _IR_VERSIONS.get(self._settings.bits, 0)
            self._model.store.ir_version = max(self._model.ir_version, needed)
        return Report(
            changed=bool(self._notes),
            counts={key: number for key, number in sorted(self._counts.items()) if number},
            skipped=tuple(self._skipped),
            extra={"weights": self._notes} if self._notes else {},
            warnings=tuple(each for told in self._told.values() for each in told.get("warnings", ())),
        )

    def _check_opset(self) -> None:
        """Refuse a model whose opset lacks the type of the codes, before anything is changed.

        Raises:
            UnsupportedModelError: It is too low.
        """
        settings, opset = self._settings, self._model.opset
        needed, what = needed_opset(settings.bits, settings.block_size, settings.form)
        if opset < needed:
            raise UnsupportedModelError(
                f"{what} opset {needed}, the model is of opset {opset}",
                hint=f"Put upgrade-opset{{to={needed}}} before it.",
            )
        limit = max(limits.max_opset for limits in self._context.target.runtime_limits)
        if needed > limit:
            raise UnsupportedModelError(
                f"{what} opset {needed}, and target {self._context.target.name} loads at most {limit}",
                hint="Ask for more bits, or for another target.",
            )

    def _quantize(self, weight: Weight) -> None:
        settings = self._settings
        is_table = any(use.role is WeightRole.TABLE for use in weight.uses)
        if is_table and settings.embeddings == "keep":
            self._skipped.append((weight.name, "embeddings=keep"))
            return
        if settings.form == "folded":
            self._folded(weight)
        elif (
            places.gathers_rows(weight) and settings.embeddings == "gather" and settings.form != "dequantize"
        ):
            self._gathered(weight)
        else:
            layouts = [
                places.product_layout(weight, use, self._rules.ops if self._rules else ("MatMul", "Gemm"))
                for use in weight.uses
            ]
            plain = [layout for layout in layouts if not isinstance(layout, str)]
            others = len(weight.value.uses()) - len(weight.uses)
            same = len(plain) == len(layouts) and len(set(plain)) == 1 and not others
            if settings.form == "dequantize":
                self._dequantized(weight, plain[0] if same else None)
            elif not same:
                reason = next((layout for layout in layouts if isinstance(layout, str)), "its readers differ")
                self._folded(weight, reason)
            elif settings.form == "matmulnbits":
                self._nbits(weight, plain[0])
            else:
                reason = self._why_not_fused(weight, plain[0])
                if reason:
                    self._folded(weight, reason)
                else:
                    self._fused(weight, plain[0])

    def _why_not_fused(self, weight: Weight, layout: tuple[int, int, bool]) -> str:
        """Return why DequantizeLinear in front of a product would not pay; "" where it does."""
        rules = self._rules
        if rules is None:
            return ""  # nothing is known against it, and the form is plain ONNX
        if release_key(self._release) < release_key(rules.fused_since):
            return f"onnxruntime {self._release} does not fuse it; {rules.fused_since} does"
        if any(places.is_quantised_behind(use.node) for use in weight.uses):
            return "what it gives is quantised again"
        if reason := self._mixed_up(layout[1]):
            return reason
        if any(use.node.graph is not weight.value.graph for use in weight.uses):
            return "a body reads it from outside, which the runtime does not fuse"
        inputs, columns, _ = layout
        rows = max((self._rows(use.node) or 0 for use in weight.uses), default=0)
        target = self._context.target.name
        if rows > rules.max_rows:
            return (
                f"{rows} rows at a time are faster with floats on {target}; up to {rules.max_rows} with codes"
            )
        least = rules.min_elements if rows == 1 else rules.min_elements_few_rows
        if inputs * columns < least:
            return f"{inputs * columns} elements are no faster as codes on {target}; from {least} on they are"
        if self._model.opset < _OPSETS["axis"]:
            return f"DequantizeLinear with a scale a channel needs opset {_OPSETS['axis']}"
        return self._blocked(rules, weight)

    def _mixed_up(self, columns: int) -> str:
        """Return why DequantizeLinear in front of a product is computed wrongly; "" where it is not.

        onnxruntime 1.32.0 turns the codes when it fuses, and takes rows of 2 bits to begin at whole bytes.
        """
        per_byte = 8 // self._settings.bits
        if self._settings.bits != 2 or columns % per_byte == 0:
            return ""
        return (
            f"the runtime mixes up codes of 2 bits in {columns} columns, which is no multiple of {per_byte}"
        )

    def _rows(self, node: oir.Node) -> int | None:
        """Return how many rows *node* multiplies at a time, or None where a dim is not known."""
        shape = self._shapes.shape(node.inputs[0])
        if shape is None or not all(isinstance(dim, int) for dim in shape[:-1]):
            return None
        return math.prod(dim for dim in shape[:-1] if isinstance(dim, int))

    @staticmethod
    def _blocked(rules: WeightOnlyRules, weight: Weight) -> str:
        for use in weight.uses:
            after = places.behind(use.node)
            if after is not None and after.op_type in rules.replace_behind and after.domain:
                return f"{after.op_type} of another domain stands behind"
        return ""

    def _block(self) -> int:
        """Return the block size of products; 0 for one scale a column."""
        settings = self._settings
        return settings.block_size or (0 if settings.bits == 8 else _BLOCK)

    def _product_codes(self, weight: Weight, layout: tuple[int, int, bool]) -> tuple[recipes.Codes, int]:
        rows, columns, turned = layout
        block = self._block()
        weight = self._fed_back(weight, turned=turned, block=block)
        if not block or block >= rows:
            return recipes.by_column(weight.tensor, rows, columns, self._grid, turned=turned), 0
        return recipes.by_columns(weight.tensor, rows, columns, self._grid, block, turned=turned), block

    def _fused(self, weight: Weight, layout: tuple[int, int, bool]) -> None:
        codes, block = self._product_codes(weight, layout)
        unpacker = self._unpacker(weight, codes)
        replaced = self._rules.replace_behind if self._rules is not None else ()
        for use in weight.uses:
            after = places.behind(use.node)
            if after is not None and is_op(after, *replaced) and replace_clamp(self._model, after):
                self._counts["activations_rewritten"] += 1
            unpacker.dequantize(codes, use, axis=0 if block else 1, block=block, turned=layout[2])
        self._done(unpacker, weight, codes, "fused")

    def _nbits(self, weight: Weight, layout: tuple[int, int, bool]) -> None:
        rows, columns, turned = layout
        # Blocks are padded to their full size: one that is much longer than the rows would be all padding.
        block = min(self._settings.block_size or _BLOCK, max(_MIN_BLOCK, 1 << (rows - 1).bit_length()))
        codes = recipes.for_nbits(weight.tensor, rows, columns, self._grid, block, turned=turned)
        unpacker = self._unpacker(weight, codes)
        for use in weight.uses:
            unpacker.nbits(codes, use, rows=rows, columns=columns, bits=self._settings.bits, block=block)
        self._done(unpacker, weight, codes, "matmulnbits")

    def _gathered(self, weight: Weight) -> None:
        lines, length = weight.dims
        grid = replace(self._grid, bits=8)
        codes = recipes.by_lines(weight.tensor, lines, length, grid, length, weight.dims, (lines, 1))
        unpacker = self._unpacker(weight, codes)
        for use in weight.uses:
            unpacker.gather(codes, use)
        self._done(unpacker, weight, codes, "gathered")

    def _dequantized(self, weight: Weight, layout: tuple[int, int, bool] | None) -> None:
        """DequantizeLinear wherever the weight stands, whether the runtime fuses it or not."""
        last = places.contracts_last(weight)
        if layout is None and len(weight.dims) == 2 and last is False:
            layout = (*weight.dims, False)
        if layout is not None and self._rules is not None and (reason := self._mixed_up(layout[1])):
            self._folded(weight, reason)
            return
        if layout is not None:
            codes, block = self._product_codes(weight, layout)
            axis, uses = 0 if block else 1, weight.uses
        else:
            codes, axis, block = self._codes_along_an_axis(weight, last=last)
            uses = tuple(places.Use(node, index, WeightRole.WEIGHT) for node, index in weight.value.uses())
        unpacker = self._unpacker(weight, codes)
        for use in uses:
            unpacker.dequantize(codes, use, axis=axis, block=block, turned=layout is not None and layout[2])
        self._done(unpacker, weight, codes, "dequantized")

    def _codes_along_an_axis(self, weight: Weight, *, last: bool | None) -> tuple[recipes.Codes, int, int]:
        """Return codes with a scale for each index of an axis, the axis, and the block where there is one."""
        dims, block = weight.dims, self._block()
        first, rest = dims[0], weight.size // dims[0]
        if last is False:
            columns = dims[-1]
            codes = recipes.by_column(weight.tensor, weight.size // columns, columns, self._grid, dims=dims)
            return codes, len(dims) - 1, 0
        if places.feeds_transposed_convolutions(weight):
            run = math.prod(dims[2:])
            return recipes.by_column(weight.tensor, first, rest, self._grid, run=run, dims=dims), 1, 0
        if len(dims) == 2 and block and rest % block == 0 and rest > block:
            codes = recipes.by_lines(
                weight.tensor, first, rest, self._grid, block, dims, (first, rest // block)
            )
            return codes, 1, block
        axis = 1 if first == 1 and len(dims) > 2 else 0
        lines = dims[axis]
        rest = weight.size // lines
        return recipes.by_lines(weight.tensor, lines, rest, self._grid, rest, dims, (lines,)), axis, 0

    def _folded(self, weight: Weight, reason: str = "") -> None:
        pays = self._rules is not None and self._rules.folds_casts
        if not pays and self._settings.form == "auto":
            why = reason or "it would be unpacked in every run"
            self._skipped.append((weight.name, f"no form pays on {self._context.target.name}: {why}"))
            return
        needed = _OPSETS.get(f"int{self._settings.bits}", 0)
        if self._model.opset < needed:
            # With form=matmulnbits, whose own codes are bytes, the opset was not asked of the model.
            why = (
                f"not for MatMulNBits: {reason}; other codes of {self._settings.bits} bits need opset "
                f"{needed}, upgrade-opset{{to={needed}}} before it would help"
            )
            self._skipped.append((weight.name, why))
            return
        codes = self._folded_codes(weight)
        unpacker = self._unpacker(weight, codes)
        unpacker.folded(codes, weight.dims)
        self._done(unpacker, weight, codes, "folded", reason)

    def _folded_codes(self, weight: Weight) -> recipes.Codes:
        dims, block = weight.dims, self._block()
        last = places.contracts_last(weight)
        if last is False:
            rows, columns = dims[-2:]
            if len(dims) == 2:
                weight = self._fed_back(weight, turned=False, block=0 if block and rows % block else block)
                if not block or rows % block:
                    per_column = (1, columns)
                    return recipes.by_column(weight.tensor, rows, columns, self._grid, scale_dims=per_column)
            # Of a stack of matrices each has scales of its own.
            size = block if block and rows % block == 0 else rows
            down = weight.size // columns
            return recipes.by_columns(weight.tensor, down, columns, self._grid, size, apart=True)
        # Lines run along the last dim where the others are outputs (LSTM), else they are channels.
        stacked = last or any(
            use.role is WeightRole.RECURRENT_WEIGHT or use.node.op_type in _STACKED for use in weight.uses
        )
        kept = len(dims) - 1 if stacked else 1
        lines, length = math.prod(dims[:kept]), math.prod(dims[kept:])
        if block and length % block == 0 and length > block:
            groups = length // block
            return recipes.by_lines(
                weight.tensor, lines, length, self._grid, block, (lines, groups, block), (lines, groups, 1)
            )
        if places.feeds_transposed_convolutions(weight):
            run = math.prod(dims[2:])
            per_output = (1, dims[1], *(1 for _ in dims[2:]))
            return recipes.by_column(
                weight.tensor, lines, length, self._grid, run=run, dims=dims, scale_dims=per_output
            )
        scale_dims = (*dims[:kept], *(1 for _ in dims[kept:]))
        return recipes.by_lines(weight.tensor, lines, length, self._grid, length, dims, scale_dims)

    def _fed_back(self, weight: Weight, *, turned: bool, block: int) -> Weight:
        """Return *weight* moved onto its grid with error feedback, where that was asked for and can be."""
        if not self._settings.feedback:
            return weight
        recipes.require_finite(weight.tensor)
        rows = Rows.of(weight.uses[0].node, 0)
        if len(weight.uses) > 1 or (is_in_file(weight.tensor) and weight.tensor.size > _IN_MEMORY):
            reason = "error feedback needs a weight with one reader, and no large one in a file"
        elif rows is None or rows not in self._grams:
            reason = "there are no second moments of what it is multiplied with"
        else:
            array = to_array(weight.tensor)
            moved, told = on_grid(
                array.T if turned else array, self._grams[rows], self._grid, block, f"weight {weight.name!r}"
            )
            self._told[weight.name] = told
            self._counts["fed_back"] += 1
            return replace(weight, tensor=from_array(moved.T if turned else moved, weight.name))
        self._skipped.append((weight.name, f"rounded to nearest: {reason}"))
        return weight

    def _unpacker(self, weight: Weight, codes: recipes.Codes) -> Unpacker:
        """Return what puts *codes* in the place of *weight*.

        Raises:
            Unfit: They take no fewer bytes.
        """
        before = stored_bytes(weight.value.const_value or weight.tensor)
        if codes.nbytes >= before:
            if self._told.pop(weight.name, None):
                self._counts["fed_back"] -= 1
            raise recipes.Unfit(f"as codes it would take {codes.nbytes} bytes instead of {before}")
        return Unpacker(self._model, weight)

    def _done(
        self, unpacker: Unpacker, weight: Weight, codes: recipes.Codes, form: str, reason: str = ""
    ) -> None:
        unpacker.drop()
        self._counts[form] += 1
        note: dict[str, object] = {
            "name": weight.name,
            "form": form,
            "bytes_before": stored_bytes(weight.value.const_value or weight.tensor),
            "bytes_after": codes.nbytes,
        }
        note |= self._told.get(weight.name, {})
        if reason:
            note["reason"] = f"not fused: {reason}"
        self._notes.append(note)


def needed_opset(bits: int, block_size: int | None, form: str) -> tuple[int, str]:
    """Return the lowest version of the default domain for codes in a form, and what it is that needs it."""
    if bits < 8 and form != "matmulnbits":
        return _OPSETS[f"int{bits}"], f"codes of {bits} bits need"
    if block_size is not None and form in {"auto", "dequantize"}:
        return _OPSETS["block"], "DequantizeLinear in blocks needs"
    if form == "dequantize":
        return _OPSETS["axis"], "DequantizeLinear with a scale a channel needs"
    return 1, ""


def grams_of(model: Model) -> Needs:
    """Return the second moments of what the products of *model* with constant weights read."""
    found = set()
    for node in model.graph:
        if is_op(node, "MatMul", "Gemm") and len(node.inputs) > 1 and constant_of(node.inputs[1]) is not None:
            rows = Rows.of(node, 0)
            if rows is not None:
                found.add(rows)
    return Needs(grams=frozenset(found))


_STACKED = frozenset({"LSTM", "GRU", "RNN"})
