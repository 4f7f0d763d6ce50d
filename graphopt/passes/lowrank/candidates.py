"""Which operators may be factorised, and what each way would cost and lose."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.rewrite import attribute, input_at, is_op, is_overridable
from graphopt.ir.stream import is_finite
from graphopt.ir.tensors import constant_of
from graphopt.passes.lowrank import forms
from graphopt.passes.lowrank.forms import Geometry
from graphopt.recover.linear import Linear, linear_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as oir

    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.lowrank.forms import Form
    from graphopt.passes.lowrank.prospects import Prospect


@dataclass(frozen=True, slots=True)
class Candidate:
    """An operator that may be factorised.

    Attributes:
        linear: The operator.
        geometry: What its costs depend on.
        forms: The forms that it can take.
    """

    linear: Linear
    geometry: Geometry
    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked of a factorisation.

    Attributes:
        forms: Forms to consider.
        round_to: Ranks are multiples of this.
        min_gain: A form must save at least this factor of MACs (of parameters where *of_parameters*).
        of_parameters: Whether parameters count instead of MACs.
        keep: Patterns of node names that are left alone.
    """

    forms: tuple[Form, ...]
    round_to: int
    min_gain: float
    of_parameters: bool
    keep: tuple[str, ...]

    def rounded(self, rank: int) -> int:
        """Return *rank*, rounded up to the alignment."""
        return -(-rank // self.round_to) * self.round_to

    def cost(self, form: Form, ranks: tuple[int, ...], geometry: Geometry) -> int:
        """Return what counts of *form* at *ranks*."""
        return (forms.parameters if self.of_parameters else forms.macs)(form, ranks, geometry)

    def full_cost(self, geometry: Geometry) -> int:
        """Return what counts of the operator as it is."""
        return geometry.parameters if self.of_parameters else geometry.macs


def find(
    model: Model, shapes: Shapes, rules: Rules, dims: Shapes
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return the candidates of *model* in graph order, and what is none with the reason.

    Args:
        model: The model.
        shapes: Its shapes.
        rules: What is asked.
        dims: Shapes in which every dim is a number, for the costs.
    """
    found, skipped = [], []
    for node in model.nodes():
        if not is_op(node, "Conv", "Gemm", "MatMul"):
            continue
        linear = linear_of(node, shapes)
        where = f"{node.op_type} {node.name or node.outputs[0].name!r}"
        if isinstance(linear, str):
            weight = input_at(node, 1)
            if weight is not None and is_overridable(weight):
                linear = (
                    "callers may override its weight; canonicalize{freeze_initializers=true} before it "
                    "says that nobody does"
                )
            # A MatMul of two activations has no weight; that is nothing to tell.
            if node.op_type != "MatMul" or (
                "input is a constant" not in linear and linear != "its weight is no constant"
            ):
                skipped.append((where, linear))
            continue
        reason = _refused(linear, rules)
        if reason:
            skipped.append((where, reason))
            continue
        possible = tuple(form for form in rules.forms if not forms.applicable(linear, form))
        if not possible:
            reasons = dict.fromkeys(forms.applicable(linear, form) for form in rules.forms)
            skipped.append((where, "; ".join(reasons)))
            continue
        found.append(Candidate(linear, _geometry(linear, dims), possible))
    if not found and not skipped:
        skipped.append(("model", "no Conv, Gemm or MatMul has a stored weight"))
    return found, skipped


def _refused(linear: Linear, rules: Rules) -> str:
    name = linear.node.name or ""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in rules.keep):
        return "kept by name"
    weight = linear.node.inputs[1]
    assert weight is not None
    if len(weight.uses()) > 1:
        return "others read its weight"
    if weight.is_graph_output():
        return "its weight is an output of the model"
    tensor = constant_of(weight)
    assert tensor is not None
    if not is_finite(tensor) or not math.isfinite(attribute(linear.node, "alpha", 1.0)):
        return "its weight holds NaN or infinity"
    return ""


def _geometry(linear: Linear, dims: Shapes) -> Geometry:
    m, d = linear.shape
    kernel = linear.kernel
    inputs = d // math.prod(kernel) if kernel else d
    node = linear.node
    out, source = _numbers(dims, node.outputs[0]), _numbers(dims, node.inputs[0])
    positions = max(math.prod(out) // m, 1) if out else 1
    across = source_positions = positions
    if len(kernel) == 2 and out and source and len(out) == len(source) == 4:
        across = out[0] * out[2] * source[3]
        source_positions = source[0] * source[2] * source[3]
    return Geometry(m, inputs, kernel, positions, across, source_positions)


def _numbers(dims: Shapes, value: oir.Value | None) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 1 for dim in dims.shape(value) or ())


def ranks_of(candidate: Candidate, form: Form, rules: Rules) -> Iterator[tuple[int, ...]]:
    """Yield the ranks at which *form* is worth it, rising; multiples of ``rules.round_to``."""
    geometry = candidate.geometry
    limit = rules.full_cost(geometry) / rules.min_gain
    full = forms.full_ranks(form, geometry)
    step = rules.round_to
    if form == "tucker":
        seen: set[tuple[int, ...]] = set()
        for share in range(1, 17):
            ranks = tuple(
                min(max(round(full_one * share / 16 / step) * step, step), full_one) for full_one in full
            )
            if ranks not in seen and rules.cost(form, ranks, geometry) <= limit:
                seen.add(ranks)
                yield ranks
        return
    unit = rules.cost(form, (1,), geometry)
    last = min(int(limit / unit), full[0])
    for rank in range(step, last + 1, step):
        yield (rank,)


def uniform_ranks(candidate: Candidate, form: Form, rules: Rules, ratio: float) -> tuple[int, ...] | None:
    """Return the largest ranks whose cost is at most *ratio* of the operator's, or None."""
    allowed = ratio * rules.full_cost(candidate.geometry)
    fitting = [
        ranks
        for ranks in ranks_of(candidate, form, rules)
        if rules.cost(form, ranks, candidate.geometry) <= allowed
    ]
    return fitting[-1] if fitting else None


@dataclass(frozen=True, slots=True)
class Way:
    """One way to write one weight.

    Attributes:
        form: The form.
        ranks: Its ranks.
        cost: What counts of it.
        loss: Share of the output's energy that is lost.
    """

    form: Form
    ranks: tuple[int, ...]
    cost: int
    loss: float


def ways_of(candidate: Candidate, prospect: Prospect, rules: Rules, *, few: int = 24) -> list[Way]:
    """Return the ways to write *candidate*; of forms but thin at most *few* ranks."""
    ways = []
    for form in candidate.forms:
        ranks = list(ranks_of(candidate, form, rules))
        if form != "thin":
            ranks = _thinned(ranks, few)
        for each in ranks:
            cost = rules.cost(form, each, candidate.geometry)
            ways.append(Way(form, each, cost, prospect.loss(form, each)))
    return ways


def ranks_at(candidate: Candidate, rules: Rules, rank: int) -> dict[Form, tuple[int, ...]]:
    """Return the forms that are worth it at one rank; of two ranks (tucker) none exceeds its full one."""
    geometry = candidate.geometry
    found = {}
    for form in candidate.forms:
        full = forms.full_ranks(form, geometry)
        ranks = tuple(min(rank, one) for one in full)
        cost = rules.cost(form, ranks, geometry)
        if rank <= max(full) and cost * rules.min_gain <= rules.full_cost(geometry):
            found[form] = ranks
    return found


def ways_at(candidate: Candidate, prospect: Prospect, rules: Rules, rank: int) -> list[Way]:
    """Return the ways to write *candidate* at one rank."""
    return [
        Way(form, ranks, rules.cost(form, ranks, candidate.geometry), prospect.loss(form, ranks))
        for form, ranks in ranks_at(candidate, rules, rank).items()
    ]


def _thinned(items: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    if len(items) <= most:
        return list(items)
    places = np.unique(np.linspace(0, len(items) - 1, most).astype(int))
    return [items[place] for place in places]
