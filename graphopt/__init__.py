"""graphopt: a plugin-based compiler-pass framework over ONNX graphs.

Load a model, run passes over it, save it, and prove that it still computes the same:

>>> import tempfile, onnx, onnx.helper as oh, numpy as np, graphopt
>>> folder = tempfile.mkdtemp()
>>> x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
>>> weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
>>> nodes = [
...     oh.make_node("Identity", ["x"], ["a"], name="copy"),
...     oh.make_node("MatMul", ["a", "w"], ["y"], name="product"),
... ]
>>> graph = oh.make_graph(nodes, "tiny", [x], [y], [weight])
>>> proto = oh.make_model(graph, ir_version=10, opset_imports=[oh.make_opsetid("", 21)])
>>> onnx.save(proto, f"{folder}/tiny.onnx")

>>> model = graphopt.load(f"{folder}/tiny.onnx")
>>> result = graphopt.run(model, "canonicalize,eliminate-dead", out=f"{folder}/out.onnx")
>>> [node.op_type for node in result.model.graph]
['MatMul']
>>> result.report.status, len(list(model.nodes()))
('ok', 2)
>>> record = graphopt.validate(f"{folder}/tiny.onnx", f"{folder}/out.onnx", measure_latency=False)
>>> record.outputs[0].exact
True

Every name below resolves on first use, so that ``import graphopt`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.api import (
        Context,
        Gate,
        GateResult,
        Instrument,
        Pass,
        PassInfo,
        PassOptions,
        Report,
        StepView,
    )
    from graphopt.errors import (
        DataError,
        GateFailed,
        GraphoptError,
        InvalidModelError,
        OptionError,
        PassFailed,
        PathError,
        PlanError,
        PluginError,
        ProviderError,
        UnsupportedModelError,
        VerifyError,
        WorkerError,
        WriteError,
    )
    from graphopt.hookspecs import hookimpl
    from graphopt.ir.emit import ExternalData, save
    from graphopt.ir.lower import load
    from graphopt.ir.model import Model
    from graphopt.pipeline.request import Result
    from graphopt.pipeline.run import run
    from graphopt.pipeline.validation import validate
    from graphopt.record import RunRecord, ValidationRecord

__version__ = "0.1.0"

_HOMES = {
    "Context": "graphopt.api",
    "DataError": "graphopt.errors",
    "ExternalData": "graphopt.ir.emit",
    "Gate": "graphopt.api",
    "GateFailed": "graphopt.errors",
    "GateResult": "graphopt.api",
    "GraphoptError": "graphopt.errors",
    "Instrument": "graphopt.api",
    "InvalidModelError": "graphopt.errors",
    "Model": "graphopt.ir.model",
    "OptionError": "graphopt.errors",
    "Pass": "graphopt.api",
    "PassFailed": "graphopt.errors",
    "PassInfo": "graphopt.api",
    "PassOptions": "graphopt.api",
    "PathError": "graphopt.errors",
    "PlanError": "graphopt.errors",
    "PluginError": "graphopt.errors",
    "ProviderError": "graphopt.errors",
    "Report": "graphopt.api",
    "Result": "graphopt.pipeline.request",
    "RunRecord": "graphopt.record",
    "StepView": "graphopt.api",
    "UnsupportedModelError": "graphopt.errors",
    "ValidationRecord": "graphopt.record",
    "VerifyError": "graphopt.errors",
    "WorkerError": "graphopt.errors",
    "WriteError": "graphopt.errors",
    "hookimpl": "graphopt.hookspecs",
    "load": "graphopt.ir.lower",
    "run": "graphopt.pipeline.run",
    "save": "graphopt.ir.emit",
    "validate": "graphopt.pipeline.validation",
}
"""Where each public name lives."""

__all__ = [
    "Context",
    "DataError",
    "ExternalData",
    "Gate",
    "GateFailed",
    "GateResult",
    "GraphoptError",
    "Instrument",
    "InvalidModelError",
    "Model",
    "OptionError",
    "Pass",
    "PassFailed",
    "PassInfo",
    "PassOptions",
    "PathError",
    "PlanError",
    "PluginError",
    "ProviderError",
    "Report",
    "Result",
    "RunRecord",
    "StepView",
    "UnsupportedModelError",
    "ValidationRecord",
    "VerifyError",
    "WorkerError",
    "WriteError",
    "__version__",
    "hookimpl",
    "load",
    "run",
    "save",
    "validate",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        import importlib

        value: object = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value  # found once; the module answers by itself from now on
        return value
    raise AttributeError(f"module 'graphopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
