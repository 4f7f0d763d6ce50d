"""A pipeline on the side: what becomes of a model, for a pass that wants to look at it or time it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.ir import Model
    from graphopt.pipeline.manager import Manager

_FEEDS = 8
"""Feeds that statistics are collected from: what is made is measured, not kept."""


def derive(manager: Manager, model: Model, text: str) -> Model:
    """Return what the pipeline *text* makes of a copy of *model*.

    It runs as in *manager*, but from a few feeds, without measurements, gates and instruments.

    Raises:
        PlanError: The text is no pipeline, or its steps do not fit.
        GraphoptError: A step failed.
    """
    from graphopt.calibrate.calibration import Calibration
    from graphopt.pipeline.manager import Manager
    from graphopt.pipeline.plan import make_plan
    from graphopt.pipeline.text import parse

    plan = make_plan(parse(text), manager.registry, model.opset)
    data = None if manager.calibration is None else manager.calibration.data
    feeds = None if data is None else list(islice(data, _FEEDS))
    inner = Manager(
        manager.registry,
        target=manager.target,
        dims=manager.dims,
        seed=manager.seed,
        calibration=Calibration(feeds, seed=manager.seed, provider=manager.target.provider),
    )
    result = inner.run(model, plan)
    if result.error is not None:
        raise result.error
    assert result.model is not None
    return result.model
