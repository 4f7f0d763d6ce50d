"""stdout is for results alone; every failure is in the report; an interrupt leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import CommandLine

PLUGIN = """
import os, sys, time

from graphopt.api import Pass, PassInfo, Report
from graphopt.hookspecs import hookimpl


class Loud(Pass):
    info = PassInfo(name="loud", summary="prints in every way there is")

    def run(self, model, options, context):
        print("from python")
        os.write(1, b"from the descriptor\\\\n")
        os.system("echo from a child")
        return Report(changed=False)


class Sleeps(Pass):
    info = PassInfo(name="sleeps", summary="waits to be interrupted")

    def run(self, model, options, context):
        print("asleep", file=sys.stderr, flush=True)
        time.sleep(60)
        return Report(changed=False)


@hookimpl
def graphopt_register_passes():
    return {"loud": Loud, "sleeps": Sleeps}


def fail(record, folder):
    raise ValueError("the reporter is broken")


def count(record, folder):
    (folder / "steps.txt").write_text(str(len(record.steps)))


@hookimpl
def graphopt_register_reporters():
    return {"broken": fail, "steps": count}
""".replace("\\\\n", "\\n")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "streams.py"
    path.write_text(PLUGIN)
    return path


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "graphopt", *(str(argument) for argument in arguments)]


def _interruptible(*arguments: object) -> list[str]:
    # A shell that starts the tests in the background has children ignore SIGINT.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from graphopt.cli import main; main()"
    )
    return [sys.executable, "-c", code, *(str(argument) for argument in arguments)]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, check=False)


def _document(text: str) -> dict[str, Any]:
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_what_passes_print_stays_out_of_the_document(model: Path, plugin: Path, tmp_path: Path) -> None:
    done = _run(
        "run", model, "-o", tmp_path / "o.onnx", "--pipeline", "loud", "--local-plugins", plugin, "--json"
    )
    assert done.returncode == 0
    assert _document(done.stdout)["status"] == "unchanged"
    for line in ("from python", "from the descriptor", "from a child"):
        assert line in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_reported_and_leaves_no_file(
    model: Path, plugin: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        _interruptible(
            "run", model, "-o", folder / "o.onnx", "--pipeline", "sleeps", "--local-plugins", plugin,
            "--report", tmp_path / "report", "--json",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    while "asleep" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    document = _document(out)
    assert (document["status"], document["exit_code"], document["error"]["type"]) == (
        "failed",
        130,
        "Interrupted",
    )
    assert document["input"]["nodes"] == 4
    assert _document((tmp_path / "report" / "report.json").read_text()) == document
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--pipeline", "", "--recipe", "r.toml"),
        ("--pipeline", "", "--dim", "batch=none"),
        ("--pipeline", "canonicalise"),
        ("--pipeline", "", "--local-plugins", "missing.py"),
        ("--recipe", "missing.toml"),
    ],
)
def test_bad_options_are_in_the_report_too(
    graphopt: CommandLine, model: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    out = tmp_path / "o.onnx"
    answer = graphopt("run", model, "-o", out, *arguments, "--report", tmp_path / "report", "--json")
    assert answer.code == 2
    assert answer.document["command"] == "run"
    assert answer.document["error"]["message"]
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written == answer.document
    assert (tmp_path / "report" / "report.md").read_text().startswith("# graphopt run: failed")
    assert not out.exists()


def test_arguments_that_cannot_be_parsed_give_a_document(graphopt: CommandLine) -> None:
    answer = graphopt("run", "m.onnx", "--frobnicate", "--json")
    assert answer.code == 2
    assert answer.document["command"] == "run"
    assert "--frobnicate" in answer.document["error"]["message"]


def test_reporters_of_plugins_write_beside_ours_and_may_fail(
    graphopt: CommandLine, model: Path, plugin: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    answer = graphopt(
        "run", model, "-o", tmp_path / "o.onnx", "--pipeline", "loud", "--local-plugins", plugin,
        "--report", folder,
    )  # fmt: skip
    assert answer.code == 0
    assert (folder / "steps.txt").read_text() == "1"
    assert "the reporter is broken" in json.loads((folder / "report.json").read_text())["warnings"][-1]


def test_a_reader_that_leaves_does_not_change_the_exit_code(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"not a model")
    for arguments, code in (
        (("inspect", model), 0),
        (("inspect", model, "--json"), 0),
        (("inspect", other), 3),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen(_command(*arguments), stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in err
        assert "BrokenPipe" not in err


def test_no_colours_where_nobody_looks(model: Path) -> None:
    assert "\x1b[" not in _run("inspect", model).stdout
