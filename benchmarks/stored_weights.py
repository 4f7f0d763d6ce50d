"""What stored codes cost in time: models with weights behind DequantizeLinear, before and after unpacking.

    python benchmarks/stored_weights.py MODEL... [--provider cpu] [-o results.json]

The ratio is after / before on one thread (graphopt.runtime.latency), beside an A/A pair. It is the source of
the figures on decompress-weights in docs/passes.md and of the table [dequantize] of openvino.toml (--provider
openvino, in an environment that has onnxruntime-openvino).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from graphopt.ir import load, save
from graphopt.pipeline.run import run
from graphopt.runtime.feeds import input_specs, random_feeds
from graphopt.runtime.latency import measure_latency
from graphopt.runtime.providers import runtime_versions
from graphopt.runtime.structure import structure_of


def measure(path: Path, provider: str) -> dict[str, object]:
    """Return what decompress-weights does to one model, in bytes and in time."""
    model = load(path)
    dims = {
        dim: 1
        for spec in input_specs(model)
        for dim in spec.shape or ()
        if isinstance(dim, str) and dim.isidentifier()
    }
    feed = next(iter(random_feeds(model, 1, 0, dims)))
    with tempfile.TemporaryDirectory() as folder:
        after = Path(folder) / "after.onnx"
        result = run(path, "decompress-weights", dims=dims, validate=False)
        save(result.model, after)
        latency = measure_latency(path, after, feed, provider)
        structure = structure_of(path, provider=provider)
        return {
            "model": path.name,
            "counts": result.report.steps[0].counts,
            "dequantize_before": {} if structure is None else dict(structure.dequantize_before),
            "bytes": [path.stat().st_size, after.stat().st_size],
            "before_s": latency.before_s,
            "after_s": latency.after_s,
            "ratio": latency.ratio,
            "noise_ratio": latency.noise_ratio,
        }


def main() -> None:
    """Measure the models that were given and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for path in arguments.models:
        row = measure(path, arguments.provider)
        rows.append(row)
        print(
            f"{row['model']}: {row['counts']}, bytes {row['bytes']}, {row['ratio']:.3f}x time"
            f" (noise {row['noise_ratio']:.3f})"
        )
    if arguments.out is not None:
        document = {"runtime": runtime_versions(), "provider": arguments.provider, "models": rows}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
