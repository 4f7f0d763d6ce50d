"""The GraphSurgeon bridge: what a script leaves alone survives, what it changes arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import PassFailed
from graphopt.ir.emit import emit
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.graphsurgeon import run_graphsurgeon
from graphopt.ir.lower import load, lower
from tests import families
from tests.canonical import canonical

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAMILIES: dict[str, Callable[[], onnx.ModelProto]] = {
    builder.__name__: builder
    for builder in (
        families.branches,
        families.loops,
        families.functions,
        families.docs_and_metadata,
        families.quantization_annotations,
        families.low_precision,
        families.sparse,
        families.inputs_with_defaults,
        families.symbolic_shapes,
        families.graph_edges,
        families.types_and_attributes,
        families.devices,
        families.old_function_infos,
        families.spelled_out_domain,
    )
}


def leave(graph: gs.Graph) -> None:
    """A script that does nothing."""


def read_all(graph: gs.Graph) -> None:
    """A script that reads every weight, in every graph, and changes none."""
    for each in [graph, *graph.subgraphs(recursive=True)]:
        for tensor in each.tensors().values():
            if isinstance(tensor, gs.Constant):
                tensor.values.sum() if tensor.values.dtype != object else len(tensor.values)


def return_copy(graph: gs.Graph) -> gs.Graph:
    """A script that works on a copy, as some do."""
    return graph.copy()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("script", [leave, read_all])
def test_untouched_models_come_back_unchanged(name: str, script: Callable[[gs.Graph], None]) -> None:
    model = lower(FAMILIES[name]())
    before, mark = canonical(emit(model)), fingerprint(model)
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    run_graphsurgeon(model, script)
    assert canonical(emit(model)) == before
    assert fingerprint(model) == mark
    for key, tensor in tensors.items():
        assert model.graph.initializers[key].const_value is tensor


def chain() -> onnx.ModelProto:
    """x [N,4] -> MatMul(w) -> Add(b) -> Relu -> y, with metadata on the MatMul."""
    weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul"),
        helper.make_node("Add", ["m", "b"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    nodes[0].metadata_props.add(key="origin", value="layer1")
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(4, np.float32), "b")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    model.metadata_props.add(key="author", value="someone")
    return model


def execute(proto: onnx.ModelProto, **feeds: Any) -> list[Any]:
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


X = np.arange(8, dtype=np.float32).reshape(2, 4)
WEIGHT = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)


def test_an_inserted_node_runs_and_the_rest_keeps_its_metadata() -> None:
    def script(graph: gs.Graph) -> None:
        matmul = graph.nodes[0]
        scaled = gs.Variable("scaled", np.float32, ["N", 4])
        scale = gs.Constant("scale", np.array([2.0], np.float32))
        # appended last on purpose: the bridge sorts
        graph.nodes[1].inputs[0] = scaled
        graph.nodes.append(gs.Node("Mul", "double", inputs=[matmul.outputs[0], scale], outputs=[scaled]))

    model = lower(chain())
    counts = run_graphsurgeon(model, script)
    assert (counts.nodes_added, counts.nodes_removed, counts.tensors_changed) == (1, 0, 1)
    proto = emit(model)
    assert [node.name for node in proto.graph.node] == ["matmul", "double", "add", "relu"]
    assert [(p.key, p.value) for p in proto.graph.node[0].metadata_props] == [("origin", "layer1")]
    assert [(p.key, p.value) for p in proto.metadata_props] == [("author", "someone")]
    np.testing.assert_allclose(execute(proto, x=X)[0], np.maximum(2 * X @ WEIGHT + 1, 0), rtol=1e-6)


def test_a_changed_weight_arrives_and_the_other_is_the_same_object() -> None:
    model = lower(chain())
    bias = model.graph.initializers["b"].const_value

    def script(graph: gs.Graph) -> None:
        graph.tensors()["w"].values[:] *= 2  # in place, as scripts do

    counts = run_graphsurgeon(model, script)
    assert counts.tensors_changed == 1
    assert model.graph.initializers["b"].const_value is bias
    np.testing.assert_allclose(execute(emit(model), x=X)[0], np.maximum(2 * X @ WEIGHT + 1, 0), rtol=1e-6)


def test_the_snapshot_of_the_manager_is_safe_from_in_place_edits() -> None:
    model = lower(chain())
    snapshot = model.clone()
    before = canonical(emit(snapshot))
    run_graphsurgeon(model, lambda graph: graph.tensors()["w"].values.fill(0))
    assert canonical(emit(snapshot)) == before


def test_fusing_two_nodes_into_gemm() -> None:
    def script(graph: gs.Graph) -> gs.Graph:
        matmul, add = graph.nodes[:2]
        gemm = gs.Node("Gemm", "gemm", inputs=[*matmul.inputs, add.inputs[1]], outputs=[add.outputs[0]])
        add.outputs.clear()
        graph.nodes.append(gemm)
        return graph.cleanup().toposort()

    model = lower(chain())
    counts = run_graphsurgeon(model, script)
    assert (counts.nodes_added, counts.nodes_removed) == (1, 2)
    proto = emit(model)
    assert [node.op_type for node in proto.graph.node] == ["Gemm", "Relu"]
    np.testing.assert_allclose(execute(proto, x=X)[0], np.maximum(X @ WEIGHT + 1, 0), rtol=1e-6)


def test_cutting_the_model_short_drops_what_nothing_needs() -> None:
    def script(graph: gs.Graph) -> None:
        graph.outputs = [graph.tensors()["m"].to_variable(np.float32, ["N", 4])]
        graph.cleanup()

    model = lower(chain())
    run_graphsurgeon(model, script)
    proto = emit(model)
    assert [node.name for node in proto.graph.node] == ["matmul"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["w"]
    np.testing.assert_allclose(execute(proto, x=X)[0], X @ WEIGHT, rtol=1e-6)


def test_a_copied_graph_finds_its_origins_by_name() -> None:
    model = lower(chain())
    before = canonical(emit(model))
    run_graphsurgeon(model, return_copy)
    assert canonical(emit(model)) == before


def test_opset_and_dims_set_by_a_script_are_meant() -> None:
    def script(graph: gs.Graph) -> None:
        graph.opset = 20
        for tensor in (*graph.inputs, *graph.outputs):
            tensor.shape = [3, 4]

    model = lower(chain())
    run_graphsurgeon(model, script)
    proto = emit(model)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 20)]
    assert [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [3, 4]


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.int4]
)
def test_edits_of_low_precision_weights_keep_their_type(dtype: Any) -> None:
    values = np.arange(6).astype(dtype)
    # the exporter of onnx packs int4 itself
    tensor = numpy_helper.from_array(values, "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "low",
        [],
        [helper.make_tensor_value_info("y", tensor.data_type, [6])],
        [tensor],
    )
    model = lower(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]))

    def script(surgeon: gs.Graph) -> None:
        constant = surgeon.tensors()["w"]
        constant.values = (constant.values.astype(np.float32) + 1).astype(dtype)

    run_graphsurgeon(model, script)
    result = emit(model).graph.initializer[0]
    assert result.data_type == tensor.data_type
    np.testing.assert_array_equal(
        numpy_helper.to_array(result).astype(np.float32), (np.arange(6) + 1).astype(dtype).astype(np.float32)
    )


def test_weights_of_branches_can_be_changed() -> None:
    model = lower(families.branches())
    touched: list[str] = []

    def script(graph: gs.Graph) -> None:
        for inner in graph.subgraphs(recursive=True):
            for name, tensor in inner.tensors().items():
                if (
                    isinstance(tensor, gs.Constant)
                    and tensor.values.dtype == np.float32
                    and name not in touched
                ):
                    tensor.values = tensor.values * 3
                    touched.append(name)

    before = emit(model)
    run_graphsurgeon(model, script)
    assert touched
    onnx.checker.check_model(emit(model))
    assert canonical(emit(model)) != canonical(before)


def test_a_new_function_can_be_added_and_called() -> None:
    def script(graph: gs.Graph) -> None:
        inner, outer = gs.Variable("A"), gs.Variable("B")
        function = gs.Function(
            "Negate", domain="acme", nodes=[gs.Node("Neg", inputs=[inner], outputs=[outer])],
            inputs=[inner], outputs=[outer], opset=18,
        )  # fmt: skip
        graph.functions.append(function)
        relu = graph.nodes[-1]
        middle = gs.Variable("middle", np.float32, ["N", 4])
        relu.inputs[0], source = middle, relu.inputs[0]
        graph.nodes.append(gs.Node("Negate", "call", inputs=[source], outputs=[middle], domain="acme"))

    model = lower(chain())
    run_graphsurgeon(model, script)
    proto = emit(model)
    np.testing.assert_allclose(execute(proto, x=X)[0], np.maximum(-(X @ WEIGHT + 1), 0), rtol=1e-6)


def wrong_return(graph: gs.Graph) -> Any:
    return graph.nodes


def dangling(graph: gs.Graph) -> None:
    graph.nodes[0].inputs[0] = gs.Variable("nowhere", np.float32, [4])


def twice(graph: gs.Graph) -> None:
    graph.nodes.append(gs.Node("Neg", inputs=[graph.inputs[0]], outputs=[gs.Variable("m")]))


def clash(graph: gs.Graph) -> None:
    graph.nodes[1].inputs[1] = gs.Constant("w", np.zeros(4, np.float32))


def cycle(graph: gs.Graph) -> None:
    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]


def odd_attribute(graph: gs.Graph) -> None:
    graph.nodes[2].attrs["odd"] = object()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (wrong_return, "expected an onnx_graphsurgeon.Graph"),
        (dangling, "nothing produces"),
        (twice, "produced twice"),
        (clash, "two different constants"),
        (cycle, "cycle"),
        (odd_attribute, "odd"),
    ],
)
def test_a_broken_graph_is_refused_and_the_model_stays(script: Callable[[gs.Graph], Any], words: str) -> None:
    model = lower(chain())
    store = model.store
    with pytest.raises(PassFailed, match=words):
        run_graphsurgeon(model, script)
    assert model.store is store


@pytest.mark.slow
@pytest.mark.parametrize("copy", [False, True])
def test_real_models_come_back_unchanged(assets: Path, *, copy: bool) -> None:
    for path in sorted((assets / "models").glob("*.onnx")):
        model = load(path)
        before, mark = emit(model).SerializeToString(deterministic=True), fingerprint(model)
        run_graphsurgeon(model, return_copy if copy else leave)
        assert fingerprint(model) == mark, path.name
        assert emit(model).SerializeToString(deterministic=True) == before, path.name
