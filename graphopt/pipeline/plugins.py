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
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import pluggy

from graphopt import hookspecs
from graphopt.errors import PathError, PluginError, nearest
from graphopt.pipeline.registry import DISABLE_VARIABLE, PluginInfo, Registry, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


__all__ = ["BUILTIN", "DISABLE_VARIABLE", "STRICT_VARIABLE", "PluginInfo", "Registry", "load_plugins"]

ENTRY_POINT_GROUP = "graphopt"
STRICT_VARIABLE = "GRAPHOPT_STRICT_PLUGINS"
BUILTIN = "graphopt"

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
    "graphopt_register_criteria": ("criteria", "criterion"),
    "graphopt_register_channel_rules": ("channel_rules", "channel rule"),
}


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
        self.refuse_built_in_targets(registers["targets"], owner)
        self.infos.append(PluginInfo(found.name, found.version, found.origin, "active", registers=names))

    def refuse_built_in_targets(self, targets: Iterable[str], owner: str) -> None:
        """Built-in targets are files of graphopt.targets and stand in no table; their names are taken."""
        if not targets:
            return
        from graphopt.targets import known_targets

        for name in set(targets) & set(known_targets()):
            raise PluginError(
                f"the target {name!r} is registered by {owner}, but it is built in",
                hint="Give the plugin's target another name.",
            )

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
            raise _Rejected(one_line(str(error))) from error
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
        if problems := self.registry.table(kind).problems(name, value):
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


def _guarded(what: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the plugin gives
    """Call strangers' code; whatever it raises is a reason to leave the plugin out."""
    try:
        return call()
    except _Rejected:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
        _reject(what, error)


def _reject(what: str, error: BaseException) -> NoReturn:
    raise _Rejected(f"{what} raised {type(error).__name__}: {one_line(str(error))}") from error
