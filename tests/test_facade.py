"""``import graphopt``: light, complete, typed, and its docstrings run."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.record import RunRecord

HEAVY = (
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "networkx",
    "onnx_graphsurgeon",
    "numpy",
    "pydantic",
    "typer",
    "rich",
)
# Modules whose import needs more than the package itself (an application, a process of its own).
NO_DOCTESTS = frozenset({"graphopt.__main__"})


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = _python("import sys, graphopt; print(*sys.modules, sep='\\n')").split()
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}


def test_importing_the_package_is_quick() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import graphopt"],
        capture_output=True,
        text=True,
        check=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.rsplit("|", 1)[1].strip() == "graphopt"
    assert int(last.split("|")[1]) < 300_000  # microseconds, everything that it imports included


def test_the_command_line_loads_no_runtime_for_its_help() -> None:
    loaded = _python("""
        import contextlib, io, sys
        from graphopt.cli import main
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            sys.argv = ["graphopt", "--help"]
            main()
        print(*sys.modules, sep="\\n")
    """).split()
    assert not {
        name for name in loaded if name.split(".")[0] in {"onnx", "onnx_ir", "onnxruntime", "networkx"}
    }


@pytest.mark.parametrize("name", sorted(graphopt.__all__))
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(graphopt, name)
    if name not in {"__version__", "hookimpl"}:
        assert value.__doc__, name


def test_all_homes_and_imports_for_type_checkers_agree() -> None:
    tree = ast.parse(Path(graphopt.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(graphopt._HOMES) == set(graphopt.__all__) - {"__version__"}


def test_every_error_class_is_public() -> None:
    errors = importlib.import_module("graphopt.errors")
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.GraphoptError)
    }
    assert classes <= set(graphopt.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        graphopt.lode  # noqa: B018 - looking it up is the test


def test_dir_lists_the_public_names() -> None:
    assert set(dir(graphopt)) >= set(graphopt.__all__)


def _modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(graphopt.__path__, "graphopt.")]
    return ["graphopt", *(name for name in found if name not in NO_DOCTESTS)]


@pytest.mark.parametrize("name", _modules())
def test_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x [n, 4] -> Identity -> MatMul -> Relu -> y [n, 3]."""
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["i"], name="copy"),
            helper.make_node("MatMul", ["i", "w"], ["m"], name="product"),
            helper.make_node("Relu", ["m"], ["y"], name="act"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_a_model_that_is_passed_in_is_not_changed(model: Path) -> None:
    loaded = graphopt.load(model)
    result = graphopt.run(loaded, "canonicalize,eliminate-dead")
    assert [node.op_type for node in loaded.graph] == ["Identity", "MatMul", "Relu"]
    assert [node.op_type for node in result.model.graph] == ["MatMul", "Relu"]
    assert (result.files, result.report.status) == ((), "ok")


def test_a_path_is_as_good_as_a_model(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = graphopt.run(str(model), "canonicalize,eliminate-dead", out=str(out), dims={"n": 2})
    assert result.files == (out,)
    assert len(onnx.load(out).graph.node) == 2
    assert result.report.validation is not None
    assert result.report.validation.outputs[0].exact


def test_feeds_may_be_arrays(model: Path) -> None:
    feeds = [{"x": np.full((rows, 4), rows, np.float32)} for rows in (1, 2, 5)]
    result = graphopt.run(model, "canonicalize", data=feeds, validate=True)
    assert result.report.validation is not None
    assert result.report.validation.feeds == 3


def test_a_failure_is_raised_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(graphopt.PlanError, match="canonicalise"):
        graphopt.run(model, "canonicalise", out=out)
    with pytest.raises(graphopt.DataError):
        graphopt.run(model, "canonicalize", out=out, data=[{"x": np.zeros((1, 5), np.float32)}])
    with pytest.raises(graphopt.PathError):
        graphopt.run(model, "", out=model)
    assert not out.exists()
    assert len(onnx.load(model).graph.node) == 3


def test_every_failure_has_the_common_root(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    for call in (
        lambda: graphopt.load(tmp_path / "missing.onnx"),
        lambda: graphopt.load(tmp_path / "text.onnx"),
        lambda: graphopt.load(tmp_path),
        lambda: graphopt.run(model, "{"),
        lambda: graphopt.run(model, "", target="tpu"),
        lambda: graphopt.run(model, "", providers=["nonsense"]),
        lambda: graphopt.validate(model, tmp_path / "missing.onnx"),
        lambda: graphopt.validate(model, model, samples=0),
    ):
        with pytest.raises(graphopt.GraphoptError):
            call()


def test_validate_judges_and_does_not_raise(model: Path, tmp_path: Path) -> None:
    changed = onnx.load(model)
    changed.graph.node[-1].op_type = "Neg"
    onnx.save(changed, tmp_path / "changed.onnx")
    record = graphopt.validate(model, tmp_path / "changed.onnx", measure_latency=False)
    assert not record.passed
    assert "y" in record.problems[0]
    assert graphopt.validate(model, model, measure_latency=False).passed


def test_the_report_is_ready_for_json(model: Path) -> None:
    report = graphopt.run(model, "canonicalize").report
    assert isinstance(report, RunRecord)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["steps"][0]["name"] == "canonicalize"
