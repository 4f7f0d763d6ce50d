"""The plan is checked whole before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report
from graphopt.errors import GraphoptError, OptionError, PlanError
from graphopt.pipeline.plan import Plan, make_gates, make_plan
from graphopt.pipeline.plugins import Registry
from graphopt.pipeline.text import Step, parse
from tests.pipeline.kit import NodeLimit

if TYPE_CHECKING:
    from graphopt.ir import Model


class Base(Pass):
    info: ClassVar[PassInfo] = PassInfo(name="base", summary="Do nothing.")

    def run(self, model: Model, options: PassOptions, context: Context) -> Report:
        raise AssertionError("a plan runs nothing")


class UpgradeLike(Base):
    class Options(PassOptions):
        to: int | None = Field(default=None, ge=7, le=26, description="opset version")


def registry() -> Registry:
    result = Registry()
    facts = {
        "insert-qdq": {"provides": frozenset({"qdq"}), "min_opset": 13},
        "fold-scales": {"requires": frozenset({"qdq"})},
        "prune": {"conflicts": frozenset({"qdq"})},
        "modern": {"min_opset": 18},
        "plain": {},
        "upgrade-opset": {},
    }
    for name, facet in facts.items():
        base = UpgradeLike if name == "upgrade-opset" else Base
        info = PassInfo(name=name, summary="A pass.", **facet)  # type: ignore[arg-type]  # facets differ in type
        result.passes.add(name, type(name.title(), (base,), {"info": info}), "'kit' (tests)")
    result.gates.add(NodeLimit.name, NodeLimit, "'kit' (tests)")
    return result


def plan(text: str, opset: int | None = None) -> Plan:
    return make_plan(parse(text), registry(), opset)


def test_keeps_the_order_and_prints_back() -> None:
    result = plan("plain, upgrade-opset{to=13}, plain")
    assert [step.name for step in result.steps] == ["plain", "upgrade-opset", "plain"]
    assert [step.index for step in result.steps] == [0, 1, 2]
    assert result.text == "plain,upgrade-opset{to=13},plain"
    assert plan(result.text).text == result.text
    assert plan("").steps == ()


@pytest.mark.parametrize(
    ("text", "opset", "error", "words"),
    [
        ("plain,plian", None, PlanError, "step 2: no pass is called 'plian'. Did you mean 'plain'"),
        ("plain{x=1}", None, OptionError, r"step 1 \(plain\): there is no option 'x'"),
        (
            "upgrade-opset{to=x}",
            None,
            OptionError,
            r"step 1 \(upgrade-opset\): option 'to' expects a whole number or none",
        ),
        ("fold-scales", None, PlanError, "'fold-scales' needs 'qdq', which no earlier pass provides"),
        (
            "fold-scales,insert-qdq",
            None,
            PlanError,
            "'insert-qdq' provides only after it.*Move 'insert-qdq', now step 2",
        ),
        (
            "insert-qdq,plain,prune",
            None,
            PlanError,
            r"step 3 \(prune\): 'prune' cannot run where 'qdq' holds, and 'insert-qdq' \(step 1\)",
        ),
        (
            "plain,modern",
            13,
            PlanError,
            r"'modern' needs opset 18 or newer, but the model is at opset 13.*upgrade-opset\{to=18\}",
        ),
        ("upgrade-opset{to=17},modern", 13, PlanError, "at opset 17 by then"),
        ("modern,upgrade-opset{to=18}", 13, PlanError, "at opset 13 by then"),
        ("upgrade-opset,insert-qdq", 0, PlanError, "does not import the default domain"),
    ],
)
def test_a_bad_plan_says_why(text: str, opset: int | None, error: type[GraphoptError], words: str) -> None:
    with pytest.raises(error, match=words):
        plan(text, opset)


@pytest.mark.parametrize(
    ("text", "opset", "planned"),
    [
        ("upgrade-opset,modern", 13, "upgrade-opset{to=18},modern"),
        ("upgrade-opset,insert-qdq,modern", 11, "upgrade-opset{to=18},insert-qdq,modern"),
        (
            "upgrade-opset,insert-qdq,upgrade-opset,modern",
            11,
            "upgrade-opset{to=13},insert-qdq,upgrade-opset{to=18},modern",
        ),
        (
            "upgrade-opset,insert-qdq,upgrade-opset{to=20},modern",
            11,
            "upgrade-opset{to=13},insert-qdq,upgrade-opset{to=20},modern",
        ),
        ("upgrade-opset,plain", 15, "upgrade-opset,plain"),
        ("upgrade-opset,plain", 0, "upgrade-opset,plain"),
        ("upgrade-opset{to=20},modern", 13, "upgrade-opset{to=20},modern"),
        ("modern", 18, "modern"),
        # Nothing is known of the model: nothing is filled in, nothing is refused.
        ("upgrade-opset,modern", None, "upgrade-opset,modern"),
    ],
)
def test_opsets(text: str, opset: int | None, planned: str) -> None:
    assert plan(text, opset).text == planned


def test_gates_are_typed_alike() -> None:
    (gate,) = make_gates([Step("node-limit", {"at_least": "3"})], registry())
    assert gate.options == NodeLimit.Options(at_least=3)
    with pytest.raises(
        PlanError, match=r"gate 1: no gate is called 'node-limits'. Did you mean 'node-limit'"
    ):
        make_gates([Step("node-limits")], registry())
    with pytest.raises(OptionError, match=r"gate 1 \(node-limit\): option 'at_least' expects a whole number"):
        make_gates([Step("node-limit", {"at_least": "x"})], registry())
