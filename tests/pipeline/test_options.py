"""Typed options: types come from the Options model alone, and printing reads back."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from graphopt.api import PassOptions
from graphopt.errors import OptionError
from graphopt.pipeline.options import build_options, expected, option_problems, print_options
from graphopt.pipeline.text import Step, parse, to_text


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = 2


class Everything(PassOptions):
    count: int = Field(default=1, ge=0, le=10**6, description="how many")
    ratio: float = Field(default=0.5, gt=0, description="remaining / original")
    keep: bool = Field(default=True, description="whether to keep")
    note: str = Field(default="", description="a text")
    path: Path | None = Field(default=None, description="a file")
    mode: Literal["min-max", "entropy", 8, True] = Field(default="min-max", description="a choice")
    style: Mode = Field(default=Mode.FAST, description="a choice by value")
    limit: int | None = Field(default=None, description="bytes, or none")
    maybe: str | None = Field(default=None, description="a text, or none")
    axes: list[int] = Field(default_factory=list, description="axes")
    names: tuple[str, ...] = Field(default=("x",), description="names")
    modes: list[Literal["a", "b"]] = Field(default=["a"], description="choices")
    either: int | Literal["auto"] = Field(default="auto", description="a number, or auto")
    many: list[float] | None = Field(default=None, description="numbers, or none")
    bits: Annotated[int, Field(ge=1)] = Field(default=8, description="bits")


def build(**raw: object) -> Everything:
    return build_options(Everything, raw, owner="step 1 (everything)")


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("count", "7", 7),
        ("count", "+7", 7),
        ("ratio", "1e-3", 0.001),
        ("ratio", "2", 2.0),
        ("ratio", ".5", 0.5),
        ("keep", "false", False),
        ("note", "none", "none"),
        ("note", "true", "true"),
        ("path", "a/b.py", Path("a/b.py")),
        ("path", "none", None),
        ("mode", "entropy", "entropy"),
        ("mode", "8", 8),
        ("mode", "true", True),
        ("style", "fast", Mode.FAST),
        ("style", "2", Mode.EXACT),
        ("limit", "none", None),
        ("limit", "64", 64),
        ("maybe", "none", None),
        ("maybe", "some", "some"),
        ("axes", ["0", "-1"], [0, -1]),
        ("axes", "3", [3]),
        ("axes", [], []),
        ("names", "y", ("y",)),
        ("names", ["none"], ("none",)),
        ("modes", ["b", "a"], ["b", "a"]),
        ("either", "auto", "auto"),
        ("either", "4", 4),
        ("many", "none", None),
        ("many", ["1", "2.5"], [1.0, 2.5]),
        ("many", "1", [1.0]),
        # Python values mean what their printed form means.
        ("count", 7, 7),
        ("keep", False, False),
        ("ratio", 0.25, 0.25),
        ("path", Path("x"), Path("x")),
        ("limit", None, None),
        ("style", Mode.EXACT, Mode.EXACT),
        ("axes", (1, 2), [1, 2]),
    ],
)
def test_converts(name: str, raw: object, value: object) -> None:
    result = getattr(build(**{name: raw}), name)
    assert result == value
    assert type(result) is type(value) or isinstance(result, Path)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("count", "x", "expects a whole number, got 'x'"),
        ("count", "1.0", "expects a whole number, got '1.0'"),
        ("count", "", "got ''"),
        ("count", "1_000", "got '1_000'"),
        ("count", "none", "expects a whole number"),
        ("count", ["1", "2"], "got a list of 2: [1, 2]"),
        ("count", "-1", "greater than or equal to 0, got '-1'"),
        ("count", "9" * 5000, "expects a whole number"),
        ("ratio", "nan", "expects a number, got 'nan' (nan and inf are refused)"),
        ("ratio", "-inf", "nan and inf are refused"),
        ("ratio", "Infinity", "nan and inf are refused"),
        ("ratio", "1e999", "too large"),
        ("ratio", "0", "greater than 0, got '0.0'"),
        ("ratio", float("nan"), "nan and inf are refused"),
        ("keep", "yes", "expects true or false, got 'yes'"),
        ("keep", "True", "expects true or false"),
        ("path", "", "expects a path or none"),
        ("mode", "kl", "expects one of min-max, entropy, 8, true, got 'kl'"),
        ("style", "FAST", "expects one of fast, 2, got 'FAST'"),
        ("limit", "big", "expects a whole number or none, got 'big'"),
        ("axes", ["1", "a"], "expects a list of whole numbers, got a list of 2: [1, a]"),
        ("modes", ["c"], "expects a list, each item one of a, b"),
        ("either", "other", "expects a whole number or one of auto"),
        ("bits", "0", "greater than or equal to 1"),
    ],
)
def test_refuses_in_plain_words(name: str, raw: object, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(**{name: raw})
    assert words in caught.value.message
    assert repr(name) in caught.value.message
    assert caught.value.where == "step 1 (everything)"
    assert "pydantic" not in str(caught.value).lower()


class Either(PassOptions):
    """An option of two types, as ridge of prune-channels."""

    ridge: Literal["auto"] | Annotated[float, Field(gt=0.0)] = 0.5


def test_what_any_type_of_an_option_takes_is_named() -> None:
    with pytest.raises(OptionError, match=r"it should be 'auto' or greater than 0, got '-1.0'"):
        build_options(Either, {"ridge": "-1"}, owner="p")


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"no option 'cuont'.*Did you mean 'count'"):
        build(cuont="1")
    with pytest.raises(OptionError, match="It takes no options"):
        build_options(PassOptions, {"x": "1"})


class Needy(PassOptions):
    path: Path = Field(description="the script to run")
    low: int = Field(default=0, description="lower end")
    high: int = Field(default=9, description="upper end")

    @field_validator("low")
    @classmethod
    def _even(cls, low: int) -> int:
        if low % 2:
            raise ValueError("must be even")
        return low

    @model_validator(mode="after")
    def _ordered(self) -> Needy:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


def test_required_options_and_validators_of_the_model() -> None:
    with pytest.raises(OptionError, match=r"option 'path' is required, expected a path.*the script to run"):
        build_options(Needy, {})
    with pytest.raises(OptionError, match="low must not be above high"):
        build_options(Needy, {"path": "x", "low": "10"})
    with pytest.raises(OptionError, match=r"option 'low'.*must be even, got '3'"):
        build_options(Needy, {"path": "x", "low": "3"})


def test_print_in_declared_order_without_defaults() -> None:
    options = build(bits="4", names=["p", "q r"], count="2", ratio="0.5", axes=[])
    assert list(print_options(options).items()) == [("count", "2"), ("names", ["p", "q r"]), ("bits", "4")]
    assert to_text([Step("e", print_options(options))]) == 'e{count=2,names=[p,"q r"],bits=4}'
    assert print_options(Everything()) == {}
    assert print_options(Needy(path=Path("s.py"))) == {"path": "s.py"}


def test_a_value_without_text_is_refused_and_not_changed() -> None:
    with pytest.raises(OptionError, match="'maybe' has no text that reads back as 'none'"):
        print_options(Everything(maybe="none"))


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=8)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "count": st.integers(0, 10**6),
            "ratio": FINITE.filter(lambda x: x > 0),
            "keep": st.booleans(),
            "note": TEXT,
            "path": st.none() | st.from_regex(r"[a-z ]{1,4}(/[a-z.]{1,4})?", fullmatch=True).map(Path),
            "mode": st.sampled_from(["min-max", "entropy", 8, True]),
            "style": st.sampled_from(Mode),
            "limit": st.none() | st.integers(),
            "maybe": st.none() | TEXT.filter(lambda t: t != "none"),
            "axes": st.lists(st.integers(), max_size=3),
            "names": st.lists(TEXT, max_size=3).map(tuple),
            "modes": st.lists(st.sampled_from(["a", "b"]), max_size=3),
            "either": st.just("auto") | st.integers(),
            "many": st.none() | st.lists(FINITE, max_size=3),
        },
    ).filter(lambda values: values.get("path") != Path("none"))
)
def test_printing_reads_back_through_the_text(values: dict[str, Any]) -> None:
    options = Everything(**values)
    (step,) = parse(to_text([Step("everything", print_options(options))]))
    again = build_options(Everything, step.options)
    assert again == options
    assert print_options(again) == print_options(options)


def test_a_good_model_has_no_problems() -> None:
    assert option_problems(Everything) == ()
    assert option_problems(PassOptions) == ()


class Inner(BaseModel):
    x: int = 0


def model(**fields: Any) -> type[PassOptions]:
    annotations = {name: annotation for name, (annotation, _) in fields.items()}
    defaults = {name: default for name, (_, default) in fields.items()}
    return type("Bad", (PassOptions,), {"__annotations__": annotations, "__module__": __name__, **defaults})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (model(x=(int, 1)), "option 'x' has no description"),
        (model(x=(Inner, Field(default=Inner(), description="d"))), "nested model"),
        (model(x=(list[Inner], Field(default=[], description="d"))), "nested model"),
        (model(x=(Inner | None, Field(default=None, description="d"))), "nested model"),
        (model(x=(dict[str, int], Field(default={}, description="d"))), "unsupported type"),
        (model(x=(list[list[int]], Field(default=[], description="d"))), "unsupported type"),
        (model(x=(tuple[int, str], Field(default=(1, ""), description="d"))), "unsupported type"),
        (model(x=(complex, Field(default=1j, description="d"))), "unsupported type"),
        (model(x=(Literal["1", 1], Field(default=1, description="d"))), "two choices of one printed form"),
        (model(x=(int, Field(default=1, alias="y", description="d"))), "alias"),
    ],
)
def test_a_bad_model_is_described(bad: type[PassOptions], words: str) -> None:
    assert any(words in problem for problem in option_problems(bad))


def test_a_model_that_is_not_frozen_is_refused() -> None:
    class Loose(PassOptions):
        model_config = ConfigDict(frozen=False, extra="forbid", allow_inf_nan=False)

    assert any("frozen" in problem for problem in option_problems(Loose))


def test_types_in_plain_words() -> None:
    assert expected(list[str]) == "a list of texts"
    assert expected(Path | None) == "a path or none"
    assert expected(Literal["a", 4] | None) == "one of a, 4 or none"
