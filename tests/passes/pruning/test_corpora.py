"""The zoo and the trained models: all prune as far as promised, proven, without a word about the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphopt.errors import GateFailed
from graphopt.ir import Model, load
from graphopt.ir.cost import measure_cost
from graphopt.ir.lower import lower
from graphopt.passes.prune_channels import PruneChannels
from graphopt.passes.pruning.anatomy import examine
from tests.corpora import asset_models, zoo_model, zoo_names
from tests.passes.harness import apply

pytestmark = pytest.mark.slow

SHARES = 6  # that the workers of a run divide among them


def prune(model: Model, limit: float = 1e-5, **options: Any) -> tuple[Model, Any]:
    """Prune and return the model and what was reported; the oracle must have passed at *limit*."""
    pruned, report = apply(PruneChannels(), model, check=False, **options)
    oracle: Any = report.extra["oracle"]
    verdicts = [verdict for each in oracle.values() for verdict in each]
    assert bool(verdicts) == report.changed
    assert all(verdict["passed"] and verdict["relative_error"] <= limit for verdict in verdicts)
    return pruned, report


@pytest.mark.parametrize("share", range(SHARES))
def test_every_net_of_the_zoo_prunes(assets: Path, share: int) -> None:
    names = zoo_names(assets)[share::SHARES]
    assert names
    for name in names:
        model = load(zoo_model(assets, name))
        anatomy = examine(model, dims={})
        assert anatomy.families, name
        assert not [lock for lock in anatomy.locks if lock.unknown_op], name
        exact = any(family.exact for family in anatomy.families)
        _, report = prune(model, macs_ratio=0.5, best_effort=True, allow_approximate=not exact)
        assert report.changed, name
        assert report.extra["macs_ratio"] <= 0.5 or report.extra["notes"], name


@pytest.mark.parametrize("name", ["swin_t", "timm_gmlp_s16_224", "unet_gn_ps"])
def test_norms_over_what_is_kept(assets: Path, name: str) -> None:
    model = load(zoo_model(assets, name))
    _, report = prune(
        model, macs_ratio=0.6, best_effort=True, allow_approximate=True, units=["channels"], round_to=4
    )
    assert report.extra["oracle"]["approximate"]


@pytest.mark.parametrize("name", ["bert", "resnet50", "mobilenet_v3_small"])
def test_both_exporters_give_the_same_families(assets: Path, name: str) -> None:
    def kinds(name: str) -> Counter[tuple[str, int, bool]]:
        anatomy = examine(load(zoo_model(assets, name)), dims={})
        return Counter((family.kind, family.size, family.exact) for family in anatomy.families)

    assert kinds(name) == kinds(f"{name}_d")


@pytest.mark.parametrize("name", ["bert", "llama_gqa_d", "swin_t"])
def test_heads_head_dims_and_hidden_units_are_found(assets: Path, name: str) -> None:
    anatomy = examine(load(zoo_model(assets, name)), dims={})
    assert {"heads", "head_dims", "hidden"} <= {family.kind for family in anatomy.families}


def test_resnet50_at_half_the_width_has_seven_million_parameters(assets: Path) -> None:
    model = load(zoo_model(assets, "resnet50"))
    pruned, _ = prune(model, params_ratio=0.275, scope="family")
    assert measure_cost(pruned).parameters <= 7_000_000
    widths = {
        node.name: node.outputs[0].shape[1]
        for node in pruned.graph
        if node.op_type == "Conv" and node.outputs[0].shape is not None
    }
    assert set(widths.values()) <= {32, 64, 128, 256, 512, 1024}


LOCKED = {
    "gtcrn_simple": "GRU",
    "nanodet_m_320": "overridable initializer",
    "ultraface_version-RFB-320": "overridable initializer",
    "ultraface_version-RFB-320_simplified": "overridable initializer",
}


def test_every_trained_model_prunes_or_names_what_locks_it(assets: Path) -> None:
    pruned = set()
    for path in asset_models(assets):
        if path.stem in LOCKED:
            with pytest.raises(GateFailed, match=LOCKED[path.stem]):
                prune(load(path), macs_ratio=0.7)
            continue
        _, report = prune(load(path), macs_ratio=0.7)
        assert report.extra["macs_ratio"] <= 0.7
        pruned.add(path.stem)
    assert len(pruned) >= 15


@pytest.mark.parametrize("name", ["nanodet_m_320", "ultraface_version-RFB-320"])
def test_weights_that_nobody_replaces_are_free(assets: Path, name: str) -> None:
    proto = onnx.load(assets / "models" / f"{name}.onnx")
    held = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in held]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    # One unit in the last place of NanoDet's weights changes its outputs by 1.2e-5 of their largest.
    _, report = prune(lower(proto), limit=5e-5, macs_ratio=0.7)
    assert report.extra["macs_ratio"] <= 0.7
