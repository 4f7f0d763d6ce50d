"""What the runtime makes of quantised models, against the operators that onnxruntime itself writes down."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx
import onnxruntime as ort
import pytest

from graphopt.runtime import structure
from graphopt.runtime.structure import Structure, structure_of
from tests.runtime import qdq
from tests.runtime.models import unary, write

if TYPE_CHECKING:
    from pathlib import Path


def operators(path: Path) -> Counter[str]:
    """Operators of the model that onnxruntime writes at ORT_ENABLE_ALL."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".written"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path.with_suffix(".written")).graph.node)


def read(proto: onnx.ModelProto, folder: Path) -> Structure:
    found = structure_of(write(proto, folder / "m.onnx"))
    assert found is not None
    assert found.problem == ""
    return found


def test_a_model_without_quantisation_has_none(tmp_path: Path) -> None:
    assert structure_of(write(unary(), tmp_path / "m.onnx")) is None


@pytest.mark.parametrize("relu", [False, True])
def test_a_convolution_that_the_runtime_fuses(tmp_path: Path, relu: bool) -> None:
    found = read(qdq.conv(relu=relu), tmp_path)
    assert found.quantised == {"Conv": 1}
    assert (
        found.kernels == {"QLinearConv": operators(tmp_path / "m.onnx")["QLinearConv"]} == {"QLinearConv": 1}
    )
    assert (found.integer_kernels, found.dequantize_before_compute, found.fallback) == (1, 0, 0)
    assert found.off_provider == {}


def test_a_zero_point_that_is_not_the_lowest_code_keeps_relu_and_the_convolution_float(
    tmp_path: Path,
) -> None:
    found = read(qdq.conv(relu=True, zero_point=128), tmp_path)
    assert operators(tmp_path / "m.onnx")["QLinearConv"] == 0
    assert (found.integer_kernels, found.fallbacks) == (0, {"Conv": 1})
    assert found.dequantize_before == {"Conv": 2}
    assert [(each.node, each.holds) for each in found.leftovers] == [
        ("x_dq", "activation"),
        ("w_dq", "weight"),
    ]
    assert found.fallen[0].node == "conv"
    assert "Relu behind it was not absorbed" in found.fallen[0].reason


def test_an_output_that_is_not_quantised(tmp_path: Path) -> None:
    found = read(qdq.conv(output=False), tmp_path)
    assert operators(tmp_path / "m.onnx")["QLinearConv"] == 0
    assert found.fallbacks == {"Conv": 1}
    assert found.fallen[0].reason == "what it computes is not quantised again"


def test_a_weight_that_alone_is_quantised(tmp_path: Path) -> None:
    found = read(qdq.conv(activation=False, output=False), tmp_path)
    assert operators(tmp_path / "m.onnx")["DequantizeLinear"] == 1
    assert found.dequantize_before == {"Conv": 1}
    assert found.fallbacks == {"Conv": 1}
    assert found.fallen[0].reason.startswith("only its weight is quantised")


def test_a_table_that_is_unpacked_whole_for_a_few_rows(tmp_path: Path) -> None:
    found = read(qdq.table(), tmp_path)
    assert found.dequantize_before == {"Gather": operators(tmp_path / "m.onnx")["DequantizeLinear"]}
    assert found.fallbacks == {"Gather": 1}


def test_blocks_of_four_bits_become_one_kernel(tmp_path: Path) -> None:
    found = read(qdq.matmul_4bit(), tmp_path)
    assert found.quantised == {"MatMul": 1}
    assert (
        found.kernels == {"MatMulNBits": operators(tmp_path / "m.onnx")["MatMulNBits"]} == {"MatMulNBits": 1}
    )
    assert found.fallback == 0


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(qdq.conv(), tmp_path / "m.onnx")
    monkeypatch.setattr(structure, "_LARGEST_BYTES", 10)
    found = structure_of(path)
    assert found is not None
    assert found.quantised == {"Conv": 1}
    assert "is not written out once more" in found.problem
    monkeypatch.undo()
    broken = qdq.conv()
    broken.graph.node[3].op_type = "NoSuchOperator"
    broken.graph.node[3].domain = "nobody"
    broken.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    found = structure_of(write(broken, path))
    assert found is not None
    assert found.kernels == {}
    assert "NoSuchOperator" in found.problem
