"""What several commands open before they do anything, with the warnings that this gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.cli.options import parse_dims

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from graphopt.cli.output import Output
    from graphopt.ir import Model
    from graphopt.pipeline.plugins import Registry
    from graphopt.runtime.session import Feeds
    from graphopt.targets import Target


@dataclass(frozen=True)
class Inputs:
    """A model, the data to run it on, and what it is compiled for.

    Attributes:
        registry: Passes and what else plugins bring.
        target: What is compiled for.
        dims: Sizes of free dims.
        model: The model.
        feeds: The data.
        warnings: What plugins and data give cause to say; it has been shown.
    """

    registry: Registry
    target: Target
    dims: Mapping[str, int]
    model: Model
    feeds: Iterable[Feeds]
    warnings: tuple[str, ...]


def open_registry(local_plugins: Path | None, output: Output) -> Registry:
    """Load the plugins and show their warnings."""
    from graphopt.pipeline.plugins import load_plugins

    registry = load_plugins(local_plugins)
    for warning in registry.warnings:
        output.warning(warning)
    return registry


def open_inputs(
    output: Output,
    model: Path,
    data: str,
    *,
    target: str,
    dim: list[str] | None,
    samples: int | None,
    seed: int,
    local_plugins: Path | None,
    preprocess: Mapping[str, Any] | None,
) -> Inputs:
    """Open what a command needs that runs *model* on *data*; the arguments are its options.

    Raises:
        GraphoptError: Something is missing, unreadable or does not fit.
    """
    from graphopt.ir import load
    from graphopt.pipeline.validation import open_feeds
    from graphopt.targets import load_target

    registry = open_registry(local_plugins, output)
    dims = parse_dims(dim)
    chosen = load_target(target, dict(registry.targets))
    loaded = load(model)
    feeds, warnings = open_feeds(
        loaded, data, samples=samples, seed=seed, dims=dims, registry=registry, preprocess=preprocess
    )
    for warning in warnings:
        output.warning(warning)
    return Inputs(registry, chosen, dims, loaded, feeds, (*registry.warnings, *warnings))
