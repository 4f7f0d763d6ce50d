"""Accuracy of a digit classifier on the evaluation images; runs in a child process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphopt.runtime.session import open_session


def measure(model: str | Path, data: str | Path) -> float:
    """Return the share of evaluation images in *data* whose digit *model* finds, in [0, 1]."""
    with np.load(data) as arrays:
        part = arrays["evaluation"]
        images = arrays["images"][part].astype(np.float32)[:, None]
        labels = arrays["labels"][part]
    with open_session(Path(model), optimization="all") as session:
        logits = np.asarray(session.run({"image": images})["logits"])
    return float((logits.argmax(axis=1) == labels).mean())
