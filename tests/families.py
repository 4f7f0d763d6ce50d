"""One tiny model per feature family of ONNX: everything that a load and a save could lose.

Each builder returns a fresh ModelProto. The names say the family; what is special is in the docstring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - registers the low-precision dtypes with numpy
import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
_LOW_PRECISION = (
    "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0",
    "FLOAT4E2M1", "INT4", "UINT4", "INT2", "UINT2",
)  # fmt: skip
LOW_PRECISION = tuple(kind for kind in _LOW_PRECISION if hasattr(TensorProto, kind))
"""Names of the low-precision types that the installed onnx knows."""


def info(name: str, dtype: int = FLOAT, shape: Any = ("N", 4)) -> onnx.ValueInfoProto:
    """A tensor value; *shape* None means of unknown rank."""
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    """A float32 weight with a distinct value at every place."""
    values = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return numpy_helper.from_array(values, name)


def add_props(message: Any, **props: str) -> None:
    """Append metadata properties."""
    for key, value in props.items():
        message.metadata_props.add(key=key, value=value)


def model(
    graph: onnx.GraphProto,
    *,
    opset: int = 21,
    ir_version: int = 10,
    domains: tuple[tuple[str, int], ...] = (),
    **fields: Any,
) -> onnx.ModelProto:
    """A model around *graph*; *domains* are further opset imports."""
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*pair) for pair in domains)]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, producer_name="families", **fields
    )


def branches() -> onnx.ModelProto:
    """If whose branches capture outer values, hold initializers, and carry docs and value_info."""
    then_nodes = [helper.make_node("Mul", ["x", "scale"], ["then_out"], name="then_mul")]
    then = helper.make_graph(then_nodes, "then_graph", [], [info("then_out")], doc_string="taken when true")
    else_nodes = [
        helper.make_node("Sub", ["x", "shift"], ["moved"], name="else_sub"),
        helper.make_node("Relu", ["moved"], ["else_out"], name="else_relu"),
    ]
    otherwise = helper.make_graph(
        else_nodes,
        "else_graph",
        [],
        [info("else_out")],
        initializer=[weight("shift", 4)],
        value_info=[info("moved")],
    )
    add_props(otherwise, origin="else branch")
    node = helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=then, else_branch=otherwise)
    graph = helper.make_graph(
        [node], "branches", [info("flag", BOOL, []), info("x")], [info("y")], initializer=[weight("scale", 4)]
    )
    return model(graph)


def loops() -> onnx.ModelProto:
    """Loop with a nested If, and Scan; bodies reach through two levels of scope."""
    keep = helper.make_graph(
        [helper.make_node("Identity", ["state_in"], ["kept"])], "keep", [], [info("kept")]
    )
    grow = helper.make_graph(
        [helper.make_node("Mul", ["state_in", "factor"], ["grown"])], "grow", [], [info("grown")]
    )
    loop_nodes = [
        helper.make_node("If", ["go_in"], ["picked"], name="inner_if", then_branch=keep, else_branch=grow),
        helper.make_node("Add", ["picked", "x"], ["state_out"], name="accumulate"),
        helper.make_node("Identity", ["go_in"], ["go_out"]),
        helper.make_node("Identity", ["state_out"], ["collected"]),
    ]
    loop_body = helper.make_graph(
        loop_nodes,
        "loop_body",
        [info("step", INT64, []), info("go_in", BOOL, []), info("state_in")],
        [info("go_out", BOOL, []), info("state_out"), info("collected")],
        value_info=[info("picked")],
    )
    scan_nodes = [
        helper.make_node("Add", ["sum_in", "row"], ["sum_out"]),
        helper.make_node("Identity", ["sum_out"], ["row_out"]),
    ]
    scan_body = helper.make_graph(
        scan_nodes,
        "scan_body",
        [info("sum_in", shape=[4]), info("row", shape=[4])],
        [info("sum_out", shape=[4]), info("row_out", shape=[4])],
    )
    nodes = [
        helper.make_node("Loop", ["trips", "go", "x"], ["y", "ys"], name="loop", body=loop_body),
        helper.make_node(
            "Scan", ["zero", "y"], ["total", "sums"], name="scan", body=scan_body, num_scan_inputs=1
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "loops",
        [info("trips", INT64, []), info("go", BOOL, []), info("x")],
        [info("ys", shape=("T", "N", 4)), info("total", shape=[4]), info("sums")],
        initializer=[weight("factor", 4), numpy_helper.from_array(np.zeros(4, np.float32), "zero")],
    )
    return model(graph)


def functions() -> onnx.ModelProto:
    """A function with an overload, defaulted and plain attributes, references, docs, metadata, value_info."""
    nodes = [
        helper.make_node("Constant", [], ["k"], name="constant"),
        helper.make_node("Mul", ["X", "k"], ["Z"], name="times", doc_string="inside a function"),
        helper.make_node("LeakyRelu", ["Z"], ["Y"], name="leak"),
    ]
    nodes[0].attribute.add(name="value_float", type=AttributeProto.FLOAT, ref_attr_name="factor")
    nodes[2].attribute.add(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="alpha", doc_string="slope")
    add_props(nodes[1], layer="0")
    function = helper.make_function(
        "acme.ops",
        "ScaleLeak",
        ["X"],
        ["Y"],
        nodes,
        [helper.make_opsetid("", 21)],
        attributes=["alpha"],
        attribute_protos=[helper.make_attribute("factor", 2.5)],
        doc_string="scale, then leak",
        overload="v2",
        value_info=[info("Z"), info("X")],
    )
    add_props(function, origin="hand")
    outer = helper.make_function(
        "acme.ops", "Twice", ["A"], ["B"],
        [
            helper.make_node("ScaleLeak", ["A"], ["M"], domain="acme.ops", overload="v2", alpha=0.1),
            helper.make_node("ScaleLeak", ["M"], ["B"], domain="acme.ops", overload="v2", alpha=0.2),
        ],
        [helper.make_opsetid("acme.ops", 1), helper.make_opsetid("", 20)],
    )  # fmt: skip
    node = helper.make_node("Twice", ["x"], ["y"], name="call", domain="acme.ops")
    graph = helper.make_graph([node], "functions", [info("x")], [info("y")])
    return model(graph, domains=(("acme.ops", 1),), functions=[outer, function])


def old_function_infos() -> onnx.ModelProto:
    """IR 9: value_info of functions stands in the main graph (``domain::name/value``); one names nothing."""
    function = helper.make_function(
        "acme.ops",
        "Square",
        ["X"],
        ["Y"],
        [helper.make_node("Mul", ["X", "X"], ["Y"])],
        [helper.make_opsetid("", 18)],
    )
    node = helper.make_node("Square", ["x"], ["y"], name="call", domain="acme.ops")
    infos = [
        info("acme.ops::Square/Y"),
        info("acme.ops::Square/X"),
        info("acme.ops::Gone/Y"),
        info("acme.ops::Square/Q"),
    ]
    graph = helper.make_graph([node], "old", [info("x")], [info("y")], value_info=infos)
    return model(graph, opset=18, ir_version=9, domains=(("acme.ops", 1),), functions=[function])


def docs_and_metadata() -> onnx.ModelProto:
    """A doc string and metadata wherever ONNX has a place for one."""
    w = weight("w", 4, 4)
    w.doc_string = "a weight"
    add_props(w, tensor_key="tensor value", second="2")
    x, middle, y = info("x"), info("m"), info("y")
    x.doc_string, middle.doc_string, y.doc_string = "the input", "in between", "the output"
    add_props(x, input_key="1")
    add_props(middle, middle_key="2")
    add_props(y, output_key="3")
    matmul = helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul", doc_string="a node")
    add_props(matmul, zeta="last", alpha="first")
    leaky = helper.make_node("LeakyRelu", ["m"], ["k"], name="leaky", alpha=0.25)
    leaky.attribute[0].doc_string = "an attribute"
    t = weight("attribute_tensor", 4)
    t.doc_string = "a tensor inside an attribute"
    add_props(t, where="attribute")
    constant = helper.make_node("Constant", [], ["c"], name="constant", value=t)
    add = helper.make_node("Add", ["k", "c"], ["y"], name="add")
    graph = helper.make_graph(
        [matmul, leaky, constant, add],
        "docs",
        [x],
        [y],
        initializer=[w],
        value_info=[middle],
        doc_string="a graph",
    )
    add_props(graph, graph_key="graph value")
    proto = model(graph)
    proto.domain, proto.model_version, proto.doc_string, proto.producer_version = (
        "com.acme",
        7,
        "a model",
        "1.2.3",
    )
    add_props(proto, model_key="model value")
    return proto


def quantization_annotations() -> onnx.ModelProto:
    """Annotations of an input, an initializer, an inner value, an output, and a name that is nowhere."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul"),
            helper.make_node("Relu", ["m"], ["y"]),
        ],
        "annotated",
        [info("x")],
        [info("y")],
        initializer=[
            weight("w", 4, 4),
            numpy_helper.from_array(np.array(0.1, np.float32), "s"),
            numpy_helper.from_array(np.array(3, np.int8), "z"),
        ],
    )
    for name in ("x", "w", "m", "y", "nowhere"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
        annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="z")
    graph.quantization_annotation.add(tensor_name="s")
    return model(graph)


def low_precision() -> onnx.ModelProto:
    """An initializer of every low-precision type, raw and in the typed field, with an odd element count."""
    initializers, nodes, outputs = [], [], []
    for kind in LOW_PRECISION:
        dtype = getattr(TensorProto, kind)
        values = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], np.float32).astype(
            helper.tensor_dtype_to_np_dtype(dtype)
        )
        raw = numpy_helper.from_array(values, f"raw_{kind}")
        packed = np.frombuffer(raw.raw_data, np.uint16 if kind in {"FLOAT16", "BFLOAT16"} else np.uint8)
        typed = TensorProto(name=f"typed_{kind}", data_type=dtype, dims=[3, 3], int32_data=packed.tolist())
        for tensor in (raw, typed):
            initializers.append(tensor)
            nodes.append(helper.make_node("Cast", [tensor.name], [f"{tensor.name}_float"], to=FLOAT))
            outputs.append(info(f"{tensor.name}_float", shape=[3, 3]))
    return model(
        helper.make_graph(nodes, "low", [], outputs, initializer=initializers), opset=25, ir_version=13
    )


def sparse() -> onnx.ModelProto:
    """Sparse initializers with linear and coordinate indices, one in a subgraph, and a sparse constant."""

    def tensor(name: str, values: list[float], indices: Any, dims: list[int]) -> onnx.SparseTensorProto:
        positions = numpy_helper.from_array(np.array(indices, np.int64))
        return helper.make_sparse_tensor(
            helper.make_tensor(name, FLOAT, [len(values)], values), positions, dims
        )

    constant = helper.make_node("Constant", [], ["k"], name="sparse_constant")
    constant.attribute.append(helper.make_attribute("sparse_value", tensor("", [1.0, 2.0], [1, 3], [4])))
    many = helper.make_node("Keep", [], ["kept"], name="custom", domain="acme.ops")
    many.attribute.add(
        name="both",
        type=AttributeProto.SPARSE_TENSORS,
        sparse_tensors=[tensor("a", [1.0], [0], [2]), tensor("b", [], [], [3])],
    )
    inner = helper.make_graph([helper.make_node("Add", ["x", "inner_w"], ["t"])], "inner", [], [info("t")])
    inner.sparse_initializer.append(tensor("inner_w", [3.0], [2], [4]))
    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "plain", [], [info("e")])
    nodes = [
        constant,
        many,
        helper.make_node("If", ["flag"], ["b"], then_branch=inner, else_branch=plain),
        helper.make_node("MatMul", ["b", "w"], ["m"], name="matmul"),
        helper.make_node("MatMul", ["m", "v"], ["n"]),
        helper.make_node("Add", ["n", "k"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes,
        "sparse",
        [info("x"), info("flag", BOOL, [])],
        [info("y")],
        value_info=[info("v", shape=[4, 4])],
    )
    graph.sparse_initializer.append(tensor("w", [1.0, 2.0, 3.0], [0, 5, 10], [4, 4]))
    graph.sparse_initializer.append(tensor("v", [4.0, 5.0], [[0, 1], [3, 3]], [4, 4]))
    return model(graph, domains=(("acme.ops", 1),))


def symbolic_shapes() -> onnx.ModelProto:
    """Named, unnamed and arithmetic dims, unknown rank, denotations, values that have a name and no type."""
    x = info("x", shape=["batch", None, "seq*2+1", 4])
    x.type.denotation = "IMAGE"
    x.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    x.type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    typed_only = onnx.ValueInfoProto(name="n")
    typed_only.type.tensor_type.elem_type = FLOAT
    empty_type = onnx.ValueInfoProto(name="q")
    empty_type.type.tensor_type.SetInParent()
    nothing = onnx.ValueInfoProto(name="i")
    nothing.type.SetInParent()
    shape_only = onnx.ValueInfoProto(name="p")
    shape_only.type.tensor_type.shape.dim.add(dim_param="batch")
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["m"], name="relu"),
            helper.make_node("Mul", ["m", "s"], ["name_only"], name="mul"),
            helper.make_node("Neg", ["name_only"], ["n"]),
            helper.make_node("Exp", ["n"], ["q"]),
            helper.make_node("Abs", ["q"], ["p"]),
            helper.make_node("Identity", ["p"], ["i"]),
            helper.make_node("Neg", ["i"], ["y"]),
            helper.make_node("Abs", ["u"], ["z"]),
        ],
        "symbolic",
        [x, info("s", shape=[]), info("u", shape=None)],
        [info("y", shape=["batch", None, None, 4]), info("z", shape=None)],
        value_info=[
            info("m", shape=["batch", "d1", None, 4]),
            onnx.ValueInfoProto(name="name_only"),
            typed_only,
            empty_type,
            shape_only,
            nothing,
        ],
    )
    return model(graph)


def types_and_attributes() -> onnx.ModelProto:
    """Sequences, optionals, sparse types, and an attribute of every kind, empty and non-UTF-8 ones too."""
    sequence = helper.make_value_info(
        "seq", helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, ["n"]))
    )
    optional = helper.make_value_info(
        "opt", helper.make_optional_type_proto(helper.make_tensor_type_proto(INT64, [2]))
    )
    nested = helper.make_value_info(
        "nested",
        helper.make_optional_type_proto(
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
        ),
    )
    nested.type.optional_type.elem_type.denotation = "INNER"
    sparse_in = helper.make_value_info("sparse_in", helper.make_sparse_tensor_type_proto(FLOAT, [3, "k"]))
    opaque = onnx.ValueInfoProto(name="opaque")
    opaque.type.denotation = "ONLY A DENOTATION"
    node = helper.make_node(
        "Everything", ["seq", "", "opt", "nested", "sparse_in", ""], ["y", "", "q"], name="all", domain="c.d"
    )

    def add(name: str, value: Any, kind: int | None = None) -> None:
        node.attribute.append(helper.make_attribute(name, value, attr_type=kind))

    add("float", 1.5)
    add("whole_float", 2.0)
    add("int", -(2**62))
    add("text", "text")
    add("bytes", b"\xff\xfe raw")
    add("empty_text", "")
    add("floats", [1.0, -0.0])
    add("ints", [1, 2])
    add("texts", ["a", "b"])
    node.attribute.add(name="byte_strings", type=AttributeProto.STRINGS, strings=[b"\xff", b"ok"])
    add("no_ints", [], AttributeProto.INTS)
    add("no_floats", [], AttributeProto.FLOATS)
    add("no_texts", [], AttributeProto.STRINGS)
    node.attribute.add(name="nan", type=AttributeProto.FLOAT, f=float("nan"))
    node.attribute.add(name="infinite", type=AttributeProto.FLOATS, floats=[float("inf"), float("-inf")])
    add("tensor", numpy_helper.from_array(np.array([1, 2], np.int64), "named_tensor"))
    add("tensors", [weight("a0", 1), weight("", 2)])
    add("no_tensors", [], AttributeProto.TENSORS)
    body = helper.make_graph(
        [helper.make_node("Identity", ["gi"], ["go"])], "body", [info("gi")], [info("go")]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["hi"], ["ho"])], "other", [info("hi")], [info("ho")]
    )
    add("graph", body)
    add("graphs", [other])
    add("type", helper.make_tensor_type_proto(FLOAT, [1, "n"]))
    add("types", [helper.make_tensor_type_proto(FLOAT, None), sequence.type], AttributeProto.TYPE_PROTOS)
    graph = helper.make_graph(
        [
            node,
            helper.make_node("Identity", ["y"], ["z"]),
            helper.make_node("Look", ["opaque"], ["w"], domain="c.d"),
        ],
        "types",
        [sequence, optional, nested, sparse_in, opaque],
        [info("z"), helper.make_value_info("q", sequence.type), info("w")],
    )
    return model(graph, domains=(("c.d", 5), ("ai.onnx.ml", 3)))


def graph_edges() -> onnx.ModelProto:
    """Initializers that are inputs or outputs, an input that is an output, equal node names, leftovers."""
    typed = helper.make_tensor("w", FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    strings = TensorProto(name="strings", data_type=STRING, dims=[2], string_data=[b"a", b"\xff"])
    empty = numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty")
    scalar = numpy_helper.from_array(np.array(1.5, np.float16), "scalar")
    complex_ = TensorProto(name="complex", data_type=TensorProto.COMPLEX64, dims=[1], float_data=[1, 2])
    wide = helper.make_tensor("wide", TensorProto.UINT64, [2], [2**64 - 1, 0])
    double = helper.make_tensor("double", TensorProto.DOUBLE, [1], [0.1])
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], name="same"),
        helper.make_node("Add", ["a", "w"], ["y"], name="same"),
        helper.make_node("Dropout", ["a"], ["dropped", "mask"]),
        helper.make_node("Pair", ["a", "", "x"], ["", "second"], domain="never.used"),
        helper.make_node("Identity", ["strings"], ["strings_out"]),
        helper.make_node("Identity", ["empty"], ["empty_out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "edges",
        [info("x"), info("w", shape=[4]), info("unused_input", STRING, ["S"])],
        [
            info("y"),
            info("x"),
            info("scalar", TensorProto.FLOAT16, []),
            info("strings_out", STRING, [2]),
            info("empty_out", shape=[0, 3]),
            info("w", shape=[4]),
        ],
        initializer=[typed, strings, empty, scalar, complex_, wide, double, weight("unused", 2, 2)],
        value_info=[info("a"), info("ghost"), info("unused", shape=[2, 2]), info("x", shape=["N", 4])],
    )
    return model(graph, domains=(("never.used", 1), ("ai.onnx.ml", 4)))


def devices() -> onnx.ModelProto:
    """Multi-device annotations of the model and of nodes, one of an inner value."""
    node = helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul")
    config = node.device_configurations.add(configuration_id="pair", pipeline_stage=1)
    spec = config.sharding_spec.add(tensor_name="x", device=[0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(dim_param="N", num_shards=2)
    spec.sharded_dim.add(axis=1).simple_sharding.add(dim_value=4, num_shards=1)
    spec.index_to_device_group_map.add(key=0, value=[0, 1])
    relu = helper.make_node("Relu", ["m"], ["y"])
    relu.device_configurations.add(configuration_id="pair").sharding_spec.add(tensor_name="m", device=[0])
    proto = model(
        helper.make_graph([node, relu], "devices", [info("x")], [info("y")], initializer=[weight("w", 4, 4)]),
        opset=23,
        ir_version=11,
    )
    proto.configuration.add(name="pair", num_devices=2, device=["gpu0", "gpu1"])
    return proto


def inputs_with_defaults() -> onnx.ModelProto:
    """IR 3, where every initializer has to be an input too."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[1, 1])],
        "old",
        [info("w", shape=[2, 3, 1, 1]), info("x", shape=[1, 3, 4, 4]), info("b", shape=[2])],
        [info("y", shape=[1, 2, 4, 4])],
        initializer=[weight("b", 2), weight("w", 2, 3, 1, 1)],
    )
    return model(graph, opset=7, ir_version=3)


def spelled_out_domain() -> onnx.ModelProto:
    """The default domain by its long name, in the import and in one of two nodes."""
    nodes = [
        helper.make_node("Relu", ["x"], ["m"], domain="ai.onnx"),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    proto = model(helper.make_graph(nodes, "spelled", [info("x")], [info("y")]))
    proto.opset_import[0].domain = "ai.onnx"
    return proto


FAMILIES: dict[str, Callable[[], onnx.ModelProto]] = {
    "branches": branches,
    "loops": loops,
    "functions": functions,
    "old_function_infos": old_function_infos,
    "docs_and_metadata": docs_and_metadata,
    "quantization_annotations": quantization_annotations,
    "low_precision": low_precision,
    "sparse": sparse,
    "symbolic_shapes": symbolic_shapes,
    "types_and_attributes": types_and_attributes,
    "graph_edges": graph_edges,
    "devices": devices,
    "inputs_with_defaults": inputs_with_defaults,
    "spelled_out_domain": spelled_out_domain,
}


def write_external_family(folder: Path) -> Path:
    """External data: two tensors in a file with a gap, one in a sub-folder, extra keys, a packed type."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    w, b = np.arange(64, dtype=np.float32).reshape(4, 16), np.arange(16, dtype=np.int8)
    nibbles = np.arange(3, dtype=np.uint8)
    (folder / "w.bin").write_bytes(w.tobytes() + b"\0" * (4096 - w.nbytes) + b.tobytes())
    (folder / "parts" / "p.bin").write_bytes(nibbles.tobytes())

    def tensor(name: str, dtype: int, dims: list[int], **entries: str) -> onnx.TensorProto:
        proto = TensorProto(name=name, data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in entries.items():
            proto.external_data.add(key=key, value=value)
        return proto

    tensors = [
        tensor("w", FLOAT, [4, 16], location="w.bin", offset="0", length="256", checksum="ab" * 20),
        tensor("b", TensorProto.INT8, [16], location="w.bin", offset="4096", length="16"),
        tensor("p", TensorProto.UINT4, [5], location="parts/p.bin"),
    ]
    tensors[0].doc_string = "external weight"
    add_props(tensors[1], key="value")
    inside = tensor("inside", FLOAT, [16], location="w.bin", offset="64", length="64")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul"),
        helper.make_node("Cast", ["b"], ["bf"], to=FLOAT),
        helper.make_node("Constant", [], ["c"], value=inside),
        helper.make_node("Add", ["m", "bf"], ["s"]),
        helper.make_node("Add", ["s", "c"], ["y"]),
        helper.make_node("Cast", ["p"], ["pf"], to=FLOAT),
    ]
    outputs = [info("y", shape=("N", 16)), info("pf", shape=[5])]
    proto = model(helper.make_graph(nodes, "external", [info("x")], outputs, initializer=tensors))
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path
