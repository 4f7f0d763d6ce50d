"""Options that several commands share, and the texts of options turned into values."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class OnError(str, Enum):
    """What a run does when a step fails."""

    RAISE = "raise"
    ROLLBACK = "rollback"
    STOP = "stop"


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SRC",
        help="Feeds: a .npz file, a folder of .npz files (one feed each), or random:N (seeded).",
    ),
]
Samples = Annotated[
    int | None, typer.Option("--samples", metavar="N", help="Take the first N feeds of the data.")
]
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--ep",
        metavar="NAME",
        help="Execution provider to run on; repeatable. Default: the target's, or the CPU with a warning.",
    ),
]
Dims = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=VALUE", help="Size of a symbolic dim; repeatable."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="INT", help="Seed of everything random.")]
ReportFolder = Annotated[
    str | None,
    typer.Option("--report", metavar="DIR", help="Write report.json and report.md into this folder."),
]
LocalPlugins = Annotated[
    str | None, typer.Option("--local-plugins", metavar="FILE", help="A Python file to load as a plugin.")
]
Target = Annotated[
    str, typer.Option("--target", metavar="NAME", help="What to compile for; need not be installed.")
]


def parse_dims(texts: Sequence[str] | None) -> Mapping[str, int]:
    """Return sizes by name from texts of the form ``name=value``.

    Raises:
        OptionError: A text has another form, a size is below 1, or one name has two sizes.
    """
    sizes: dict[str, int] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.rpartition("="))
        if not (name and equals and value.isascii() and value.isdigit() and int(value) >= 1):
            raise OptionError(
                f"expected name=value with a whole number of at least 1, got {text!r}",
                where="--dim",
                hint="For example: --dim batch=1",
            )
        if sizes.setdefault(name, int(value)) != int(value):
            raise OptionError(f"{name!r} is bound to {sizes[name]} and to {value}", where="--dim")
    return sizes
