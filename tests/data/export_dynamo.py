"""Writes dynamo_raw.onnx: what torch.onnx.export(dynamo=True, optimize=False) leaves of a small net.

It was made with torch 2.14 and onnxscript 0.7, neither of which graphopt needs.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import nn

OUT = Path(__file__).with_name("dynamo_raw.onnx")


class Net(nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """Convolutions with a BatchNorm and groups, attention, GELU, and an output of one bool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.scale = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores of [batch, 10] and whether anything was active."""
        y = torch.relu(self.norm(self.stem(x)))
        y = y + self.grouped(y)
        tokens = self.scale(y.flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(nn.functional.gelu(mixed).mean(1)), (y > 0).any()


def main() -> None:
    """Export the net with seeded weights, without the source paths that the exporter writes into metadata."""
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        net,
        (torch.randn(2, 3, 8, 8),),
        OUT,
        dynamo=True,
        optimize=False,
        external_data=False,
        dynamic_shapes=({0: batch},),
    )
    model = onnx.load(OUT)
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, OUT)


if __name__ == "__main__":
    main()
