"""The 1,282 node models of ONNX's own backend tests: nobody here wrote them, and they use every type."""

from __future__ import annotations

from collections import Counter

import pytest

from graphopt.calibrate.sources import SourceRequest, open_source
from graphopt.errors import DataError, GraphoptError, ProviderError
from graphopt.ir.lower import load
from graphopt.runtime.compare import Comparator, judge
from graphopt.runtime.feeds import input_specs, random_feeds
from graphopt.runtime.session import open_session
from tests.corpora import NodeCase, node_cases

# Random by design, or known to deviate in onnxruntime (ties, cubic and aligned resizing, text of floats).
DEVIATE = (
    "averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True",
    "bernoulli",
    "training_dropout",
    "to_STRING",
    "to_INT4",
    "to_UINT4",
    "qlinearmatmul_",
    "resize_downsample_scales_",
    "maxunpool_export_with_output_shape",
    "BFLOAT16",  # the suite stores these tensors as uint16
)


def outcome(case: NodeCase) -> str:
    """Run *case* on ONNX's own inputs and say how it went."""
    model = load(case.model)
    specs = input_specs(model)
    feeds = list(open_source(SourceRequest(str(case.model.parent), specs)))
    try:
        opened = open_session(case.model)
    except ProviderError:
        return "refused"
    names = [info.name for info in opened.outputs]
    comparator = Comparator(names)
    for feed, (_, expected) in zip(feeds, case.data_sets(), strict=True):
        got = opened.run(feed)
        comparator.add(expected, [got[name] for name in names])
    return "same" if all(judge(each, min_sqnr_db=60).passed for each in comparator.result()) else "differs"


@pytest.mark.slow
def test_onnxs_own_outputs_come_out() -> None:
    results = {case.name: outcome(case) for case in node_cases() if "BFLOAT16" not in case.name}
    differing = [name for name, result in results.items() if result == "differs"]
    assert [name for name in differing if not any(part in name for part in DEVIATE)] == []
    counts = Counter(results.values())
    assert counts["same"] >= 1200
    assert counts["refused"] <= 40


@pytest.mark.slow
def test_random_feeds_run_or_say_why_not() -> None:
    counts: Counter[str] = Counter()
    for case in node_cases():
        try:
            feed = random_feeds(load(case.model), 1)[0]
            open_session(case.model).run(feed)
        except (DataError, ProviderError) as error:
            counts[type(error).__name__] += 1
        except GraphoptError as error:  # any other class would be the wrong one
            pytest.fail(f"{case.name}: {error!r}")
        else:
            counts["ran"] += 1
    # The rest take shapes, scales or thresholds as inputs, for which few values make sense.
    assert counts["ran"] >= 1165
