"""Step by step through the versions of one operator: keep, adapt or refuse."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

from onnx import defs

from graphopt.passes.opset.adapters import ADAPTERS
from graphopt.passes.opset.edit import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as oir

    from graphopt.passes.opset.edit import Edit


@cache
def _history() -> Mapping[str, tuple[int, ...]]:
    """Return the versions in which each operator of the default domain changed, ascending."""
    versions: dict[str, list[int]] = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        if not schema.domain:
            versions[schema.name].append(schema.since_version)
    return {name: tuple(sorted(numbers)) for name, numbers in versions.items()}


@cache
def _schema(op_type: str, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op_type, max_inclusive_version=opset, domain="")
    except defs.SchemaError:
        return None


def upgrade_node(edit: Edit, node: oir.Node, start: int) -> bool:
    """Write *node*, valid in opset *start*, for ``edit.to``; return whether anything had to change.

    Raises:
        Refused: It cannot be written for the newer opset; the message says which versions and why.
    """
    schema = _schema(node.op_type, start)
    if schema is None:
        raise Refused(f"opset {start} has no operator {node.op_type}")
    version, changed = schema.since_version, False
    while True:
        newer = next((v for v in _history().get(node.op_type, ()) if version < v <= edit.to), None)
        if newer is None:
            return changed
        op_type = node.op_type
        try:
            changed |= _step(edit, node, newer)
        except Refused as refused:
            raise Refused(f"{op_type} changed from version {version} to {newer}: {refused}") from refused
        added, edit.added = edit.added, []
        for new, written_for in added:
            upgrade_node(edit, new, written_for or newer)
        if node.graph is None:
            return True
        version = newer


def _step(edit: Edit, node: oir.Node, newer: int) -> bool:
    adapter = ADAPTERS.get((node.op_type, newer))
    if adapter is not None:
        before = _form(node)
        adapter(edit, node)
        # An adapter also stands where only some uses of an operator changed.
        return node.graph is None or _form(node) != before
    new = _schema(node.op_type, newer)
    assert new is not None
    if new.deprecated:
        raise Refused("it was taken out of ONNX")
    unknown = [name for name in node.attributes if name not in new.attributes]
    if unknown:
        raise Refused(f"the newer version has no attribute {unknown[0]!r}")
    if len(node.inputs) > new.max_input or len(node.outputs) > new.max_output:
        raise Refused("the newer version has fewer inputs or outputs")
    return False


def _form(node: oir.Node) -> tuple[object, ...]:
    return node.op_type, tuple(node.inputs), tuple(node.attributes.items()), len(node.outputs)
