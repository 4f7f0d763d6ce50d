"""graphsurgeon-script: scripts as people have them, through pipeline text, and what goes wrong with them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.api import Report
from graphopt.errors import OptionError, PassFailed, PathError
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.passes.graphsurgeon_script import GraphsurgeonScript
from tests.passes.harness import context_for

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from graphopt.ir import Model

SCRIPT = '''
import numpy as np
import onnx_graphsurgeon as gs

import helpers


def replace_clip(graph):
    """A Clip to [0, inf) is a Relu."""
    for node in graph.nodes:
        if node.op == "Clip" and helpers.is_zero(node.inputs[1]):
            node.op = "Relu"
            node.inputs = node.inputs[:1]
    graph.cleanup().toposort()
    print("replaced")


def nothing(graph):
    return None


def bad(graph):
    first = graph.nodes[0]
    return first.inputs[7]


def leave(graph):
    raise SystemExit("enough")


NOT_CALLABLE = 3


if __name__ == "__main__":
    raise RuntimeError("scripts are not run as the main module")
'''
HELPERS = "def is_zero(tensor):\n    return float(tensor.values) == 0.0\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helpers.py").write_text(HELPERS)
    path = tmp_path / "my-script.py"
    path.write_text(SCRIPT)
    return path


def clipped() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Clip", ["x", "low"], ["y"], name="clip")],
        "clipped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.zeros((), np.float32), "low")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def run(path: Path, entry: str) -> tuple[Model, Report]:
    model = lower(clipped())
    options = GraphsurgeonScript.Options(path=path, entry=entry)
    return model, GraphsurgeonScript().run(model, options, context_for(model))


def test_a_script_changes_the_model(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, report = run(script, "replace_clip")
    assert report.changed
    assert [(node.op_type, list(node.input)) for node in emit(model).graph.node] == [("Relu", ["x"])]
    assert not emit(model).graph.initializer
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout belongs to --json
    assert captured.err == "replaced\n"
    assert not list(script.parent.glob("__pycache__/my-script*"))


def test_a_script_that_does_nothing_changes_nothing(script: Path) -> None:
    _, report = run(script, "nothing")
    assert report == Report(changed=False, counts={})


def test_a_failure_names_the_line_of_the_script(script: Path) -> None:
    with pytest.raises(PassFailed) as caught:
        run(script, "bad")
    line = SCRIPT.split("\n").index("    return first.inputs[7]") + 1
    assert caught.value.where == f"{script}, line {line}"
    assert "IndexError" in caught.value.message
    assert "return first.inputs[7]" in caught.value.message


def test_leaving_the_interpreter_is_a_failure_of_the_pass(script: Path) -> None:
    with pytest.raises(PassFailed, match="SystemExit: enough"):
        run(script, "leave")


@pytest.mark.parametrize(
    ("text", "line"), [("x = 1\ndef f(:\n", 2), ("import no_such_module_here\n", 1), ("\n\n1 / 0\n", 3)]
)
def test_a_script_that_cannot_be_loaded_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "broken.py"
    path.write_text(textwrap.dedent(text))
    with pytest.raises(PassFailed) as caught:
        run(path, "f")
    assert caught.value.where == f"{path}, line {line}"


@pytest.mark.parametrize(
    ("entry", "words"),
    [("replace_clips", "Did you mean 'replace_clip'"), ("NOT_CALLABLE", "is not a function")],
)
def test_a_missing_entry_names_the_nearest_function(script: Path, entry: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        run(script, entry)


def test_a_missing_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="no such file"):
        GraphsurgeonScript.Options(path=tmp_path / "absent.py", entry="f")
    with pytest.raises(PathError, match="directory"):
        GraphsurgeonScript.Options(path=tmp_path, entry="f")
