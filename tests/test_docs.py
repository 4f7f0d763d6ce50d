"""The docs say what the code does: every pass, option, command and hook is described where people look."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import graphopt
from graphopt import hookspecs
from graphopt.api import Pass
from graphopt.cli.app import command_names
from graphopt.passes import graphopt_register_passes
from graphopt.pipeline.options import describe_options

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "passes.md"
PASSES = graphopt_register_passes()


def pass_class(name: str) -> type[Pass]:
    import importlib

    module, attribute = PASSES[name].split(":")
    found: type[Pass] = getattr(importlib.import_module(module), attribute)
    return found


def option_table(name: str) -> str:
    """Return the table of a pass's options in markdown."""
    rows = [
        f"| `{row['name']}` | {row['type']} | {row['default']} | {row['description']} |"
        for row in describe_options(pass_class(name).Options)
    ]
    if not rows:
        return "It takes no options."
    return "\n".join(["| option | type | default | what it means |", "|---|---|---|---|", *rows])


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_described(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.search(rf"^## {name}$", text, re.MULTILINE)
    pattern = re.compile(rf"<!-- options {name} -->\n(.*?)<!-- end -->", re.DOTALL)
    found = pattern.search(text)
    assert found is not None
    table = option_table(name) + "\n"
    if os.environ.get("GRAPHOPT_UPDATE_GOLDEN") == "1":
        start, end = found.span(1)
        PAGE.write_text(text[:start] + table + text[end:], encoding="utf-8")
        return
    assert found.group(1) == table, "run it with GRAPHOPT_UPDATE_GOLDEN=1 and read the difference"


def test_every_pass_is_in_the_overview() -> None:
    text = PAGE.read_text(encoding="utf-8")
    overview = text[text.index("## Which one") : text.index("## canonicalize")]
    named = set(
        re.findall(r"`([a-z0-9-]+)`", "\n".join(row for row in overview.splitlines() if row[:1] == "|"))
    )
    assert named == set(PASSES)


def test_no_section_speaks_of_a_pass_that_is_gone() -> None:
    assert re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == ["Which one", *PASSES]


@pytest.mark.parametrize("name", PASSES)
def test_every_option_says_what_it_means(name: str) -> None:
    kind = pass_class(name)
    assert kind.info.name == name
    assert kind.info.summary.endswith(".")
    for option, field in kind.Options.model_fields.items():
        assert field.description, f"{name}{{{option}}}"


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in command_names():
        assert f"graphopt {command}" in readme, command


def test_every_hook_is_in_the_plugin_page() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for hook in (name for name in vars(hookspecs) if name.startswith("graphopt_")):
        assert f"### {hook}\n" in page, hook


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{graphopt.__version__}]" in text


def test_the_project_and_the_package_agree_on_the_version() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == graphopt.__version__


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_pass_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_DISABLE_PLUGINS", "all")
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (source,) = [block for block in blocks if block.startswith("# name_nodes.py")]
    plugin = tmp_path / "name_nodes.py"
    plugin.write_text(source, encoding="utf-8")
    model = ROOT / "graphopt" / "demo" / "digits.onnx"
    result = graphopt.run(model, "name-nodes{prefix=n}", local_plugins=plugin)
    (step,) = result.report.steps
    assert step.status in {"committed", "unchanged"}
    assert all(node.name for node in result.model.nodes())
