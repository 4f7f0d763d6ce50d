"""From option texts to a pass's typed Options and back.

Types come only from the Options model. Fields may be bool, int, float, str, Path, Literal, an Enum, a list
or tuple of those, and unions of all that (None included); a model that declares anything else is refused
when its pass is registered.
"""

from __future__ import annotations

import enum
import math
import re
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pydantic

from graphopt.api import PassOptions
from graphopt.errors import OptionError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.pipeline.text import Raw

O = TypeVar("O", bound=PassOptions)  # noqa: E741 - the usual letter for it

_INT = re.compile(r"[+-]?[0-9]{1,4000}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_PLURALS = {
    bool: "true or false values",
    int: "whole numbers",
    float: "numbers",
    str: "texts",
    Path: "paths",
}


class _Mismatch(Exception):  # noqa: N818 - never leaves this module
    """A text is not of the wanted type."""


def build_options(options_type: type[O], raw: Mapping[str, object], *, owner: str = "") -> O:
    """Return an instance of *options_type* made from texts.

    Args:
        options_type: The Options model of a pass or gate.
        raw: Texts or lists of texts by option name. Python values are accepted too and mean what their
            printed form means.
        owner: What the options belong to, for messages: ``pass 'fold-constants'``.

    Raises:
        OptionError: An option is unknown, missing, of another type, or out of its range.
    """
    fields = options_type.model_fields
    values: dict[str, object] = {}
    for name, given in raw.items():
        if name not in fields:
            hint = nearest(name, fields, what="options") if fields else "It takes no options."
            raise OptionError(f"there is no option {name!r}", where=owner, hint=hint)
        text = printed(given)
        try:
            values[name] = _convert(fields[name].annotation, text)
        except _Mismatch as mismatch:
            reason = f" ({mismatch})" if str(mismatch) else ""
            raise OptionError(
                f"option {name!r} expects {expected(fields[name].annotation)}, got {_shown(text)}{reason}",
                where=owner,
                hint=_described(fields[name]),
            ) from None
    try:
        return options_type.model_validate(values)
    except pydantic.ValidationError as error:
        raise _option_error(error, options_type, values, owner) from None


def print_options(options: PassOptions) -> dict[str, Raw]:
    """Return the texts of all options that differ from their defaults, in declared order.

    Raises:
        OptionError: A value has no text that reads back as itself (the str ``none`` where None is allowed).
    """
    result: dict[str, Raw] = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if not field.is_required() and value == field.get_default(call_default_factory=True):
            continue
        text = printed(value)
        try:
            same = _convert(field.annotation, text) == value
        except _Mismatch:
            same = False
        if not same:
            raise OptionError(f"option {name!r} has no text that reads back as {value!r}")
        result[name] = text
    return result


def printed(value: object) -> Raw:
    """Return the text of one option value, or the texts of a list."""
    if isinstance(value, list | tuple):
        return [_printed_scalar(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_printed_scalar(item) for item in value)
    return _printed_scalar(value)


def describe_options(options_type: type[PassOptions]) -> list[dict[str, str]]:
    """Return name, type, default and description of each option, in plain words and declared order."""
    described = []
    for name, field in options_type.model_fields.items():
        default = (
            "(required)"
            if field.is_required()
            else _shown(printed(field.get_default(call_default_factory=True)))
        )
        described.append(
            {
                "name": name,
                "type": expected(field.annotation),
                "default": default.strip("'"),
                "description": field.description or "",
            }
        )
    return described


def option_problems(options_type: type[PassOptions]) -> tuple[str, ...]:
    """Return what is wrong with an Options model itself; empty for a good one."""
    return tuple(_option_problems(options_type))


def expected(annotation: object) -> str:
    """Return the plain words for a type: ``a whole number or none``.

    >>> expected(list[int] | None)
    'a list of whole numbers or none'
    """
    return " or ".join(dict.fromkeys(_words(member) for member in _members(annotation)))


def _option_problems(options_type: type[PassOptions]) -> Iterator[str]:
    config = options_type.model_config
    if not config.get("frozen") or config.get("extra") != "forbid" or config.get("allow_inf_nan", True):
        yield "its Options must stay frozen, refuse unknown keys and refuse nan and inf, as PassOptions does"
    for name, field in options_type.model_fields.items():
        if not (field.description or "").strip():
            yield f"option {name!r} has no description"
        if field.alias is not None or field.validation_alias is not None:
            yield f"option {name!r} has an alias"
        for member in _members(field.annotation):
            inner = _element(member)
            for kind in (member,) if inner is None else _members(inner):
                if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                    yield f"option {name!r} is a nested model; options are flat"
                elif not _is_scalar(kind):
                    yield (
                        f"option {name!r} has the unsupported type {kind!r}; expected bool, int, float, str, "
                        "Path, Literal, an Enum, or a list or tuple of those"
                    )
            choices = [_printed_scalar(choice) for choice in _choices(member)]
            if len(set(choices)) < len(choices):
                yield f"option {name!r} has two choices of one printed form"


def _members(annotation: object) -> tuple[object, ...]:
    """Return the members of a union, else the annotation itself; Annotated layers are peeled off."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin is typing.Union or origin is types.UnionType:
        return tuple(inner for member in typing.get_args(annotation) for inner in _members(member))
    return (annotation,)


def _element(member: object) -> object | None:
    """Return the element type of ``list[T]``, ``tuple[T, ...]`` and sets, None for scalars."""
    origin, args = typing.get_origin(member), typing.get_args(member)
    if (origin in {list, set, frozenset} and len(args) == 1) or (
        origin is tuple and len(args) == 2 and args[1] is Ellipsis
    ):
        return args[0]  # type: ignore[no-any-return]  # typing's arguments are untyped
    return None


def _choices(member: object) -> tuple[Any, ...]:
    if typing.get_origin(member) is Literal:
        return typing.get_args(member)
    if isinstance(member, type) and issubclass(member, enum.Enum):
        return tuple(member)
    return ()


def _is_scalar(kind: object) -> bool:
    return kind is type(None) or kind in _WORDS or bool(_choices(kind))


def _convert(annotation: object, raw: Raw) -> object:
    members = _members(annotation)
    # What is narrow is tried first: choices and None, then numbers, then text, which takes anything.
    for member in sorted(members, key=_breadth):
        try:
            return _convert_member(member, raw)
        except _Mismatch as mismatch:
            if len(members) == 1:
                raise
            reason = mismatch
    raise _Mismatch(str(reason) if len(members) == 2 and type(None) in members else "")


def _breadth(member: object) -> int:
    if member is type(None) or _choices(member):
        return 0
    order = {bool: 1, int: 2, float: 3, Path: 5, str: 6}
    return order.get(member, 4) if isinstance(member, type) else 4


def _convert_member(member: object, raw: Raw) -> object:
    element = _element(member)
    if element is not None:
        items = [_convert(element, item) for item in ([raw] if isinstance(raw, str) else raw)]
        collection = typing.get_origin(member)
        assert collection is not None
        return collection(items)
    if not isinstance(raw, str):
        raise _Mismatch
    return _convert_scalar(member, raw)


def _convert_scalar(kind: object, text: str) -> object:
    for choice in _choices(kind):
        if text == _printed_scalar(choice):
            return choice
    if kind is type(None) and text == "none":
        return None
    if kind is bool and text in {"true", "false"}:
        return text == "true"
    if kind is int and _INT.fullmatch(text):
        return int(text)
    if kind is float:
        return _to_float(text)
    if kind is str:
        return text
    if kind is Path:
        if not text or "\0" in text:
            raise _Mismatch
        return Path(text)
    raise _Mismatch


def _to_float(text: str) -> float:
    if _FLOAT.fullmatch(text) is None:
        raise _Mismatch(
            "nan and inf are refused" if text.lstrip("+-").lower() in {"nan", "inf", "infinity"} else ""
        )
    value = float(text)
    if not math.isfinite(value):
        raise _Mismatch("too large for a float64")
    return value


def _printed_scalar(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):
        return _printed_scalar(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value))
    return str(value)


def _words(member: object) -> str:
    if member is type(None):
        return "none"
    if choices := _choices(member):
        return f"one of {', '.join(_printed_scalar(choice) for choice in choices)}"
    element = _element(member)
    if element is not None:
        inner = _members(element)
        if len(inner) == 1 and inner[0] in _PLURALS:
            return f"a list of {_PLURALS[inner[0]]}"
        return f"a list, each item {expected(element)}"
    return _WORDS.get(member, str(member))  # type: ignore[call-overload,no-any-return]  # any object may be asked for


def _shown(raw: Raw) -> str:
    if isinstance(raw, str):
        return repr(raw)
    return f"a list of {len(raw)}: [{', '.join(raw)}]" if raw else "an empty list"


def _described(field: pydantic.fields.FieldInfo) -> str:
    text = (field.description or "").strip().rstrip(".")
    return f"It means: {text}." if text else ""


def _option_error(
    error: pydantic.ValidationError, options_type: type[PassOptions], values: Mapping[str, object], owner: str
) -> OptionError:
    first, *others = error.errors(include_url=False, include_context=False)
    name = str(first["loc"][0]) if first["loc"] else ""
    text = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    if name not in options_type.model_fields:
        return OptionError(text[:1].lower() + text[1:], where=owner)
    field = options_type.model_fields[name]
    if first["type"] == "missing":
        return OptionError(
            f"option {name!r} is required, expected {expected(field.annotation)}",
            where=owner,
            hint=_described(field),
        )
    text = text.replace("Input should", "it should", 1)
    # An option of several types fails for each of them: what any of them takes is what may be given.
    alike = [other["msg"].rstrip(".") for other in others if other["loc"][:1] == first["loc"][:1]]
    choices = [each.removeprefix("Input should be ") for each in alike if each.startswith("Input should be ")]
    text = " or ".join(dict.fromkeys([text, *choices]))
    got = _shown(printed(values[name]))
    return OptionError(
        f"option {name!r} is out of range: {text[:1].lower() + text[1:]}, got {got}",
        where=owner,
        hint=_described(field),
    )
