"""docs/targets.md says what is true: it names every target and table, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphopt.pipeline.plugins import load_plugins
from graphopt.pipeline.run import run
from graphopt.targets import Target, known_targets, load_target
from graphopt.targets.dequantize import DequantizeRules
from graphopt.targets.quantize import QuantizeRules
from tests.runtime import qdq
from tests.runtime.models import write

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")


def test_every_target_and_every_table_is_named() -> None:
    for name in known_targets():
        assert f"| `{name}` |" in PAGE
    for key in Target.model_fields:
        assert re.search(rf"`\[*{key}\]*`", PAGE), key
    for key in (*DequantizeRules.model_fields, *QuantizeRules.model_fields):
        assert f"`{key}`" in PAGE, key


@pytest.mark.parametrize("name", known_targets())
def test_what_the_page_calls_measured_is(name: str) -> None:
    target = load_target(name)
    (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
    tables = set(target.sources)
    assert set(target.unmeasured) == (tables if "not measured here" in row else set())
    rules = set(target.model_dump(exclude_none=True)) - {
        "name",
        "summary",
        "provider",
        "sources",
        "unmeasured",
    }
    assert rules <= tables


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_DISABLE_PLUGINS", "all")
    (rules,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (plugin,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "npu.toml").write_text(rules, encoding="utf-8")
    (tmp_path / "npu_target.py").write_text(plugin, encoding="utf-8")
    registry = load_plugins(tmp_path / "npu_target.py")
    assert load_target("npu", dict(registry.targets)).provider == "vitisai"
    model = write(qdq.conv(activation=False, output=False), tmp_path / "m.onnx")
    result = run(
        model,
        "decompress-weights",
        out=tmp_path / "out.onnx",
        target="npu",
        local_plugins=tmp_path / "npu_target.py",
    )
    assert result.report.steps[0].counts["decompressed"] == 1
    assert any(
        "'vitisai' of the target 'npu' is not installed here" in each for each in result.report.warnings
    )
