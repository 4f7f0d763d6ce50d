"""A record with something in every field."""

from __future__ import annotations

from graphopt.record import (
    ErrorRecord,
    GateRecord,
    LatencyRecord,
    ModelFacts,
    OutputRecord,
    RunRecord,
    Skip,
    StepRecord,
    StepTimes,
    ValidationRecord,
)


def full_record() -> RunRecord:
    """Return a run of two steps, the second refused by a gate, with names that try to break a table."""
    before = ModelFacts(path="a|b`c.onnx", sha256="0" * 64, bytes=4096, nodes=12, parameters=900, macs=None)
    after = ModelFacts(path="out.onnx", sha256="1" * 64, bytes=2048, nodes=6, parameters=900, macs=5400)
    exact = OutputRecord(name="y", max_abs=0.0, sqnr_db=None, cosine=1.0, exact=True, top1_agreement=1.0)
    broken = OutputRecord(
        name="[bold]z|\n`q`", max_abs=float("inf"), sqnr_db=float("-inf"), cosine=float("nan"), passed=False,
        note="non-finite",
    )  # fmt: skip
    return RunRecord(
        command="run",
        versions={"graphopt": "0.1.0"},
        status="gate_failed",
        exit_code=1,
        input=before,
        output=after,
        pipeline="canonicalize,fold-constants{limit=3}",
        target="ort-cpu",
        providers=["cpu"],
        seed=7,
        steps=[
            StepRecord(
                index=0,
                name="canonicalize",
                options={},
                status="committed",
                changed=True,
                counts={"identities": 3},
                skipped=[Skip(where=f"node {k}", reason="because | of `this`") for k in range(25)],
                times_s=StepTimes(clone=0.001, run=0.5),
                extra={"ratio": float("nan")},
            ),
            StepRecord(
                index=1,
                name="fold-constants",
                options={"limit": 3},
                status="rolled_back",
                gates=[GateRecord(name="min_sqnr_db", value=None, limit=30.0, passed=False)],
                extra={
                    "recovery": {
                        "stages": [
                            {
                                "where": f"Conv 'c|{k}`'",
                                "residual_before": 0.5,
                                "residual_after": None,
                                "ridge": 0.001,
                                "rows": 64,
                            }
                            for k in range(120)
                        ],
                        "agreement": {"sqnr_db": 19.71, "same_argmax": 0.875},
                        "effort": {"cpu_s": 1.5, "peak_bytes": 3 << 20, "samples": 1},
                    }
                },
            ),
        ],
        validation=ValidationRecord(
            outputs=[exact, broken],
            latency=LatencyRecord(before_s=0.002, after_s=0.001, ratio=0.5, noise_ratio=1.01),
            provider="cpu",
            feeds=1,
            passed=False,
            problems=["output z is not finite"],
            levels={"all": [exact, broken], "none": [exact]},
            placement={"nodes": {"cpu": 6}},
        ),
        warnings=["the data is random"],
        error=ErrorRecord(type="GateFailed", where="step 2", message="refused", hint="Look at z."),
        extra={"anything": {"limit": float("inf")}},
    )
