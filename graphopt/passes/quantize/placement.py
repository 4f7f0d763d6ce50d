"""Where codes begin and end: from the nodes that pay on codes to the values that are quantised.

A compute node reads codes, so the value in front of it is quantised. Whether its result is, the target says:
a Conv of onnxruntime's CPU provider stays float without, a MatMul is better off without. Between two of them
an operator of the chain (Add, Concat, pooling) runs on codes only where all it reads is quantised anyway and
a node on codes reads what it gives; alone it would cost more than it saves (design/ort-cpu.md, 3 to 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphopt.ir.rewrite import is_op, sole_user
from graphopt.ir.semantics import DEFAULT_DOMAIN, domain_of
from graphopt.ir.tensors import constant_of
from graphopt.passes.quantize.candidates import Compute, clamp_bounds, data_inputs, floats_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as oir

    from graphopt.targets.quantize import QuantizeRules


@dataclass(eq=False, slots=True)
class Link:
    """An operator between two quantised values.

    Attributes:
        node: The operator.
        inputs: The activations it reads.
        clamp: The Relu or Clip behind it that quantisation absorbs.
        moves: Whether codes pass unchanged, so that the result has the scale of the first input.
    """

    node: oir.Node
    inputs: tuple[oir.Value, ...]
    clamp: oir.Node | None
    moves: bool

    @property
    def result(self) -> oir.Value:
        """What comes out behind the clamp."""
        return (self.clamp or self.node).outputs[0]


@dataclass(slots=True)
class Placement:
    """Which nodes run on codes and which values are quantised.

    Attributes:
        computes: Nodes with a weight.
        links: Operators between quantised values, in graph order.
        values: Every quantised value, in the order of decision.
        whole: Those of which all readers read the codes: what a node on codes gives. The others come from
            float nodes, and only nodes on codes read them as codes.
    """

    computes: list[Compute] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    values: dict[oir.Value, None] = field(default_factory=dict)
    whole: set[oir.Value] = field(default_factory=set)


def place(
    computes: Iterable[Compute],
    nodes: Iterable[oir.Node],
    rules: QuantizeRules,
    usable: Callable[[oir.Value], bool],
    link_allowed: Callable[[oir.Node], bool],
) -> Placement:
    """Decide which values are quantised.

    Args:
        computes: What may run on codes.
        nodes: All nodes that may be links, in topological order.
        rules: What the target runs.
        usable: Whether a value has a range that makes a scale.
        link_allowed: Whether the user lets an operator between be quantised.
    """
    return _Placer(list(computes), list(nodes), rules, usable, link_allowed).run()


class _Placer:
    def __init__(
        self,
        computes: list[Compute],
        nodes: list[oir.Node],
        rules: QuantizeRules,
        usable: Callable[[oir.Value], bool],
        link_allowed: Callable[[oir.Node], bool],
    ) -> None:
        self.rules = rules
        self.usable = usable
        self.nodes = nodes
        self.computes = [
            each
            for each in computes
            if usable(each.data) and (each.node.op_type not in rules.output_ops or usable(each.result))
        ]
        self.by_result = {each.result: each for each in self.computes}
        self.links: dict[oir.Value, Link] = {}
        for node in nodes:
            if link_allowed(node) and (link := self._link(node)) is not None:
                self.links[link.result] = link
        self.demanded: dict[oir.Value, None] = {}
        self.chosen: dict[oir.Value, Link] = {}
        self._possible: dict[oir.Value, bool] = {}

    def run(self) -> Placement:
        for each in self.computes:
            self.demanded[each.data] = None
        # A link that is chosen demands its inputs, which may make links in front of it worthwhile; consumers
        # come later in graph order, so one walk backwards sees them first. A second one catches a value that
        # another branch came to demand.
        for _ in range(2):
            for result in reversed(list(self.links)):
                link = self.links[result]
                if result in self.chosen or result not in self.demanded:
                    continue
                if all(self._may_be(value) for value in link.inputs):
                    self._choose(link)
        placement = Placement(self.computes)
        for each in self.computes:
            each.is_quantised = each.node.op_type in self.rules.output_ops or (
                each.result in self.demanded
                and (each.clamp is not None or self._is_linked(each.result) or self._feeds_codes(each))
            )
            if each.is_quantised:
                placement.whole.add(each.result)
                placement.values[each.result] = None
        for result in self.links:
            if result in self.chosen:
                placement.links.append(self.chosen[result])
                placement.whole.add(result)
        for value in self.demanded:
            placement.values[value] = None
        return placement

    def _feeds_codes(self, each: Compute) -> bool:
        # A float result that is quantised again in front of its reader costs the same as quantising it here.
        return not each.result.is_graph_output() and all(
            any(user is other.node for other in self.computes) for user in each.result.consumers()
        )

    def _is_linked(self, value: oir.Value) -> bool:
        return any(value in link.inputs for link in self.chosen.values())

    def _choose(self, link: Link) -> None:
        self.chosen[link.result] = link
        for value in link.inputs:
            if constant_of(value) is not None:
                continue
            self.demanded[value] = None
            inner = self.links.get(value)
            if value not in self.chosen and value not in self.by_result and inner is not None:
                self._choose(inner)

    def _may_be(self, value: oir.Value) -> bool:
        """Return whether *value* is quantised, or can be where it is made, at no further cost."""
        if value in self.demanded or value in self.chosen:
            return self.usable(value)
        if value not in self._possible:
            self._possible[value] = False  # against cycles, which a valid graph has not
            self._possible[value] = self._decide(value)
        return self._possible[value]

    def _decide(self, value: oir.Value) -> bool:
        if constant_of(value) is not None:
            return floats_of(value) is not None
        if not self.usable(value):
            return False
        if value in self.by_result:
            return True
        link = self.links.get(value)
        return link is not None and all(self._may_be(each) for each in link.inputs)

    def _link(self, node: oir.Node) -> Link | None:
        if domain_of(node) != DEFAULT_DOMAIN or len(node.outputs) != 1:
            return None
        moves = is_op(node, *self.rules.move_ops)
        if not moves and not is_op(node, *self.rules.chain_ops):
            return None
        inputs = tuple(data_inputs(node))
        if not inputs or (constant_of(inputs[0]) is not None and len(inputs) == 1):
            return None
        link = Link(node, inputs, None if moves else self._clamp(node), moves)
        return link if self.usable(link.result) else None

    def _clamp(self, node: oir.Node) -> oir.Node | None:
        output = node.outputs[0]
        user = sole_user(output)
        if user is None or output.is_graph_output() or user.graph is not node.graph:
            return None
        absorbs = is_op(user, *self.rules.absorbed_ops) and user.inputs[0] is output
        return user if absorbs and clamp_bounds(user) is not None else None
