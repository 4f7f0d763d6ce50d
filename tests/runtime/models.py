"""Small models that the tests of this folder share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Declared = tuple[str, int, "Sequence[int | str | None] | None"]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Declared | onnx.ValueInfoProto],
    outputs: Sequence[Declared | onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 21,
    ir_version: int = 10,
    domains: Sequence[str] = (),
    **more: Any,
) -> onnx.ModelProto:
    """Return a model; weights are initializers, also inputs where they are declared as such."""

    def declare(each: Declared | onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        return each if isinstance(each, onnx.ValueInfoProto) else helper.make_tensor_value_info(*each)

    graph = helper.make_graph(
        nodes,
        "g",
        [declare(each) for each in inputs],
        [declare(each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    proto: onnx.ModelProto = helper.make_model(graph, ir_version=ir_version, opset_imports=opsets, **more)
    return proto


def unary(op: str = "Relu", dtype: int = FLOAT, **more: Any) -> onnx.ModelProto:
    """Return y = op(x) with x of shape [1, 3]."""
    attributes = more.pop("attributes", {})
    node = helper.make_node(op, ["x"], ["y"], name="n1", domain=more.get("domain", ""), **attributes)
    domains = [more.pop("domain")] if "domain" in more else []
    return model([node], [("x", dtype, [1, 3])], [("y", dtype, [1, 3])], domains=domains, **more)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    """Write *proto* to *path* and return the path."""
    path.write_bytes(proto.SerializeToString())
    return path


def linear(path: Path, scale: float = 1.0, width: int = 4, seed: int = 0) -> Path:
    """Write y = x @ (scale * w) with a seeded w of [8, width]."""
    w = np.random.default_rng(seed).standard_normal((8, width)).astype(np.float32) * np.float32(scale)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    return write(model([node], [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", width])], {"w": w}), path)
