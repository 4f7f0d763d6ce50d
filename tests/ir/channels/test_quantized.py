"""Weights behind DequantizeLinear: codes, scales and zero points are cut together."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphopt.ir.channels import analyse
from graphopt.ir.lower import lower
from tests.ir.channels.support import Net, check_cut, draw


def _codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(-100, 100, shape).astype(np.int8)


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_per_channel_go_with_the_codes(axis: int) -> None:
    net = Net(13)
    value = net.input("x", (1, 3, 8, 8))
    for read, made in ((3, 16), (16, 6)):
        size = made if axis == 0 else read
        weight = net.add(
            "DequantizeLinear",
            net.constant(_codes(made, read, 3, 3)),
            net.constant(np.linspace(0.001, 0.01, size).astype(np.float32)),
            net.constant(np.arange(size).astype(np.int8)),
            axis=axis,
        )
        bias = net.add(
            "DequantizeLinear",
            net.constant(np.arange(made, dtype=np.int32) - 3),
            net.constant(np.float32(0.1)),
        )
        value = net.add("Relu", net.add("Conv", value, weight, bias, pads=[1] * 4))
    cut, channels = check_cut(net.model(value), {"x": draw(1, 3, 8, 8)})
    assert [(family.size, family.exact) for family in channels.families] == [(16, True)]
    shapes = {
        tuple(v.const_value.shape.numpy())
        for v in cut.graph.initializers.values()
        if v.const_value is not None
    }
    assert {(8, 3, 3, 3), (6, 8, 3, 3), (8,)} <= shapes


@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_of_blocked_weights_only_whole_blocks_go(side: str) -> None:
    """A9's form: int4 codes [64, 48] with a scale for each 16 rows."""
    net = Net(21)
    value = net.linear(net.input("x", (4, 8)), 64, 8) if side == "inputs" else net.input("x", (4, 64))
    generator = np.random.default_rng(4)
    codes = generator.integers(-8, 8, (64, 48)).astype(ml_dtypes.int4)
    scales = generator.uniform(0.01, 0.1, (4, 48)).astype(np.float32)
    weight = net.add("DequantizeLinear", net.constant(codes), net.constant(scales), axis=0, block_size=16)
    proto = net.model(net.linear(net.add("MatMul", value, weight), 5, 48))
    cut, channels = check_cut(proto, {"x": draw(4, 64 if side == "outputs" else 8)})
    sizes = sorted(family.size for family in channels.families)
    # Of 64 inputs four blocks are left to remove, each of 16 at once.
    assert sizes == ([48] if side == "outputs" else [4, 48])
    packed = next(
        v for v in cut.graph.initializers.values() if v.dtype is not None and v.dtype.name == "INT4"
    )
    assert packed.const_value is not None
    assert packed.const_value.shape.numpy() == ((64, 24) if side == "outputs" else (32, 24))


def test_activations_quantised_as_a_whole_keep_their_scale() -> None:
    net = Net(13)
    value = net.conv(net.input("x", (1, 3, 8, 8)), 8, 3)
    scale, zero = net.constant(np.float32(0.05)), net.constant(np.uint8(128))
    value = net.add("DequantizeLinear", net.add("QuantizeLinear", value, scale, zero), scale, zero)
    _, channels = check_cut(net.model(net.conv(value, 4, 8)), {"x": draw(1, 3, 8, 8)})
    assert [family.size for family in channels.families] == [8]


def test_a_family_of_one_weight_in_two_precisions_is_refused_by_no_one() -> None:
    """One float bias read by a quantised and by a float layer: places of use stand apart."""
    net = Net(13)
    shared = net.constant(np.zeros(8, np.float32), "bias")
    value = net.input("x", (1, 3, 8, 8))
    codes = net.add("DequantizeLinear", net.constant(_codes(8, 3, 3, 3)), net.constant(np.float32(0.01)))
    value = net.add("Relu", net.add("Conv", value, codes, shared, pads=[1] * 4))
    value = net.add("Relu", net.add("Conv", value, net.weight(8, 8, 3, 3), shared, pads=[1] * 4))
    proto = net.model(net.conv(value, 3, 8))
    channels = analyse(lower(proto))
    assert [family.size for family in channels.families] == [8, 8]
    check_cut(proto, {"x": draw(1, 3, 8, 8)}, channels=channels)
