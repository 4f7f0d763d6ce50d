"""Latency as an input of a run: measured once, recorded in the report, replayed from a file."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import DataError, GraphoptError, PathError, ProviderError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.ir.model import Model
    from graphopt.runtime.session import Feeds


@dataclass(frozen=True, slots=True)
class Measured:
    """How one model's time compares with another's.

    Attributes:
        label: What was compared, unique within its step.
        scope: The step that asked: its place and its pass.
        provider: What the models ran on.
        before_s: Seconds of one inference of the model before.
        after_s: The same of the model after.
        ratio: after / before.
        noise_ratio: The same for the model before against itself, in the worst trial.
        noise_floor: How far that is from 1.
        replayed: Whether it came from a file.
    """

    label: str
    scope: str
    provider: str
    before_s: float
    after_s: float
    ratio: float
    noise_ratio: float
    noise_floor: float
    replayed: bool = False

    @property
    def is_slower(self) -> bool:
        """Whether the model after is slower by more than the noise."""
        return self.ratio > 1.0 + self.noise_floor

    @property
    def is_faster(self) -> bool:
        """Whether the model after is faster by more than the noise."""
        return self.ratio < 1.0 - self.noise_floor


class Measurements:
    """Measures on one provider, or answers from a record.

    Args:
        provider: What to run on.
        feeds: Where the feed comes from: the first one is used; None makes one up.
        dims: Sizes of free dims of a feed that is made up.
        seed: Its seed.
        replay: Measurements to answer from, by (scope, label); what is not among them is measured.

    Attributes:
        records: All that was asked for so far.
        scope: The step that is running.
    """

    def __init__(
        self,
        provider: str = "cpu",
        *,
        feeds: Iterable[Feeds] | None = None,
        dims: Mapping[str, int] | None = None,
        seed: int = 0,
        replay: Mapping[tuple[str, str], Measured] | None = None,
    ) -> None:
        self.provider = provider
        self.records: list[Measured] = []
        self.scope = ""
        self._feeds = feeds
        self._dims = dict(dims or {})
        self._seed = seed
        self._fitting: dict[tuple[str, ...], dict[str, int]] = {}  # by the open dims, which passes keep
        self._replay = dict(replay or {})
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: weakref.WeakKeyDictionary[Model, tuple[str, Path]] = weakref.WeakKeyDictionary()
        self._written = 0

    def known(self) -> tuple[Measured, ...]:
        """Return all that is known: what was given, and what was measured since."""
        return (*self._replay.values(), *(each for each in self.records if not each.replayed))

    @property
    def replay(self) -> Mapping[tuple[str, str], Measured]:
        """What is answered from."""
        return self._replay

    def can_measure(self, model: Model) -> bool:
        """Return whether *model* can be timed here: the provider is present and there is a feed for it."""
        from graphopt.runtime.providers import available

        if self._replay:
            return True
        if self.provider not in available():
            return False
        try:
            self._feed(model)
        except GraphoptError:
            return False
        return True

    def latency(
        self,
        label: str,
        before: Model,
        after: Model,
        *,
        rounds: int | None = None,
        trials: int | None = None,
        budget_s: float | None = None,
    ) -> Measured:
        """Compare the time of two models, or answer from the record.

        Args:
            label: Names the comparison; unique within the step.
            before: The model to compare with.
            after: The model to judge; it takes the same inputs.
            rounds: As :func:`graphopt.runtime.latency.measure_latency`, whose default None takes.
            trials: The same.
            budget_s: The same.

        Raises:
            GraphoptError: A model cannot be run here.
        """
        found = self.latencies(before, {label: after}, rounds=rounds, trials=trials, budget_s=budget_s)
        return found[label]

    def latencies(
        self,
        before: Model,
        after: Mapping[str, Model],
        *,
        rounds: int | None = None,
        trials: int | None = None,
        budget_s: float | None = None,
        clear: float | None = None,
    ) -> dict[str, Measured]:
        """Compare the time of several models with one, as far as the record does not answer.

        Args:
            before: The model to compare with.
            after: The models to judge, by the label of the comparison, unique within the step.
            rounds: As :func:`graphopt.runtime.latency.measure_each`, whose default None takes.
            trials: The same.
            budget_s: The same.
            clear: The same.

        Raises:
            GraphoptError: A model cannot be run here.
        """
        from graphopt.runtime.latency import BUDGET_S, ROUNDS, TRIALS, measure_each
        from graphopt.runtime.providers import available

        found = {label: self._replay.get((self.scope, label)) for label in after}
        missing = [label for label, known in found.items() if known is None]
        if missing:
            if self.provider not in available():
                raise ProviderError(
                    f"the provider {self.provider!r} is not installed here, so nothing can be measured on it",
                    where=missing[0],
                    hint="Give measurements of a machine that has it with --measurements.",
                )
            latencies = measure_each(
                self._file(before),
                [self._file(after[label]) for label in missing],
                self._feed(before),
                self.provider,
                ROUNDS if rounds is None else rounds,
                TRIALS if trials is None else trials,
                budget_s=BUDGET_S if budget_s is None else budget_s,
                clear=clear,
            )
            for label, latency in zip(missing, latencies, strict=True):
                found[label] = Measured(
                    label=label,
                    scope=self.scope,
                    provider=self.provider,
                    before_s=latency.before_s,
                    after_s=latency.after_s,
                    ratio=latency.ratio,
                    noise_ratio=latency.noise_ratio,
                    noise_floor=abs(1.0 - latency.noise_ratio),
                )
        answers = {label: known for label, known in found.items() if known is not None}
        self.records.extend(answers.values())
        return answers

    def _feed(self, model: Model) -> Feeds:
        from graphopt.runtime.feeds import free_dims, input_specs, random_feeds
        from graphopt.runtime.opening import fitting_dims

        if self._feeds is not None:
            for feed in self._feeds:
                return feed
        specs = input_specs(model)
        free = free_dims(specs)
        if free not in self._fitting:
            self._fitting[free] = fitting_dims(model, self._dims, self._seed)
        return random_feeds(specs, 1, self._seed, {**self._fitting[free], **self._dims})[0]

    def _file(self, model: Model) -> Path:
        """Return a file with *model*; one that was measured before and is unchanged is not written again."""
        from graphopt.ir.emit import save
        from graphopt.ir.fingerprint import fingerprint

        state = fingerprint(model)
        known = self._files.get(model)
        if known is not None and known[0] == state:
            return known[1]
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="graphopt-measure-")
        if known is not None:
            known[1].unlink(missing_ok=True)
        self._written += 1
        path = Path(self._folder.name) / f"{self._written}.onnx"
        save(model, path)
        self._files[model] = (state, path)
        return path

    def close(self) -> None:
        """Remove the files of the models measured."""
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def as_document(records: Iterable[Measured]) -> list[dict[str, Any]]:
    """Return measurements as they stand in report.json."""
    return [asdict(each) for each in records]


def read_measurements(path: Path) -> dict[tuple[str, str], Measured]:
    """Return the measurements of a report.json, or of a JSON file with its ``extra.measurements`` list alone.

    Raises:
        PathError: The file does not exist.
        DataError: It holds no measurements.
    """
    if not path.exists():
        raise PathError("the measurements do not exist", where=str(path))
    if path.is_dir():
        path = path / "report.json"
    hint = "Use the report.json of an earlier run."
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the measurements cannot be read ({error})", where=str(path), hint=hint) from error
    entries = document
    if isinstance(document, Mapping):
        extra = document.get("extra")
        entries = extra.get("measurements") if isinstance(extra, Mapping) else None
    if not isinstance(entries, list):
        raise DataError("the file holds no measurements", where=str(path), hint=hint)
    return as_replay(entries, where=str(path))


def as_replay(entries: Iterable[Any], *, where: str = "") -> dict[tuple[str, str], Measured]:
    """Return measurements by (scope, label) from the form that :func:`as_document` gives.

    Raises:
        DataError: An entry is malformed.
    """
    found: dict[tuple[str, str], Measured] = {}
    kinds = {each.name: each.type for each in fields(Measured)}
    for index, entry in enumerate(entries):
        try:
            values = {name: _typed(entry[name], kinds[name]) for name in kinds if name != "replayed"}
            measured = Measured(**values, replayed=True)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"measurement {index} is malformed ({error!r})", where=where) from error
        found[measured.scope, measured.label] = measured
    return found


def _typed(value: object, kind: object) -> Any:  # noqa: ANN401 - a text or a number
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError(f"expected text, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)
