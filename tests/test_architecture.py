"""The house as a test: who may import whom, how long a file may be, and what `import graphopt` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "graphopt"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS: tuple[tuple[str, ...], ...] = (
    ("graphopt.errors",),
    ("graphopt.ir",),
    ("graphopt.runtime", "graphopt.targets"),
    ("graphopt.calibrate", "graphopt.recover"),
    ("graphopt.api", "graphopt.hookspecs", "graphopt.planfile", "graphopt.record"),
    ("graphopt.passes",),
    ("graphopt.pipeline",),
    ("graphopt.report", "graphopt.cli", "graphopt.demo", "graphopt.testing"),
    ("graphopt.__init__", "graphopt.__main__"),
)
"""F0 upwards; a file imports its own floor and lower ones. The facade stands on top of all."""

TYPES_MAY_POINT_UP = frozenset({"graphopt.api", "graphopt.hookspecs"})
"""What describes the upper floors may name their types."""

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "networkx", "onnx_graphsurgeon")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def floor_of(module: str) -> int:
    if module == "graphopt":
        return len(FLOORS) - 1
    for floor, prefixes in enumerate(FLOORS):
        if any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes):
            return floor
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS and to docs/architecture.md")


def _is_type_checking(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(source: str) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, whether only for types) of every import, function-local ones included."""

    def walk(node: ast.AST, *, types_only: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, types_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if (node.module, alias.name) == ("graphopt", "__version__"):
                    continue  # a number that everyone may know
                # "from graphopt.ir import rewrite" may name a module or something in one
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / inner.replace(".", "/")).with_suffix(".py").is_file()
                yield inner if is_module else node.module, node.lineno, types_only
        elif isinstance(node, ast.If) and _is_type_checking(node):
            for statement in node.body:
                yield from walk(statement, types_only=True)
            for statement in node.orelse:
                yield from walk(statement, types_only=types_only)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, types_only=types_only)

    for module, line, types_only in walk(ast.parse(source), types_only=False):
        if module == "graphopt" or module.startswith("graphopt."):
            yield module, line, types_only


def breaches(module: str, source: str) -> list[str]:
    """Return every import in *source* that the house forbids."""
    own, found = floor_of(module), []
    for target, line, types_only in imports_of(source):
        where = f"{module}:{line} imports {target}"
        if target.startswith("graphopt.testing") and not module.startswith("graphopt.testing"):
            found.append(f"{where}: nothing imports the kit for tests")
        if floor_of(target) > own and not (types_only and module in TYPES_MAY_POINT_UP):
            found.append(f"{where}: floor {own} imports floor {floor_of(target)}")
        if _is_pass(module) and _is_pass(target) and module != target:
            found.append(f"{where}: a pass imports another pass")
    return found


def _is_pass(module: str) -> bool:
    """Return whether *module* is a pass; helpers of a family stand in a folder of their own."""
    parts = module.split(".")
    return parts[:2] == ["graphopt", "passes"] and len(parts) == 3 and parts[2] != "__init__"


def _without_init(path: Path) -> str:
    return module_of(path).removesuffix(".__init__") if path.parent != PACKAGE else module_of(path)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    assert not breaches(_without_init(path), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("graphopt.ir.shapes", "from graphopt.runtime import session"),
        ("graphopt.ir.shapes", "def f():\n    import graphopt.pipeline.run"),
        ("graphopt.runtime.compare", "if TYPE_CHECKING:\n    from graphopt.record import RunRecord"),
        ("graphopt.passes.canonicalize", "from graphopt.passes.deduplicate import Deduplicate"),
        ("graphopt.passes.canonicalize", "from graphopt.passes import deduplicate"),
        ("graphopt.errors", "import graphopt"),
        ("graphopt.cli.app", "from graphopt.testing import kit"),
    ],
)
def test_a_breach_is_found(module: str, source: str) -> None:
    assert breaches(module, source)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, "split it: a file says one thing"


def test_importing_graphopt_imports_nothing_heavy() -> None:
    code = "import sys, graphopt; print(*sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert "graphopt" in modules
    assert not [name for name in modules if name.split(".")[0] in HEAVY]
