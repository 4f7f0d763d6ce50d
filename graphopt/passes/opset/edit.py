"""What an adapter may do to a node, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from graphopt.ir import rewrite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.ir import Model, Shapes
    from graphopt.ir.shapes import Shape


class Refused(Exception):  # noqa: N818 - caught by the pass, which turns it into an error that names the node
    """The node cannot be written in the newer version without changing what it computes."""


@dataclass(slots=True)
class Edit:
    """The edits of one upgrade.

    Attributes:
        model: The model, changed in place.
        to: Version that the upgrade ends at.
        shapes: Shapes and types before the upgrade.
        added: Nodes made by the adapter that runs, each with the version that it is written for; None is the
            version that the adapter writes.
        notes: (node, remark) for the report.
    """

    model: Model
    to: int
    shapes: Shapes
    added: list[tuple[oir.Node, int | None]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    _stands_for: dict[oir.Value, oir.Value] = field(default_factory=dict)

    def shape_of(self, value: oir.Value | None) -> Shape | None:
        """Return the shape of *value*, also where the upgrade itself put it in the place of another."""
        return self.shapes.shape(self._stands_for.get(value, value) if value is not None else None)

    def read(self, node: oir.Node, name: str, default: Any = None) -> Any:  # noqa: ANN401 - any attribute
        """Return the value of attribute *name* of *node*, or *default*.

        Raises:
            Refused: It refers to an attribute of the enclosing function, whose value is not known here.
        """
        attribute = node.attributes.get(name)
        if attribute is None:
            return default
        if attribute.is_ref():
            referred = attribute.ref_attr_name
            raise Refused(f"attribute {name!r} refers to attribute {referred!r} of the function")
        return attribute.value

    def take(self, node: oir.Node, name: str, default: Any = None) -> Any:  # noqa: ANN401 - any attribute
        """Remove attribute *name* from *node* and return its value, or *default*; see :meth:`read`."""
        value = self.read(node, name, default)
        node.attributes.pop(name, None)
        return value

    def set(self, node: oir.Node, name: str, value: Any) -> None:  # noqa: ANN401 - any attribute
        """Set attribute *name* of *node*."""
        node.attributes[name] = oir.convenience.convert_attribute(name, value)

    def ints(self, node: oir.Node, hint: str, values: Sequence[int]) -> oir.Value:
        """Return a constant int64 vector visible to *node*."""
        return self.constant(node, hint, np.array(values, np.int64))

    def constant(self, node: oir.Node, hint: str, array: Any) -> oir.Value:  # noqa: ANN401 - numpy arrays
        """Return a constant visible to *node*, named after the node."""
        assert node.graph is not None
        return rewrite.add_initializer(self.model, node.graph, f"{node.name or node.op_type}_{hint}", array)

    def scalar_like(self, node: oir.Node, hint: str, number: float, like: oir.Value | None) -> oir.Value:
        """Return a constant scalar of the element type of *like*.

        Raises:
            Refused: That element type is unknown.
        """
        known = None if like is None else self._stands_for.get(like, like)
        dtype = self.shapes.dtype(known) or (None if like is None else like.dtype)
        if dtype is None:
            raise Refused("the element type of its input is unknown")
        return self.constant(node, hint, np.array(number).astype(dtype.numpy()))

    def give_inputs(self, node: oir.Node, inputs: Sequence[oir.Value | None]) -> None:
        """Make *inputs* the inputs of *node*; omitted ones at the end are left out."""
        wanted = list(inputs)
        while wanted and wanted[-1] is None:
            wanted.pop()
        node.resize_inputs(len(wanted))
        for index, value in enumerate(wanted):
            node.replace_input_with(index, value)

    def before(
        self,
        node: oir.Node,
        op_type: str,
        inputs: Sequence[oir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> oir.Value:
        """Insert a node before *node* and return its output."""
        new = rewrite.make_node(self.model, op_type, inputs, attributes=attributes, replaces=[node])
        assert node.graph is not None
        node.graph.insert_before(node, new)
        self.added.append((new, None))
        return new.outputs[0]

    def replace(
        self,
        node: oir.Node,
        op_type: str,
        inputs: Sequence[oir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        written_for: int | None = None,
    ) -> None:
        """Put a new node in the place of *node*, whose output names it takes over."""
        new = rewrite.make_node(
            self.model, op_type, inputs, attributes=attributes, outputs=len(node.outputs), replaces=[node]
        )
        rewrite.replace_node(self.model, node, new)
        for before, after in zip(node.outputs, new.outputs, strict=True):
            self._stands_for[after] = self._stands_for.get(before, before)
        self.added.append((new, written_for))

    def drop_outputs(self, node: oir.Node, keep: int, why: str) -> None:
        """Leave only the first *keep* outputs of *node*.

        Raises:
            Refused: Another one is used, for the reason *why*.
        """
        for value in node.outputs[keep:]:
            if value.name and not rewrite.is_unused(value):
                raise Refused(f"output {value.name!r} is used, and {why}")
        node.resize_outputs(min(keep, len(node.outputs)))
