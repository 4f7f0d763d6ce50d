"""docs/plugins.md says what is true: every hook has a heading there and a test, and its example runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

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


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_DISABLE_PLUGINS", "all")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    plugin = tmp_path / "rename_nodes.py"
    plugin.write_text("\n\n".join(blocks), encoding="utf-8")
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
