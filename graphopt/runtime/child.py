"""Run a function in a child process, so that a native crash or a hang is an error and not the end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import errors
from graphopt.errors import GraphoptError, WorkerError, WriteError
from graphopt.runtime import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from graphopt.runtime.session import Feeds

_LOG_BYTES = 4000  # of what the child printed, kept as a note for --debug
_POLL_S = 0.2
_GRACE_S = 5.0


class FeedStream:
    """Feeds as an argument of :func:`run_in_child`: written out one by one, read one by one by the child."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self.feeds = feeds


def run_in_child(
    function: str,
    *arguments: object,
    timeout_s: float | None = None,
    where: str = "",
    on_progress: Callable[[int, int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Any:  # noqa: ANN401 - whatever the function returns
    """Call *function* with *arguments* in a fresh interpreter and return its result.

    Arguments and result are what :func:`graphopt.runtime.codec.save` takes, and :class:`FeedStream`; they
    pass through a private folder, which is removed whatever happens. Relative paths are made absolute here,
    the child works in that folder. What the child prints never reaches our standard output or error.

    Args:
        function: ``"module:function"``; the module is found on this interpreter's ``sys.path``.
        arguments: Positional arguments.
        timeout_s: Seconds after which the child is killed; None waits for ever.
        where: The model that it is about, for errors.
        on_progress: Called with (done, total) in this thread.
        on_stage: Called with what the child says it is doing, in this thread.

    Raises:
        GraphoptError: What the function raised, as its own class.
        WorkerError: The child crashed, ran out of time, or raised something else.
        WriteError: The folder for temporary files is full.
    """
    if not sys.executable:
        raise WorkerError("there is no Python interpreter to start a child process with", where=where)
    folder = Path(tempfile.mkdtemp(prefix="graphopt-job-"))
    try:
        job = {
            "function": function,
            "arguments": [
                _stored(each, folder, k) if isinstance(each, FeedStream) else each
                for k, each in enumerate(arguments)
            ],
        }
        with _writing(folder):
            codec.save(job, folder, "job")
        return _Child(folder, where, on_progress, on_stage).run(timeout_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stored(stream: FeedStream, folder: Path, index: int) -> codec.StoredFeeds:
    """Write feeds one by one; what their source raises stays as it is."""
    place = folder / f"feeds{index}"
    place.mkdir()
    count = 0
    for feed in stream.feeds:
        with _writing(folder):
            codec.save(dict(feed), place, f"feed{count}")
        count += 1
    return codec.StoredFeeds(place, count)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # numpy gives no reason where a write falls short.
        raise WriteError(
            f"temporary files could not be written ({error.strerror or error})",
            where=str(folder.parent),
            hint="Free some space there, or set TMPDIR to another folder.",
        ) from error


class _Child:
    def __init__(
        self,
        folder: Path,
        where: str,
        on_progress: Callable[[int, int], None] | None,
        on_stage: Callable[[str], None] | None,
    ) -> None:
        self._folder = folder
        self._where = where
        self._on_progress = on_progress
        self._on_stage = on_stage
        self._stage = "starting"

    def run(self, timeout_s: float | None) -> Any:  # noqa: ANN401 - as run_in_child
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "graphopt.runtime.worker", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._folder,
                env=_environment(self._folder),
                # Ctrl-C goes to this process alone, which then ends the child in its own way.
                start_new_session=True,
            )
        try:
            self._listen(process, deadline, timeout_s)
            code = process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired as error:  # it closed its output but does not leave
            raise self._error("did not end", "") from error
        finally:
            _end(process)
        return self._result(code)

    def _listen(
        self, process: subprocess.Popen[bytes], deadline: float | None, timeout_s: float | None
    ) -> None:
        """Pass messages on until the child closes its output; a thread reads, as pipes cannot be polled."""
        messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def read() -> None:
            assert process.stdout is not None
            with contextlib.suppress(ValueError, OSError):  # closed under it when the child is ended
                for line in process.stdout:
                    messages.put(line)
            messages.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            if deadline is not None and time.monotonic() > deadline:
                raise self._error(
                    f"ran longer than {timeout_s:g} s", "Give it more time, or use smaller data"
                )
            try:
                line = messages.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if line is None:
                return
            self._take(line)

    def _take(self, line: bytes) -> None:
        message = json.loads(line)
        if "stage" in message:
            self._stage = message["stage"]
            if self._on_stage is not None:
                self._on_stage(self._stage)
        elif self._on_progress is not None:
            self._on_progress(message["done"], message["total"])

    def _result(self, code: int) -> Any:  # noqa: ANN401 - as run_in_child
        if (self._folder / "error.json").exists():
            raise self._raised(codec.load(self._folder, "error"))
        if (self._folder / "result.json").exists():
            return codec.load(self._folder, "result")
        hint = "The system may be out of memory" if code == -getattr(signal, "SIGKILL", 9) else ""
        raise self._error(f"crashed ({_cause(code)})", hint)

    def _raised(self, failure: dict[str, Any]) -> GraphoptError:
        error: GraphoptError
        for name in failure["classes"]:
            cls = getattr(errors, name, None)  # the nearest class that this package defines
            if isinstance(cls, type) and issubclass(cls, GraphoptError):
                error = cls(failure["message"], where=failure["where"], hint=failure["hint"])
                break
        else:
            error = self._error(f"failed with {failure['message']}", "")
        error.add_note(f"In the child process:\n{failure['trace']}")
        return error

    def _error(self, what: str, hint: str) -> WorkerError:
        error = WorkerError(f"the child process {what} while {self._stage}", where=self._where, hint=hint)
        with contextlib.suppress(OSError):
            log = (self._folder / "log").read_bytes()
            if log:
                error.add_note(f"The child process printed:\n{log[-_LOG_BYTES:].decode(errors='replace')}")
        return error


def _environment(folder: Path) -> dict[str, str]:
    """Return our environment with the module path of this interpreter, however it came about.

    Temporary files go into *folder*: the child leaves without cleaning up, or is killed.
    """
    path = [str(Path(entry or ".").absolute()) for entry in sys.path]
    more = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    return os.environ | more


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the child is gone and its pipes are closed."""
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _cause(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
