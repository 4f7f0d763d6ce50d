"""The analysis as callers see it: :func:`analyse` a model, look at its families, cut it, mask it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import OptionError, nearest
from graphopt.ir.channels.cutting import Keeping, cut_model
from graphopt.ir.channels.families import families_in, find_locks, find_units, table_of
from graphopt.ir.channels.inlining import calls_functions, prepare
from graphopt.ir.channels.opening import bind_open_dims
from graphopt.ir.channels.propagation import Propagation
from graphopt.ir.channels.rules import rule_table
from graphopt.ir.channels.types import ChannelRule, Consumer, Mask, column_of
from graphopt.ir.collector import collector_paused
from graphopt.ir.rewrite import input_at
from graphopt.ir.semantics import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as oir

    from graphopt.ir.channels.families import Units
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.types import Family, Kept, Layout, Lock, Probe
    from graphopt.ir.model import Model
    from graphopt.ir.shapes import Shapes

    KeptUnits = Mapping[str, Sequence[int]]


class Channels:
    """What may be removed from one model, and how.

    Families are cut by the indices of the units that are *kept*; families that a mapping does not name stay
    whole. Values are told apart by name, in the model as :func:`prepare` leaves it.

    Attributes:
        families: All families of two units or more, in graph order of their first producer.
        locks: Who locks which dims of constants, and why.
    """

    def __init__(self, run: Propagation, units: Units, rules: Mapping[tuple[str, str], ChannelRule]) -> None:
        self._run = run
        self._units = units
        self._rules = rules
        self._index = {family.name: k for k, family in enumerate(units.families)}
        self._axes: dict[str, Sequence[Array | None]] | None = None
        self._found: dict[int, tuple[tuple[str, Array], ...]] = {}
        self.families: tuple[Family, ...] = tuple(units.families)
        self.locks: tuple[Lock, ...] = find_locks(run)

    def family(self, name: str) -> Family:
        """Return the family called *name*.

        Raises:
            OptionError: There is none.
        """
        if name not in self._index:
            raise OptionError(
                "there is no such family of channels", where=repr(name), hint=nearest(name, self._index)
            )
        return self.families[self._index[name]]

    def cut(self, model: Model, kept: KeptUnits) -> dict[str, int]:
        """Remove all units but the kept ones from *model*, in place.

        Args:
            model: The analysed model or a clone of it; weights may hold other numbers.
            kept: Indices of the units that stay, by family; at least one each.

        Returns:
            Counts: ``tensors`` sliced and ``nodes`` rewritten.

        Raises:
            OptionError: A family is unknown, a unit is out of range, or nothing would be left of a dim.
            PassFailed: *model* has another structure than the analysed one.
        """
        keeping = self._keeping(kept)
        for value, axes in self._run.labels.items():
            for axis in axes:
                keep = keeping.keep(axis)
                if keep is not None and not keep.any():
                    raise OptionError(
                        "nothing would be left of one of its dims",
                        where=f"value {value.name!r}",
                        hint="Keep more units of the families that run through it.",
                    )
        with collector_paused():
            prepare(model)
            return cut_model(model, keeping, self._rules)

    def masks(self, kept: KeptUnits) -> tuple[Mask, ...]:
        """Return the masks that make the original compute what the cut model computes, for exact families.

        Each is multiplied onto a value that some operator sums over.
        """
        keeping = self._keeping(kept)
        found: dict[tuple[str, int], Mask] = {}
        for item in self._run.contractions:
            value = input_at(item.node, item.input)
            keeps = keeping.of_input(item.node, item.input)
            keep = keeps[item.axis] if keeps else None
            if keep is None or value is None:
                continue
            axis, weight = item.axis, None if item.weight is None else input_at(item.node, item.weight)
            if value.producer() is None and weight is not None:
                # The state of a loop has no node behind which to multiply; its weight does as well.
                value, axis = weight, item.weight_axis
            name = value.name or ""
            found.setdefault((name, axis), Mask(name, axis, keep))
        return tuple(found.values())

    def approximate(self, kept: KeptUnits) -> tuple[str, ...]:
        """Return the nodes, by first output, that take a norm, mean or extremum over a dim that shrinks."""
        keeping = self._keeping(kept)
        return tuple(
            dict.fromkeys(
                key_of(node) for node, axis in self._run.approximations if keeping.keep(axis) is not None
            )
        )

    def consumers(self, family: Family | str) -> tuple[Consumer, ...]:
        """Return the linear operators that sum over the units of *family*, in graph order."""
        return self._consumers.get(family if isinstance(family, str) else family.name, ())

    @cached_property
    def _consumers(self) -> dict[str, tuple[Consumer, ...]]:
        """The consumers of all families, found in one walk: a walk per family is quadratic in the graph."""
        found: dict[str, list[Consumer]] = {}
        for item in self._run.contractions:
            value = input_at(item.node, item.input)
            axes = self._run.axes_of_use(item.node, item.input)
            axis = axes[item.axis] if axes else None
            if axis is None or value is None or self._run.is_parameter(value):
                continue
            table = table_of(self._units, self._run.slots.atoms(axis))
            weight = None if item.weight is None else input_at(item.node, item.weight)
            for index in families_in(table):
                found.setdefault(self.families[index].name, []).append(
                    Consumer(
                        key_of(item.node),
                        item.input,
                        value.name or "",
                        item.axis,
                        column_of(table, index, 0),
                        "" if weight is None else weight.name or "",
                        item.weight_axis,
                    )
                )
        return {name: tuple(consumers) for name, consumers in found.items()}

    def layout(self, value: str) -> Layout:
        """Return the families in each dim of a value or constant, () for one that carries none.

        Of a constant that several nodes read, the first place of use counts.
        """
        axes = self._by_name().get(value, ())
        return tuple(self._families_in(axis) for axis in axes)

    def layout_of(self, node: oir.Node, index: int) -> Layout:
        """Return the families in each dim of input *index* of *node*, a node of the analysed model.

        Unlike :meth:`layout` it tells the places of use of one constant apart.
        """
        value = input_at(node, index)
        if value is None:
            return ()
        # Not axes_of_use, which labels what the analysis never came to: such dims carry nothing.
        axes = self._run.labels.get(value) or self._run.uses.get((node, index)) or ()
        return tuple(self._families_in(axis) for axis in axes)

    def _families_in(self, axis: Array | None) -> tuple[tuple[str, Array], ...]:
        if axis is None:
            return ()
        # Most values share their dims with others; the run keeps the arrays, so that an id stays whose it is.
        found = self._found.get(id(axis))
        if found is None:
            table = table_of(self._units, self._run.slots.atoms(axis))
            found = self._found[id(axis)] = tuple(
                (self.families[family].name, column_of(table, family, column))
                for family, columns in families_in(table).items()
                for column in range(columns)
            )
        return found

    def kept_counts(self, kept: KeptUnits) -> Mapping[str, tuple[int | None, ...]]:
        """Return how many indices stay of each dim of every value and constant that shrinks, None for all."""
        keeping = self._keeping(kept)
        result = {}
        for name, axes in self._by_name().items():
            keeps = [keeping.keep(axis) for axis in axes]
            if any(keep is not None for keep in keeps):
                result[name] = tuple(None if keep is None else int(keep.sum()) for keep in keeps)
        return result

    def keeps(self, kept: KeptUnits, value: str) -> tuple[Kept | None, ...]:
        """Return which indices stay of each dim of a value or constant, None for all of them."""
        keeping = self._keeping(kept)
        return tuple(keeping.keep(axis) for axis in self._by_name().get(value, ()))

    def _by_name(self) -> dict[str, Sequence[Array | None]]:
        if self._axes is None:
            named: dict[str, Sequence[Array | None]] = {}
            for value, axes in self._run.labels.items():
                named.setdefault(value.name or "", axes)
            for (node, index), axes in self._run.uses.items():
                read = input_at(node, index)
                if read is not None:
                    named.setdefault(read.name or "", axes)
            self._axes = named
        return self._axes

    def _keeping(self, kept: KeptUnits) -> Keeping:
        dead = [np.zeros(0, np.int64)]
        for name, stay in kept.items():
            family = self.family(name)
            units = np.array(sorted(set(stay)), np.int64)
            if not len(units) or units[0] < 0 or units[-1] >= family.size:
                raise OptionError(
                    f"the kept units must be some of 0 to {family.size - 1}, at least one",
                    where=f"family {name!r}",
                )
            gone = np.ones(family.size, bool)
            gone[units] = False
            dead.append(self._units.atoms[self._index[name]][gone])
        return Keeping(self._run, np.concatenate(dead))


def analyse(
    model: Model,
    shapes: Shapes | None = None,
    *,
    dims: Mapping[str, int] | None = None,
    rules: Iterable[ChannelRule] = (),
    probe: Probe | None = None,
) -> Channels:
    """Find the channels of *model* that may be removed; the model is not changed.

    Args:
        model: Any model. It must not be edited while the result is in use; cut a clone.
        shapes: Its inferred shapes, without sizes for open dims, where the caller has them.
        dims: Sizes that open dims may be taken to have; by default some are tried that the model accepts.
            Open dims stay open.
        rules: Rules of plugins for operators of their own; they go before the built-in ones.
        probe: Runs single operators, for those without a rule; without it such operators lock what they
            touch.
    """
    from graphopt.ir.channels.probing import fallback_rule

    with collector_paused():
        if calls_functions(model):
            model, shapes = model.clone(), None
            prepare(model)
        symbolic, concrete = bind_open_dims(model, shapes, dims or {})
        table = rule_table(rules)
        run = Propagation(model, symbolic, concrete, table, fallback_rule(probe))
        run.run()
        return Channels(run, find_units(run), table)


__all__ = ["Channels", "analyse"]
