"""The whole extension surface of graphopt, one function a hook.

A plugin is a module (or object) with functions of these names, marked with :data:`hookimpl`, and offered
under the entry-point group ``graphopt``. All hooks are called once, when the plugins are loaded. Values
given as text ``"package.module:Name"`` are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from graphopt.api import Analysis, Gate, Instrument, Pass
    from graphopt.calibrate.sources import DataSource, SourceRequest
    from graphopt.passes.pruning.criterion import Criterion
    from graphopt.record import RunRecord

hookspec = pluggy.HookspecMarker("graphopt")
hookimpl = pluggy.HookimplMarker("graphopt")


@hookspec
def graphopt_register_passes() -> Mapping[str, str | type[Pass]]:  # type: ignore[empty-body]
    """Return passes by name."""


@hookspec
def graphopt_register_analyses() -> Mapping[str, str | Analysis]:  # type: ignore[empty-body]
    """Return analyses by name; each is a function of a model and its dim bindings."""


@hookspec
def graphopt_register_gates() -> Mapping[str, str | type[Gate]]:  # type: ignore[empty-body]
    """Return gates by name; a recipe asks for one with a ``[[gate]]`` table."""


@hookspec
def graphopt_register_instruments() -> Mapping[str, str | Callable[[], Instrument]]:  # type: ignore[empty-body]
    """Return instrument factories by name; each is called once a run."""


@hookspec
def graphopt_register_data_sources() -> Mapping[str, str | Callable[[SourceRequest], DataSource | None]]:  # type: ignore[empty-body]
    """Return data sources by name; the first that does not return None for a ``--data`` text reads it."""


@hookspec
def graphopt_register_reporters() -> Mapping[str, str | Callable[[RunRecord, Path], None]]:  # type: ignore[empty-body]
    """Return reporters by name; each writes its file into the folder of ``--report``."""


@hookspec
def graphopt_register_targets() -> Mapping[str, str | Path]:  # type: ignore[empty-body]
    """Return targets by name: the path of a TOML file, or ``"package:file.toml"``."""


@hookspec
def graphopt_register_criteria() -> Mapping[str, str | type[Criterion]]:  # type: ignore[empty-body]
    """Return criteria by name: how much each unit of a family matters, for passes that prune."""


@hookspec
def graphopt_register_channel_rules() -> Mapping[str, object]:  # type: ignore[empty-body]
    """Return rules for custom operators by name: how their channels are tied, and what a cut rewrites."""
