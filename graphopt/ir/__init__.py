"""The graph IR: load, change, check and save ONNX models.

One module a concern: ``lower`` and ``emit`` (files and protobuf), ``verify``, ``fingerprint``, ``text``,
``tensors``, ``shapes``, ``cost``, ``semantics``, ``rewrite``. The names below resolve on first use, so that
importing this package costs nothing; functions named like their module are imported from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.ir.cost import Cost, measure_cost
    from graphopt.ir.emit import ExternalData, save
    from graphopt.ir.lower import load
    from graphopt.ir.model import Model, Source
    from graphopt.ir.shapes import Shapes, infer_shapes
    from graphopt.ir.text import to_text

_HOMES = {
    "Cost": "cost",
    "ExternalData": "emit",
    "Model": "model",
    "Shapes": "shapes",
    "Source": "model",
    "infer_shapes": "shapes",
    "load": "lower",
    "measure_cost": "cost",
    "save": "emit",
    "to_text": "text",
}

__all__ = [
    "Cost",
    "ExternalData",
    "Model",
    "Shapes",
    "Source",
    "infer_shapes",
    "load",
    "measure_cost",
    "save",
    "to_text",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"graphopt.ir.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'graphopt.ir' has no attribute {name!r}")
