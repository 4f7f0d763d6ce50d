"""Every clean-up pass, alone and all in a row, leaves every model of the corpora the same function.

Outputs are compared on onnxruntime at DISABLE_ALL over seeded feeds. Where onnxruntime cannot run a model (an
operator or opset that it lacks), or its outputs are random, the result is still verified and checked.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from graphopt.errors import DataError, InvalidModelError, ProviderError, UnsupportedModelError
from graphopt.ir import semantics
from graphopt.ir.emit import emit, emit_for_runtime
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import load
from graphopt.ir.verify import verify
from graphopt.passes import graphopt_register_passes
from graphopt.pipeline.plugins import load_plugins
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.session import open_session
from tests import corpora
from tests.passes.harness import Feeds, assert_equal, context_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.api import Pass
    from graphopt.ir import Model
    from graphopt.runtime.session import Session

# Largest |a - b| over largest |a|; what a reordered sum may cost in each type.
TOLERANCES = {"float64": 1e-5, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}

# Of the onnx wheel, nets of full size without their weights; the two small ones of the kind stay fast.
LARGE = frozenset({
    "light_bvlc_alexnet", "light_densenet121", "light_inception_v1", "light_inception_v2", "light_resnet50",
    "light_vgg19", "light_zfnet512",
})  # fmt: skip


@cache
def cleanup_passes() -> tuple[Pass, ...]:
    """The registered built-in passes that need no option and keep the function of a model."""
    registry = load_plugins()
    found = []
    for name in graphopt_register_passes():
        pass_type = registry.passes[name]
        required = any(field.is_required() for field in pass_type.Options.model_fields.values())
        if not required and not pass_type.info.lossy:
            found.append(pass_type())
    return tuple(found)


def is_repeatable(model: Model) -> bool:
    return all(semantics.is_deterministic(node, model.functions) for node in model.nodes())


def has_external_tensors(model: Model) -> bool:
    return any(
        isinstance(value.const_value, oir.ExternalTensor)
        for graph in model.graphs()
        for value in graph.initializers.values()
    )


def session_of(model: Model) -> Session:
    """Open *model* at DISABLE_ALL; this session takes arrays of every element type, those of numpy or not."""
    if not has_external_tensors(model):
        return open_session(emit(model).SerializeToString(), optimization="none")
    with tempfile.TemporaryDirectory() as folder:
        return open_session(emit_for_runtime(model, Path(folder)), optimization="none")


class Reference:
    """What a model gives before any pass; None for outputs where it cannot be run or repeated."""

    def __init__(self, path: Path, feeds: Sequence[Feeds] | None = None) -> None:
        self.model = load(path)
        self.feeds: list[Feeds] = []
        self.outputs: list[dict[str, Any]] | None = None
        try:
            self.feeds = [dict(feed) for feed in (feeds or random_feeds(self.model, 1, seed=7))]
            if is_repeatable(self.model):
                session = session_of(self.model)
                self.outputs = [session.run(feed) for feed in self.feeds]
        except (DataError, InvalidModelError, ProviderError, UnsupportedModelError):
            self.outputs = None

    def compare(self, after: Model, label: str) -> None:
        if self.outputs is None:
            return
        session = session_of(after)
        for feed, expected in zip(self.feeds, self.outputs, strict=True):
            got = session.run(feed)
            assert list(got) == list(expected), label
            for name, value in expected.items():
                dtype = str(value.dtype) if isinstance(value, np.ndarray) else ""
                rtol = TOLERANCES.get(dtype, 0.0)
                assert_equal(value, got[name], where=f"{label}: output {name}", rtol=rtol)


def run_pass(pass_: Pass, model: Model, before: str) -> bool:
    """Run one pass over *model*, whose fingerprint is *before*, and return whether it changed anything."""
    report = pass_.run(model, pass_.Options(), context_for(model))
    assert report.changed == (fingerprint(model) != before), (
        f"{pass_.info.name} says changed={report.changed}: {dict(report.counts)}"
    )
    if report.changed:
        verify(model)
    return report.changed


def check(
    path: Path, feeds: Sequence[Feeds] | None = None, *, checker: bool = True, each: bool = True
) -> bool:
    """Check one model; returns whether it was run.

    A pass that changed nothing has left the model as it was: there is nothing to compare, nor to do again.
    Unless *each*, outputs are compared behind all passes in a row alone.
    """
    reference = Reference(path, feeds)
    before = fingerprint(reference.model)
    accepted = checker and is_accepted(reference.model)
    changed = False
    for pass_ in cleanup_passes():
        after = reference.model.clone()
        if not run_pass(pass_, after, before):
            continue
        changed = True
        assert not accepted or is_accepted(after), pass_.info.name
        if each:
            reference.compare(after, pass_.info.name)
        assert not run_pass(pass_, after, fingerprint(after)), f"{pass_.info.name} finds something left to do"
    if changed:
        after = reference.model.clone()
        for pass_ in cleanup_passes():
            run_pass(pass_, after, fingerprint(after))
        assert not accepted or is_accepted(after)
        reference.compare(after, "all passes")
    return reference.outputs is not None


def is_accepted(model: Model) -> bool:
    if has_external_tensors(model):
        return False
    try:
        onnx.checker.check_model(emit(model))
    except onnx.checker.ValidationError:
        return False
    return True


def wheel_id(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem in LARGE else [])
        for path in corpora.onnx_wheel_models()
    ],
    ids=wheel_id,
)
def test_onnx_wheel(path: Path) -> None:
    check(path)


def test_onnx_wheel_is_mostly_run() -> None:
    """The comparison above has teeth: onnxruntime runs most of these models."""
    paths = corpora.onnx_wheel_models()[::5]
    assert sum(Reference(path).outputs is not None for path in paths) >= 0.6 * len(paths)


def test_feature_families(tmp_path: Path) -> None:
    for name, path in corpora.feature_models(tmp_path).items():
        try:
            check(path)
        except Exception as error:
            error.add_note(f"feature family {name}")
            raise


@pytest.mark.slow
def test_assets(assets: Path) -> None:
    ran = 0
    for path in corpora.asset_models(assets):
        try:
            ran += check(path)
        except Exception as error:
            error.add_note(path.name)
            raise
    assert ran >= 15


@pytest.mark.slow
def test_zoo(assets: Path) -> None:
    small = set(corpora.small_zoo_names(assets))  # of the others a session takes as long as all the rest
    for name in corpora.zoo_names(assets):
        try:
            path = corpora.zoo_model(assets, name)
            assert check(path, checker=False, each=name in small), "onnxruntime refuses it"
        except Exception as error:
            error.add_note(name)
            raise


SHARES = 16


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_backend_node_models(share: int) -> None:
    ran, total = 0, 0
    for case in corpora.node_cases()[share::SHARES]:
        try:
            feeds = [feed for feed, _ in case.data_sets()]
            ran += check(case.model, feeds)
            total += 1
        except Exception as error:
            error.add_note(case.name)
            raise
    assert ran >= 0.6 * total
