"""The other commands, usage errors, and the purity of ``--json``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import graphopt as package
from graphopt.cli.app import command_names
from tests.cli.conftest import CommandLine


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "{model}", "-o", "{out}"], 2, "--pipeline"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--recipe", "r.toml"], 2, "both"),
        (["run", "{model}", "--pipeline", ""], 2, "--out"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "canonicalise"], 2, "Did you mean 'canonicalize'"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "canonicalize{freeze_initializer=true}"], 2,
         "Did you mean 'freeze_initializers'"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "canonicalize{freeze_initializers=7}"], 2,
         "true or false"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "canonicalize{"], 2, "expected"),
        (["run", "{model}", "-o", "{out}", "--recipe", "nowhere.toml"], 2, "nowhere.toml"),
        (["run", "nowhere.onnx", "-o", "{out}", "--pipeline", ""], 2, "does not exist"),
        (["run", "{folder}", "-o", "{out}", "--pipeline", ""], 2, "directory"),
        (["run", "{model}", "-o", "{model}", "--pipeline", ""], 2, "same file"),
        (["run", "{model}", "-o", "{folder}", "--pipeline", ""], 2, "directory"),
        (["run", "{model}", "-o", "{folder}/no/out.onnx", "--pipeline", ""], 2, "folder"),
        (["run", "{model}", "-o", "", "--pipeline", ""], 2, "empty"),
        (["run", "{model}", "-o", ".", "--pipeline", ""], 2, "directory"),
        (["run", "{model}", "-o", "{folder}/new/", "--pipeline", ""], 2, "name of a folder"),
        (["validate", "{model}", "{model}", "--min-sqnr", "nan"], 2, "--min-sqnr"),
        (["validate", "{model}", "{model}", "--min-sqnr=x"], 2, "'x'"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--seed", "x"], 2, "'x'"),
        (["validate", "{model}", "{model}", "--max-latency-ratio", "inf"], 2, "--max-latency-ratio"),
        (["run", "{text}", "-o", "{out}", "--pipeline", ""], 3, "text file"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--dim", "batch"], 2, "NAME=SIZE"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--dim", "bach=1"], 2, "Did you mean 'batch'"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--target", "ort-cpuu"], 2, "ort-cpu"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--ep", "cpuu"], 2, "Did you mean 'cpu'"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--ep", "tensorrt"], 5, "Available"),
        (["validate", "{model}", "{model}", "--ep", "tensorrt"], 5, "Available"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--data", "nowhere.npz"], 2, "nowhere.npz"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--local-plugins", "nowhere.py"], 2, "plugin"),
        (["run", "{model}", "-o", "{out}", "--pipeline", "", "--on-error", "ignore"], 2,
         "--on-error: expected one of 'raise', 'rollback', 'stop', got 'ignore'"),
        (["runn"], 2, "Did you mean 'run'"),
        (["run", "{model}", "-o", "{out}", "--pipelin", ""], 2, "--pipeline"),
        (["validate", "{model}", "nowhere.onnx"], 2, "nowhere.onnx"),
        (["inspect", "{text}"], 3, "text file"),
        (["passes", "canonicalise"], 2, "canonicalize"),
        (["targets", "ort-cpuu"], 2, "unknown target 'ort-cpuu'"),
        (["replay", "{folder}"], 3, "not a reproducer"),
        (["replay", "nowhere"], 2, "nowhere"),
    ],
)  # fmt: skip
def test_bad_requests_are_one_sentence_and_the_right_code(
    graphopt: CommandLine, model: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    text, out, folder = tmp_path / "text.onnx", tmp_path / "out.onnx", tmp_path / "folder"
    text.write_text("this is no model")
    folder.mkdir()
    before = model.read_bytes()
    places = {"model": model, "text": text, "out": out, "folder": folder}
    filled = [
        argument if "{" in argument and "}" not in argument else _fill(argument, places)
        for argument in arguments
    ]
    answer = graphopt(*filled)
    assert answer.code == code
    assert words in answer.err
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert not out.exists()
    assert model.read_bytes() == before
    as_json = graphopt(*filled, "--json")
    assert as_json.code == code
    assert as_json.document["exit_code"] == code
    assert words in " ".join(str(part) for part in as_json.document["error"].values())


def _fill(argument: str, places: dict[str, Path]) -> str:
    return re.sub(r"\{(model|text|out|folder)\}", lambda found: str(places[found[1]]), argument)


def test_validate_tells_equal_from_different(graphopt: CommandLine, model: Path, tmp_path: Path) -> None:
    same = graphopt("validate", model, model, "--json")
    assert same.code == 0
    assert same.document["validation"]["levels"]["none"][0]["exact"] is True
    proto = onnx.load(model)
    proto.graph.node[3].op_type = "Sigmoid"
    other = tmp_path / "other.onnx"
    onnx.save(proto, other)
    different = graphopt("validate", model, other, "--json")
    assert (different.code, different.document["status"]) == (1, "gate_failed")
    assert graphopt("validate", model, other, "--max-abs", "1000").code == 0
    assert graphopt("validate", model, model, "--max-latency-ratio", "0.000001").code == 1


def test_inspect_counts_what_is_there(graphopt: CommandLine, model: Path) -> None:
    document = graphopt("inspect", model, "--json", "--dim", "batch=2").document
    assert document["nodes"] == 4
    assert document["parameters"] == 108
    assert document["macs"] == 2 * 108 * 64
    assert document["dynamic_dims"] == ["batch"]
    assert document["inputs"] == [{"name": "x", "type": "float", "shape": ["batch", 3, 8, 8]}]
    assert document["bytes_by_dtype"] == {"float": 432}
    assert document["longest_chain"] == 3
    shown = graphopt("inspect", model)
    assert "nothing is quantised" in shown.out
    assert "Conv" in graphopt("inspect", model, "--text").out


def test_listings_name_what_there_is(graphopt: CommandLine, plugin: Path) -> None:
    listed = graphopt("passes", "--json").document["passes"]
    assert {"canonicalize", "fold-constants", "fuse-batchnorm"} <= {each["name"] for each in listed}
    page = graphopt("passes", "fold-constants", "--json").document["pass"]
    assert all(option["description"] for option in page["options"])
    found = graphopt("plugins", "--local-plugins", plugin, "--json").document["plugins"]
    assert [each["status"] for each in found if each["name"] == "misbehaving"] == ["active"]
    assert "ort-cpu" in graphopt("targets").out
    assert graphopt("targets", "ort-cpu", "--json").document["target"]["provider"] == "cpu"
    page = " ".join(graphopt("targets", "tensorrt").out.split())
    assert "dequantize (not measured here) static ops Conv, ConvTranspose, Gemm, MatMul" in page
    assert "source: NVIDIA TensorRT documentation" in page
    assert "dequantize (measured)" in graphopt("targets", "ort-cpu").out


def test_every_command_has_help_and_takes_json_and_debug(graphopt: CommandLine) -> None:
    for name in command_names():
        answer = graphopt(name, "--help")
        assert answer.code == 0
        assert "--json" in answer.out
        assert "--debug" in answer.out


def _process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graphopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_as_a_process(model: Path, tmp_path: Path) -> None:
    version = _process("--version")
    assert (version.returncode, version.stdout) == (0, f"graphopt {package.__version__}\n")
    done = _process("run", model, "-o", tmp_path / "out.onnx", "--pipeline", "canonicalize", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "ok"
    assert "\x1b[" not in done.stdout + done.stderr
    nothing = _process()
    assert nothing.returncode == 2
    assert nothing.stdout == ""


def test_output_is_the_same_under_two_hash_seeds(model: Path, tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        pipeline = "canonicalize,fold-constants,deduplicate,eliminate-dead"
        done = _process("run", model, "-o", out, "--pipeline", pipeline, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "graphopt", "passes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait() == 0
    assert complaint == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_behind_stdout_is_an_error_without_a_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "graphopt", "passes", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.startswith("error: stdout: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams_change_no_exit_code(model: Path, tmp_path: Path, closed: str) -> None:
    command = f'"{sys.executable}" -m graphopt run "{model}" -o "{tmp_path}/out.onnx" --pipeline "" {closed}'
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert (tmp_path / "out.onnx").exists()
