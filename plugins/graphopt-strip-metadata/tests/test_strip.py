"""Strip-metadata: what goes, what stays, and that the model computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from graphopt.api import Context, Report
from graphopt.ir.emit import emit
from graphopt.ir.fingerprint import fingerprint
from graphopt.ir.lower import lower
from graphopt.targets import load_target
from graphopt_strip_metadata.gate import NoSourcePaths
from graphopt_strip_metadata.paths import machine_paths, source_files
from graphopt_strip_metadata.strip import StripMetadata

TRACE = 'File "/home/author/nets/net.py", line 12, in forward\n    return self.conv(x)'


def add(thing: Any, **entries: str) -> None:
    for key, value in entries.items():
        entry = thing.metadata_props.add()
        entry.key, entry.value = key, value


def talkative(*, silent: bool = False) -> onnx.ModelProto:
    """Return If(c, x + w, f(x)) with something said at every place that the format has for it."""
    f32 = onnx.TensorProto.FLOAT
    x, y, t = (oh.make_tensor_value_info(name, f32, [4]) for name in ("x", "y", "t"))
    c = oh.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    constant = numpy_helper.from_array(np.ones(4, np.float32), "k")
    inner = oh.make_node("Add", ["x", "w"], ["t"], name="inner")
    call = oh.make_node("twice", ["x"], ["e"], name="call", domain="local")
    e = oh.make_tensor_value_info("e", f32, [4])
    then = oh.make_graph([inner], "then", [], [t])
    other = oh.make_graph([call], "else", [], [e])
    branch = oh.make_node("If", ["c"], ["z"], name="branch", then_branch=then, else_branch=other)
    const = oh.make_node("Constant", [], ["k"], name="const", value=constant)
    last = oh.make_node("Add", ["z", "k"], ["y"], name="last")
    body = [oh.make_node("Add", ["a", "a"], ["b"], name="body")]
    opsets = [oh.make_opsetid("", 18), oh.make_opsetid("local", 1)]
    function = oh.make_function("local", "twice", ["a"], ["b"], body, [opsets[0]])
    z = oh.make_tensor_value_info("z", f32, [4])
    graph = oh.make_graph([branch, const, last], "main", [c, x], [y], [weight], value_info=[z])
    model = oh.make_model(graph, ir_version=10, opset_imports=opsets, functions=[function])
    model.producer_name = "exporter"
    if not silent:
        g = model.graph
        value = g.node[1].attribute[0]
        branches = [attribute.g for attribute in g.node[0].attribute]
        speakers = [
            model, g, *g.node, *branches, branches[0].node[0], g.input[1], g.value_info[0], g.output[0],
            g.initializer[0], value.t, model.functions[0], model.functions[0].node[0],
        ]  # fmt: skip
        for number, thing in enumerate(speakers):
            thing.doc_string = f"words {number}"
            add(thing, author="me", namespace=TRACE)
        value.doc_string = "an attribute"
    return model


def run(proto: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, Report]:
    model = lower(proto)
    target = load_target("ort-cpu")
    before = fingerprint(model)
    report = StripMetadata().run(model, StripMetadata.Options(**options), Context(target=target, analyses={}))
    assert report.changed == (fingerprint(model) != before)
    return emit(model), report


def outputs(proto: onnx.ModelProto) -> list[Any]:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal(4).astype(np.float32)
    return [session.run(None, {"x": x, "c": np.array(c)})[0] for c in (True, False)]


def words_of(proto: onnx.ModelProto) -> tuple[int, int]:
    """Count doc strings and metadata entries in the text form, which knows nothing of passes."""
    text = str(proto)
    return text.count("doc_string:"), text.count("metadata_props {")


def test_everything_goes() -> None:
    proto = talkative()
    onnx.checker.check_model(proto)
    docs, entries = words_of(proto)
    assert docs > 10
    assert entries > 20
    stripped, report = run(proto)
    assert words_of(stripped) == (0, 0)
    assert report.counts == {"doc_strings": docs, "metadata_entries": entries}
    assert report.skipped == ()
    assert stripped == talkative(silent=True)
    for got, expected in zip(outputs(stripped), outputs(proto), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_silent_model_is_unchanged() -> None:
    stripped, report = run(talkative(silent=True))
    assert report == Report(changed=False)
    assert stripped == talkative(silent=True)


@pytest.mark.parametrize("place", range(15))
def test_each_place_alone_is_found_and_told_honestly(place: int) -> None:
    """One doc string at one place: the fingerprint and the report must agree (asserted in run)."""
    proto = talkative()
    speakers = [
        line for line in str(proto).splitlines() if line.strip().startswith('doc_string: "words')
    ]  # fmt: skip
    assert len(speakers) == 15
    number = speakers[place].split('"')[1]

    def silence(message: Any) -> None:
        for field, content in message.ListFields():
            if field.name == "doc_string" and content != number:
                message.ClearField("doc_string")
            elif field.name == "metadata_props":
                message.ClearField("metadata_props")
            elif field.message_type is not None:
                for item in content if hasattr(content, "__len__") else [content]:
                    silence(item)

    silence(proto)
    stripped, report = run(proto)
    assert report.counts == {"doc_strings": 1}
    assert words_of(stripped) == (0, 0)


def test_patterns_keep_and_are_told() -> None:
    proto = talkative()
    places = str(proto).count('key: "author"')
    stripped, report = run(proto, keep=["auth*", "nothing"])
    assert str(stripped).count('key: "author"') == places
    assert str(stripped).count('key: "namespace"') == 0
    assert report.skipped == (("metadata 'author'", f"kept by the pattern 'auth*', in {places} places"),)
    assert words_of(stripped)[0] == 0


def test_doc_strings_may_stay() -> None:
    proto = talkative()
    stripped, report = run(proto, doc_strings=False)
    assert words_of(stripped) == (words_of(proto)[0], 0)
    assert "doc_strings" not in report.counts


def test_only_traces() -> None:
    proto = talkative()
    proto.graph.node[2].doc_string = "/home/author/net.py(12): forward"
    stripped, report = run(proto, only_traces=True)
    assert report.counts["doc_strings"] == 1
    assert str(stripped).count('key: "author"') == str(proto).count('key: "author"')
    assert "/home/author" not in str(stripped)
    assert "words 0" in str(stripped)


def test_clones_are_not_touched() -> None:
    """Tensors are shared by clones; a roll-back must find them as they were."""
    model = lower(talkative())
    copy = model.clone()
    StripMetadata().run(model, StripMetadata.Options(), Context(target=load_target("ort-cpu"), analyses={}))
    assert emit(copy) == emit(lower(talkative()))
    assert emit(model) != emit(copy)


def check(proto: onnx.ModelProto, *allow: str) -> tuple[float | None, bool, str]:
    model = lower(proto)
    context = Context(target=load_target("ort-cpu"), analyses={})
    (result,) = NoSourcePaths(NoSourcePaths.Options(allow=list(allow))).check(model, model, context)
    return result.value, result.passed, result.note


def test_the_gate_finds_traces_and_passes_without() -> None:
    proto = talkative()
    value, passed, note = check(proto)
    assert value == float(str(proto).count("net.py"))
    assert not passed
    assert "'/home/author/nets/net.py' in the value of" in note
    assert check(run(proto)[0]) == (0.0, True, "")
    assert check(proto, "/home/author/*")[1]


@pytest.mark.parametrize("place", ["name", "attribute", "input", "metadata", "doc"])
def test_the_gate_looks_everywhere(place: str) -> None:
    proto = talkative(silent=True)
    path = "/opt/build/net.py"
    match place:
        case "name":
            proto.graph.node[2].name = path
        case "attribute":
            proto.graph.node[2].attribute.append(oh.make_attribute("note", path))
        case "input":
            proto.functions[0].name = path
        case "metadata":
            add(proto.functions[0].node[0], where=path)
        case "doc":
            proto.graph.node[0].attribute[0].g.node[0].doc_string = path
    value, passed, note = check(proto)
    assert (value, passed) == (1.0, False)
    assert path in note


@pytest.mark.parametrize(
    ("text", "files", "paths"),
    [
        ("/layers/0/conv/Conv", 0, 0),
        ("model/layer.1/bn", 0, 0),
        ("torch.nn.modules.conv.Conv2d", 0, 0),
        ("half a.py", 0, 0),
        ("src/net.py:12", 1, 1),
        (r"C:\Users\me\net.py", 1, 1),
        ("/usr/lib/python3/site-packages/torch/nn/modules/conv.py(456): forward", 1, 1),
        ("/home/me/data", 0, 1),
        ("/Users/me/x and /root/y/z", 0, 2),
        ("/homer/simpson", 0, 0),
        ("https://example.org/page", 0, 0),
        ("a.py.b/c.pyd", 0, 0),
    ],
)
def test_what_counts_as_a_path(text: str, files: int, paths: int) -> None:
    assert len(source_files(text)) == files
    assert len(machine_paths(text)) == paths
