"""Whole networks of many kinds: half of every exact family goes, and the result equals the masked original.

Open dims must stay open: each model also runs with other sizes than those of its first feed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from graphopt.ir.channels import analyse
from graphopt.ir.lower import lower
from tests.ir.channels import assorted, attentive, controlled, convolutional
from tests.ir.channels.support import check_cut, half
from tests.passes.harness import run_feeds, session_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ir.channels.support import Built

NETS: dict[str, tuple[Callable[[], Built], str]] = {
    # name: (builder, families as "kind of size" joined by +, sorted; ~ marks approximate ones)
    "unet": (convolutional.unet, "3 channels 16 + 3 channels 32 + channels 64"),
    "unet, resized to its skip": (convolutional.unet_resize, "channels 16 + channels 24"),
    "squeeze and excitation": (
        convolutional.se,
        "channels 16 + channels 24 + channels 4 + channels 8",
    ),
    "channel shuffle": (convolutional.shuffle, "channels 6"),
    "grouped": (convolutional.resnext, "channels 16 + channels 2 + 2 channels 4 + channels 8"),
    "inception": (
        convolutional.inception,
        "channels 12 + channels 16 + channels 5 + channels 6 + channels 7 + channels 8 + channels 9",
    ),
    "group norm by reshape": (convolutional.groupnorm, "channels 12 + channels 4 + ~channels 4"),
    "group norm": (
        lambda: convolutional.groupnorm(native=True),
        "channels 12 + channels 4 + ~channels 4",
    ),
    "shared weight": (convolutional.shared, "channels 64"),
    "opset 9": (convolutional.opset_9, "channels 16 + channels 8"),
    "padded shortcut": (convolutional.pads_channels, "2 channels 8"),
    "flips and picks": (convolutional.flips, "channels 12"),
    "GPT-2": (attentive.gpt2, "~channels 32 + 4 head_dims 8 + 2 heads 4 + 2 hidden 64"),
    "Whisper encoder": (
        attentive.whisper,
        "channels 24 + ~channels 24 + 2 head_dims 8 + heads 3 + hidden 48",
    ),
    "ViT": (attentive.vit_fused, "~channels 24 + 2 head_dims 8 + 2 heads 3 + 2 hidden 48"),
    "MobileViT": (
        attentive.mobilevit,
        "2 channels 12 + ~channels 16 + 2 head_dims 8 + heads 2",
    ),
    "LeViT": (attentive.levit, "head_dims 4 + head_dims 8 + heads 3 + hidden 24"),
    "Swin": (attentive.swin, "~channels 16 + head_dims 8 + heads 2 + hidden 10"),
    "XCiT": (attentive.xcit, "heads 3"),
    "multi-query": (attentive.mqa, "2 head_dims 6 + heads 4"),
    "Llama with GQA": (attentive.rope_gqa, "head_dims 3 + head_dims 6 + 2 heads 2"),
    "Einsum": (attentive.einsum_attention, "2 head_dims 8 + heads 3"),
    "Attention-23": (attentive.attention23, "head_dims 4 + head_dims 8 + heads 3"),
    "Attention-23 with GQA": (
        lambda: attentive.attention23(gqa=True),
        "head_dims 5 + head_dims 6 + 2 heads 2",
    ),
    "Attention-23 of rank 4": (
        lambda: attentive.attention23(gqa=True, flat=False),
        "head_dims 5 + head_dims 6 + 2 heads 2",
    ),
    "MultiHeadAttention": (
        lambda: attentive.microsoft("MultiHeadAttention"),
        "head_dims 6 + head_dims 8 + heads 4",
    ),
    "GroupQueryAttention": (lambda: attentive.microsoft("GroupQueryAttention"), "2 heads 2"),
    "packed Attention": (lambda: attentive.microsoft("Attention"), "head_dims 6 + heads 4"),
    "RotaryEmbedding": (
        lambda: attentive.microsoft("RotaryEmbedding"),
        "head_dims 4 + head_dims 8 + heads 4",
    ),
    "LSTM": (controlled.recurrent, "hidden 5 + hidden 6"),
    "GRU": (lambda: controlled.recurrent("GRU"), "hidden 5 + hidden 6"),
    "GRU, reset first": (lambda: controlled.recurrent("GRU", reset_first=True), "hidden 5 + hidden 6"),
    "RNN": (lambda: controlled.recurrent("RNN", "forward"), "hidden 5 + hidden 6"),
    "If": (controlled.if_capture, "channels 16 + channels 6"),
    "Loop": (controlled.loop, "hidden 10 + hidden 12"),
    "Scan": (controlled.scan, "hidden 12 + hidden 6"),
    "gated": (assorted.gated, "channels 16"),
    "pixel shuffle": (assorted.pixel_shuffle, "channels 6"),
    "weight norm": (assorted.weight_norm, "channels 12"),
    "YOLO": (assorted.yolo, "channels 12 + 2 channels 16 + 4 channels 8"),
    "cross-attention": (assorted.cross_attention, "2 head_dims 8 + heads 3 + 2 hidden 24"),
    "cached decoder": (assorted.cached_decoder, "hidden 24 + hidden 40"),
    "volumes": (assorted.volumes, "channels 8"),
    "spatial attention": (assorted.spatial_attention, "channels 10 + ~channels 16 + channels 4"),
    "channels last": (assorted.channels_last, "channels 10 + channels 12"),
    "excitation by reshape": (assorted.excitation_by_reshape, "channels 16 + hidden 6"),
    "Conformer": (assorted.conformer, "channels 16 + channels 24"),
    "sequence lengths": (assorted.sequence_lengths, "hidden 6"),
    "gathered": (assorted.gathered, "hidden 12"),
    "normalised embedding": (assorted.normalised_embedding, "3 channels 6 + channels 8"),
    "function": (controlled.function_call, "hidden 10 + hidden 12"),
}
# ONNX's own inference does not look into the function behind this operator.
LENIENT = {"group norm"}


@pytest.mark.parametrize("name", NETS)
def test_half_of_every_family_goes(name: str) -> None:
    build, expected = NETS[name]
    proto, feeds, others = build()
    model = lower(proto)
    channels = analyse(model)
    counts = Counter(f"{'' if f.exact else '~'}{f.kind} {f.size}" for f in channels.families)
    found = [f"{count} {text}" if count > 1 else text for text, count in counts.items()]
    assert sorted(expected.split(" + ")) == sorted(found)
    assert not [lock.unknown_op for lock in channels.locks if lock.unknown_op]
    exact = {family.name for family in channels.families if family.exact}
    everything = half(channels)
    kept = {family: units for family, units in everything.items() if family in exact}
    strict = name not in LENIENT
    if kept:
        check_cut(proto, feeds, channels=channels, kept=kept, others=others, strict=strict)
    cut = model.clone()
    channels.cut(cut, everything)
    for feed in (feeds, *others):
        whole, got = run_feeds(session_for(proto), feed), run_feeds(session_for(cut), feed)
        assert {key: value.shape for key, value in whole.items()} == {
            key: value.shape for key, value in got.items()
        }


@pytest.mark.parametrize(
    "name", ["grouped", "GPT-2", "Llama with GQA", "Attention-23 with GQA", "LSTM", "Loop"]
)
def test_each_family_goes_alone(name: str) -> None:
    proto, feeds, others = NETS[name][0]()
    channels = analyse(lower(proto))
    for family in channels.families:
        if family.exact:
            kept = {family.name: half(channels, seed=3)[family.name]}
            check_cut(proto, feeds, channels=channels, kept=kept, others=others)
