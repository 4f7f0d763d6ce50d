"""The registry: what plugins offer, by kind and name, imported and checked on first use."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from graphopt.api import Analysis, Gate, Instrument, Pass, PassInfo, PassOptions
from graphopt.errors import GraphoptError, PlanError, PluginError, nearest
from graphopt.pipeline.options import option_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.calibrate.sources import DataSource, SourceRequest
    from graphopt.record import RunRecord

T = TypeVar("T")

DISABLE_VARIABLE = "GRAPHOPT_DISABLE_PLUGINS"

Status = Literal["active", "disabled", "failed"]


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

    def problems(self, name: str, value: object) -> Sequence[str]:
        """Return what is wrong with registering *value* as *name*; empty for a good one."""
        return self._check(name, value)

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
            if problems := self.problems(name, value):
                raise PluginError(
                    "; ".join(problems), where=where, hint="This is a fault of the plugin, not of the plan."
                )
            self._resolved[name] = value  # type: ignore[assignment]  # what problems() accepts is a T
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
        self.criteria: Table[Any] = Table("criterion", _check_callable)
        self.channel_rules: Table[Any] = Table("channel rule", _check_object)
        self.plugins: tuple[PluginInfo, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.local: Path | None = None

    def table(self, kind: str) -> Table[Any]:
        """Return the table called *kind* (``passes``, ``gates``, ...)."""
        table = getattr(self, kind)
        assert isinstance(table, Table)
        return table


def one_line(text: str) -> str:
    """Return *text* with every run of white space, line breaks too, as one space."""
    return " ".join(text.split())


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
            f"{reference!r} cannot be imported: {type(error).__name__}: {one_line(str(error))}",
            where=where,
            hint="Is the plugin installed with all it depends on?",
        ) from error
    return value


def _plural(kind: str) -> str:
    irregular = {"pass": "passes", "analysis": "analyses", "criterion": "criteria"}
    return irregular.get(kind, f"{kind}s")


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


def _check_object(name: str, value: object) -> Sequence[str]:
    return (f"expected a rule for {name!r}, got None",) if value is None else ()


def _check_target(name: str, value: object) -> Sequence[str]:
    return (
        ()
        if isinstance(value, str | Path)
        else (f"expected the path of a TOML file for {name!r}, got {value!r}",)
    )
