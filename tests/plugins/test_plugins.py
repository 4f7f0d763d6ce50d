"""Plugins: found, checked, refused whole, and never silently dropped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import PathError, PlanError, PluginError
from graphopt.pipeline.plugins import BUILTIN, Registry, load_plugins

HEADER = """\
from pydantic import Field
from graphopt.api import Gate, GateResult, Instrument, Pass, PassInfo, PassOptions, Report
from graphopt.hookspecs import hookimpl


class Mine(Pass):
    info = PassInfo(name="mine", summary="Do nothing.")

    def run(self, model, options, context):
        return Report(changed=False)


"""
REGISTER = """\
@hookimpl
def graphopt_register_passes():
    return {"mine": Mine}
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that happen to be installed here are not what is tested."""
    monkeypatch.setenv("GRAPHOPT_DISABLE_PLUGINS", "all")
    monkeypatch.delenv("GRAPHOPT_STRICT_PLUGINS", raising=False)


def local(tmp_path: Path, body: str, *, header: str = HEADER, name: str = "mine.py") -> Path:
    path = tmp_path / name
    path.write_text(header + textwrap.dedent(body))
    return path


def active(registry: Registry) -> list[str]:
    return [info.name for info in registry.plugins if info.status == "active"]


def test_built_ins_come_first_and_through_the_hooks() -> None:
    registry = load_plugins()
    first = registry.plugins[0]
    assert (first.name, first.status, first.origin) == (BUILTIN, "active", "built in")
    assert first.registers["passes"] == (
        "canonicalize",
        "fold-constants",
        "eliminate-dead",
        "deduplicate",
        "fuse-batchnorm",
        "infer-shapes",
        "upgrade-opset",
        "equalize-ranges",
        "insert-qdq",
        "correct-bias",
        "decompress-weights",
        "synthesize-constants",
        "share-weights",
        "convert-float16",
        "sparsify-weights",
        "prune-channels",
        "prune-blocks",
        "quantize-weights",
        "quantize-dynamic",
        "rewrite-residual-sum",
        "rewrite-masked-softmax",
        "factorize-lowrank",
        "graphsurgeon-script",
    )
    assert set(registry.analyses) == {"shapes", "cost"}
    assert set(registry.gates) == {"numeric", "size", "latency", "structure"}
    assert registry.warnings == ()


@pytest.mark.parametrize("kind", ["passes", "analyses", "gates"])
def test_every_built_in_resolves(kind: str) -> None:
    table = load_plugins().table(kind)
    for name in table:
        assert table[name] is table.find(name)
        assert table.owner(name) == "'graphopt' (built in)"


def test_loading_imports_nothing_heavy() -> None:
    code = """
        import sys
        from graphopt.pipeline.plugins import load_plugins
        registry = load_plugins()
        assert "canonicalize" in registry.passes
        heavy = {"onnx", "onnx_ir", "onnxruntime", "networkx", "numpy", "graphopt.passes.canonicalize"}
        sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_local_plugin(tmp_path: Path) -> None:
    path = local(tmp_path, REGISTER)
    registry = load_plugins(path)
    assert registry.warnings == ()
    assert registry.local == path
    info = registry.plugins[-1]
    assert (info.name, info.origin, info.status) == ("mine", str(path), "active")
    assert info.registers == {"passes": ("mine",)}
    assert registry.passes["mine"].info.summary == "Do nothing."
    assert registry.passes.owner("mine") == f"'mine' ({path})"
    # Twice the same file is twice the same plugin, not a clash with itself.
    assert active(load_plugins(path)) == [BUILTIN, "mine"]


def test_two_files_of_one_stem_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = load_plugins(local(tmp_path / "a", REGISTER)).passes["mine"]
    second = load_plugins(local(tmp_path / "b", REGISTER)).passes["mine"]
    assert first is not second
    assert first.__module__ != second.__module__
    assert sys.modules[first.__module__].__file__ == str(tmp_path / "a" / "mine.py")


def test_an_edited_file_is_read_anew_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = local(tmp_path, REGISTER)
    assert load_plugins(path).passes["mine"].info.summary == "Do nothing."
    stamp = path.stat()
    path.write_text(path.read_text().replace("Do nothing.", "Do NOTHING."))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load_plugins(path).passes["mine"].info.summary == "Do NOTHING."
    assert [each.name for each in tmp_path.iterdir()] == ["mine.py"]


def test_every_kind_can_be_registered(tmp_path: Path) -> None:
    registry = load_plugins(
        local(
            tmp_path,
            """
            class Limit(Gate):
                name = "limit"
                summary = "Hold a limit."

                def check(self, original, candidate, context):
                    return ()


            @hookimpl
            def graphopt_register_passes():
                return {"mine": Mine, "lazy": "json:JSONDecoder"}

            @hookimpl
            def graphopt_register_analyses():
                return {"depth": lambda model, dims: 1}

            @hookimpl
            def graphopt_register_gates():
                return {"limit": Limit}

            @hookimpl
            def graphopt_register_instruments():
                return {"watch": Instrument}

            @hookimpl
            def graphopt_register_data_sources():
                return {"source": lambda request: None}

            @hookimpl
            def graphopt_register_reporters():
                return {"html": "json:dumps"}

            @hookimpl
            def graphopt_register_targets():
                return {"my-target": "json:my-target.toml"}

            @hookimpl
            def graphopt_register_criteria():
                return {"taste": "json:JSONEncoder"}

            @hookimpl
            def graphopt_register_channel_rules():
                return {"my-op": "json:JSONDecoder"}
            """,
        )
    )
    assert registry.warnings == ()
    assert {kind: set(names) for kind, names in registry.plugins[-1].registers.items()} == {
        "passes": {"mine", "lazy"},
        "analyses": {"depth"},
        "gates": {"limit"},
        "instruments": {"watch"},
        "data_sources": {"source"},
        "reporters": {"html"},
        "targets": {"my-target"},
        "criteria": {"taste"},
        "channel_rules": {"my-op"},
    }
    assert registry.criteria["taste"] is json.JSONEncoder
    assert registry.table("reporters")["html"] is json.dumps
    assert registry.targets["my-target"] == "json:my-target.toml"
    with pytest.raises(
        PluginError, match=r"pass 'lazy' of 'mine'.*expected a subclass of graphopt\.api\.Pass"
    ):
        registry.passes.find("lazy")


def answering(answer: str, hook: str = "passes") -> str:
    """Return a plugin body whose hook gives *answer*, a Python expression."""
    return f"@hookimpl\ndef graphopt_register_{hook}():\n    return {answer}\n"


REFUSED = [
    ("1 / 0", "loading it raised ZeroDivisionError"),
    ("import does_not_exist", "loading it raised ModuleNotFoundError"),
    ("def (", "loading it raised SyntaxError"),
    ("raise SystemExit(3)", "loading it raised SystemExit"),
    ("", "it implements no hook"),
    (
        "@hookimpl\ndef graphopt_register_pases():\n    return {}",
        "there is no hook 'graphopt_register_pases'. Did you mean 'graphopt_register_passes'",
    ),
    ("def graphopt_register_passes():\n    return {}", "'graphopt_register_passes' is not marked"),
    ("@hookimpl\ndef graphopt_register_passes(model):\n    return {}", "'graphopt_register_passes'"),
    (answering("1 / 0"), "graphopt_register_passes raised ZeroDivisionError"),
    (answering("[Mine]"), "returned list, expected a mapping"),
    (answering("{'My Pass': Mine}"), "the name 'My Pass', expected lower-case"),
    (answering("{3: Mine}"), "the name 3, expected lower-case"),
    (answering("{'mine': 'no colon'}"), "expected text like 'package.module:Name'"),
    (answering("{'mine': Mine()}"), "expected a subclass of graphopt.api.Pass"),
    (answering("{'other': Mine}"), "its info says 'mine', but it is registered as 'other'"),
    (answering("{'mine': Mine}", "gates"), "expected a subclass of graphopt.api.Gate"),
    (answering("{'mine': 3}", "analyses"), "expected a function or class"),
    (answering("{'mine': 'json:Name'}", "targets"), "expected text like 'package:file.toml'"),
    (
        "class Options(PassOptions):\n    x: int = 1\n\n\nMine.Options = Options\n\n\n" + REGISTER,
        "option 'x' has no description",
    ),
    (
        "class Inner(PassOptions):\n    pass\n\n\nclass Options(PassOptions):\n"
        "    x: Inner = Field(default=Inner(), description='d')\n\n\nMine.Options = Options\n\n\n" + REGISTER,
        "option 'x' is a nested model; options are flat",
    ),
    ("Mine.info = None\n\n\n" + REGISTER, "its info is None, expected a PassInfo"),
    ("class Half(Pass):\n    info = Mine.info\n\n\nMine = Half\n" + REGISTER, "it does not implement run()"),
    (
        "Mine.info = PassInfo(name='mine', summary='', requires='qdq')\n\n\n" + REGISTER,
        "its info.requires is 'qdq', expected a set of texts",
    ),
    (
        "Mine.info = PassInfo(name='mine', summary='', min_opset='13')\n\n\n" + REGISTER,
        "its info.min_opset is '13', expected a whole number",
    ),
    ("Mine.Options = dict\n\n\n" + REGISTER, "expected a subclass of graphopt.api.PassOptions"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), REFUSED)
def test_a_plugin_that_cannot_be_used_is_left_out_and_named(tmp_path: Path, body: str, reason: str) -> None:
    registry = load_plugins(local(tmp_path, body))
    info = registry.plugins[-1]
    assert (info.name, info.status) == ("mine", "failed")
    assert reason in info.reason
    (warning,) = registry.warnings
    assert warning.startswith("plugin 'mine'")
    assert "is disabled" in warning
    assert reason in warning
    assert "\n" not in warning
    assert "mine" not in registry.passes
    assert active(registry) == [BUILTIN]


@pytest.mark.parametrize(("body", "reason"), REFUSED)
def test_strict_mode_makes_an_error_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    monkeypatch.setenv("GRAPHOPT_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError) as caught:
        load_plugins(local(tmp_path, body))
    assert reason in str(caught.value)
    assert caught.value.exit_code == 2


def test_nothing_of_a_refused_plugin_stays(tmp_path: Path) -> None:
    registry = load_plugins(
        local(
            tmp_path,
            REGISTER + "\n@hookimpl\ndef graphopt_register_gates():\n    return {'Bad Name': 'a:b'}\n",
        )
    )
    assert len(registry.warnings) == 1
    assert "mine" not in registry.passes


def test_a_plugin_built_for_a_newer_graphopt_may_say_so(tmp_path: Path) -> None:
    body = (
        "@hookimpl(optionalhook=True)\ndef graphopt_register_flying_carpets():\n    return {}\n\n\n"
        + REGISTER
    )
    registry = load_plugins(local(tmp_path, body))
    assert registry.warnings == ()
    assert "mine" in registry.passes


def test_a_clash_names_both_owners_and_is_always_an_error(tmp_path: Path) -> None:
    body = 'Mine.info = PassInfo(name="canonicalize", summary="Mine.")\n\n\n' + REGISTER.replace(
        '"mine"', '"canonicalize"'
    )
    path = local(tmp_path, body)
    with pytest.raises(PluginError) as caught:
        load_plugins(path)
    assert "the pass 'canonicalize' is registered twice" in str(caught.value)
    assert "'graphopt' (built in)" in str(caught.value)
    assert f"'mine' ({path})" in str(caught.value)


def test_names_of_built_in_targets_are_taken(tmp_path: Path) -> None:
    path = local(tmp_path, answering("{'ort-cpu': 'json:mine.toml'}", "targets"))
    with pytest.raises(
        PluginError, match=rf"the target 'ort-cpu' is registered by 'mine' \({path}\), but it is built in"
    ):
        load_plugins(path)


def test_missing_local_files(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="no such plugin file"):
        load_plugins(tmp_path / "nowhere.py")
    with pytest.raises(PathError, match="got a directory"):
        load_plugins(tmp_path)
    registry = load_plugins(local(tmp_path, REGISTER, name="mine.txt"))
    assert "its name must end in .py" in registry.warnings[0]


def test_unknown_names_offer_the_nearest(tmp_path: Path) -> None:
    registry = load_plugins(local(tmp_path, REGISTER))
    with pytest.raises(PlanError, match=r"no pass is called 'mime'. Did you mean 'mine'"):
        registry.passes.find("mime")
    with pytest.raises(PlanError, match=r"no reporter is called 'x'. There are no reporters names"):
        registry.reporters.find("x")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_module:Name", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_such_name", "AttributeError"),
        ("json:JSONDecoder", r"expected a subclass of graphopt\.api\.Pass"),
        ("graphopt.api:Pass", "its info is None"),
    ],
)
def test_lazy_names_are_checked_on_first_use(tmp_path: Path, reference: str, words: str) -> None:
    body = f"@hookimpl\ndef graphopt_register_passes():\n    return {{'lazy': '{reference}'}}\n"
    registry = load_plugins(local(tmp_path, body))
    assert registry.warnings == ()
    assert "lazy" in registry.passes
    for _ in range(2):
        with pytest.raises(PluginError, match=rf"pass 'lazy' of 'mine'.*{words}"):
            registry.passes.find("lazy")


# The entry-point way, with distributions that exist only on a search path.


def distribution(folder: Path, name: str, *, module: str, body: str, entry: str | None = None) -> None:
    """Lay out an installed distribution by hand: a module and its metadata."""
    (folder / f"{module}.py").write_text(HEADER + textwrap.dedent(body))
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[graphopt]\n{entry or name} = {module}\n")


def listing(folder: Path, **environment: str) -> dict[str, Any]:
    """Return what a fresh interpreter with *folder* on its path finds."""
    code = """
        import dataclasses, json
        from graphopt.errors import GraphoptError
        from graphopt.pipeline.plugins import load_plugins
        try:
            registry = load_plugins()
        except GraphoptError as error:
            print(json.dumps({"error": str(error), "class": type(error).__name__}))
        else:
            print(json.dumps({
                "plugins": {i.name: [i.status, i.version, i.origin, i.reason] for i in registry.plugins},
                "warnings": registry.warnings,
                "passes": list(registry.passes),
            }))
    """
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GRAPHOPT_")}
    variables |= {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())]), **environment}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        capture_output=True,
        text=True,
        env=variables,
    )
    result: dict[str, Any] = json.loads(run.stdout)
    return result


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    distribution(folder, "graphopt-good", module="good_plugin", body=REGISTER, entry="good")
    distribution(folder, "graphopt-bad", module="bad_plugin", body="1 / 0", entry="bad")
    return folder


def test_installed_plugins(site: Path) -> None:
    found = listing(site)
    assert found["plugins"]["good"] == ["active", "1.2", "graphopt-good", ""]
    assert found["plugins"]["bad"][:3] == ["failed", "1.2", "graphopt-bad"]
    assert "mine" in found["passes"]
    assert found["warnings"] == [
        "plugin 'bad' (graphopt-bad) is disabled: loading it raised ZeroDivisionError: division by zero"
    ]


@pytest.mark.parametrize("value", ["1", "all", "bad,good", "graphopt-bad, graphopt-good"])
def test_plugins_can_be_disabled(site: Path, value: str) -> None:
    found = listing(site, GRAPHOPT_DISABLE_PLUGINS=value)
    assert found["warnings"] == []
    assert found["plugins"]["good"] == [
        "disabled",
        "1.2",
        "graphopt-good",
        "named in GRAPHOPT_DISABLE_PLUGINS",
    ]
    assert found["plugins"]["bad"][0] == "disabled"
    assert found["plugins"]["graphopt"][0] == "active"
    assert "mine" not in found["passes"]


def test_one_plugin_can_be_disabled(site: Path) -> None:
    found = listing(site, GRAPHOPT_DISABLE_PLUGINS="bad", GRAPHOPT_STRICT_PLUGINS="1")
    assert found["plugins"]["bad"][0] == "disabled"
    assert "mine" in found["passes"]


def test_strict_mode_of_the_environment(site: Path) -> None:
    found = listing(site, GRAPHOPT_STRICT_PLUGINS="1")
    assert found["class"] == "PluginError"
    assert "plugin 'bad' (graphopt-bad) is disabled" in found["error"]
    assert "error" not in listing(site, GRAPHOPT_STRICT_PLUGINS="0")


def test_two_distributions_that_register_one_name(site: Path) -> None:
    distribution(site, "graphopt-second", module="second_plugin", body=REGISTER, entry="second")
    found = listing(site)
    assert found["class"] == "PluginError"
    for words in (
        "the pass 'mine' is registered twice",
        "'good' (graphopt-good)",
        "'second' (graphopt-second)",
    ):
        assert words in found["error"]
    assert "mine" in listing(site, GRAPHOPT_DISABLE_PLUGINS="second")["passes"]


def test_two_distributions_with_plugins_of_one_name(site: Path) -> None:
    distribution(site, "graphopt-second", module="second_plugin", body=REGISTER, entry="good")
    found = listing(site)
    assert found["class"] == "PluginError"
    assert (
        "two plugins are called 'good', one from graphopt-good and one from graphopt-second" in found["error"]
    )
