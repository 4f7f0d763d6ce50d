"""Types and shapes by the inference functions that the onnx package has for each standard operator."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as oir
from onnx import defs, shape_inference

from graphopt.ir.inference.facts import Fact, from_type, to_tensor, to_type

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir.inference.call import Call

# Large attribute tensors (Constant nodes) never reach this module; the others are small.
_Key = tuple[object, ...]


class InferenceFailed(Exception):  # noqa: N818 - caught by the walk, never seen by users
    """The operator's own inference function refused its inputs."""


@cache
def schema_of(domain: str, op_type: str, opset: int) -> defs.OpSchema | None:
    """Return the schema that *op_type* has in version *opset* of *domain*, or None where there is none."""
    try:
        return defs.get_schema(op_type, max_inclusive_version=opset, domain=domain)
    except defs.SchemaError:
        return None


class StandardInference:
    """Calls the onnx package's inference function of one operator, and remembers what it said.

    Equal calls are frequent (a deep network repeats its block) and a call is a round trip through
    serialisation, so results are kept by operator, attributes and what is known about the inputs.
    """

    def __init__(self, ir_version: int) -> None:
        self._ir_version = ir_version
        self._memo: dict[_Key, tuple[onnx.TypeProto, ...] | str] = {}

    def infer(self, call: Call) -> tuple[Fact, ...] | None:
        """Return a fact for each output of *call*, or None where onnx does not know the operator.

        Raises:
            InferenceFailed: The inference function found the inputs or attributes wrong.
        """
        schema = schema_of(call.domain, call.op_type, call.opset)
        if schema is None:
            return None
        key = (
            call.domain,
            call.op_type,
            schema.since_version,
            call.outputs,
            _freeze(call.attributes),
            *[
                None
                if fact is None
                else (fact.dtype, fact.shape, fact.data, id(fact.type) if fact.type else 0)
                for fact in call.inputs
            ],
        )
        types = self._memo.get(key)
        if types is None:
            types = self._memo[key] = self._run(schema, call)
        if isinstance(types, str):
            raise InferenceFailed(types)
        return tuple([from_type(proto, call.symbols) for proto in types])

    def _run(self, schema: defs.OpSchema, call: Call) -> tuple[onnx.TypeProto, ...] | str:
        names = ["" if fact is None else f"i{k}" for k, fact in enumerate(call.inputs)]
        outputs = [f"o{k}" for k in range(call.outputs)]
        node = onnx.NodeProto(op_type=call.op_type, domain=call.domain, input=names, output=outputs)
        for name, given in call.given.items():
            attribute = node.attribute.add()
            oir.serde.serialize_attribute_into(attribute, given)
            attribute.name = name
        types = {}
        data = {}
        for name, fact in zip(names, call.inputs, strict=True):
            if fact is None:
                continue
            types[name] = to_type(fact)
            tensor = to_tensor(fact)
            if tensor is not None:
                data[name] = tensor
        opsets = [onnx.OperatorSetIdProto(domain=call.domain, version=call.opset)]
        try:
            inferred = shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=opsets, ir_version=self._ir_version
            )
        except (
            shape_inference.InferenceError,
            defs.SchemaError,
            RuntimeError,
            ValueError,
            TypeError,
        ) as error:
            return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return tuple([inferred.get(name, onnx.TypeProto()) for name in outputs])


def _freeze(attributes: Mapping[str, Any]) -> _Key:
    # A tensor or a type stands for itself by identity: the memo lives no longer than the model is read.
    return tuple(
        [
            (name, value if isinstance(value, int | float | str | bytes | tuple) else _content_key(value))
            for name, value in attributes.items()
        ]
    )


def _content_key(value: object) -> object:
    return tuple(value) if isinstance(value, list) else ("id", id(value))
