"""Embeddings: a table [V, d] becomes a thin table [V, r] and a matrix [r, d] behind the Gather."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

from graphopt.ir.dead import remove_unread
from graphopt.ir.rewrite import add_initializer, attribute, is_op, make_node, replace_node
from graphopt.ir.stream import is_finite
from graphopt.ir.tensors import constant_of, to_array
from graphopt.recover.lowrank import Weighed, decompose, energies

if TYPE_CHECKING:
    from graphopt.ir.model import Model
    from graphopt.ir.spill import Spill
    from graphopt.passes.lowrank.candidates import Rules
    from graphopt.recover.moments import Matrix

_FLOATS = frozenset({oir.DataType.FLOAT, oir.DataType.FLOAT16, oir.DataType.BFLOAT16, oir.DataType.DOUBLE})


@dataclass(slots=True)
class Tables:
    """What was done.

    Attributes:
        count: Tables that are thin now.
        skipped: What was left alone, with the reason.
    """

    count: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def factorize(model: Model, options: Any, rules: Rules, spill: Spill) -> Tables:  # noqa: ANN401 - the pass's
    """Make the tables of all embeddings thin: by ``rank``, ``weight_ratio``, ``params_ratio`` or ``energy``.

    A rank counts where it saves parameters by the least gain; the MACs of the matrix come on top.
    """
    tables = Tables()
    for node in list(model.nodes()):
        if not is_op(node, "Gather") or attribute(node, "axis", 0) != 0:
            continue
        table = node.inputs[0]
        tensor = constant_of(table)
        if table is None or tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
            continue
        if constant_of(node.inputs[1]) is not None:
            continue
        where = f"Gather {node.name or node.outputs[0].name!r}"
        reason = _refused(node, table, options)
        if not reason and not is_finite(tensor):
            reason = "its table holds NaN or infinity"
        if reason:
            tables.skipped.append((where, reason))
            continue
        words, width = tensor.shape.numpy()
        ratio = options.weight_ratio or options.params_ratio
        if options.rank is not None:
            rank = options.rank
        elif ratio is not None:
            rank = int(ratio * words * width / (words + width))
        else:
            gram = Weighed(to_array(tensor)).gram()
            rank = energies(gram).rank_for(0.99 if options.energy is None else options.energy)
        rank = max(-(-rank // rules.round_to) * rules.round_to if ratio is None else rank, 1)
        if rank * (words + width) * max(rules.min_gain, 1.0) > words * width:
            tables.skipped.append((where, f"rank {rank} does not pay for a table of {words} x {width}"))
            continue
        outer, inner = decompose(to_array(tensor), largest_rank=rank).cut(rank)
        _put(model, node, tensor, outer, inner, spill)
        tables.count += 1
    return tables


def _refused(node: oir.Node, table: oir.Value, options: Any) -> str:  # noqa: ANN401 - the pass's
    if any(fnmatch.fnmatchcase(node.name or "", pattern) for pattern in options.keep):
        return "kept by name"
    if table.is_graph_output():
        return "its table is an output of the model"
    return "others read its table" if len(table.uses()) > 1 else ""


def _put(
    model: Model, node: oir.Node, tensor: oir.TensorProtocol, outer: Matrix, inner: Matrix, spill: Spill
) -> None:
    graph, table = node.graph, node.inputs[0]
    assert graph is not None
    assert table is not None
    kind = tensor.dtype.numpy()
    thin, wide = (
        add_initializer(model, graph, name, spill.keep(content.astype(kind), tensor, name))
        for name, content in ((f"{table.name}_inner", outer), (f"{table.name}_outer", inner))
    )
    gather = make_node(
        model, "Gather", [thin, node.inputs[1]], name=f"{node.name or 'gather'}_inner", replaces=[node]
    )
    graph.insert_before(node, gather)
    matmul = make_node(model, "MatMul", [gather.outputs[0], wide], name=node.name or "", replaces=[node])
    replace_node(model, node, matmul)
    remove_unread([table])
