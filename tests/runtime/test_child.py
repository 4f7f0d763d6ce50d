"""A child that returns, raises, crashes, hangs, prints, and is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphopt.api import PassOptions
from graphopt.errors import (
    DataError,
    GraphoptError,
    OptionError,
    PathError,
    PlanError,
    WorkerError,
    WriteError,
)
from graphopt.runtime import codec, worker
from graphopt.runtime.child import FeedStream, run_in_child

HERE = __name__


@dataclass(frozen=True)
class Box:
    inner: object


class Options(PassOptions):
    ratio: float = 0.5


class LocalError(PathError):
    """A class that the parent knows only by its base."""


# --- functions that run in the child


def echo(value: object) -> object:
    return value


def abort() -> None:
    worker.stage("opening m.onnx")
    os.abort()


def leave() -> None:
    os._exit(7)


def sleep() -> None:
    worker.stage("sleeping")
    time.sleep(60)


def refuse() -> None:
    raise LocalError("no such thing", where="x.onnx", hint="Look again")


def stumble() -> None:
    raise ZeroDivisionError("by zero")


def shout() -> str:
    sys.stdout.write("to python's stdout\n")
    os.write(1, b"to file descriptor 1\n")
    os.write(2, b"to file descriptor 2\n")
    for k in range(3):
        worker.progress(k + 1, 3)
    return "done"


def sum_twice(feeds: codec.StoredFeeds) -> list[float]:
    return [sum(float(np.sum(feed["x"])) for feed in feeds) for _ in range(2)]  # type: ignore[arg-type,misc]


def where_am_i(path: Path) -> tuple[Path, Path, bool]:
    return Path.cwd(), path, path.is_absolute()


def job_folders() -> set[str]:
    return {each.name for each in Path(tempfile.gettempdir()).glob("graphopt-job-*")}


# --- tests


@pytest.fixture(autouse=True)
def private_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a temporary folder of its own, so that what is left behind can be seen."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def test_temporary_files_of_a_child_go_with_it() -> None:
    left = Path(run_in_child("tempfile:mkdtemp"))
    assert not left.exists()
    assert left.parent.name.startswith("graphopt-job-")


def test_values_of_every_kind_come_back() -> None:
    value = {
        "plain": [None, True, 3, 0.1, float("inf"), "text", b"\x00\xff"],
        "tuple": (1, ("two",)),
        3: {"$": "tag", "data": 1},
        "path": Path("/a/b"),
        "box": Box(Box((1,))),
        "options": Options(ratio=0.25),
    }
    result = run_in_child(f"{HERE}:echo", value)
    assert repr(result) == repr(value)
    assert type(result["box"]).__name__ == "Box"
    assert not job_folders()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.array(2.5),
        np.zeros((0, 3), np.float16),
        np.array([True, False]),
        np.array([[1, -2]]).astype(ml_dtypes.bfloat16),
        np.array([1, -2]).astype(ml_dtypes.float8_e4m3fn),
        np.array([1, -2, 7]).astype(ml_dtypes.int4),
        np.array([["a", "ü"]], object),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_of_every_kind_come_back(array: np.ndarray, tmp_path: Path) -> None:
    codec.save({"a": [array]}, tmp_path, "x")
    result = codec.load(tmp_path, "x")["a"][0]
    assert result.dtype == array.dtype
    assert result.shape == array.shape
    np.testing.assert_array_equal(result, array)


def test_what_cannot_be_passed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="a complex cannot be passed"):
        codec.save({"a": [1j]}, tmp_path, "x")


def test_feeds_stream_and_can_be_read_again() -> None:
    feeds = ({"x": np.full(3, float(k))} for k in range(5))
    assert run_in_child(f"{HERE}:sum_twice", FeedStream(feeds)) == [30.0, 30.0]


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.chdir(tmp_path)
    folder, path, absolute = run_in_child(f"{HERE}:where_am_i", Path("m.onnx"))
    assert absolute
    assert path == tmp_path / "m.onnx"
    assert folder != tmp_path


def test_a_crash_names_the_model_the_stage_and_the_signal() -> None:
    with pytest.raises(WorkerError) as caught:
        run_in_child(f"{HERE}:abort", where="m.onnx")
    assert str(caught.value) == "m.onnx: the child process crashed (signal SIGABRT) while opening m.onnx"
    assert caught.value.exit_code == 4
    assert "Fatal Python error: Aborted" in "".join(caught.value.__notes__)
    assert not job_folders()


def test_leaving_without_a_result() -> None:
    with pytest.raises(WorkerError, match=r"crashed \(exit code 7\) while starting"):
        run_in_child(f"{HERE}:leave")


def test_a_hang_ends_at_the_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"ran longer than 3 s while sleeping"):
        run_in_child(f"{HERE}:sleep", timeout_s=3)
    assert time.monotonic() - started < 15
    assert not job_folders()


def test_errors_of_graphopt_come_back_as_themselves() -> None:
    with pytest.raises(PathError) as caught:
        run_in_child(f"{HERE}:refuse")
    assert type(caught.value) is PathError  # the nearest class known here
    assert str(caught.value) == "x.onnx: no such thing. Look again"
    assert "LocalError" in "".join(caught.value.__notes__)


def test_other_errors_are_worker_errors_with_their_trace() -> None:
    with pytest.raises(WorkerError, match="failed with ZeroDivisionError: by zero while starting") as caught:
        run_in_child(f"{HERE}:stumble")
    assert "in stumble" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("error", [DataError, OptionError, PlanError])
def test_all_classes_survive(error: type[GraphoptError]) -> None:
    failure = worker._failure(error("what", where="here", hint="Do that"))
    assert failure["classes"][0] == error.__name__  # type: ignore[index]  # a list by construction


def test_what_the_child_prints_stays_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    assert run_in_child(f"{HERE}:shout", on_progress=lambda *each: seen.append(each)) == "done"
    assert seen[-1] == (3, 3)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_an_error_while_listening_ends_the_child() -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_in_child(f"{HERE}:sleep", on_stage=interrupt)
    assert time.monotonic() - started < 30
    assert not job_folders()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")


def sleep_and_say(file: Path) -> None:
    file.write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)


def read_and_say(file: Path, feeds: codec.StoredFeeds) -> None:
    file.write_text(str(os.getpid()), encoding="utf-8")
    while True:
        list(feeds)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("busy", [False, True])
def test_the_child_does_not_outlive_its_parent(how: signal.Signals, busy: bool, tmp_path: Path) -> None:
    temp, file = tmp_path / "jobs", tmp_path / "pid"
    temp.mkdir()
    call = (
        f'"{HERE}:read_and_say", file, FeedStream([{{"x": np.zeros(4)}}] * 500)'
        if busy
        else f'"{HERE}:sleep_and_say", file'
    )
    script = textwrap.dedent(f"""
        from pathlib import Path
        import numpy as np
        from graphopt.runtime.child import FeedStream, run_in_child
        file = Path({str(file)!r})
        run_in_child({call})
    """)
    environment = {
        **os.environ,
        "TMPDIR": str(temp),
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path]),
    }
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE)
    for _ in range(300):
        if file.exists() and file.read_text(encoding="utf-8"):
            break
        time.sleep(0.1)
    pid = int(file.read_text(encoding="utf-8"))
    parent.send_signal(how)
    parent.communicate(timeout=30)
    for _ in range(100):
        if not alive(pid) and not list(temp.iterdir()):
            break
        time.sleep(0.1)
    assert not alive(pid)
    assert list(temp.iterdir()) == []


@pytest.mark.skipif(
    not os.access("/dev/full", os.W_OK), reason="the system has no device that is always full"
)
@pytest.mark.parametrize("argument", [FeedStream([{"x": np.zeros(1 << 16)}]), np.zeros(1 << 16)])
def test_a_full_disk_is_an_error_of_writing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argument: object
) -> None:
    def to_full_disk(path: object, *arguments: object, **options: object) -> None:
        del path
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    scratch = tmp_path / "full"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(np, "save", to_full_disk)
    with pytest.raises(WriteError, match="No space left") as caught:
        run_in_child(f"{HERE}:echo", argument)
    assert caught.value.where == str(scratch)
    assert not list(scratch.iterdir())
