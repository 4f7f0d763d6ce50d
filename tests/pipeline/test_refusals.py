"""What passes refuse before anything runs: options that contradict each other, data that are not given."""

from __future__ import annotations

import pytest

from graphopt.api import Evidence
from graphopt.errors import OptionError, PlanError
from graphopt.pipeline.plan import make_plan
from graphopt.pipeline.plugins import load_plugins
from graphopt.pipeline.text import parse

REGISTRY = load_plugins()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share-weights{bits=9}", "bits"),
        ("share-weights{bits=0}", "bits"),
        ("share-weights{mean_bits=3}", "mean_bits spreads bits"),
        ("share-weights{granularity=rows}", "granularity"),
        ("share-weights{share_within=1}", "share_within"),
        ("quantize-weights{bits=3}", "bits"),
        ("quantize-weights{block_size=24}", "power of two"),
        ("quantize-weights{feedback=true, clip=mse}", "feedback=true needs"),
        ("quantize-weights{feedback=true, symmetric=false}", "feedback=true needs"),
        ("quantize-weights{feedback=true, form=matmulnbits}", "not for form=matmulnbits"),
        ("quantize-weights{runtime=new}", "runtime"),
        ("quantize-dynamic{min_elements=0}", "min_elements"),
        ("convert-float16{dtype=float8}", "dtype"),
        ("convert-float16{headroom=0.5}", "headroom"),
        ("sparsify-weights{sparsity=1}", "sparsity"),
        ('sparsify-weights{pattern="n:m", n=4, m=4}', "n must be less than m"),
        ("factorize-lowrank{rank=0}", "rank"),
        ("factorize-lowrank{rank=4, energy=0.9}", "energy and rank"),
        ("factorize-lowrank{forms=[]}", "forms is empty"),
        ("factorize-lowrank{round_to=0}", "round_to"),
        ("prune-blocks", "expected exactly one of"),
        ("prune-blocks{count=1, macs_ratio=0.5}", "got macs_ratio and count"),
    ],
)
def test_options_are_refused_with_the_plan(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_plan(parse(text), REGISTRY)


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("quantize-weights{bits=4}", 21),
        ("quantize-weights{bits=2}", 25),
        ("quantize-weights{block_size=32}", 21),
        ("quantize-weights{form=dequantize}", 13),
        ("share-weights{storage=uint4}", 21),
        ("convert-float16{dtype=bfloat16, form=storage}", 13),
        ("quantize-dynamic", 11),
        ("quantize-weights{bits=4, form=matmulnbits}", 1),
    ],
)
def test_an_opset_that_is_too_low_is_told_with_the_plan(text: str, opset: int) -> None:
    make_plan(parse(text), REGISTRY, opset)
    if opset > 1:
        with pytest.raises(PlanError, match=rf"needs opset {opset} or newer.*upgrade-opset\{{to={opset}\}}"):
            make_plan(parse(text), REGISTRY, opset - 1)
        # Without a number the upgrade goes as far as what stands behind it needs.
        plan = make_plan(parse(f"upgrade-opset,{text}"), REGISTRY, opset - 1)
        assert plan.steps[0].text == f"upgrade-opset{{to={opset}}}"


def test_a_step_that_may_raise_the_opset_leaves_it_open() -> None:
    make_plan(parse("insert-qdq{opset=21},quantize-weights{bits=4}"), REGISTRY, 17, given="data")


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("insert-qdq", "statistics"),
        ("share-weights{weighting=activation}", "statistics"),
        ("share-weights{feedback=true}", "data"),
        ("quantize-weights{feedback=true}", "statistics"),
        ("sparsify-weights{criterion=wanda}", "statistics"),
        ("factorize-lowrank{sensitivity=output}", "data"),
        ("factorize-lowrank{widen=1, recover=bias}", "data"),
        ("correct-bias{source=data}", "data"),
        ("prune-channels{macs_ratio=0.5, criterion=obs}", "statistics"),
        ("prune-channels{macs_ratio=0.5, recover=least-squares}", "data"),
        ("prune-blocks{count=1}", "data"),
        ("prune-blocks{blocks=x, recover=bias}", "data"),
        ("share-weights", "nothing"),
        ("factorize-lowrank", "nothing"),
        ("prune-channels{macs_ratio=0.5}", "nothing"),
        ("prune-blocks{blocks=x}", "nothing"),
    ],
)
def test_data_that_are_missing_are_asked_for_with_the_plan(text: str, needed: Evidence) -> None:
    order: tuple[Evidence, ...] = ("nothing", "statistics", "data")
    for given in order:
        if order.index(given) >= order.index(needed):
            make_plan(parse(text), REGISTRY, given=given)
        else:
            either = "data or statistics" if needed == "statistics" else "data"
            with pytest.raises(PlanError, match=f"needs {either}, and the run is given {given}"):
                make_plan(parse(text), REGISTRY, given=given)
