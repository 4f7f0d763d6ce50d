"""docs/plugins.md says what is true: every hook has a heading there and a test, and its example runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import hookspecs
from graphopt.pipeline.manager import Manager
from graphopt.pipeline.plan import make_plan
from graphopt.pipeline.plugins import _KINDS, DISABLE_VARIABLE, STRICT_VARIABLE, load_plugins
from graphopt.pipeline.text import parse
from graphopt.targets import load_target
from tests.pipeline.kit import tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(hookspecs) if name.startswith("graphopt_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_tested_and_called(hook: str) -> None:
    assert re.search(rf"^### {hook}$", PAGE, re.MULTILINE)
    tests = Path(__file__).with_name("test_plugins.py").read_text(encoding="utf-8")
    assert f"def {hook}():" in tests
    assert hook in _KINDS
    assert inspect.getdoc(getattr(hookspecs, hook))


def test_no_heading_speaks_of_a_hook_that_is_gone() -> None:
    assert re.findall(r"^### (graphopt_\w+)$", PAGE, re.MULTILINE) == HOOKS


def test_the_environment_variables_are_named() -> None:
    assert DISABLE_VARIABLE in PAGE
    assert STRICT_VARIABLE in PAGE


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_DISABLE_PLUGINS", "all")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    plugin = tmp_path / "rename_nodes.py"
    # One file has one function that registers passes: the second example runs alone, below.
    plugin.write_text(
        "\n\n".join(block for block in blocks if "drop-idle-relu" not in block), encoding="utf-8"
    )
    registry = load_plugins(plugin)
    assert registry.warnings == ()
    (text,) = re.findall(r"--pipeline '(rename-nodes.*)'", PAGE)
    model = tiny()
    plan = make_plan(parse(text.replace("Conv", "Relu")), registry, model.opset)
    result = Manager(registry, target=load_target("ort-cpu")).run(model, plan)
    assert result.error is None
    assert result.model is not None
    assert [node.name for node in result.model.nodes()] == ["op0", "relu", "op2", "op3"]
    assert result.steps[0].counts == {"renamed": 3}
    assert registry.analyses["depth"](model, {}) == 4


@pytest.mark.parametrize(
    ("name", "pipeline", "status"),
    [
        # every Relu of the model has something to do
        ("drop-idle-relu", "drop-idle-relu", "unchanged"),
        ("first-ones", "prune-channels{macs_ratio=0.8,criterion=first-ones}", "committed"),
    ],
)
def test_an_example_runs_alone(
    name: str, pipeline: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_DISABLE_PLUGINS", "all")
    plugin = tmp_path / "plugin.py"
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (source,) = [block for block in blocks if "import" in block and f'"{name}"' in block]
    plugin.write_text(source, encoding="utf-8")
    images = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "feeds.npz", image=images)
    model = ROOT / "graphopt" / "demo" / "digits.onnx"
    data = str(tmp_path / "feeds.npz")
    result = graphopt.run(model, pipeline, local_plugins=plugin, data=data, validate=False)
    (step,) = result.report.steps
    assert step.status == status
    assert "no data" not in str(step.skipped)
