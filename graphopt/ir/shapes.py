"""Shape and type inference: what every value of a model is known to be, and what shape arithmetic comes to.

Facts start from what the inputs declare (the runtime holds callers to that) and from constants, and flow
forward through every graph. What the model declares about other values is a claim, and claims are not used:
they survive edits and exporters get them wrong. Only where no rule exists, for operators of unknown domains,
does a claim stand in.

Dims are ints where static. Else they are symbols: strings, of which equal ones are equal sizes. Those that
start with "?" or contain an operator were made here (:meth:`Shapes.is_declared`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as oir

from graphopt.ir.collector import collector_paused
from graphopt.ir.inference.facts import BOOL, INTEGERS, UNKNOWN
from graphopt.ir.inference.symbols import Symbols
from graphopt.ir.inference.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.ir.inference.facts import Fact
    from graphopt.ir.model import Model

Shape = tuple[int | str | None, ...]


class Shapes:
    """What inference found out about the values of one model, looked up by the value itself.

    Attributes:
        errors: (node, reason) where an operator's inference function refused its inputs.
        trips: Iterations of each Loop and Scan whose number is known.
    """

    def __init__(
        self,
        facts: Mapping[oir.Value, Fact],
        *,
        declared: frozenset[str] = frozenset(),
        errors: tuple[tuple[str, str], ...] = (),
        trips: Mapping[oir.Node, int] | None = None,
    ) -> None:
        self._facts = facts
        self._declared = declared
        self.errors = errors
        self.trips: Mapping[oir.Node, int] = trips or {}

    def shape(self, value: oir.Value | None) -> Shape | None:
        """Return the dims of *value*, or None where its rank is unknown or it is no tensor."""
        return None if value is None else self._facts.get(value, UNKNOWN).shape

    def rank(self, value: oir.Value | None) -> int | None:
        """Return the rank of *value*, or None."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def static_shape(self, value: oir.Value | None) -> tuple[int, ...] | None:
        """Return the dims of *value* where all of them are numbers, else None."""
        shape = self.shape(value)
        if shape is None:
            return None
        dims = tuple(dim for dim in shape if isinstance(dim, int))
        return dims if len(dims) == len(shape) else None

    def dtype(self, value: oir.Value | None) -> oir.DataType | None:
        """Return the element type of *value*, or None where it is unknown or *value* is no tensor."""
        if value is None:
            return None
        dtype = self._facts.get(value, UNKNOWN).dtype
        return oir.DataType(dtype) if dtype else None

    def known(self, value: oir.Value | None) -> Shape | None:
        """Return the elements of a small integer or boolean tensor, row by row, as far as they are known.

        Each is an int (booleans as 0 and 1), the symbol of a size, or None. The result is None where nothing
        is known; where it is not, the shape of *value* is static. Constants are included.
        """
        if value is None:
            return None
        fact = self._facts.get(value, UNKNOWN)
        if fact.data is None or (fact.dtype not in INTEGERS and fact.dtype != BOOL):
            return None
        return tuple(
            int(item) if isinstance(item, int) else item if isinstance(item, str) else None
            for item in fact.data
        )

    def type(self, value: oir.Value | None) -> oir.TypeProtocol | None:
        """Return the type of *value*, also of a sequence or optional, or None where it is unknown."""
        fact = UNKNOWN if value is None else self._facts.get(value, UNKNOWN)
        if fact.type is not None:
            return oir.serde.deserialize_type_proto_for_type(fact.type)
        return oir.TensorType(oir.DataType(fact.dtype)) if fact.dtype else None

    def is_declared(self, dim: int | str | None) -> bool:
        """Return whether *dim* is a symbol that the model itself names (a ``dim_param`` such as "batch")."""
        return dim in self._declared


def infer_shapes(
    model: Model,
    dims: Mapping[str, int] | None = None,
    *,
    unbound: int | None = None,
    assume_defaults: bool = False,
) -> Shapes:
    """Return shapes, types and contents of shape arithmetic for the values of all graphs of *model*.

    Values in bodies of Loop and Scan are described as they are in every iteration, those in functions as they
    are in every call. The model is not changed and weights are not read.

    Args:
        model: Any model, also one with operators of unknown domains or with wrong declarations.
        dims: Sizes bound to symbolic dims, by name.
        unbound: Size to assume for every other dim that the inputs leave open; by default these stay symbols.
        assume_defaults: Take initializers that callers may override for what they hold.
    """
    with collector_paused():
        symbols = Symbols(dims or {}, unbound)
        walk = Walk(model, symbols)
        walk.run(assume_defaults=assume_defaults)
    return Shapes(
        walk.facts, declared=frozenset(symbols.declared), errors=tuple(walk.errors.items()), trips=walk.trips
    )
