"""Every rule against the delete-and-run probe: what a rule leaves free, the runtime must bear out.

The operator stands alone in a little analysis whose every dim is free. Whatever units come out are removed,
by halves, from the inputs; the operator, rewritten by its rule, must give what it gave before without the
removed indices (with zeros for those that it sums over). And what the probe finds to pass or to be summed
over, the rule must not have locked, but where a case says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from graphopt.ir.channels.cutting import Keeping, NodeCut
from graphopt.ir.channels.opening import bind_open_dims
from graphopt.ir.channels.probing import Subject, fallback_rule, learn
from graphopt.ir.channels.propagation import Propagation
from graphopt.ir.channels.rules import rule_table
from graphopt.ir.emit import emit
from graphopt.ir.lower import lower
from graphopt.ir.rewrite import input_at
from graphopt.targets.target import release_key
from tests.ir.channels.support import probe
from tests.passes.harness import run_feeds, session_for

MS = "com.microsoft"


@dataclass(frozen=True)
class Case:
    op_type: str
    inputs: tuple[Any, ...]
    """Shapes of float inputs (tuples), contents of integer ones (lists or arrays), None for omitted ones."""
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    opset: int = 21
    outputs: int = 1
    locks: tuple[tuple[int, int], ...] = ()
    """Dims (input, dim) that the probe finds free and the rule keeps on purpose."""

    @property
    def name(self) -> str:
        marks = [f"{key}={value}" for key, value in self.attributes.items() if not isinstance(value, bytes)]
        return " ".join([self.op_type, str(self.opset), *marks])


# Dims of samples and of positions are locked by rule: nobody prunes them.
SAMPLES = ((0, 0), (0, 1), (5, 1), (6, 1))
POSITIONS = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 1))

CASES = [
    Case("MatMul", ((2, 3, 5, 4), (2, 3, 4, 7))),
    Case("MatMul", ((5, 4), (4, 7))),
    Case("MatMul", ((6, 5, 4), (4,))),
    Case("Gemm", ((3, 5), (7, 5), (7,)), {"transB": 1}),
    Case("Gemm", ((5, 3), (5, 7), (3, 7)), {"transA": 1, "alpha": 0.5}),
    Case("Conv", ((4, 5, 8, 8), (7, 5, 3, 3), (7,)), {"pads": [1] * 4}, locks=((0, 2), (0, 3))),
    Case("Conv", ((4, 6, 8, 8), (6, 1, 3, 3), (6,)), {"group": 6, "pads": [1] * 4}),
    Case("Conv", ((4, 6, 8, 8), (12, 1, 3, 3)), {"group": 6, "pads": [1] * 4}),
    Case("Conv", ((4, 12, 8, 8), (15, 4, 3, 3), (15,)), {"group": 3}),
    Case("ConvTranspose", ((4, 5, 6, 6), (5, 7, 2, 2), (7,)), {"strides": [2, 2]}),
    Case("ConvTranspose", ((4, 12, 6, 6), (12, 5, 2, 2), (15,)), {"strides": [2, 2], "group": 3}),
    Case("Einsum", ((6, 3, 4, 5), (6, 3, 7, 5)), {"equation": "bhqd,bhkd->bhqk"}),
    Case("Einsum", ((6, 3, 4), (4, 5)), {"equation": "...i,ij->...j"}),
    Case("Einsum", ((4, 5),), {"equation": "ij->j"}),
    Case("Add", ((4, 3, 5), (5,))),
    Case("Where", (np.ones((1, 1, 1), bool), (4, 3, 5), (3, 1))),
    Case("PRelu", ((4, 5, 6), (5, 1))),
    Case("Clip", ((4, 5),)),
    Case("Gelu", ((4, 5),)),
    Case("BatchNormalization", ((4, 5, 6, 3), (5,), (5,), (5,), (5,))),
    Case("InstanceNormalization", ((4, 5, 6, 3), (5,), (5,))),
    Case("LayerNormalization", ((4, 3, 5), (5,), (5,))),
    Case("LayerNormalization", ((4, 3, 5), (3, 5), (3, 5)), {"axis": 1}),
    Case("GroupNormalization", ((4, 12, 5, 7), (12,), (12,)), {"num_groups": 3}),
    Case("LpNormalization", ((4, 3, 5),), {"axis": 1, "p": 2}),
    Case("MeanVarianceNormalization", ((4, 3, 5, 6),)),
    Case("ReduceMean", ((4, 3, 5), [1])),
    Case("ReduceSum", ((4, 3, 5), [0, 2]), {"keepdims": 0}),
    Case("ReduceL2", ((4, 3, 5), [2])),
    Case("ReduceMax", ((4, 3, 5), [1])),
    Case("Softmax", ((4, 3, 5),)),
    Case("LogSoftmax", ((4, 3, 5),), {"axis": 1}),
    Case("CumSum", ((4, 3, 5), np.array(1)), locks=((0, 1),)),
    Case("TopK", ((4, 3, 6), [2]), {"axis": 2}, outputs=2),
    Case("ArgMax", ((4, 3, 6),), {"axis": 2}),
    Case("MaxPool", ((4, 5, 8, 8),), {"kernel_shape": [2, 2]}),
    Case("AveragePool", ((4, 5, 8, 8),), {"kernel_shape": [2, 2]}),
    Case("GlobalAveragePool", ((4, 5, 8, 7),), locks=((0, 2), (0, 3))),
    Case("Resize", ((4, 5, 6, 6), None, np.array([1, 1, 2, 2], np.float32))),
    Case("Resize", ((4, 5, 6, 6), None, None, [4, 5, 9, 12]), locks=((0, 0), (0, 1))),
    Case("Transpose", ((4, 5, 6),), {"perm": [2, 0, 1]}),
    Case("Reshape", ((4, 12, 5), [4, 3, 4, 5])),
    Case("Reshape", ((4, 3, 5, 6), [0, -1, 6])),
    Case("Reshape", ((4, 3, 5, 6), [20, 18]), locks=((0, 1), (0, 2))),
    Case("Flatten", ((4, 3, 5),)),
    Case("Squeeze", ((4, 1, 5), [1])),
    Case("Squeeze", ((4, 1, 5),)),
    Case("Unsqueeze", ((4, 5), [1, 3])),
    Case("Expand", ((4, 1, 5), [4, 3, 5])),
    Case("Tile", ((4, 1, 5), [1, 3, 2])),
    Case("Concat", ((4, 3), (4, 5)), {"axis": 1}),
    Case("Split", ((4, 9), [4, 5]), {"axis": 1}, outputs=2),
    Case("Split", ((4, 9),), {"axis": 1, "num_outputs": 2}, outputs=2),
    Case("Slice", ((4, 9), [2], [7], [1])),
    Case("Slice", ((4, 9), [-1], [-100], [1], [-1]), locks=((0, 1),)),
    Case("Slice", ((4, 9), [0], [100], [1], [2])),
    Case("Gather", ((4, 9), [3, 1, 4, 1]), {"axis": 1}),
    Case("Gather", ((4, 9, 5), [[3, 1], [4, 0]]), {"axis": 1}),
    Case("Pad", ((4, 5, 6), [0, 2, 0, 0, 3, 0])),
    Case("Pad", ((4, 5, 6), [0, -1, 0, 0, 3, 0])),
    Case("Pad", ((4, 5, 6), [0, 0, 1, 0, 0, 2]), {"mode": "reflect"}),
    Case("DepthToSpace", ((4, 12, 5, 6),), {"blocksize": 2}),
    Case("DepthToSpace", ((4, 12, 5, 6),), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", ((4, 3, 6, 8),), {"blocksize": 2}),
    Case("LSTM", ((5, 7, 3), (1, 16, 3), (1, 16, 4), (1, 32)), {"hidden_size": 4}, outputs=3, locks=SAMPLES),
    Case("LSTM", ((5, 7, 3), (2, 16, 3), (2, 16, 4), (2, 32), None, (2, 7, 4), (2, 7, 4), (2, 12)),
         {"hidden_size": 4, "direction": "bidirectional"}, outputs=3, locks=SAMPLES),
    Case("GRU", ((5, 7, 3), (1, 12, 3), (1, 12, 4), (1, 24)), {"hidden_size": 4, "linear_before_reset": 1},
         locks=SAMPLES),
    Case("RNN", ((5, 7, 3), (1, 4, 3), (1, 4, 4)), {"hidden_size": 4}, locks=SAMPLES),
    Case("GridSample", ((4, 5, 6, 6), (4, 3, 3, 2)), opset=20, locks=((0, 0), (1, 0), (1, 1), (1, 2))),
    Case("Trilu", ((4, 5, 6),)),
    Case("BiasGelu", ((4, 3, 5), (5,)), domain=MS, opset=1),
    Case("FastGelu", ((4, 3, 5), (5,)), domain=MS, opset=1),
    Case("FusedMatMul", ((3, 5), (7, 5)), {"transB": 1, "alpha": 0.5}, domain=MS, opset=1),
    Case("SkipLayerNormalization", ((6, 3, 8), (6, 3, 8), (8,), (8,), (8,)), domain=MS, opset=1,
         locks=((0, 0), (1, 0))),
    Case("SkipSimplifiedLayerNormalization", ((6, 3, 8), (6, 3, 8), (8,)), domain=MS, opset=1,
         locks=((0, 0), (1, 0))),
    Case("MultiHeadAttention", ((2, 3, 20), (2, 6, 20), (2, 6, 12), (52,)), {"num_heads": 4}, MS, 1,
         locks=POSITIONS),
    Case("GroupQueryAttention",
         ((1, 3, 64), (1, 3, 32), (1, 3, 32), None, None, np.array([2], np.int32), np.array(3, np.int32)),
         {"num_heads": 8, "kv_num_heads": 4}, MS, 1, 3, POSITIONS),
    Case("GroupQueryAttention",
         ((1, 3, 128), None, None, None, None, np.array([2], np.int32), np.array(3, np.int32)),
         {"num_heads": 8, "kv_num_heads": 4}, MS, 1, 3, POSITIONS),
    Case("GatherND", ((4, 5, 6), [[0, 1], [3, 2]])),
    Case("ScatterND", ((4, 5, 6), [[0], [3], [1]], (3, 5, 6))),
    Case("GatherElements", ((4, 5), [[0, 1], [3, 2]]), locks=((0, 1),)),
    Case("Compress", ((4, 5, 6), np.array([True, False, True])), {"axis": 1}),
    Case("Hardmax", ((4, 3, 5),), locks=((0, 2),)),
    Case("Attention", ((2, 3, 9), (9, 52), (52,)), {"num_heads": 4, "qkv_hidden_sizes": [20, 20, 12]}, MS, 1,
         locks=POSITIONS),
    Case("RotaryEmbedding", ((2, 3, 24), [[0, 1, 2], [2, 1, 0]], (5, 4), (5, 4)), {}, MS, 1, locks=POSITIONS),
    Case("RotaryEmbedding", ((2, 3, 24), [[0, 1, 2], [2, 1, 0]], (5, 4), (5, 4)), {"interleaved": 1}, MS, 1,
         locks=POSITIONS),
    Case("Attention", ((2, 3, 20), (2, 6, 20), (2, 6, 12)), {"q_num_heads": 4, "kv_num_heads": 4}, opset=23,
         locks=POSITIONS),
    Case("Attention", ((2, 6, 3, 5), (2, 3, 7, 5), (2, 3, 7, 4), (1, 6, 3, 7)), opset=23,
         locks=((0, 2), (1, 2), (2, 2), (3, 2), (3, 3), (0, 3), (1, 3), (1, 1), (2, 1))),
]  # fmt: skip


def _proto(case: Case) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The operator alone; float inputs are graph inputs, integers constants."""
    generator = np.random.default_rng(3)
    feeds: dict[str, Any] = {}
    names, infos, constants = [], [], []
    for index, item in enumerate(case.inputs):
        if item is None:
            names.append("")
            continue
        names.append(f"i{index}")
        if isinstance(item, tuple):
            feeds[names[-1]] = (generator.standard_normal(item) ** 2 + 0.1).astype(np.float32)
            infos.append(helper.make_tensor_value_info(names[-1], 1, item))
        else:
            constants.append(numpy_helper.from_array(np.asarray(item), names[-1]))
    outputs = [f"o{k}" for k in range(case.outputs)]
    node = helper.make_node(case.op_type, names, outputs, name="op", domain=case.domain, **case.attributes)
    kinds = [7 if (case.op_type, k) in {("TopK", 1), ("ArgMax", 0)} else 1 for k in range(case.outputs)]
    infos_out = [helper.make_tensor_value_info(o, kind, None) for o, kind in zip(outputs, kinds, strict=True)]
    graph = helper.make_graph([node], "one", infos, infos_out, constants)
    opsets = [helper.make_opsetid("", 21 if case.domain else case.opset), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds


class _Free(Propagation):
    """An analysis whose graph inputs and outputs are free."""

    def run(self) -> None:
        for value in self.model.graph.inputs:
            self.put(value, [self.slots.fresh(dim) if dim > 1 else None for dim in self.shape(value)])
        self.graph(self.model.graph)


def _analysis(proto: onnx.ModelProto) -> _Free:
    model = lower(proto)
    run = _Free(model, *bind_open_dims(model, None, {}), rule_table(), fallback_rule(None))
    run.run()
    return run


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_runtime_bears_out_what_a_rule_leaves_free(case: Case, seed: int) -> None:
    proto, feeds = _proto(case)
    run = _analysis(proto)
    approximate = {
        atom for _, axis in run.approximations for atom in run.slots.atoms(axis).reshape(-1).tolist()
    }
    generator = np.random.default_rng(seed)
    (node,) = run.model.graph
    dead: list[int] = []
    # Of all atoms of one dim less than half go, so that something is left everywhere.
    for index in range(len(node.inputs)):
        for label in run.axes_of_use(node, index) if input_at(node, index) is not None else ():
            atoms = np.unique(run.slots.atoms(label)) if label is not None else np.zeros(0, int)
            for birth in np.unique(run.slots.birth(atoms[atoms > 0])).tolist():
                group = [a for a in atoms[atoms > 0].tolist() if run.slots.birth(np.array([a]))[0] == birth]
                group = [a for a in group if a not in approximate]
                if not set(group) & set(dead):
                    dead += generator.permutation(group)[: len(group) // 2].tolist()
    keeping = Keeping(run, np.array(dead, np.int64))
    masked, smaller = dict(feeds), dict(feeds)
    work = lower(proto)
    (target,) = work.graph
    for item in run.contractions:
        value = input_at(node, item.input)
        assert value is not None
        keep = keeping.of_input(node, item.input)[item.axis]
        if keep is not None and value.name in masked:
            shape = [-1 if k == item.axis else 1 for k in range(masked[value.name].ndim)]
            masked[value.name] = masked[value.name] * keep.reshape(shape)
    for value in work.graph.inputs:
        keeps = keeping.of_output(next(v for v in run.model.graph.inputs if v.name == value.name))
        for axis, keep in enumerate(keeps):
            if keep is not None:
                smaller[value.name or ""] = np.compress(keep, smaller[value.name or ""], axis=axis)
        value.shape = oir.Shape(smaller[value.name or ""].shape)
    rule = rule_table()[case.domain, case.op_type]
    if rule.rewrite is not None and dead:
        rule.rewrite(NodeCut(work, target, node, keeping))
    expected, got = run_feeds(session_for(proto), masked), run_feeds(session_for(emit(work)), smaller)
    for output in node.outputs:
        whole = expected[output.name or ""]
        for k, keep in enumerate(keeping.of_output(output)):
            if keep is not None:
                whole = np.compress(keep, whole, axis=k)
        assert whole.shape == got[output.name or ""].shape
        np.testing.assert_allclose(got[output.name or ""], whole, rtol=2e-5, atol=2e-6)


@pytest.mark.skipif(
    release_key(ort.__version__) < (1, 31),
    reason="earlier releases compute on shapes that do not fit each other instead of refusing them",
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_rule_leaves_free_what_the_probe_finds_free(case: Case) -> None:
    proto, feeds = _proto(case)
    run = _analysis(proto)
    (node,) = run.model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    inputs = [
        None if v is None else feeds.get(v.name or "", constants.get(v.name or "")) for v in node.inputs
    ]
    subject = Subject(
        case.op_type, inputs, case.domain, case.opset if not case.domain else 1, case.attributes, case.outputs
    )
    found = learn(subject, probe)
    assert found is not None
    for coupling in found:
        for index, axis in coupling.dims:
            if (index, axis) in case.locks:
                continue
            label = run.axes_of_use(node, index)[axis]
            assert label is not None, (coupling, index, axis)
            if coupling.effect != "approximate":
                assert run.slots.is_live(label), (coupling, index, axis)
            elif run.slots.is_live(label):
                atoms = set(run.slots.atoms(label).reshape(-1).tolist()) - {0}
                noted = {
                    a for _, one in run.approximations for a in run.slots.atoms(one).reshape(-1).tolist()
                }
                assert atoms & noted, coupling
