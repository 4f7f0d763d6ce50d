"""One application of an operator, as the rules see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as oir

    from graphopt.ir.inference.facts import Fact, Item
    from graphopt.ir.inference.symbols import Symbols


@dataclass(frozen=True, slots=True)
class Call:
    """An operator with its attributes and what is known about its inputs.

    Attributes:
        domain: Domain; the default one is the empty string.
        op_type: Operator.
        opset: Version of the domain that the graph imports.
        attributes: Python values by name, references to attributes of a function resolved.
        given: The same as attributes of the IR, which know their type also where they are empty.
        inputs: A fact for each input, None for an omitted one.
        outputs: How many outputs the node lists.
        symbols: For arithmetic on dims.
    """

    domain: str
    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    given: Mapping[str, oir.Attr]
    inputs: Sequence[Fact | None]
    outputs: int
    symbols: Symbols

    def at(self, index: int) -> Fact | None:
        """Return the fact of input *index*, or None where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def data(self, index: int) -> tuple[Item, ...] | None:
        """Return the known contents of input *index*, or None."""
        fact = self.at(index)
        return None if fact is None else fact.data

    def ints(self, index: int) -> tuple[int, ...] | None:
        """Return the contents of input *index* where all of them are known integers, or None."""
        data = self.data(index)
        if data is None or not all(isinstance(item, int) for item in data):
            return None
        return tuple(int(item) for item in data if isinstance(item, int))

    def sizes(self, index: int) -> tuple[int | str, ...] | None:
        """Return the contents of input *index* where all are integers or symbols, or None."""
        data = self.data(index)
        if data is None or not all(isinstance(item, int | str) for item in data):
            return None
        return tuple(item for item in data if isinstance(item, int | str))

    def ints_of(self, attribute: str, index: int) -> tuple[int, ...] | None:
        """Return integers that older versions keep in *attribute* and newer ones in input *index*.

        None where they are neither given nor known; see :meth:`at` to tell the two apart.
        """
        value = self.attributes.get(attribute)
        return tuple(value) if value is not None else self.ints(index)
