"""Marks on nodes that compute a constant which is deliberately not stored.

Folding such a node would store again what a pass has taken out of the file. Most are recognised by what they
are (a table that is looked up, a value that grows); the mark settles the cases that would depend on budgets.
It is the node's documentation, which every version of ONNX keeps and no runtime reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as oir

_MARK = "packed constant"


def mark_packed(node: oir.Node) -> oir.Node:
    """Say that *node* computes a constant that is to stay computed, and return it."""
    node.doc_string = _MARK
    return node


def is_packed(node: oir.Node) -> bool:
    """Return whether *node* computes a constant that is to stay computed."""
    return node.doc_string == _MARK
