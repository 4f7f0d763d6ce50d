"""Options that several commands share, and their values."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.errors import OptionError, PathError

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout, all else to stderr.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DimOption = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=SIZE", help="Bind a free dim of the model's inputs. Repeatable."),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SRC",
        help="Inputs: .npz, a folder of .npz, .npy or images, ONNX test_data_set, module:function, random:N.",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Prepare images as the [preprocess] table of this says."),
]
SamplesOption = Annotated[
    int | None, typer.Option("--samples", metavar="N", help="Take the first N feeds of the data.")
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option("--ep", metavar="NAME", help="Execution provider to run on. Repeatable."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed for everything random.")]
LocalPluginsOption = Annotated[
    Path | None, typer.Option("--local-plugins", metavar="FILE", help="A one-file plugin to load.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help="An ONNX file.")]


OutText = Annotated[
    str | None, typer.Option("-o", "--out", metavar="OUT", help="Where to write the result, if it works.")
]


def statistics_cache() -> Path | None:
    """Return the folder of statistics kept between runs: $GRAPHOPT_CACHE, "off" for none."""
    text = os.environ.get("GRAPHOPT_CACHE", "")
    if text == "off":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(text) if text else home / "graphopt") / "statistics"


def preprocess_of(recipe: Path | None) -> Mapping[str, Any] | None:
    """Return how a recipe prepares images; None without a recipe, or where it does not say.

    Raises:
        PathError: It cannot be read.
        PlanError: It is no recipe.
    """
    from graphopt.pipeline.recipe import read_recipe

    return None if recipe is None else read_recipe(recipe).preprocess


def parse_out(text: str) -> Path:
    """Return the path of an output file.

    Raises:
        PathError: The text is empty, or names a folder by its end.
    """
    if not text:
        raise PathError("the name of the output is empty", where="--out", hint="Name an .onnx file.")
    if text.endswith(("/", os.sep)):
        raise PathError("expected an output file, got the name of a folder", where=text)
    return Path(text)


def parse_limit(option: str, limit: float | None) -> float | None:
    """Return a threshold as it was given.

    Raises:
        OptionError: It is not finite: nothing could ever break it, or nothing keep it.
    """
    if limit is not None and not math.isfinite(limit):
        raise OptionError(f"expected a finite number, got {limit}", where=option)
    return limit


def parse_dims(texts: list[str] | None) -> dict[str, int]:
    """Return the sizes that ``--dim`` gave.

    Raises:
        OptionError: A text is not NAME=SIZE with a whole number from 0, or a name is given two sizes.
    """
    dims: dict[str, int] = {}
    for text in texts or ():
        name, equals, size = text.rpartition("=")
        if not (name and equals and size.isascii() and size.isdigit()):
            raise OptionError(
                f"expected NAME=SIZE with a whole number, got {text!r}",
                where="--dim",
                hint="For example --dim batch=1.",
            )
        if dims.setdefault(name, int(size)) != int(size):
            raise OptionError(f"{name!r} is bound to {dims[name]} and to {size}", where="--dim")
    return dims
