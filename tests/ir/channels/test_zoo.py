"""The architectures of the assets: no operator is unknown, and both exporters lead to the same families."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from graphopt.ir import load
from graphopt.ir.channels import analyse
from tests.corpora import zoo_model

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.ir.channels import Channels

TWINS = [("bert", "bert_d"), ("mobilenet_v3_small", "mobilenet_v3_small_d"), ("resnet50", "resnet50_d")]
# Heads, head dims and hidden units in each layer, found without a word about the model.
ATTENTION = {
    "bert": {"heads": 2, "head_dims": 4, "hidden": 2},
    "distilbert": {"heads": 2, "head_dims": 4, "hidden": 2},
    "llama_gqa_d": {"heads": 4, "head_dims": 3, "hidden": 2},
    "swin_t": {"heads": 12, "head_dims": 12, "hidden": 12},
    "timm_pvt_v2_b0": {"heads": 6, "head_dims": 8},
    "timm_coat_lite_tiny": {"heads": 12, "head_dims": 4, "hidden": 8},
    "t5enc": {"heads": 1, "head_dims": 4, "hidden": 2},
}


def _channels(assets: Path, name: str) -> Channels:
    return analyse(load(zoo_model(assets, name)))


def _profile(channels: Channels) -> Counter[tuple[object, ...]]:
    """What families are, but for the names that an exporter gave."""
    return Counter(
        (
            family.kind,
            family.size,
            family.exact,
            Counter(member.role for member in family.members)["producer"],
            Counter(member.role for member in family.members)["consumer"],
        )
        for family in channels.families
    )


@pytest.mark.slow
@pytest.mark.parametrize(("script", "dynamo"), TWINS, ids=[one for one, _ in TWINS])
def test_both_exporters_lead_to_the_same_families(assets: Path, script: str, dynamo: str) -> None:
    one, other = _channels(assets, script), _channels(assets, dynamo)
    assert _profile(one) == _profile(other)
    assert one.families


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_found_without_configuration(assets: Path, name: str) -> None:
    channels = _channels(assets, name)
    counts: Counter[str] = Counter(family.kind for family in channels.families)
    assert {kind: counts[kind] for kind in ATTENTION[name]} == ATTENTION[name]
    assert not [lock for lock in channels.locks if lock.unknown_op]
