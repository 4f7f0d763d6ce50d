"""What the manager holds passes and gates to, and what their failures are called."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.api import GateResult, Report
from graphopt.errors import (
    DataError,
    GateFailed,
    GraphoptError,
    OptionError,
    PassFailed,
    ProviderError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from graphopt.pipeline.plan import PlannedStep

# What a pass may find out about options, data, provider or model only with the model in hand keeps its class,
# and with it its exit code; whatever else a pass raises is a failure of the pass.
_KEPT = (OptionError, DataError, GateFailed, ProviderError, UnsupportedModelError)
_TEXT_LIMIT = 500


def as_failure(planned: PlannedStep, error: BaseException) -> GraphoptError:
    """Return what *error* of a pass is to the user: an error that keeps its class, or PassFailed."""
    if isinstance(error, (*_KEPT, PassFailed)):
        if not error.where.startswith(planned.title):
            error.where = join(planned.title, error.where)
        return error
    if isinstance(error, GraphoptError):
        where = error.where if error.where.startswith(planned.title) else join(planned.title, error.where)
        return PassFailed(f"the pass failed: {error.message}", where=where, hint=error.hint)
    return PassFailed(f"the pass raised {described(error)}", where=planned.title)


def report_problem(report: object) -> str:
    """Return what is wrong with the form of a pass's report; the empty text for a good one."""
    if not isinstance(report, Report):
        return f"it returned {type(report).__name__}, expected a Report"
    names = ("changed", "counts", "skipped", "extra", "warnings")
    said: dict[str, Any] = {name: getattr(report, name) for name in names}
    if not isinstance(said["changed"], bool):
        return f"Report.changed is {said['changed']!r}, expected True or False"
    if not isinstance(said["counts"], Mapping):
        return f"Report.counts is {said['counts']!r}, expected a mapping"
    for key, count in said["counts"].items():
        if not isinstance(key, str) or not isinstance(count, int) or isinstance(count, bool) or count < 0:
            return f"Report.counts holds {key!r}: {count!r}, expected a text and a whole number from 0"
    if not isinstance(said["skipped"], tuple):
        return f"Report.skipped is {said['skipped']!r}, expected a tuple"
    for item in said["skipped"]:
        if not (isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)):
            return f"Report.skipped holds {item!r}, expected (where, reason)"
    if not isinstance(said["warnings"], tuple) or not all(isinstance(one, str) for one in said["warnings"]):
        return f"Report.warnings is {said['warnings']!r}, expected a tuple of texts"
    try:
        json.dumps(dict(said["extra"]))
    except (TypeError, ValueError, RecursionError) as error:
        return f"Report.extra is not ready for JSON: {error}"
    return ""


def check_honest(planned: PlannedStep, report: Report, before: str, after: str) -> None:
    """Raise PassFailed where ``Report.changed`` is not what the fingerprints say."""
    if report.changed == (before != after):
        return
    said, found = ("changed", "is the same") if report.changed else ("unchanged", "differs")
    raise PassFailed(
        f"the pass broke its contract: it reports the model as {said}, but its fingerprint {found}",
        where=planned.title,
        hint="This is a fault of the pass: Report.changed must tell whether it edited the model.",
    )


def checked_results(results: object) -> tuple[GateResult, ...]:
    """Return what a gate answered.

    Raises:
        TypeError: It is no tuple of GateResult.
    """
    if isinstance(results, tuple) and all(isinstance(result, GateResult) for result in results):
        return results
    raise TypeError(f"check() returned {results!r}, expected a tuple of GateResult")


def verdict(result: GateResult) -> str:
    """Return one result of a gate in words."""
    value = "no finite value" if result.value is None else f"{result.value:.6g}"
    note = f" ({result.note})" if result.note else ""
    return f"{result.name} is {value}, the limit is {result.limit:.6g}{note}"


def described(error: BaseException) -> str:
    """Return class, text and place of a stranger's exception, on one line and not too long."""
    text = " ".join(str(error).split())
    if len(text) > _TEXT_LIMIT:
        text = f"{text[:_TEXT_LIMIT]}..."
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (line {frames[-1].lineno} of {frames[-1].name}())" if frames else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def add_hint(error: GraphoptError, sentence: str) -> None:
    """Put *sentence* behind what the error advises already."""
    hint = error.hint.rstrip()
    hint += "" if not hint or hint.endswith((".", "?", "!", "`")) else "."
    error.hint = f"{hint} {sentence}".lstrip()


def join(*places: str) -> str:
    """Return *places*, those that are not empty, from the outermost to the innermost."""
    return ", ".join(place for place in places if place)
