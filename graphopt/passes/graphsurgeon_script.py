"""graphsurgeon-script: run a function over an onnx_graphsurgeon.Graph, as people have them, as a pass."""

from __future__ import annotations

import contextlib
import linecache
import sys
import types
from pathlib import Path  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from graphopt.api import Pass, PassInfo, PassOptions, Report
from graphopt.errors import GraphoptError, OptionError, PassFailed, PathError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from graphopt.api import Context
    from graphopt.ir import Model


class GraphsurgeonScript(Pass):
    """Run ``entry(graph)`` of a Python file; it changes the graph in place or returns another one.

    What the function leaves alone comes back as it was: weights by identity, unread and uncopied, and the
    metadata, docs, annotations, exact types and defaults of inputs that GraphSurgeon has no place for. Nodes
    need not be in order afterwards. What the script prints goes to stderr.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="graphsurgeon-script",
        summary="Run a function over an onnx_graphsurgeon.Graph from a Python file.",
    )

    class Options(PassOptions):
        """Options of graphsurgeon-script."""

        path: Path = Field(
            description="Python file that holds the function; relative to the working directory (a path)"
        )
        entry: str = Field(
            min_length=1, description="name of the function that takes an onnx_graphsurgeon.Graph (a name)"
        )

        @field_validator("path")
        @classmethod
        def _must_exist(cls, path: Path) -> Path:
            if not path.is_file():
                reason = (
                    "expected a Python file, got a directory" if path.is_dir() else "there is no such file"
                )
                raise PathError(reason, where=f"option path = {str(path)!r} of graphsurgeon-script")
            return path

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Load the script anew, run its function, and compare what it left with what it was given."""
        del context
        from graphopt.ir.fingerprint import fingerprint
        from graphopt.ir.graphsurgeon import run_graphsurgeon

        before = fingerprint(model)
        with _as_script(options.path) as module:
            function = _entry(module, options)

            def guarded(graph: Any) -> Any:  # noqa: ANN401 - onnx_graphsurgeon has no types
                with _failures_of(options.path):
                    return function(graph)

            try:
                counts = run_graphsurgeon(model, guarded)
            except GraphoptError as error:
                error.where = error.where or f"{options.path}, {options.entry}()"
                raise
        done = {
            "nodes_added": counts.nodes_added,
            "nodes_removed": counts.nodes_removed,
            "tensors_changed": counts.tensors_changed,
        }
        return Report(
            changed=fingerprint(model) != before,
            counts={key: count for key, count in done.items() if count},
        )


@contextlib.contextmanager
def _as_script(path: Path) -> Iterator[types.ModuleType]:
    """Run the file as a module for the time of the block: siblings import as they do for a script."""
    name = f"_graphsurgeon_script_{path.stem}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    folder = str(path.resolve().parent)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    sys.path.insert(0, folder)
    linecache.checkcache(str(path))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            with _failures_of(path):
                # compiled here, not imported: no __pycache__ appears beside the user's file
                exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102 - the user's own script
            yield module
    finally:
        sys.modules.pop(name, None)
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _entry(module: types.ModuleType, options: GraphsurgeonScript.Options) -> Callable[[Any], Any]:
    function: Any = getattr(module, options.entry, None)
    if callable(function):
        return function  # type: ignore[no-any-return]  # whatever the script made callable
    own = [
        name
        for name, item in vars(module).items()
        if isinstance(item, types.FunctionType) and item.__module__ == module.__name__
    ]
    problem = "is not a function" if function is not None else "does not exist"
    raise OptionError(
        f"{options.entry!r} {problem} in {options.path}",
        where="option entry of graphsurgeon-script",
        hint=nearest(options.entry, own, what="functions"),
    )


@contextlib.contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    """Turn whatever the script raises into a PassFailed that names its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        text = linecache.getline(str(path), line).strip() if line else ""
        raise PassFailed(
            f"the script raised {type(error).__name__}: {error}" + (f" (at: {text})" if text else ""),
            where=f"{path}, line {line}" if line else str(path),
            hint="Fix the script, or run it alone under a debugger.",
        ) from error


def _line_of(error: BaseException, path: Path) -> int:
    """Return the innermost line of the script that *error* went through; 0 where it went through none."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 0
    line, step = 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return line
