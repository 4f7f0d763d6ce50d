"""The passes over stored weights on trained models: the result loads, runs and agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest

from graphopt.ir.emit import save
from graphopt.ir.lower import load
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.passes.share_weights import ShareWeights
from graphopt.passes.sparsify_weights import SparsifyWeights
from graphopt.passes.synthesize_constants import SynthesizeConstants
from graphopt.runtime.feeds import random_feeds
from tests.passes.harness import apply

if TYPE_CHECKING:
    from pathlib import Path

MODELS = ("cifar10_resnet20_jpeg", "gtcrn_simple", "mlperf_ic_resnet8_qdq", "ultraface_version-RFB-320")
PASSES: dict[str, tuple[Any, dict[str, Any], float]] = {
    "synthesize": (SynthesizeConstants(), {}, 300.0),
    "share": (ShareWeights(), {"bits": 8}, 25.0),
    "storage": (ConvertFloat16(), {"form": "storage"}, 40.0),
    "sparse": (SparsifyWeights(), {"sparsity": 0.05}, 25.0),
}


def run(path: Path, feeds: Any) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, feeds)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("key", PASSES)
def test_trained_models(assets: Path, tmp_path: Path, name: str, key: str) -> None:
    path = assets / "models" / f"{name}.onnx"
    pass_, options, least_db = PASSES[key]
    model = load(path)
    after, report = apply(pass_, model, check=False, **options)
    save(after, tmp_path / "out.onnx")
    feeds = random_feeds(model, 1)[0]
    for one, two in zip(run(path, feeds), run(tmp_path / "out.onnx", feeds), strict=True):
        signal = float((one.astype(np.float64) ** 2).sum())
        error = float(((one.astype(np.float64) - two) ** 2).sum())
        assert error <= signal * 10 ** (-least_db / 10), report.counts
