"""The analysis of channels as policy sees it: families, what they are made of, what a choice removes."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import PassFailed
from graphopt.ir import tensors
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.pruning.criterion import Contraction, Subject, Weight
from graphopt.passes.pruning.masked import values_by_name
from graphopt.runtime.probe import run_node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.ir.channels import Channels, Family, Lock
    from graphopt.ir.shapes import Shapes
    from graphopt.passes.pruning.masked import Mask, Operands
    from graphopt.passes.pruning.meter import Rows

    Units = npt.NDArray[np.intp]
    Kept = Mapping[str, Units]


def examine(model: Model, *, dims: Mapping[str, int], rules: Mapping[str, Any] | None = None) -> Anatomy:
    """Return the families of *model*; operators without a rule are probed on onnxruntime.

    Args:
        model: The model; not changed.
        dims: Sizes bound to symbolic dims, for what families cost. Which families there are does not depend
            on them.
        rules: Channel rules of plugins by name.
    """
    from graphopt.ir.channels import analyse

    opsets = dict(model.opset_imports)

    def probe(
        domain: str,
        op_type: str,
        opset: int,
        inputs: Sequence[npt.NDArray[Any] | None],
        attributes: Mapping[str, Any],
        outputs: int,
    ) -> list[npt.NDArray[Any]]:
        return run_node(
            op_type,
            inputs,
            domain=domain,
            opsets={**opsets, domain: opset},
            attributes=attributes,
            outputs=outputs,
        )

    channels = analyse(model, rules=tuple((rules or {}).values()), probe=probe)
    return Anatomy(model, channels, infer_shapes(model, dims, unbound=1, assume_defaults=True))


class Anatomy:
    """Families of one model, looked up by name.

    Attributes:
        model: The model that was analysed.
        channels: What the analysis found.
        shapes: Shapes of the model with every dim bound.
    """

    def __init__(self, model: Model, channels: Channels, shapes: Shapes) -> None:
        self.model = model
        self.channels = channels
        self.shapes = shapes
        self._families = {family.name: family for family in channels.families}
        self._values = values_by_name(model)

    @property
    def families(self) -> tuple[Family, ...]:
        """All families, in graph order."""
        return self.channels.families

    @property
    def locks(self) -> tuple[Lock, ...]:
        """What cannot be pruned, and why."""
        return self.channels.locks

    def family(self, name: str) -> Family:
        """Return the family called *name*."""
        return self._families[name]

    @cached_property
    def nodes(self) -> dict[str, str]:
        """Names of nodes by the name of their first output."""
        return {
            name: node.name or ""
            for name, value in self._values.items()
            if (node := value.producer()) is not None
        }

    def names(self, family: str) -> list[str]:
        """Return everything that *family* goes by: its own name, its weights and their nodes."""
        found = dict.fromkeys([family])
        for member in self._families[family].members:
            found |= dict.fromkeys([member.name, member.node, self.nodes.get(member.node, "")])
        for consumer in self.channels.consumers(family):
            found |= dict.fromkeys([consumer.node, self.nodes.get(consumer.node, "")])
        return [name for name in found if name]

    def all_names(self) -> list[str]:
        """Return everything that some family goes by, and every node and initializer."""
        found = dict.fromkeys(name for family in self._families for name in self.names(family))
        found |= dict.fromkeys(self._values) | dict.fromkeys(self.nodes.values())
        return list(found)

    def rows(self, node: oir.Node, place: int) -> dict[int, Rows]:
        """Return which units each index of each touched axis of an operand belongs to.

        Args:
            node: A node of the analysed model.
            place: Input *place*, or output -1 - *place*.
        """
        layout = (
            self.channels.layout_of(node, place)
            if place >= 0
            else self.channels.layout(node.outputs[-1 - place].name or "")
        )
        return {axis: rows for axis, rows in enumerate(layout) if rows}

    def width(self, family: str) -> int:
        """Return how many channels one unit is made of where it is made: 64 for a head of 64."""
        found = self._families[family]
        makers = [member for member in found.members if member.role == "producer"] or list(found.members)
        widths = [int((member.units >= 0).sum()) // found.size for member in makers]
        return max(1, min(widths, default=1))

    def readers(self, family: str) -> int:
        """Return how many operators sum over the units of *family*; at least 1."""
        return max(1, len({consumer.node for consumer in self.channels.consumers(family)}))

    def subject(self, name: str, seed: int = 0) -> Subject:
        """Return *name* as a criterion sees it, with the weights as arrays."""
        family = self._families[name]
        weights = {}
        for member in family.members:
            array = self._array(member.name)
            if array is not None:
                weights[member.name, member.axis] = Weight(
                    member.name, array, member.axis, member.units.astype(np.intp), member.role
                )
        contractions = tuple(
            Contraction(
                consumer.value,
                consumer.axis,
                consumer.units.astype(np.intp),
                weights.get((consumer.weight, consumer.weight_axis)),
                self._node(consumer.node),
            )
            for consumer in self.channels.consumers(name)
        )
        return Subject(name, family.kind, family.size, tuple(weights.values()), contractions, seed=seed)

    def _array(self, name: str) -> npt.NDArray[Any] | None:
        value = self._values.get(name)
        tensor = None if value is None else value.const_value
        if tensor is None and value is not None:
            tensor = tensors.constant_of(value)
        return None if tensor is None else tensors.to_array(tensor)

    def cut(self, model: Model, kept: Kept) -> None:
        """Remove all but the *kept* units from a clone of the analysed model."""
        self.channels.cut(model, _lists(kept))

    def masks(self, kept: Kept) -> list[Mask]:
        """Return what to multiply onto activations so that the original computes what the cut does."""
        return [(mask.value, mask.axis, mask.keep) for mask in self.channels.masks(_lists(kept))]

    def compressed(self, kept: Kept) -> dict[str, Operands]:
        """Return the nodes that norm or reduce a cut axis, by first output: what stays of each operand."""
        result: dict[str, Operands] = {}
        for name in self.channels.approximate(_lists(kept)):
            node = self._node(name)
            places = [*range(len(node.inputs)), *(-1 - index for index in range(len(node.outputs)))]
            result[name] = {place: found for place in places if (found := self._stays(node, place, kept))}
        return result

    def _stays(self, node: oir.Node, place: int, kept: Kept) -> dict[int, npt.NDArray[np.bool_]]:
        """Return which indices of an operand stay, for the axes that lose some."""
        result = {}
        for axis, rows in self.rows(node, place).items():
            stays = np.ones(len(rows[0][1]), bool)
            for family, units in rows:
                if family in kept:
                    unit_stays = np.zeros(self._families[family].size, bool)
                    unit_stays[kept[family]] = True
                    stays &= (units < 0) | unit_stays[units]
            if not stays.all():
                result[axis] = stays
        return result

    def describe(self, name: str) -> tuple[int, oir.DataType]:
        """Return rank and element type of a value.

        Raises:
            PassFailed: They are unknown.
        """
        value = self._values.get(name)
        rank, dtype = self.shapes.rank(value), self.shapes.dtype(value)
        if rank is None or dtype is None:
            raise PassFailed(
                "a value that is to be masked is of unknown rank or type", where=f"value {name!r}"
            )
        return rank, dtype

    def _node(self, output: str) -> oir.Node:
        node = self._values[output].producer() if output in self._values else None
        if node is None:
            raise PassFailed("the analysis names a node that is not there", where=f"value {output!r}")
        return node

    def listing(self, model_macs: int, model_parameters: int) -> list[dict[str, Any]]:
        """Return the families ready for JSON, with what each costs."""
        from graphopt.passes.pruning.meter import Meter

        ranks = {family.name: np.arange(family.size) for family in self.families}
        meter = Meter(self.model, self.shapes, self.rows, ranks)
        # values_by_name goes through the graph in order, bodies behind the main graph.
        positions = {name: place for place, name in enumerate(self._values)}
        listed = []
        for family in self.families:
            whole = meter.sizes
            macs = meter.saved_macs(whole, family.name, 0)
            parameters = meter.saved_parameters(whole, family.name, 0)
            listed.append(
                {
                    "name": family.name,
                    "kind": family.kind,
                    "units": family.size,
                    "exact": family.exact,
                    "macs": macs,
                    "macs_share": macs / model_macs if model_macs else 0.0,
                    "macs_per_unit": meter.saved_macs(whole, family.name, family.size - 1),
                    "parameters": parameters,
                    "parameters_share": parameters / model_parameters if model_parameters else 0.0,
                    "parameters_per_unit": meter.saved_parameters(whole, family.name, family.size - 1),
                    "members": [
                        {
                            "initializer": member.name,
                            "axis": member.axis,
                            "role": member.role,
                            "indices": int((member.units >= 0).sum()),
                            "node": self.nodes.get(member.node) or member.node,
                            "position": positions.get(member.node, 0),
                        }
                        for member in family.members
                    ],
                }
            )
        return listed


def _lists(kept: Kept) -> dict[str, list[int]]:
    return {name: units.tolist() for name, units in kept.items()}
