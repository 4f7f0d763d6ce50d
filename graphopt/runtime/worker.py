"""The other side of :mod:`graphopt.runtime.child`: run one function in a process of its own.

``python -m graphopt.runtime.worker FOLDER`` reads ``job.json`` in FOLDER, calls the function named there and
writes ``result.json`` or ``error.json``. Standard output carries one JSON line a message (stage, progress) to
the parent; what native code prints there goes to standard error. Standard input stays open as long as the
parent lives: at its end the worker removes the folder and leaves.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from graphopt.errors import GraphoptError
from graphopt.runtime import codec

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS_BETWEEN_MESSAGES = 0.1


class _Channel:
    """The line to the parent; silent in a process that has none."""

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        self._last = 0.0

    def open(self) -> None:
        """Keep standard output for messages and send everything else that is printed to standard error."""
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **message: object) -> None:
        if self._stream is not None:
            self._stream.write(f"{json.dumps(message)}\n")
            self._stream.flush()

    def send_progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= _SECONDS_BETWEEN_MESSAGES:
            self._last = now
            self.send(done=done, total=total)


_CHANNEL = _Channel()
_ORPHANED = threading.Event()
_ATTEMPTS = 10  # the job may make files while its folder is being removed


def stage(text: str) -> None:
    """Tell the parent what is being done ("opening m.onnx"); a crash is reported with the last stage."""
    _CHANNEL.send(stage=text)


def progress(done: int, total: int) -> None:
    """Tell the parent that *done* of *total* parts are finished; at most ten messages a second are sent."""
    _CHANNEL.send_progress(done, total)


def _watch_parent(folder: Path) -> None:
    """Leave once the parent is gone, so that no orphan keeps computing and no folder stays behind."""
    while os.read(0, 1):
        pass
    _ORPHANED.set()
    for _ in range(_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
    os._exit(1)


def _yield_to_watcher() -> None:
    """Where the parent is gone, wait for the watcher to remove the folder and end this process."""
    if _ORPHANED.is_set():
        threading.Event().wait()


def _function(name: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), attribute)
    return found


def _failure(error: BaseException) -> dict[str, object]:
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, GraphoptError):
        names = [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, GraphoptError)]
        return {
            "classes": names,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
            "trace": trace,
        }
    return {
        "classes": [],
        "message": f"{type(error).__name__}: {error}",
        "where": "",
        "hint": "",
        "trace": trace,
    }


def main(argv: list[str]) -> int:
    """Run the job in the folder ``argv[0]``; return 0 where a result or an error was written."""
    faulthandler.enable()
    folder = Path(argv[0])
    _CHANNEL.open()
    threading.Thread(target=_watch_parent, args=(folder,), daemon=True).start()
    try:
        job = codec.load(folder, "job")
        result = _function(job["function"])(*job["arguments"])
        codec.save(result, folder, "result")
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent reports it
        _yield_to_watcher()  # files that vanished are no failure to report
        codec.save(_failure(error), folder, "error")
    _yield_to_watcher()
    return 0


if __name__ == "__main__":
    from graphopt.runtime import worker  # noqa: PLW0406 - so that stage() and progress() share its channel

    code = worker.main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # teardown of native libraries can crash or hang, and the result is written
