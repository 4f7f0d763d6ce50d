"""The fingerprint: equal for equal models, different after any change that a file would show."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir
import pytest
from onnx import helper

from graphopt.ir import meta
from graphopt.ir.emit import emit, save
from graphopt.ir.fingerprint import TensorRegistry, fingerprint
from graphopt.ir.lower import load, lower
from graphopt.ir.model import Model
from graphopt.ir.tensors import RawTensor, from_array
from tests import corpora
from tests.families import FAMILIES, info, model, weight, write_external_family
from tests.work import growth

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def every(store: oir.Model) -> tuple[list[oir.Graph], list[oir.Node], list[oir.Value]]:
    """All graphs, nodes and named values of *store*."""
    graphs = list(Model(store).graphs())
    nodes = [node for graph in graphs for node in graph]
    values: dict[oir.Value, None] = {}
    for graph in graphs:
        values.update(dict.fromkeys([*graph.inputs, *graph.initializers.values()]))
    for node in nodes:
        values.update(dict.fromkeys(node.outputs))
    return graphs, nodes, [value for value in values if value.name]


def edits(made: Model) -> dict[str, Callable[[], object]]:
    """Every kind of edit at every place of *made*, by a name for it."""
    graphs, nodes, values = every(made.store)
    store = made.store
    found: dict[str, Callable[[], object]] = {
        "ir_version": lambda: setattr(store, "ir_version", store.ir_version + 1),
        "producer": lambda: setattr(store, "producer_name", "other"),
        "producer_version": lambda: setattr(store, "producer_version", "other"),
        "domain": lambda: setattr(store, "domain", "other"),
        "model_version": lambda: setattr(store, "model_version", 99),
        "model doc": lambda: setattr(store, "doc_string", "other"),
        "model props": lambda: store.metadata_props.update(other="1"),
    }

    def add(name: str, edit: Callable[[], object]) -> None:
        found[name] = edit

    for k, graph in enumerate(graphs):
        add(f"graph {k} name", partial(setattr, graph, "name", "other"))
        add(f"graph {k} doc", partial(setattr, graph, "doc_string", "other"))
        add(f"graph {k} props", partial(graph.metadata_props.update, other="1"))
        if graph.outputs:
            add(f"graph {k} outputs", partial(graph.outputs.append, graph.outputs[0]))
    add("opsets", lambda: store.opset_imports.update(other=1))
    for k, node in enumerate(nodes):
        add(f"node {k} name", partial(setattr, node, "name", "other"))
        add(f"node {k} op", partial(setattr, node, "op_type", "Other"))
        add(f"node {k} domain", partial(setattr, node, "domain", "other"))
        add(f"node {k} overload", partial(setattr, node, "overload", "other"))
        add(f"node {k} doc", partial(setattr, node, "doc_string", "other"))
        add(f"node {k} props", partial(node.metadata_props.update, other="1"))
        add(f"node {k} attribute", partial(node.attributes.add, oir.AttrInt64("other", 1)))
        if any(node.inputs):
            place = next(i for i, value in enumerate(node.inputs) if value is not None)
            add(f"node {k} input", partial(node.replace_input_with, place, None))
        for name, attribute in node.attributes.items():
            add(f"node {k} drop {name}", partial(node.attributes.pop, name))
            add(f"node {k} doc {name}", partial(setattr, attribute, "doc_string", "other"))
    for value in values:
        name = value.name or ""
        if not value.is_initializer():
            add(f"value {name} name", partial(setattr, value, "name", "other"))
            add(
                f"value {name} type",
                partial(setattr, value, "type", oir.TensorType(oir.DataType.INT16)),
            )
            add(f"value {name} shape", partial(_reshape, value))
        else:
            add(
                f"value {name} tensor",
                partial(setattr, value, "const_value", from_array(np.ones((7, 99)))),
            )
            add(f"value {name} name", partial(setattr, value, "name", f"renamed {name}"))
        add(f"value {name} doc", partial(setattr, value, "doc_string", "other"))
        add(f"value {name} props", partial(value.metadata_props.update, other="1"))
        add(
            f"value {name} quant",
            partial(value.meta.update, {meta.QUANTIZATION: {"SCALE": "other"}}),
        )
        if isinstance(value.type, oir.TensorType):
            add(f"value {name} dtype", partial(setattr, value.type, "dtype", oir.DataType.INT16))
    for function in made.functions.values():
        add(
            f"function {function.name} props",
            partial(function.metadata_props.update, other="1"),
        )
        add(
            f"function {function.name} opset",
            partial(function.opset_imports.update, other=1),
        )
        add(
            f"function {function.name} attribute",
            partial(function.attributes.add, oir.AttrInt64("other", 1)),
        )
    return found


def _reshape(value: oir.Value) -> None:
    if value.type is None:
        value.type = oir.TensorType(oir.DataType.INT16)
    if value.shape is not None and len(value.shape) and not value.shape.frozen:
        value.shape[0] = 77
    else:
        value.shape = oir.Shape([77])


def written(made: Model) -> bytes:
    data: bytes = emit(made).SerializeToString(deterministic=True)
    return data


@pytest.mark.parametrize("family", FAMILIES)
def test_any_edit_of_a_clone_shows_there_and_only_there(family: str) -> None:
    original = lower(FAMILIES[family]())
    before, digest = written(original), fingerprint(original)
    names = list(edits(original))
    assert len(names) > 20
    for name in names:
        clone = original.clone()
        assert fingerprint(clone) == digest
        edits(clone)[name]()
        try:
            shown = written(clone) != before
        except (ValueError, TypeError):
            shown = True
        assert shown <= (fingerprint(clone) != digest), name
        assert fingerprint(original) == digest, name
        assert written(original) == before, name


@pytest.mark.parametrize("family", FAMILIES)
def test_all_edits_at_once_leave_the_original_alone(family: str) -> None:
    original = lower(FAMILIES[family]())
    before, digest = written(original), fingerprint(original)
    clone = original.clone()
    for name, edit in edits(clone).items():
        if "drop" not in name:
            edit()
    for graph in list(clone.graphs()):
        graph.meta.clear()
        for node in list(graph):
            graph.remove(node)
    for key in list(clone.functions):
        del clone.functions[key]
    gc.collect()
    assert written(original) == before
    assert fingerprint(original) == digest


def test_large_weights_count_by_identity() -> None:
    original = lower(
        model(helper.make_graph([], "g", [], [info("w", shape=[999])], initializer=[weight("w", 999)]))
    )
    clone = original.clone()
    value = clone.graph.initializers["w"]
    assert value.const_value is original.graph.initializers["w"].const_value
    assert value.const_value is not None
    value.const_value = RawTensor(value.const_value.tobytes(), oir.DataType.FLOAT, (999,))
    assert fingerprint(clone) != fingerprint(original)


def test_small_tensors_count_by_content() -> None:
    original = lower(
        model(helper.make_graph([], "g", [], [info("w", shape=[9])], initializer=[weight("w", 9)]))
    )
    clone = original.clone()
    value = clone.graph.initializers["w"]
    assert value.const_value is not None
    value.const_value = RawTensor(value.const_value.tobytes(), oir.DataType.FLOAT, (9,))
    assert fingerprint(clone) == fingerprint(original)
    value.const_value = from_array(np.zeros(9, np.float32))
    assert fingerprint(clone) != fingerprint(original)


def test_registry_forgets_nothing_that_lives() -> None:
    registry = TensorRegistry()
    tensors = [from_array(np.zeros(1000, np.float32)) for _ in range(50)]
    keys = [registry.key(tensor) for tensor in tensors]
    assert len(set(keys)) == 50
    for _ in range(500):  # objects at recycled addresses must not be taken for old ones
        assert registry.key(from_array(np.zeros(1000, np.float32))) not in keys
    assert [registry.key(tensor) for tensor in tensors] == keys


def test_folder_does_not_matter(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        digests.add(fingerprint(load(write_external_family(tmp_path / name))))
    assert len(digests) == 1


def test_round_trip_keeps_it(tmp_path: Path) -> None:
    for name, path in corpora.feature_models(tmp_path).items():
        if name == "external":
            continue  # the data moves to another file
        out = tmp_path / "out.onnx"
        save(load(path), out)
        assert fingerprint(load(out)) == fingerprint(load(path)), name


def test_same_in_every_process(tmp_path: Path) -> None:
    corpora.feature_models(tmp_path)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from graphopt.ir.fingerprint import fingerprint\n"
        "from graphopt.ir.lower import load\n"
        "for path in sorted(Path(sys.argv[1]).rglob('*.onnx')):\n"
        "    model = load(path)\n"
        "    clone = model.clone()\n"
        "    for node in clone.nodes():\n"
        "        node.name = 'renamed'\n"
        "    print(path.name, fingerprint(model), fingerprint(clone))\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "77")
    ]
    assert printed[0].count("\n") == len(FAMILIES) + 1
    assert printed[0] == printed[1]


def hashing(count: int) -> Callable[[], object]:
    nodes: list[Any] = [
        helper.make_node("Relu", [f"v{k}"], [f"v{k + 1}"], name=f"n{k}") for k in range(count)
    ]
    infos = [info(f"v{k}") for k in range(1, count)]
    graph = helper.make_graph(nodes, "g", [info("v0")], [info(f"v{count}")], value_info=infos)
    made = lower(model(graph))
    return lambda: fingerprint(made)


def test_the_work_is_linear_in_the_nodes() -> None:
    assert growth(hashing, 200, 2000) < 1.2
