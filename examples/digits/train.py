"""Train the digit classifier of ``graphopt demo`` and export it the way exporters leave models.

    python examples/digits/train.py

writes ``digits.onnx`` and ``digits.npz`` into graphopt/demo. Needs the packages that README.md beside this
file names; graphopt itself needs none of them. Takes half a minute on two cores.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 20
PARTS = {"train": 1100, "calibration": 197, "evaluation": 500}  # sums to the 1,797 images
EPOCHS = 60
BATCH = 64
OPSET = 17
FOLDER = Path(__file__).parents[2] / "graphopt" / "demo"


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, width_in, h, w] to [batch, width_out, h / stride, w / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Digits(nn.Module):
    """A small residual network over 8x8 images; its widths, 64 and 96, are multiples of 16."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1,), mean))
        self.register_buffer("std", torch.full((1,), std))
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.block1 = Residual(64, 64, 1)
        self.block2 = Residual(64, 96, 2)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(96, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [batch, 1, 8, 8] with pixels from 0 to 16 to logits [batch, 10]."""
        x = (image - self.mean.view(1, 1, 1, 1)) / self.std.view(1, 1, 1, 1)
        x = functional.relu(self.norm(self.stem(x)))
        x = self.block2(self.block1(x))
        x = functional.adaptive_avg_pool2d(x, 1)
        # sizes are read back from the tensor, as hand-written models do: exports hold shape arithmetic
        x = x.view(x.size(0), x.size(1) * x.size(2) * x.size(3))
        return self.head(self.dropout(x))


def split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return disjoint sorted indices of each part, drawn with a fixed seed."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    edges = np.cumsum(list(PARTS.values()))[:-1]
    return {
        name: np.sort(part).astype(np.int16) for name, part in zip(PARTS, np.split(order, edges), strict=True)
    }


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Return *images* [batch, 1, 8, 8], each moved by -1, 0 or 1 pixels along both axes."""
    padded = functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets, strict=True)]
    )


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> Digits:
    """Train on *images* [n, 1, 8, 8] and *labels* [n]; the result is in evaluation mode."""
    network = Digits(float(images.mean()), float(images.std()))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(
                network(shifted(images[batch])), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}", flush=True)
    return network.eval()


def export(network: Digits, path: Path) -> None:
    """Write *network* unfused: the exporter neither folds constants nor batch normalisation."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # the TorchScript exporter is what most models in use came from
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    print(
        f"{path}: {path.stat().st_size} bytes, {len(model.graph.node)} nodes,"
        f" IR version {model.ir_version}, opset {OPSET}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)

    digits = load_digits()
    pixels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    parts = split(labels)
    images = torch.from_numpy(pixels.astype(np.float32))[:, None]
    targets = torch.from_numpy(labels.astype(np.int64))
    network = train(images[parts["train"]], targets[parts["train"]], options.epochs)
    with torch.no_grad():
        for name in ("calibration", "evaluation"):
            right = (network(images[parts[name]]).argmax(1) == targets[parts[name]]).float().mean()
            print(f"accuracy on {name}: {float(right):.4f}")

    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out / "digits.npz", images=pixels, labels=labels, **parts)
    export(network, options.out / "digits.onnx")


if __name__ == "__main__":
    main()
