"""Plugins: found, loaded, checked, and merged into one registry.

The built-in passes register first and through the same hooks as everybody's. A plugin that cannot be
loaded, or that registers what cannot be used, is left out whole and named in a warning; two owners of one
name are always an error, because no order of loading would make a pipeline mean one thing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar

import pluggy

from graphopt import hookspecs
from graphopt.api import Analysis, Gate, Instrument, Pass, PassInfo, PassOptions
from graphopt.errors import GraphoptError, PathError, PlanError, PluginError, nearest
from graphopt.pipeline.options import option_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.calibrate.sources import DataSource, SourceRequest
    from graphopt.record import RunRecord

T = TypeVar("T")

ENTRY_POINT_GROUP = "graphopt"
DISABLE_VARIABLE = "GRAPHOPT_DISABLE_PLUGINS"
STRICT_VARIABLE = "GRAPHOPT_STRICT_PLUGINS"
BUILTIN = "graphopt"

Status = Literal["active", "disabled", "failed"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[^:]+\.toml")
_HOOK_PREFIX = "graphopt_"

# Hook -> (name of the table in Registry, what one entry is called in messages).
_KINDS = {
    "graphopt_register_passes": ("passes", "pass"),
    "graphopt_register_analyses": ("analyses", "analysis"),
    "graphopt_register_gates": ("gates", "gate"),
    "graphopt_register_instruments": ("instruments", "instrument"),
    "graphopt_register_data_sources": ("data_sources", "data source"),
    "graphopt_register_reporters": ("reporters", "reporter"),
    "graphopt_register_targets": ("targets", "target"),
}


@dataclass(frozen=True)
class PluginInfo:
    """One plugin as ``graphopt plugins`` lists it.

    Attributes:
        name: Name of the entry point, or the stem of a local file.
        version: Version of its distribution; empty where it has none.
        origin: Distribution or file that it comes from.
        status: ``active``; ``disabled`` by the environment; ``failed`` to load or to register.
        reason: Why it is not active.
        registers: Names that it registered, by kind (``passes``, ``gates``, ...).
    """

    name: str
    version: str
    origin: str
    status: Status
    reason: str = ""
    registers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    owner: str
    value: object


class Table(Mapping[str, T], Generic[T]):
    """What plugins registered of one kind, by name; values given as text are imported on first use.

    Args:
        kind: What one entry is called in messages.
        check: Returns what is wrong with a resolved value, given its name.
    """

    def __init__(self, kind: str, check: Callable[[str, object], Sequence[str]]) -> None:
        self.kind = kind
        self._check = check
        self._entries: dict[str, _Entry] = {}
        self._resolved: dict[str, T] = {}

    def add(self, name: str, value: object, owner: str) -> None:
        """Register *value* under *name*.

        Raises:
            PluginError: The name is taken; both owners are named.
        """
        if name in self._entries:
            first = self._entries[name].owner
            raise PluginError(
                f"the {self.kind} {name!r} is registered twice, by {first} and by {owner}",
                hint=f"Uninstall one of them or name it in {DISABLE_VARIABLE}.",
            )
        self._entries[name] = _Entry(owner, value)

    def owner(self, name: str) -> str:
        """Return which plugin registered *name*."""
        return self._entries[name].owner

    def find(self, name: str, *, where: str = "") -> T:
        """Return the value called *name*, importing it if need be.

        Raises:
            PlanError: Nothing of this kind has that name; the nearest one is named.
            PluginError: It cannot be imported or is not what it was registered as.
        """
        if name not in self._entries:
            raise PlanError(
                f"no {self.kind} is called {name!r}",
                where=where,
                hint=nearest(name, self._entries, what=_plural(self.kind)),
            )
        return self[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._resolved:
            entry = self._entries[name]
            where = f"{self.kind} {name!r} of {entry.owner}"
            value = entry.value
            if isinstance(value, str) and self.kind != "target":
                value = _import_reference(value, where)
            if problems := self._check(name, value):
                raise PluginError(
                    "; ".join(problems), where=where, hint="This is a fault of the plugin, not of the plan."
                )
            self._resolved[name] = value  # type: ignore[assignment]  # what _check accepts is a T
        return self._resolved[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


class Registry:
    """Everything that passes, recipes and commands can name.

    Attributes:
        plugins: All plugins found, the built-in one first, whatever became of them.
        warnings: One sentence for each plugin that is not active although it was wanted.
        local: The one-file plugin that was asked for, or None.
    """

    def __init__(self) -> None:
        self.passes: Table[type[Pass]] = Table("pass", _check_pass)
        self.analyses: Table[Analysis] = Table("analysis", _check_callable)
        self.gates: Table[type[Gate]] = Table("gate", _check_gate)
        self.instruments: Table[Callable[[], Instrument]] = Table("instrument", _check_callable)
        self.data_sources: Table[Callable[[SourceRequest], DataSource | None]] = Table(
            "data source", _check_callable
        )
        self.reporters: Table[Callable[[RunRecord, Path], None]] = Table("reporter", _check_callable)
        self.targets: Table[str | Path] = Table("target", _check_target)
        self.plugins: tuple[PluginInfo, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.local: Path | None = None

    def table(self, kind: str) -> Table[Any]:
        """Return the table called *kind* (``passes``, ``gates``, ...)."""
        table = getattr(self, kind)
        assert isinstance(table, Table)
        return table


def load_plugins(local: Path | None = None) -> Registry:
    """Find, load and check all plugins.

    ``GRAPHOPT_DISABLE_PLUGINS`` holds ``1`` or ``all`` (no installed plugin is loaded) or a list of names
    separated by commas. ``GRAPHOPT_STRICT_PLUGINS=1`` makes an error of every warning.

    Args:
        local: A Python file to load as a plugin besides the installed ones.

    Raises:
        PathError: *local* is missing or a directory.
        PluginError: Two plugins register one name; or, in strict mode, one cannot be used.
    """
    return _Loader(local).load()


class _Rejected(Exception):  # noqa: N818 - never leaves this module
    """A plugin cannot be used."""


@dataclass
class _Found:
    name: str
    version: str
    origin: str
    load: Callable[[], object]


class _Loader:
    def __init__(self, local: Path | None) -> None:
        self.local = local
        self.registry = Registry()
        self.registry.local = local
        self.manager = pluggy.PluginManager("graphopt")
        self.manager.add_hookspecs(hookspecs)
        self.strict = os.environ.get(STRICT_VARIABLE, "") == "1"
        self.disabled = {part.strip() for part in os.environ.get(DISABLE_VARIABLE, "").split(",")} - {""}
        self.infos: list[PluginInfo] = []
        self.warnings: list[str] = []

    def load(self) -> Registry:
        self.admit(_Found(BUILTIN, _own_version(), "built in", _load_builtin))
        for found in _installed():
            if self.disabled & {"1", "all", found.name, found.origin}:
                reason = f"named in {DISABLE_VARIABLE}"
                self.infos.append(PluginInfo(found.name, found.version, found.origin, "disabled", reason))
            else:
                self.admit(found)
        if self.local is not None:
            self.admit(_found_local(self.local))
        # Each plugin was checked by itself; this is pluggy's own word that no hook is unknown.
        self.manager.check_pending()
        self.registry.plugins = tuple(self.infos)
        self.registry.warnings = tuple(self.warnings)
        return self.registry

    def admit(self, found: _Found) -> None:
        try:
            registers = self.collect(found)
        except _Rejected as error:
            sentence = f"plugin {found.name!r} ({found.origin}) is disabled: {error}"
            if self.strict or found.name == BUILTIN:
                raise PluginError(
                    sentence, hint=f"Repair it or name it in {DISABLE_VARIABLE}."
                ) from error.__cause__
            self.warnings.append(sentence)
            self.infos.append(PluginInfo(found.name, found.version, found.origin, "failed", str(error)))
            return
        owner = f"{found.name!r} ({found.origin})"
        for kind, entries in registers.items():
            for name, value in entries.items():
                self.registry.table(kind).add(name, value, owner)
        names = {kind: tuple(entries) for kind, entries in registers.items() if entries}
        self.infos.append(PluginInfo(found.name, found.version, found.origin, "active", registers=names))

    def collect(self, found: _Found) -> dict[str, dict[str, object]]:
        """Load and register one plugin and return what it offers by kind; on refusal nothing of it stays."""
        plugin = _guarded("loading it", found.load)
        self.check_hooks(plugin)
        if found.name in {info.name for info in self.infos if info.status == "active"}:
            other = next(info for info in self.infos if info.name == found.name)
            raise PluginError(
                f"two plugins are called {found.name!r}, one from {other.origin} and one from {found.origin}",
                hint=f"Uninstall one of them or name it in {DISABLE_VARIABLE}.",
            )
        try:
            self.manager.register(plugin, found.name)
            return {kind: self.offers(plugin, hook) for hook, (kind, _) in _KINDS.items()}
        except (pluggy.PluginValidationError, ValueError) as error:
            self.forget(plugin)
            raise _Rejected(_one_line(str(error))) from error
        except _Rejected:
            self.forget(plugin)
            raise

    def forget(self, plugin: object) -> None:
        if self.manager.is_registered(plugin):
            self.manager.unregister(plugin)

    def check_hooks(self, plugin: object) -> None:
        implemented = 0
        for name in dir(plugin):
            marked = self.manager.parse_hookimpl_opts(plugin, name)
            if marked is not None:
                hook = marked.get("specname") or name
                if hook not in _KINDS and not marked.get("optionalhook"):
                    raise _Rejected(f"there is no hook {hook!r}. {nearest(hook, _KINDS, what='hooks')}")
                implemented += 1
            elif name.startswith(_HOOK_PREFIX) and inspect.isroutine(getattr(plugin, name, None)):
                raise _Rejected(f"{name!r} is not marked with graphopt.hookspecs.hookimpl")
        if not implemented:
            raise _Rejected("it implements no hook of graphopt")

    def offers(self, plugin: object, hook: str) -> dict[str, object]:
        """Return what *plugin* alone answers to *hook*."""
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        caller = self.manager.subset_hook_caller(hook, others)
        kind, what = _KINDS[hook]
        result: dict[str, object] = {}
        for answer in _guarded(hook, caller):
            if not isinstance(answer, Mapping):
                raise _Rejected(f"{hook} returned {type(answer).__name__}, expected a mapping of names")
            for name, value in answer.items():
                self.check_offer(hook, kind, what, name, value)
                result[name] = value
        return result

    def check_offer(self, hook: str, kind: str, what: str, name: object, value: object) -> None:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise _Rejected(
                f"{hook} gives a {what} the name {name!r}, expected lower-case words joined by hyphens"
            )
        if isinstance(value, str):
            form, example = (
                (_TARGET, "package:file.toml") if what == "target" else (_REFERENCE, "package.module:Name")
            )
            if form.fullmatch(value) is None:
                raise _Rejected(f"the {what} {name!r} is {value!r}, expected text like {example!r}")
            return
        if problems := self.registry.table(kind)._check(name, value):  # noqa: SLF001 - the table is ours
            raise _Rejected(f"the {what} {name!r}: {'; '.join(problems)}")


def _load_builtin() -> object:
    return importlib.import_module("graphopt.passes")


def _own_version() -> str:
    try:
        return importlib.metadata.version("graphopt")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _installed() -> Iterator[_Found]:
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for point in sorted(points, key=lambda p: (p.name, p.dist.name if p.dist else "", p.value)):
        origin = point.dist.name if point.dist else point.value
        yield _Found(point.name, point.dist.version if point.dist else "", origin, point.load)


def _found_local(path: Path) -> _Found:
    if not path.exists():
        raise PathError(
            "there is no such plugin file", where=str(path), hint="Give --local-plugins a Python file."
        )
    if path.is_dir():
        raise PathError("expected a Python file, got a directory", where=str(path))
    return _Found(path.stem, "", str(path), lambda: _import_file(path))


def _import_file(path: Path) -> ModuleType:
    # The name is unique to the file, so that two files of one stem do not meet in sys.modules, and stable,
    # so that objects of the module can be pickled into a child that loads the same file.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"graphopt_local_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest}"
    if path.suffix != ".py":
        raise _Rejected("it is not a Python file (its name must end in .py)")
    module = ModuleType(name)
    module.__file__ = str(path)
    # Compiled here and not by the import system, which would leave a cache beside the user's file and trust
    # one that is less than a second older than an edit.
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)  # noqa: S102 - the user named this file to have it executed
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_reference(reference: str, where: str) -> object:
    module_name, _, path = reference.partition(":")
    try:
        value: object = importlib.import_module(module_name)
        for part in path.split("."):
            value = getattr(value, part)
    except GraphoptError:
        raise
    except Exception as error:
        raise PluginError(
            f"{reference!r} cannot be imported: {type(error).__name__}: {_one_line(str(error))}",
            where=where,
            hint="Is the plugin installed with all it depends on?",
        ) from error
    return value


def _guarded(what: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the plugin gives
    """Call strangers' code; whatever it raises is a reason to leave the plugin out."""
    try:
        return call()
    except _Rejected:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
        _reject(what, error)


def _reject(what: str, error: BaseException) -> NoReturn:
    raise _Rejected(f"{what} raised {type(error).__name__}: {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plural(kind: str) -> str:
    return {"pass": "passes", "analysis": "analyses"}.get(kind, f"{kind}s")


def _check_pass(name: str, value: object) -> Sequence[str]:
    if not (isinstance(value, type) and issubclass(value, Pass)):
        return (f"expected a subclass of graphopt.api.Pass, got {value!r}",)
    info = getattr(value, "info", None)
    if not isinstance(info, PassInfo):
        return (f"its info is {info!r}, expected a PassInfo",)
    problems = [] if info.name == name else [f"its info says {info.name!r}, but it is registered as {name!r}"]
    for part in ("requires", "provides", "conflicts", "preserves"):
        names: object = getattr(info, part)
        if not isinstance(names, set | frozenset) or not all(isinstance(each, str) for each in names):
            problems.append(f"its info.{part} is {names!r}, expected a set of texts")
    min_opset: object = info.min_opset
    if not isinstance(min_opset, int):
        problems.append(f"its info.min_opset is {min_opset!r}, expected a whole number")
    if inspect.isabstract(value):
        problems.append("it does not implement run()")
    return (*problems, *_check_options(value.Options))


def _check_gate(name: str, value: object) -> Sequence[str]:
    if not (isinstance(value, type) and issubclass(value, Gate)):
        return (f"expected a subclass of graphopt.api.Gate, got {value!r}",)
    own = getattr(value, "name", None)
    problems = [] if own == name else [f"its name is {own!r}, but it is registered as {name!r}"]
    if inspect.isabstract(value):
        problems.append("it does not implement check()")
    return (*problems, *_check_options(value.Options))


def _check_options(options: object) -> Sequence[str]:
    if not (isinstance(options, type) and issubclass(options, PassOptions)):
        return (f"its Options are {options!r}, expected a subclass of graphopt.api.PassOptions",)
    return option_problems(options)


def _check_callable(name: str, value: object) -> Sequence[str]:
    return () if callable(value) else (f"expected a function or class for {name!r}, got {value!r}",)


def _check_target(name: str, value: object) -> Sequence[str]:
    return (
        ()
        if isinstance(value, str | Path)
        else (f"expected the path of a TOML file for {name!r}, got {value!r}",)
    )
