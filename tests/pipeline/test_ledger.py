"""The bytes ledger of a report: sums agree with the file, and what nothing reads is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import VerifyError
from graphopt.ir.lower import lower
from graphopt.pipeline import ledger

if TYPE_CHECKING:
    from pathlib import Path

    import onnx


def model(*, spare: bool = False) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((64, 64)).astype(np.float32), "b": np.ones(64, np.float32)}
    if spare:
        weights["spare"] = np.ones(1000, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 64])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_the_ledger_of_a_run(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(model().SerializeToString())
    result = graphopt.run(path, "quantize-weights", out=out)
    found = result.report.extra["bytes_ledger"]
    for side, file in (("before", path), ("after", out)):
        book = found[side]
        assert book["weights"] + book["graph"] == file.stat().st_size
        assert sum(book["by_dtype"].values()) == book["weights"]
        assert sum(item["bytes"] for item in book["by_initializer"]) + book["others"] == book["weights"]
        assert book["dead"] == []
    assert found["before"]["by_dtype"] == {"float": 4 * 64 * 64 + 4 * 64}
    assert found["after"]["by_dtype"]["int8"] == 64 * 64
    assert found["before"]["by_initializer"][0] == {
        "name": "w",
        "dtype": "float",
        "dims": [64, 64],
        "bytes": 4 * 64 * 64,
    }


def test_sparse_tensors_count_as_they_are_stored(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(model().SerializeToString())
    result = graphopt.run(path, "sparsify-weights{sparsity=0.9, storage=sparse}", out=out)
    book = result.report.extra["bytes_ledger"]["after"]
    kept = 410 * (4 + 8)  # of 4096 elements, each a float and an index
    assert book["by_initializer"][0]["bytes"] == kept
    assert book["by_dtype"] == {"float": kept + 4 * 64}
    assert book["weights"] + book["graph"] == out.stat().st_size


def test_text_is_counted_apart() -> None:
    proto = model()
    assert ledger.ledger(lower(proto), 1000)["metadata"] == 0
    proto.doc_string = "12345"
    proto.graph.node[0].metadata_props.add(key="k\u00e9y", value="1234")  # 4 bytes in UTF-8, and 4
    proto.graph.input[0].metadata_props.add(key="ab", value="c")
    proto.graph.initializer[0].metadata_props.add(key="d", value="e")
    assert ledger.ledger(lower(proto), 1000)["metadata"] == 5 + 8 + 3 + 2


def test_initializers_that_nothing_reads() -> None:
    spare = lower(model(spare=True))
    assert ledger.dead(spare) == {"spare": 4000}
    assert ledger.ledger(spare, 0)["dead"] == [{"name": "spare", "bytes": 4000}]
    ledger.check_dead(ledger.dead(spare), spare)
    with pytest.raises(VerifyError, match="1 initializers of 4000 bytes") as caught:
        ledger.check_dead({}, spare)
    assert "eliminate-dead" in caught.value.hint
