"""Run one operator on given arrays: how the channel analysis learns what one without a rule does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.errors import DataError
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_IR_VERSION = 8


def run_node(
    op_type: str,
    inputs: Sequence[Array | None],
    *,
    domain: str = "",
    opsets: Mapping[str, int],
    attributes: Mapping[str, object] | Sequence[oir.Attr] = (),
    outputs: int = 1,
    ir_version: int = _IR_VERSION,
) -> list[Array]:
    """Return the outputs of one operator, run by onnxruntime as it stands.

    Args:
        op_type: The operator.
        inputs: Its inputs; None is an omitted one.
        domain: Domain of the operator.
        opsets: Opset version by domain, that of the operator included.
        attributes: Python values by name, or attributes of a node.
        outputs: How many outputs it has.
        ir_version: IR version of the one-node model.

    Raises:
        GraphoptError: The operator is unknown to the runtime or refuses its inputs.
    """
    values = [
        None
        if array is None
        else oir.Value(
            name=f"input{index}",
            type=oir.TensorType(oir.DataType.from_numpy(array.dtype)),
            shape=oir.Shape(array.shape),
        )
        for index, array in enumerate(inputs)
    ]
    given = (
        [oir.convenience.convert_attribute(name, value) for name, value in attributes.items()]  # type: ignore[arg-type]  # onnx-ir checks
        if isinstance(attributes, Mapping)
        else list(attributes)
    )
    node = oir.Node(
        domain,
        op_type,
        values,
        given,
        outputs=[oir.Value(name=f"output{index}") for index in range(outputs)],
        name="probe",
    )
    graph = oir.Graph(
        [value for value in values if value is not None],
        node.outputs,
        nodes=[node],
        opset_imports=dict(opsets),
        name="probe",
    )
    proto = oir.to_proto(oir.Model(graph, ir_version=ir_version))
    session = open_session(
        proto.SerializeToString(), optimization="none", where=f"{domain or 'ai.onnx'}.{op_type}"
    )
    feeds = {f"input{index}": array for index, array in enumerate(inputs) if array is not None}
    results = session.run(feeds)
    found = []
    for value in results.values():
        if not isinstance(value, np.ndarray):
            raise DataError("an output is no tensor", where=op_type)
        found.append(value)
    return found
