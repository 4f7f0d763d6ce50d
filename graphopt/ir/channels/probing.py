"""Delete-and-run probing: learn how an operator ties its indices by deleting one and running it.

Where deleting one index from a minimal set of input dims leaves an operator that still runs, these dims
belong together. What the deletion does to the result says how: the result lacks that index and is the same
otherwise (*pass*); it is the same as with the index set to zero (*contract*); it differs (*approximate*: a
norm, a mean). A finding counts only if it holds for half of the indices at once, too. Dims of two are left
alone, for with one of two indices gone they broadcast.

It is the fallback for operators without a rule, and in the tests a second opinion on every rule.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.ir.channels.types import ChannelRule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.ir.channels.types import Probe
    from graphopt.ir.channels.view import NodeView

Array = np.ndarray[Any, Any]
Dims = tuple[tuple[int, int], ...]

_MAX_RUNS = 400
_MAX_TOGETHER = 5
_MAX_ELEMENTS = 1 << 21
_SMALLEST_DIM = 3


@dataclass(frozen=True, slots=True)
class Coupling:
    """Dims of inputs that lose an index together.

    Attributes:
        dims: (input, dim) of each.
        outputs: (output, dim) of each dim of a result that loses it with them.
        effect: What the loss does; "contract" beside outputs is that of a recurrent state.
    """

    dims: Dims
    outputs: Dims
    effect: Literal["pass", "contract", "approximate"]


@dataclass(slots=True)
class Subject:
    """One operator with inputs to run it on.

    Attributes:
        op_type: The operator.
        inputs: Its inputs; None is an omitted one.
        domain: Domain of the operator.
        opset: Version of that domain.
        attributes: Python values by name.
        outputs: How many outputs it has.
    """

    op_type: str
    inputs: list[Array | None]
    domain: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int

    def run(self, probe: Probe, inputs: Sequence[Array | None]) -> list[Array] | None:
        """Return the outputs for other inputs, None where the operator refuses them."""
        try:
            return probe(self.domain, self.op_type, self.opset, inputs, self.attributes, self.outputs)
        except GraphoptError:
            return None


def learn(subject: Subject, probe: Probe) -> list[Coupling] | None:
    """Return what belongs together in *subject*; None where it does not run, or never runs the same."""
    whole = subject.run(probe, subject.inputs)
    again = subject.run(probe, subject.inputs)
    if whole is None or again is None or not all(map(_equal, whole, again)):
        return None
    dims = [
        (index, axis)
        for index, array in enumerate(subject.inputs)
        if array is not None and array.dtype.kind == "f"
        for axis in range(array.ndim)
        if array.shape[axis] >= _SMALLEST_DIM
    ]
    found: list[Coupling] = []
    runs = 0
    for count in range(1, _MAX_TOGETHER + 1):
        for together in itertools.combinations(dims, count):
            sizes = {_array(subject, index).shape[axis] for index, axis in together}
            known = any(set(item.dims) <= set(together) for item in found)
            if len(sizes) > 1 or known or len({index for index, _ in together}) < count:
                continue
            runs += 1
            if runs > _MAX_RUNS:
                return found
            coupling = _try(subject, probe, whole, together)
            if coupling is not None:
                found.append(coupling)
    return found


def _array(subject: Subject, index: int) -> Array:
    array = subject.inputs[index]
    assert array is not None
    return array


def _try(subject: Subject, probe: Probe, whole: list[Array], together: Dims) -> Coupling | None:
    size = _array(subject, together[0][0]).shape[together[0][1]]
    one = np.zeros(size, bool)
    one[1] = True
    first = _classify(subject, probe, whole, together, one)
    if first is None:
        return None
    half = np.zeros(size, bool)
    half[::2] = True
    half[1] = True
    half[-1] = False
    second = _classify(subject, probe, whole, together, half)
    return first if second == first else None


def _classify(
    subject: Subject, probe: Probe, whole: list[Array], together: Dims, gone: Array
) -> Coupling | None:
    smaller, zeroed = list(subject.inputs), list(subject.inputs)
    for index, axis in together:
        smaller[index] = np.compress(~gone, _array(subject, index), axis=axis)
    index, axis = together[0]
    zeroed[index] = np.where(_along(gone, axis, _array(subject, index).ndim), 0, _array(subject, index))
    results = subject.run(probe, smaller)
    if results is None or any(one.ndim != other.ndim for one, other in zip(whole, results, strict=True)):
        return None
    outputs: list[tuple[int, int]] = []
    for number, (one, other) in enumerate(zip(whole, results, strict=True)):
        changed = [k for k in range(one.ndim) if one.shape[k] != other.shape[k]]
        if len(changed) > 1 or any(one.shape[k] != len(gone) for k in changed):
            return None
        outputs += [(number, k) for k in changed]
    if _same_but_for(whole, results, outputs, gone):
        return Coupling(together, tuple(outputs), "pass") if outputs else None
    masked = subject.run(probe, zeroed)
    if masked is not None and _same_but_for(masked, results, outputs, gone):
        return Coupling(together, tuple(outputs), "contract")
    return Coupling(together, tuple(outputs), "approximate")


def _along(gone: Array, axis: int, rank: int) -> Array:
    return gone.reshape([-1 if k == axis else 1 for k in range(rank)])


def _same_but_for(
    whole: Sequence[Array], smaller: Sequence[Array], outputs: Sequence[tuple[int, int]], gone: Array
) -> bool:
    axes = dict(outputs)
    return all(
        _equal(np.compress(~gone, one, axis=axes[k]) if k in axes else one, other)
        for k, (one, other) in enumerate(zip(whole, smaller, strict=True))
    )


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True))


def fallback_rule(probe: Probe | None) -> ChannelRule:
    """Return the rule for operators that have none: what *probe* finds out, else locks."""

    def constrain(view: NodeView) -> None:
        subject = None if probe is None else _subject(view)
        found = None if subject is None or probe is None else learn(subject, probe)
        if found:
            _apply(view, found)
        else:
            view.give_up()

    return ChannelRule("", constrain)


def _subject(view: NodeView) -> Subject | None:
    generator = np.random.default_rng(0)
    inputs: list[Array | None] = []
    for index in range(len(view.node.inputs)):
        if not view.has(index):
            inputs.append(None)
            continue
        dims, dtype = view.shape(index), view.dtype(index)
        if dtype is None or min(dims, default=1) < 1 or np.prod(dims) > _MAX_ELEMENTS:
            return None
        content = view.constant(index)
        if dtype.is_floating_point():
            inputs.append((generator.standard_normal(dims) ** 2 + 0.1).astype(dtype.numpy()))
        elif content is not None:
            inputs.append(content)
        else:
            return None
    return Subject(
        view.node.op_type,
        inputs,
        view.node.domain,
        view.opset,
        {name: found.value for name, found in view.node.attributes.items()},
        len(view.node.outputs),
    )


def _apply(view: NodeView, found: Sequence[Coupling]) -> None:
    """State as equations what was found out, and lock all dims that nothing was found out about."""
    ranks = [len(view.output_shape(index)) for index in range(len(view.node.outputs))]
    labels: list[list[list[Coupling]]] = [[[] for _ in range(rank)] for rank in ranks]
    tied: set[tuple[int, int]] = set()
    for coupling in found:
        # A dim in two couplings is one of which nobody knows which index goes with which.
        if tied & set(coupling.dims):
            for index, axis in coupling.dims:
                view.lock(view.axes(index)[axis], "is tied to several dims")
            continue
        tied.update(coupling.dims)
        first = view.axes(coupling.dims[0][0])[coupling.dims[0][1]]
        for index, axis in coupling.dims[1:]:
            view.same(first, view.axes(index)[axis])
        if coupling.effect == "approximate":
            view.approximate(first)
        elif coupling.effect == "contract" and len(coupling.dims) > 1:
            view.contract(*coupling.dims[0], *coupling.dims[1])
        elif coupling.effect == "contract":
            view.summed(*coupling.dims[0])
        for output, axis in coupling.outputs:
            labels[output][axis].append(coupling)
    for index in range(len(view.node.inputs)):
        for axis, label in enumerate(view.axes(index) if view.has(index) else ()):
            if (index, axis) not in tied:
                view.lock(label, "what it does to this dim could not be found out")
    for output, axes in enumerate(labels):
        result = []
        for couplings in axes:
            sources = [view.axes(item.dims[0][0])[item.dims[0][1]] for item in couplings]
            for source in sources[1:]:
                view.same(sources[0], source)
            result.append(sources[0] if sources else None)
        view.emit(result, output)
