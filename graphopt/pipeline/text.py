"""Pipelines as text: parse and print.

The grammar::

    pipeline := '' | step (',' step)*
    step     := name [ '{' [ key '=' value (',' key '=' value)* ] '}' ]
    value    := word | string | '[' [ value (',' value)* ] ']'

A word is any run without whitespace and ``, { } [ ] = "``; a string is a JSON string; spaces between
tokens are ignored; lists do not nest. The parser knows no types: an option's value is a text or a list of
texts, and the pass's Options model says what it means (options.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]  # in CPython since 2.6, missing from typeshed
from typing import TYPE_CHECKING, NoReturn

from graphopt.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Raw = str | list[str]
"""An option's value before it has a type."""

_WORD = re.compile(r'[^\s,{}\[\]="]+')
_SPACE = re.compile(r"\s*")
_EXCERPT_WIDTH = 60


@dataclass(frozen=True)
class Step:
    """One step as written: a pass (or gate) name and the options that were given.

    Attributes:
        name: Name of the pass.
        options: Option values by name, in the order in which they were written.
    """

    name: str
    options: Mapping[str, Raw] = field(default_factory=dict)


def parse(text: str) -> tuple[Step, ...]:
    """Return the steps of a pipeline text; the empty text is the empty pipeline.

    >>> parse('fold-constants, prune{ratio=0.5, axes=[0, 1], note="a b"}')[1].options
    {'ratio': '0.5', 'axes': ['0', '1'], 'note': 'a b'}

    Raises:
        PlanError: The text does not follow the grammar; the message gives the place.
    """
    return _Parser(text).pipeline()


def to_text(steps: Iterable[Step]) -> str:
    """Return the steps as text, quoted only where needed; ``parse`` of it gives equal steps.

    >>> to_text(parse(' a , b { x = "1" , y = [ "p q" ] } '))
    'a,b{x=1,y=["p q"]}'

    Raises:
        PlanError: A name or key is not a word, or a text holds half a surrogate pair.
    """
    return ",".join(_step_text(step) for step in steps)


def is_word(text: str) -> bool:
    """Return whether *text* can stand unquoted in a pipeline."""
    return _WORD.fullmatch(text) is not None


def _step_text(step: Step) -> str:
    _check_word(step.name, "pass name")
    if not step.options:
        return step.name
    for key in step.options:
        _check_word(key, "option name")
    options = ",".join(f"{key}={_value_text(value)}" for key, value in step.options.items())
    return f"{step.name}{{{options}}}"


def _check_word(text: str, what: str) -> None:
    if not is_word(text):
        raise PlanError(
            f'{text!r} cannot be written as a {what}, expected a word without spaces and , {{ }} [ ] = "'
        )


def _value_text(value: Raw) -> str:
    if isinstance(value, str):
        return _scalar_text(value)
    return f"[{','.join(_scalar_text(item) for item in value)}]"


def _scalar_text(value: str) -> str:
    if _has_surrogate(value):
        raise PlanError(f"{value!r} holds half a surrogate pair and cannot be written as text")
    if is_word(value) and value.isprintable():
        return value
    # Characters that cannot be seen are escaped, all others stay readable.
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> tuple[Step, ...]:
        self.skip_space()
        if self.at == len(self.text):
            return ()
        steps = [self.step()]
        while self.accept(","):
            steps.append(self.step())
        if self.at < len(self.text):
            self.fail("',' between steps, '{' before options, or the end", "Separate steps by commas.")
        return tuple(steps)

    def step(self) -> Step:
        name = self.word("the name of a pass", "A comma must stand between two steps, not after the last.")
        options: dict[str, Raw] = {}
        if not self.accept("{"):
            return Step(name, options)
        if self.accept("}"):
            return Step(name, options)
        while True:
            start = self.at
            key = self.word("the name of an option", f"Options are written {name}{{name=value, ...}}.")
            if key in options:
                self.at = start
                self.fail(f"each option once, and {key!r} is given before", "Remove one of the two.")
            if not self.accept("="):
                self.fail(f"'=' after the option {key!r}", f"Options are written {name}{{{key}=value}}.")
            options[key] = self.value(key)
            if self.accept("}"):
                return Step(name, options)
            if not self.accept(","):
                self.fail("',' or '}' after a value", 'Quote a value that holds spaces or , { } [ ] = ".')

    def value(self, key: str) -> Raw:
        if not self.accept("["):
            return self.scalar(f"a value for {key!r}", 'The empty text is written "".')
        items: list[str] = []
        if self.accept("]"):
            return items
        while True:
            if self.peek() == "[":
                self.fail(f"a word or a string in the list {key!r}", "Lists do not nest.")
            items.append(self.scalar(f"a value in the list {key!r}", "The empty list is written []."))
            if self.accept("]"):
                return items
            if not self.accept(","):
                self.fail("',' or ']' after a value in a list", 'Quote a value that holds , { } [ ] = ".')

    def scalar(self, expected: str, hint: str) -> str:
        if self.peek() != '"':
            return self.word(expected, hint)
        start = self.at
        try:
            text, self.at = scanstring(self.text, start + 1, True)  # noqa: FBT003 - takes no keywords
        except json.JSONDecodeError as error:
            self.at = error.pos if error.pos < len(self.text) else start
            self.fail(
                f"a JSON string ({error.msg.lower()})", 'Inside quotes write \\" for " and \\\\ for \\.'
            )
        if _has_surrogate(text):
            self.at = start
            self.fail("a JSON string without half surrogate pairs", "Write the character itself.")
        self.skip_space()
        return str(text)

    def word(self, expected: str, hint: str) -> str:
        match = _WORD.match(self.text, self.at)
        if match is None:
            self.fail(expected, hint)
        if _has_surrogate(match.group()):
            self.fail("text without half surrogate pairs", "Is the command line in another encoding?")
        self.at = match.end()
        self.skip_space()
        return match.group()

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def accept(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self.at += 1
        self.skip_space()
        return True

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def fail(self, expected: str, hint: str) -> NoReturn:
        found = _WORD.match(self.text, self.at)
        end = self.at == len(self.text)
        got = "the end of the text" if end else repr(found.group() if found else self.peek())
        raise PlanError(
            f"expected {expected}, got {got}",
            where=f"pipeline, character {self.at + 1}",
            hint=f"{hint}\n{self.excerpt()}",
        )

    def excerpt(self) -> str:
        first = max(0, self.at - _EXCERPT_WIDTH // 2)
        last = min(len(self.text), first + _EXCERPT_WIDTH)
        shown = "".join(c if c.isprintable() else " " for c in self.text[first:last])
        lead, tail = "..." if first else "", "..." if last < len(self.text) else ""
        return f"    {lead}{shown}{tail}\n    {' ' * (len(lead) + self.at - first)}^"
