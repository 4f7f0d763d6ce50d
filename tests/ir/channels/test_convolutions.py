"""Convolutional networks: flattened heads, residuals, concatenation, groups, shared weights."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.channels import analyse
from graphopt.ir.lower import lower
from tests.ir.channels.support import Net, check_cut, weights

IMAGE = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("form", ["Flatten", "Reshape", "Reshape -1", "DepthToSpace", "Slice"])
def test_channels_go_through_a_flattened_head(form: str) -> None:
    """A3: the layers behind a Flatten lose the rows of each removed channel."""
    net = Net()
    value = net.add("Relu", net.conv(net.input("x", ("batch", 3, 8, 8)), 64, 3))
    rows = 64 * 64
    if form == "Flatten":
        value = net.add("Flatten", value)
    elif form == "Reshape":
        value = net.add("Reshape", value, net.constant([2, rows]))
    elif form == "Reshape -1":
        value = net.add("Reshape", value, net.constant([0, -1]))
    elif form == "DepthToSpace":
        value = net.add("Flatten", net.add("DepthToSpace", value, blocksize=2))
    else:
        rows //= 2
        value = net.add("Slice", value, net.constant([16]), net.constant([48]), net.constant([1]))
        value = net.add("Flatten", value)
    proto = net.model(net.add("Gemm", value, net.weight(rows, 10), net.weight(10)))
    cut, _ = check_cut(proto, IMAGE)
    assert weights(cut) <= 0.51 * weights(lower(proto))


def test_kernel_dims_are_no_channels() -> None:
    net = Net()
    value = net.conv(net.conv(net.input("x", (2, 3, 8, 8)), 5, 3), 4, 5)
    channels = analyse(lower(net.model(value)))
    assert [(family.name, family.size) for family in channels.families] == [("c0[0]", 5)]
    assert all(member.axis < 2 for family in channels.families for member in family.members)
