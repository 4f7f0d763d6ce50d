"""A second provider: models compiled for OpenVINO load there, agree, and say where their nodes run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest

from graphopt.ir.lower import load, lower
from graphopt.passes.decompress_weights import DecompressWeights
from graphopt.pipeline.run import run
from graphopt.pipeline.validation import validate
from graphopt.runtime.providers import installation_warnings, runtime_versions
from graphopt.runtime.session import open_session
from graphopt.runtime.structure import structure_of
from graphopt.targets import load_target
from tests.passes.harness import context_for
from tests.runtime import qdq
from tests.runtime.models import write
from tests.targets.test_targets import one_node

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.child


def test_it_is_alone_in_its_environment() -> None:
    assert list(runtime_versions()) == ["onnxruntime-openvino"]
    assert installation_warnings() == ()


def test_the_limits_are_those_of_the_installed_runtime() -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    limits = load_target("openvino").runtime_limits_for(ort.__version__)
    highest = (limits.max_ir_version, limits.max_opset, limits.max_ml_opset)
    providers = ["OpenVINOExecutionProvider"]
    ort.InferenceSession(one_node(*highest), options, providers=providers)
    if not ort.__version__.startswith(f"{limits.release}."):
        return  # a release without a row of its own may load more; until it gets one, less is assumed
    for index in range(3):
        above = [version + (place == index) for place, version in enumerate(highest)]
        with pytest.raises(Exception, match=r"max supported IR version|is till opset"):
            ort.InferenceSession(one_node(*above), options, providers=providers)


def test_placement_is_recorded_and_kernels_are_the_providers_own(tmp_path: Path) -> None:
    found = structure_of(write(qdq.conv(relu=True), tmp_path / "m.onnx"), provider="openvino")
    assert found is not None
    assert found.quantised == {"Conv": 1}
    assert found.off_provider == {}
    assert "compiles its nodes" in found.problem


def test_it_unpacks_stored_weights_once() -> None:
    model = lower(qdq.conv(activation=False, output=False))
    context = context_for(model)
    context.target = load_target("openvino")
    report = DecompressWeights().run(model, DecompressWeights.Options(), context)
    assert not report.changed
    assert report.counts == {"kept_fused": 1}


@pytest.mark.parametrize("name", ["cifar10_resnet20_jpeg", "mlperf_kws_dscnn", "mlperf_ad_autoencoder"])
def test_clean_models_run_on_it_whole(assets: Path, tmp_path: Path, name: str) -> None:
    path = assets / "models" / f"{name}.onnx"
    result = run(
        path,
        "canonicalize,fold-constants,fuse-batchnorm,eliminate-dead",
        out=tmp_path / "out.onnx",
        target="openvino",
        dims=dict.fromkeys(free_dims(path), 1),
        validate=True,
    )
    assert result.report.providers == ["openvino"]
    assert result.report.validation is not None
    assert result.report.validation.passed
    assert set(result.report.validation.placement["nodes"]) == {"openvino"}


def free_dims(path: Path) -> list[str]:
    dims: list[Any] = [dim for value in load(path).graph.inputs for dim in value.shape or ()]
    return [dim.value for dim in dims if not isinstance(dim, int) and dim.value]


def test_its_numbers_are_those_of_the_cpu(tmp_path: Path) -> None:
    path = write(qdq.conv(relu=True), tmp_path / "m.onnx")
    feed = {"x": np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)}
    mine, other = (open_session(path, provider=name).run(feed)["y"] for name in ("openvino", "cpu"))
    assert isinstance(mine, np.ndarray)
    assert isinstance(other, np.ndarray)
    assert np.abs(mine - other).max() <= 1.001 * float(qdq.SCALE)  # one code, where rounding meets a tie


@pytest.mark.parametrize(
    ("name", "min_sqnr_db"),
    [("cifar10_resnet20_jpeg", 28.0), ("mlperf_kws_dscnn", 30.0), ("mlperf_ad_autoencoder", 22.0)],
)
def test_quantised_tasks_load_agree_and_say_where_they_run(
    assets: Path, tmp_path: Path, name: str, min_sqnr_db: float
) -> None:
    path, out = assets / "models" / f"{name}.onnx", tmp_path / "out.onnx"
    dims = dict.fromkeys(free_dims(path), 1)
    pipeline = (
        "canonicalize,fold-constants,decompress-weights{where=all},fuse-batchnorm,insert-qdq{measure=off}"
    )
    result = run(path, pipeline, out=out, target="openvino", data="random:4", dims=dims, validate=False)
    assert result.report.steps[-1].counts["quantised_nodes"] >= 10
    compared = validate(
        path,
        out,
        data="random:4",
        provider="openvino",
        dims=dims,
        min_sqnr_db=min_sqnr_db,
        measure_latency=False,
    )
    assert compared.passed, compared.problems
    assert set(compared.placement["nodes"]) == {"openvino"}
    assert compared.structure is not None
    assert sum(compared.structure.quantised.values()) >= 10
    assert compared.structure.off_provider == {}
