"""insert-qdq over every model of the assets and the zoo: it loads, runs and agrees, or stays and says why.

    GRAPHOPT_ASSETS=... python benchmarks/quantize_corpus.py [--json FILE] [NAME...]

Trained models get real data: the tasks' calibration feeds, photographs of faces, frames of a recording run
through the float model for its states. The zoo has random weights and gets random data, so that its SQNR says
that nothing broke, not what a trained net loses. Nothing is measured in time; the first half of the feeds
calibrates, the rest is compared. Rows of a run of some names replace theirs in FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

import graphopt
from graphopt.errors import GraphoptError
from graphopt.runtime.feeds import random_feeds
from tests.corpora import asset_models, asset_tasks, zoo_model, zoo_names

if TYPE_CHECKING:
    from collections.abc import Callable

CLEAN = "canonicalize,fold-constants,fuse-batchnorm,canonicalize,deduplicate,eliminate-dead"
COUNT = 16
LEAST_DB = 10.0  # below, an output has little to do with what it was
Feeds = list[dict[str, Any]]


def session(path: Path) -> ort.InferenceSession:
    """A quiet session on the CPU provider."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sound(path: Path) -> np.ndarray[Any, Any]:
    """The samples of a 16-bit mono recording, in [-1, 1]."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def silero(path: Path, data: Path) -> Feeds:
    """Frames of 512 samples behind 64 of context, every tenth, with the states that the float model gives."""
    samples, run = sound(data / "vad_test.wav"), session(path)
    state, feeds = np.zeros((2, 1, 128), np.float32), []
    for k in range(10 * COUNT):
        frame = samples[max(0, k * 512 - 64) : (k + 1) * 512]
        frame = np.pad(frame, (576 - len(frame), 0))[None]
        feed = {"input": frame, "state": state, "sr": np.array(16000, np.int64)}
        state = run.run(None, feed)[1]
        if k % 10 == 9:
            feeds.append(feed)
    return feeds


def gtcrn(path: Path, data: Path) -> Feeds:
    """Spectra of frames of a noisy recording, with the caches that the float model gives."""
    samples, run = sound(data / "noisy_mix.wav"), session(path)
    window = np.sqrt(np.hanning(513)[:512]).astype(np.float32)
    caches = {each.name: np.zeros(each.shape, np.float32) for each in run.get_inputs()[1:]}
    feeds = []
    for k in range(10 * COUNT):
        spectrum = np.fft.rfft(samples[k * 256 : k * 256 + 512] * window)
        mix = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)[None, :, None]
        feed = {"mix": mix, **caches}
        caches = dict(zip(caches, run.run(None, feed)[1:], strict=True))
        if k % 10 == 9:
            feeds.append(feed)
    return feeds


def faces(name: str, size: tuple[int, int], shift: float, scale: float) -> Callable[[Path, Path], Feeds]:
    """Photographs as [1, 3, height, width], (value - shift) * scale."""

    def build(path: Path, data: Path) -> Feeds:
        from PIL import Image

        del path
        feeds = []
        for file in sorted((data / "face_images").glob("*.jpg")):
            image = Image.open(file).convert("RGB")
            for mirrored in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                pixels = np.asarray(mirrored.resize((size[1], size[0])), np.float32)[..., ::-1]
                feeds.append(
                    {name: np.ascontiguousarray(((pixels - shift) * scale).transpose(2, 0, 1)[None])}
                )
        return feeds

    return build


REAL = {
    "silero_vad": silero,
    "silero_vad_16k_op15": silero,
    "gtcrn_simple": gtcrn,
    "yunet_n_dynamic": faces("input", (320, 320), 0.0, 1.0),
    "nanodet_m_320": faces("input.1", (320, 320), 110.0, 1 / 57),
    "ultraface_version-RFB-320": faces("input", (240, 320), 127.0, 1 / 128),
    "ultraface_version-RFB-320_simplified": faces("input", (240, 320), 127.0, 1 / 128),
}


def feeds_of(path: Path, assets: Path, tasks: Any) -> tuple[str, Feeds]:
    """Return what the data are, and the data."""
    if path.stem in REAL:
        return "real", REAL[path.stem](path, assets / "data")
    name = path.name.replace("jpeg_dynamo", "jpeg")
    for task in tasks.values():
        if task.file == name:
            return "real", list(task.calibration(COUNT))
    return "random", random_feeds(graphopt.load(path), 4, 0)


def main(argv: list[str]) -> int:
    """Print one line a model; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    assets = Path(os.environ["GRAPHOPT_ASSETS"])
    tasks = asset_tasks(assets)
    paths = {path.stem: path for path in asset_models(assets)} | dict.fromkeys(zoo_names(assets), Path())
    failed = 0
    for name, place in paths.items():
        if options.names and name not in options.names:
            continue
        path = place if place.name else zoo_model(assets, name)
        start = time.process_time()
        row = {"name": name, **one(path, *feeds_of(path, assets, tasks))}
        row["cpu_s"] = round(time.process_time() - start, 1)
        failed += row["status"] == "failed"
        print(f"{name:45} {row['cpu_s']:5.1f} s  {shown(row)}", flush=True)
        if options.json:
            known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else []
            merged = {each["name"]: each for each in known} | {name: row}
            rows = [merged[each] for each in paths if each in merged]
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def one(path: Path, kind: str, feeds: Feeds) -> dict[str, Any]:
    """Quantise one model and compare it with the original on the feeds that did not calibrate."""
    row: dict[str, Any] = {"data": kind, "feeds": len(feeds)}
    model = graphopt.load(path)
    lead = "" if model.opset >= 13 else "upgrade-opset{to=13},"
    if any(value.is_initializer() for value in model.graph.inputs):
        # As the report says where it is left out.
        lead += "canonicalize{freeze_initializers=true},"
    row["pipeline"] = f"{lead}{CLEAN},insert-qdq{{measure=off}}"
    half = (len(feeds) + 1) // 2
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / path.name
        try:
            result = graphopt.run(path, row["pipeline"], out=out, data=feeds[:half], validate=False)
        except GraphoptError as error:
            return {**row, "status": "failed", "reason": str(error)}
        step = result.report.steps[-1]
        reasons = sorted({each.reason for each in step.skipped})
        row |= {
            "status": "quantised" if step.changed else "unchanged",
            "counts": step.counts,
            "left_float": reasons,
        }
        row["file_ratio"] = round(out.stat().st_size / path.stat().st_size, 3)
        if not step.changed:
            return row
        try:
            record = graphopt.validate(
                path, out, data=feeds[half:], measure_latency=False, min_sqnr_db=-1e3, max_abs=1e30
            )
        except GraphoptError as error:
            return {**row, "status": "failed", "reason": str(error)}
    row["sqnr_db"] = {
        level: min((round(each.sqnr_db, 1) for each in outputs if each.sqnr_db is not None), default=None)
        for level, outputs in record.levels.items()
    }
    if record.structure is not None:
        row["integer_kernels"] = record.structure.integer_kernels
        row["dequantize_before_compute"] = record.structure.dequantize_before_compute
    worst = min((each for each in row["sqnr_db"].values() if each is not None), default=None)
    if not record.passed:
        return {**row, "status": "failed", "reason": "; ".join(record.problems)}
    if worst is not None and worst < LEAST_DB:
        return {**row, "status": "failed", "reason": f"SQNR {worst} dB, expected at least {LEAST_DB:g}"}
    return row


def shown(row: dict[str, Any]) -> str:
    """Return a row as a line."""
    if row["status"] == "failed":
        return f"FAILED {row['reason']} {row.get('sqnr_db', '')}"
    if row["status"] == "unchanged":
        return f"unchanged: {'; '.join(row['left_float'])}"
    kernels, left = row.get("integer_kernels"), row.get("dequantize_before_compute")
    return (
        f"{row['sqnr_db']} dB on {row['data']} data, file {row['file_ratio']}, "
        f"{kernels} integer kernels, {left} DequantizeLinear left"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
