"""The gate ``structure`` and what a run reports of the runtime's form of a quantised result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt.ir.lower import lower
from graphopt.pipeline.manager import Manager
from graphopt.pipeline.plan import make_gates
from graphopt.pipeline.run import run
from graphopt.pipeline.text import parse
from graphopt.pipeline.validation import validate
from graphopt.report import markdown
from graphopt.report.structure import fallback_lines, structure_lines
from graphopt.targets import load_target
from tests.pipeline.kit import registry, tiny
from tests.runtime import qdq
from tests.runtime.models import write

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from graphopt.api import GateResult


def judge(text: str, proto: onnx.ModelProto | None) -> tuple[GateResult, ...]:
    candidate = tiny() if proto is None else lower(proto)
    context = Manager(registry(), target=load_target("ort-cpu")).context()
    context.bind(candidate)
    (gate,) = make_gates(parse(text), registry())
    return gate.check(candidate, candidate, context)


@pytest.mark.parametrize(
    ("text", "relu_zero", "values"),
    [
        ("structure", 0, [("max_fallback", 0.0, True)]),
        ("structure", 128, [("max_fallback", 1.0, False)]),
        ("structure{min_integer_kernels=1}", 0, [("min_integer_kernels", 1.0, True)]),
        ("structure{min_integer_kernels=2}", 0, [("min_integer_kernels", 1.0, False)]),
        (
            "structure{max_dequantize_before_compute=1,max_fallback=1}",
            128,
            [("max_dequantize_before_compute", 2.0, False), ("max_fallback", 1.0, True)],
        ),
        ("structure{max_off_provider=0}", 128, [("max_off_provider", 0.0, True)]),
    ],
)
def test_counts_against_limits(text: str, relu_zero: int, values: list[tuple[str, float, bool]]) -> None:
    results = judge(text, qdq.conv(relu=True, zero_point=relu_zero))
    assert [(each.name, each.value, each.passed) for each in results] == values


def test_a_float_model_has_nothing_to_refuse() -> None:
    (result,) = judge("structure{min_integer_kernels=3}", None)
    assert result.passed
    assert result.note == "nothing is quantised yet"


def test_a_run_reports_what_the_runtime_makes_of_the_result(tmp_path: Path) -> None:
    proto = qdq.conv(relu=True, zero_point=128)
    proto.graph.node[-1].doc_string = "x"
    result = run(
        write(proto, tmp_path / "m.onnx"), "infer-shapes", out=tmp_path / "out.onnx", data="random:2"
    )
    validation = result.report.validation
    assert validation is not None
    assert validation.structure is not None
    found = result.report.to_json()["validation"]["structure"]
    assert found["quantised"] == {"Conv": 1}
    assert found["fallbacks"] == {"Conv": 1}
    assert (found["integer_kernels"], found["dequantize_before_compute"], found["fallback"]) == (0, 2, 1)
    assert found["fallen"][0]["node"] == "conv"
    assert "- quantised, yet computed in float: 1 of 1 (1 Conv)" in markdown.to_text(result.report)


def test_a_float_result_has_no_structure(tmp_path: Path) -> None:
    from tests.runtime.models import linear

    path = linear(tmp_path / "m.onnx")
    assert validate(path, path, data="random:2", measure_latency=False).structure is None


def test_the_sentences_say_the_good_and_the_bad(tmp_path: Path) -> None:
    path = write(qdq.conv(relu=True, zero_point=128), tmp_path / "m.onnx")
    found = validate(path, path, data="random:1", measure_latency=False).structure
    assert found is not None
    assert list(structure_lines(found)) == [
        "computed on codes by the runtime: no node",
        "quantised, yet computed in float: 1 of 1 (1 Conv)",
        "DequantizeLinear left before 2 Conv",
    ]
    (line,) = fallback_lines(found)
    assert line.startswith("Conv 'conv': Relu behind it was not absorbed")
    found.fallen[0].node = f"{'a/' * 80}end"
    (line,) = fallback_lines(found)
    assert "a/end'" in line
    assert len(line) < 180
