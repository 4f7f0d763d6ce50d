from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.lower import lower
from graphopt.ir.text import to_text
from tests import corpora
from tests.passes.harness import parse

if TYPE_CHECKING:
    from pathlib import Path

MODEL = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
main (float[N, 3] x, bool c, float[2] k = {1, 2}) => (float[N, 3] y, float[N, 3] z)
<float[3] w = {1, 0.5, -2}, int64[1] axes = {0}>
{
    [first] a = Mul(x, w)
    y = If (c) <
        then_branch = yes () => (float[N, 3] t) { t = Clip(a, , ) },
        else_branch = no () => (float[N, 3] e) { e = local.soft <axis = 1> (a) }
    >
    d, z = local.pair(a)
}
<domain: "local", opset_import: ["" : 17]>
soft <axis> (p) => (q) { q = Softmax <axis: int = @axis> (p) }
<domain: "local", opset_import: ["" : 17]>
pair (p) => (q, r) { q = Neg(p) r = Abs(p) }
"""

TEXT = """\
model: ir_version=8, opset {"": 17, "local": 1}
graph main(%x: f32[N,3], %c: bool[], %k: f32[2]) {
  %k = default [1,2]
  %w: f32[3] = initializer [1,0.5,-2]
  %axes: i64[1] = initializer [0]
  %a = Mul(%x, %w)  # first
  %y: f32[N,3] = If(%c)
      else_branch = graph() {
        %e: f32[N,3] = local.soft(%a) {axis=1}
        return %e
      }
      then_branch = graph() {
        %t: f32[N,3] = Clip(%a)
        return %t
      }
  %d, %z: f32[N,3] = local.pair(%a)
  return %y, %z
}
function local.pair opset {"": 17}(%p) {
  %q = Neg(%p)
  %r = Abs(%p)
  return %q, %r
}
function local.soft <axis> opset {"": 17}(%p) {
  %q = Softmax(%p) {axis=@axis}
  return %q
}
"""


def test_everything_that_is_computed_is_shown() -> None:
    text = to_text(lower(parse(MODEL.replace("Clip(a, , )", "Clip(a)"))))
    assert text == TEXT


def one_node(node: onnx.NodeProto, *tensors: onnx.TensorProto) -> str:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    return to_text(lower(helper.make_model(graph, ir_version=8, opset_imports=opsets)))


def test_omitted_inputs_and_outputs() -> None:
    node = helper.make_node("Thing", ["x", "", "x"], ["", "y"], domain="my.domain")
    assert "  _, %y: f32 = my.domain.Thing(%x, _, %x)\n" in one_node(node)


def test_attributes_in_alphabetical_order() -> None:
    node = helper.make_node(
        "Thing", ["x"], ["y"], domain="my.domain", z=0.1, s='a "b"', i=-3, f=[1.0, 2.5], e=[1], l=["p", "q"],
        t=numpy_helper.from_array(np.arange(4, dtype=np.int8).reshape(2, 2)),
    )  # fmt: skip
    expected = '{e=[1], f=[1,2.5], i=-3, l=["p","q"], s="a \\"b\\"", t=i8[2,2] [[0,1],[2,3]], z=0.1}'
    assert expected in one_node(node)


def test_large_tensors_are_hashes_that_follow_the_content() -> None:
    def text(last: float, *, weights: bool = True) -> str:
        weight = np.zeros((4, 4), np.float32)
        weight[3, 3] = last
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = lower(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
        return to_text(model, weights=weights)

    assert "%w: f32[4,4] = initializer #" in text(0)
    assert text(0) == text(0) != text(1)
    assert text(0, weights=False) == text(1, weights=False)


def test_every_tensor_type_is_printed() -> None:
    strings: Any = [b"a", b"b"]
    tensors = [
        helper.make_tensor(f"t{kind}", kind, [2], strings if kind == TensorProto.STRING else [0, 1])
        for kind in TensorProto.DataType.values()
        if kind != TensorProto.UNDEFINED
    ]
    text = one_node(helper.make_node("Neg", ["x"], ["y"]), *tensors)
    assert text.count("= initializer [") == len(tensors)
    assert '%t8: str[2] = initializer ["a","b"]' in text


def test_the_text_is_the_same_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parse(MODEL.replace("Clip(a, , )", "Clip(a)")), path)
    code = (
        "import sys; from graphopt.ir.lower import load; from graphopt.ir.text import to_text;"
        "print(to_text(load(sys.argv[1])))"
    )
    texts = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 1


@pytest.mark.slow
def test_every_model_of_the_corpora_has_a_text(tmp_path: Path) -> None:
    for path in [*corpora.onnx_wheel_models(), *corpora.feature_models(tmp_path).values()]:
        proto = onnx.load(path, load_external_data=False)
        text = to_text(lower(proto, base_dir=path.parent))
        assert text.count("\n") > len(proto.graph.node)
