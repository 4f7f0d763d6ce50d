from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, defs, helper, numpy_helper

from graphopt.errors import OptionError, UnsupportedModelError
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.passes.opset.adapters import ADAPTERS, FIRST, LAST
from graphopt.passes.upgrade_opset import UpgradeOpset
from tests import corpora
from tests.passes.harness import (
    apply,
    assert_equal,
    assert_golden,
    assert_same_function,
    parse,
    random_feeds,
    run_feeds,
    session_for,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from graphopt.ir import Model

FLOAT = TensorProto.FLOAT
TARGETS = (13, 17, 18, 21, 24)


def f32(values: Any) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def one_node(
    op_type: str,
    opset: int,
    shape: list[Any],
    *constants: Any,
    outputs: int = 1,
    dtype: int = FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node over input x and constants c0, c1, ..."""
    tensors = [numpy_helper.from_array(np.asarray(c), f"c{k}") for k, c in enumerate(constants)]
    names = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op_type, ["x", *(t.name for t in tensors)], names, name="it", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_empty_tensor_value_info(name) for name in names],
        tensors,
    )
    model = helper.make_model(graph, ir_version=4, opset_imports=[helper.make_opsetid("", opset)])
    model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:
        tensor = output.type.tensor_type
        if not tensor.elem_type:
            tensor.elem_type = dtype
        if not tensor.HasField("shape"):
            tensor.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)
    return model


def upgraded(proto: onnx.ModelProto, to: int) -> Model:
    model, report = apply(UpgradeOpset(), proto, to=to)
    assert model.opset == to
    assert report.changed
    return model


def op_types(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes()]


CASES: dict[str, onnx.ModelProto] = {
    "clip": one_node("Clip", 7, [2, 3], min=-0.5, max=0.5),
    "clip_one_side": one_node("Clip", 10, [2, 3], max=0.25),
    "clip_defaults": one_node("Clip", 6 + 1, [2, 3]),
    "dropout": one_node("Dropout", 7, [2, 3], ratio=0.3),
    "squeeze": one_node("Squeeze", 11, [2, 1, 3, 1], axes=[1, -1]),
    "squeeze_all": one_node("Squeeze", 7, [2, 1, 3, 1]),
    "unsqueeze": one_node("Unsqueeze", 7, [2, 3], axes=[0, 2]),
    "reduce_sum": one_node("ReduceSum", 11, [2, 3, 4], axes=[-1], keepdims=0),
    "reduce_mean": one_node("ReduceMean", 7, [2, 3, 4], axes=[1, 2]),
    "reduce_max_all": one_node("ReduceMax", 7, [2, 3, 4], keepdims=0),
    "split": one_node("Split", 7, [5, 3], split=[2, 3], outputs=2),
    "split_even": one_node("Split", 11, [6, 4], axis=1, outputs=2),
    "softmax_default": one_node("Softmax", 7, [2, 3, 4]),
    "softmax_last": one_node("Softmax", 9, [2, 3, 4], axis=2),
    "softmax_image": one_node("Softmax", 7, [2, 5, 1, 1]),
    "softmax_free": one_node("Softmax", 11, ["N", "M", 4], axis=1),
    "softmax_negative": one_node("Softmax", 11, [2, 3, 4], axis=-2),
    "log_softmax": one_node("LogSoftmax", 7, [2, 3, 4]),
    "hardmax": one_node("Hardmax", 7, [2, 3, 4]),
    "pad": one_node("Pad", 7, [2, 3], pads=[0, 1, 2, 0], value=1.5),
    "pad_reflect": one_node("Pad", 10, [4, 5], pads=[0, 1, 2, 0], mode="reflect"),
    "slice": one_node("Slice", 7, [4, 5], starts=[1, -3], ends=[3, 1000], axes=[0, 1]),
    "slice_all_axes": one_node("Slice", 9, [4, 5], starts=[1, 0], ends=[3, 2]),
    "topk": one_node("TopK", 7, [3, 8], k=3, outputs=2),
    "topk_10": one_node("TopK", 10, [3, 8], np.array([2]), outputs=2),
    "upsample_nearest": one_node("Upsample", 7, [1, 2, 3, 4], scales=[1.0, 1.0, 2.0, 1.5]),
    "upsample_linear": one_node("Upsample", 9, [1, 2, 3, 4], f32([1, 1, 2, 3]), mode="linear"),
    "resize_nearest": one_node("Resize", 10, [1, 2, 3, 4], f32([1, 1, 2, 1.5])),
    "resize_shrink": one_node("Resize", 10, [1, 2, 6, 7], f32([1, 1, 0.5, 0.4])),
    "resize_linear": one_node("Resize", 10, [1, 2, 6, 7], f32([1, 1, 0.5, 2.0]), mode="linear"),
    "resize_11": one_node(
        "Resize", 11, [1, 2, 3, 4], np.zeros(0, np.float32), np.zeros(0, np.float32), np.array([1, 2, 5, 6]),
        mode="linear", coordinate_transformation_mode="align_corners",
    ),
    "batchnorm": one_node("BatchNormalization", 7, [2, 3, 4], *[f32([1, 2, 3])] * 4, epsilon=1e-3),
    "batchnorm_9": one_node("BatchNormalization", 9, [2, 3, 4, 5], *[f32([1, 2, 3])] * 4),
    "grid_sample": one_node(
        "GridSample", 16, [1, 2, 3, 4], np.linspace(-1, 1, 2 * 2 * 2, dtype=np.float32).reshape(1, 2, 2, 2)
    ),
    "roi_align": one_node(
        "RoiAlign", 10, [1, 2, 8, 8], f32([[0, 0, 6, 6], [1, 1, 5, 7]]), np.array([0, 0]),
        output_height=2, output_width=2, sampling_ratio=2,
    ),
    "scatter": one_node("Scatter", 9, [3, 3], np.array([[0, 2, 1]]), f32([[7, 8, 9]])),
    "dft": one_node("DFT", 17, [1, 6, 4, 1], axis=2, onesided=1),
    "maxpool": one_node("MaxPool", 7, [1, 2, 6, 6], kernel_shape=[2, 2], strides=[2, 2]),
    "flatten": one_node("Flatten", 7, [2, 3, 4], axis=2),
    "arg_max": one_node("ArgMax", 7, [2, 3, 4], axis=1),
    "gemm": one_node("Gemm", 7, [2, 3], np.ones((3, 4), np.float32), np.ones(4, np.float32)),
    "group_norm": one_node(
        "GroupNormalization", 18, [2, 6, 4], f32([1, 2, 3]), f32([0, 1, 2]), num_groups=3
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_function_stays(name: str) -> None:
    proto = CASES[name]
    opset = proto.opset_import[0].version
    for to in TARGETS:
        if to <= opset or (name == "group_norm" and to < 21):
            continue
        # RoiAlign above version 16 and its like are newer than this runtime knows.
        model = upgraded(proto, to)
        try:
            session_for(model)
        except ort.capi.onnxruntime_pybind11_state.NotImplemented:
            continue
        if name == "group_norm":
            feeds = random_feeds(model, seed=1)
            x = feeds["x"]
            grouped = x.reshape(2, 3, -1).astype(np.float64)
            normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(
                grouped.var(-1, keepdims=True) + 1e-5
            )
            scale, bias = np.repeat([1, 2, 3], 2), np.repeat([0, 1, 2], 2)
            expected = normal.reshape(x.shape) * scale[:, None] + bias[:, None]
            np.testing.assert_allclose(run_feeds(session_for(model), feeds)["y0"], expected, atol=1e-4)
            continue
        assert_same_function(proto, model, rtol=1e-6, seed=1)


def test_golden() -> None:
    text = """
    <ir_version: 4, opset_import: ["" : 9]>
    agraph (float[N, 4, 6] x) => (float[N, 4, 6] y, float[N, 4] z)
    {
        [limit] a = Clip <min = 0.0, max = 6.0> (x)
        [soft] y = Softmax <axis = 1> (a)
        [sum] z = ReduceSum <axes = [2], keepdims = 0> (a)
    }
    """
    proto = parse(text)
    model, report = apply(UpgradeOpset(), proto, to=21)
    assert_golden("upgrade-opset", "clip_softmax_reduce", proto, model, report)
    assert_same_function(proto, model, dims={"N": 3}, rtol=1e-6)


def test_names_metadata_and_declarations_stay() -> None:
    proto = CASES["softmax_default"]
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.graph.node[0].metadata_props.add(key="source", value="layer 4")
    changed.graph.output[0].doc_string = "probabilities"
    model = upgraded(changed, 21)
    assert emit(model).graph.output == changed.graph.output
    assert {node.metadata_props.get("source") for node in model.nodes()} == {"layer 4"}


def test_bodies_and_functions_follow() -> None:
    proto = parse("""
    <ir_version: 8, opset_import: ["" : 11, "local" : 1]>
    agraph (float[2, 3] x, bool c) => (float[2, 3] y)
    {
        a = local.norm(x)
        y = If (c) <
            then_branch = g1 () => (float[2, 3] t) {
                u = Unsqueeze <axes = [0]> (a)
                t = Squeeze <axes = [0]> (u)
            },
            else_branch = g2 () => (float[2, 3] e) { e = Softmax <axis = 0> (a) }
        >
    }
    <domain: "local", opset_import: ["" : 11]>
    norm (p) => (q) { s = ReduceSum <axes = [1]> (p) q = Div(p, s) }
    """)
    model = upgraded(proto, 21)
    function = next(iter(model.functions.values()))
    assert function.opset_imports == {"": 21}
    assert [node.op_type for node in function.graph] == ["Constant", "ReduceSum", "Div"]
    for flag in (True, False):
        feeds = {"x": f32([[1, 2, 3], [4, 5, 6]]), "c": np.array(flag)}
        assert_same_function(proto, model, feeds)


def test_what_is_no_longer_read_goes() -> None:
    text = """
        <ir_version: 6, opset_import: ["" : 11]>
        g (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[0] roi = {}, float[4] s = {1, 1, 2, 2}> {
            y = Resize (x, roi, s)
        }"""
    after, _ = apply(UpgradeOpset(), parse(text), to=21)
    read = {value.name for node in after.graph for value in node.inputs if value is not None}
    assert set(after.graph.initializers) <= read


def test_other_domains_stay() -> None:
    proto = CASES["clip"]
    mixed = onnx.ModelProto()
    mixed.CopyFrom(proto)
    mixed.opset_import.append(helper.make_opsetid("my.domain", 3))
    mixed.graph.node.append(helper.make_node("Thing", ["y0"], ["z"], domain="my.domain", axes=[1]))
    model, _ = apply(UpgradeOpset(), mixed, to=21)
    assert model.opset_imports == {"": 21, "my.domain": 3}
    assert model.graph[-1].attributes["axes"].as_ints() == (1,)


def test_the_ir_version_rises_only_where_needed() -> None:
    proto = CASES["clip"]
    assert upgraded(proto, 10).ir_version == 5
    newer = onnx.ModelProto()
    newer.CopyFrom(proto)
    newer.ir_version = 10
    assert upgraded(newer, 17).ir_version == 10


def test_initializers_that_become_overridable_are_mentioned() -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(CASES["gemm"])
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    _, report = apply(UpgradeOpset(), proto, to=13)
    assert report.skipped[0][0] == "model"
    assert "override" in report.skipped[0][1]


def test_without_a_version_nothing_happens_and_that_is_said() -> None:
    _, report = apply(UpgradeOpset(), CASES["clip"])
    assert not report.changed
    assert report.skipped == (("opset 7", "no version was asked for and no later pass needs a newer one"),)
    _, report = apply(UpgradeOpset(), CASES["clip"], to=7)
    assert not report.changed


def test_an_opset_is_never_lowered() -> None:
    with pytest.raises(OptionError, match="never lowered"):
        apply(UpgradeOpset(), CASES["dft"], to=13)


def test_never_above_what_the_target_loads() -> None:
    with pytest.raises(OptionError, match="loads at most opset"):
        apply(UpgradeOpset(), CASES["clip"], to=99)


def test_a_rewritten_node_does_not_hide_types_from_the_next() -> None:
    proto = parse("""
    <ir_version: 4, opset_import: ["" : 9]>
    agraph (float16[2, 3, 4] x) => (float16[2, 3, 4] y)
    {
        a = Softmax <axis = 1> (x)
        b = Clip <min = 0.0, max = 0.1> (a)
        y = Softmax <axis = 2> (b)
    }
    """)
    model = upgraded(proto, 21)
    assert op_types(model).count("Flatten") == 1, "the last one is over the last dim alone"
    assert_same_function(proto, model, rtol=1e-3)


def test_sizes_bound_for_one_run_decide_nothing() -> None:
    proto = CASES["softmax_free"]
    model, _ = apply(UpgradeOpset(), proto, to=21, dims={"M": 1})
    assert_same_function(proto, model, dims={"M": 5}, rtol=1e-6)


REFUSED = {
    "batchnorm_spatial": (
        one_node("BatchNormalization", 7, [2, 3], *[np.ones(3, np.float32)] * 4, spatial=0), 9, "spatial=0"
    ),
    "resize_both_ways": (
        one_node("Resize", 10, [1, 1, 4, 4], f32([1, 1, 2, 0.5])), 11, "opposite directions"
    ),
    "resize_pytorch": (
        one_node(
            "Resize", 11, [1, 1, 4, 4], np.zeros(0, np.float32), f32([1, 1, 2, 2]),
            coordinate_transformation_mode="tf_half_pixel_for_nn",
        ), 13, "tf_half_pixel_for_nn",
    ),
    "gone": (one_node("Thing", 11, [2]), 13, "has no operator Thing"),
}  # fmt: skip


def test_batchnorm_that_trains_by_its_outputs() -> None:
    proto = one_node("BatchNormalization", 9, [2, 3, 4], *[np.ones(3, np.float32)] * 4)
    proto.graph.node[0].output.extend(["mean", "var", "saved_mean", "saved_var"])
    with pytest.raises(UnsupportedModelError, match="training"):
        apply(UpgradeOpset(), proto, to=14)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_anew_is_refused_by_name(name: str) -> None:
    proto, to, reason = REFUSED[name]
    model = lower(proto)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        apply(UpgradeOpset(), model, to=to, check=False)
    assert "node 'it'" in str(caught.value)


def test_an_attribute_of_a_function_that_must_become_an_input_is_refused() -> None:
    proto = parse("""
    <ir_version: 8, opset_import: ["" : 11, "local" : 1]>
    agraph (float[2, 3] x) => (float[2, 1] y) { y = local.total <axes = [1]> (x) }
    <domain: "local", opset_import: ["" : 11]>
    total <axes> (p) => (q) { q = ReduceSum <axes: ints = @axes> (p) }
    """)
    with pytest.raises(UnsupportedModelError, match="attribute 'axes' of the function"):
        apply(UpgradeOpset(), proto, to=13)


def test_every_change_of_form_has_an_adapter() -> None:
    """The schemas of the onnx package are the witness that the table of adapters is complete."""
    history: dict[str, list[onnx.defs.OpSchema]] = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        if not schema.domain:
            history[schema.name].append(schema)
    missing = []
    for name, schemas in history.items():
        ordered = sorted(schemas, key=lambda schema: schema.since_version)
        for old, new in itertools.pairwise(ordered):
            if not FIRST < new.since_version <= LAST:
                continue
            breaks = [key for key in old.attributes if key not in new.attributes]
            breaks += [key for key, a in new.attributes.items() if a.required and key not in old.attributes]
            breaks += [
                key
                for key, attribute in old.attributes.items()
                if key in new.attributes
                and attribute.default_value.name
                and helper.get_attribute_value(attribute.default_value)
                != helper.get_attribute_value(new.attributes[key].default_value)
            ]
            fewer = (
                new.min_input > old.min_input
                or new.max_input < old.max_input
                or new.max_output < old.max_output
            )
            if (breaks or fewer or new.deprecated) and (name, new.since_version) not in ADAPTERS:
                missing.append((name, new.since_version, breaks))
    assert not missing
    assert all(FIRST < version <= LAST for _, version in ADAPTERS)


@pytest.mark.slow
def test_node_models() -> None:
    """Every backend node model that runs keeps its outputs in every newer version that the runtime has."""
    tally: Counter[str] = Counter()
    for case in corpora.node_cases():
        proto = onnx.load(case.model)
        opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
        if opset < FIRST:
            continue
        try:
            feeds, _ = case.data_sets()[0]
            expected = run_feeds(session_for(proto), feeds)
        except Exception:  # noqa: BLE001 - the runtime does not have the operator or the type
            tally["not run"] += 1
            continue
        for to in (13, 18, 22):
            if to <= opset:
                continue
            try:
                model, _ = apply(UpgradeOpset(), proto, to=to, check=False)
            except UnsupportedModelError:
                tally["refused"] += 1
                continue
            onnx.checker.check_model(emit(model))
            try:
                session = session_for(model)
            except Exception:  # noqa: BLE001 - as above
                tally["newer than the runtime"] += 1
                continue
            for name, value in run_feeds(session, feeds).items():
                assert_equal(expected[name], value, where=f"{case.name} to {to}: {name}", rtol=1e-6)
            tally["same"] += 1
    assert tally["same"] > 1900
    assert tally["refused"] <= 3, "Scan-8"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ultraface_version-RFB-320",
        "nanodet_m_320",
        "gtcrn_simple",
        "stories260k_llama_ts",
        "mlperf_kws_dscnn",
    ],
)
def test_asset_models(assets: Path, name: str) -> None:
    proto = onnx.load(assets / "models" / f"{name}.onnx")
    for to in (13, 17, 21):
        if to > lower(proto).opset:
            assert_same_function(proto, upgraded(proto, to), rtol=1e-6)
