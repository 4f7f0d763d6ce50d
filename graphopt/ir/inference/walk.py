"""The walk of shape inference: once over all graphs in their order, bodies and functions at their call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir import tensors
from graphopt.ir.inference import control
from graphopt.ir.inference.call import Call
from graphopt.ir.inference.contents import contents_of
from graphopt.ir.inference.facts import UNKNOWN, Fact, from_tensor, from_value
from graphopt.ir.inference.microsoft import DOMAIN as MICROSOFT
from graphopt.ir.inference.microsoft import microsoft_rule
from graphopt.ir.inference.rules import shape_rule
from graphopt.ir.inference.standard import InferenceFailed, StandardInference, schema_of
from graphopt.ir.inference.windows import refine_windows
from graphopt.ir.rewrite import node_graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.ir.inference.symbols import Symbols
    from graphopt.ir.model import Model

_MAX_DEPTH = 100
# Up to IR version 3 every initializer had to be an input, and onnxruntime takes it for a constant.
_OVERRIDABLE_IR = 4


@dataclass(frozen=True, slots=True)
class Scope:
    """What a graph inherits from the model or function that it is part of.

    Attributes:
        opsets: Version by domain.
        attributes: Attributes that a call gave to the function, None outside of functions.
        depth: How many function calls deep.
    """

    opsets: Mapping[str, int]
    attributes: Mapping[str, oir.Attr] | None = None
    depth: int = 0


@dataclass(slots=True)
class Walk:
    """One inference over one model.

    Attributes:
        model: The model, which is only read.
        symbols: All symbols of this inference.
        facts: What was found out, by value.
        errors: (node, what its inference function said) for each node that it refused.
        trips: Iterations of each Loop and Scan whose number is known.
        on_call: Called with each call of a function, when the facts of its body are those of this call.
    """

    model: Model
    symbols: Symbols
    facts: dict[oir.Value, Fact] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    trips: dict[oir.Node, int] = field(default_factory=dict)
    on_call: Callable[[oir.Node, oir.Function], None] | None = None
    _standard: StandardInference = field(init=False)
    _joined: dict[oir.Value, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._standard = StandardInference(self.model.ir_version)

    def run(self, *, assume_defaults: bool = False) -> None:
        """Infer everything that the main graph reaches."""
        graph = self.model.graph
        for value in graph.inputs:
            if value.const_value is not None and (assume_defaults or self.model.ir_version < _OVERRIDABLE_IR):
                self.put(value, from_tensor(value.const_value))
            else:
                self.put(value, from_value(value, self.symbols))
        self.graph(graph, Scope(self.model.opset_imports))
        self.facts.update(self._joined)

    def put(self, value: oir.Value, fact: Fact) -> None:
        """Write down *fact*."""
        if fact.shape is not None:
            for dim in fact.shape:
                self.symbols.note_size(dim)
        self.facts[value] = fact

    def get(self, value: oir.Value | None) -> Fact | None:
        """Return what is known about *value*; None for an omitted one."""
        return None if value is None or value.name == "" else self.facts.get(value, UNKNOWN)

    def graph(self, graph: oir.Graph, scope: Scope) -> list[Fact]:
        """Infer the nodes of *graph*, whose inputs are known already, and return the facts of its outputs."""
        for value in graph.initializers.values():
            if not value.is_graph_input() and value.const_value is not None and value not in self.facts:
                self.put(value, from_tensor(value.const_value))
        for node in graph:
            self.node(node, scope)
        return [self.facts.get(value, UNKNOWN) for value in graph.outputs]

    def node(self, node: oir.Node, scope: Scope) -> None:
        """Infer the outputs of *node*."""
        facts = self._outputs(node, scope)
        for index, value in enumerate(node.outputs):
            fact = facts[index] if facts is not None and index < len(facts) else UNKNOWN
            self.put(value, fact)

    def _outputs(self, node: oir.Node, scope: Scope) -> Sequence[Fact] | None:
        function = self.model.functions.get((node.domain, node.op_type, node.overload or ""))
        if function is not None:
            return self._call(node, function, scope)
        if node.op_type == "Constant" and not node.domain:
            tensor = tensors.constant_of(node.outputs[0])
            if tensor is not None:
                return [from_tensor(tensor)]
        rule = None if node.domain else control.RULES.get(node.op_type)
        if rule is not None:
            return rule(self, node, scope)
        self._foreign_bodies(node, scope)
        return self._operator(node, scope)

    def _operator(self, node: oir.Node, scope: Scope) -> Sequence[Fact]:
        given = resolve_attributes(node, scope.attributes)
        call = Call(
            domain=node.domain,
            op_type=node.op_type,
            opset=scope.opsets.get(node.domain, 1),
            attributes={name: attribute.value for name, attribute in given.items()} if given else given,
            given=given,
            inputs=[self.get(value) for value in node.inputs],
            outputs=len(node.outputs),
            symbols=self.symbols,
        )
        facts: Sequence[Fact] | None = None
        try:
            if call.domain == MICROSOFT:
                facts = microsoft_rule(call, self._standard)
            elif self._has_rule(call):
                facts = shape_rule(call) or refine_windows(call, self._standard.infer(call) or ())
        except InferenceFailed as error:
            self.errors.setdefault(describe(node), str(error))
            facts = [UNKNOWN] * call.outputs
        if facts is None:  # Nobody knows the operator: what the model declares is all there is.
            return [from_value(value, self.symbols) for value in node.outputs]
        facts = [
            fact if fact.dtype or fact.type is not None else self._claimed_type(value, fact)
            for fact, value in zip(facts, node.outputs, strict=False)
        ]
        if facts and facts[0].data is None:
            data = contents_of(call, facts[0])
            if data is not None:
                facts[0] = Fact(facts[0].dtype, facts[0].shape, data)
        return facts

    @staticmethod
    def _has_rule(call: Call) -> bool:
        schema = schema_of(call.domain, call.op_type, call.opset)
        if schema is None:
            return False
        # Estimators of ai.onnx.ml have schemas without inference; their declared shapes are all there is.
        return not call.domain or bool(schema.has_type_and_shape_inference_function)

    def _claimed_type(self, value: oir.Value, fact: Fact) -> Fact:
        """Return *fact* with the element type that the model declares, which inference could not tell."""
        if not isinstance(value.type, oir.TensorType):
            return fact if value.type is None else from_value(value, self.symbols)
        return Fact(int(value.type.dtype), fact.shape, fact.data)

    def _foreign_bodies(self, node: oir.Node, scope: Scope) -> None:
        """Infer bodies of an operator that has them for reasons unknown here, from their declared inputs."""
        for body in node_graphs(node) if node.attributes else ():
            for value in body.inputs:
                self.put(value, from_value(value, self.symbols))
            self.graph(body, scope)

    def _call(self, node: oir.Node, function: oir.Function, scope: Scope) -> list[Fact] | None:
        if scope.depth >= _MAX_DEPTH:  # Recursion, which ONNX forbids.
            return None
        given = resolve_attributes(node, scope.attributes)
        bound = {
            name: given.get(name, default)
            for name, default in function.attributes.items()
            if name in given or default.value is not None
        }
        for index, value in enumerate(function.inputs):
            self.put(value, (self.get(node.inputs[index]) if index < len(node.inputs) else None) or UNKNOWN)
        results = self.graph(function.graph, Scope(function.opset_imports, bound, scope.depth + 1))
        if self.on_call is not None:
            self.on_call(node, function)
        # A value of the body means something only where all calls agree on it.
        for graph in (function.graph, *function.subgraphs()):
            for value in control.values_of(graph):
                fact, before = self.facts.get(value, UNKNOWN), self._joined.get(value)
                self._joined[value] = fact if before is None else control.join(before, fact, self.symbols)
        return [
            fact if fact.dtype or fact.type is not None else self._claimed_type(value, fact)
            for fact, value in zip(results, node.outputs, strict=False)
        ]


def resolve_attributes(node: oir.Node, bound: Mapping[str, oir.Attr] | None) -> dict[str, oir.Attr]:
    """Return the attributes of *node* with references replaced by what the function was called with."""
    given: dict[str, oir.Attr] = {}
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            given[name] = attribute
        elif bound is not None and (found := bound.get(attribute.ref_attr_name or "")) is not None:
            given[name] = found
    return given


def describe(node: oir.Node) -> str:
    """Return how messages name *node*."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} of {node.outputs[0].name!r}"
