"""The main job on an embedded model: a digit classifier before and after a pipeline.

The model and its data are in the package: ``digits.onnx``, as the exporter left it, and ``digits.npz`` with
the images and the indices of three disjoint parts (examples/digits made both). Calibration images are what
passes and validation see; accuracy is measured on the evaluation images, which neither they nor the training
saw.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from graphopt.pipeline.request import Watch
    from graphopt.record import RunRecord

PIPELINE = (
    "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead,"
    "prune-channels{macs_ratio=0.5,recover=least-squares},insert-qdq{measure=off}"
)
"""Clean up, halve the MACs and fit what stays to unlabelled images, then compute on 8-bit codes."""

TITLE = "Digit classifier, a CNN of widths 64 and 96 trained on 8x8 images"


@dataclass(frozen=True, slots=True)
class DemoRow:
    """A model in figures.

    Attributes:
        accuracy: Share of the evaluation images whose digit it finds, in [0, 1].
        bytes: Size of its file.
        latency_s: Thread CPU seconds of one image.
        nodes: Nodes of all its graphs.
    """

    accuracy: float
    bytes: int
    latency_s: float
    nodes: int


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found.

    Attributes:
        title: What the model is.
        before: The embedded model.
        after: The result.
        evaluation_images: How many images the accuracy is measured on.
        latency_ratio: after / before, by the protocol of :mod:`graphopt.runtime.latency`.
        noise_ratio: The same of two sessions of the model before: 1 but for noise.
        pipeline: What was run, as pipeline text.
        report: The record of the run.
        files: The files kept; empty where the result was not asked for.
    """

    title: str
    before: DemoRow
    after: DemoRow
    evaluation_images: int
    latency_ratio: float
    noise_ratio: float
    pipeline: str
    report: RunRecord
    files: tuple[Path, ...]


def run_demo(
    pipeline: str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
) -> DemoResult:
    """Run *pipeline* on the embedded model and measure both ends.

    Args:
        pipeline: What to do; :data:`PIPELINE` by default.
        out: Keep the result there.
        workdir: Where the two models are put meanwhile; a temporary folder by default.
        watch: Told how it is going.

    Raises:
        GraphoptError: Whatever ended the run.
    """
    import numpy as np

    from graphopt.pipeline.request import RunRequest, Watch
    from graphopt.pipeline.run import execute
    from graphopt.runtime.child import run_in_child
    from graphopt.runtime.latency import measure_latency

    watch = watch or Watch()
    with _folder(workdir) as folder:
        original, data = folder / "digits.onnx", folder / "digits.npz"
        package = importlib.resources.files(__package__)
        for file in (original, data):
            file.write_bytes(package.joinpath(file.name).read_bytes())
        with np.load(data) as arrays:
            pixels = arrays["images"][arrays["calibration"]].astype(np.float32)
            images = len(arrays["evaluation"])
        feeds = [{"image": image[None, None]} for image in pixels]
        optimized = Path(out) if out is not None else folder / "digits.optimized.onnx"
        outcome = execute(
            RunRequest(
                model=original,
                pipeline=PIPELINE if pipeline is None else pipeline,
                out=optimized,
                data=feeds,
                samples=_VALIDATION_FEEDS,
                watch=watch,
                command="demo",
            )
        )
        if outcome.error is not None:
            raise outcome.error
        record = outcome.record
        watch.stage("measure accuracy")
        accuracy = [
            run_in_child("graphopt.demo.accuracy:measure", file, data, where=str(file))
            for file in (original, optimized)
        ]
        watch.stage("measure latency")
        latency = measure_latency(original, optimized, feeds[0])
        rows = [
            DemoRow(accuracy=share, bytes=facts.bytes, latency_s=seconds, nodes=facts.nodes)
            for share, facts, seconds in zip(
                accuracy,
                [facts for facts in (record.input, record.output) if facts is not None],
                (latency.before_s, latency.after_s),
                strict=True,
            )
        ]
        return DemoResult(
            title=TITLE,
            before=rows[0],
            after=rows[1],
            evaluation_images=images,
            latency_ratio=latency.ratio,
            noise_ratio=latency.noise_ratio,
            pipeline=record.pipeline,
            report=record,
            files=outcome.files if out is not None else (),
        )


_VALIDATION_FEEDS = 32


@contextlib.contextmanager
def _folder(workdir: str | os.PathLike[str] | None) -> Iterator[Path]:
    if workdir is not None:
        yield Path(workdir)
        return
    folder = Path(tempfile.mkdtemp(prefix="graphopt-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
