"""Residual blocks of any graph: what is added to the stream that it starts from, and can be left out.

A block ends in an Add. One operand is the stream; the other, the branch, is made by nodes that serve nothing
else, one of which at least reads the stream itself, as it is or before other branches were added to it. That
covers the blocks of ResNets and inverted residuals (Relu behind the Add or not), attention and MLP
sub-blocks of transformers whose norms come first or last, and blocks inside of blocks. Masks, biases and
positions that are added do not start from what they are added to.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir.dead import nodes_that_serve, remove_unread
from graphopt.ir.rewrite import bypass_node, is_op, replace_value
from graphopt.ir.tensors import constant_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.ir import Model
    from graphopt.ir.shapes import Shapes

_FLOATS = frozenset({
    oir.DataType.FLOAT, oir.DataType.FLOAT16, oir.DataType.BFLOAT16, oir.DataType.DOUBLE,
})  # fmt: skip

_MOVES = frozenset({
    "Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""A stream stays the same stream through these."""


@dataclass(frozen=True, slots=True)
class Block:
    """One residual block.

    Attributes:
        name: Name of the Add, or of its output where it has none or shares it with another node or value.
        output: Name of the output of the Add; copies of the model are asked for it.
        operand: Which input of the Add the stream is.
        stream: Name of that value.
        branch: Name of the other input.
        dtype: Element type of both.
        add: The Add.
        nodes: What goes with the block apart from the Add.
    """

    name: str
    output: str
    operand: int
    stream: str
    branch: str
    dtype: oir.DataType
    add: oir.Node
    nodes: frozenset[oir.Node]

    def is_named_by(self, pattern: str) -> bool:
        """Return whether *pattern* names the block or the output of its Add, or (* and ?) fits either."""
        names = (self.name, self.output)
        return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)

    def holds(self, pattern: str) -> bool:
        """Return whether *pattern* fits the block, a node in it, or a weight of one."""
        read = (value for node in self.nodes for value in node.inputs if value is not None)
        names = {self.name, self.output, *(node.name for node in self.nodes)}
        names |= {value.name for value in read if value.is_initializer()}
        return any(fnmatch.fnmatchcase(name, pattern) for name in names if name)


def find_blocks(model: Model, shapes: Shapes) -> tuple[list[Block], list[tuple[str, str]]]:
    """Return the residual blocks of *model*, in graph order, and the additions that end none, with reasons.

    Args:
        model: Any model; it is not changed.
        shapes: Its shapes.
    """
    blocks: list[Block] = []
    skipped: list[tuple[str, str]] = []
    names = Counter(name for node in model.graph for name in {node.name, *(one.name for one in node.outputs)})
    for node in model.graph:
        if not is_op(node, "Add") or any(value is None or constant_of(value) for value in node.inputs):
            continue
        if shapes.dtype(node.outputs[0]) not in _FLOATS:
            continue  # sums of sizes
        output = node.outputs[0].name or ""
        name = node.name if node.name and names[node.name] == 1 else output
        found = _block_of(node, name, shapes)
        if isinstance(found, str):
            skipped.append((f"Add {name!r}", found))
        else:
            blocks.append(found)
    return blocks, skipped


def _block_of(add: oir.Node, name: str, shapes: Shapes) -> Block | str:
    output = add.outputs[0]
    dtype = shapes.dtype(output)
    assert dtype is not None
    reason = "neither operand starts from the other and serves nothing else"
    for operand in (0, 1):
        stream, branch = add.inputs[operand], add.inputs[1 - operand]
        assert stream is not None
        assert branch is not None
        if stream is branch:
            continue
        nodes = nodes_that_serve(branch, add)
        origins = _origins(stream)
        if not any(value in origins for node in nodes for value in node.inputs):
            continue
        shape = shapes.shape(stream)
        if shape is None or None in shape or shape != shapes.shape(output):
            reason = "what stays is not known to have the shape of the sum"
            continue
        return Block(
            name,
            output.name or "",
            operand,
            stream.name or "",
            branch.name or "",
            dtype,
            add,
            frozenset(nodes),
        )
    return reason


def _origins(stream: oir.Value) -> set[oir.Value]:
    """Return *stream* and what it was before it was moved and before branches were added to it."""
    found = {stream}
    stack = [stream]
    while stack:
        node = stack.pop().producer()
        if node is None:
            continue
        inputs = node.inputs if is_op(node, "Add", "Sum") else node.inputs[:1] if is_op(node, *_MOVES) else ()
        new = [value for value in inputs if value is not None and value not in found]
        found.update(new)
        stack += new
    return found


def bypass(model: Model, blocks: Iterable[Block]) -> None:
    """Let the sums of *blocks* in *model* be their streams; values keep their names, branches stay unread.

    Args:
        model: The model that the blocks were found in, or a copy of it.
        blocks: What to leave out.
    """
    for node, block in _sums(model, blocks):
        bypass_node(model, node, block.operand)


def remove(model: Model, blocks: Iterable[Block]) -> int:
    """Remove *blocks* from *model* with all that only served them; return how many nodes went.

    Args:
        model: As for :func:`bypass`.
        blocks: What to remove, in graph order.
    """
    removed = 0
    for node, block in _sums(model, blocks):
        if node.graph is None:
            continue  # it stood in the branch of another
        stream, branch = node.inputs[block.operand], node.inputs[1 - block.operand]
        assert stream is not None
        replace_value(model, node.outputs[0], stream)
        removed += remove_unread([node.outputs[0]])
        removed += remove_unread([branch])
    return removed


def _sums(model: Model, blocks: Iterable[Block]) -> list[tuple[oir.Node, Block]]:
    wanted = {block.output: block for block in blocks}
    return [
        (node, wanted[value.name]) for node in model.graph for value in node.outputs if value.name in wanted
    ]


def independent(blocks: Sequence[Block], chosen: Sequence[Block]) -> list[Block]:
    """Return those of *blocks* that are still there once the *chosen* ones are left out."""
    gone = {node for block in chosen for node in (block.add, *block.nodes)}
    return [block for block in blocks if block.add not in gone]
