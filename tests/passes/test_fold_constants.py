"""fold-constants, judged by onnxruntime, numpy and golden texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.emit import emit
from graphopt.passes.fold_constants import FoldConstants
from tests.passes.harness import apply, assert_golden, assert_same_function, build, op_types, parse
from tests.work import growth

if TYPE_CHECKING:
    from graphopt.ir import Model

PASS = FoldConstants()


def int64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def contents(model: Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def _size(model: onnx.ModelProto | Model) -> int:
    return int((model if isinstance(model, onnx.ModelProto) else emit(model)).ByteSize())


# --- idioms -----------------------------------------------------------------------------------------------

RESHAPE_IDIOM = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[batch, seq, 768] x) => (float[batch, seq, 12, 64] y)
<int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[2] tail = {12, 64}>
{
    shape = Shape (x)
    batch = Gather <axis = 0> (shape, zero)
    seq = Gather <axis = 0> (shape, one)
    batches = Unsqueeze (batch, first)
    seqs = Unsqueeze (seq, first)
    target = Concat <axis = 0> (batches, seqs, tail)
    y = Reshape (x, target)
}
"""

EXPAND_IDIOM = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[batch, 3, 4] x) => (float[batch, 3, 4] y)
<int64[3] minus = {-1, -1, -1}, int64 filler = {1}, int64[1] three = {3}, float[1] two = {2}>
{
    asked = Constant <value_ints = [-1, -1, -1]> ()
    ones = ConstantOfShape <value = int64[1] {1}> (three)
    is_kept = Equal (asked, minus)
    shape = Shape (x)
    wanted = Where (is_kept, shape, ones)
    same = Expand (x, wanted)
    y = Mul (same, two)
}
"""


def test_shape_gather_concat_reshape() -> None:
    before = parse(RESHAPE_IDIOM)
    after, report = apply(PASS, before)
    assert_golden("fold-constants", "reshape-idiom", before, after, report)
    assert op_types(after) == ["Reshape"]
    for batch, seq in ((2, 5), (1, 1), (0, 5), (3, 0)):
        assert_same_function(before, after, dims={"batch": batch, "seq": seq})


def test_expand_of_where_of_equal() -> None:
    before = parse(EXPAND_IDIOM)
    after, report = apply(PASS, before)
    assert_golden("fold-constants", "expand-idiom", before, after, report)
    assert op_types(after) == ["Mul"]
    for batch in (2, 1, 0):
        assert_same_function(before, after, dims={"batch": batch})


def test_static_shapes_die_whole() -> None:
    after, _ = apply(PASS, parse(RESHAPE_IDIOM.replace("float[batch, seq", "float[2, 5")))
    assert op_types(after) == ["Reshape"]
    target = after.graph.node(0).inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [2, 5, 12, 64]


def test_one_dynamic_dim_is_inferred_beside_positive_numbers() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "last"], ["n"], axis=0),
        helper.make_node("Concat", ["head", "n"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"], allowzero=1),
    ]
    before = build(
        nodes,
        {"x": (1, [3, 4, "n"])},
        {"y": (1, [12, "n"])},
        {"last": int64(2), "head": int64(12)},
    )
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Reshape"]
    for n in (5, 1, 0):
        assert_same_function(before, after, dims={"n": n})


def test_two_dims_of_which_one_may_be_empty_stay_computed() -> None:
    # [batch, 64 * n] from [batch, 8, 8, n]: [0, -1] would be refused by the runtime for batch = 0.
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "i0", "i1"], ["b"]),
        helper.make_node("Slice", ["s", "i3", "i4"], ["n"]),
        helper.make_node("Mul", ["n", "k"], ["m"]),
        helper.make_node("Concat", ["b", "m"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    constants = {"i0": int64(0), "i1": int64(1), "i3": int64(3), "i4": int64(4), "k": int64(64)}
    before = build(nodes, {"x": (1, ["batch", 8, 8, "n"])}, {"y": (1, ["p", "q"])}, constants)
    after, _ = apply(PASS, before)
    for batch, n in ((2, 3), (0, 3), (1, 1)):
        assert_same_function(before, after, dims={"batch": batch, "n": n})


@pytest.mark.parametrize("allowzero", [0, 1])
def test_reshape_keeps_its_meaning_of_zero(allowzero: int) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], end=1),
        helper.make_node("Concat", ["s", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"], allowzero=allowzero),
    ]
    before = build(
        nodes, {"x": (1, ["n", 0, 4])}, {"y": (1, ["p", "q", "r"][: 3 - allowzero])}, {"rest": int64(0, 2)}
    )
    if not allowzero:
        before.graph.initializer[0].CopyFrom(numpy_helper.from_array(int64(0, 4), "rest"))
    after, _ = apply(PASS, before)
    for n in (3, 0):
        assert_same_function(before, after, dims={"n": n})


def test_slice_to_the_end_of_a_dynamic_dim() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["n"], axis=0),
        helper.make_node("Slice", ["x", "start", "n", "one"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [2, "n"])}, {"y": (1, [2, "m"])}, {"one": int64(1), "start": int64(2)})
    after, report = apply(PASS, before)
    assert op_types(after) == ["Slice"]
    assert report.counts["targets_simplified"] == 1
    for n in (5, 2, 1, 0):
        assert_same_function(before, after, dims={"n": n})


def test_bound_dims_are_not_folded_in() -> None:
    before = parse(RESHAPE_IDIOM)
    after, _ = apply(PASS, before, dims={"batch": 2, "seq": 5})
    assert_same_function(before, after, dims={"batch": 3, "seq": 7})
    assert [dim for dim in emit(after).graph.input[0].type.tensor_type.shape.dim if dim.dim_param]


# --- what is folded ---------------------------------------------------------------------------------------


def test_float_arithmetic_has_the_runtimes_bits() -> None:
    generator = np.random.default_rng(3)
    a = (generator.standard_normal(24) * 10.0 ** generator.integers(-20, 20, 24)).astype(np.float32)
    b = (generator.standard_normal(24) * 10.0 ** generator.integers(-20, 20, 24)).astype(np.float32)
    nodes, outputs = [], {}
    for op in ("Add", "Sub", "Mul", "Div"):
        nodes.append(helper.make_node(op, ["a", "b"], [f"{op}_v"]))
        nodes.append(helper.make_node("Add", [f"{op}_v", "x"], [f"{op}_y"]))
        outputs[f"{op}_y"] = (1, [24])
    for op in ("Exp", "Tanh", "Erf", "Sqrt", "Softmax", "Abs", "Ceil", "Floor", "Neg", "Round", "Sigmoid"):
        nodes.append(helper.make_node(op, ["a"], [f"{op}_v"]))
        nodes.append(helper.make_node("Mul", [f"{op}_v", "x"], [f"{op}_y"]))
        outputs[f"{op}_y"] = (1, [24])
    before = build(nodes, {"x": (1, [24])}, outputs, {"a": a, "b": b})
    after, report = apply(PASS, before)
    assert report.counts["folded"] == 15
    assert len(op_types(after)) == 15
    assert_same_function(before, after, {"x": np.ones(24, np.float32)}, {"x": np.full(24, -0.1, np.float32)})


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.int8])
def test_integer_arithmetic_has_the_runtimes_bits(dtype: type[np.integer[Any]]) -> None:
    a = np.array([7, -7, 100, 3, 0] if np.dtype(dtype).kind == "i" else [7, 200, 100, 3, 0], dtype)
    b = np.array([3, 3, 100, 5, 2], dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, outputs = [], {}
    for op in ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"):
        nodes.append(helper.make_node(op, ["a", "b"], [f"{op}_v"]))
        nodes.append(helper.make_node("Concat", [f"{op}_v", "x"], [f"{op}_y"], axis=0))
        outputs[f"{op}_y"] = (kind, [6])
    before = build(nodes, {"x": (kind, [1])}, outputs, {"a": a, "b": b})
    after, _ = apply(PASS, before)
    assert set(op_types(after)) == {"Concat"}
    assert_same_function(before, after)


def test_division_by_zero_is_left_alone() -> None:
    nodes = [helper.make_node("Div", ["a", "b"], ["q"]), helper.make_node("Add", ["q", "x"], ["y"])]
    before = build(nodes, {"x": (7, [2])}, {"y": (7, [2])}, {"a": int64(1, 2), "b": int64(0, 1)})
    after, report = apply(PASS, before)
    assert op_types(after) == ["Div", "Add"]
    assert not report.changed
    assert "division" in report.skipped[0][1]


def test_one_session_for_operators_that_numpy_is_not_asked_for() -> None:
    nodes = [
        helper.make_node("Erf", ["a"], ["e"]),
        helper.make_node("Softmax", ["e"], ["p"], axis=0),
        helper.make_node("MatMul", ["p", "p"], ["d"]),
        helper.make_node("Mul", ["x", "d"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [2])}, {"y": (1, [2])}, {"a": np.array([0.1, 0.7], np.float32)})
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Mul"]
    assert_same_function(before, after)


def test_operator_that_the_runtime_lacks_uses_the_reference() -> None:
    # onnxruntime's CPU provider has no kernel for BitwiseNot of uint64 sequences, but has none either for
    # Mod with bfloat16; whichever way it is computed, the result must be numpy's.
    a = np.array([5.5, 7.25], ml_dtypes.bfloat16)
    b = np.array([2.0, 2.0], ml_dtypes.bfloat16)
    nodes = [
        helper.make_node("Mod", ["a", "b"], ["m"], fmod=1),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [2])}, {"y": (1, [2])})
    before.graph.initializer.extend(
        helper.make_tensor(name, TensorProto.BFLOAT16, [2], array.tobytes(), raw=True)
        for name, array in (("a", a), ("b", b))
    )
    after, report = apply(PASS, before)
    if op_types(after) == ["Add"]:
        assert contents(after, "f").tolist() == [1.5, 1.25]
    else:
        assert report.skipped


def test_names_and_outputs_survive() -> None:
    nodes = [
        helper.make_node("Add", ["a", "a"], ["twice"]),
        helper.make_node("Mul", ["twice", "x"], ["y"]),
        helper.make_node("Sub", ["a", "a"], ["nothing"]),
    ]
    before = build(
        nodes, {"x": (1, [2])}, {"y": (1, [2]), "nothing": (1, [2])}, {"a": np.ones(2, np.float32)}
    )
    after, report = apply(PASS, before)
    assert contents(after, "twice").tolist() == [2, 2]
    assert [value.name for value in after.graph.outputs] == ["y", "nothing"]
    assert sorted(op_types(after)) == ["Identity", "Mul"]
    assert_same_function(before, after)
    again, second = apply(PASS, after)
    assert not second.changed
    assert sorted(op_types(again)) == ["Identity", "Mul"]
    del report


def test_what_an_annotation_names_stays() -> None:
    nodes = [
        helper.make_node("Add", ["scale", "scale"], ["twice"]),
        helper.make_node("Mul", ["twice", "x"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [1])}, {"y": (1, [1])}, {"scale": np.ones(1, np.float32)})
    annotation = before.graph.quantization_annotation.add()
    annotation.tensor_name = "x"
    entry = annotation.quant_parameter_tensor_names.add()
    entry.key, entry.value = "SCALE_TENSOR", "scale"
    after, _ = apply(PASS, before)
    assert sorted(after.graph.initializers) == ["scale", "twice"]
    assert emit(after).graph.quantization_annotation == before.graph.quantization_annotation


def test_equal_small_results_are_stored_once() -> None:
    nodes = []
    for k in range(20):
        nodes.append(helper.make_node("Add", ["a", "b"], [f"c{k}"]))
        nodes.append(helper.make_node("Mul", [f"c{k}", "x" if not k else f"y{k - 1}"], [f"y{k}"]))
    constants = {"a": np.full(8, 0.5, np.float32), "b": np.full(8, 0.25, np.float32)}
    before = build(nodes, {"x": (1, [8])}, {"y19": (1, [8])}, constants)
    after, _ = apply(PASS, before)
    assert len(after.graph.initializers) == 1
    assert _size(after) < _size(before)
    assert_same_function(before, after)


def folding(count: int) -> Callable[[], object]:
    nodes = [helper.make_node("Add", ["a", "a"], ["c0"])]
    nodes += [helper.make_node("Add", [f"c{k - 1}", "a"], [f"c{k}"]) for k in range(1, count)]
    nodes.append(helper.make_node("Mul", [f"c{count - 1}", "x"], ["y"]))
    model = build(nodes, {"x": (7, [1])}, {"y": (7, [1])}, {"a": int64(1)})

    def fold() -> None:
        after, _ = apply(PASS, model, check=False)
        assert contents(after, f"c{count - 1}").tolist() == [count + 1]

    return fold


def test_chains_fold_in_linear_time() -> None:
    assert growth(folding, 200, 2000) < 1.2


# --- what is left alone -----------------------------------------------------------------------------------


def test_overridable_initializers_are_not_constants() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Mul", ["c", "x"], ["y"])]
    constants = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    before = build(nodes, {"x": (1, [2]), "a": (1, [2])}, {"y": (1, [2])}, constants)
    after, report = apply(PASS, before)
    assert not report.changed
    assert op_types(after) == ["Add", "Mul"]


def test_random_and_unknown_operators() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["a"], ["r"]),
        helper.make_node("Bernoulli", ["a"], ["q"]),
        helper.make_node("Mystery", ["a"], ["m"], domain="acme"),
        helper.make_node("Sum", ["r", "q", "m", "x"], ["y"]),
    ]
    before = build(
        nodes,
        {"x": (1, [2])},
        {"y": (1, [2])},
        {"a": np.ones(2, np.float32)},
        imports=[helper.make_opsetid("acme", 1)],
    )
    _, report = apply(PASS, before)
    assert not report.changed


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("ConstantOfShape", ["big"], {}),
        ("Expand", ["one", "big"], {}),
        ("Tile", ["square", "big"], {}),
        ("Range", ["start", "limit", "step"], {}),
        ("OneHot", ["indices", "depth", "values"], {}),
    ],
)
@pytest.mark.parametrize("weights", [0, 1 << 18])
def test_large_results_of_nothing_are_not_stored(
    op: str, inputs: list[str], attributes: dict[str, Any], weights: int
) -> None:
    constants = {
        "big": int64(128, 128),
        "one": np.ones(1, np.float32),
        "square": np.ones((1, 1), np.float32),
        "start": np.array(0, np.int64),
        "limit": np.array(10_000, np.int64),
        "step": np.array(1, np.int64),
        "indices": np.arange(64, dtype=np.int64),
        "depth": int64(128),
        "values": np.array([0, 1], np.float32),
        "weights": np.zeros(max(1, weights), np.float32),
    }
    kind = 7 if op == "Range" else 1
    nodes = [
        helper.make_node(op, inputs, ["large"], **attributes),
        helper.make_node("ReduceSum", ["large", "axes"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["f"], to=1),
        helper.make_node("Add", ["f", "x"], ["z"]),
        helper.make_node("Add", ["z", "weights"], ["y"]),
        helper.make_node("Add", ["large", "t"], ["used"]),
    ]
    constants["axes"] = np.zeros(0, np.int64)
    used = {name: constants[name] for name in (*inputs, "weights", "axes")}
    rank = {"Range": 1}.get(op, 2)
    outputs = {"y": (1, ["p"]), "used": (kind, ["q", "r"][:rank])}
    before = build(nodes, {"x": (1, [1]), "t": (kind, [1])}, outputs, used)
    after, report = apply(PASS, before)
    assert op in op_types(after)
    assert _size(after) <= _size(before)
    assert any("max_growth_bytes" in reason for _, reason in report.skipped)
    grown, _ = apply(PASS, before, max_growth_bytes=1 << 20)
    assert op not in op_types(grown)
    assert_same_function(before, grown)


def test_compressed_weights_stay_compressed() -> None:
    generator = np.random.default_rng(0)
    constants = {
        "codes": generator.integers(0, 16, (64, 64)).astype(np.uint8),
        "book": generator.standard_normal(16).astype(np.float32),
        "q": generator.integers(-127, 127, (64, 64)).astype(np.int8),
        "scale": np.array(0.1, np.float32),
        "half": generator.standard_normal((64, 64)).astype(np.float16),
        "like": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["codes"], ["indices"], to=TensorProto.INT32),
        helper.make_node("Gather", ["book", "indices"], ["w1"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w2"]),
        helper.make_node("CastLike", ["half", "like"], ["w3"]),
        helper.make_node("Sum", ["x", "w1", "w2", "w3"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [64, 64])}, {"y": (1, [64, 64])}, constants)
    after, report = apply(PASS, before)
    assert not report.changed
    assert op_types(after) == ["Cast", "Gather", "DequantizeLinear", "CastLike", "Sum"]
    reasons = " ".join(reason for _, reason in report.skipped)
    assert "quantised" in reasons
    assert "narrow" in reasons
    assert "stored" in reasons or "store" in reasons


@pytest.mark.parametrize("place", ["initializer", "Constant node"])
def test_sparse_constants_stay_sparse(place: str) -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1, 2], np.float32), "s"),
        numpy_helper.from_array(int64(5, 77), "places"),
        [64, 64],
    )
    nodes = [
        helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    if place == "Constant node":
        nodes.insert(0, helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    before = build(nodes, {"x": (1, [1, 64])}, {"y": (1, [1, 64])})
    if place == "initializer":
        before.graph.sparse_initializer.append(sparse)
    after, report = apply(PASS, before)
    assert not report.changed
    assert op_types(after)[-2:] == ["Transpose", "MatMul"]
    assert "sparse" in report.skipped[0][1]


def test_what_cannot_be_computed_is_named_and_the_rest_folds() -> None:
    nodes = [
        helper.make_node("Gather", ["a", "beyond"], ["lost"]),
        helper.make_node("Exp", ["a"], ["found"]),
        helper.make_node("Add", ["found", "lost"], ["sum"]),
        helper.make_node("Add", ["sum", "x"], ["z"]),
        helper.make_node("Mul", ["z", "found"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [2])}, {"y": (1, [2])}, {"a": np.ones(2, np.float32), "beyond": int64(7)})
    after, report = apply(PASS, before)
    assert sorted(op_types(after)) == ["Add", "Add", "Gather", "Mul"]
    assert any(where.startswith("Gather") and "cannot be evaluated" in why for where, why in report.skipped)


def test_an_opset_beyond_the_runtime_is_a_reason() -> None:
    import onnx.defs
    import onnxruntime as ort

    newest = onnx.defs.onnx_opset_version()
    nodes = [helper.make_node("Exp", ["a"], ["e"]), helper.make_node("Add", ["e", "x"], ["y"])]
    constants = {"a": np.ones(2, np.float32)}
    before = build(
        nodes, {"x": (1, [2])}, {"y": (1, [2])}, constants, opset=newest, ir_version=onnx.IR_VERSION
    )
    after, report = apply(PASS, before)
    if op_types(after) != ["Add"]:
        assert not report.changed
        assert ort.__version__ in report.skipped[0][1]


def test_scenario_a8_a_palette_keeps_its_size() -> None:
    generator = np.random.default_rng(0)
    constants = {
        "codes": generator.integers(0, 16, (1024, 1024)).astype(np.uint8),
        "book": generator.standard_normal(16).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["codes"], ["indices"], to=TensorProto.INT32),
        helper.make_node("Gather", ["book", "indices"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [1, 1024])}, {"y": (1, [1, 1024])}, constants)
    after, _ = apply(PASS, before)
    assert _size(after) <= 0.26 * 4 * 1024 * 1024
    assert_same_function(before, after)


def test_a_weight_that_others_read_is_not_stored_twice() -> None:
    table = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "head"], ["y"]),
    ]
    before = build(nodes, {"tokens": (7, [3])}, {"y": (1, [3, 50])}, {"table": table})
    after, report = apply(PASS, before)
    assert not report.changed
    assert "Transpose" in op_types(after)


def test_a_weight_of_its_own_is_replaced() -> None:
    weight = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("Split", ["turned"], ["left", "right"], num_outputs=2, axis=1),
        helper.make_node("MatMul", ["x", "left"], ["a"]),
        helper.make_node("MatMul", ["x", "right"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [3, 40])}, {"y": (1, [3, 25])}, {"weight": weight})
    after, _ = apply(PASS, before)
    assert op_types(after) == ["MatMul", "MatMul", "Add"]
    assert sorted(after.graph.initializers) == ["left", "right"]
    assert _size(after) <= _size(before)
    assert_same_function(before, after)


def test_slices_of_one_weight_replace_it_together() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 30, 20)).astype(np.float32)
    nodes = []
    for k in range(3):
        nodes.append(helper.make_node("Gather", ["weight", f"i{k}"], [f"w{k}"]))
        nodes.append(helper.make_node("MatMul", ["x" if not k else f"y{k - 1}", f"w{k}"], [f"z{k}"]))
        nodes.append(helper.make_node("MatMul", [f"z{k}", "back"], [f"y{k}"]))
    constants = {"weight": weight, "back": np.ones((20, 30), np.float32) / 30}
    constants |= {f"i{k}": np.array(k, np.int64) for k in range(3)}
    before = build(nodes, {"x": (1, [2, 30])}, {"y2": (1, [2, 30])}, constants)
    after, _ = apply(PASS, before)
    assert "Gather" not in op_types(after)
    assert "weight" not in after.graph.initializers
    assert _size(after) <= _size(before)
    assert_same_function(before, after)


# --- data types -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "INT4", "UINT4", "FLOAT16"])
def test_low_precision_is_moved_bit_by_bit(kind: str) -> None:
    number = getattr(TensorProto, kind)
    values = np.array([[1, 0, 3], [2, 1, 0]], np.float32).astype(helper.tensor_dtype_to_np_dtype(number))
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [3, 2])}, {"y": (1, [3, 2])}, {"w": values}, opset=23)
    after, _ = apply(PASS, before)
    x = np.zeros((3, 2), np.float32)
    from tests.passes.harness import run_feeds, session_for

    assert run_feeds(session_for(after), {"x": x})["y"].tolist() == values.T.astype(np.float32).tolist()


def test_strings_survive() -> None:
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["c"], axis=0),
        helper.make_node("Equal", ["c", "x"], ["y"]),
    ]
    before = build(nodes, {"x": (8, [3])}, {"y": (9, [3])})
    texts = {"a": ["u", "ü"], "b": [""]}
    before.graph.initializer.extend(
        numpy_helper.from_array(np.array(text, object), name) for name, text in texts.items()
    )
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Equal"]
    assert_same_function(before, after, {"x": np.array(["u", "ü", "z"], object)})


def test_zero_sized_constants() -> None:
    nodes = [
        helper.make_node("Concat", ["empty", "empty"], ["c"], axis=0),
        helper.make_node("Concat", ["c", "x"], ["y"], axis=0),
    ]
    before = build(nodes, {"x": (1, [2, 3])}, {"y": (1, [2, 3])}, {"empty": np.zeros((0, 3), np.float32)})
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Concat"]
    assert_same_function(before, after)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21, 24])
def test_every_opset(opset: int) -> None:
    if opset < 13:
        unsqueeze = helper.make_node("Unsqueeze", ["a"], ["u"], axes=[0])
    else:
        unsqueeze = helper.make_node("Unsqueeze", ["a", "axes"], ["u"])
    nodes = [
        unsqueeze,
        helper.make_node("Exp", ["u"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["y"]),
    ]
    constants = {"a": np.array([0.5, 1], np.float32), "axes": int64(0)}
    before = build(nodes, {"x": (1, [1, 2])}, {"y": (1, [1, 2])}, constants, opset=opset, ir_version=8)
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Add"]
    assert_same_function(before, after)


@pytest.mark.parametrize(("start", "end"), [(-10, -20), (-6, -7), (10, -20), (-1, -6), (3, -10)])
@pytest.mark.parametrize("step", [-1, -2])
def test_slices_backwards_clamp_as_onnx_does(start: int, end: int, step: int) -> None:
    """A start in front of the first element means the first, where Python's slices take nothing."""
    nodes = [
        helper.make_node("Slice", ["c", "start", "end", "axis", "step"], ["k"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Add", ["k", "s"], ["y"]),
    ]
    bounds = {"start": int64(start), "end": int64(end), "axis": int64(0), "step": int64(step)}
    constants = {"c": np.arange(5, dtype=np.float32), **bounds}
    before = build(nodes, {"x": (1, [2])}, {"y": (1, ["k"])}, constants)
    after, _ = apply(PASS, before)
    assert "Slice" not in op_types(after)
    assert_same_function(before, after)


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("kind", [17, 18, 19, 20])
def test_casts_to_float8_saturate_as_the_runtime_does(kind: int, saturate: int) -> None:
    numbers = np.array([1e-8, 500, 1e9, np.inf, -np.inf, 0.3, -6e4, np.nan], np.float32)
    nodes = [
        helper.make_node("Cast", ["c"], ["small"], to=kind, saturate=saturate),
        helper.make_node("Cast", ["small"], ["wide"], to=1),
        helper.make_node("Sum", ["wide", "x"], ["y"]),
    ]
    before = build(nodes, {"x": (1, [8])}, {"y": (1, [8])}, {"c": numbers})
    after, _ = apply(PASS, before)
    assert op_types(after) == ["Sum"]
    assert_same_function(before, after)
