"""Which values of a graph are needed from a place on: where a model can be cut in two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.rewrite import captured_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as oir


class Liveness:
    """Which values are needed from which place of a graph on.

    Args:
        order: The nodes of the graph.
    """

    def __init__(self, order: Sequence[oir.Node]) -> None:
        self._order = order
        varies: set[oir.Value] = set()
        self._reads: list[tuple[oir.Value, ...]] = []
        for node in order:
            read = [value for value in node.inputs if value is not None]
            if node.attributes:
                read += captured_values(node)
            self._reads.append(tuple(read))
            if any(value in varies or _is_fed(value) for value in read):
                varies.update(node.outputs)
        self._varies = varies

    def frontier(self, position: int) -> tuple[str, ...]:
        """Return the names of the values that the nodes from *position* on take from before it.

        What does not depend on the inputs is left out: it is computed where it is needed.
        """
        made = {value for node in self._order[position:] for value in node.outputs}
        needed: dict[str, None] = {}
        for index in range(position, len(self._order)):
            for value in self._reads[index]:
                if value not in made and (value in self._varies or _is_fed(value)) and value.name:
                    needed[value.name] = None
        for node in self._order[:position]:
            for value in node.outputs:
                if value.is_graph_output() and value.name:
                    needed[value.name] = None
        return tuple(needed)

    def below(self, start: oir.Node) -> set[oir.Node]:
        """Return *start* and all nodes that depend on it."""
        found = {start}
        reached = set(start.outputs)
        for node, read in zip(self._order, self._reads, strict=True):
            if node not in found and any(value in reached for value in read):
                found.add(node)
                reached.update(node.outputs)
        return found


def _is_fed(value: oir.Value) -> bool:
    return value.is_graph_input() and not value.is_initializer()
