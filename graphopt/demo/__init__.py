"""The demo: the best pipeline so far on an embedded digit classifier, measured before and after.

``examples/digits/train.py`` made the model and the data; its README says what they are.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from graphopt.pipeline.run import Watch
    from graphopt.record import RunRecord

PIPELINE = "canonicalize,fold-constants,fuse-batchnorm,deduplicate,eliminate-dead"
TITLE = "A residual CNN on scikit-learn's digits, 221,548 parameters, as the TorchScript exporter left it"

_BATCH = 250
_VALIDATION_FEEDS = 16


@dataclass(frozen=True)
class DemoSide:
    """One model of the comparison.

    Attributes:
        accuracy: Part of the evaluation images that it gets right, from 0 to 1.
        bytes: Size of the file.
        nodes: Number of nodes.
        latency_s: Thread CPU seconds of one inference at batch 1.
    """

    accuracy: float
    bytes: int
    nodes: int
    latency_s: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        title: What the model is.
        before: The model as it was embedded.
        after: The model behind the pipeline.
        evaluation_images: Number of images that accuracy is measured on, none of them used before.
        latency_ratio: Time after / before.
        noise_ratio: The same for two sessions of one model.
        report: The record of the run.
        files: The files kept, where a place was named.
    """

    title: str
    before: DemoSide
    after: DemoSide
    evaluation_images: int
    latency_ratio: float
    noise_ratio: float
    report: RunRecord
    files: tuple[Path, ...] = ()


def digits() -> Mapping[str, npt.NDArray[Any]]:
    """Return the embedded data: images [1797, 8, 8] from 0 to 16, labels [1797], and indices of the parts.

    The parts ``train``, ``calibration`` and ``evaluation`` are disjoint.
    """
    import numpy as np

    with (
        resources.files("graphopt.demo").joinpath("digits.npz").open("rb") as file,
        np.load(file) as archive,
    ):
        return {name: archive[name] for name in archive.files}


def run_demo(*, out: Path | None = None, pipeline: str = PIPELINE, watch: Watch | None = None) -> DemoResult:
    """Optimise the embedded model, validate it on calibration images and measure it on evaluation images.

    Args:
        out: Where to keep the result; None keeps nothing.
        pipeline: What to do.
        watch: Told how it is going.

    Raises:
        GraphoptError: As :func:`graphopt.run`.
    """
    from graphopt.pipeline.run import RunRequest, Watch, execute
    from graphopt.runtime.latency import measure_latency

    data = digits()
    images = data["images"][:, None].astype("float32")
    watch = watch or Watch()
    with (
        resources.as_file(resources.files("graphopt.demo").joinpath("digits.onnx")) as embedded,
        tempfile.TemporaryDirectory() as scratch,
    ):
        result = out if out is not None else Path(scratch) / "digits-optimized.onnx"
        feeds = [{"image": images[k : k + 1]} for k in data["calibration"][:_VALIDATION_FEEDS]]
        outcome = execute(
            RunRequest(model=embedded, pipeline=pipeline, out=result, data=feeds, watch=watch, command="demo")
        )
        if outcome.error is not None:
            raise outcome.error
        record = outcome.record
        assert record.input is not None
        assert record.output is not None
        first = {"image": images[data["evaluation"][:1]]}
        watch.stage("measuring the time of one inference")
        latency = measure_latency(embedded, result, first)
        watch.stage("measuring accuracy")
        part = data["evaluation"]
        accuracies = [_accuracy(path, images[part], data["labels"][part]) for path in (embedded, result)]
    return DemoResult(
        title=TITLE,
        before=DemoSide(accuracies[0], record.input.bytes, record.input.nodes, latency.before_s),
        after=DemoSide(accuracies[1], record.output.bytes, record.output.nodes, latency.after_s),
        evaluation_images=len(part),
        latency_ratio=latency.ratio,
        noise_ratio=latency.noise_ratio,
        report=record,
        files=outcome.files if out is not None else (),
    )


def _accuracy(model: Path, images: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> float:
    """Return the part of *images* [n, 1, 8, 8] that *model* gives the right one of *labels* [n]."""
    from graphopt.runtime.session import open_session

    right = 0
    with open_session(model) as session:
        for start in range(0, len(images), _BATCH):
            logits: Any = session.run({"image": images[start : start + _BATCH]})["logits"]
            right += int((logits.argmax(-1) == labels[start : start + _BATCH]).sum())
    return right / len(images)
