"""Targets as data: the built-in one holds on this machine, bad files name the key."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.errors import OptionError, PluginError
from graphopt.targets import DEFAULT_TARGET, known_targets, load_target

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
name = "mine"
summary = "A target of a plugin"
provider = "cpu"
[sources]
runtime_limits = "made up"
[[runtime_limits]]
release = "1.20"
wheel = "1.20.1"
max_ir_version = 10
max_opset = 21
max_ml_opset = 5
[[runtime_limits]]
release = "1.31"
wheel = "1.31.1"
max_ir_version = 13
max_opset = 26
max_ml_opset = 5
"""


def one_node(ir_version: int, opset: int, ml_opset: int) -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml_opset)]
    model: onnx.ModelProto = helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)
    raw: bytes = model.SerializeToString()
    return raw


def test_the_limits_are_those_of_the_installed_runtime() -> None:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    limits = load_target("ort-cpu").runtime_limits_for(ort.__version__)
    highest = (limits.max_ir_version, limits.max_opset, limits.max_ml_opset)
    ort.InferenceSession(one_node(*highest), options, providers=["CPUExecutionProvider"])
    if not ort.__version__.startswith(f"{limits.release}."):
        return  # a release without a row of its own may load more; until it gets one, less is assumed
    for index in range(3):
        above = [version + (place == index) for place, version in enumerate(highest)]
        with pytest.raises(Exception, match=r"max supported IR version|is till opset"):
            ort.InferenceSession(one_node(*above), options, providers=["CPUExecutionProvider"])


def test_limits_between_and_beyond_the_rows() -> None:
    target = load_target(DEFAULT_TARGET)
    assert target.limits_for("1.31.1") == (13, 26)
    assert target.limits_for("1.31.0.dev20260101") == (13, 26)
    assert target.limits_for("1.22") == (10, 22)
    assert target.limits_for("2.0.0") == (14, 28)
    assert target.limits_for("1.9.0") == target.limits_for("1.17.3") == (9, 20)  # 1.9 is before 1.17


def test_limits_never_fall_from_release_to_release() -> None:
    rows = load_target(DEFAULT_TARGET).runtime_limits
    for lower, higher in itertools.pairwise(rows):
        assert lower.max_ir_version <= higher.max_ir_version
        assert lower.max_opset <= higher.max_opset
        assert lower.max_ml_opset <= higher.max_ml_opset


def test_every_table_says_where_it_comes_from() -> None:
    assert "wheel" in load_target(DEFAULT_TARGET).sources["runtime_limits"]


def test_targets_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_target(DEFAULT_TARGET).name = "other"


def test_known_and_unknown_names(tmp_path: Path) -> None:
    assert known_targets() == ("openvino", "ort-cpu", "qnn", "tensorrt")
    assert known_targets({"mine": tmp_path}) == ("mine", "openvino", "ort-cpu", "qnn", "tensorrt")
    with pytest.raises(OptionError, match=r"unknown target 'ort-cpi'\. Did you mean 'ort-cpu'\?") as caught:
        load_target("ort-cpi")
    assert caught.value.exit_code == 2


def test_a_target_of_a_plugin_by_path_and_by_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_targets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.toml").write_text(GOOD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for place in (package / "mine.toml", str(package / "mine.toml"), "my_targets:mine.toml"):
        target = load_target("mine", {"mine": place})
        assert target.summary == "A target of a plugin"
        assert target.limits_for("1.30.0") == (10, 21)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('summary = "A target of a plugin"', "", "key 'summary': field required"),
        ("[sources]", "extra = 1\n[sources]", "key 'extra': extra inputs are not permitted"),
        (
            "max_opset = 21",
            'max_opset = "many"',
            "key 'runtime_limits.0.max_opset': input should be a valid integer",
        ),
        ("max_ir_version = 10", "max_ir_version = 0", "key 'runtime_limits.0.max_ir_version'"),
        ('release = "1.20"', 'release = "new"', "key 'runtime_limits.0.release'"),
        ('release = "1.20"', 'release = "1.32"', "ascending order of release"),
        ('"made up"', '" "', "the source of runtime_limits is empty"),
        ("[sources]\nruntime_limits", "[sources]\nother", "sources.runtime_limits must say where"),
        ('name = "mine"', 'name = "yours"', "the key 'name' must be 'mine', got 'yours'"),
        ("[sources]", "[sources", "is not TOML"),
    ],
)
def test_bad_files_name_the_file_and_the_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "mine.toml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(PluginError) as caught:
        load_target("mine", {"mine": file})
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_files_packages_and_bad_bytes(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="cannot be read"):
        load_target("mine", {"mine": tmp_path / "none.toml"})
    with pytest.raises(PluginError, match="'no_such_package' of a target cannot be imported"):
        load_target("mine", {"mine": "no_such_package:mine.toml"})
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PluginError, match="is not TOML"):
        load_target("mine", {"mine": tmp_path / "mine.toml"})


def test_a_plugin_may_not_take_the_name_of_a_built_in_target(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="registers the target 'ort-cpu', which is built in"):
        load_target("ort-cpu", {"ort-cpu": tmp_path / "x.toml"})
