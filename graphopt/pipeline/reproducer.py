"""Reproducers: a folder that holds what is needed to repeat a failed step.

model.onnx[.data]   the model before the failing step
pipeline.txt        the failing step (all steps, where the model before it could not be had)
recipe.toml         the same, with the gates
settings.json       target, dims, seed, on_error, and which options are files of this folder
versions.json       versions of everything that took part
error.txt           the failure with its traceback
reference.onnx[.data] the model before the first lossy step, where the failing step compares with it
statistics.npz      what was known about the values of the model, where anything was
measurements.json   the latencies that steps had asked for, where they had
files/              small files that options named, and the local plugin
README.txt          what to do with it
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import tempfile
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import DataError, PathError, PlanError
from graphopt.pipeline.options import print_options
from graphopt.pipeline.recipe import Recipe, read_recipe, write_recipe
from graphopt.pipeline.text import Step, to_text
from graphopt.runtime.measurements import as_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.api import Gate, PassOptions
    from graphopt.calibrate.statistics import Statistics
    from graphopt.errors import GraphoptError
    from graphopt.ir import Model
    from graphopt.pipeline.plan import PlannedStep
    from graphopt.runtime.measurements import Measured

SETTINGS = "settings.json"
STATISTICS = "statistics.npz"
MEASUREMENTS = "measurements.json"
REFERENCE = "reference.onnx"
_SCHEMA = 1
# A script or a small table belongs to the reproducer; a data set does not.
_COPY_LIMIT_BYTES = 16 * 2**20
_PACKAGES = ("graphopt", "onnx", "onnx-ir", "onnx-graphsurgeon", "onnxruntime", "numpy", "pluggy", "pydantic")
_README = """\
A step of a graphopt pipeline failed. This folder repeats it:

    graphopt replay {name}

model.onnx is the model {what}; pipeline.txt is {which}; error.txt says what happened.
Gates, if any, compare with model.onnx here, not with the model that the whole run began with.
Before you pass this folder on: it holds the weights of your model and may name your files.
"""


@dataclass(frozen=True)
class Reproducer:
    """A reproducer folder, read.

    Attributes:
        folder: Where it stands.
        model: Path of the model before the failing step.
        steps: What to run.
        gates: What to hold it against.
        target: Name of the target.
        dims: Sizes bound to symbolic dims.
        seed: The seed.
        on_error: What the failed run was to do on failure.
        isolate: Whether passes ran in a child process.
        local_plugins: The one-file plugin that was loaded, or None.
        statistics: Statistics of the model, or None.
        measurements: Latencies that were measured, or None.
        error: The text of the failure.
    """

    folder: Path
    model: Path
    steps: tuple[Step, ...]
    gates: tuple[Step, ...]
    target: str
    dims: Mapping[str, int]
    seed: int
    on_error: str
    isolate: bool
    local_plugins: Path | None
    statistics: Path | None
    measurements: Path | None
    error: str


def write_reproducer(
    folder: Path,
    *,
    model: Model,
    steps: Sequence[PlannedStep],
    gates: Sequence[Gate] = (),
    error: GraphoptError,
    settings: Mapping[str, Any],
    local_plugins: Path | None = None,
    reference: Model | None = None,
    statistics: Statistics | None = None,
    measurements: Iterable[Measured] = (),
) -> Path:
    """Write a reproducer and return its folder.

    It appears whole or not at all. A former reproducer at the same place is replaced; anything else is
    left alone, and a number is put behind the name.

    Args:
        folder: Where to write.
        model: The model that *steps* start from.
        steps: What fails.
        gates: The gates of the run.
        error: The failure.
        settings: ``target``, ``dims``, ``seed``, ``on_error`` and ``isolate`` of the run.
        local_plugins: The one-file plugin that was loaded.
        reference: The model that the only step compares with; it becomes its option ``reference``.
        statistics: What was known about the values of *model*.
        measurements: Latencies that steps had asked for.

    Raises:
        GraphoptError: It cannot be written.
        OSError: It cannot be written.
    """
    from graphopt.ir.emit import save

    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        files = _FileCopies(draft)
        written = [
            replace(planned.step, options=files.taken(planned.options, "pass", k))
            for k, planned in enumerate(steps)
        ]
        if reference is not None and "reference" in type(steps[0].options).model_fields:
            save(reference, draft / REFERENCE)
            written[0] = replace(written[0], options={**written[0].options, "reference": REFERENCE})
            files.options.append(["pass", 0, "reference", REFERENCE])
        judges = [Step(gate.name, files.taken(gate.options, "gate", k)) for k, gate in enumerate(gates)]
        plugin = "" if local_plugins is None else files.copy(local_plugins)
        _write_text(draft / "pipeline.txt", to_text(written) + "\n")
        write_recipe(Recipe(tuple(written), tuple(judges)), draft / "recipe.toml")
        _write_json(draft / "versions.json", _versions())
        document = {"schema": _SCHEMA, **settings, "local_plugins": plugin, "files": files.options}
        _write_json(draft / SETTINGS, document)
        _write_text(draft / "error.txt", _error_text(error))
        whole = len(steps) > 1
        _write_text(
            draft / "README.txt",
            _README.format(
                name=folder.name,
                what="that the run began with" if whole else "before the failing step",
                which="the pipeline up to the failing step" if whole else "the failing step",
            ),
        )
        save(model, draft / "model.onnx")
        if statistics is not None:
            # Of the model that lies beside it, whatever hash it had when they were collected.
            replace(statistics, model="").save(draft / STATISTICS)
        if known := as_document(measurements):
            _write_json(draft / MEASUREMENTS, known)
        return _put(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_reproducer(folder: Path) -> Reproducer:
    """Return what the reproducer in *folder* holds.

    Raises:
        PathError: There is no such folder.
        DataError: It is not a reproducer, or a part of it is missing or malformed.
    """
    if not folder.is_dir():
        what = "expected a folder, got a file" if folder.exists() else "there is no such folder"
        raise PathError(what, where=str(folder), hint="graphopt run writes one when a step fails.")
    settings = _read_settings(folder)
    model = folder / "model.onnx"
    if not model.is_file():
        raise DataError("the reproducer has no model.onnx", where=str(folder))
    try:
        recipe = read_recipe(folder / "recipe.toml")
    except (PathError, PlanError) as error:
        raise DataError(
            f"the recipe of the reproducer is broken: {error.message}", where=error.where
        ) from error
    try:
        text = (folder / "error.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    local = settings["local_plugins"]
    statistics, measurements = (
        path if (path := folder / name).is_file() else None for name in (STATISTICS, MEASUREMENTS)
    )
    return Reproducer(
        folder=folder,
        model=model,
        steps=_with_files(recipe.steps, "pass", settings["files"], folder),
        gates=_with_files(recipe.gates, "gate", settings["files"], folder),
        target=settings["target"],
        dims=settings["dims"],
        seed=settings["seed"],
        on_error=settings["on_error"],
        isolate=settings["isolate"],
        local_plugins=folder / local if local else None,
        statistics=statistics,
        measurements=measurements,
        error=text,
    )


class _FileCopies:
    """Copies small files that options name, so that the folder stands by itself.

    Attributes:
        options: Where the copies were named: [kind, place of the step, option, path within the folder].
    """

    def __init__(self, draft: Path) -> None:
        self.draft = draft
        self.options: list[list[object]] = []

    def taken(self, options: PassOptions, kind: str, place: int) -> dict[str, Any]:
        """Return the printed *options* with the paths of copied files put in."""
        texts = print_options(options)
        for name in texts:
            value = getattr(options, name)
            if isinstance(value, Path) and value.is_file() and value.stat().st_size <= _COPY_LIMIT_BYTES:
                texts[name] = self.copy(value)
                self.options.append([kind, place, name, texts[name]])
        return texts

    def copy(self, path: Path) -> str:
        target = self.draft / "files" / path.name
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{path.stem}-{number}{path.suffix}")
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        return f"files/{target.name}"


def _put(draft: Path, folder: Path) -> Path:
    """Rename the finished *draft* to *folder*, or to a numbered name where a stranger's folder stands."""
    target = folder
    number = 1
    while target.exists() or target.is_symlink():
        if target.is_dir() and not target.is_symlink() and (target / SETTINGS).is_file():
            shutil.rmtree(target)
            break
        number += 1
        target = folder.with_name(f"{folder.name}-{number}")
    draft.chmod(0o755)
    draft.rename(target)
    return target


def _with_files(steps: Sequence[Step], kind: str, files: object, folder: Path) -> tuple[Step, ...]:
    result = list(steps)
    for entry in files if isinstance(files, list) else []:
        match entry:
            case [str(of), int(place), str(option), str(name)] if of == kind and 0 <= place < len(result):
                options = {**result[place].options, option: str(folder / name)}
                result[place] = replace(result[place], options=options)
            case [str(), int(), str(), str()]:
                pass
            case _:
                raise DataError(f"'files' holds {entry!r}", where=str(folder / SETTINGS))
    return tuple(result)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"the folder is not a reproducer, it has no {SETTINGS}", where=str(folder)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"the settings of the reproducer cannot be read: {error}", where=str(path)) from error
    if not isinstance(settings, dict) or settings.get("schema") != _SCHEMA:
        raise DataError(f"expected schema {_SCHEMA} of a reproducer's settings", where=str(path))
    kinds: dict[str, type] = {
        "target": str,
        "dims": dict,
        "seed": int,
        "on_error": str,
        "isolate": bool,
        "local_plugins": str,
        "files": list,
    }
    for key, kind in kinds.items():
        if not isinstance(settings.get(key), kind):
            raise DataError(f"{key!r} is {settings.get(key)!r}, expected {kind.__name__}", where=str(path))
    if not all(isinstance(size, int) for size in settings["dims"].values()):
        raise DataError(f"'dims' is {settings['dims']!r}, expected whole numbers by name", where=str(path))
    return settings


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _error_text(error: GraphoptError) -> str:
    trace = "".join(traceback.format_exception(error))
    return f"{type(error).__name__}: {error}\n\n{trace}"


def _write_text(path: Path, text: str) -> None:
    # A path in another encoding than UTF-8 is shown as well as it can be.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _write_json(path: Path, document: object) -> None:
    _write_text(path, json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")
