"""A raw export of torch's dynamo exporter (optimize=False) goes through whole pipelines unharmed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.pipeline.run import run
from tests.passes.harness import assert_same_function

RAW = Path(__file__).parents[1] / "data" / "dynamo_raw.onnx"
CLEAN = "canonicalize,fold-constants,fuse-batchnorm,deduplicate,eliminate-dead,infer-shapes"


def feed(batch: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize(
    "pipeline", ["", CLEAN, f"upgrade-opset{{to=21}},{CLEAN}", "decompress-weights{where=all}"]
)
def test_it_passes_through(tmp_path: Path, pipeline: str) -> None:
    out = tmp_path / "out.onnx"
    result = run(RAW, pipeline, out=out, data=[feed(2), feed(5)])
    assert result.report.status in {"ok", "unchanged"}
    onnx.checker.check_model(out, full_check=True)
    assert_same_function(RAW, out, feed(1), feed(3), rtol=1e-5)


def test_what_the_exporter_writes_out_at_length_is_gone() -> None:
    cleaned = run(RAW, CLEAN).model
    left = {node.op_type for node in cleaned.nodes()}
    assert len(list(cleaned.nodes())) <= 40  # of 95
    assert not left & {"Constant", "BatchNormalization", "Identity"}
