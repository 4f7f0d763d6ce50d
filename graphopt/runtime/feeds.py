"""What a model wants to be fed, feeds made up at random, and feeds checked before anything runs."""

from __future__ import annotations

import ast
import contextlib
import math
import operator
import string
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphopt.errors import DataError, OptionError, nearest
from graphopt.runtime import dtypes

if TYPE_CHECKING:
    import onnx_ir as oir

    from graphopt.ir import Model
    from graphopt.runtime.hints import IntegerHint
    from graphopt.runtime.session import Tensor, Value

Kind = Literal["tensor", "sequence", "optional", "optional sequence"]
Dim = int | str | None
Feed = dict[str, "Value"]

# A feed for a sequence has this many elements; two are enough to tell first from last.
_MOST_ELEMENTS = 1 << 40
_SEQUENCE_LENGTH = 2
# Integers whose meaning the graph does not tell: small enough for a shape, varied enough to see a difference.
_UNKNOWN_INTEGERS = (0, 8)
# Dims of a tensor of unknown rank: one element in one dim suits most operators.
_UNKNOWN_RANK = (1,)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What an input or output of a model declares.

    Attributes:
        name: Its name.
        dtype: Name of the element type, as in :mod:`graphopt.runtime.dtypes`.
        shape: Sizes, symbols (also expressions such as "seq*2"), None for a free dim without a name; None
            for an unknown rank. Of a sequence or optional: that of its elements.
        has_default: Whether the model brings a value of its own, so that no feed is needed.
        kind: "tensor", or a "sequence", "optional" or "optional sequence" of tensors.
        hint: What its integers mean, where the graph tells.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None
    has_default: bool = False
    kind: Kind = "tensor"
    hint: IntegerHint | None = None

    @property
    def is_sequence(self) -> bool:
        """Whether a feed is a list of tensors."""
        return self.kind in {"sequence", "optional sequence"}

    @property
    def is_optional(self) -> bool:
        """Whether a feed may be None."""
        return self.kind in {"optional", "optional sequence"}

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ",".join("?" if dim is None else str(dim) for dim in self.shape)
        tensor = f"{self.dtype}[{dims}]"
        return tensor if self.kind == "tensor" else f"{self.kind} of {tensor}"


def input_specs(model: Model, *, hints: bool = True) -> tuple[InputSpec, ...]:
    """Return what each input of *model* declares, in order, overridable initializers included.

    Args:
        model: The model.
        hints: Whether to ask the graph what integers mean.

    Raises:
        DataError: An input is of a type that cannot be fed (a map, or without a type).
    """
    from graphopt.runtime.hints import integer_hint

    return tuple(
        replace(spec, hint=integer_hint(model, value))
        if hints and dtypes.by_name(spec.dtype).is_integer
        else spec
        for value in model.graph.inputs
        for spec in [_spec(value, "input")]
    )


def output_specs(model: Model) -> tuple[InputSpec, ...]:
    """Return what each output of *model* declares, in order; an undeclared type has the dtype "".

    Raises:
        DataError: An output is of a type that cannot be compared (a map).
    """
    return tuple(
        _spec(value, "output") if value.type is not None else InputSpec(value.name or "", "", None)
        for value in model.graph.outputs
    )


def _spec(value: oir.Value, what: str) -> InputSpec:
    import onnx_ir as oir

    from graphopt.ir.infos import dim_name

    name, kind_type = value.name or "", value.type
    optional = isinstance(kind_type, oir.OptionalType)
    if isinstance(kind_type, oir.OptionalType):
        kind_type = kind_type.elem_type
    sequence = isinstance(kind_type, oir.SequenceType)
    if isinstance(kind_type, oir.SequenceType):
        kind_type = kind_type.elem_type
    if not isinstance(kind_type, oir.TensorType):
        raise DataError(
            f"{what} {name!r} is of a type that graphopt cannot feed or compare ({value.type})",
            hint="Tensors, sequences of tensors and optional ones of both can be",
        )
    shape: tuple[Dim, ...] | None = None
    if value.shape is not None:
        shape = tuple(dim if isinstance(dim, int) else dim_name(dim) for dim in value.shape)
    return InputSpec(
        name,
        dtypes.by_number(int(kind_type.dtype)).name,
        shape,
        has_default=value.is_initializer(),
        kind=_KINDS[optional, sequence],
    )


_KINDS: dict[tuple[bool, bool], Kind] = {
    (False, False): "tensor",
    (False, True): "sequence",
    (True, False): "optional",
    (True, True): "optional sequence",
}


def bind_dims(specs: Sequence[InputSpec], dims: Mapping[str, int]) -> tuple[InputSpec, ...]:
    """Return *specs* with the symbols that *dims* binds replaced by sizes.

    An expression such as "seq*2" or "past + 1" is computed where all its symbols are bound; it may also be
    bound as a whole. A dim without a name is bound by "input[axis]" (``{"audio[1]": 512}``). What is not
    bound stays.

    Raises:
        DataError: A size comes out negative.
    """
    return tuple(
        replace(
            spec,
            shape=tuple(_bound(dim, f"{spec.name}[{axis}]", dims) for axis, dim in enumerate(spec.shape)),
        )
        if spec.shape is not None
        else spec
        for spec in specs
    )


def check_dims(specs: Sequence[InputSpec], dims: Mapping[str, int]) -> None:
    """Refuse sizes for dims that no input has.

    Raises:
        OptionError: No input has a dim of that name, or the size is negative.
    """
    known = {*free_dims(specs), *(dim for spec in specs for dim in spec.shape or () if isinstance(dim, str))}
    for name, size in dims.items():
        if name not in known:
            raise OptionError(
                f"no input has a free dim called {name!r}",
                where="--dim",
                hint=nearest(name, known, what="free dims"),
            )
        if size < 0:
            raise OptionError(f"the size of dim {name!r} must be at least 0, got {size}", where="--dim")


def free_dims(specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Return the names by which :func:`bind_dims` knows the free dims of *specs*, in order of first use."""
    names: dict[str, None] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            if dim is None:
                names[f"{spec.name}[{axis}]"] = None
            elif isinstance(dim, str):
                names |= dict.fromkeys(sorted(symbols(dim)))
    return tuple(names)


def random_feeds(
    model: Model | Sequence[InputSpec], count: int, seed: int = 0, dims: Mapping[str, int] | None = None
) -> list[Feed]:
    """Return *count* feeds of random values, the same for the same specs, seed and dims.

    Floats are drawn from the standard normal distribution, bytes and 16-bit integers from their whole range,
    bools evenly. Wider integers are drawn from what the graph allows (:mod:`graphopt.runtime.hints`), and
    where it tells nothing from 0 to 7. Sequences have two elements, optionals are present. Free dims that
    *dims* does not bind are 1; a tensor of unknown rank has the shape [1]. Inputs with a default are left
    out.

    Args:
        model: A model, or the specs of its inputs.
        count: How many feeds.
        seed: Seed; each input of each feed has a stream of its own, so that adding an input changes no other.
        dims: Sizes of free dims by name, as in :func:`bind_dims`.

    Raises:
        DataError: A type that cannot be made up (complex numbers), or a negative size.
    """
    return list(iter_random_feeds(model, count, seed, dims))


def iter_random_feeds(
    model: Model | Sequence[InputSpec], count: int, seed: int = 0, dims: Mapping[str, int] | None = None
) -> Iterator[Feed]:
    """Yield what :func:`random_feeds` returns, one feed at a time."""
    specs = model if isinstance(model, Sequence) else input_specs(model)
    fixed = [spec for spec in _fixed(specs, dims or {}) if not spec.has_default]
    for index in range(count):
        yield {
            spec.name: _made_up(spec, np.random.default_rng([seed, index, _stream(spec.name)]))
            for spec in fixed
        }


def _made_up(spec: InputSpec, rng: np.random.Generator) -> Value:
    elements = math.prod(dim for dim in spec.shape or () if isinstance(dim, int))
    if elements <= _MOST_ELEMENTS:  # beyond it numpy does not even ask for memory, and has other words for it
        with contextlib.suppress(MemoryError):
            return _random(spec, rng)
    raise DataError(
        f"random values for the input {spec.name!r} ({spec}) do not fit into memory",
        hint="Bind its free dims to smaller sizes with --dim, or give real inputs with --data",
    )


def check_feeds(
    feeds: Mapping[str, Value], specs: Sequence[InputSpec], *, where: str = "", finite: bool = True
) -> None:
    """Check names, dtypes, ranks, fixed dims and, if *finite*, values of one feed.

    Args:
        feeds: A value by input name.
        specs: What the inputs declare.
        where: How errors name the feed.
        finite: Whether NaN and infinity are refused.

    Raises:
        DataError: The feed does not fit; the message says what was expected and what was found.
    """
    by_name = {spec.name: spec for spec in specs}
    for name in feeds:
        if name not in by_name:
            raise DataError(
                f"the model has no input {name!r}", where=where, hint=nearest(name, by_name, what="inputs")
            )
    for spec in specs:
        if spec.name not in feeds:
            if spec.has_default:
                continue
            found = ", ".join(map(repr, feeds)) or "none"
            raise DataError(f"no value for the input {spec.name!r} ({spec}), got {found}", where=where)
        _check_value(feeds[spec.name], spec, where, finite=finite)


def symbols(expression: str) -> set[str]:
    """Return the symbols in a dim *expression*; the text itself where it is not an expression."""
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError:
        return {expression}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - _FUNCTIONS.keys()


def _fixed(specs: Sequence[InputSpec], dims: Mapping[str, int]) -> tuple[InputSpec, ...]:
    """Bind *dims*, then every symbol that is left to 1, then every dim that is still free."""
    left = {
        name: 1 for spec in specs for dim in spec.shape or () if isinstance(dim, str) for name in symbols(dim)
    }
    bound = bind_dims(specs, {**left, **dims})
    return tuple(
        replace(
            spec,
            shape=_UNKNOWN_RANK
            if spec.shape is None
            else tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape),
        )
        for spec in bound
    )


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,  # exporters print a floored quotient as floor(a/b)
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Max": max,
    "Min": min,
    "ceiling": lambda number: number,
    "floor": lambda number: number,
    "max": max,
    "min": min,
}
_LONGEST_EXPRESSION = 500


def _bound(dim: Dim, place: str, dims: Mapping[str, int]) -> Dim:
    if dim is None:
        return dims.get(place)
    if isinstance(dim, int):
        return dim
    size: int | None
    if dim in dims:
        size = dims[dim]
    else:
        try:
            if len(dim) > _LONGEST_EXPRESSION:
                return dim
            size = _evaluate(ast.parse(dim, mode="eval").body, dims)
        except (SyntaxError, ValueError, ZeroDivisionError, TypeError, RecursionError):
            return dim  # a name that is no expression, or one that cannot be computed
    if size is None:
        return dim
    if size < 0:
        raise DataError(
            f"the dim {dim!r} comes out as {size}", where=place, hint="Bind its symbols with --dim"
        )
    return size


def _evaluate(node: ast.expr, dims: Mapping[str, int]) -> int | None:
    """Compute a dim expression; None where a symbol is not bound or the form is none of ours."""
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return dims.get(name)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            value = _evaluate(inner, dims)
            return None if value is None else -value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            first, second = _evaluate(left, dims), _evaluate(right, dims)
            return None if first is None or second is None else _OPERATORS[type(op)](first, second)
        case ast.Call(func=ast.Name(id="ceiling"), args=[ast.BinOp(left=left, op=ast.Div(), right=right)]):
            first, second = _evaluate(left, dims), _evaluate(right, dims)
            return None if first is None or second is None else -(-first // second)
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in _FUNCTIONS and arguments:
            values = [_evaluate(each, dims) for each in arguments]
            return None if None in values else _FUNCTIONS[name](*values)
        case _:
            return None


def _stream(name: str) -> int:
    return zlib.crc32(name.encode())


def _random(spec: InputSpec, rng: np.random.Generator) -> Value:
    if spec.is_sequence:
        return [_random_tensor(spec, rng) for _ in range(_SEQUENCE_LENGTH)]
    return _random_tensor(spec, rng)


def _random_tensor(spec: InputSpec, rng: np.random.Generator) -> Tensor:
    element = dtypes.by_name(spec.dtype)
    shape = tuple(dim for dim in spec.shape or () if isinstance(dim, int))
    if element.name == "string":
        letters = np.array(list(string.ascii_lowercase))
        words = np.empty(shape, object)
        words.reshape(-1)[:] = ["".join(rng.choice(letters, 5)) for _ in range(words.size)]
        return words
    if element.name == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if element.is_integer:
        return np.asarray(_random_integers(spec, element, shape, rng)).astype(element.numpy())
    if element.is_float:
        values = rng.standard_normal(shape, dtype=np.float64 if element.name == "float64" else np.float32)
        if element.name == "float8_e8m0fnu":  # powers of two only, and no sign
            values = np.abs(values) + np.float32(0.01)
        return np.asarray(values).astype(element.numpy())
    raise DataError(
        f"input {spec.name!r} is {spec.dtype}, for which graphopt makes up no values",
        hint="Give real inputs with --data",
    )


def _random_integers(
    spec: InputSpec, element: dtypes.ElementType, shape: tuple[int, ...], rng: np.random.Generator
) -> Tensor:
    signed = element.name.startswith("int")
    lowest = -(1 << (element.bits - 1)) if signed else 0
    highest = (1 << (element.bits - int(signed))) - 1
    hint = spec.hint
    if hint is not None and hint.meaning == "choice" and np.prod(shape, dtype=np.int64) != 1:
        hint = None  # many values compared with one constant are data, not a switch
    if hint is not None and hint.meaning == "axis":
        return np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)  # several axes must differ
    if hint is not None:
        low, high = max(hint.low, lowest), min(hint.high - 1, highest)
        values = rng.integers(low, max(low, high), size=shape, endpoint=True)
        if hint.meaning == "mask" and values.ndim:
            values[..., :1] = 1  # a row that masks everything has no defined result
        return np.asarray(values)
    if element.bits > 16:
        lowest, highest = _UNKNOWN_INTEGERS[0], _UNKNOWN_INTEGERS[1] - 1
    return np.asarray(rng.integers(lowest, highest, size=shape, endpoint=True))


def _check_value(value: Value, spec: InputSpec, where: str, *, finite: bool) -> None:
    place = f"{where}, input {spec.name!r}" if where else f"input {spec.name!r}"
    if spec.is_optional and value is None:
        return
    if spec.is_sequence:
        if not isinstance(value, list):
            raise DataError(f"expected a {spec}, got one array", where=place)
        items: list[Any] = value
    else:
        items = [value]
    for item in items:
        if not isinstance(item, np.ndarray):
            raise DataError(f"expected {spec}, got {type(item).__name__}", where=place)
        _check_tensor(item, spec, place, finite=finite)


def _check_tensor(array: Tensor, spec: InputSpec, place: str, *, finite: bool) -> None:
    found = dtypes.of_array(array).name
    if found != spec.dtype:
        hint = f"Convert it with: array.astype({spec.dtype!r})" if dtypes.by_name(spec.dtype).native else ""
        raise DataError(
            f"expected {spec.dtype}, got {found}", where=place, hint="" if spec.dtype == "string" else hint
        )
    if spec.shape is not None:
        shape = f"[{','.join(map(str, array.shape))}]"
        if array.ndim != len(spec.shape):
            raise DataError(
                f"expected rank {len(spec.shape)} ({spec}), got rank {array.ndim} {shape}", where=place
            )
        for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if isinstance(dim, int) and size != dim:
                raise DataError(f"expected {dim} in dim {axis} ({spec}), got {size} {shape}", where=place)
    if finite and dtypes.by_name(spec.dtype).is_float and not all_finite(array):
        raise DataError(
            "the values hold NaN or infinity", where=place, hint="Remove such samples from the data"
        )


def all_finite(array: Tensor) -> bool:
    """Return whether no element of *array* is NaN or infinite, low-precision types included."""
    if array.dtype.kind != "f":  # ml_dtypes register as no kind of numpy's
        array = array.astype(np.float32)
    return bool(np.isfinite(array).all())
