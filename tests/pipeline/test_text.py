"""The pipeline grammar of interfaces.md: what parses, what it means, how it is printed, what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import PlanError
from graphopt.pipeline.text import Step, parse, to_text

FORBIDDEN = set(',{}[]="')
WORDS = st.text(min_size=1, max_size=12).filter(
    lambda t: not (set(t) & FORBIDDEN or any(c.isspace() for c in t))
)
TEXTS = st.text(max_size=12)
VALUES = st.one_of(TEXTS, st.lists(TEXTS, max_size=4))
STEPS = st.builds(Step, WORDS, st.dictionaries(WORDS, VALUES, max_size=4))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", ()),
        ("  \n\t ", ()),
        ("a", (Step("a"),)),
        ("a,b", (Step("a"), Step("b"))),
        ("a{}", (Step("a"),)),
        ("a { } , b", (Step("a"), Step("b"))),
        ("a{x=1}", (Step("a", {"x": "1"}),)),
        ('a{x="1"}', (Step("a", {"x": "1"}),)),
        (' a { x = 1 , y = [ p , "q r" ] } ', (Step("a", {"x": "1", "y": ["p", "q r"]}),)),
        ("a{x=[]}", (Step("a", {"x": []}),)),
        ('a{x=""}', (Step("a", {"x": ""}),)),
        (r'a{x="\u00e9\n\"\\\ud83d\ude00"}', (Step("a", {"x": 'é\n"\\😀'}),)),
        ("a{p=/tmp/x.py,q=1e-3,r=a:b*c}", (Step("a", {"p": "/tmp/x.py", "q": "1e-3", "r": "a:b*c"}),)),
        ("graph.opt/x", (Step("graph.opt/x"),)),
    ],
)
def test_parses(text: str, steps: tuple[Step, ...]) -> None:
    assert parse(text) == steps


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((), ""),
        ((Step("a"), Step("b", {"x": "0.5"})), "a,b{x=0.5}"),
        ((Step("a", {"x": ["1", "2"], "y": []}),), "a{x=[1,2],y=[]}"),
        ((Step("a", {"x": "p q"}),), 'a{x="p q"}'),
        ((Step("a", {"x": ""}),), 'a{x=""}'),
        ((Step("a", {"x": 'q"'}),), r'a{x="q\""}'),
        ((Step("a", {"x": "größe"}),), "a{x=größe}"),
        ((Step("a", {"x": "zero\u200bwidth"}),), r'a{x="zero\u200bwidth"}'),
    ],
)
def test_prints(steps: tuple[Step, ...], text: str) -> None:
    assert to_text(steps) == text


@pytest.mark.parametrize(
    ("text", "position", "expected", "got"),
    [
        (",", 1, "the name of a pass", "','"),
        ("a,", 3, "the name of a pass", "the end of the text"),
        ("a,,b", 3, "the name of a pass", "','"),
        ("a b", 3, "','", "'b'"),
        ("a}", 2, "','", "'}'"),
        ("a{", 3, "the name of an option", "the end"),
        ("a{x", 4, "'='", "the end"),
        ("a{x}", 4, "'='", "'}'"),
        ("a{=1}", 3, "the name of an option", "'='"),
        ("a{x=}", 5, "a value", "'}'"),
        ("a{x=1", 6, "',' or '}'", "the end"),
        ("a{x=1 2}", 7, "',' or '}'", "'2'"),
        ("a{x=1,}", 7, "the name of an option", "'}'"),
        ("a{x=1,x=2}", 7, "each option once", "'x'"),
        ("a{x=[[1]]}", 6, "Lists do not nest", "'['"),
        ("a{x=[1,]}", 8, "a value in the list", "']'"),
        ("a{x=[1 2]}", 8, "',' or ']'", "'2'"),
        ("a{x=[1", 7, "',' or ']'", "the end"),
        ('a{x="p}', 5, "JSON string", '"'),
        ('a{x="\\q"}', 6, "JSON string", "q"),
        ('a{x="\n"}', 6, "JSON string", ""),
        ('a{x="\\ud800"}', 5, "surrogate", ""),
        ('"a"', 1, "the name of a pass", '"'),
        ("a{x=\ud800}", 5, "surrogate", ""),
    ],
)
def test_refuses_and_gives_the_place(text: str, position: int, expected: str, got: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse(text)
    message = str(caught.value)
    assert caught.value.where == f"pipeline, character {position}"
    assert expected in message
    assert got in message
    # The caret stands under the character that the message names.
    excerpt, caret = message.splitlines()[-2:]
    assert excerpt.startswith("    ")
    assert caret.index("^") - 4 == position - 1


def test_long_texts_are_cut_around_the_place() -> None:
    text = ",".join(["fold-constants"] * 40) + ",}" + ",deduplicate" * 40
    with pytest.raises(PlanError) as caught:
        parse(text)
    excerpt, caret = str(caught.value).splitlines()[-2:]
    assert len(excerpt) < 80
    assert excerpt[caret.index("^")] == "}"


@given(st.lists(STEPS, max_size=4).map(tuple))
def test_printing_and_parsing_is_the_identity(steps: tuple[Step, ...]) -> None:
    assert parse(to_text(steps)) == steps


@given(st.lists(STEPS, max_size=3).map(tuple))
def test_normal_form_is_stable(steps: tuple[Step, ...]) -> None:
    text = to_text(steps)
    assert to_text(parse(text)) == text


@given(st.lists(STEPS, max_size=3), st.data())
def test_spaces_and_quotes_change_nothing(steps: list[Step], data: st.DataObject) -> None:
    """Every spelling that the grammar allows means the same as the normal one."""
    space = st.sampled_from(["", " ", "\n", "\t  "])

    def scalar(text: str) -> str:
        bare = text and not set(text) & FORBIDDEN and not any(c.isspace() for c in text)
        return text if bare and data.draw(st.booleans()) else json.dumps(text)

    def value(raw: str | list[str]) -> list[str]:
        if isinstance(raw, str):
            return [scalar(raw)]
        return ["[", *[t for item in raw for t in (",", scalar(item))][1:], "]"]

    tokens: list[str] = []
    for step in steps:
        tokens += [",", step.name]
        if step.options:
            inner = [t for key, raw in step.options.items() for t in (",", key, "=", *value(raw))][1:]
            tokens += ["{", *inner, "}"]
    spelled = "".join(data.draw(space) + token for token in tokens[1:]) + data.draw(space)
    assert parse(spelled) == tuple(steps)


@given(st.text(alphabet='ab{}[]=," \\1', max_size=20))
def test_any_text_parses_or_is_refused_as_a_plan(text: str) -> None:
    try:
        steps = parse(text)
    except PlanError:
        return
    assert parse(to_text(steps)) == steps


@pytest.mark.parametrize("step", [Step("a b"), Step(""), Step("a", {"x y": "1"}), Step("a", {"x": "\ud800"})])
def test_what_has_no_text_is_not_printed(step: Step) -> None:
    with pytest.raises(PlanError):
        to_text([step])
