"""Criteria and channel rules of plugins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import graphopt
from graphopt.errors import PassFailed, ProviderError
from tests.passes.pruning.scenarios import array, captured_free, conv, info, model_of

PLUGIN = """
import numpy as np

from graphopt.hookspecs import hookimpl
from graphopt.ir.channels import ChannelRule
from graphopt.passes.pruning.criterion import Criterion


class FirstOnes(Criterion):
    def scores(self, subject):
        return [subject.size - unit for unit in range(subject.size)]


class Short(Criterion):
    def scores(self, subject):
        return [1.0]


def constrain(view):
    axes = view.axes(0)
    view.same(axes[1], view.axes(1)[0])
    view.emit(axes)


@hookimpl
def graphopt_register_criteria():
    return {"first-ones": FirstOnes, "short": Short}


@hookimpl
def graphopt_register_channel_rules():
    return {"my-scale": ChannelRule("MyScale", constrain, domain="my.ops")}
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "taste.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


def test_a_criterion_of_a_plugin(plugin: Path, tmp_path: Path) -> None:
    proto = captured_free()
    result = graphopt.run(
        saved(proto, tmp_path),
        "prune-channels{macs_ratio=0.5,criterion=first-ones}",
        local_plugins=plugin,
        validate=False,
    )
    tensor = result.model.graph.initializers["w1"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), onnx.numpy_helper.to_array(proto.graph.initializer[0])[:16])


def test_a_criterion_of_the_wrong_size_is_named(plugin: Path, tmp_path: Path) -> None:
    with pytest.raises(PassFailed, match=r"criterion 'short' gave numbers of shape \[1\].*expected 32"):
        graphopt.run(
            saved(captured_free(), tmp_path),
            "prune-channels{macs_ratio=0.5,criterion=short}",
            local_plugins=plugin,
        )


def test_a_rule_for_a_custom_operator(plugin: Path, tmp_path: Path) -> None:
    proto = model_of(
        [conv("x", "w1", "c1"), conv("c1", "w2", "y")],
        [info("x", [1, 3, 6, 6])],
        [info("y", [1, 4, 6, 6])],
        {"w1": array(32, 3, 3, 3), "w2": array(4, 32, 3, 3, seed=1)},
    )
    proto.graph.node[1].input[0] = "s1"
    scale = helper.make_node("MyScale", ["c1", "s"], ["s1"], domain="my.ops", name="scale")
    proto.graph.node.insert(1, scale)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array(32, seed=2, fan_in=1), "s"))
    proto.graph.value_info.append(info("s1", [1, 32, 6, 6]))
    proto.opset_import.append(helper.make_opsetid("my.ops", 1))
    path = saved(proto, tmp_path)
    with pytest.raises(ProviderError, match=r"MyScale.*oracle=false"):
        graphopt.run(path, "prune-channels{macs_ratio=0.5}", local_plugins=plugin)
    result = graphopt.run(
        path, "prune-channels{macs_ratio=0.5,oracle=false}", local_plugins=plugin, validate=False
    )
    sizes = {name: value.const_value.size for name, value in result.model.graph.initializers.items()}  # type: ignore[union-attr]  # initializers have content
    assert sizes == {"w1": 16 * 27, "w2": 4 * 16 * 9, "s": 16}
